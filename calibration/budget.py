"""How a point is repeated, and how long a grid takes about: what keeps a whole measurement within a quarter of an hour.

The estimate is for planning only; nothing it says gets into a table. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable

from calibration.points import Point
from models.hardware import ACCELERATORS, Accelerator

__all__ = ["ROUNDS", "estimated_s", "num_sets"]

ROUNDS = 20
"""Replays of a point that are timed."""
SET_BYTES, MOST_SETS = 2**28, 16

EFFICIENCY = 0.5
"""Assumed share of a data sheet's rates, here only."""
LEAST_CALL_S, REPLAY_S, POINT_S, COMPILE_S, START_S, PAGE_S = 5e-6, 7e-4, 0.03, 0.3, 8.0, 2e-4
"""About as on an H200, whose quick grid of 305 points took 40 s and whole one, then 1,998 points, 165 s: a short call;
flushing L2 and submitting a replay; making inputs and a graph; compiling the kernels of one shape; imports and the
first call of each library; all calls for one page."""


def num_sets(point: Point) -> int:
    """Input sets, and calls in one graph: many of small ones, one where one is far larger than any L2 cache."""
    return int(min(max(SET_BYTES // max(point.num_bytes, 1), 1), MOST_SETS))


def estimated_s(points: Iterable[Point], accelerator: Accelerator = ACCELERATORS["h100"]) -> float:
    """Seconds that measuring them takes about, compiled kernels not yet in the cache."""
    seconds, compiled = START_S, set()
    for point in points:
        if point.operator == "page_call":
            seconds += POINT_S + ROUNDS * point.columns["pages"] * PAGE_S
            continue
        bytes_per_s = accelerator.hbm_bytes_per_s * (0.01 if point.operator == "host_copy" else 1.0)
        least_s = max(point.num_bytes / bytes_per_s, point.num_flops / accelerator.bf16_flops_per_s)
        seconds += POINT_S + ROUNDS * (REPLAY_S + num_sets(point) * max(least_s / EFFICIENCY, LEAST_CALL_S))
        if point.operator in ("reroute", "align", "experts") and point.name not in ("eager", "grouped"):
            of = point.columns
            compiled.add((point.operator, of["top_k"], of.get("slots", of["num_experts"]), of["rows"]))
    return seconds + COMPILE_S * len(compiled)
