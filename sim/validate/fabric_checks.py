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
from sim.fabric.message_fabric import MessageFabric
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.topology import HostKind, Link, Topology, leaf_spine
from sim.validate.oracle import max_min_rates
from sim.validate.table import CheckResult
from sim.workload import patterns

RATE, LATENCY, MTU, HEADER = 50e9, 500e-9, 4096, 64
GOODPUT = RATE * (MTU - HEADER) / MTU
EXACT = FluidSettings(tolerance=0.0)


def leaf_spine_of(leaves: int, hosts: int, spines: int, rate: float = RATE) -> Topology:
    """A plain leaf-spine fabric; `rate` is the spine links'."""
    return leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=Link(RATE, LATENCY),
        spine_link=Link(rate, LATENCY), hosts=[HostKind(leaves * hosts)],
    )  # fmt: skip


def fabric(leaves: int, hosts: int, spines: int, policy: str, seed: int = 1, rate: float = RATE) -> FluidFabric:
    """The fluid fabric on it, exact, on a clock of its own."""
    return FluidFabric(Clock(), leaf_spine_of(leaves, hosts, spines, rate), policy, settings=EXACT, seed=seed)


def completion_s(network: MessageFabric, graph: MessageGraph) -> float:
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


def wire_bytes(size_bytes: int) -> int:
    return size_bytes + HEADER * -(-size_bytes // (MTU - HEADER))


def single_flow_and_incast() -> Iterator[CheckResult]:
    size = 16_000_000
    found = completion_s(fabric(8, 8, 8, "ecmp"), message_graph([0], [8], [size]))
    expected = wire_bytes(size) / RATE + 4 * LATENCY
    yield CheckResult.relative("one 16 MB flow across the spine, s", expected, found, 1e-9, "algebra")
    yield CheckResult.relative(
        "the same without latency, on wire bytes, s", 325.08e-6, found - 4 * LATENCY, 1e-5, "hand calculation"
    )
    for k in (3, 7, 15):
        graph = patterns.incast(np.arange(16), 4032 * 100, fan_in=k)
        found = completion_s(fabric(2, 8, 8, "ecmp"), graph)
        hops = 2 if k <= 7 else 4
        yield CheckResult.relative(
            f"incast {k} -> 1, s", k * 409600 / RATE + hops * LATENCY, found, 1e-9, "algebra: the receiver's link"
        )
    n, size = 64, 1_000_000
    found = completion_s(fabric(8, 8, 8, "spray"), patterns.all_to_all(np.arange(n), size))
    expected = (n - 1) * wire_bytes(size) / RATE + 4 * LATENCY
    yield CheckResult.relative(
        "all-to-all of 64 NICs, 1 MB a pair, sprayed, s", expected, found, 1e-9, "algebra: the NICs' bound"
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


def uplink_loads(network: FluidFabric) -> np.ndarray:
    """Payload recorded on the links from leaves to spines [leaves, spines]."""
    t = network.topology
    up = (np.array(t.link_tier) == "leaf-spine") & (np.array(t.link_direction) == "up")
    return network.link_bytes()[0][up].reshape(t.num_leaves, -1)


def shift_law(num_seeds: int = 200) -> Iterator[CheckResult]:
    """The largest uplink load of the single-path shift against its exact law, and its completion times."""
    size = 16_000_000
    counts = {3: 0, 4: 0, 5: 0}
    worst = 0.0
    for seed in range(1, num_seeds + 1):
        network = fabric(8, 8, 8, "ecmp", seed)
        graph = patterns.shift(np.arange(64), size, leaf_of_accelerator=network.topology.leaf_of_accelerator)
        found = completion_s(network, graph)
        largest = round(uplink_loads(network).max() / size)
        counts[min(max(largest, 3), 5)] += 1
        worst = max(worst, abs(found - (largest * wire_bytes(size) / RATE + 4 * LATENCY)) / found)
    law = largest_of_leaves(8, 8, 8)
    expected = [sum(p for k, p in law.items() if k <= 3), law[4], sum(p for k, p in law.items() if k >= 5)]
    test = stats.chisquare([counts[3], counts[4], counts[5]], [num_seeds * p for p in expected])
    bound = float(stats.chi2.isf(1e-3, 2))
    yield CheckResult(
        f"single-path shift, largest uplink load over {num_seeds} seeds (<= 3, 4, >= 5): chi-square",
        2.0, float(test.statistic), None, f"{bound:.1f} (p > 0.001)", "exact occupancy law",
        bool(test.pvalue > 1e-3),
    )  # fmt: skip
    yield CheckResult(
        "single-path shift of 16 MB: completion against largest load x 325.08 us + latency", 0.0, worst, worst, "1e-9",
        "algebra", worst < 1e-9,
    )  # fmt: skip


def expected_largest(flows: int, links: int) -> float:
    """E[largest load] of `flows` hashed on `links`, over the fair share flows / links.

    The multinomial is `links` independent Poisson counts, given their sum:
    P(largest <= k) = P(sum = flows, all <= k) / P(sum = flows), by convolution of the cut distributions.
    """
    counts = np.arange(flows + 1)
    pmf = stats.poisson.pmf(counts, flows / links)
    total = stats.poisson.pmf(flows, flows)
    mean = 0.0
    for k in range(flows):
        joint = np.ones(1)
        for _ in range(links):
            joint = np.convolve(joint, np.where(counts <= k, pmf, 0.0))[: flows + 1]
        exceeds = 1 - joint[flows] / total
        mean += exceeds
        if exceeds < 1e-9:
            break
    return float(mean * links / flows)


def hashed_loads(num_seeds: int = 50) -> Iterator[CheckResult]:
    """Mean of the largest recorded uplink load over the fair share, over seeds and 8 leaves each."""
    for flows, links, hosts in ((8, 8, 8), (16, 16, 16), (64, 8, 8), (256, 16, 16), (448, 8, 8)):
        per_host = flows // hosts
        ranks = np.arange(8 * hosts)
        samples = []
        for seed in range(1, num_seeds + 1):
            network = fabric(8, hosts, links, "ecmp", seed)
            if per_host == 7 * hosts:
                graph = patterns.all_to_all(ranks, 4032)
            else:  # every host to the first hosts of the next leaf
                source = np.repeat(ranks, per_host)
                place = (source + np.tile(np.arange(per_host), len(ranks))) % hosts
                graph = message_graph(source, (source // hosts + 1) % 8 * hosts + place, 4032)
            completion_s(network, graph)
            samples.extend(uplink_loads(network).max(axis=1) / (4032 * flows / links))
        expected, found = expected_largest(flows, links), float(np.mean(samples))
        half = float(stats.norm.isf(5e-4) * np.std(samples, ddof=1) / np.sqrt(len(samples)))
        yield CheckResult(
            f"largest load of {flows} hashed flows on {links} links, over the fair share", expected, found,
            abs(found / expected - 1), f"99.9 % interval, {half / expected:.3f}", "exact occupancy law",
            abs(found - expected) <= half,
        )  # fmt: skip


def assigned_loads(most: int = 40) -> Iterator[CheckResult]:
    """The largest recorded payload load of assigned paths equals spraying's, for all numbers of flows and paths.

    Three leaves, all six ordered pairs at once: every uplink and downlink carries two groups of n flows.
    """
    leaf = np.repeat(np.arange(3), 2)
    other = np.array([1, 2, 0, 2, 0, 1])
    worst = dict.fromkeys(("spray", "ethereal", "wrap_around"), 0.0)
    cases = 0
    for s in range(1, most + 1):
        networks = {policy: fabric(3, most, s, policy, seed=s) for policy in worst}
        between = np.array(networks["spray"].topology.link_tier) == "leaf-spine"
        so_far = {policy: np.zeros(between.sum()) for policy in worst}
        for n in range(1, most + 1):
            size = 7 * s // gcd(n, s)
            hosts = np.arange(n)[:, None]
            graph = message_graph((leaf * most + hosts).ravel(), (other * most + hosts).ravel(), size)
            for policy, network in networks.items():
                network.clock.run(until=network.start(graph).done)
                payload = network.link_bytes()[0][between]
                largest = (payload - so_far[policy]).max()
                so_far[policy] = payload
                worst[policy] = max(worst[policy], abs(largest / (2 * n * size / s) - 1))
            cases += 1
    for policy in ("ethereal", "wrap_around"):
        error = worst[policy] + worst["spray"]
        yield CheckResult(
            f"{policy}: largest payload load over spray's, {cases} cases (n, s)", 1.0, 1.0 + error, error, "1e-9",
            "theorem 1 of arXiv 2407.00550", error < 1e-9,
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
    half, third, quarter = RATE / 2, RATE / 3, RATE / 4
    for name, leaves, spines, pairs, expected in (
        # 0 and 1 share the way into 3; 2 has its own way.
        ("two flows into one link and one beside", 1, 1, [(0, 3), (1, 3), (2, 0)], [half, half, RATE]),
        # Four flows into 2 have R/4 each; what they leave on the way out of 0 goes to the flow to 1.
        ("parking lot", 1, 1, [(0, 1), (0, 2), (1, 2), (3, 2), (4, 2)], [3 * quarter] + [quarter] * 4),
        # Three flows of a leaf over its only uplink; the one that stays on the leaf has R.
        ("oversubscribed leaf", 2, 1, [(0, 8), (1, 9), (2, 10), (3, 4)], [third] * 3 + [RATE]),
    ):  # fmt: skip
        network = fabric(leaves, 8, spines, "ecmp")
        source, destination = np.array(pairs).T
        network.start(message_graph(source, destination, 1_000_000))
        network.clock.run(until=1e-9)
        rates = sorted(network.current_rates()[0].tolist())
        error = max(abs(a / b - 1) for a, b in zip(rates, sorted(expected), strict=True))
        yield CheckResult(
            f"max-min rates, {name}: largest relative error", 0.0, error, error, "1e-12", "algebra", error < 1e-12
        )


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
