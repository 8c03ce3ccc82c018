"""Laws of the fabric on random traffic."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, leaf_spine
from sim.validate.oracle import broken_laws, max_min_rates

POLICIES = ("ideal", "ecmp", "spray", "ethereal", "wrap_around", "least_loaded", "multipath")


@st.composite
def cases(draw):
    return {
        "leaves": draw(st.integers(1, 3)), "hosts": draw(st.integers(2, 4)), "spines": draw(st.integers(1, 3)),
        "lanes": draw(st.integers(1, 2)), "planes": draw(st.integers(1, 2)), "policy": draw(st.sampled_from(POLICIES)),
        "seed": draw(st.integers(0, 1000)), "num": draw(st.integers(1, 25)),
    }  # fmt: skip


def run(case, scale=1.0, latency_s=500e-9, until=None, tolerance=0.0):
    n = case["leaves"] * case["hosts"]
    link = Link(12.5e9 * scale, latency_s)
    topology = leaf_spine(
        leaves=case["leaves"], spines=case["spines"], hosts_per_leaf=case["hosts"], host_link=link,
        spine_link=Link(10e9 * scale, latency_s), hosts=[HostKind(n)], lanes=case["lanes"], planes=case["planes"],
    )  # fmt: skip
    fabric = FluidFabric(
        Clock(), topology, case["policy"], settings=FluidSettings(tolerance=tolerance), seed=case["seed"],
        window_s=0.0 if latency_s == 0 else None, jitter_s=0.0 if latency_s == 0 else None,
    )  # fmt: skip
    rng = np.random.default_rng(case["seed"])
    source = rng.integers(0, n, case["num"])
    destination = (source + 1 + rng.integers(0, n - 1, case["num"])) % n
    sizes = rng.integers(0, 3_000_000, case["num"])
    tail = np.arange(0, case["num"] - 1, 3)
    graph = message_graph(source, destination, sizes, edges=(tail, tail + 1), delay_s=rng.random(case["num"]) * 0e-6)
    transfer = fabric.start(graph)
    fabric.clock.run(until=transfer.done if until is None else until)
    return fabric, graph, transfer


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_byte_arrives_in_order_of_cause_and_no_link_is_over_capacity(case):
    fabric, graph, transfer = run(case)
    results = transfer.results
    fabric.check_conservation()
    assert np.array_equal(results.delivered_bytes, graph.size_bytes)
    assert (results.ready_s <= results.started_s).all()
    assert (results.started_s < results.received_s).all()
    assert (results.received_s < results.acknowledged_s).all()
    for i in range(graph.num_messages):
        for j in graph.successors[graph.successor_start[i] : graph.successor_start[i + 1]]:
            assert results.ready_s[j] >= results.received_s[i]
    payload, _ = fabric.link_bytes()
    leaving = (np.array(fabric.topology.link_tier) == "host") & (np.array(fabric.topology.link_direction) == "up")
    assert abs(payload[leaving].sum() - graph.size_bytes.sum()) < 1e-3
    _, utilisation = fabric.link_series()
    assert utilisation.max() <= 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(cases())
def test_rates_are_the_max_min_fair_ones(case):
    fabric, _, _ = run(case, until=2e-7)
    rates, routes = fabric.current_rates()
    t = fabric.topology
    flows = []
    for route in routes:
        flow = {}
        for s in route[route >= 0]:
            for e in range(t.segment_start[s], t.segment_start[s + 1]):
                link = str(t.segment_link[e])
                flow[link] = flow.get(link, Fraction(0)) + Fraction(float(t.segment_share[e]))
        flows.append(flow)
    capacity = {str(i): Fraction(float(rate)) for i, rate in enumerate(t.link_rate)}
    exact = max_min_rates(capacity, flows, [Fraction(1)] * len(flows))
    assert np.allclose(rates, [float(r) for r in exact], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_twice_the_rates_halve_the_times_without_latency(case):
    _, _, slow = run(case, 1.0, latency_s=0.0)
    _, _, fast = run(case, 2.0, latency_s=0.0)
    assert np.allclose(slow.results.received_s, 2 * fast.results.received_s, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(cases())
def test_the_same_seed_gives_the_same_bits(case):
    first, second = run(case, tolerance=1e-3)[2].results, run(case, tolerance=1e-3)[2].results
    for name in ("ready_s", "started_s", "received_s", "acknowledged_s"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def parts_of(topology, route):
    """A route as {link: share}."""
    flow = {}
    for s in route[route >= 0]:
        for e in range(topology.segment_start[s], topology.segment_start[s + 1]):
            name = topology.link_name[topology.segment_link[e]]
            flow[name] = flow.get(name, 0.0) + float(topology.segment_share[e])
    return flow


@pytest.mark.parametrize("fairness", ["queue_pair", "message"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_flow_of_a_large_component_has_a_bottleneck(policy, fairness):
    """1,200 messages of all sizes come and go: at any time no link is over capacity and every flow has a full one.

    That is what makes rates max-min fair, whatever way they were computed; components here are of hundreds of pieces.
    """
    topology = leaf_spine(
        leaves=4, spines=3, hosts_per_leaf=6, host_link=Link(1e9, 1e-6), spine_link=Link(1.5e9, 1e-6),
        hosts=[HostKind(24)], overrides={"leaf1-spine2": LinkOverride(0.2e9)},
    )  # fmt: skip
    fabric = FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=0.0, fairness=fairness), seed=5)
    rng = np.random.default_rng(7)
    source = rng.integers(0, 24, 1200)
    destination = (source + 1 + rng.integers(0, 23, 1200)) % 24
    graph = message_graph(
        source, destination, rng.lognormal(11, 1.5, 1200).astype(int), earliest_s=rng.random(1200) * 3e-3,
        queue_pairs=rng.integers(1, 4, 1200),
    )  # fmt: skip
    transfer = fabric.start(graph)
    capacity = dict(zip(topology.link_name, topology.link_rate.tolist(), strict=True))
    most = 0
    for time_s in np.linspace(0.1e-3, 15e-3, 12):
        fabric.clock.run(until=time_s)
        rates, routes = fabric.current_rates()
        weight = fabric._state.weight[fabric._state.pieces["message"] >= 0]
        going = rates > 0  # the others have not started
        flows = [parts_of(topology, route) for route in routes[going]]
        assert broken_laws(capacity, flows, weight[going].tolist(), rates[going].tolist()) == []
        most = max(most, len(flows))
    assert most > 256
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    assert transfer.results.delivered_bytes.tolist() == graph.size_bytes.tolist()
    assert fabric.link_series()[1].max() <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(cases())
def test_what_goes_up_comes_down(case):
    """Payload out of the hosts = payload into them; between leaves, up = down = the bytes of pairs on two leaves."""
    fabric, graph, _ = run(case)
    t = fabric.topology
    payload, wire = fabric.link_bytes()
    tier, up = np.array(t.link_tier), np.array(t.link_direction) == "up"
    far = t.leaf_of_accelerator[graph.source] != t.leaf_of_accelerator[graph.destination]
    crossing = 0 if case["policy"] == "ideal" else graph.size_bytes[far].sum()
    for chosen, expected in (("host", graph.size_bytes.sum()), ("leaf-spine", crossing)):
        for direction in (up, ~up):
            assert payload[(tier == chosen) & direction].sum() == pytest.approx(expected, rel=1e-9, abs=1e-3)
    assert wire[(tier == "host") & up].sum() == pytest.approx(wire[(tier == "host") & ~up].sum(), rel=1e-12)
    assert (wire >= payload * 4096 / 4032 - 1e-3).all()


def two_halves(seed, tolerance, policy, with_stranger):
    """Traffic on leaves 0 and 1, and if asked other traffic on leaves 2 and 3; results of the first."""
    topology = leaf_spine(
        leaves=4, spines=2, hosts_per_leaf=4, host_link=Link(1e9, 1e-6), spine_link=Link(1e9, 1e-6),
        hosts=[HostKind(16)],
    )  # fmt: skip
    fabric = FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=tolerance), seed=seed)
    transfers = []
    for half in (1, 0) if with_stranger else (0,):
        rng = np.random.default_rng([seed, half])
        source = rng.integers(0, 8, 40)
        destination = (source + 1 + rng.integers(0, 7, 40)) % 8
        tail = np.arange(0, 36, 2)
        graph = message_graph(
            source + 8 * half, destination + 8 * half, rng.integers(0, 300_000, 40),
            earliest_s=rng.random(40) * 2e-4, edges=(tail, tail + 3),
        )  # fmt: skip
        transfers.append(fabric.start(graph))
    fabric.clock.run()
    return transfers[-1].results


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("policy", ["ideal", "ecmp", "spray", "multipath"])
def test_strangers_on_other_links_change_no_bit(policy, tolerance):
    """Components are solved apart, in whatever rows their messages are. (Assigned paths draw from one sequence.)"""
    for seed in range(5):
        alone = two_halves(seed, tolerance, policy, False)
        beside = two_halves(seed, tolerance, policy, True)
        for name in ("ready_s", "started_s", "received_s", "acknowledged_s"):
            assert getattr(alone, name).tobytes() == getattr(beside, name).tobytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_two_transfers_at_once_are_as_good_as_one(policy):
    """The same messages handed over whole, or in two graphs at the same instant."""
    topology = leaf_spine(
        leaves=3, spines=2, hosts_per_leaf=4, host_link=Link(1e9, 1e-6), spine_link=Link(1e9, 1e-6),
        hosts=[HostKind(12)],
    )  # fmt: skip
    rng = np.random.default_rng(11)
    source = rng.integers(0, 12, 60)
    destination = (source + 1 + rng.integers(0, 11, 60)) % 12
    size, earliest_s = rng.integers(0, 300_000, 60), rng.integers(0, 2, 60) * rng.random(60) * 1e-4
    seen = []
    for cuts in ([0, 60], [0, 17, 60]):
        fabric = FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=0.0), seed=3)
        spans = [slice(a, b) for a, b in pairwise(cuts)]
        transfers = [
            fabric.start(message_graph(source[s], destination[s], size[s], earliest_s=earliest_s[s])) for s in spans
        ]
        fabric.clock.run()
        seen.append(np.concatenate([t.results.received_s for t in transfers]))
    assert seen[0] == pytest.approx(seen[1], rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(cases(), st.floats(1e-6, 10.0))
def test_the_hour_of_the_day_does_not_matter(case, later_s):
    """Started later, everything happens later by as much (to the resolution of the time then)."""
    _, graph, transfer = run(case)
    fabric, _, _ = run(case | {"num": 1})
    fresh = FluidFabric(
        Clock(), fabric.topology, case["policy"], settings=FluidSettings(tolerance=0.0), seed=case["seed"]
    )
    fresh.clock.run(until=later_s)
    late = fresh.start(graph)
    fresh.clock.run(until=late.done)
    expected = transfer.results.received_s + later_s
    assert late.results.received_s == pytest.approx(expected, rel=1e-12, abs=1e-9 * transfer.results.received_s.max())


@pytest.mark.parametrize("policy", POLICIES)
def test_the_tolerance_moves_completion_by_about_as_much(policy):
    """900 flows at once: at the default tolerance the last byte comes within 0.5 % of the exact time."""
    topology = leaf_spine(
        leaves=4, spines=4, hosts_per_leaf=6, host_link=Link(1e9, 1e-6), spine_link=Link(1e9, 1e-6),
        hosts=[HostKind(24)],
    )  # fmt: skip
    rng = np.random.default_rng(2)
    source = rng.integers(0, 24, 900)
    destination = (source + 1 + rng.integers(0, 23, 900)) % 24
    graph = message_graph(source, destination, rng.lognormal(12, 0.5, 900).astype(int))
    last = {}
    for tolerance in (0.0, 1e-3):
        fabric = FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=tolerance), seed=4)
        transfer = fabric.start(graph)
        fabric.clock.run(until=transfer.done)
        fabric.check_conservation()
        last[tolerance] = transfer.results.received_s.max()
    assert last[1e-3] == pytest.approx(last[0.0], rel=5e-3)
