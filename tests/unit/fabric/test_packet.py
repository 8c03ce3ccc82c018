"""The packet fabric behind the message-graph contract, with answers by hand. `tests/laws` has the exact reference."""

from itertools import count

import numpy as np
import pandas as pd
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import CANCELLED, DELIVERED, message_graph
from sim.fabric.packet import FIRST_PACKETS, PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, LinkOverride, fat_tree, leaf_spine

R, L = 1e9, 1e-6
MTU, HEADER, PAYLOAD = 4096, 64, 4032
FULL = 10 * PAYLOAD
"""Ten full packets."""
PACKET_S, ACK_S = MTU / R, HEADER / R
ONE_S = (10 + 3) * PACKET_S + 4 * L
"""Ten packets over four links: the last one leaves the first link after ten, and is forwarded three times."""


def plain(leaves=2, hosts_per_leaf=4, spines=2, hosts=None, rate=R):
    return leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts_per_leaf, host_link=Link(rate, L),
        spine_link=Link(rate, L), hosts=hosts or [HostKind(leaves * hosts_per_leaf)],
    )  # fmt: skip


def network(policy="spray", topology=None, seed=1, **settings):
    return PacketFabric(Clock(), topology or plain(), policy, settings=PacketSettings(**settings), seed=seed)


def finished(fabric, graph):
    transfer = fabric.start(graph)
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    return transfer.results


def test_done_is_when_the_last_byte_arrives_and_the_acknowledgement_comes_later():
    fabric = network()
    transfer = fabric.start(message_graph([0], [4], FULL))
    fabric.clock.run(until=transfer.done)
    assert fabric.clock.now == transfer.results.received_s[0] == pytest.approx(ONE_S, abs=1e-12)
    assert not transfer.is_final and np.isnan(transfer.results.acknowledged_s[0])
    fabric.settle()
    assert transfer.is_final
    assert transfer.results.acknowledged_s[0] == pytest.approx(ONE_S + 4 * (L + ACK_S), abs=1e-12)
    assert transfer.results.delivered_bytes[0] == FULL and transfer.results.num_pieces[0] == 1


def test_settling_does_not_wait_for_what_is_far_from_done():
    fabric = network()
    short = fabric.start(message_graph([0], [4], FULL))
    long = fabric.start(message_graph([1], [5], 100_000 * FULL))
    fabric.clock.run(until=short.done)
    fabric.settle()
    assert short.is_final and not long.is_final
    assert long.results.delivered_bytes[0] < 0.5 * 100_000 * FULL


def test_a_window_of_one_sends_a_packet_per_round_trip():
    """There 4 (packet + flight), back 4 (acknowledgement + flight); the third packet is there half a trip later."""
    results = finished(network(window_packets=1), message_graph([0], [4], 3 * PAYLOAD))
    there, back = 4 * (PACKET_S + L), 4 * (ACK_S + L)
    assert results.received_s[0] == pytest.approx(2 * (there + back) + there, abs=1e-12)


def test_two_messages_share_a_nic_packet_by_packet():
    """To two hosts on the own leaf: packets alternate, so the first message ends one packet before the second."""
    results = finished(network(window_packets=80), message_graph([0, 0], [1, 2], FULL))
    assert results.received_s == pytest.approx([20 * PACKET_S + 2 * L, 21 * PACKET_S + 2 * L], abs=1e-12)


def test_an_acknowledgement_overtakes_waiting_data():
    """Host 1 sends to 0 while 2, 3 and 0's neighbours fill the link to host 1 on which its acknowledgement returns."""
    fabric = network(ack_every=1)
    results = finished(fabric, message_graph([1, 2, 3], [0, 1, 1], [PAYLOAD, FULL, FULL]))
    there = 2 * (PACKET_S + L)
    own_wait = PACKET_S  # at most the packet that the link has begun
    assert there + 2 * (ACK_S + L) <= results.acknowledged_s[0] <= there + 2 * (ACK_S + L) + own_wait


def test_edges_delays_and_gates():
    """1 follows 0 after a delay; 2 waits for a gate that opens at 1 ms."""
    fabric = network()
    gate = fabric.new_gate()
    graph = message_graph([0, 4, 1], [4, 0, 5], FULL, edges=([0], [1]), delay_s=[0.0, 5e-6, 0.0], gate=[-1, -1, gate])
    transfer = fabric.start(graph)

    def opens():
        yield fabric.clock.timeout(1e-3)
        fabric.open_gate(gate)

    fabric.clock.process(opens())
    fabric.clock.run(until=transfer.done)
    results = transfer.results
    assert results.ready_s == pytest.approx([0.0, ONE_S + 5e-6, 1e-3], abs=1e-12)
    assert results.received_s - results.ready_s == pytest.approx([ONE_S] * 3, abs=1e-12)


def test_local_copies_take_no_time_and_empty_messages_a_header():
    results = finished(network(), message_graph([0, 0], [0, 4], [FULL, 0]))
    assert results.received_s[0] == 0.0
    assert results.received_s[1] == pytest.approx(4 * (ACK_S + L), abs=1e-12)


def test_inside_a_host_messages_cross_its_nvlink():
    hosts = [HostKind(8, num_accelerators=2, nvlink=Link(10 * R, L))]
    fabric = network(topology=plain(hosts=hosts))
    results = finished(fabric, message_graph([0], [1], FULL))
    assert results.received_s[0] == pytest.approx(11 * PACKET_S / 10 + L, abs=1e-12)
    names = np.array(fabric.topology.link_name)
    assert set(names[fabric.link_bytes()[0] > 0]) == {"accelerator0->nvlink0", "nvlink0->accelerator1"}


@pytest.mark.parametrize("when_s", [0.0, 5e-6, 40e-6, ONE_S - 1e-9])
def test_a_cancelled_message_stops_and_what_is_on_its_way_drains(when_s):
    fabric = network(ack_every=3)
    transfer = fabric.start(message_graph([0, 1], [4, 5], FULL))

    def stops():
        yield fabric.clock.timeout(when_s)
        transfer.cancel([0])

    fabric.clock.process(stops())
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    results = transfer.results
    assert results.outcome.tolist() == [CANCELLED, DELIVERED]
    arrived = np.floor(max(when_s - (3 * PACKET_S + 4 * L), 0.0) / PACKET_S + 1e-9)
    assert results.delivered_bytes.tolist() == [arrived * PAYLOAD, FULL]
    assert fabric._state.c["num_free_packets"][0] == len(fabric._state.packets)
    assert fabric._state.c["num_free_pieces"][0] == len(fabric._state.pieces)


def test_a_cancelled_message_gives_up_its_turn():
    """Three share a NIC; without the second, the others finish as if they had been two from the third packet on."""
    fabric = network(window_packets=3)
    transfer = fabric.start(message_graph([0, 0, 0], [1, 2, 3], FULL))
    fabric.clock.run(until=3 * PACKET_S)
    transfer.cancel([1])
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert transfer.results.outcome.tolist() == [DELIVERED, CANCELLED, DELIVERED]


def test_many_transfers_come_and_go_in_the_same_places():
    fabric = network("ethereal")
    for _ in range(100):
        transfer = fabric.start(message_graph([0, 1, 2], [4, 5, 6], PAYLOAD))
        fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert len(fabric._state.pieces) == 64 and len(fabric._state.messages) == 64


@pytest.mark.parametrize("ports", ["lean", "full"])
@pytest.mark.parametrize("way", ["start", "earliest_s", "gate", "cancel"])
def test_a_start_half_a_picosecond_before_its_instant_waits_for_it(way, ports):
    """Two events of SimPy's are due at a float that rounds up to its picosecond. What starts there starts at that
    picosecond, and the second event, which is before it, is not held up; nor by what a cancellation leaves to do."""
    when_s = 0.33200059801979176
    instant = round(when_s * 1e12)
    assert instant / 1e12 > when_s
    fabric = network("ecmp", ports=ports)
    clock, pauses, told = fabric.clock, count(), []
    gate = fabric.new_gate()

    def stop_a_livelock():
        assert next(pauses) < 1000, "the clock waits for the core, and the core for the clock"

    def starts():
        at_once = way != "start"
        early = {"earliest_s": {"earliest_s": when_s}, "gate": {"gate": gate}}.get(way, {})
        transfer = fabric.start(message_graph([0], [4], FULL, **early)) if at_once else None
        yield clock.timeout(when_s)
        if way == "start":
            transfer = fabric.start(message_graph([0], [4], FULL))
        elif way == "gate":
            fabric.open_gate(gate)
        elif way == "cancel":
            fabric.cancel(fabric.start(message_graph([1], [5], FULL)), np.array([0]))
        yield transfer.done if way != "cancel" else clock.timeout(0.0)
        fabric.settle()
        told.append(transfer)

    def other():
        yield clock.timeout(when_s)
        told.append(clock.now)

    clock.on_pause = stop_a_livelock
    clock.process(starts())
    clock.process(other())
    clock.run()
    assert told[0] == when_s
    results = told[1].results
    start = 0 if way == "cancel" else instant
    assert round(results.received_s[0] * 1e12) == start + round(ONE_S * 1e12)
    fabric.check_conservation()


def test_the_pool_of_packets_grows():
    """Seven senders to one receiver, each with a window far above what the pool holds at first."""
    fabric = network(window_packets=1000)
    results = finished(fabric, message_graph(np.arange(1, 8), np.zeros(7, int), 1000 * PAYLOAD))
    assert len(fabric._state.packets) > FIRST_PACKETS + 100
    assert results.received_s.max() == pytest.approx(7000 * PACKET_S + 4 * L, rel=1e-3)


def test_no_drift_at_a_rate_that_divides_nothing():
    """9,973 packets at 100/3 Gbit/s on one link after the other: not a picosecond is lost."""
    rate = round(100e9 / 3) / 8
    fabric = network(topology=plain(rate=rate))
    results = finished(fabric, message_graph([0], [1], 9973 * PAYLOAD))
    exact_ps = 9973 * MTU * 8 * 10**12 // round(100e9 / 3) + MTU * 8 * 10**12 // round(100e9 / 3) + 2 * 10**6
    assert abs(round(results.received_s[0] * 1e12) - exact_ps) <= 1


@pytest.mark.parametrize("ports", ["lean", "full"])
@pytest.mark.parametrize("rate", [1e3, 3e4, 4e11])
def test_links_from_8_kbit_to_3_tbit_per_second(rate, ports):
    """A header takes 0.06 s on the slowest: more picoseconds than a key of the calendar has bits for."""
    fabric = network("ecmp", plain(rate=rate), ports=ports, retransmission_timeout_s=1e4, window_packets=64)
    results = finished(fabric, message_graph([0, 1], [4, 2], [FULL, FULL]))
    one_s = 13 * MTU / rate + 4 * L
    assert results.received_s[0] == pytest.approx(one_s, rel=1e-9)
    assert results.received_s[1] == pytest.approx(one_s - 2 * (MTU / rate + L), rel=1e-9)


def test_an_ideal_fabric_leaves_the_nics_alone():
    """Four flows from four hosts of a leaf to four of the other: each as fast as alone."""
    results = finished(network("ideal"), message_graph([0, 1, 2, 3], [4, 5, 6, 7], FULL))
    alone = finished(network("ideal"), message_graph([0], [4], FULL))
    assert results.received_s.tolist() == [alone.received_s[0]] * 4
    assert results.received_s[0] == pytest.approx(ONE_S, rel=0.2)


@pytest.mark.parametrize("policy", ["ecmp", "multipath", "ethereal", "wrap_around"])
def test_both_fidelities_put_the_same_payload_on_each_link(policy):
    graph = message_graph(np.repeat(np.arange(8), 7), [d for s in range(8) for d in range(8) if d != s], 3 * FULL + 17)
    packets = network(policy, seed=5)
    fluid = FluidFabric(Clock(), plain(), policy, settings=FluidSettings(tolerance=0.0), seed=5)
    finished(packets, graph)
    transfer = fluid.start(graph)
    fluid.clock.run(until=transfer.done)
    assert packets.link_bytes()[0].tolist() == fluid.link_bytes()[0].tolist()


@pytest.mark.parametrize("policy", ["spray", "spray_round_robin"])
def test_spraying_in_turn_is_even_to_a_packet_per_flow(policy):
    graph = message_graph(np.arange(4), np.arange(4, 8), 41 * PAYLOAD)
    fabric = network(policy)
    finished(fabric, graph)
    payload = fabric.link_bytes()[0]
    for direction in ("up", "down"):
        names = [f"leaf0->spine{s}" if direction == "up" else f"spine{s}->leaf1" for s in range(2)]
        used = payload[[fabric.topology.link_name.index(name) for name in names]]
        assert used.sum() == 4 * 41 * PAYLOAD
        assert abs(used[0] - used[1]) <= 4 * PAYLOAD


def test_a_switch_has_a_turn_for_each_destination_leaf():
    """Ten packets for each pair of accelerators, sent in step: with one turn for all destinations, packets of
    several leaves would meet on a link down. With a turn for each, a leaf's packets to a leaf differ by one between its
    links up, and so do they on the links down, for each of the leaves that send."""
    n = 12
    pairs = [(s, d) for s in range(n) for d in range(n) if s // 3 != d // 3]
    fabric = network("spray", plain(leaves=4, hosts_per_leaf=3, spines=3))
    finished(fabric, message_graph([s for s, _ in pairs], [d for _, d in pairs], PAYLOAD // 2 + 9 * PAYLOAD))
    name, packets = fabric.topology.link_name, fabric._state.ports["data_packets"]
    for leaf in range(4):
        for links in ([f"leaf{leaf}->spine{s}" for s in range(3)], [f"spine{s}->leaf{leaf}" for s in range(3)]):
            used = packets[[name.index(link) for link in links]]
            assert used.sum() == 3 * 9 * 10
            assert used.max() - used.min() <= 3


def test_the_switches_of_a_pod_have_a_turn_for_each_destination_leaf_too():
    """Two edges send 40 packets each to one of another pod: 40 to each aggregation, 20 to each core."""
    topology = fat_tree(
        pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=4, hosts_per_edge=2, host_link=Link(R, L),
        edge_link=Link(R, L), core_link=Link(R, L), hosts=[HostKind(8)],
    )  # fmt: skip
    fabric = network("spray", topology)
    finished(fabric, message_graph([0, 1, 2, 3], [4, 5, 4, 5], 20 * PAYLOAD))
    packets = dict(zip(topology.link_name, fabric._state.ports["data_packets"].tolist(), strict=False))
    crossing = {name: n for name, n in packets.items() if "core" in name and n > 0}
    assert len(crossing) == 8 and set(crossing.values()) == {20}


@pytest.mark.parametrize("policy", ["ecmp", "spray", "spray_random", "ethereal", "least_loaded"])
def test_the_same_seed_gives_the_same_bits_however_often_the_clock_stops(policy):
    graph = message_graph(np.repeat(np.arange(8), 7), [d for s in range(8) for d in range(8) if d != s], FULL)
    once = finished(network(policy, seed=3), graph)
    fabric = network(policy, seed=3)
    transfer = fabric.start(graph)
    for k in range(1, 60):
        fabric.clock.run(until=k * 3.7e-6)
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    assert transfer.results.received_s.tolist() == once.received_s.tolist()
    assert transfer.results.acknowledged_s.tolist() == once.acknowledged_s.tolist()


def test_the_time_series_adds_up_to_the_wire_bytes():
    fabric = network()
    transfer = fabric.start(message_graph([0, 1], [4, 5], 300 * PAYLOAD))
    fabric.clock.run(until=transfer.done)
    edges, utilisation = fabric.link_series()
    carried = (utilisation * np.diff(edges)).sum(axis=1) * fabric.topology.link_rate
    assert carried == pytest.approx(fabric.link_bytes()[1], rel=1e-9)
    assert utilisation.max() <= 1.001  # whole bytes per bin


def test_reordering_is_recorded_per_message():
    """In turn over two equal paths nothing overtakes; with one path slower, what went there comes late."""
    even = network("spray_round_robin")
    finished(even, message_graph([0], [4], 50 * PAYLOAD))
    assert even._state.flows["displacement"][0] == 0
    topology = leaf_spine(
        leaves=2, spines=2, hosts_per_leaf=4, host_link=Link(R, L), spine_link=Link(R, L), hosts=[HostKind(8)],
        overrides={"leaf0-spine1": LinkOverride(latency_s=30e-6)},
    )  # fmt: skip
    uneven = network("spray_round_robin", topology)
    finished(uneven, message_graph([0], [4], 50 * PAYLOAD))
    flow = uneven._state.flows[0]
    late = int(np.ceil(29e-6 / PACKET_S))
    assert abs(flow["displacement"] - late) <= 2
    assert flow["held_bytes"] >= (late // 2 - 2) * PAYLOAD


def logged(**options):
    """Three flows into one NIC of a leaf, with a log; (fabric, its rows as a table)."""
    link = Link(50e9, 5e-7)
    t = leaf_spine(leaves=2, spines=1, hosts_per_leaf=4, host_link=link, spine_link=link, hosts=[HostKind(8)])
    clock = Clock()
    fabric = PacketFabric(clock, t, "ecmp", settings=PacketSettings(**options))
    transfer = fabric.start(message_graph([0, 1, 2], [4, 4, 4], [20 * 4032 + 100] * 3))
    clock.run(transfer.done)
    fabric.settle()
    columns, missing = fabric.packet_log()
    return fabric, pd.DataFrame(columns), missing


@pytest.mark.parametrize("options", [{}, {"ports": "full"}, {"port_buffer_bytes": 8 * 4096}])
def test_the_packet_log_holds_every_packet_at_every_link(options):
    fabric, log, missing = logged(log_rows=10_000, **options)
    assert missing == 0 and log.time_s.is_monotonic_increasing
    sent = log[log.event == "sent"]
    wire = dict(zip(fabric.topology.link_name, fabric.link_bytes()[1], strict=True))
    assert sent.groupby("link").size_bytes.sum().to_dict() == {name: size for name, size in wire.items() if size}
    for _, of_link in sent.groupby("link"):
        assert (of_link.time_s.to_numpy()[1:] >= of_link.end_s.to_numpy()[:-1] - 1e-15).all()
    assert (log.event == "dropped").sum() == (
        fabric.queue_columns(1.0)["drops"].sum() if "port_buffer_bytes" in options else 0
    )
    into = log[(log.link == "leaf1->host4") & (log.event == "sent")]
    assert set(into.source) == {0, 1, 2} and set(into.destination) == {4} and set(into.kind) == {"data"}
    assert into.wait_s.max() == fabric.queue_columns(1.0)["longest_wait_s"][list(wire).index("leaf1->host4")]
    longest = fabric.wait_series().max(axis=1)
    assert longest.tolist() == fabric.queue_columns(1.0)["longest_wait_s"].tolist()


@pytest.mark.parametrize("ports", ["lean", "full"])
def test_a_run_cut_short_has_logged_nothing_that_is_yet_to_come(ports):
    """When the source has sent its first packet, the leaf's port already has it, as of its arrival L later."""
    fabric = network("ecmp", log_rows=5000, ports=ports)
    fabric.start(message_graph([0], [4], 1000 * FULL))
    now = MTU / R
    fabric.clock.run(until=now + 0.1 * L)
    columns, _ = fabric.packet_log()
    assert columns["time_s"].max() == pytest.approx(now, rel=1e-9)
    fabric.clock.run(until=now + 1.1 * L)
    columns, _ = fabric.packet_log()
    assert columns["time_s"].max() == pytest.approx(now + L, rel=1e-9)


def test_a_full_packet_log_counts_what_it_leaves_out():
    _, whole, _ = logged(log_rows=10_000)
    _, part, missing = logged(log_rows=100)
    assert (len(part), missing) == (100, len(whole) - 100)


def test_a_network_that_fills_without_end_says_so_before_memory_does(monkeypatch):
    monkeypatch.setattr("sim.fabric.packet.MOST_PACKETS", 1 << 13)
    link = Link(50e9, 5e-7)
    t = leaf_spine(leaves=2, spines=1, hosts_per_leaf=16, host_link=link, spine_link=link, hosts=[HostKind(32)])
    clock = Clock()
    fabric = PacketFabric(clock, t, "ecmp", settings=PacketSettings(window_packets=1000))
    transfer = fabric.start(message_graph(range(16), [16] * 16, [1000 * 4032] * 16))
    with pytest.raises(RuntimeError, match=r"[\d,]+ packets are under way at .* s: .*retransmission_timeout"):
        clock.run(transfer.done)
