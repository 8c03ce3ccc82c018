"""The highest rate at which a service holds its targets: the search.

The search knows a rate and whether it holds, nothing of simulations.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

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
