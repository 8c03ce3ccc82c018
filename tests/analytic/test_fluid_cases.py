"""Fluid networks by hand: finish times of flows that share links, derived in each docstring."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, fat_tree, leaf_spine

R, L = 1e9, 1e-6
FULL, WIRE = 4032 * 100, 4096 * 100
T = WIRE / R
"""Time of one flow's bytes on a link of its own."""


def network(policy="spray", hosts=None, tolerance=0.0, num_bins=256, **shape):
    full = {"leaves": 2, "spines": 2, "hosts_per_leaf": 2, "host_link": Link(R, L), "spine_link": Link(R, L)} | shape
    hosts = hosts or [HostKind(full["leaves"] * full["hosts_per_leaf"])]
    settings = FluidSettings(tolerance=tolerance, num_bins=num_bins)
    return FluidFabric(Clock(), leaf_spine(hosts=hosts, **full), policy, settings=settings)


def run(fabric, *args, **kwargs):
    transfer = fabric.start(message_graph(*args, **kwargs))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    return transfer.results


def test_an_incast_of_unequal_sizes_is_processor_sharing():
    """Flows of 1, 2, … k units into one host: while j are left each gets R / j.

    Flow i ends when it and all smaller ones have sent i units, and the k - i larger ones as much:
    (1 + 2 + … + i + (k - i) i) T.
    """
    k = 9
    fabric = network(leaves=1, hosts_per_leaf=k + 1)
    units = np.arange(1, k + 1)
    results = run(fabric, np.arange(1, k + 1), 0, FULL * units)
    expected = (units * (units + 1) / 2 + (k - units) * units) * T
    assert results.received_s - 2 * L == pytest.approx(expected, rel=1e-12)


def test_the_parking_lot_of_hosts():
    """0 -> 1, 1 -> 2 and 0 -> 2 on one leaf: host 0's way out and host 2's way in carry two flows each.

    All get R/2 (0 -> 1 with 0 -> 2; 1 -> 2 with 0 -> 2) and end together after 2 T.
    With two more into host 2, that link gives R/4 each; 0 -> 1 rises to 3/4 R and ends at 4/3 T.
    """
    fabric = network(leaves=1, hosts_per_leaf=5)
    assert run(fabric, [0, 1, 0], [1, 2, 2], FULL).received_s == pytest.approx(2 * T + 2 * L, rel=1e-12)
    fabric = network(leaves=1, hosts_per_leaf=5)
    received_s = run(fabric, [0, 1, 0, 3, 4], [1, 2, 2, 2, 2], FULL).received_s
    assert received_s[0] - 2 * L == pytest.approx(4 / 3 * T, rel=1e-12)
    assert received_s[1:] - 2 * L == pytest.approx(4 * T, rel=1e-12)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_oversubscription_stretches_what_crosses_and_nothing_else(ratio):
    """8 hosts a leaf, 8 / ratio spines: 8 flows across get R / ratio each; one inside the leaf, from a 9th, has R."""
    fabric = network(hosts_per_leaf=10, spines=8 // ratio)
    source, destination = [*range(8), 8], [*range(10, 18), 9]
    received_s = run(fabric, source, destination, FULL).received_s
    assert received_s[:8] - 4 * L == pytest.approx(ratio * T, rel=1e-12)
    assert received_s[8] - 2 * L == pytest.approx(T, rel=1e-12)


def test_a_late_flow_takes_its_share_from_then_on():
    """A sends 2 units alone until B comes at T: A has one left, B one. Both at R/2 until 3 T."""
    fabric = network(leaves=1, hosts_per_leaf=3)
    received_s = run(fabric, [0, 1], [2, 2], [2 * FULL, FULL], earliest_s=[0, T]).received_s
    assert received_s - 2 * L == pytest.approx([3 * T, 3 * T], rel=1e-12)


def test_two_ways_of_one_link_do_not_meet():
    received_s = run(network(leaves=1), [0, 1], [1, 0], FULL).received_s
    assert received_s - 2 * L == pytest.approx([T, T], rel=1e-12)


def test_latency_is_that_of_the_links_on_the_way():
    """Hosts at 1 us, spines at 1 us, but leaf 1's link to spine 1 at 7 us: spraying waits for the longest way."""
    slow = {"leaf1-spine1": LinkOverride(latency_s=7 * L)}
    results = run(network(overrides=slow), [0], [2], FULL)
    assert results.received_s[0] == pytest.approx(T + 10 * L, rel=1e-12)
    assert results.acknowledged_s[0] == pytest.approx(T + 20 * L, rel=1e-12)


def test_mixed_hosts_and_rails():
    """Two kinds of host on two rails: NIC 0 of all on leaf 0, NIC 1 on leaf 1; from rail to rail over the spines."""
    kinds = [HostKind(1, 4, 2, Link(10 * R, 2 * L)), HostKind(2, 2, 2, Link(5 * R, 3 * L), injection_bytes_per_s=R / 2)]
    fabric = network(hosts=kinds, hosts_per_leaf=3, attach="rail")
    # Accelerators 0-3 are host 0 (NICs 0 0 1 1), 4 5 host 1 and 6 7 host 2 (NICs 0 1 each).
    received_s = run(fabric, [0, 2, 4, 6, 1], [1, 3, 5, 5, 7], FULL).received_s
    assert received_s[0] == received_s[1] == pytest.approx(T / 10 + 2 * L, rel=1e-12)
    assert received_s[2] == pytest.approx(T / 5 + 3 * L, rel=1e-12)
    assert received_s[3] == pytest.approx(2 * T + 4 * L, rel=1e-12)  # injection R/2, from rail 0 to rail 1
    assert received_s[4] == pytest.approx(T + 4 * L, rel=1e-12)


def test_the_overhead_of_a_nic_is_paid_per_message_in_turn_and_not_inside_the_host():
    """Three messages out of one NIC at 5 us each, to three receivers; a fourth stays inside the host.

    They start at 5, 10 and 15 us. The first is alone until 10 us, then two, then three share the way out.
    Wire units of 20 us each: the first has 15 left at 10 us, (R/2) 12.5 at 15; the second 17.5 at 15, the third 20.
    From 15 us each gets R/3: ends after 3 x 12.5, then R/2: 2 x 5 more, then R: 2.5 more: 52.5, 62.5, 65.
    """
    size = 4032 * 4
    wire_s = 4096 * 4 / R
    scale = wire_s / 20e-6
    kind = HostKind(4, 2, 1, Link(R, L), message_overhead_s=5e-6 * scale)
    fabric = network(leaves=1, hosts_per_leaf=4, hosts=[kind])
    results = run(fabric, [0, 1, 0, 0], [2, 4, 6, 1], size)
    assert results.started_s / scale == pytest.approx([5e-6, 10e-6, 15e-6, 0], abs=1e-15)
    assert (results.received_s[:3] - 2 * L) / scale == pytest.approx([52.5e-6, 62.5e-6, 65e-6], rel=1e-12)
    assert results.received_s[3] == pytest.approx(wire_s + L, rel=1e-12)


def test_wire_bytes_of_every_size_around_a_packet():
    """payload + 64 for each started packet of 4,032, one at least."""
    for size, wire in ((0, 64), (1, 65), (4032, 4096), (4033, 4161), (8064, 8192), (12_097, 12_353)):
        fabric = network(leaves=1)
        assert run(fabric, [0], [1], size).received_s[0] == pytest.approx(wire / R + 2 * L, rel=1e-12)
        payload, sent = fabric.link_bytes()
        assert payload.sum() == pytest.approx(2 * size)
        assert sent.sum() == pytest.approx(2 * wire)


def test_a_fat_tree_adds_up_its_tiers():
    """Same edge 2 L; same pod 2 L + 2 x 3 L; other pod 2 L + 2 x (3 L + 5 L). Sprayed over a core tier of half rate.

    4 hosts of pod 0 send to pod 1 over 4 core links of R/2 (each flow R/4 on each): sum 2 R of 4 R: 2 T.
    """
    topology = fat_tree(
        pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=4, hosts_per_edge=2, host_link=Link(R, L),
        edge_link=Link(R, 3 * L), core_link=Link(R / 2, 5 * L), hosts=[HostKind(8)],
    )  # fmt: skip

    def times(source, destination):
        fabric = FluidFabric(Clock(), topology, "spray", settings=FluidSettings(tolerance=0.0))
        return run(fabric, source, destination, FULL).received_s

    assert times([0], [1])[0] == pytest.approx(T + 2 * L, rel=1e-12)
    assert times([0], [2])[0] == pytest.approx(T + 8 * L, rel=1e-12)
    assert times([0], [4])[0] == pytest.approx(T + 18 * L, rel=1e-12)
    assert times(np.arange(4), np.arange(4, 8)) == pytest.approx(2 * T + 18 * L, rel=1e-12)


def test_the_series_shows_each_rate_in_its_time():
    """Two flows into host 2: R/2 each until 2 T, then the longer one alone at R until 4 T (sizes 1 and 3)."""
    fabric = network(leaves=1, hosts_per_leaf=3)
    run(fabric, [0, 1], [2, 2], [FULL, 3 * FULL])
    edges, utilisation = fabric.link_series()
    row = dict(zip(fabric.topology.link_name, utilisation, strict=True))
    middle = (edges[1:] + edges[:-1]) / 2
    inside = (np.abs(middle - 2 * T) > np.diff(edges)) & (middle < 4 * T - np.diff(edges))
    assert row["leaf0->host2"][inside] == pytest.approx(1.0)
    assert row["host1->leaf0"][inside] == pytest.approx(np.where(middle < 2 * T, 0.5, 1.0)[inside])
    assert row["host0->leaf0"][inside] == pytest.approx(np.where(middle < 2 * T, 0.5, 0.0)[inside])
    assert row["leaf0->host0"].tolist() == [0.0] * len(middle)


def test_the_series_folds_and_keeps_its_sum():
    """Eight bins for a long run: their width doubles, bytes stay."""
    fabric = network(leaves=1, hosts_per_leaf=3, num_bins=8)
    run(fabric, [0, 1], [2, 2], [FULL, 30 * FULL])
    edges, utilisation = fabric.link_series()
    assert len(edges) <= 9
    sent = (utilisation * np.diff(edges)).sum(axis=1) * fabric.topology.link_rate
    assert sent == pytest.approx(fabric.link_bytes()[1], rel=1e-9)


def test_bytes_under_way_count_for_the_part_that_is_sent():
    """At T, of two flows of 2 units at R/2, a quarter each is sent."""
    fabric = network(leaves=1, hosts_per_leaf=3)
    fabric.start(message_graph([0, 1], [2, 2], 2 * FULL))
    fabric.clock.run(until=T)
    payload, wire = (dict(zip(fabric.topology.link_name, x, strict=True)) for x in fabric.link_bytes())
    assert payload["host0->leaf0"] == pytest.approx(FULL / 2, rel=1e-9)
    assert wire["leaf0->host2"] == pytest.approx(WIRE, rel=1e-9)
    fabric.check_conservation()
