"""Speed of the fluid fabric. Each case runs in a process of its own, after a small one that loads the compiled code."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sim.collectives.algorithms import ALGORITHMS
from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric
from sim.fabric.messages import MessageGraph
from sim.fabric.topology import HostKind, Link, LinkOverride, leaf_spine
from sim.workload import patterns

LINK = Link(50e9, 500e-9)
MESSAGE_BYTES = 1_000_000


def _run(leaves: int, hosts: int, spines: int, policy: str, graph: MessageGraph, slow_link: bool = False) -> None:
    overrides = {"leaf0-spine0": LinkOverride(12.5e9)} if slow_link else {}
    topology = leaf_spine(
        leaves=leaves, spines=spines, hosts_per_leaf=hosts, host_link=LINK, spine_link=LINK,
        hosts=[HostKind(leaves * hosts)], overrides=overrides,
    )  # fmt: skip
    fabric = FluidFabric(Clock(), topology, policy)
    transfer = fabric.start(graph)
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()


def exchange(leaves: int, policy: str) -> int:
    """All-to-all of `leaves` x 32 NICs over 32 spines, 1 MB a pair; returns the number of messages."""
    graph = patterns.all_to_all(np.arange(32 * leaves), MESSAGE_BYTES)
    _run(leaves, 32, 32, policy, graph)
    return graph.num_messages


def uneven() -> int:
    """No symmetry to exploit: 16 x 16 x 16, one slow link, lognormal sizes."""
    graph = patterns.all_to_all(np.arange(256), MESSAGE_BYTES)
    sizes = np.random.default_rng(1).lognormal(np.log(MESSAGE_BYTES), 0.5, graph.num_messages).astype(np.int64)
    _run(16, 16, 16, "ecmp", replace(graph, size_bytes=sizes), slow_link=True)
    return graph.num_messages


def ring(jitter_s: float, policy: str = "ecmp") -> int:
    """Ring all-reduce of 1,024 ranks, 2,046 steps."""
    ranks = np.arange(1024)
    graph = ALGORITHMS["all_reduce", "ring"](ranks, 1 << 20)
    late_s = np.random.default_rng(1).random(1024) * jitter_s
    _run(32, 32, 32, policy, replace(graph, earliest_s=late_s[graph.source]))
    return graph.num_messages


CASES: dict[str, tuple[Callable[[], int], float]] = {
    "all-to-all of 1,024 NICs, ecmp, s": (lambda: exchange(32, "ecmp"), 20.0),
    "all-to-all of 1,024 NICs, spray, s": (lambda: exchange(32, "spray"), 10.0),
    "all-to-all of 1,024 NICs, ethereal, s": (lambda: exchange(32, "ethereal"), 10.0),
    "all-to-all of 2,048 NICs, ecmp, s": (lambda: exchange(64, "ecmp"), 150.0),
    "all-to-all of 256 NICs, lognormal sizes, a slow link, s": (uneven, 20.0),
    "ring all-reduce of 1,024 ranks, lockstep, s": (lambda: ring(0.0), 5.0),
    "ring all-reduce of 1,024 ranks, 1 us jitter, s": (lambda: ring(1e-6), 30.0),
}


def _measure(name: str, sender: Any) -> None:
    _run(2, 2, 2, "ethereal" if "ethereal" in name else "spray" if "spray" in name else "ecmp",
         patterns.all_to_all(np.arange(4), 1000))  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    num_messages = CASES[name][0]()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sender.send((wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, num_messages))


def run() -> list[dict[str, Any]]:
    """One row per promise: value is processor seconds of one core, compile time excluded; GiB is the peak."""
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, float] = {}
    for name, (_, target) in CASES.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(name, sender))
        process.start()
        try:
            wall, cpu, peak, num_messages = receiver.recv()
        finally:
            process.join()
        seconds[name] = cpu
        rows.append(_row(name, cpu, "s", target, cpu <= target, wall))
        if "1,024 NICs, ecmp" in name:
            rows.append(_row(name.replace(", s", ", peak memory"), peak, "GiB", 4.0, peak <= 4.0))
        if "lockstep" in name:
            rate = num_messages / cpu
            rows.append(_row("coupled messages in a dependency graph", rate, "1/s", 1e6, rate >= 1e6))
    ratio = seconds["all-to-all of 2,048 NICs, ecmp, s"] / seconds["all-to-all of 1,024 NICs, ecmp, s"]
    rows.append(_row("2,048 against 1,024 NICs: four times the flows", ratio, "x", 9.0, ratio <= 9.0))
    return rows


def _row(name: str, value: float, unit: str, target: float, ok: bool, wall: float | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "target": target, "ok": bool(ok), "wall_s": wall}
