"""Faults packet by packet, by hand. P is a full packet's time on a link, A an acknowledgement's, L a link's latency."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.faults import Fault, Faults
from sim.fabric.link_sets import links_named, links_of_host, links_of_switch
from sim.fabric.messages import DELIVERED, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, fat_tree, leaf_spine

R, L = 50e9, 500e-9
P, A = 4096 / R, 64 / R
LINK = Link(R, L)
RTO = 100e-6
PAYLOAD = 4032


def network(policy="ecmp", *, leaves=2, spines=2, hosts=4, planes=1, seed=1, **settings):
    topology = leaf_spine(leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=LINK, spine_link=LINK,
                          hosts=[HostKind(leaves * hosts)], planes=planes)  # fmt: skip
    return packets(topology, policy, seed, **settings)


def packets(topology, policy, seed=1, **settings):
    options = PacketSettings(**{"has_faults": True, "ack_every": 1} | settings)
    return PacketFabric(Clock(), topology, policy, settings=options, seed=seed, window_s=0.0, jitter_s=0.0)


def fault(fabric, name, at_s, until_s=None, rate=None, loss=None):
    if "-" in name:
        links = links_named(fabric.topology, name)
    else:
        of_host = name.startswith("host")
        links = links_of_host(fabric.topology, int(name[4:])) if of_host else links_of_switch(fabric.topology, name)
    assert links
    return Fault(name, links, rate, at_s, until_s, loss)


def strike(fabric, *faults, convergence_s=10e-3):
    found = Faults(fabric.clock, fabric, faults, convergence_s)
    found.start()
    return found


def carry(fabric, source, destination, num_packets):
    transfer = fabric.start(message_graph(source, destination, num_packets * PAYLOAD))
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert (transfer.results.outcome == DELIVERED).all()
    assert int(fabric._state.c["num_free_packets"][0]) == len(fabric._state.packets)
    return transfer.results


def column(fabric, name):
    return int(fabric._state.ports[name].sum())


def of_link(fabric, name, column):
    if column == "payload_bytes":
        return int(fabric._payload_bytes()[fabric.topology.link_name.index(name)])
    return int(fabric._state.ports[column][fabric.topology.link_name.index(name)])


def spine_used(policy="ecmp", **kwargs):
    fabric = network(policy, **kwargs)
    carry(fabric, [0], [4], 1)
    return 0 if of_link(fabric, "leaf0->spine0", "data_packets") else 1


def test_what_is_on_a_link_when_it_dies_is_lost_and_comes_back_by_the_timer():
    """Ten packets to a neighbour: packet i is at the leaf at (i + 1) P + L. Just after the third, the link dies: seven
    are lost, and the answers to three. The timer began with packet 0, and gives up what was sent before: packet 0 goes
    again at 100 us. Its answer, 2 P + 2 A + 4 L later, tells of all three and starts the timer anew: seven go again."""
    fabric = network(window_packets=20)
    strike(fabric, fault(fabric, "host0-leaf0", L + 3.5 * P, 50e-6))
    results = carry(fabric, [0], [1], 10)
    answered_s = RTO + 2 * P + 2 * A + 4 * L
    assert results.received_s[0] == pytest.approx(answered_s + RTO + 8 * P + 2 * L, abs=1e-11)
    assert (column(fabric, "losses"), column(fabric, "control_losses")) == (7, 3)
    assert column(fabric, "lost_bytes") == 7 * PAYLOAD
    assert (results.retransmitted[0], results.spurious[0]) == (8, 1)


def test_what_is_sent_again_in_vain_is_lost_once_more():
    # Packet 0 is lost again at 100 us. At 200 us the timer gives up the other nine, of which two are there.
    fabric = network(window_packets=20)
    strike(fabric, fault(fabric, "host0-leaf0", L + 3.5 * P, 150e-6))
    results = carry(fabric, [0], [1], 10)
    assert results.received_s[0] == pytest.approx(2 * RTO + 10 * P + 2 * L, abs=1e-11)
    assert column(fabric, "losses") == 8 and results.spurious[0] == 2


def test_what_left_before_the_repair_is_lost_too():
    """Of twenty packets, 0 … 2 arrive before the link dies at L + 3.5 P = 9.6 P; 3 … 10 have begun when it is back at
    10.6 P. The timer starts anew with the answer to packet 2, at 4 P + 2 A + 4 L."""
    fabric = network(window_packets=40)
    strike(fabric, fault(fabric, "host0-leaf0", L + 3.5 * P, L + 4.5 * P))
    results = carry(fabric, [0], [1], 20)
    assert results.received_s[0] == pytest.approx(4 * P + 2 * A + 4 * L + RTO + 9 * P + 2 * L, abs=1e-12)
    assert (column(fabric, "losses"), column(fabric, "control_losses"), results.retransmitted[0]) == (8, 0, 8)


def test_a_slower_link_takes_longer_for_what_begins_from_then_on():
    # Packets 0 … 3 have begun at 3.5 P; the other six take 4 P each.
    fabric = network(window_packets=20)
    strike(fabric, fault(fabric, "host0-leaf0", 3.5 * P, rate=R / 4))
    assert carry(fabric, [0], [1], 10).received_s[0] == pytest.approx(28 * P + L + P + L, abs=1e-12)
    # Until 11 P: packets 4 and 5 are slow, from 12 P on the last four are fast again.
    fabric = network(window_packets=20)
    strike(fabric, fault(fabric, "host0-leaf0", 3.5 * P, 11 * P, rate=R / 4))
    assert carry(fabric, [0], [1], 10).received_s[0] == pytest.approx(16 * P + L + P + L, abs=1e-12)
    assert column(fabric, "losses") == 0


@pytest.mark.parametrize("options", [{}, {"gap": 3}, {"goes_back": True}])
def test_a_lossy_link_loses_its_share_and_every_byte_arrives(options):
    p = 0.02
    runs = []
    for _ in range(2):
        fabric = network(**options)
        strike(fabric, fault(fabric, "host0-leaf0", 0.0, loss=p))
        results = carry(fabric, [0], [1], 5000)
        sent, lost = of_link(fabric, "host0->leaf0", "data_packets"), of_link(fabric, "host0->leaf0", "losses")
        assert abs(lost - p * sent) < 4 * np.sqrt(p * sent)
        assert results.retransmitted[0] == sent - 5000 >= lost
        if "goes_back" not in options:
            assert results.retransmitted[0] < 2.5 * lost  # answers are lost as well
        runs.append((results.received_s[0], lost))
    assert runs[0] == runs[1]


def test_of_two_losses_the_higher_holds_and_afterwards_none():
    fabric = network()
    strike(fabric, fault(fabric, "host0-leaf0", 0.0, 2e-3, loss=0.01),
           fault(fabric, "host0-leaf0", 0.0, 1e-3, loss=1.0))  # fmt: skip
    transfer = fabric.start(message_graph([0], [1], 20_000 * PAYLOAD))
    fabric.clock.run(until=1e-3)
    assert transfer.results.delivered_bytes[0] == 0
    fabric.clock.run(until=2.1e-3)
    lost = column(fabric, "losses")
    fabric.clock.run(until=transfer.done)
    assert column(fabric, "losses") == lost > 0
    fabric.check_conservation()


def test_hashed_flows_stay_in_the_black_hole_until_routing_knows():
    """Nothing arrives between t and t + c; the flow moves, and goes on with the next timer."""
    used, t, c, n = spine_used(), 0.2e-3, 1e-3, 10_000
    fabric = network()
    faults = strike(fabric, fault(fabric, f"leaf0-spine{used}", t), convergence_s=c)
    transfer = fabric.start(message_graph([0], [4], n * PAYLOAD))
    fabric.clock.run(until=t + 10e-6)
    before = transfer.results.delivered_bytes[0]
    fabric.clock.run(until=t + c)
    assert transfer.results.delivered_bytes[0] == before
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    rest = n * P - t
    assert c + t + rest < transfer.results.received_s[0] < c + t + rest + RTO + 20e-6
    other = of_link(fabric, f"leaf0->spine{1 - used}", "payload_bytes")
    assert other == pytest.approx(n * PAYLOAD - before, abs=100 * PAYLOAD)
    (row,) = faults.rows()
    assert row["flows_affected"] == 1 and row["moved_bytes"] == pytest.approx(other, abs=100 * PAYLOAD)
    # A new message takes the new path at once.
    begin, lost = fabric.clock.now, column(fabric, "losses")
    assert carry(fabric, [0], [4], 100).received_s[0] - begin < 100 * P + 20e-6
    assert column(fabric, "losses") == lost


@pytest.mark.parametrize("policy", ["spray", "spray_round_robin", "spray_random", "adaptive", "reps", "flowlet"])
def test_sprayed_windows_stall_and_then_avoid_the_dead_path(policy):
    """With a quarter of the paths dead, four windows at most pass per timeout. Then nothing is lost any more."""
    t, c, window = 0.1e-3, 1e-3, 20
    fabric = network(policy, spines=4, window_packets=window)
    faults = strike(fabric, fault(fabric, "leaf0-spine2", t), convergence_s=c)
    transfer = fabric.start(message_graph([0, 1], [4, 5], 3000 * PAYLOAD))
    fabric.clock.run(until=t)
    before = transfer.results.delivered_bytes.sum()
    fabric.clock.run(until=t + c + 5e-6)
    lost = column(fabric, "losses")
    if policy not in ("flowlet", "reps"):  # these may have left the dead path by themselves
        assert transfer.results.delivered_bytes.sum() - before < 2 * 4 * window * (c / RTO + 2) * PAYLOAD
        assert lost > 0
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert column(fabric, "losses") == lost
    assert (transfer.results.delivered_bytes == 3000 * PAYLOAD).all()
    assert policy in ("flowlet", "reps", "adaptive") or faults.rows()[0]["moved_bytes"] > 0


@pytest.mark.parametrize("policy", ["spray_random", "spray_round_robin", "reps", "spray", "adaptive"])
def test_sprayed_messages_that_begin_when_routing_knows_lose_nothing(policy):
    fabric = network(policy, spines=4)
    strike(fabric, fault(fabric, "leaf0-spine0", 0.0), convergence_s=0.0)
    fabric.clock.run(until=1e-6)
    results = carry(fabric, [0, 1, 2, 3], [4, 5, 6, 7], 16)
    assert results.retransmitted.sum() == 0
    assert column(fabric, "losses") == 0


def test_an_adaptive_leaf_shares_a_dead_links_packets_among_all_others():
    """A lone sender's packets find all queues empty, so that it is their turn that decides: 3 links, 8 of 24 each.

    Were turns counted over all four links, the one after the dead one would carry half.
    """
    fabric = network("adaptive", spines=4)
    strike(fabric, fault(fabric, "leaf0-spine1", 0.0), convergence_s=0.0)
    fabric.clock.run(until=1e-6)
    carry(fabric, [0], [4], 24)
    assert [of_link(fabric, f"leaf0->spine{i}", "data_packets") for i in range(4)] == [8, 0, 8, 8]


def test_a_dead_link_elsewhere_concerns_only_those_who_go_there():
    for destination, share in ((4, 500), (8, 0)):
        fabric = network("spray", leaves=3)
        strike(fabric, fault(fabric, "leaf2-spine0", 0.0), convergence_s=0.0)
        results = carry(fabric, [0], [destination], 1000)
        assert column(fabric, "losses") == results.retransmitted.sum() == 0
        assert of_link(fabric, "leaf0->spine0", "data_packets") == share


@pytest.mark.parametrize("policy", ["ethereal", "wrap_around"])
def test_assigned_flows_move_after_a_millisecond_and_avoid_the_path(policy):
    """Two flows, two paths. One path dies at t; 1 ms after it last heard anything, its flow moves to the other."""
    t, n = 0.3e-3, 6000
    fabric = network(policy)
    faults = strike(fabric, fault(fabric, "leaf0-spine0", t, 5e-3))
    times = np.sort(carry(fabric, [0, 1], [4, 5], n).received_s)
    assert times == pytest.approx([n * P, n * P + 1e-3], abs=15e-6)
    assert faults.rows()[0]["moved_bytes"] == pytest.approx((n - t / P) * PAYLOAD, rel=0.05)
    # The mark holds for 100 ms: both flows share the other spine, although the link is back.
    fabric.clock.run(until=50e-3)
    before = of_link(fabric, "leaf0->spine0", "data_packets")
    assert np.max(carry(fabric, [0, 1], [4, 5], n).received_s) == pytest.approx(50e-3 + 2 * n * P, abs=15e-6)
    assert of_link(fabric, "leaf0->spine0", "data_packets") == before
    fabric.clock.run(until=110e-3)
    assert np.max(carry(fabric, [0, 1], [4, 5], n).received_s) == pytest.approx(110e-3 + n * P, abs=15e-6)


@pytest.mark.parametrize("policy", ["ecmp", "spray", "ethereal", "least_loaded", "spray_random", "reps", "ideal"])
@pytest.mark.parametrize("what", ["host5", "leaf1"])
def test_a_partition_ends_and_names_the_flows_and_the_dead_link(policy, what):
    fabric = network(policy)
    strike(fabric, fault(fabric, what, 20e-6), convergence_s=1e-3)
    transfer = fabric.start(message_graph([1], [5], 2000 * PAYLOAD, owner="copy"))
    with pytest.raises(RuntimeError, match="No scheduled events left"):
        fabric.clock.run(until=transfer.done)
    (line,) = fabric.waiting()
    assert line.startswith(f"copy: message 0 (1 -> 5, {2000 * PAYLOAD} B) cannot move, ") and line.endswith(" is down")
    assert what in line
    fabric.settle()
    fabric.check_conservation()


def test_who_is_not_behind_the_dead_link_ends_as_always():
    fabric = network("spray")
    strike(fabric, fault(fabric, "host5", 20e-6), convergence_s=1e-3)
    lost = fabric.start(message_graph([1], [5], 2000 * PAYLOAD, owner="copy"))
    late = fabric.start(message_graph([0], [4], 200 * PAYLOAD, earliest_s=1.0))
    fabric.clock.run(until=late.done)
    assert late.results.received_s[0] == pytest.approx(1.0 + 200 * P, abs=10e-6)
    with pytest.raises(RuntimeError, match="No scheduled events left"):
        fabric.clock.run(until=lost.done)
    # Something new wakes the fabric up again.
    assert carry_more(fabric) and len(fabric.waiting()) == 1


def carry_more(fabric):
    transfer = fabric.start(message_graph([0], [4], 200 * PAYLOAD))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    return transfer.results.outcome[0] == DELIVERED


TRANSPORTS = [
    {"transport": "dctcp", "mark_from_bytes": 60_000, "port_buffer_bytes": 200_000},
    {"transport": "dcqcn", "mark_from_bytes": 60_000, "pause_above_bytes": 60_000, "resume_below_bytes": 50_000},
    {"transport": "dcqcn", "goes_back": True, "pause_above_bytes": 60_000, "resume_below_bytes": 50_000},
    {"transport": "swift"},
    {"transport": "nscc", "mark_from_bytes": 60_000, "port_buffer_bytes": 200_000, "trim": True},
    {"transport": "ndp", "port_buffer_bytes": 8 * 4096, "trim": True},
]


@pytest.mark.parametrize("policy", ["ecmp", "spray"])
@pytest.mark.parametrize("options", TRANSPORTS, ids=lambda options: "-".join(map(str, list(options.values())[:2])))
def test_every_transport_gets_every_byte_across_faults(options, policy):
    """Two switches die and come back, one link is slow, one loses packets: answers, credit and data alike."""
    fabric = network(policy, **options)
    strike(fabric, fault(fabric, "spine0", 20e-6, 400e-6), fault(fabric, "leaf1", 600e-6, 700e-6),
           fault(fabric, "host5", 50e-6, 300e-6, rate=R / 8), fault(fabric, "host4-leaf1", 0.0, loss=0.02),
           convergence_s=0.1e-3)  # fmt: skip
    results = carry(fabric, [0, 1, 2, 3, 6], [4, 4, 5, 6, 0], 1000)
    assert results.retransmitted.sum() > 0


def test_a_port_of_one_plane_dies_and_the_other_carries_on():
    for policy in ("spray", "spray_random", "ecmp", "ethereal"):
        fabric = network(policy, planes=2)
        strike(fabric, fault(fabric, "plane1/host0-leaf0", 20e-6), convergence_s=0.2e-3)
        carry(fabric, [0, 0, 0], [4, 1, 5], 1000)


@pytest.mark.parametrize("policy", ["spray", "adaptive", "spray_random", "ecmp"])
def test_a_fat_tree_goes_around_an_aggregation(policy):
    topology = fat_tree(pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=4, hosts_per_edge=2, host_link=LINK,
                        edge_link=LINK, core_link=LINK, hosts=[HostKind(8)])  # fmt: skip
    fabric = packets(topology, policy)
    strike(fabric, fault(fabric, "aggregation0", 0.0), convergence_s=0.0)
    carry(fabric, [0, 0], [4, 2], 1000)
    assert column(fabric, "losses") == 0


def test_cancelling_what_waits_behind_a_dead_link_keeps_the_ledgers():
    fabric = network("spray")
    strike(fabric, fault(fabric, "host4", 20e-6))
    transfer = fabric.start(message_graph([0, 1], [4, 5], 1000 * PAYLOAD))
    fabric.clock.run(until=0.35e-3)
    transfer.cancel([0])
    fabric.clock.run(until=transfer.done)
    fabric.settle()
    fabric.check_conservation()
    assert int(fabric._state.c["num_free_packets"][0]) == len(fabric._state.packets)


@pytest.mark.parametrize("ports", ["lean", "full"])
def test_links_fail_only_where_that_was_foreseen(ports):
    """Full ports, too, are simulated faster where nothing is lost."""
    fabric = network("spray", has_faults=False, ports=ports)
    assert fabric.is_full == (ports == "full")
    with pytest.raises(RuntimeError, match="give PacketSettings has_faults"):
        fabric.set_links(np.array([0]), np.array([0.0]))
