"""Latency and throughput of served requests, with the names of `vllm bench serve`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.serving.request import COMPLETED, FAILED, NOT_ARRIVED, UNFINISHED

Float64 = NDArray[np.float64]


def as_of(requests: NDArray[Any], token_time_s: Float64, now_s: float) -> tuple[NDArray[Any], Float64]:
    """Requests and token times as they stood at now_s, for an engine that has run ahead of the clock.

    Preemptions after now_s are still counted: of a run that was interrupted, for one that was to be cut at that moment
    has not run ahead of it (`Clock.cut_s`).
    """
    latest = np.nanmax(token_time_s, initial=-np.inf) if len(token_time_s) else -np.inf
    if latest <= now_s and not (requests["scheduled_s"] > now_s).any():
        return requests, token_time_s
    requests, token_time_s = requests.copy(), token_time_s.copy()
    token_time_s[token_time_s > now_s] = np.nan
    is_later = requests["finished_s"] > now_s
    requests["outcome"][is_later] = UNFINISHED
    for field in ("scheduled_s", "first_token_s", "finished_s"):
        requests[field][requests[field] > now_s] = np.nan
    requests["num_cached"][np.isnan(requests["scheduled_s"])] = 0
    known = np.concatenate([[0], np.cumsum(~np.isnan(token_time_s))])
    first = requests["first_token"]
    requests["num_generated"] = known[first + requests["num_output_tokens"]] - known[first]
    return requests, token_time_s


def inter_token_gaps_s(requests: NDArray[Any], token_time_s: Float64) -> Float64:
    """Every gap between output tokens of one request that did not come together, of the requests given.

    Tokens of one step come together, as one chunk of a stream, and `vllm bench serve` times chunks.
    """
    return gaps_of_each_s(requests, token_time_s)[0]


@njit(cache=True)
def gaps_of_each_s(requests: NDArray[Any], token_time_s: Float64) -> tuple[Float64, NDArray[np.int64]]:
    """The same, request by request, and how many each has."""
    num = 0
    for i in range(len(requests)):
        num += max(requests[i].num_generated - 1, 0)
    gaps_s = np.empty(num)
    num_of_each = np.zeros(len(requests), np.int64)
    gap = 0
    for i in range(len(requests)):
        first = requests[i].first_token
        before = gap
        for token in range(first + 1, first + requests[i].num_generated):
            if token_time_s[token] > token_time_s[token - 1]:
                gaps_s[gap] = token_time_s[token] - token_time_s[token - 1]
                gap += 1
        num_of_each[i] = gap - before
    return gaps_s[:gap], num_of_each


def serving_metrics(
    requests: NDArray[Any], token_time_s: Float64, over_s: float | None = None
) -> dict[str, float | None]:
    """The metrics of a serving workload; None where nothing is there to measure.

    Over completed requests:
        ttft = first token - arrival              tpot = (last token - first token) / (output tokens - 1)
        itl  = each gap between two steps' tokens e2el = last token - arrival
    with mean, median, standard deviation (of the population) and percentiles (linear between ranks), in ms.
    prefix_cache_hit_rate: share of the prompt tokens of all requests scheduled so far that the cache had then.
    Throughputs are per second of `duration_s`, from the first arrival to the last token of a completed
    request, or of over_s where it is given.
    """
    arrived = _those(requests, requests["outcome"] != NOT_ARRIVED)
    done = _those(arrived, arrived["outcome"] == COMPLETED)
    duration_s = float(done["finished_s"].max() - arrived["arrival_s"].min()) if len(done) else None
    span_s = duration_s if over_s is None else over_s
    num_input = int(done["num_prompt_tokens"].sum())
    num_output = int(done["num_output_tokens"].sum())
    metrics: dict[str, float | None] = {
        "arrived": len(arrived),
        "completed": len(done),
        "failed": int((arrived["outcome"] == FAILED).sum()),
        "unfinished": int((arrived["outcome"] == UNFINISHED).sum()),
        "duration_s": duration_s,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / span_s if span_s else None,
        "output_throughput": num_output / span_s if span_s else None,
        "total_token_throughput": (num_input + num_output) / span_s if span_s else None,
        "num_preemptions": int(arrived["num_preemptions"].sum()),
    }
    scheduled = _those(arrived, ~np.isnan(arrived["scheduled_s"]))
    num_asked = int(scheduled["num_prompt_tokens"].sum())
    metrics["prefix_cache_hit_rate"] = float(scheduled["num_cached"].sum() / num_asked) if num_asked else None
    return metrics | _latencies(done, token_time_s)


def _those(requests: NDArray[Any], which: NDArray[np.bool_]) -> NDArray[Any]:
    """Without a copy where that is all of them."""
    return requests if which.all() else requests[which]


def _latencies(done: NDArray[Any], token_time_s: Float64) -> dict[str, float | None]:
    several = done["num_output_tokens"] > 1
    tpot_s = (done["finished_s"] - done["first_token_s"])[several] / (done["num_output_tokens"][several] - 1)
    # One after the other: there may be a hundred million gaps.
    metrics = summary("ttft", done["first_token_s"] - done["arrival_s"]) | summary("tpot", tpot_s)
    metrics |= summary("itl", inter_token_gaps_s(done, token_time_s))
    return metrics | summary("e2el", done["finished_s"] - done["arrival_s"])


def summary(name: str, values_s: Float64) -> dict[str, float | None]:
    """Mean, median, deviation and percentiles in ms, by the names of `vllm bench serve`. Overwrites the values."""
    keys = [f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p90", "p95", "p99")]
    if not len(values_s):
        return dict.fromkeys(keys)
    mean = values_s.mean()
    median, p90, p95, p99 = np.percentile(values_s, [50, 90, 95, 99], overwrite_input=True)
    summary = (mean, median, _deviation(values_s, mean), p90, p95, p99)
    return {key: 1e3 * float(value) for key, value in zip(keys, summary, strict=True)}


def _deviation(values: Float64, mean: float) -> float:
    """Standard deviation of the population; in parts, for a copy of a hundred million gaps is a gigabyte."""
    parts = range(0, len(values), 1 << 20)
    return float(np.sqrt(sum(((values[i : i + (1 << 20)] - mean) ** 2).sum() for i in parts) / len(values)))
