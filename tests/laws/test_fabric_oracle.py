"""The compiled fluid fabric against the exact one: whole stories on small random networks, message by message."""

import numpy as np
import pytest
from exact_fabric import ExactFabric, Graph
from exact_networks import NO_FABRIC, SPREAD, FatTree, LeafSpine
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric import policies
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import OUTCOMES, message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, fat_tree, leaf_spine


def choose_mixed(batch, count, network, placed):
    """A policy for tests: by their ids, messages are sprayed, go whole, in three unequal pieces, or past the fabric."""
    if 3 * count > len(placed):
        return -3 * count
    n = 0
    for i in range(count):
        entry = batch[i]
        paths, lanes, size = entry.num_paths, entry.down_lanes, entry.size_bytes
        style = (entry.source + 2 * entry.destination) % 4
        entry.start_delay_s = (entry.source % 3) * 1e-7
        pieces = min(paths, 3) if style == 2 else 1
        for j in range(pieces):
            up = (5 * entry.source + entry.destination + j) % paths
            down = up // lanes * lanes + (up + entry.destination) % lanes
            if style == 0:
                up, down = paths, paths
            elif style == 3:
                up, down = policies.NO_FABRIC, policies.NO_FABRIC
            placed[n].entry = i
            placed[n].path_up = up
            placed[n].path_down = down
            placed[n].payload_bytes = size * (j + 1) ** 2 // pieces**2 - size * j**2 // pieces**2
            placed[n].weight = (j + 1) * entry.queue_pairs
            n += 1
    return n


def choose_mixed_plainly(source, destination, size, queue_pairs, num_paths, lanes):
    """The same in plain Python, for the exact fabric."""
    style = (source + 2 * destination) % 4
    pieces = min(num_paths, 3) if style == 2 else 1
    choices = []
    for j in range(pieces):
        up = (5 * source + destination + j) % num_paths
        down = up // lanes * lanes + (up + destination) % lanes
        if style in (0, 3):
            up = down = SPREAD if style == 0 else NO_FABRIC
        payload = size * (j + 1) ** 2 // pieces**2 - size * j**2 // pieces**2
        choices.append((up, down, payload, (j + 1) * queue_pairs))
    return (source % 3) * 1e-7, choices


def choose_spray_plainly(source, destination, size, queue_pairs, num_paths, lanes):
    return 0.0, [(SPREAD, SPREAD, size, queue_pairs)]


def choose_ideal_plainly(source, destination, size, queue_pairs, num_paths, lanes):
    return 0.0, [(NO_FABRIC, NO_FABRIC, size, queue_pairs)]


MIXED = policies.PathPolicy("mixed_for_tests", choose_mixed, "flow", "all kinds of placement", "this file")
POLICIES = {
    "mixed": (MIXED, choose_mixed_plainly),
    "spray": ("spray", choose_spray_plainly),
    "ideal": ("ideal", choose_ideal_plainly),
}
RATES = [10e9, 12.5e9, 25e9, 7e9]


@st.composite
def networks(draw):
    """(the simulator's topology, the exact network): the same arguments go to both."""
    rates = draw(st.lists(st.sampled_from(RATES), min_size=4, max_size=4))
    latencies = [draw(st.sampled_from([0.0, 300e-9, 1e-6])) for _ in range(3)]
    several = draw(st.booleans())

    def kind(count, nics):
        return HostKind(
            count, num_accelerators=nics * draw(st.integers(1, 2)) if several else nics, num_nics=nics,
            nvlink=Link(100e9, 700e-9),
            injection_bytes_per_s=draw(st.sampled_from([None, 6e9])),
            message_overhead_s=draw(st.sampled_from([0.0, 0.0, 400e-9])),
            segment_bytes=draw(st.sampled_from([None, 3000])),
        )  # fmt: skip

    def kinds(count, nics):
        if count < 2 or not draw(st.booleans()):
            return [kind(count, nics)]
        return [kind(1, nics), kind(count - 1, nics)]

    links = {"host_link": Link(rates[0], latencies[0])}
    if draw(st.integers(0, 3)) == 0:
        shape = {"pods": 2, "edges_per_pod": draw(st.integers(1, 2)), "aggregations_per_pod": 2, "hosts_per_edge": 2}
        shape |= links | {"edge_link": Link(rates[1], latencies[1]), "core_link": Link(rates[2], latencies[2])}
        shape["cores"] = draw(st.sampled_from([2, 4]))
        shape["hosts"] = kinds(4 * shape["edges_per_pod"], 1)
        names, builders = ["edge0-aggregation1", "aggregation0-core0"], (fat_tree, FatTree)
    else:
        nics = draw(st.integers(1, 2))
        attach = draw(st.sampled_from(["host", "rail"]))
        groups = draw(st.integers(1, 3))
        leaves = groups * nics if attach == "rail" else groups
        shape = {"leaves": leaves, "spines": draw(st.integers(1, 3)), "hosts_per_leaf": draw(st.integers(1, 3))}
        shape |= links | {"spine_link": Link(rates[1], latencies[1]), "attach": attach}
        shape |= {"lanes": draw(st.integers(1, 2)), "planes": draw(st.integers(1, 2))}
        shape["hosts"] = kinds(groups * shape["hosts_per_leaf"], nics)
        names = [] if leaves == 1 else ["leaf0-spine0", "leaf0-spine0.lane1"][: shape["lanes"]]
        builders = (leaf_spine, LeafSpine)
    if names and draw(st.booleans()):
        slow = LinkOverride(draw(st.sampled_from([None, 1e9])), draw(st.sampled_from([None, 5e-6])))
        shape["overrides"] = {draw(st.sampled_from(names)): slow}
    return builders[0](**shape), builders[1](**shape)


@st.composite
def stories(draw, num_accelerators):
    """Graphs that start at some time, gates that open, messages that are cancelled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    story = []
    num_gates = 0
    for number in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 9))
        source = rng.integers(0, num_accelerators, n)
        destination = rng.integers(0, num_accelerators, n)
        chain = draw(st.floats(0, 0.6))
        edges = [(a, b) for b in range(n) for a in range(b) if rng.random() < chain]
        gates = np.full(n, -1)
        if draw(st.booleans()):
            gates[rng.random(n) < 0.4] = num_gates
            num_gates += 1
        start_s = 0.0 if number == 0 else float(rng.random() * 40e-6)
        sizes = rng.integers(0, draw(st.sampled_from([9, 9000, 200_000])), n)
        earliest_s = rng.integers(0, 2, n) * rng.random(n) * 30e-6
        delay_s = rng.integers(0, 2, n) * rng.random(n) * 5e-6
        columns = (source, destination, sizes, earliest_s, delay_s)
        graph = Graph(*(c.tolist() for c in columns), edges, gates.tolist(), rng.integers(1, 4, n).tolist())
        story.append((start_s, "start", number, graph))
        if draw(st.integers(0, 2)) == 0:
            gone = np.flatnonzero(rng.random(n) < 0.5).tolist()
            story.append((start_s + float(rng.random() * 30e-6), "cancel", number, gone))
    story += [(float(rng.random() * 50e-6), "open", gate, None) for gate in range(num_gates)]
    return sorted(story, key=lambda action: action[0])


def simulated(topology, policy, story, *, by_message, window_s, tolerance=0.0):
    fairness = "message" if by_message else "queue_pair"
    fabric = FluidFabric(
        Clock(), topology, policy, settings=FluidSettings(tolerance=tolerance, fairness=fairness), window_s=window_s
    )
    transfers = {}

    def play():
        for time_s, what, number, more in story:
            yield fabric.clock.timeout(max(time_s - fabric.clock.now, 0.0))
            if what == "start":
                graph = message_graph(
                    more.source, more.destination, more.size_bytes, earliest_s=more.earliest_s, delay_s=more.delay_s,
                    edges=tuple(np.array(more.edges, np.int64).reshape(-1, 2).T), gate=more.gate,
                    queue_pairs=more.queue_pairs,
                )  # fmt: skip
                transfers[number] = fabric.start(graph)
            elif what == "open":
                fabric.open_gate(number)
            else:
                transfers[number].cancel(more)

    for action in story:
        if action[1] == "open":
            fabric.new_gate()
    fabric.clock.process(play())
    fabric.clock.run()
    fabric.check_conservation()
    return fabric, transfers


def exact(network, choose, story, *, by_message, window_s):
    fabric = ExactFabric(network, choose, by_message=by_message, window_s=window_s)
    for time_s, what, number, more in story:
        if what == "start":
            fabric.at(time_s, lambda number=number, more=more: fabric.start(number, more))
        elif what == "open":
            fabric.at(time_s, lambda number=number: fabric.open_gate(number))
        else:
            fabric.at(time_s, lambda number=number, more=more: fabric.cancel(number, more))
    fabric.run()
    return fabric


def assert_same(fabric, transfers, expected):
    def number(value):
        return np.nan if value is None else float(value)

    for graph, transfer in transfers.items():
        messages = [m for m in expected.messages if m.graph == graph]
        results = transfer.results
        assert [OUTCOMES[o] for o in results.outcome] == [m.outcome for m in messages]
        for name in ("ready_s", "started_s", "received_s", "acknowledged_s"):
            times = [number(getattr(m, name)) for m in messages]
            assert getattr(results, name) == pytest.approx(times, rel=1e-9, abs=1e-15, nan_ok=True), name
        delivered = [float(m.delivered) for m in messages]
        assert results.delivered_bytes == pytest.approx(delivered, rel=1e-7, abs=1e-4)
    payload, _ = fabric.link_bytes()
    found = dict(zip(fabric.topology.link_name, payload.tolist(), strict=True))
    assert found == pytest.approx({k: float(v) for k, v in expected.payload.items()}, rel=1e-7, abs=1e-3)


def test_both_know_the_same_links():
    kinds = [HostKind(1, 4, 2, Link(9e9, 1e-6), 5e9, 1e-6, 3000), HostKind(3, 2, 2, Link(8e9, 2e-6))]
    shape = {
        "leaves": 4, "spines": 3, "hosts_per_leaf": 2, "lanes": 2, "planes": 2, "attach": "rail", "hosts": kinds,
        "host_link": Link(4e9, 3e-7), "spine_link": Link(3e9, 4e-7), "overrides": {"leaf2-spine1": LinkOverride(1e9)},
    }  # fmt: skip
    topology, network = leaf_spine(**shape), LeafSpine(**shape)
    assert dict(zip(topology.link_name, topology.link_rate, strict=True)) == network.capacity
    assert dict(zip(topology.link_name, topology.link_latency_s, strict=True)) == network.latency
    assert topology.leaf_of_accelerator.tolist() == [network.leaf_of(a) for a in range(topology.num_accelerators)]


STORY = (st.data(), networks(), st.sampled_from(sorted(POLICIES)), st.booleans(), st.sampled_from([0.0, 2e-6]))


def check_story(data, both, name, by_message, window_s):
    topology, network = both
    policy, choose = POLICIES[name]
    story = data.draw(stories(topology.num_accelerators))
    expected = exact(network, choose, story, by_message=by_message, window_s=window_s)
    fabric, transfers = simulated(topology, policy, story, by_message=by_message, window_s=window_s)
    assert_same(fabric, transfers, expected)


@settings(max_examples=300, deadline=None)
@given(*STORY)
def test_every_message_of_a_story_ends_when_it_must(data, both, name, by_message, window_s):
    check_story(data, both, name, by_message, window_s)


@pytest.mark.slow
@settings(max_examples=6000, deadline=None)
@given(*STORY)
def test_every_message_of_many_stories_ends_when_it_must(data, both, name, by_message, window_s):
    check_story(data, both, name, by_message, window_s)
