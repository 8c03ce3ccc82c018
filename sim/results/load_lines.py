"""Is the service stable? What every serving workload's queue says, in a word and in a sentence with the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.results.drawing import SECONDS, sentence_of, under
from sim.results.metrics import format_value, number
from sim.results.run_results import RunResults
from sim.serving.load import FEWEST_LATENCIES, Load, load_of


@dataclass(frozen=True, slots=True)
class LoadFound:
    """One workload of one variant, over its seeds.

    wait_growth      seconds of waiting gained per second of arrivals (`sim.serving.load.wait_growth`)
    waiting_halfway, waiting_at_last_arrival    requests in the waiting line, means over the seeds
    """

    label: Load
    wait_growth: float
    waiting_halfway: float
    waiting_at_last_arrival: float


def _sentence(workload: str, label: Load, alike: Mapping[str, LoadFound], num_variants: int) -> str:
    """`chat under ecmp and spray is overloaded: …`, of variants with one label; of several numbers their range."""
    halfway, at_last = (
        _range([getattr(load, name) for load in alike.values()], _count)
        for name in ("waiting_halfway", "waiting_at_last_arrival")
    )
    waiting = f"requests waiting: {halfway} half way through the arrivals, {at_last} at the last one"
    grown = _range([load.wait_growth for load in alike.values()], lambda value: number(value, 2))
    growth = f"waits grow by {grown} s with each second of arrivals ({waiting})"
    why = {
        "stable": f"waits of late arrivals do not grow ({waiting})",
        "backlogged": f"{growth}, which chance can do; a longer run or more seeds would tell",
        "overloaded": f"{growth}: more arrive than are served, so that latencies depend on how long the run is",
        "too short": f"the arrivals are over within {FEWEST_LATENCIES} mean latencies, before anything is steady",
    }[label]
    said = "too short to judge" if label == "too short" else label
    where = under(sentence_of(list(alike))) if len(alike) < num_variants or len(alike) == 1 else " under every variant"
    return f"{workload}{where} is {said}: {why}."


def loads(run: RunResults) -> dict[str, dict[str, LoadFound]]:
    """By variant and workload; of results that ran to their end."""
    found: dict[str, dict[str, LoadFound]] = {}
    for variant in run.variants:
        by_workload: dict[str, list[dict[str, Any]]] = {}
        for result in run.of_variant(variant):
            if not result.notes.get("partial"):
                for workload, queue in result.notes.get("queues", {}).items():
                    by_workload.setdefault(workload, []).append(queue)
        if by_workload:
            found[variant] = {workload: _judged(queues) for workload, queues in by_workload.items()}
    return found


def load_lines(run: RunResults) -> list[str]:
    """A sentence per workload and label, with the variants that have it."""
    found = loads(run)
    lines = []
    for workload in dict.fromkeys(name for by in found.values() for name in by):
        of_variants = {variant: by[workload] for variant, by in found.items() if workload in by}
        if len(of_variants) > 1 and {load.label for load in of_variants.values()} == {"stable"}:
            worst = max(load.wait_growth for load in of_variants.values())
            lines.append(
                f"{workload} is stable in every variant: waits of late arrivals do not grow (at most "
                f"{number(max(worst, 0.0), 3)} s with each second of arrivals)."
            )
        else:
            lines += [
                _sentence(workload, label, alike, len(run.variants)) for label, alike in _by_label(of_variants).items()
            ]
    return lines + herds(run)


def overloads(run: RunResults) -> list[str]:
    """The sentences of what is overloaded: there latencies say how long the run was."""
    found = loads(run)
    lines = []
    for workload in dict.fromkeys(name for by in found.values() for name in by):
        alike = _by_label({v: by[workload] for v, by in found.items() if workload in by}).get("overloaded")
        if alike:
            lines.append(_sentence(workload, "overloaded", alike, len(run.variants)))
    return lines


def _by_label(of_variants: Mapping[str, LoadFound]) -> dict[Load, dict[str, LoadFound]]:
    found: dict[Load, dict[str, LoadFound]] = {}
    for variant, load in of_variants.items():
        found.setdefault(load.label, {})[variant] = load
    return found


HERD = 1.1
"""How much longer p99 has to be with the first requests than without them to be worth a word."""


def herds(run: RunResults) -> list[str]:
    """A sentence for each workload whose clients all begin at once, where that makes its p99 time to first token."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for variant in run.variants:
        seen: dict[str, list[tuple[float, float]]] = {}
        for result in run.of_variant(variant):
            for workload, queue in result.notes.get("queues", {}).items():
                if queue.get("p99_ttft_later_s") is not None:
                    seen.setdefault(workload, []).append((queue["p99_ttft_s"], queue["p99_ttft_later_s"]))
        for workload, pairs in seen.items():
            with_s, without_s = (float(mean) for mean in np.mean(pairs, axis=0))
            if with_s > HERD * without_s:
                found.setdefault(workload, {})[variant] = (with_s, without_s)
    lines = []
    for workload, by in found.items():
        worst = max(by, key=lambda variant: by[variant][0] / by[variant][1])
        with_s, without_s = by[worst]
        also = f" (and by more than a tenth longer{under(f'{len(by) - 1} more')})" if len(by) > 1 else ""
        lines.append(
            f"The clients of {workload} all begin at once and wait for one another: p99 time to first token is "
            f"{_seconds(with_s)} with and {_seconds(without_s)} without their first requests{under(worst)}{also}; "
            "arrivals: {ramp: …} lets them begin over a time."
        )
    return lines


def _seconds(value_s: float) -> str:
    return format_value(value_s, SECONDS)


def _range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """`0.12 to 0.31`, or the one that all are."""
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _judged(queues: Sequence[dict[str, Any]]) -> LoadFound:
    growth = [queue["growth"] for queue in queues]
    latencies_s = [math.inf if queue["mean_latency_s"] is None else queue["mean_latency_s"] for queue in queues]
    span_s = float(np.mean([queue["span_s"] for queue in queues]))
    label = load_of(growth, [queue["num_late"] for queue in queues], span_s, float(np.mean(latencies_s)))
    halfway, at_last = (float(np.mean([queue[name] for queue in queues])) for name in
                        ("waiting_halfway", "waiting_at_last"))  # fmt: skip
    return LoadFound(label, float(np.mean(growth)), halfway, at_last)


def _count(value: float) -> str:
    return number(value, 0 if value.is_integer() or value >= 10 else 1)
