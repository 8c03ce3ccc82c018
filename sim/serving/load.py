"""When a queue counts as stable: what a run's arrivals and waits say of its load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

WARM_UP = 0.1
"""Share of the requests, the first to arrive, that no judgement counts: the service was still filling up."""

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


@dataclass(frozen=True, slots=True)
class Queue:
    """What one run says of its queue.

    growth, num_late   as `wait_growth` gives them
    span_s             between the first and the last arrival
    waiting_halfway, waiting_at_last    requests that had arrived and not been scheduled, half way of that span and at
                       its end
    """

    growth: float
    num_late: float
    span_s: float
    waiting_halfway: int
    waiting_at_last: int


@dataclass(frozen=True, slots=True)
class Herd:
    """Clients that begin at one instant, and what their first requests do to the time to first token.

    num_at_once            such requests
    p99_ttft_s             of all completed requests
    p99_ttft_later_s       of all but those; None where there are no others
    """

    num_at_once: int
    p99_ttft_s: float
    p99_ttft_later_s: float | None


def herd_of(arrival_s: Float64, first_token_s: Float64) -> Herd | None:
    """Of completed requests; None where none was sent at the first of these instants together with another."""
    is_first = arrival_s == arrival_s.min(initial=np.inf)
    if is_first.sum() < 2:
        return None
    ttft_s = first_token_s - arrival_s
    later_s = float(np.percentile(ttft_s[~is_first], 99)) if not is_first.all() else None
    return Herd(int(is_first.sum()), float(np.percentile(ttft_s, 99)), later_s)


def queue_of(arrival_s: Float64, scheduled_s: Float64, end_s: float) -> Queue:
    """Of requests in order of arrival; one that was never scheduled (NaN) waits until end_s."""
    if len(arrival_s) == 0:
        return Queue(0.0, 0.0, 0.0, 0, 0)
    first_s, last_s = float(arrival_s[0]), float(arrival_s[-1])
    scheduled_s = np.where(np.isnan(scheduled_s), max(last_s, end_s), scheduled_s)
    growth, num_late = wait_growth(arrival_s, scheduled_s - arrival_s)
    halfway, at_last = (
        int(((arrival_s <= time_s) & (scheduled_s > time_s)).sum()) for time_s in ((first_s + last_s) / 2, last_s)
    )
    return Queue(growth, num_late, last_s - first_s, halfway, at_last)
