"""The fluid fabric by hand: each expected time is derived in the test."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import MessageGraphError, message_graph
from sim.fabric.packet import PacketFabric
from sim.fabric.topology import HostKind, Link, LinkOverride, TopologyError, fat_tree, leaf_spine

R, L = 50e9, 500e-9
FULL = 4032 * 100
WIRE = 4096 * 100
LINK = Link(R, L)


def network(policy="ecmp", hosts=None, seed=1, fairness="queue_pair", tolerance=0.0, **kwargs):
    shape = {"leaves": 2, "spines": 2, "hosts_per_leaf": 4, "host_link": LINK, "spine_link": LINK} | kwargs
    count = shape["leaves"] * shape["hosts_per_leaf"]
    topology = leaf_spine(hosts=hosts or [HostKind(count)], **shape)
    settings = FluidSettings(tolerance=tolerance, fairness=fairness)
    return FluidFabric(Clock(), topology, policy, settings=settings, seed=seed)


def received(fabric, *args, **kwargs):
    transfer = fabric.start(message_graph(*args, **kwargs))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    return transfer.results.received_s


def test_one_flow_takes_wire_bytes_over_rate_plus_latency():
    assert received(network(), [0], [1], FULL)[0] == pytest.approx(WIRE / R + 2 * L, rel=1e-12)
    assert received(network(), [0], [4], FULL)[0] == pytest.approx(WIRE / R + 4 * L, rel=1e-12)


def test_the_last_packet_is_short():
    # 4,033 B need two packets: 4,033 + 2 x 64 B on the wire.
    assert received(network(), [0], [1], 4033)[0] == pytest.approx((4033 + 128) / R + 2 * L, rel=1e-12)


def test_a_zero_byte_message_is_one_header_and_a_local_copy_takes_no_time():
    times = received(network(), [0, 2], [1, 2], [0, 10**9])
    assert times[0] == pytest.approx(64 / R + 2 * L, rel=1e-12)
    assert times[1] == 0.0


def test_two_senders_share_the_receiver_and_the_rest_is_left_alone():
    times = received(network(leaves=1), [0, 1, 2], [3, 3, 0], FULL)
    assert times[:2] == pytest.approx(2 * WIRE / R + 2 * L, rel=1e-12)
    assert times[2] == pytest.approx(WIRE / R + 2 * L, rel=1e-12)


def test_bandwidth_is_passed_on_when_a_flow_ends():
    # A sends 1, B sends 3 to one receiver: both at R/2 until A ends at 2 W/R, then B sends its last 2 W at R.
    times = received(network(leaves=1), [0, 1], [3, 3], [FULL, 3 * FULL])
    assert times == pytest.approx([2 * WIRE / R + 2 * L, 4 * WIRE / R + 2 * L], rel=1e-12)


def test_an_oversubscribed_leaf_is_shared_by_all_its_senders():
    # Four senders, one spine link: each gets R/4.
    times = received(network("spray", spines=1), np.arange(4), np.arange(4, 8), FULL)
    assert times == pytest.approx(4 * WIRE / R + 4 * L, rel=1e-12)


def test_spraying_over_a_slow_link_is_as_slow_as_that_link():
    # Half of the rate x goes over a link of R/4: x / 2 <= R/4, so x = R/2.
    fabric = network("spray", overrides={"leaf0-spine0": LinkOverride(R / 4)})
    assert received(fabric, [0], [4], FULL)[0] == pytest.approx(2 * WIRE / R + 4 * L, rel=1e-12)


def test_fairness_by_message_undoes_the_gain_of_pieces():
    # Multipath with 2 sub-flows of host 0, a plain flow of host 1, both into host 4: 2 : 1 by queue pair.
    graph = message_graph([0, 1], [4, 4], [2 * FULL, FULL], queue_pairs=[2, 1])
    by = {}
    for fairness in ("queue_pair", "message"):
        fabric = network("spray", fairness=fairness)
        transfer = fabric.start(graph)
        fabric.clock.run(until=transfer.done)
        by[fairness] = transfer.results.received_s
    # 2/3 R for 2 W and 1/3 R for W: both end at 3 W/R. By message R/2 each: W ends at 2 W/R, the other at 3 W/R.
    assert by["queue_pair"] == pytest.approx([3 * WIRE / R + 4 * L] * 2, rel=1e-9)
    assert by["message"] == pytest.approx([3 * WIRE / R + 4 * L, 2 * WIRE / R + 4 * L], rel=1e-9)


def test_planes_are_both_used_by_spraying():
    # Two planes: the NIC has two ports of R, so a sprayed flow runs at 2 R, inside a leaf too.
    assert received(network("spray", planes=2), [0], [4], FULL)[0] == pytest.approx(WIRE / R / 2 + 4 * L, rel=1e-12)
    assert received(network("spray", planes=2), [0], [1], FULL)[0] == pytest.approx(WIRE / R / 2 + 2 * L, rel=1e-12)


def test_lanes_carry_as_much_as_their_number():
    fabric = network("spray", spines=1, lanes=4)
    assert received(fabric, np.arange(4), np.arange(4, 8), FULL) == pytest.approx(WIRE / R + 4 * L, rel=1e-12)


def test_inside_a_host_nvlink_carries_and_outside_each_rail_its_own_nic():
    kind = HostKind(2, num_accelerators=4, num_nics=2, nvlink=Link(10 * R, 2e-6))
    fabric = network(hosts=[kind], leaves=2, hosts_per_leaf=2, attach="rail")
    assert fabric.topology.leaf_of_accelerator.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    times = received(fabric, [0, 0, 1], [1, 4, 5], FULL)
    assert times[0] == pytest.approx(WIRE / R / 10 + 2e-6, rel=1e-12)
    assert times[1:] == pytest.approx(2 * WIRE / R + 2 * L, rel=1e-12)  # accelerators 0 and 1 share NIC 0


def test_a_nic_can_inject_less_than_its_ports_carry():
    hosts = [HostKind(8, injection_bytes_per_s=R / 2)]
    assert received(network(hosts=hosts), [0], [1], FULL)[0] == pytest.approx(2 * WIRE / R + 2 * L, rel=1e-12)


def test_messages_of_a_nic_wait_for_its_overhead_in_turn():
    # Two messages of one NIC, 1 us each before the first byte; they go to two receivers, so only the sender is shared.
    hosts = [HostKind(8, message_overhead_s=1e-6)]
    fabric = network(hosts=hosts)
    transfer = fabric.start(message_graph([0, 0], [1, 2], FULL))
    fabric.clock.run(until=transfer.done)
    assert transfer.results.started_s == pytest.approx([1e-6, 2e-6], rel=1e-12)


def test_segments_bound_the_rate_by_the_overhead():
    # A segment of 10 KB per microsecond is 10 GB/s.
    hosts = [HostKind(8, message_overhead_s=1e-6, segment_bytes=10_000)]
    expected = 1e-6 + WIRE / 10e9 + 2 * L
    assert received(network(hosts=hosts), [0], [1], FULL)[0] == pytest.approx(expected, rel=1e-12)


def test_a_chain_waits_for_its_input_and_its_delay():
    edges = (np.array([0]), np.array([1]))
    times = received(network(leaves=1), [0, 1], [1, 2], FULL, edges=edges, delay_s=[0.0, 5e-6])
    assert times[1] == pytest.approx(2 * (WIRE / R + 2 * L) + 5e-6, rel=1e-12)


def test_a_gate_holds_a_message_until_it_is_opened():
    fabric = network()
    gate = fabric.new_gate()
    transfer = fabric.start(message_graph([0], [1], FULL, gate=gate))
    fabric.clock.run(until=1e-3)
    assert not transfer.done.triggered
    assert "gate" in fabric.waiting()[0]
    fabric.open_gate(gate)
    fabric.clock.run(until=transfer.done)
    assert transfer.results.received_s[0] == pytest.approx(1e-3 + WIRE / R + 2 * L, rel=1e-12)


@pytest.mark.parametrize("fabric_of", [FluidFabric, PacketFabric])
def test_a_window_stays_open_when_all_that_it_collected_is_cancelled(fabric_of):
    """A leaf collects for 2 us from its first message on. That one is cancelled after 0.5 us, and with it its transfer
    is over; another comes at 1 us, and both would have been placed at 2 us."""
    topology = network().topology
    fabric = fabric_of(Clock(), topology, "spray", window_s=2e-6, jitter_s=0.0)
    first = fabric.start(message_graph([0], [4], FULL))
    fabric.clock.run(until=0.5e-6)
    first.cancel()
    fabric.clock.run(until=1e-6)
    second = fabric.start(message_graph([1], [5], FULL))
    fabric.clock.run(until=second.done)
    assert second.results.started_s == pytest.approx([2e-6], rel=1e-12)


def test_watching_a_message_and_cancelling_the_rest():
    fabric = network(leaves=1)
    transfer = fabric.start(message_graph([0, 1], [3, 3], [FULL, 3 * FULL]))
    fabric.clock.run(until=transfer.watch(0))
    first = transfer.results.received_s[0]
    assert fabric.clock.now == first
    transfer.cancel()
    fabric.clock.run(until=transfer.done)
    results = transfer.results
    # Message 1 had sent W by 2 W/R and goes on at R for the 2 L until the news of message 0 is there.
    assert results.outcome.tolist() == [0, 1]
    assert results.delivered_bytes[1] == pytest.approx(FULL + 2 * L * R * 4032 / 4096, rel=1e-9)
    fabric.check_conservation()


def test_ethereal_cuts_as_published():
    # (n, s): pieces in all. n=12, s=8: 8 whole and 4 in 2; n=9: 8 whole and 1 in 8; n=1, s=16: 16.
    for n, s, pieces in ((12, 8, 16), (9, 8, 16), (1, 16, 16)):
        fabric = network("ethereal", spines=s, hosts_per_leaf=12)
        fabric.start(message_graph(np.arange(n), np.arange(n) + 12, FULL * 2))
        fabric.clock.run(until=2e-7)
        assert len(fabric.current_rates()[0]) == pieces


def test_wrap_around_needs_fewer_pieces():
    # (39, 40): 39 - 1 boundaries inside flows add 39 pieces, against 39 x 40 equal ones.
    counts = {}
    for policy in ("wrap_around", "ethereal"):
        fabric = network(policy, spines=40, hosts_per_leaf=39)
        fabric.start(message_graph(np.arange(39), np.arange(39) + 39, 7 * 40 * 4032))
        fabric.clock.run(until=2e-7)
        counts[policy] = len(fabric.current_rates()[0]) - 39
    assert counts == {"wrap_around": 39, "ethereal": 1521}


def test_ecmp_keeps_the_path_of_a_pair_and_depends_on_the_seed():
    def spine_of(seed):
        fabric = network("ecmp", seed=seed, spines=16)
        received(fabric, [0, 0], [4, 4], FULL)
        payload, _ = fabric.link_bytes()
        tier = np.array(fabric.topology.link_tier) == "leaf-spine"
        used = np.flatnonzero(tier & (payload > 0))
        assert len(used) == 2  # both messages up one link and down one
        return int(fabric.topology.link_spine[used[0]])

    assert len({spine_of(seed) for seed in range(1, 12)}) > 4


def test_least_loaded_spreads_whole_flows_evenly():
    fabric = network("least_loaded", spines=4)
    assert received(fabric, np.arange(4), np.arange(4, 8), FULL) == pytest.approx(WIRE / R + 4 * L, rel=1e-9)


def test_three_tiers_have_a_path_per_core_and_hashes_do_not_polarise():
    topology = fat_tree(
        pods=4, edges_per_pod=2, aggregations_per_pod=4, cores=16, hosts_per_edge=8, host_link=LINK, edge_link=LINK,
        core_link=LINK, hosts=[HostKind(64)],
    )  # fmt: skip
    fabric = FluidFabric(Clock(), topology, "ecmp", settings=FluidSettings(tolerance=0.0))
    source = np.repeat(np.arange(16), 48)
    destination = 16 + np.tile(np.arange(48), 16)
    transfer = fabric.start(message_graph(source, destination, FULL))
    fabric.clock.run(until=transfer.done)
    payload, _ = fabric.link_bytes()
    tier, up = np.array(topology.link_tier), np.array(topology.link_direction) == "up"
    cores = payload[(tier == "aggregation-core") & up & (topology.link_leaf == 0)] / FULL
    # 768 flows leave pod 0 over 16 core links: 48 expected each; polarised hashes would leave 12 links empty.
    assert cores.sum() == 768
    assert cores.min() > 20


def test_what_does_not_fit_is_refused():
    with pytest.raises(TopologyError, match="room for 8 hosts"):
        network(hosts=[HostKind(7)])
    with pytest.raises(TopologyError, match="no link is named 'leaf9-spine0'"):
        network(overrides={"leaf9-spine0": LinkOverride(R)})
    with pytest.raises(MessageGraphError, match="there are 8"):
        network().start(message_graph([0], [8], 1))
    with pytest.raises(MessageGraphError, match="size_bytes"):
        message_graph([0], [1], [-1])


def test_the_default_tolerance_moves_little():
    rng = np.random.default_rng(3)
    source = rng.integers(0, 8, 300)
    destination = (source + 1 + rng.integers(0, 7, 300)) % 8
    sizes = rng.lognormal(13, 0.7, 300).astype(int)
    exact = received(network("ecmp"), source, destination, sizes)
    near = received(network("ecmp", tolerance=1e-3), source, destination, sizes)
    assert near == pytest.approx(exact, rel=5e-3)


def test_link_series_adds_up_to_the_wire_bytes():
    fabric = network("ecmp")
    received(fabric, [0, 1, 2], [4, 5, 1], [FULL, 3 * FULL, 5 * FULL])
    edges, utilisation = fabric.link_series()
    _, wire = fabric.link_bytes()
    sent = (utilisation * np.diff(edges)).sum(axis=1) * fabric.topology.link_rate
    assert sent == pytest.approx(wire, rel=1e-9)
    assert utilisation.max() <= 1 + 1e-9


def test_a_drained_fabric_has_nothing_outstanding_and_its_series_lacks_no_more_than_the_tolerance():
    """Pieces that join a component of more than 256 pieces late are credited with what they would have sent: their
    links must hear of it, or `least_loaded` goes on seeing a load that is not there."""
    topology = leaf_spine(leaves=4, spines=4, hosts_per_leaf=8, host_link=LINK, spine_link=LINK, hosts=[HostKind(32)])
    clock = Clock()
    fabric = FluidFabric(clock, topology, "least_loaded", seed=1)
    source = np.repeat(np.arange(32), 31)
    destination = (source + 1 + np.tile(np.arange(31), 32)) % 32
    late_s = np.random.default_rng(1).uniform(0.0, 50e-6, len(source))
    clock.run(fabric.start(message_graph(source, destination, 200_000, earliest_s=late_s)).done)

    assert np.abs(fabric._state.segments["outstanding"]).max() < 1.0

    _, wire = fabric.link_bytes()
    edges, utilisation = fabric.link_series()
    in_series = (utilisation * np.diff(edges)).sum(axis=1) * topology.link_rate
    np.testing.assert_allclose(in_series, wire, rtol=2e-3, atol=1.0)
    assert utilisation.max() <= 1 + 1e-9
