"""Is the service stable? What every serving workload's queue says, in a word and in a sentence with the evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.results.drawing import under
from sim.results.metrics import number
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

    def sentence(self, workload: str, variant: str) -> str:
        """`chat under ecmp is overloaded: …`"""
        halfway, at_last = _count(self.waiting_halfway), _count(self.waiting_at_last_arrival)
        waiting = f"requests waiting: {halfway} half way through the arrivals, {at_last} at the last one"
        growth = f"waits grow by {number(self.wait_growth, 2)} s with each second of arrivals ({waiting})"
        why = {
            "stable": f"waits of late arrivals do not grow ({waiting})",
            "backlogged": f"{growth}, which chance can do; a longer run or more seeds would tell",
            "overloaded": f"{growth}: more arrive than are served, so that latencies depend on how long the run is",
            "too short": f"the arrivals are over within {FEWEST_LATENCIES} mean latencies, before anything is steady",
        }[self.label]
        label = "too short to judge" if self.label == "too short" else self.label
        return f"{workload}{under(variant)} is {label}: {why}."


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
    """A sentence per workload and variant; workloads that are stable in every variant share one."""
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
            lines += [load.sentence(workload, variant) for variant, load in of_variants.items()]
    return lines


def overloads(run: RunResults) -> list[str]:
    """The sentences of what is overloaded: there latencies say how long the run was."""
    return [
        load.sentence(workload, variant)
        for variant, by in loads(run).items()
        for workload, load in by.items()
        if load.label == "overloaded"
    ]


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
