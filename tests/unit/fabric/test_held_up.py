"""Which links hold up whose flows, by hand: links of 1e10 B/s, two racks of three hosts and one spine link."""

from __future__ import annotations

import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.held_up import held_up
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, leaf_spine

SIZE = 10**9


def fabric_of(spine_bytes_per_s=1e10):
    topology = leaf_spine(
        leaves=2, spines=1, hosts_per_leaf=3, host_link=Link(1e10, 0.0), spine_link=Link(spine_bytes_per_s, 0.0),
        hosts=[HostKind(6)],
    )  # fmt: skip
    clock = Clock()
    return FluidFabric(clock, topology, "ecmp", settings=FluidSettings(tolerance=0.0))


def looked_at(fabric, **flows):
    """What holds up `mine` a moment after these flows (source, destination) have started, by owner."""
    for owner, pairs in flows.items():
        source, destination = zip(*pairs, strict=True)
        fabric.start(message_graph(source, destination, SIZE, owner=owner))
    fabric.clock.run(until=1e-3)
    return held_up(fabric, "mine")


def test_the_spine_link_is_shared_out_by_rate():
    """Mine 0 -> 3; theirs 1 -> 4 and 2 -> 5: a third of the link each, and all of mine is held up by theirs."""
    found = looked_at(fabric_of(), mine=[(0, 3)], theirs=[(1, 4), (2, 5)])

    ((link, other),) = found
    assert link.startswith("leaf") and "spine0" in link
    assert other == "theirs"
    assert found[link, other] == pytest.approx(1.0)


def test_one_s_own_messages_hold_up_one_another_in_the_fabric_but_not_at_the_nic():
    """0 -> 3 and 1 -> 4 meet on the spine link. 0 -> 1 and 0 -> 2 meet at the NIC of 0, which is no contention."""
    in_fabric = looked_at(fabric_of(), mine=[(0, 3), (1, 4)])
    assert {other for _, other in in_fabric} == {"mine"}
    assert sum(in_fabric.values()) == pytest.approx(1.0)

    assert looked_at(fabric_of(), mine=[(0, 1), (0, 2)]) == {}


def test_at_a_nic_others_hold_up():
    """0 -> 1 alone has half the NIC of 1 beside theirs 2 -> 1."""
    found = looked_at(fabric_of(), mine=[(0, 1)], theirs=[(2, 1)])

    assert [other for _, other in found] == ["theirs"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_slow_link_holds_up_without_anybody():
    ((_, other),) = looked_at(fabric_of(spine_bytes_per_s=1e9), mine=[(0, 3)])

    assert other == ""


def test_of_two_flows_one_is_held_up():
    """Mine 0 -> 3 shares the spine link with theirs, mine 1 -> 2 has its NICs for itself."""
    found = looked_at(fabric_of(), mine=[(0, 3), (1, 2)], theirs=[(2, 4)])

    assert sum(found.values()) == pytest.approx(0.5)


def test_nothing_under_way():
    assert looked_at(fabric_of(), theirs=[(0, 3)]) is None
