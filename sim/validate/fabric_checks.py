"""Checks of the fluid fabric against closed forms, exact laws and an independent solver."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import comb, gcd

import numpy as np
from scipy import stats

from models import bounds
from sim.collectives.algorithms import ALGORITHMS
from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.topology import HostKind, Link, Topology, leaf_spine
from sim.validate.oracle import max_min_rates
from sim.validate.table import CheckResult
from sim.workload import patterns

RATE, LATENCY, MTU, HEADER = 50e9, 500e-9, 4096, 64
GOODPUT = RATE * (MTU - HEADER) / MTU
EXACT = FluidSettings(tolerance=0.0)


def fabric(leaves: int, hosts: int, spines: int, policy: str, seed: int = 1, rate: float = RATE) -> FluidFabric:
    """A plain leaf-spine fabric on a clock of its own; `rate` is the spine links'."""
    topology = leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=Link(RATE, LATENCY),
        spine_link=Link(rate, LATENCY), hosts=[HostKind(leaves * hosts)],
    )  # fmt: skip
    return FluidFabric(Clock(), topology, policy, settings=EXACT, seed=seed)


def completion_s(network: FluidFabric, graph: MessageGraph) -> float:
    transfer = network.start(graph)
    network.clock.run(until=transfer.done)
    network.check_conservation()
    return float(np.nanmax(transfer.results.received_s))


def collectives() -> Iterator[CheckResult]:
    """Ring, halving-doubling and all-to-all on one leaf."""
    n, size = 16, 16 * 4032 * 256
    cases = (
        ("all_reduce", "ring", bounds.ring_all_reduce_s(size, n, GOODPUT, 2 * LATENCY)),
        ("all_reduce", "halving_doubling", bounds.halving_doubling_all_reduce_s(size, n, GOODPUT, 2 * LATENCY)),
        ("all_to_all", "direct", (n - 1) / n * size / GOODPUT + 2 * LATENCY),
    )
    for operation, algorithm, expected in cases:
        found = completion_s(fabric(1, n, 1, "ecmp"), ALGORITHMS[operation, algorithm](np.arange(n), size))
        yield CheckResult.relative(
            f"{operation} {algorithm}, 16 ranks, one leaf, s", expected, found, 1e-3, "closed form"
        )


def single_flow_and_incast() -> Iterator[CheckResult]:
    size = 16_000_000
    wire = size + HEADER * -(-size // (MTU - HEADER))
    found = completion_s(fabric(8, 8, 8, "ecmp"), message_graph([0], [8], [size]))
    yield CheckResult.relative("one 16 MB flow across the spine, s", wire / RATE + 4 * LATENCY, found, 1e-9, "algebra")
    for k in (3, 7):
        graph = patterns.incast(np.arange(16), 4032 * 100, fan_in=k)
        found = completion_s(fabric(2, 8, 8, "ecmp"), graph)
        hops = 2 if k <= 7 else 4
        yield CheckResult.relative(
            f"incast {k} -> 1, s", k * 409600 / RATE + hops * LATENCY, found, 1e-9, "algebra: the receiver's link"
        )


def largest_of_leaves(hosts: int, spines: int, leaves: int) -> dict[int, float]:
    """P(the largest uplink load is k) of `leaves` leaves that each hash `hosts` flows on `spines` links.

    P(one leaf's maximum <= k) = hosts! / spines^hosts * [x^hosts] (sum_{j<=k} x^j / j!)^spines; leaves are independent.
    """

    def at_most(k: int) -> float:
        ways = [Fraction(1)] + [Fraction(0)] * hosts
        for _ in range(spines):
            ways = [
                sum((ways[m - j] * comb(m, j) for j in range(min(k, m) + 1)), Fraction(0)) for m in range(hosts + 1)
            ]
        return float(ways[hosts] / spines**hosts) ** leaves

    return {k: at_most(k) - at_most(k - 1) for k in range(1, hosts + 1)}


def shift_law(num_seeds: int = 200) -> Iterator[CheckResult]:
    """The largest uplink load of the single-path shift against its exact law, and its completion times."""
    size = 4032 * 100
    counts = {3: 0, 4: 0, 5: 0}
    worst = 0.0
    for seed in range(1, num_seeds + 1):
        network = fabric(8, 8, 8, "ecmp", seed)
        graph = patterns.shift(np.arange(64), size, leaf_of_accelerator=network.topology.leaf_of_accelerator)
        found = completion_s(network, graph)
        payload, _ = network.link_bytes()
        up = (np.array(network.topology.link_tier) == "leaf-spine") & (
            np.array(network.topology.link_direction) == "up"
        )
        largest = round(payload[up].max() / size)
        counts[min(max(largest, 3), 5)] += 1
        worst = max(worst, abs(found - (largest * 409600 / RATE + 4 * LATENCY)) / found)
    law = largest_of_leaves(8, 8, 8)
    expected = [sum(p for k, p in law.items() if k <= 3), law[4], sum(p for k, p in law.items() if k >= 5)]
    test = stats.chisquare([counts[3], counts[4], counts[5]], [num_seeds * p for p in expected])
    p = float(test.pvalue)
    yield CheckResult(
        f"single-path shift, largest uplink load over {num_seeds} seeds (<= 3, 4, >= 5): p of chi-square",
        0.5, p, None, "p > 0.001", "exact occupancy law", p > 0.001,
    )  # fmt: skip
    yield CheckResult(
        "single-path shift: completion = largest load x one flow's time + latency", 0.0, worst, worst, "1e-9",
        "algebra", worst < 1e-9,
    )  # fmt: skip


def assigned_loads(most: int = 40) -> Iterator[CheckResult]:
    """The largest recorded payload load of assigned paths equals spraying's, for all numbers of flows and paths."""
    for policy in ("ethereal", "wrap_around"):
        worst, cases = 0.0, 0
        for s in range(1, most + 1):
            network = fabric(4, most, s, policy, seed=s)
            for n in range(1, most + 1):
                size = 7 * s // gcd(n, s)
                before, _ = network.link_bytes()
                hosts = np.arange(n)
                source = np.concatenate([hosts, hosts + most])
                destination = np.concatenate([hosts + 2 * most, hosts + 3 * most])
                transfer = network.start(message_graph(source, destination, size))
                network.clock.run(until=transfer.done)
                payload = network.link_bytes()[0] - before
                between = np.array(network.topology.link_tier) == "leaf-spine"
                worst = max(worst, abs(payload[between].max() / (n * size / s) - 1))
                cases += 1
        yield CheckResult(
            f"{policy}: largest payload load over spray's, {cases} cases (n, s)", 1.0, 1.0 + worst, worst, "1e-9",
            "theorem 1 of arXiv 2407.00550", worst < 1e-9,
        )  # fmt: skip


def max_min() -> Iterator[CheckResult]:
    """Rates of random traffic against the independent solver, and one case by hand."""
    worst = 0.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        network = fabric(3, 4, 2, ("ecmp", "spray")[seed % 2], seed, rate=RATE / 2)
        source = rng.integers(0, 12, 20)
        destination = (source + 1 + rng.integers(0, 11, 20)) % 12
        network.start(message_graph(source, destination, 10_000_000, queue_pairs=1))
        network.clock.run(until=1e-9)
        worst = max(worst, _worst_rate_error(network))
    yield CheckResult(
        "max-min rates of 20 random cases against exact fractions: largest relative error", 0.0, worst, worst, "1e-9",
        "independent solver", worst < 1e-9,
    )  # fmt: skip
    # Two flows share a receiver's link, a third has its sender to itself: halves, and one whole.
    network = fabric(1, 4, 1, "ecmp")
    network.start(message_graph([0, 1, 2], [3, 3, 0], 1_000_000))
    network.clock.run(until=1e-9)
    rates = sorted(network.current_rates()[0].tolist())
    error = max(abs(a / b - 1) for a, b in zip(rates, [RATE / 2, RATE / 2, RATE], strict=True))
    yield CheckResult("two flows into one link and one beside: R/2, R/2, R", 0.0, error, error, "1e-12", "algebra",
                      error < 1e-12)  # fmt: skip


def _worst_rate_error(network: FluidFabric) -> float:
    rates, routes = network.current_rates()
    t: Topology = network.topology
    flows = []
    for route in routes:
        flow: dict[str, Fraction] = {}
        for s in route[route >= 0]:
            for e in range(t.segment_start[s], t.segment_start[s + 1]):
                link = t.link_name[t.segment_link[e]]
                flow[link] = flow.get(link, Fraction(0)) + Fraction(float(t.segment_share[e]))
        flows.append(flow)
    capacity = {name: Fraction(float(rate)) for name, rate in zip(t.link_name, t.link_rate, strict=True)}
    exact = max_min_rates(capacity, flows, [Fraction(1)] * len(flows))
    return max(abs(float(r) / float(e) - 1) for r, e in zip(rates, exact, strict=True))
