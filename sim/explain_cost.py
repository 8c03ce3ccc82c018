"""Whose time is it, before anything runs: the operators of a scenario's models in two typical steps, and the source of
each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.cost.build import step_table
from models.cost.priced import PricedStep, measured_step
from models.cost.provenance import Source
from models.cost.step import BY_CURVE, BY_EXPERTS, BY_ROOFLINE, PRICED_BY, StepTable, chunk_seconds, operator_seconds
from models.parallelism import Parallelism
from models.touched import expected_touched
from sim.engine.random import RandomStreams
from sim.scenario.build import build_topology
from sim.scenario.build_server import Server
from sim.scenario.load import LoadedScenario
from sim.scenario.serving import Serving

DECODES = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's arguments: tokens, decodes, sequences, pairs, context of prefill, context of decodes; and its words."""

    words: str
    features: tuple[float, float, float, float, float, float]


def explain(loaded: LoadedScenario) -> list[dict[str, Any]]:
    """One row per operator, workload and typical step; variants with the same model, device and table once.

    The steps: DECODES decodes at the mean context, and one prompt of mean length, as far as a step takes it.
    nearest: the measured number of rows next to the step's, where the operator's own shape was measured.
    With experts on several ranks: of one rank that has the whole step's tokens.
    """
    rows: list[dict[str, Any]] = []
    seen = set()
    for _, scenario in loaded.variants:
        topology = build_topology(scenario.cluster)
        servings = [w for w in scenario.workloads if isinstance(w, Serving)]
        for server in (server for w in servings for _, server in Server(scenario, w, topology).pools):
            w = server.w
            key = (w.model, server.host.accelerator, str(w.parallelism), str(scenario.cost), str(w.precision),
                   str(w.experts), str(w.adapters), str(w.lengths), str(w.trace))  # fmt: skip
            if key in seen:
                continue
            seen.add(key)
            what = f"{w.name}: {w.model} on {server.host.accelerator}"
            for row in _of_workload(server):
                rows.append({"workload": what, **row})
    return rows


def _of_workload(server: Server) -> list[dict[str, Any]]:
    w = server.w
    _, prompt, output = server.requests(RandomStreams(server.scenario.seed))
    chunk = int(min(prompt.mean(), w.batching.max_num_batched_tokens) if w.batching.is_chunked else prompt.mean())
    context, decodes = int(prompt.mean() + output.mean() / 2), min(DECODES, w.batching.max_num_seqs)
    batches = [
        Batch(f"{decodes} decodes at {context}", (decodes, decodes, decodes, 0, 0, decodes * context)),
        Batch(f"a prompt of {chunk}", (chunk, 0, 1, chunk * (chunk + 1) / 2, chunk, 0)),
    ]
    known, costs, priced = server.measured(), server.costs(prompt, output), None
    if known is not None:
        most, longest = w.batching.max_num_seqs, int(prompt.max() + output.max())
        priced = measured_step(known, server.architecture, server.accelerator, server.parallelism, **costs,
                               max_seqs=most, max_context=longest)  # fmt: skip
        table = priced.table
    else:
        # With experts on several ranks, as if all were on one.
        whole = Parallelism(server.parallelism.tensor, pipeline=server.parallelism.pipeline)
        table = step_table(server.architecture, server.accelerator, whole, **costs)
    rows = []
    for batch in batches:
        seconds = _seconds(table, batch, context, chunk, _touched(server, table, batch))
        for o, name in enumerate(server.operator_names()):
            if seconds[o] > 0:
                source, nearest = _source(priced, o, batch, context, chunk)
                rows.append({"step": batch.words, "operator": name, "us": 1e6 * seconds[o], "source": source,
                             "nearest": nearest, "share": seconds[o] / seconds.sum()})  # fmt: skip
    return rows


def _touched(server: Server, table: StepTable, batch: Batch) -> float:
    """Distinct experts where there are adapters: decodes of all in their shares, a prompt of the most popular one."""
    if server.w.adapters is None or not len(table.mix.log_miss):
        return 0.0
    shares = server.w.adapters.shares
    tokens, decodes, *_ = batch.features
    of_each = np.round(shares * tokens) if decodes else tokens * (np.arange(len(shares)) == shares.argmax())
    return float(expected_touched(table.mix, of_each.astype(np.int64)))


def _seconds(table: StepTable, batch: Batch, context: int, chunk: int, touched: float) -> np.ndarray:
    each, attention = np.zeros(len(table.weight)), table.attention
    decodes = int(batch.features[1])
    prefill_s = decode_s = 0.0
    if len(attention.chunk):
        segment = attention.segment[context]
        line = attention.decode_at_0[decodes, segment] + attention.decode_slope[decodes, segment] * context
        decode_s = decodes * line
        prefill_s = chunk_seconds(attention, chunk, 0) if decodes == 0 else 0.0
    operator_seconds(table, *batch.features, each, prefill_s, decode_s, touched)
    return each


def _source(
    priced: PricedStep | None, o: int, batch: Batch, context: int, chunk: int
) -> tuple[str, str | None]:
    """(source, nearest measured number of rows) of an operator in a batch."""
    if priced is None or priced.table.tags[o, PRICED_BY] == BY_ROOFLINE:
        return Source.ROOFLINE.label, None
    if priced.table.tags[o, PRICED_BY] != BY_CURVE:
        decodes, attention = int(batch.features[1]), priced.table.attention
        is_outside = False
        if priced.table.tags[o, PRICED_BY] != BY_EXPERTS:
            is_outside = context > attention.decode_limit[decodes] if decodes else chunk > attention.limits[0]
        return (Source.EXTRAPOLATED if is_outside else Source.INTERPOLATED).label, None
    sources = priced.sources[o]
    assert sources is not None, "curves have sources"
    count = int(batch.features[2] if priced.operators[o].runs_on.name == "SEQUENCES" else batch.features[0])
    measured = np.flatnonzero(np.isin(sources, [Source.MEASURED, Source.IMPORTED]))
    nearest = None if not len(measured) else str(measured[np.argmin(np.abs(np.log2((measured + 1) / (count + 1))))])
    return Source(sources[count]).label, nearest
