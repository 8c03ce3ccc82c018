"""What can be ruled out before anything runs: least latencies and least load of a serving workload, by closed forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.cost.build import step_table
from models.cost.floors import Work, least_seconds
from models.cost.priced import measured_step
from models.cost.step import StepTable
from sim.capacity_probe import WARM_UP
from sim.engine.random import RandomStreams
from sim.scenario.build_server import Server
from sim.serving.replica import refusals
from sim.serving.request import new_requests
from sim.serving.tenants import PERCENTILES

Float64 = NDArray[np.float64]

KNOWN = {
    "kind", "name", "model", "precision", "replicas", "parallelism", "ranks", "batching", "kv", "router", "arrivals",
    "lengths", "trace", "num_requests", "duration_s", "host_time_s", "experts", "tenants", "targets", "start_s",
    "jitter_s", "stop",
}  # fmt: skip
KNOWN_BATCHING = {"policy", "max_num_seqs", "max_num_batched_tokens", "async_scheduling", "cuda_graphs"}
"""Keys with which the closed forms hold; whatever else a scenario sets is simulated only."""


@dataclass(frozen=True, slots=True)
class Floors:
    """What no simulation of a workload can undercut, between pipeline stages messages take no time.

    latencies_ms   of its targets, the mean over the seeds; without those of which nothing is known
    busy           replicas that are kept busy by the work that arrives: more than there are, and the queue grows
    """

    latencies_ms: dict[str, float]
    busy: float


NOTHING_KNOWN = Floors({}, 0.0)


def floors_of(server: Server, seeds: Sequence[int], targets: Mapping[str, float]) -> Floors:
    """The closed forms for a workload on replicas of this kind, over the requests of each seed, warm-up left out.

        time to first token   >= least seconds of the prompt (of one token where prompts may share blocks)
        time between tokens   >= least seconds of a step with one decode at the prompt's length, or host_time
        end to end            >= the first, and (output tokens - 1) times the second
        busy                  = least seconds of all requests / stages / (last arrival - first)

    If each request takes at least b_i, then the mean and every percentile are at least those of the b_i. A standard
    deviation is not bounded so.

    NOTHING_KNOWN for expert parallelism, whose steps the fabric prolongs, for adapters, runs that are cut short, and
    for keys that this file does not know.
    """
    if not _holds_for(server):
        return NOTHING_KNOWN
    drawn = [server.requests(RandomStreams(seed)) for seed in seeds]
    table = _table(server, drawn)
    found: dict[str, list[float]] = {}
    busy = []
    for seed, (arrival_s, prompt, output) in zip(seeds, drawn, strict=True):
        is_admitted = np.array([r is None for r in refusals(new_requests(arrival_s, prompt, output), server.limits)])
        if not is_admitted.any():
            return NOTHING_KNOWN
        shares_blocks = server.contents(prompt, np.zeros(len(prompt), np.int64)) is not None
        fed = np.ones_like(prompt) if shares_blocks else prompt
        busy.append(_busy(server, table, arrival_s[is_admitted], prompt[is_admitted], fed[is_admitted],
                          output[is_admitted]))  # fmt: skip
        is_counted = is_admitted & (np.arange(len(prompt)) >= int(WARM_UP * len(prompt)))
        tenants = server.tenants(RandomStreams(seed), len(prompt))
        for name in targets:
            tenant, _, metric = name.rpartition(".")
            own = is_counted & (tenants.of == tenants.names.index(tenant)) if tenant else is_counted
            first_s, gap_s = _least_latencies(server, table, prompt[own], fed[own])
            least = _statistic(metric, first_s, gap_s, output[own])
            if least is not None:
                found.setdefault(name, []).append(1e3 * least)
    whole = {name: float(np.mean(values)) for name, values in found.items() if len(values) == len(seeds)}
    return Floors(whole, float(np.mean(busy)))


def _holds_for(server: Server) -> bool:
    w = server.w
    is_known = w.model_fields_set <= KNOWN and w.batching.model_fields_set <= KNOWN_BATCHING
    # Tensor ranks step as one, and stages take together what the uncut model takes: all that is allowed.
    other = w.parallelism.model_copy(update={"tensor": 1, "pipeline": 1})
    return is_known and server.scenario.max_time_s is None and other == type(other)()


def _table(server: Server, drawn: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> StepTable:
    prompt, output = (np.concatenate([each[i] for each in drawn]) for i in (1, 2))
    costs, known, whole = server.costs(prompt, output), server.measured(), replace(server.parallelism, pipeline=1)
    if known is None:
        return step_table(server.architecture, server.accelerator, whole, **costs)
    return measured_step(
        known, server.architecture, server.accelerator, whole, **costs,
        max_seqs=server.w.batching.max_num_seqs, max_context=int(prompt.max() + output.max()),
    ).table  # fmt: skip


def _least(server: Server, table: StepTable, work: Work) -> Float64:
    """Of accelerator and host, whichever takes longer."""
    batching = server.w.batching
    longest = table.curves.shape[1] - 1 if table.curves.size else len(table.distinct_experts) - 1
    most_tokens = batching.max_num_batched_tokens
    if not batching.is_chunked:  # a whole prompt may be a step of its own
        most_tokens = max(longest, most_tokens, batching.max_num_seqs, int(work.tokens.max()))
    seconds, steps = least_seconds(table, work, most_tokens, batching.max_num_seqs)
    return np.maximum(seconds, steps * server.w.host_time_s * server.w.parallelism.pipeline)  # each stage has a host


def _busy(
    server: Server, table: StepTable, arrival_s: Float64, prompt: np.ndarray, fed: np.ndarray, output: np.ndarray
) -> float:
    span_s = float(arrival_s[-1] - arrival_s[0])
    if span_s <= 0:
        return 0.0
    decodes = (output - 1).astype(np.float64)
    # the j-th token after the first reads the prompt and j more
    context = decodes * prompt + decodes * (decodes + 1) / 2
    total = Work(*(np.array([float(np.sum(x))]) for x in (fed + decodes, decodes, output, context)))
    return float(_least(server, table, total)[0]) / server.w.parallelism.pipeline / span_s


def _least_latencies(
    server: Server, table: StepTable, prompt: np.ndarray, fed: np.ndarray
) -> tuple[Float64, Float64]:
    """Of each request: (to the first token, between two)."""
    one, none = np.ones(len(prompt)), np.zeros(len(prompt))
    if not len(prompt):
        return none, none
    first_s = _least(server, table, Work(fed.astype(np.float64), none, one, none))
    return first_s, _least(server, table, Work(one, one, one, prompt + 1.0))


def _statistic(metric: str, first_s: Float64, gap_s: Float64, output: np.ndarray) -> float | None:
    statistic, latency, _ = metric.split("_")
    several = output > 1
    values = {
        "ttft": first_s, "tpot": gap_s[several], "itl": np.repeat(gap_s, output - 1),
        "e2el": first_s + (output - 1) * gap_s,
    }[latency]  # fmt: skip
    if not len(values) or statistic == "std":
        return None
    return float(values.mean() if statistic == "mean" else np.percentile(values, PERCENTILES[statistic]))
