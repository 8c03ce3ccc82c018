"""When requests arrive: arrival processes of an open loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sim.workload.rate_shape import RateShape

Float64 = NDArray[np.float64]


def poisson_gaps_s(rng: np.random.Generator, num: int, rate_per_s: float, burstiness: float) -> Float64:
    """Exponential gaps of mean 1 / rate; burstiness is ignored."""
    return rng.exponential(1.0 / rate_per_s, num)


def gamma_gaps_s(rng: np.random.Generator, num: int, rate_per_s: float, burstiness: float) -> Float64:
    """Gamma gaps of mean 1 / rate and shape `burstiness`, with the meaning of `vllm bench serve
    --burstiness`.

    Their coefficient of variation is 1 / sqrt(burstiness): 1 is a Poisson process, smaller is burstier.
    """
    return rng.gamma(burstiness, 1.0 / (rate_per_s * burstiness), num)


def constant_gaps_s(rng: np.random.Generator, num: int, rate_per_s: float, burstiness: float) -> Float64:
    """Equal gaps of 1 / rate; burstiness is ignored."""
    return np.full(num, 1.0 / rate_per_s)


ARRIVALS: dict[str, Callable[[np.random.Generator, int, float, float], Float64]] = {
    "poisson": poisson_gaps_s,
    "gamma": gamma_gaps_s,
    "constant": constant_gaps_s,
}


MOST_REQUESTS = 1 << 24
"""Expected within a duration; more would not fit in memory."""


def arrival_times_s(
    kind: str,
    rate_per_s: float,
    rng: np.random.Generator,
    *,
    num_requests: int | None = None,
    duration_s: float | None = None,
    burstiness: float = 1.0,
    shape: RateShape | None = None,
) -> Float64:
    """Arrival times from 0 on; request i comes after i + 1 gaps.

    As many as num_requests, or all before duration_s, or, with both, whichever ends first.
    shape: how the rate varies around its mean (None: it does not); gaps are those of its clock.

    Raises ValueError for an unknown kind, a rate or burstiness that is not positive and finite, or no end.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"unknown arrivals {kind!r}; known: {', '.join(ARRIVALS)}")
    for what, value in (("rate", rate_per_s), ("burstiness", burstiness), ("duration", duration_s)):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{what} of arrivals must be positive and finite, got {value}")
    if shape is not None:
        if duration_s is not None:
            duration_s = float(shape.integral(np.array([duration_s]))[0])
        even_s = arrival_times_s(
            kind, rate_per_s, rng, num_requests=num_requests, duration_s=duration_s, burstiness=burstiness
        )
        return shape.time_at(even_s)
    if num_requests is None and duration_s is None:
        raise ValueError("arrivals need an end: a number of requests or a duration")
    if num_requests is not None and num_requests < 1:
        raise ValueError(f"number of requests must be at least 1, got {num_requests}")
    if num_requests is not None:
        times_s = np.cumsum(ARRIVALS[kind](rng, num_requests, rate_per_s, burstiness))
        return times_s if duration_s is None else times_s[times_s < duration_s]
    assert duration_s is not None
    if rate_per_s * duration_s > MOST_REQUESTS:
        raise ValueError(
            f"about {rate_per_s * duration_s:.3g} requests in {duration_s:g} s are more than {MOST_REQUESTS}; shorten "
            "the duration, or give num_requests"
        )
    chunk = int(rate_per_s * duration_s) + 64
    gaps_s = ARRIVALS[kind](rng, chunk, rate_per_s, burstiness)
    while gaps_s.sum() < duration_s:
        gaps_s = np.concatenate([gaps_s, ARRIVALS[kind](rng, chunk, rate_per_s, burstiness)])
    times_s = np.cumsum(gaps_s)
    return times_s[times_s < duration_s]
