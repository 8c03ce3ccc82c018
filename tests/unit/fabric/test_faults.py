"""Faults in fluid, by hand: each expected time is derived in the test. R is a link's rate, W a flow's wire bytes."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.faults import Fault, Faults
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.link_sets import links_named, links_of_host, links_of_switch
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, fat_tree, leaf_spine

R, L = 50e9, 500e-9
LINK = Link(R, L)
SIZE = 4032 * 12_500
W = 4096 * 12_500
T = W / R
"""1.024 ms: one flow alone on a link."""


def network(policy, seed=1, **kwargs):
    shape = {"leaves": 2, "spines": 2, "hosts_per_leaf": 4, "host_link": LINK, "spine_link": LINK} | kwargs
    topology = leaf_spine(hosts=[HostKind(shape["leaves"] * shape["hosts_per_leaf"])], **shape)
    return fluid(topology, policy, seed)


def fluid(topology, policy, seed=1):
    settings = FluidSettings(tolerance=0.0)
    return FluidFabric(Clock(), topology, policy, settings=settings, seed=seed, window_s=0.0, jitter_s=0.0)


def down(fabric, name, at_s, until_s=None, rate=None):
    if name.startswith("host") and "-" not in name:
        links = links_of_host(fabric.topology, int(name.removeprefix("host")))
    else:
        links = (links_named if "-" in name else links_of_switch)(fabric.topology, name)
    assert links
    return Fault(name, links, rate, at_s, until_s)


def strike(fabric, *faults, convergence_s=10e-3):
    found = Faults(fabric.clock, fabric, faults, convergence_s)
    found.start()
    return found


def received(fabric, *args, **kwargs):
    transfer = fabric.start(message_graph(*args, **kwargs))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    assert transfer.results.delivered_bytes == pytest.approx(transfer.graph.size_bytes, abs=1e-6)
    return transfer.results.received_s


def path_taken(fabric):
    """The spines that carried payload out of leaf 0, by their payload."""
    payload = fabric.link_bytes()[0]
    return {i: payload[fabric.topology.link_name.index(f"leaf0->spine{i}")] for i in range(fabric.topology.num_spines)}


def test_a_flow_whose_link_goes_to_a_quarter():
    # R t bytes until t, the other W - R t at R / 4.
    fabric = network("ecmp")
    strike(fabric, down(fabric, "host0", 0.5e-3, rate=R / 4))
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(0.5e-3 + 4 * (T - 0.5e-3) + 4 * L, rel=1e-9)


def test_a_link_is_slow_for_a_while_and_the_lowest_rate_wins():
    # R t until 0.2 ms, R/2 until 0.4, R/4 until 0.6 (R/2 still holds), R/2 until 0.8, then R again.
    fabric = network("ecmp")
    strike(fabric, down(fabric, "host0-leaf0", 0.2e-3, 0.8e-3, R / 2), down(fabric, "host0", 0.4e-3, 0.6e-3, R / 4))
    sent_s = 0.2e-3 + 0.1e-3 + 0.05e-3 + 0.1e-3
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(0.8e-3 + T - sent_s + 4 * L, rel=1e-9)


def test_down_wins_over_a_rate_whatever_the_order():
    # Nothing between 0.2 and 0.8 ms, R/2 until 1 ms.
    for order in (1, -1):
        fabric = network("ecmp")
        faults = (down(fabric, "host0", 0.2e-3, 1e-3, R / 2), down(fabric, "host0", 0.2e-3, 0.8e-3))[::order]
        strike(fabric, *faults)
        assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(1e-3 + T - 0.3e-3 + 4 * L, rel=1e-9)


@pytest.mark.parametrize("policy", ["ideal", "ecmp", "spray", "ethereal", "least_loaded"])
@pytest.mark.parametrize("what", ["host0", "leaf1"])
def test_behind_a_dead_port_or_leaf_a_flow_waits_for_the_repair(policy, what):
    # No path helps: the flow loses the 30 ms that the fault lasts, although routing knew of it after 10.
    fabric = network(policy)
    faults = strike(fabric, down(fabric, what, 0.5e-3, 30.5e-3))
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(T + 30e-3 + 4 * L, rel=1e-9)
    assert faults.rows()[0]["flows_affected"] == 1 and faults.rows()[0]["moved_bytes"] == 0.0


def test_an_ideal_fabric_never_fails():
    fabric = network("ideal")
    strike(fabric, down(fabric, "spine0", 0.1e-3), down(fabric, "spine1", 0.1e-3))
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(T + 4 * L, rel=1e-9)


def test_a_sprayed_flow_stalls_and_then_spreads_over_what_is_left():
    # Four spine links of R/4 carry R in all. At t = 0.2 ms one dies: rate 0 until t + c, then 3 x R/4 until routing
    # uses the link again at u + c, then R.   W = R t + 3/4 R (u - t) + R (end - u - c)
    t, u, c = 0.2e-3, 0.7e-3, 0.1e-3
    fabric = network("spray", spines=4, spine_link=Link(R / 4, L))
    faults = strike(fabric, down(fabric, "leaf0-spine2", t, u), convergence_s=c)
    end = T - t - 0.75 * (u - t) + u + c
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(end + 4 * L, rel=1e-9)
    payload, share = path_taken(fabric), SIZE / T
    others = share * (t / 4 + (u - t) / 4 + (end - u - c) / 4)
    assert [payload[i] for i in range(4)] == pytest.approx(
        [others, others, share * (t + end - u - c) / 4, others], rel=1e-6
    )
    # A quarter of what was left had to leave the dead path.
    assert faults.rows()[0]["moved_bytes"] == pytest.approx((SIZE - share * t) / 4, rel=1e-6)


def test_a_dead_link_elsewhere_concerns_only_those_who_go_there():
    # leaf2-spine0 dies: 0 -> leaf 1 never stalls and keeps both spines, 1 -> leaf 2 loses c and then has spine 1 only.
    fabric = network("spray", leaves=3, spine_link=Link(R / 2, L))
    strike(fabric, down(fabric, "leaf2-spine0", 0.2e-3), convergence_s=0.1e-3)
    times = received(fabric, [0], [4], SIZE)
    assert times[0] == pytest.approx(T + 4 * L, rel=1e-9)
    fabric = network("spray", leaves=3, spine_link=Link(R / 2, L))
    strike(fabric, down(fabric, "leaf2-spine0", 0.2e-3), convergence_s=0.1e-3)
    times = received(fabric, [1], [8], SIZE)
    assert times[0] == pytest.approx(0.3e-3 + 2 * (T - 0.2e-3) + 4 * L, rel=1e-9)


@pytest.mark.parametrize("policy", ["spray", "ecmp", "ethereal", "wrap_around", "least_loaded", "multipath"])
def test_routing_that_knows_at_once_is_a_fabric_without_the_spine(policy):
    """Sprayed, to the last bit; by the other policies, whatever they draw, nothing goes there."""
    senders, receivers = np.repeat(np.arange(4), 4), np.tile(np.arange(4, 8), 4)
    with_fault = network(policy, spines=3)
    strike(with_fault, down(with_fault, "spine2", 0.0), convergence_s=0.0)
    times = received(with_fault, senders, receivers, SIZE // 16)
    assert path_taken(with_fault)[2] == 0.0
    if policy == "spray":
        assert times == pytest.approx(received(network(policy, spines=2), senders, receivers, SIZE // 16), rel=1e-12)


def test_hashed_flows_stay_in_the_black_hole_until_routing_knows():
    # The path of 0 -> 4 dies at 0.5 ms: nothing for c, then the rest on the other spine, what was sent is kept.
    fabric = network("ecmp")
    received(fabric, [0], [4], SIZE)
    used = max(path_taken(fabric), key=path_taken(fabric).get)
    fabric, c = network("ecmp"), 10e-3
    faults = strike(fabric, down(fabric, f"leaf0-spine{used}", 0.5e-3), convergence_s=c)
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(T + c + 4 * L, rel=1e-9)
    sent = SIZE * 0.5e-3 / T
    assert path_taken(fabric) == pytest.approx({used: sent, 1 - used: SIZE - sent}, abs=1.0)
    assert faults.rows()[0]["moved_bytes"] == pytest.approx(SIZE - sent, abs=1.0)
    # A new message of the same queue pair takes the new path at once.
    begin = fabric.clock.now
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(begin + T + 4 * L, rel=1e-9)


def test_a_repair_before_routing_knows_lets_the_flow_go_on_where_it_was():
    fabric = network("ecmp")
    received(fabric, [0], [4], SIZE)
    used = max(path_taken(fabric), key=path_taken(fabric).get)
    fabric = network("ecmp")
    faults = strike(fabric, down(fabric, f"spine{used}", 0.5e-3, 2.5e-3))
    assert received(fabric, [0], [4], SIZE)[0] == pytest.approx(T + 2e-3 + 4 * L, rel=1e-9)
    assert path_taken(fabric)[1 - used] == 0.0 and faults.rows()[0]["moved_bytes"] == 0.0


@pytest.mark.parametrize("policy", ["ethereal", "wrap_around"])
def test_assigned_flows_move_after_their_timeout_and_avoid_the_path(policy):
    # Two flows, two paths, each R. One path dies at t; after 1 ms its flow moves to the other, free by then.
    t = 0.5e-3
    fabric = network(policy)
    faults = strike(fabric, down(fabric, "leaf0-spine0", t, 5e-3))
    times = np.sort(received(fabric, [0, 1], [4, 5], SIZE))
    assert times == pytest.approx([T + 4 * L, T + 1e-3 + 4 * L], rel=1e-9)
    assert faults.rows()[0]["moved_bytes"] == pytest.approx(SIZE * (1 - t / T), abs=1.0)
    # The link has been back since 5 ms; the mark holds until t + 1 ms + 100 ms. Both new flows share spine 1.
    before = path_taken(fabric)
    fabric.clock.run(until=50e-3)
    assert received(fabric, [0, 1], [4, 5], SIZE) == pytest.approx(50e-3 + 2 * T + 4 * L, rel=1e-9)
    assert path_taken(fabric)[0] == before[0]
    # After that, both are used again.
    fabric.clock.run(until=102e-3)
    assert received(fabric, [0, 1], [4, 5], SIZE) == pytest.approx(102e-3 + T + 4 * L, rel=1e-9)


def test_a_flow_that_starts_onto_the_dead_path_times_out_a_millisecond_later():
    # Both flows of the second batch start at 0.3 ms; the one on spine 0 moves at 1.3 ms, when the other has 0.024 ms
    # left alone: they share until that one ends.
    fabric = network("ethereal")
    strike(fabric, down(fabric, "leaf0-spine0", 0.2e-3), convergence_s=1.0)
    times = np.sort(received(fabric, [0, 1], [4, 5], SIZE, earliest_s=0.3e-3))
    left = 0.3e-3 + T - 1.3e-3
    first = 1.3e-3 + 2 * left
    assert times == pytest.approx([first + 4 * L, first + T - left + 4 * L], rel=1e-9)


def test_live_placement_avoids_a_path_once_it_is_known_dead():
    fabric = network("least_loaded", spines=3)
    strike(fabric, down(fabric, "spine1", 0.0), convergence_s=1e-3)
    fabric.clock.run(until=2e-3)
    received(fabric, [0, 1, 2, 3], [4, 5, 6, 7], SIZE)
    assert path_taken(fabric) == pytest.approx({0: 2 * SIZE, 1: 0.0, 2: 2 * SIZE})


def test_a_port_of_one_plane_dies_and_the_other_carries_on():
    # Two planes of R each. Nothing for c, then R instead of 2 R.
    t, c = 0.1e-3, 0.2e-3
    for policy in ("spray", "ideal"):
        fabric = network(policy, planes=2)
        strike(fabric, down(fabric, "plane1/host0-leaf0", t), convergence_s=c)
        times = received(fabric, [0], [4], SIZE)
        assert times[0] == pytest.approx(t + c + T - 2 * t + 4 * L, rel=1e-9)
    fabric = network("spray", planes=2)
    strike(fabric, down(fabric, "plane1/host0-leaf0", t), convergence_s=c)
    assert received(fabric, [0], [1], SIZE)[0] == pytest.approx(t + c + T - 2 * t + 2 * L, rel=1e-9)


def test_a_fat_tree_goes_around_an_aggregation():
    # One of two aggregations dies at t: half of the cores are left, which is still R.
    topology = fat_tree(pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=4, hosts_per_edge=2, host_link=LINK,
                        edge_link=LINK, core_link=LINK, hosts=[HostKind(8)])  # fmt: skip
    assert {topology.link_name[i] for i in links_of_switch(topology, "edge0")} == {
        f"{a}->{b}" for x, y in (("host0", "leaf0"), ("host1", "leaf0"), ("edge0", "aggregation0"),
                                 ("edge0", "aggregation1")) for a, b in ((x, y), (y, x))
    }  # fmt: skip
    for policy in ("spray", "ecmp"):
        fabric = fluid(topology, policy)
        strike(fabric, down(fabric, "aggregation0", 0.2e-3), down(fabric, "aggregation1", 50e-3, 60e-3))
        times = received(fabric, [0, 0], [4, 2], SIZE)
        lost = {10e-3} if policy == "spray" else {0.0, 10e-3}
        assert all(min(abs(time - 2 * T - wait - 6 * L) for wait in lost) < 3e-6 for time in times)


def test_messages_before_their_first_byte_are_rerouted_too():
    # 1 ms of overhead per message: placed at 0, the first byte leaves at 1 ms, when routing has long known.
    topology = leaf_spine(leaves=2, spines=2, hosts_per_leaf=1, host_link=LINK, spine_link=LINK,
                          hosts=[HostKind(2, message_overhead_s=1e-3)])  # fmt: skip
    for policy in ("ecmp", "spray"):
        for spine in ("spine0", "spine1"):
            fabric = fluid(topology, policy)
            strike(fabric, down(fabric, spine, 0.1e-3), convergence_s=0.2e-3)
            assert received(fabric, [0], [1], SIZE)[0] == pytest.approx(1e-3 + T + 4 * L, rel=1e-9)


def test_cancelling_a_flow_that_waits_keeps_the_ledgers():
    fabric = network("spray")
    strike(fabric, down(fabric, "spine0", 0.5e-3), convergence_s=0.1e-3)
    transfer = fabric.start(message_graph([0, 1], [4, 5], SIZE))
    fabric.clock.run(until=0.55e-3)
    transfer.cancel([0])
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    sent = SIZE * 0.5e-3 / T
    assert transfer.results.delivered_bytes == pytest.approx([sent, SIZE], rel=1e-6)


def test_a_partition_names_the_flows_and_the_dead_link():
    fabric = network("ecmp")
    strike(fabric, down(fabric, "host5", 0.2e-3))
    transfer = fabric.start(message_graph([0, 1], [4, 5], SIZE, owner="copy"))
    with pytest.raises(RuntimeError, match="No scheduled events left"):
        fabric.clock.run(until=transfer.done)
    assert fabric.waiting() == [f"copy: message 1 (1 -> 5, {SIZE} B) cannot move, leaf1->host5 is down"]
    fabric.check_conservation()


def test_faults_are_recorded_as_rows():
    fabric = network("ecmp")
    faults = strike(fabric, down(fabric, "host0", 0.1e-3, 0.2e-3, R / 2), down(fabric, "host1", 9.0))
    received(fabric, [0], [4], SIZE)
    recorder = Recorder()
    faults.record(recorder)
    table = recorder.frames()["faults"]
    assert list(table.columns) == ["at_s", "until_s", "what", "flows_affected", "moved_bytes"]
    assert len(table) == 1 and table["flows_affected"][0] == 1
    assert faults.notes() == ["host1: begins at 9 s, but the run ended before"]
