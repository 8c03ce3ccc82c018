"""A probe of a capacity search: one serving workload at another rate, and what its steady state shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.engine.random import RandomStreams
from sim.results.run_results import VariantResult
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_server import Server
from sim.scenario.clients import ClosedLoopArrivals
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving
from sim.serving.load import WARM_UP, queue_of
from sim.serving.metrics import serving_metrics
from sim.serving.request import COMPLETED, new_requests

LATENCIES = tuple(
    f"{statistic}_{latency}_ms"
    for latency in ("ttft", "tpot", "itl", "e2el")
    for statistic in ("mean", "median", "std", "p90", "p95", "p99")
)
"""What a target can bound: the latencies that every serving workload reports."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One seed at one rate, without what arrived during the warm-up.

    latencies_ms     by name, as in LATENCIES, and `<tenant>.<name>` of tenants; None where nothing completed
    output_tokens_per_s    generated between the first and the last arrival counted
    span_s           between those arrivals
    growth, num_late as in `Queue`; a request that was never scheduled waits until the run ends
    completed, failed, unfinished    of all that arrived, warm-up and all
    """

    label: str
    seed: int
    latencies_ms: dict[str, float | None]
    output_tokens_per_s: float | None
    span_s: float
    growth: float
    num_late: float
    completed: int
    failed: int
    unfinished: int


def probed(workload: str, result: VariantResult) -> Probed | None:
    """What a run's tables say of a workload in its steady state; None of a run that was interrupted."""
    if result.notes.get("partial"):
        return None
    requests = result.tables["requests"]
    requests = requests[(requests["workload"] == workload).to_numpy()].sort_values(["arrival_s", "request"])
    tokens = result.tables["token_times"]
    tokens = tokens[(tokens["workload"] == workload).to_numpy()]
    counted = requests.iloc[int(WARM_UP * len(requests)) :]
    admitted = counted[(counted["outcome"] != "failed").to_numpy()]
    arrival_s = admitted["arrival_s"].to_numpy(np.float64)
    first_s, last_s = (float(arrival_s[0]), float(arrival_s[-1])) if len(arrival_s) else (0.0, 0.0)
    time_s = tokens["time_s"].to_numpy(np.float64)
    in_window = int(((time_s > first_s) & (time_s <= last_s)).sum())
    scheduled_s = admitted["scheduled_s"].to_numpy(np.float64)
    end_s = max(last_s, float(time_s.max(initial=0.0)))
    queue = queue_of(arrival_s, scheduled_s, end_s)
    admitted = admitted.sort_values("request")  # as tokens are
    latencies_ms = _latencies(admitted, tokens)
    if "tenants" in result.tables:
        of = result.tables["tenants"]
        of = of[(of["workload"] == workload).to_numpy()]
        for tenant in dict.fromkeys(of["tenant"].tolist()):
            own = np.isin(admitted["request"].to_numpy(), of["request"].to_numpy()[(of["tenant"] == tenant).to_numpy()])
            latencies_ms |= {f"{tenant}.{name}": value for name, value in _latencies(admitted[own], tokens).items()}
    outcomes = requests["outcome"].value_counts()
    completed, failed, unfinished = (int(outcomes.get(o, 0)) for o in ("completed", "failed", "unfinished"))
    return Probed(
        result.name, result.seed, latencies_ms, in_window / (last_s - first_s) if last_s > first_s
        else None, queue.span_s, queue.growth, queue.num_late, completed, failed, unfinished,
    )  # fmt: skip


def _latencies(admitted: Any, tokens: Any) -> dict[str, float | None]:
    """Of completed requests, by their rows and their tokens' times: the metrics that a run reports."""
    done = admitted[(admitted["outcome"] == "completed").to_numpy()]
    columns = {name: done[name].to_numpy() for name in done.columns}
    requests = new_requests(columns["arrival_s"], columns["input_tokens"], columns["output_tokens"])
    for name in ("scheduled_s", "first_token_s", "finished_s", "num_preemptions"):
        requests[name] = columns[name]
    requests["num_generated"], requests["outcome"] = columns["output_tokens"], COMPLETED
    own = np.isin(tokens["request"].to_numpy(), columns["request"])
    found = serving_metrics(requests, tokens["time_s"].to_numpy()[own])
    return {name: found[name] for name in LATENCIES}


# --- the rate ---------------------------------------------------------------------------------------------------------


def serving_workload(scenario: Scenario, name: str) -> Serving:
    return next(w for w in scenario.workloads if isinstance(w, Serving) and w.name == name)


def written_rate(scenario: Scenario, name: str, seed: int) -> float | None:
    """The workload's mean rate as the scenario says, in requests a second; None where all arrive at one instant."""
    w = serving_workload(scenario, name)
    assert not isinstance(w.arrivals, ClosedLoopArrivals), "a closed loop has no rate to search"
    if w.arrivals.kind != "trace":
        return w.arrivals.rate_per_s
    arrival_s = Server(scenario, w, build_topology(scenario.cluster)).arrivals(RandomStreams(seed))
    elapsed_s = float(arrival_s[-1] - arrival_s[0])
    return (len(arrival_s) - 1) / elapsed_s if elapsed_s > 0 else None


def at_rate(scenario: Scenario, name: str, factor: float) -> tuple[Scenario, str]:
    """The scenario with the workload's arrivals `factor` times as fast, and how a file says so.

    Arrivals by a law go on until all have come: after a duration a low rate would have brought nobody.
    """
    w = serving_workload(scenario, name)
    key = "scale" if w.arrivals.kind == "trace" else "rate_per_s"
    value = factor * getattr(w.arrivals, key)
    update: dict[str, Any] = {"arrivals": w.arrivals.model_copy(update={key: value})}
    if key == "rate_per_s":
        update["duration_s"] = None
    changed = w.model_copy(update=update)
    workloads = tuple(changed if other is w else other for other in scenario.workloads)
    setting = f"scale: {value:.6g}" if key == "scale" else f"rate: {value:.6g} /s"
    return scenario.model_copy(update={"workloads": workloads}), setting


