"""Checks of the packet fabric against hand calculation and runs of an independent C++ packet simulator (htsim).

Those runs padded every packet to full size; the tolerance of a comparison covers the short last packet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim.engine.clock import Clock
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.validate.fabric_checks import HEADER, LATENCY, MTU, RATE, leaf_spine_of
from sim.validate.table import CheckResult
from sim.workload import patterns

REFERENCE = "htsim, 8 x 8 x 8, 400 Gbit/s"
SIZE = 16_000_000


def times_s(policy: str, graph: MessageGraph, seed: int = 1, settings: PacketSettings | None = None) -> tuple:
    """(last byte, last acknowledgement) of a graph on 8 leaves x 8 hosts x 8 spines."""
    network = PacketFabric(Clock(), leaf_spine_of(8, 8, 8), policy, settings=settings, seed=seed)
    transfer = network.start(graph)
    network.clock.run(until=transfer.done)
    network.settle()
    network.check_conservation()
    results = transfer.results
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
