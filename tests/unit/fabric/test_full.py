"""Full ports and transports by what they are known for. Times and counters are held elsewhere, against exact_full."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric import packet_state as ps
from sim.fabric.messages import CANCELLED, DELIVERED, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, LinkOverride, leaf_spine

RATE = 50e9
LINK = Link(RATE, 500e-9)
KB, MB = 1_000, 1_000_000
LOSSLESS = {"pause_above_bytes": 60 * KB, "resume_below_bytes": 50 * KB}


def network(policy="ecmp", *, leaves=4, spines=4, hosts=4, overrides=None, seed=1, **settings):
    topology = leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=LINK, spine_link=LINK,
        hosts=[HostKind(leaves * hosts)], overrides=overrides or {},
    )  # fmt: skip
    return PacketFabric(Clock(), topology, policy, settings=PacketSettings(**{"ports": "full"} | settings), seed=seed)


def carry(fabric, source, destination, size):
    transfer = fabric.start(message_graph(source, destination, size))
    fabric.clock.run(transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert (transfer.results.outcome == DELIVERED).all()
    return transfer.results


def incast(fabric, k, size):
    return carry(fabric, np.arange(4, 4 + k), np.zeros(k, int), size)


def wire_s(size, packets_payload=4032):
    """On a link of full rate, headers included."""
    return (size + 64 * -(-size // packets_payload)) / RATE


def jain(values):
    return values.sum() ** 2 / (len(values) * (values**2).sum())


def test_a_small_buffer_loses_packets_and_every_byte_arrives_all_the_same():
    fabric = network("spray", port_buffer_bytes=200 * KB)
    results = incast(fabric, 8, MB)
    assert fabric._state.ports["drops"].sum() == results.retransmitted.sum() > 500


def test_ndp_incast_is_within_five_percent_of_the_receivers_line_rate():
    fabric = network("spray", transport="ndp", port_buffer_bytes=8 * 4096, trim=True)
    results = incast(fabric, 8, 2 * MB)
    assert np.max(results.received_s) < 1.05 * wire_s(8 * 2 * MB)
    assert fabric._state.ports["drops"].sum() == 0
    assert fabric._state.ports["trims"].sum() > 100


@pytest.mark.parametrize("trim", [True, False])
def test_nscc_shares_a_link_among_eight_flows(trim):
    limits = {"trim": True, "port_buffer_bytes": 400 * KB} if trim else {}
    fabric = network("spray", transport="nscc", mark_from_bytes=80 * KB, mark_all_bytes=320 * KB, **limits)
    results = incast(fabric, 8, 16 * MB)
    assert jain(1 / results.received_s) > 0.98
    assert np.max(results.received_s) < 1.05 * wire_s(8 * 16 * MB)


def test_swift_holds_the_queue_to_its_target():
    """Two flows, each with a window of 1.5 products: the queue starts at two products and is brought down."""
    fabric = network(transport="swift")
    transfer = fabric.start(message_graph([4, 8], [0, 0], 20 * MB))
    fabric.clock.run(until=300e-6)
    ports = fabric._state.ports
    first = int(ports["longest_queue"].max())
    ports["longest_queue"] = 0
    fabric.clock.run(transfer.done)
    assert int(ports["longest_queue"].max()) < 0.7 * first


def test_the_queue_of_dctcp_settles_around_its_threshold():
    """After the first round trips, the waits at the receiver's link lie around threshold / rate."""
    threshold = 60 * KB
    fabric = network(transport="dctcp", mark_from_bytes=threshold)
    transfer = fabric.start(message_graph([4, 8], [0, 0], 20 * MB))
    fabric.clock.run(until=300e-6)
    fabric._state.waits[:] = 0
    fabric.clock.run(transfer.done)
    waits = fabric._state.waits
    at_the_link = np.cumsum(waits[1:][::-1])[::-1]  # of packets that waited at all
    median = ps.bin_start(1 + int(np.searchsorted(-at_the_link, -at_the_link[0] / 2))) / ps.PS_PER_S
    assert 0.4 * threshold / RATE < median < 2.0 * threshold / RATE


def test_pauses_lose_nothing_and_stop_a_victim_behind_them():
    """Three of leaf 1's hosts flood host 0; the fourth sends to host 1, which nobody else wants. Its packets share the
    links from leaf 1 up, and stand there while they are paused."""
    source, destination = [4, 5, 6, 7], [0, 0, 0, 1]
    free = carry(network("spray"), source, destination, MB)
    fabric = network("spray", **LOSSLESS)
    paused = carry(fabric, source, destination, MB)
    assert fabric._state.ports["drops"].sum() == 0
    assert fabric._state.ports["paused"].sum() > 0
    alone_s = wire_s(MB) + 2e-6
    assert free.received_s[3] < 1.2 * alone_s
    assert paused.received_s[3] > 2 * alone_s
    assert np.max(paused.received_s) == pytest.approx(np.max(free.received_s), rel=0.02)


def test_dcqcn_on_lossless_links_loses_nothing():
    marks = {"mark_from_bytes": 50 * KB, "mark_all_bytes": 400 * KB, "mark_most": 0.2}
    fabric = network("ecmp", transport="dcqcn", **marks, **LOSSLESS)
    results = incast(fabric, 4, 4 * MB)
    assert fabric._state.ports["drops"].sum() == 0
    assert results.retransmitted.sum() == 0


def test_going_back_pays_for_reordering():
    """The same packets, the same lossless paths: repeated selectively none, going back many, all of them in vain."""
    shift = np.arange(16), (np.arange(16) + 4) % 16
    kept = carry(network("spray_random"), *shift, MB)
    back = carry(network("spray_random", goes_back=True), *shift, MB)
    assert kept.retransmitted.sum() == 0
    assert back.retransmitted.sum() > 0.2 * back.num_packets.sum()
    assert back.spurious.sum() > 0
    assert np.max(back.received_s) > 1.2 * np.max(kept.received_s)


@pytest.mark.parametrize("policy", ["adaptive", "reps"])
def test_who_looks_at_queues_or_marks_avoids_a_slow_link(policy):
    """One of leaf 0's four uplinks has a quarter of the rate. Random spraying puts a quarter of the bytes on it and
    waits for it; four hosts at full rate would need 3.25 links' worth."""
    slow = {"leaf0-spine0": LinkOverride(rate_bytes_per_s=RATE / 4)}
    shift = np.arange(4), np.arange(4, 8)
    marks = {"mark_from_bytes": 60 * KB, "ack_every": 1}
    random = network("spray_random", overrides=slow, **marks)
    careful = network(policy, overrides=slow, **marks)
    random_s = np.max(carry(random, *shift, 4 * MB).received_s)
    careful_s = np.max(carry(careful, *shift, 4 * MB).received_s)
    assert careful_s < 0.8 * random_s
    assert careful_s > wire_s(4 * MB) * 4 / 3.25


def test_a_flow_without_gaps_is_one_flowlet():
    fabric = network("flowlet", flowlet_gap_s=10e-6)
    results = carry(fabric, [0], [4], MB)
    assert results.displacement[0] == 0
    ups = [i for i, name in enumerate(fabric.topology.link_name) if name.startswith("leaf0->spine")]
    assert sorted(fabric._state.ports["data_packets"][ups])[:-1] == [0, 0, 0]


def test_what_is_cancelled_drains_and_its_rows_are_free():
    fabric = network("spray", port_buffer_bytes=100 * KB)
    transfer = fabric.start(message_graph(np.arange(4, 12), np.zeros(8, int), MB))
    fabric.clock.run(until=60e-6)
    transfer.cancel()
    fabric.clock.run(transfer.done)
    fabric.settle()
    assert (transfer.results.outcome == CANCELLED).all()
    assert int(fabric._state.c["num_free_packets"][0]) == len(fabric._state.packets)
    fabric.check_conservation()


def test_lean_ports_are_taken_where_nothing_needs_more():
    assert not network("spray", ports="auto").is_full
    assert network("adaptive", ports="auto").is_full
    assert network("spray", ports="auto", transport="swift").is_full
    assert network("spray", ports="auto", port_buffer_bytes=MB).is_full


@pytest.mark.parametrize("policy", ["ecmp", "spray"])
def test_full_ports_without_limits_are_lean_ports(policy):
    shift = np.arange(16), (np.arange(16) + 4) % 16
    lean = carry(network(policy, ports="lean"), *shift, MB)
    full = carry(network(policy), *shift, MB)
    assert lean.received_s.tolist() == full.received_s.tolist()
    assert lean.acknowledged_s.tolist() == full.acknowledged_s.tolist()


def test_a_sender_that_goes_back_gets_past_a_collision_with_itself():
    """Its second packet, shorter and over the other spine, always takes the only place before its first one."""
    t = leaf_spine(leaves=2, spines=2, hosts_per_leaf=1, host_link=Link(50e9, 0.0), spine_link=Link(50e9, 5e-7),
                   hosts=[HostKind(2)])  # fmt: skip
    options = PacketSettings(ack_every=1, port_buffer_bytes=4096, retransmission_timeout_s=20e-6, goes_back=True)
    fabric = PacketFabric(Clock(), t, "spray", settings=options)
    transfer = fabric.start(message_graph([0], [1], [4032 + 2000]))
    fabric.clock.run(until=1e-3)
    assert transfer.results.delivered_bytes[0] == 4032 + 2000
    assert fabric._state.ports["drops"].sum() == 2  # at first, and after the demand to go back; then the timer
