"""The highest rate at which a service holds its targets: the search, and when a queue counts as stable.

The search knows a rate and whether it holds, nothing of simulations.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

MOST_DOUBLINGS = 20
"""From the first rate, up or down: a factor of a million."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rate holds, and if not, what misses; is_idle: requests hardly meet, so that no lower rate is better."""

    holds: bool
    missed: str | None = None
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found.

    rate        the highest that holds; None where none did
    next_rate   the lowest tried above it, which does not hold; None where all did
    limit       what misses at next_rate
    """

    rate: float | None
    next_rate: float | None
    limit: str | None
    num_probes: int


def search(first_rate: float, tolerance: float) -> Generator[float, Verdict, Capacity]:
    """Yields the rate to try next, is sent its verdict, and returns what was found.

    Doubles from first_rate while it holds, or halves until it does, then halves the bracket in the logarithm of the
    rate until next_rate <= (1 + tolerance) rate. Verdicts come with noise, and latencies need not rise with the rate,
    so what is promised is what was tried: every rate tried up to `rate` held, and every rate tried above it did not.

    Raises ValueError for a rate or a tolerance that is not positive and finite.
    """
    for what, value in (("rate", first_rate), ("tolerance", tolerance)):
        if not 0 < value < math.inf:
            raise ValueError(f"the {what} of a search must be positive and finite, got {value}")
    low: float | None = None
    high: float | None = None
    rate, num, limit = first_rate, 0, None
    while True:
        verdict = yield rate
        num += 1
        if verdict.holds:
            low = rate
        else:
            high, limit = rate, verdict.missed
        if low is not None and high is not None:
            if high <= (1 + tolerance) * low:
                break
            rate = math.sqrt(low * high)
        elif num > MOST_DOUBLINGS or (low is None and verdict.is_idle):
            break
        else:
            rate = 2 * low if low is not None else first_rate / 2**num
    return Capacity(low, high, limit, num)


# --- is it stable? ----------------------------------------------------------------------------------------------------

Load = Literal["stable", "backlogged", "overloaded", "too short"]

GROWTH = 0.02
"""Seconds of waiting gained per second of arrivals that are too many: 2 % more arrive than are served."""
FEWEST_LATENCIES = 3
"""Arrivals that are over within fewer mean latencies were a burst: the service never came to a steady state."""


def wait_growth(arrival_s: Float64, wait_s: Float64) -> tuple[float, float]:
    """How fast the wait of late arrivals grows, and over how many arrivals that was seen.

        growth = (mean wait of the last quarter - of the one before) / (mean arrival of the last - of the one before)

    A queue that is served at rate mu while lambda > mu arrive gains lambda / mu - 1 seconds of waiting a second; a
    stable one gains nothing. Of arrivals at one instant, or fewer than four, it is 0.
    """
    quarter = len(arrival_s) // 4
    if quarter == 0:
        return 0.0, 0.0
    late, before = slice(-quarter, None), slice(-2 * quarter, -quarter)
    elapsed_s = float(arrival_s[late].mean() - arrival_s[before].mean())
    return (float(wait_s[late].mean() - wait_s[before].mean()) / elapsed_s if elapsed_s > 0 else 0.0), quarter


def load_of(
    growth: Sequence[float], num_arrivals: Sequence[float], arrivals_span_s: float, mean_latency_s: float
) -> Load:
    """What the runs of one rate, one per seed, say about its queue.

        overloaded   the wait grows by more than GROWTH, and by more than chance
        backlogged   by more than GROWTH, but chance can do that: a longer run or more seeds would tell
        too short    no growth, but the arrivals are over within FEWEST_LATENCIES mean latencies
        stable       none of these

    Chance is two standard deviations of a queue loaded just to its limit, whose wait after n arrivals has moved by
    sqrt(2 n) / lambda (of exponential gaps and service times):  2 sqrt(2 / n) seconds a second, n over all seeds.
    Leaves out: a trace whose own rate rises towards its end looks backlogged.
    """
    mean, n = float(np.mean(growth)), float(np.sum(num_arrivals))
    if mean > GROWTH:
        return "overloaded" if mean > 2 * math.sqrt(2 / n) else "backlogged"
    return "too short" if arrivals_span_s < FEWEST_LATENCIES * mean_latency_s else "stable"
