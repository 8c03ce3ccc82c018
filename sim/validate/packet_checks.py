"""Checks of the packet fabric against hand calculation and runs of an independent C++ packet simulator (htsim).

Those runs padded every packet to full size; the tolerance of a comparison covers the short last packet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim.engine.clock import Clock
from sim.fabric.messages import MessageGraph, MessageResults, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.validate.fabric_checks import (
    HEADER,
    LATENCY,
    MTU,
    RATE,
    completion_s,
    fabric,
    leaf_spine_of,
    uplink_loads,
    wire_bytes,
)
from sim.validate.table import CheckResult
from sim.workload import patterns

REFERENCE = "htsim, 8 x 8 x 8, 400 Gbit/s"
SIZE = 16_000_000
SEEDS = (1, 2, 3)
PRODUCT = RATE * 8 * LATENCY + 4 * MTU
"""Bandwidth times the idle round trip of four links, bytes: what defaults of buffers and marks are measured in."""
NDP = PacketSettings(transport="ndp", port_buffer_bytes=8 * MTU, trim=True)
NSCC = PacketSettings(
    transport="nscc", port_buffer_bytes=int(PRODUCT), mark_from_bytes=round(0.2 * PRODUCT),
    mark_all_bytes=round(0.8 * PRODUCT), trim=True,
)  # fmt: skip
DCTCP = PacketSettings(transport="dctcp", mark_from_bytes=16 * MTU)
"""Marks above 16 packets, as the reference's queues do; the scenario's default is a seventh of a product, 7.5."""
LOSSLESS = PacketSettings(ports="full", pause_above_bytes=60_000, resume_below_bytes=50_000)


def carry(
    policy: str, graph: MessageGraph, seed: int = 1, settings: PacketSettings | None = None
) -> tuple[MessageResults, PacketFabric]:
    """A graph on 8 leaves x 8 hosts x 8 spines, to its last acknowledgement."""
    network = PacketFabric(Clock(), leaf_spine_of(8, 8, 8), policy, settings=settings, seed=seed)
    transfer = network.start(graph)
    network.clock.run(until=transfer.done)
    network.settle()
    network.check_conservation()
    return transfer.results, network


def times_s(policy: str, graph: MessageGraph, seed: int = 1, settings: PacketSettings | None = None) -> tuple:
    """(last byte, last acknowledgement)."""
    results, _ = carry(policy, graph, seed, settings)
    return float(results.received_s.max()), float(results.acknowledged_s.max())


def shift() -> MessageGraph:
    hosts = np.arange(64)
    return patterns.shift(hosts, SIZE, leaf_of_accelerator=hosts // 8)


def one_packet_flow() -> Iterator[CheckResult]:
    """n full packets and a short one over 4 links: (n + 3) full + short serialisations and 4 flights.

    The acknowledgement's 64 bytes take 4 more flights and serialisations on idle links.
    """
    full, rest = divmod(SIZE, MTU - HEADER)
    expected = (full + 3) * MTU / RATE + (rest + HEADER) / RATE + 4 * LATENCY
    received, acknowledged = times_s("ecmp", message_graph([0], [8], [SIZE]))
    yield CheckResult.relative("packets: one 16 MB flow, last byte, s", expected, received, 1e-9, "algebra")
    expected += 4 * (LATENCY + HEADER / RATE)
    yield CheckResult.relative("packets: its last acknowledgement, s", expected, acknowledged, 1e-9, "algebra")


def packet_references() -> Iterator[CheckResult]:
    """The shift and the all-to-all sprayed in turn at the switch, to the last acknowledgement."""
    _, found = times_s("spray", shift())
    yield CheckResult.relative("packets: shift, sprayed at the switch, s", 330.7e-6, found, 1e-3, REFERENCE)
    _, found = times_s("spray", shift(), settings=PacketSettings(ack_every=1))
    yield CheckResult.relative("packets: the same, every packet acknowledged, s", 334.4e-6, found, 1e-3, REFERENCE)
    hosts = np.arange(64)
    source = np.repeat(hosts, 63)
    graph = message_graph(source, (source + 1 + np.tile(np.arange(63), 64)) % 64, 1_000_000)
    _, found = times_s("spray", graph)
    yield CheckResult.relative("packets: all-to-all of 64, 1 MB a pair, sprayed, s", 1290e-6, found, 5e-3, REFERENCE)


def packet_shift_is_a_multiple() -> Iterator[CheckResult]:
    """On single paths the completion is the largest uplink load, a whole number, times one flow's time."""
    one, _ = times_s("ecmp", message_graph([0], [8], [SIZE]))
    worst = 0.0
    for seed in range(1, 11):
        received, _ = times_s("ecmp", shift(), seed=seed)
        load = received / one
        worst = max(worst, abs(load - round(load)) / load)
    name = "packets: single-path shift, completion as a multiple of one flow's, 10 seeds: largest error"
    yield CheckResult(name, 0.0, worst, worst, "0.01", f"algebra; {REFERENCE}, 40 seeds", worst <= 0.01)


def ndp_references() -> Iterator[CheckResult]:
    """The shift under NDP, sprayed by the senders in turn, and on single paths.

    Of k flows that each arrive at the full rate on one uplink, one packet in k passes whole and the others as headers,
    which take their part of it: k flows last k (1 + (k - 1) header / mtu) times as long as one.
    """
    found = float(np.mean([times_s("spray_round_robin", shift(), seed, NDP)[1] for seed in SEEDS]))
    name = "NDP: shift, sprayed in turn by the sender, s, mean of 3 seeds"
    yield CheckResult.relative(name, 337e-6, found, 0.02, REFERENCE)
    worst = 0.0
    for seed in SEEDS:
        _, found = times_s("ecmp", shift(), seed, NDP)
        k = round(largest_uplink_flows(seed))
        expected = k * (1 + (k - 1) * HEADER / MTU) * wire_bytes(SIZE) / RATE + 8 * LATENCY
        worst = max(worst, abs(found / expected - 1))
        if k == 4:
            name = "NDP: shift, single path, four flows on the fullest uplink, s"
            source = f"{REFERENCE}, one seed; the next row says that it had four"
            yield CheckResult.relative(name, 1376e-6, found, 0.02, source)
    name = "NDP: shift, single path, against a multiple of one flow and its trimmed headers, 3 seeds: largest error"
    yield CheckResult(name, 0.0, worst, worst, "0.05", "algebra", worst <= 0.05)


def largest_uplink_flows(seed: int) -> float:
    """Most flows of the shift on one uplink: in fluid, where the same seed gives the same paths."""
    network = fabric(8, 8, 8, "ecmp", seed)
    completion_s(network, shift())
    return float(uplink_loads(network).max() / SIZE)


def dctcp_reference() -> Iterator[CheckResult]:
    """A permutation, sprayed at random. The draw of pairs and paths is another one than the reference's."""
    found = float(np.mean([times_s("spray_random", permutation(seed), seed, DCTCP)[1] for seed in SEEDS]))
    name = "DCTCP: permutation, sprayed at random, s, mean of 3 seeds"
    yield CheckResult.relative(name, 414e-6, found, 0.1, f"{REFERENCE}, one seed")


def permutation(seed: int) -> MessageGraph:
    hosts = np.arange(64)
    return patterns.permutation(hosts, SIZE, rng=np.random.default_rng(seed), leaf_of_accelerator=hosts // 8)


def transports_behave() -> Iterator[CheckResult]:
    """Incasts to host 0 of flows from the leaves beside it."""
    eight = message_graph(np.arange(8, 16), np.zeros(8, int), SIZE)
    rates = 1 / carry("spray", eight, settings=NSCC)[0].received_s
    jain = float(rates.sum() ** 2 / (len(rates) * (rates**2).sum()))
    name = "NSCC: Jain's index of 8 flows on one link"
    yield CheckResult(name, 1.0, jain, 1 - jain, "> 0.98", "fairness: equal shares", jain > 0.98)
    bound = 8 * wire_bytes(SIZE) / RATE + 4 * LATENCY
    found, _ = times_s("spray", eight, settings=NDP)
    yield CheckResult.relative("NDP: incast of 8 x 16 MB, s", bound, found, 0.05, "algebra: the receiver's link")
    _, network = carry("spray", message_graph(np.arange(8, 64), np.zeros(56, int), 1_000_000), settings=LOSSLESS)
    columns = network.queue_columns(network.clock.now)
    drops, pauses = int(columns["drops"].sum()), int(columns["pauses"].sum())
    name = f"PFC: packets dropped in an incast of 56 x 1 MB, which pauses links {pauses} times"
    passed = drops == 0 and pauses > 0
    yield CheckResult(name, 0.0, float(drops), float(drops), "0", "lossless by construction", passed)
