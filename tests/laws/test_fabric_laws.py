"""Laws of the fabric on random traffic."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.validate.oracle import max_min_rates

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
