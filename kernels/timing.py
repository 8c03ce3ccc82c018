"""Times of GPU work, in CUDA graphs, over inputs that the L2 cache does not hold, one way and another by turns.

A graph holds a call on each of several input sets, so that launches cost nothing and no call finds its inputs in L2,
which is flushed between replays. The ways of doing one thing are replayed in turn, round by round, so that a clock
that drifts drifts for all; the first of them runs under a second name as well, which shows the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Calls = Sequence[Callable[[], object]]
"""The same work on each input set."""

AGAIN = "again"
"""Ending of the name under which the first way runs a second time."""
WARM_UP = 3
LEAD_CYCLES = 1_000_000
"""Half a millisecond, in which the replay is submitted: the device must not wait for the host once the clock runs."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one call, one entry per replay."""

    seconds: np.ndarray

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p10_s(self) -> float:
        return float(np.percentile(self.seconds, 10))

    @property
    def p90_s(self) -> float:
        return float(np.percentile(self.seconds, 90))

    def over(self, other: Times) -> tuple[float, float, float]:
        """Median, p10 and p90 of the ratios of replays that were neighbours."""
        median, p10, p90 = np.percentile(self.seconds / other.seconds, (50, 10, 90))
        return float(median), float(p10), float(p90)


def graph_of(calls: Calls) -> torch.cuda.CUDAGraph:
    """All calls after each other. They run once before, so that what they compile or allocate is there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # where the inputs are being made
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def pass_over(target: torch.Tensor, source: torch.Tensor) -> None:
    """Read all of the source and write as much, by a kernel: a graph makes `copy_` a memory node, which is no kernel
    and on an H200 a third slower."""
    torch.neg(source, out=target)


def flush_bytes(device: int = 0) -> int:
    """Twice the L2 cache."""
    return 2 * torch.cuda.get_device_properties(device).L2_cache_size


def measure(ways: Mapping[str, Calls], rounds: int = 30, has_again: bool = True) -> dict[str, Times]:
    """Times of each way and, with has_again, of the first one again."""
    first = next(iter(ways))
    graphs = {name: graph_of(calls) for name, calls in ways.items()}
    if has_again:
        graphs[f"{first} {AGAIN}"] = graph_of(ways[first])
    num_calls = {name: len(ways[name.removesuffix(f" {AGAIN}")]) for name in graphs}
    dirty, clean = (torch.zeros(flush_bytes() // 4, dtype=torch.int32, device="cuda") for _ in range(2))
    names = list(graphs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            dirty.fill_(number)
            clean.sum()  # what the line above left in L2 is written back now, not while the clock runs
            torch.cuda._sleep(LEAD_CYCLES)
            begin.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            if number >= WARM_UP:
                found[name].append(begin.elapsed_time(end) / 1e3 / num_calls[name])
    return {name: Times(np.array(seconds)) for name, seconds in found.items()}


def rehearse(ways: Mapping[str, Calls]) -> None:
    """Run every call once, where there is no GPU to time it on."""
    for calls in ways.values():
        for call in calls:
            call()
