"""Transfers that SimPy's events start, packet by packet, against the same ones handed over beforehand.

A callback may run at the very time at which the core does something, at a float between two picoseconds, and with
other events of SimPy's still due at that time. None of that may show: messages started by callbacks move as messages
with that `earliest_s` do, to the picosecond.

Each accelerator sends one message. Who starts when a source port has just picked its next packet finds it gone, and
takes his turn behind it; started beforehand he would have been in the ring before that pick.
"""

from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric.messages import message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, leaf_spine

NUM_HOSTS = 8
FAR_S = 20_000.0
"""Floats are 4 ps apart there."""

TOPOLOGY = leaf_spine(
    leaves=2, spines=2, hosts_per_leaf=NUM_HOSTS // 2, host_link=Link(5e10, 0.5e-6), spine_link=Link(5e10, 0.5e-6),
    hosts=[HostKind(NUM_HOSTS)],
)  # fmt: skip


@st.composite
def stories(draw):
    """[(destination, bytes, transfers to wait for, seconds to wait then)], one for each accelerator as the source.

    Few different waits, so that starts meet each other, completions, and packets on their way.
    """
    waits = [0.0, *draw(st.lists(st.floats(1e-8, 3e-5), min_size=1, max_size=3))]
    found = []
    for i in range(draw(st.integers(1, NUM_HOSTS))):
        destination = draw(st.sampled_from([a for a in range(NUM_HOSTS) if a != i]))
        size = draw(st.sampled_from([0, 1, 4032, 5000, 40_320]) | st.integers(0, 60_000))
        after = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        found.append((destination, size, after, draw(st.sampled_from(waits))))
    return found


def fabric_of(policy, ports, seed):
    fabric = PacketFabric(Clock(), TOPOLOGY, policy, settings=PacketSettings(ports=ports), seed=seed)
    pauses = count()

    def stop_a_livelock():
        assert next(pauses) < 10_000, "the clock waits for the core, and the core for the clock"

    fabric.clock.on_pause = stop_a_livelock
    return fabric


def by_callbacks(fabric, story, begins_s):
    """[(accelerator, time, transfer)] in the order in which they started."""
    clock, started = fabric.clock, []
    is_there = [clock.event() for _ in story]

    def sends(i):
        destination, size, after, wait_s = story[i]
        yield clock.timeout(begins_s)
        for j in after:
            yield is_there[j]
        yield clock.timeout(wait_s)
        clock.timeout(0.0)  # another event is due at this time
        transfer = fabric.start(message_graph([i], [destination], size))
        started.append((i, clock.now, transfer))
        clock.timeout(0.0)
        yield transfer.done
        is_there[i].succeed()

    for i in range(len(story)):
        clock.process(sends(i))
    clock.run()
    return started


def beforehand(fabric, story, started):
    """The same transfers, all handed over at 0."""
    transfers = [
        fabric.start(message_graph([i], [story[i][0]], story[i][1], earliest_s=when_s)) for i, when_s, _ in started
    ]
    fabric.clock.run()
    return transfers


def picoseconds(transfers, name):
    return [round(getattr(transfer.results, name)[0] * 1e12) for transfer in transfers]


@pytest.mark.parametrize("ports", ["lean", "full"])
@settings(max_examples=150, deadline=None)
@given(
    stories(), st.sampled_from(["ecmp", "spray", "spray_random"]), st.sampled_from([0.0, 0.1]) | st.floats(0.0, 100.0),
    st.integers(1, 100),
)  # fmt: skip
def test_who_starts_in_a_callback_moves_as_if_handed_over_beforehand(ports, story, policy, begins_s, seed):
    fabric, other = fabric_of(policy, ports, seed), fabric_of(policy, ports, seed)
    started = by_callbacks(fabric, story, begins_s)
    transfers = [transfer for _, _, transfer in started]
    again = beforehand(other, story, started)

    assert len(started) == len(story)
    for name in ("ready_s", "started_s", "received_s", "acknowledged_s"):
        assert picoseconds(transfers, name) == picoseconds(again, name), name
    assert picoseconds(transfers, "ready_s") == [round(when_s * 1e12) for _, when_s, _ in started]
    for mine, theirs in zip(fabric.link_bytes(), other.link_bytes(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    fabric.check_conservation()
    other.check_conservation()


@pytest.mark.parametrize("ports", ["lean", "full"])
@settings(max_examples=50, deadline=None)
@given(stories(), st.floats(FAR_S, 2 * FAR_S))
def test_all_ends_also_where_a_float_stands_for_several_picoseconds(ports, story, begins_s):
    fabric = fabric_of("ecmp", ports, 1)
    started = by_callbacks(fabric, story, begins_s)

    assert all(transfer.results.delivered_bytes[0] == story[i][1] for i, _, transfer in started)
    assert all(transfer.results.received_s[0] > when_s - 1e-11 for _, when_s, transfer in started)
    fabric.check_conservation()
