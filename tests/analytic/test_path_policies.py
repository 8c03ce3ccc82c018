"""Path policies by hand: where the bytes go, in how many pieces, and what that does to the times."""

from math import gcd

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, leaf_spine

R, L = 1e9, 1e-6
FULL, WIRE = 4032 * 120, 4096 * 120


def network(policy, *, hosts=8, spines=8, leaves=2, seed=1, fairness="queue_pair", spine_rate=R, **shape):
    topology = leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=Link(R, L), spine_link=Link(spine_rate, L),
        hosts=[HostKind(leaves * hosts)], **shape,
    )  # fmt: skip
    settings = FluidSettings(tolerance=0.0, fairness=fairness)
    return FluidFabric(Clock(), topology, policy, settings=settings, seed=seed, window_s=0.0, jitter_s=0.0)


def run(fabric, *args, **kwargs):
    transfer = fabric.start(message_graph(*args, **kwargs))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    return transfer.results


def loads(fabric, direction="up"):
    """Payload of the links between leaves and spines in one direction."""
    t = fabric.topology
    chosen = (np.array(t.link_tier) == "leaf-spine") & (np.array(t.link_direction) == direction)
    return fabric.link_bytes()[0][chosen]


def pieces_of(fabric):
    """Number of pieces under way, and their weights."""
    live = fabric._state.pieces["message"] >= 0
    return int(live.sum()), fabric._state.weight[live]


def twins(n, hosts):
    return np.arange(n), np.arange(n) + hosts


@pytest.mark.parametrize(("n", "s"), [(12, 8), (9, 8), (1, 16), (39, 40), (7, 7), (3, 40), (40, 3), (6, 4)])
def test_ethereal_cuts_the_last_n_mod_s_flows_in_s_over_g(n, s):
    """n flows, s paths, r = n mod s, g = gcd(r, s): n - r whole ones and r (s / g) pieces of one size."""
    fabric = network("ethereal", hosts=40, spines=s)
    fabric.start(message_graph(*twins(n, 40), 7 * s * 4032))
    fabric.clock.run(until=1e-9)
    r = n % s
    expected = n - r + (r * s // gcd(r, s) if r else 0)
    assert pieces_of(fabric)[0] == expected


@pytest.mark.parametrize(("n", "s"), [(12, 8), (9, 8), (1, 16), (39, 40), (7, 7), (3, 40), (40, 3), (6, 4)])
def test_wrap_around_cuts_at_the_boundaries_only(n, s):
    """n flows laid end to end have s - 1 inner path boundaries, gcd(n, s) - 1 of them between two flows."""
    fabric = network("wrap_around", hosts=40, spines=s)
    fabric.start(message_graph(*twins(n, 40), 7 * s * 4032))
    fabric.clock.run(until=1e-9)
    assert pieces_of(fabric)[0] == n + s - gcd(n, s)


def test_wrap_around_needs_fewer_extra_pieces_in_1106_of_1600_cases():
    """The count of facts 8, from the two formulas that the tests above hold the policies to."""

    def extra_of_ethereal(n, s):
        r = n % s
        return r * (s // gcd(r, s) - 1) if r else 0

    cases = [(n, s) for n in range(1, 41) for s in range(1, 41)]
    assert sum(s - gcd(n, s) < extra_of_ethereal(n, s) for n, s in cases) == 1106
    assert all(s - gcd(n, s) <= extra_of_ethereal(n, s) for n, s in cases)


@pytest.mark.parametrize("policy", ["ethereal", "wrap_around"])
def test_sizes_that_do_not_divide_keep_every_byte(policy):
    """9 flows of 1,000,003 B on 8 paths: the last piece takes the remainder, nothing is lost or doubled."""
    fabric = network(policy, hosts=9)
    results = run(fabric, *twins(9, 9), 1_000_003)
    assert results.delivered_bytes.tolist() == [1_000_003] * 9
    assert loads(fabric).sum() == pytest.approx(9 * 1_000_003, abs=1e-3)
    assert np.ptp(loads(fabric)[:8]) <= 8  # whole bytes


@pytest.mark.parametrize("policy", ["ethereal", "wrap_around", "multipath", "ecmp"])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_messages_smaller_than_their_pieces(policy, size):
    """A flow that would be cut in 8 has only 0, 1 or 3 bytes to cut."""
    fabric = network(policy)
    results = run(fabric, [0, 1, 2], [8, 9, 10], size, queue_pairs=4)
    assert results.delivered_bytes.tolist() == [size] * 3
    assert loads(fabric).sum() == pytest.approx(3 * size, abs=1e-6)
    assert (results.received_s > 4 * L).all()


def test_wrap_around_evens_out_unequal_sizes_and_ethereal_groups_by_size():
    """Sizes of 1, 2, … 6 units on 3 paths: 21 units. wrap_around: 7 each.

    ethereal: six groups of one flow, each cut in 3: also 7 each. Two sizes of three flows: one whole flow each.
    """
    sizes = 3 * 4032 * np.arange(1, 7)
    for policy in ("wrap_around", "ethereal"):
        fabric = network(policy, spines=3)
        run(fabric, *twins(6, 8), sizes)
        assert loads(fabric)[:3] == pytest.approx([7 * 3 * 4032] * 3)
    fabric = network("ethereal", spines=3)
    fabric.start(message_graph(*twins(6, 8), [FULL, FULL, FULL, 2 * FULL, 2 * FULL, 2 * FULL]))
    fabric.clock.run(until=1e-9)
    assert pieces_of(fabric)[0] == 6


def test_ethereal_groups_by_pair_of_leaves():
    """Three flows to each of two leaves on 3 spines: whole flows, one of each group per uplink."""
    fabric = network("ethereal", spines=3, leaves=3)
    run(fabric, np.arange(6), [8, 9, 10, 16, 17, 18], FULL)
    assert loads(fabric)[:3] == pytest.approx([2 * FULL] * 3)
    assert loads(fabric, "down") == pytest.approx([0] * 3 + [FULL] * 6)


def test_split_flows_are_favoured_by_queue_pair_and_not_by_message():
    """3 flows on 2 paths: A, B whole, C in halves. Each path carries one whole flow of W and a half of C.

    By queue pair all four pieces get R/2: C ends at W/R, then A and B have R each for their other half: 3/2 W/R.
    By message C's halves have weight 1/2, so 1/3 R against 2/3 R: W/2 and W both take 3/2 W/R, as under spray.
    """
    times = {}
    for policy, fairness in (("ethereal", "queue_pair"), ("ethereal", "message"), ("spray", "queue_pair")):
        fabric = network(policy, spines=2, fairness=fairness)
        results = run(fabric, *twins(3, 8), FULL)
        times[policy, fairness] = np.sort(results.received_s - 4 * L) / (WIRE / R)
    assert times["ethereal", "queue_pair"] == pytest.approx([1, 1.5, 1.5], rel=1e-9)
    assert times["ethereal", "message"] == pytest.approx([1.5] * 3, rel=1e-9)
    assert times["spray", "queue_pair"] == pytest.approx([1.5] * 3, rel=1e-9)


def test_fairness_by_message_makes_queue_pairs_count_as_one():
    """Under ecmp a message of 4 queue pairs has 4 pieces of weight 1, or of 1/4."""
    for fairness, weight in (("queue_pair", 1.0), ("message", 0.25)):
        fabric = network("ecmp", fairness=fairness)
        fabric.start(message_graph([0], [8], FULL, queue_pairs=4))
        fabric.clock.run(until=1e-9)
        count, weights = pieces_of(fabric)
        assert count == 4
        assert weights.tolist() == [weight] * 4


def test_multipath_is_as_many_hashed_flows():
    """k sub-flows of a queue pair are what k queue pairs are to ecmp: same paths, same times."""
    multipath, ecmp = network("multipath"), network("ecmp")
    multipath.start(message_graph(*twins(8, 8), FULL))
    ecmp.start(message_graph(*twins(8, 8), FULL, queue_pairs=4))
    for fabric in (multipath, ecmp):
        fabric.clock.run()
    assert loads(multipath) == pytest.approx(loads(ecmp))


@pytest.mark.parametrize("hosts", [4, 8])
def test_least_loaded_places_equal_flows_like_a_dealer(hosts):
    """Flows of one size on 4 equal spines: one, or two, on every uplink and on every downlink."""
    fabric = network("least_loaded", hosts=hosts, spines=4)
    run(fabric, *twins(hosts, hosts), FULL)
    assert loads(fabric)[:4].tolist() == loads(fabric, "down")[4:].tolist() == [FULL * hosts / 4] * 4


def test_least_loaded_counts_bytes_against_the_rate():
    """Spine 0 at 2R, spine 1 at R: of six flows the loads (bytes / rate) even out at 4 to 2."""
    fast = {f"leaf{leaf}-spine0": LinkOverride(2 * R) for leaf in (0, 1)}
    fabric = network("least_loaded", spines=2, overrides=fast)
    run(fabric, *twins(6, 8), FULL)
    assert loads(fabric)[:2].tolist() == [4 * FULL, 2 * FULL]


def test_least_loaded_sees_what_has_been_sent_since():
    """A big flow and a small one take the two uplinks. When the small one is through, the next flow follows it,

    though by bytes placed so far it would be the same; and one that comes while both are busy follows the less busy.
    """
    for arrives_s in (0.5 * WIRE / R, 1.5 * WIRE / R):
        fabric = network("least_loaded", spines=2)
        run(fabric, [0, 1, 2], [8, 9, 10], [3 * FULL, FULL, FULL], earliest_s=[0.0, 0.0, arrives_s])
        assert sorted(loads(fabric)[:2].tolist()) == [2 * FULL, 3 * FULL]


def test_least_loaded_weighs_flows_of_one_moment_like_older_ones():
    """One flow has sent a thousandth when two more come. The first goes to the other uplink, the second to the old one,

    which has the thousandth less to do. All count in wire bytes: by payload the newer would look lighter by 1.6 %.
    """
    for seed in range(1, 9):
        fabric = network("least_loaded", spines=2, seed=seed)
        fabric.start(message_graph([0], [8], FULL))
        fabric.clock.run(until=1e-3 * WIRE / R)
        older = loads(fabric)[:2] > 0
        run(fabric, [1, 2], [9, 10], FULL)
        assert loads(fabric)[:2][older] == pytest.approx([2 * FULL])


def test_least_loaded_uses_both_planes_inside_a_leaf():
    """Four flows from one host to another on its leaf: two on each plane's port, so 2 W/R for all."""
    fabric = network("least_loaded", planes=2)
    results = run(fabric, [0] * 4, [1] * 4, FULL)
    assert results.received_s == pytest.approx(2 * WIRE / R + 2 * L, rel=1e-12)


def test_a_single_path_stays_on_one_plane():
    """ecmp on two planes: a flow has one port of R, not two; two of one host at best one each."""
    fabric = network("ecmp", planes=2)
    results = run(fabric, [0, 0], [8, 9], FULL)
    took = (results.received_s - 4 * L) / (WIRE / R)
    assert np.allclose(took, 1.0) or np.allclose(took, 2.0)
    assert np.count_nonzero(loads(fabric)) in (1, 2)


def test_a_slow_link_slows_who_hashes_onto_it_and_nobody_else():
    """Eight flows on eight assigned paths, one at R/4: one takes 4 W/R, seven W/R.

    Sprayed, each flow has 1/8 of its rate on it: 8 x/8 <= R/4 makes x = R/4 for all of them.
    """
    slow = {"leaf0-spine3": LinkOverride(R / 4)}
    took = np.sort(run(network("ethereal", overrides=slow), *twins(8, 8), FULL).received_s - 4 * L) / (WIRE / R)
    assert took == pytest.approx([1.0] * 7 + [4.0], rel=1e-9)
    sprayed = run(network("spray", overrides=slow), *twins(8, 8), FULL).received_s - 4 * L
    assert sprayed == pytest.approx(4 * WIRE / R, rel=1e-9)


def test_an_ideal_fabric_has_no_links_between_its_leaves_but_their_latency():
    """64 flows through one spine link would take 64 W/R; with an ideal fabric only the NICs count."""
    fabric = network("ideal", spines=1, spine_rate=R / 10)
    results = run(fabric, *twins(8, 8), FULL)
    assert results.received_s == pytest.approx(WIRE / R + 4 * L, rel=1e-12)
    assert loads(fabric).sum() == 0
    incast = run(network("ideal"), np.arange(8), 8, FULL)
    assert incast.received_s == pytest.approx(8 * WIRE / R + 4 * L, rel=1e-9)


def test_a_window_gathers_a_leafs_messages_and_jitter_spreads_them():
    """Ethereal waits 100 ns from the first message of a leaf, then each starts within 50 ns, whole nanoseconds."""
    topology = network("ethereal").topology
    fabric = FluidFabric(Clock(), topology, "ethereal", settings=FluidSettings(tolerance=0.0))
    ready = np.array([0.0, 30e-9, 99e-9, 101e-9, 0.0])
    results = run(fabric, [0, 1, 2, 3, 8], [8, 9, 10, 11, 0], FULL, earliest_s=ready)
    closes = np.array([100e-9, 100e-9, 100e-9, 201e-9, 100e-9])
    jitter_ns = (results.started_s - closes) * 1e9
    assert results.ready_s.tolist() == ready.tolist()
    assert np.allclose(jitter_ns, np.round(jitter_ns), atol=1e-6)
    assert (jitter_ns > -1e-6).all() and (jitter_ns < 50 + 1e-6).all()


def test_jitter_is_uniform_over_its_nanoseconds():
    fabric = FluidFabric(Clock(), network("ethereal", hosts=40).topology, "ethereal")
    source = np.tile(np.arange(40), 100)
    transfer = fabric.start(message_graph(source, source + 40, 1))
    fabric.clock.run(until=transfer.done)
    jitter_ns = np.round((transfer.results.started_s - 100e-9) * 1e9).astype(int)
    counts = np.bincount(jitter_ns, minlength=51)
    assert len(counts) == 51
    # 4,000 draws, 78 a value, standard deviation 8.8: within 4.5 of them
    assert np.abs(counts - 4000 / 51).max() < 4.5 * np.sqrt(4000 / 51)
