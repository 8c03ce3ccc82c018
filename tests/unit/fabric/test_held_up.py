"""Which links hold up whose flows, by hand: links of 1e10 B/s, two racks of three hosts and one spine link; the same in
fluid and packet by packet, on lean ports and on full ones."""

from __future__ import annotations

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.held_up import held_up
from sim.fabric.messages import message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, leaf_spine

SIZE = 10**9


FIDELITIES = ["fluid", "lean", "full"]


@pytest.fixture(params=FIDELITIES)
def fidelity(request):
    return request.param


def fabric_of(fidelity, spine_bytes_per_s=1e10, host_latency_s=500e-9):
    latency_s = 0.0 if fidelity == "fluid" else 500e-9
    topology = leaf_spine(
        leaves=2, spines=1, hosts_per_leaf=3, host_link=Link(1e10, min(latency_s, host_latency_s)),
        spine_link=Link(spine_bytes_per_s, latency_s), hosts=[HostKind(6)],
    )  # fmt: skip
    clock = Clock()
    if fidelity == "fluid":
        return FluidFabric(clock, topology, "ecmp", settings=FluidSettings(tolerance=0.0))
    return PacketFabric(clock, topology, "ecmp", settings=PacketSettings(ports=fidelity))


def looked_at(fabric, **flows):
    """What holds up `mine` a moment after these flows (source, destination) have started, by owner."""
    for owner, pairs in flows.items():
        source, destination = zip(*pairs, strict=True)
        fabric.start(message_graph(source, destination, SIZE, owner=owner))
    fabric.clock.run(until=1e-3)
    return held_up(fabric, "mine")


def test_the_spine_link_is_shared_out_by_rate(fidelity):
    """Mine 0 -> 3; theirs 1 -> 4 and 2 -> 5: a third of the link each, and all of mine is held up by theirs."""
    found = looked_at(fabric_of(fidelity), mine=[(0, 3)], theirs=[(1, 4), (2, 5)])

    ((link, other),) = found
    assert link.startswith("leaf") and "spine0" in link
    assert other == "theirs"
    assert found[link, other] == pytest.approx(1.0)


def test_one_s_own_messages_hold_up_one_another_in_the_fabric_but_not_at_the_nic(fidelity):
    """0 -> 3 and 1 -> 4 meet on the spine link. 0 -> 1 and 0 -> 2 meet at the NIC of 0, which is no contention."""
    in_fabric = looked_at(fabric_of(fidelity), mine=[(0, 3), (1, 4)])
    assert {other for _, other in in_fabric} == {"mine"}
    assert sum(in_fabric.values()) == pytest.approx(1.0)

    assert looked_at(fabric_of(fidelity), mine=[(0, 1), (0, 2)]) == {}


def test_at_a_nic_others_hold_up(fidelity):
    """0 -> 1 alone has half the NIC of 1 beside theirs 2 -> 1."""
    found = looked_at(fabric_of(fidelity), mine=[(0, 1)], theirs=[(2, 1)])

    assert [other for _, other in found] == ["theirs"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_slow_link_holds_up_without_anybody(fidelity):
    ((_, other),) = looked_at(fabric_of(fidelity, spine_bytes_per_s=1e9), mine=[(0, 3)])

    assert other == ""


def test_of_two_flows_one_is_held_up(fidelity):
    """Mine 0 -> 3 shares the spine link with theirs, mine 1 -> 2 has its NICs for itself."""
    found = looked_at(fabric_of(fidelity), mine=[(0, 3), (1, 2)], theirs=[(2, 4)])

    assert sum(found.values()) == pytest.approx(0.5)


def test_nothing_under_way(fidelity):
    assert looked_at(fabric_of(fidelity), theirs=[(0, 3)]) is None


def test_lean_and_full_ports_have_the_same_packets_waiting():
    """Two cores that keep their queues in different ways: 18 messages between six hosts, looked at at odd moments.
    Hosts' links without latency, so that nothing enters a port ahead of the clock."""
    rng = np.random.default_rng(5)
    pairs = [(a, b) for a, b in rng.integers(0, 6, (30, 2)) if a != b][:18]
    moments = np.cumsum(rng.uniform(1e-5, 3e-5, 20))
    seen: dict[str, np.ndarray] = {}
    for ports in ("lean", "full"):
        fabric = fabric_of(ports, host_latency_s=0.0)
        fabric.start(message_graph(*zip(*pairs, strict=True), 10**6, owner="mine"))
        seen[ports] = np.zeros((len(moments), fabric.topology.num_links), int)
        for i, moment in enumerate(moments):
            fabric.clock.run(until=moment)
            found = fabric.waiting_packets()
            np.add.at(seen[ports][i], found["link"][found["waits"]], 1)
    assert np.abs(seen["lean"] - seen["full"]).max() <= 1  # acknowledgements pass them in another order
    assert seen["lean"].max() > 20
