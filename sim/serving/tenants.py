"""Who sends a request and what was promised: metrics of each tenant, and of requests within their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.serving.metrics import gaps_of_each_s, serving_metrics
from sim.serving.request import COMPLETED, FAILED, NOT_ARRIVED, TIMED_OUT

Bools = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Counts = Callable[[Bools], Mapping[str, float | None]]

PERCENTILES = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
TARGETS = tuple(
    f"{statistic}_{latency}_ms" for latency in ("ttft", "tpot", "itl", "e2el") for statistic in ("mean", *PERCENTILES)
)
"""What a target bounds, in ms."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """Those who share a workload.

    names     none where nobody is told apart; then `targets` has one entry, for all
    of        [requests] whose request it is: an index into targets, and into names
    targets   of each: upper bounds in ms, by names of TARGETS
    """

    names: tuple[str, ...]
    of: NDArray[np.int16]
    targets: tuple[Mapping[str, float], ...]

    def metrics(
        self, requests: NDArray[Any], token_time_s: Float64, counts: Counts | None = None
    ) -> dict[str, float | None]:
        """request_goodput and slo_attainment of the workload, where anybody has targets; then `<tenant>.<metric>`.

            request_goodput    completed requests within all their targets, a second of the workload's duration
            slo_attainment     the same as a share of all that ended: completed, failed or given up

        A tenant's other metrics are those of `serving_metrics` over its requests, throughputs over the workload's
        duration, so that they add up: arrived = completed + failed + unfinished, and timed_out where clients give up.
        Goodput is that of `vllm bench serve --goodput`. counts: further counts of some of the requests, by name.
        """
        done = requests["outcome"] == COMPLETED
        ended = done | np.isin(requests["outcome"], (FAILED, TIMED_OUT))
        is_good = np.zeros(len(requests), dtype=bool)
        for tenant, targets in enumerate(self.targets):
            own = done & (self.of == tenant)
            is_good[own] = within_targets(requests[own], token_time_s, targets)
        duration_s = serving_duration_s(requests)
        found: dict[str, float | None] = {}
        if any(self.targets):
            found |= _goodput(is_good, ended, duration_s)
        for tenant, name in enumerate(self.names):
            own = self.of == tenant
            metrics = serving_metrics(requests[own], token_time_s, over_s=duration_s)
            if counts is not None:
                metrics |= counts(own)
            if self.targets[tenant]:
                metrics |= _goodput(is_good & own, ended & own, duration_s)
            found |= {f"{name}.{key}": value for key, value in metrics.items()}
        return found


def serving_duration_s(requests: NDArray[Any]) -> float | None:
    """From the first arrival to the last token of a completed request."""
    arrived = requests[requests["outcome"] != NOT_ARRIVED]
    done = arrived[arrived["outcome"] == COMPLETED]
    return float(done["finished_s"].max() - arrived["arrival_s"].min()) if len(done) else None


def _goodput(is_good: Bools, ended: Bools, duration_s: float | None) -> dict[str, float | None]:
    num_ended = int(ended.sum())
    return {
        "request_goodput": int(is_good.sum()) / duration_s if duration_s else None,
        "slo_attainment": int(is_good.sum()) / num_ended if num_ended else None,
    }


def within_targets(requests: NDArray[Any], token_time_s: Float64, targets: Mapping[str, float]) -> Bools:
    """Whether each of these completed requests keeps every target by itself.

    A request has one time to first token, one time per output token and one end-to-end latency, so that mean and
    percentiles bound the same number; of times between tokens the target's own statistic is taken over the request's
    gaps. A request with one output token has no gap and keeps every bound on them.
    """
    is_within = np.ones(len(requests), dtype=bool)
    latencies: dict[str, Float64] = {
        "ttft": requests["first_token_s"] - requests["arrival_s"],
        "e2el": requests["finished_s"] - requests["arrival_s"],
        "tpot": (requests["finished_s"] - requests["first_token_s"]) / np.maximum(requests["num_generated"] - 1, 1),
    }
    for name, bound_ms in targets.items():
        statistic, latency, _ = name.split("_")
        found_s = latencies[latency] if latency in latencies else _of_gaps(requests, token_time_s, statistic)
        is_within &= 1e3 * found_s <= bound_ms
    return is_within


def _of_gaps(requests: NDArray[Any], token_time_s: Float64, statistic: str) -> Float64:
    """A statistic of each request's own times between tokens; 0 where there are none. Percentiles linear in rank."""
    gaps_s, num = gaps_of_each_s(requests, token_time_s)
    found_s = np.zeros(len(requests))
    some = num > 0
    first = (np.cumsum(num) - num)[some]
    if not len(first):
        return found_s
    if statistic == "mean":
        found_s[some] = np.add.reduceat(gaps_s, first) / num[some]
        return found_s
    owner = np.repeat(np.arange(len(requests)), num)
    ranked = gaps_s[np.lexsort((gaps_s, owner))]
    rank = PERCENTILES[statistic] / 100 * (num[some] - 1)
    below = np.floor(rank).astype(np.int64)
    above = np.minimum(below + 1, num[some] - 1)
    low, high = ranked[first + below], ranked[first + above]
    found_s[some] = low + (high - low) * (rank - below)
    return found_s
