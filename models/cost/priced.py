"""A step from measured times: tables for the serving loop, and where each of their times comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from models.cost.attention import attention_table
from models.cost.build import compiled, distinct_lookup, factors
from models.cost.fit import ExpertTimes, Roof, Times
from models.cost.measured import Measured
from models.cost.provenance import Source
from models.cost.roofline import Roofline
from models.cost.step import (
    BY_CURVE,
    BY_DECODE,
    BY_EXPERTS,
    BY_PREFILL,
    CURVE,
    PRICED_BY,
    ExpertTable,
    StepTable,
)
from models.experts import Popularity
from models.features import STAGES, Feature, Operator
from models.hardware import Accelerator, Precision
from models.operators import operators, stage_repeats
from models.parallelism import Parallelism
from models.rerouting import Rerouting
from models.touched import AdapterMix, most_touched

__all__ = ["PricedStep", "measured_step"]


@dataclass(frozen=True)
class PricedStep:
    """A step's table and where the times of its rows come from.

    table: the whole step of a rank, all its layers included
    stages: as `models.cost.build.stage_tables`
    operators: of the rows of the table
    sources: of each row that a curve prices, [max_tokens + 1] `Source` of each value; None for the others
    includes: names of operators whose time is in another row's
    """

    table: StepTable
    stages: dict[str, StepTable]
    operators: tuple[Operator, ...]
    sources: tuple[NDArray[np.int8] | None, ...]
    includes: tuple[str, ...]


def measured_step(
    measured: Measured,
    architecture: Architecture,
    accelerator: Accelerator,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    weights: Precision = "bf16",
    kv: Precision = "bf16",
    compute_efficiency: float = 1.0,
    memory_efficiency: float = 1.0,
    scale: Mapping[str, float] | None = None,
    popularity: Popularity | None = None,
    max_tokens: int = 8192,
    max_seqs: int = 256,
    max_context: int = 8192,
    rerouting: Rerouting | None = None,
    mix: AdapterMix | None = None,
    num_added: int = 0,
) -> PricedStep:
    """As `step_table` and `stage_tables`, from measured times where there are some, from the roofline elsewhere.

    max_tokens, max_seqs, max_context: the most tokens and requests of a step, and of one request
    rerouting, mix: of adapters; then experts are priced by those that the batch's own adapters touch
    num_added: experts that adapters add to one rank's where they lie on several
    Raises as they do.
    """
    built = operators(architecture, parallelism, weights, kv, rerouting)
    roofline = Roofline(accelerator, compute_efficiency, memory_efficiency, 0.0, factors(scale, built))
    distinct = distinct_lookup(architecture, popularity, max_tokens)
    counts = np.arange(max_tokens + 1)
    tags = np.zeros((len(built), 2), np.int64)
    curves: list[NDArray[np.float64]] = []
    sources: list[NDArray[np.int8] | None] = [None] * len(built)
    includes: set[str] = set()
    more: dict[str, Any] = {}
    for o, operator in enumerate(built):
        roof = _roof(roofline, operator)
        times: Times | None = None
        if operator.kind == "experts":
            found = measured.experts(operator, partial(_roof, roofline))
            if found is not None:
                experts, name = found
                includes |= {"expert_combine", "router"} if name == "moe" else {"expert_combine"}
                if parallelism.expert == 1 and mix is None:
                    rows = counts * operator.shape[2]
                    times = experts.at(np.column_stack([rows, distinct[counts]]), roof)
                else:
                    most = operator.shape[3] + num_added if mix is None else most_touched(mix)
                    tags[o, 0] = BY_EXPERTS
                    more["experts"] = _expert_table(experts, operator, roof, max_tokens, most)
        elif operator.kind == "attention":
            if "attention" not in more:
                known = measured.attention(operator, kv)
                if known is not None:
                    prefill, decode = (p for p in built if p.kind == "attention")
                    more["attention"] = attention_table(
                        known, roofline, prefill, decode, max_tokens, max_seqs, max_context
                    )
            if "attention" in more:
                tags[o, 0] = BY_PREFILL if operator.runs_on == Feature.PREFILL_CONTEXT else BY_DECODE
        elif operator.runs_on in (Feature.TOKENS, Feature.SEQUENCES):  # what a curve is looked up by
            times = measured.by_rows(operator, counts, roof)
        if times is not None:
            tags[o] = BY_CURVE, len(curves)
            curves.append(np.where(counts > 0, times.seconds, 0.0))
            sources[o] = times.source
    if mix is not None:
        more["mix"] = mix
    more["curves"] = np.array(curves).reshape(len(curves), max_tokens + 1)
    is_included = np.array([operator.name in includes for operator in built])

    def table(rows: list[int], repeats: list[int]) -> StepTable:
        made = compiled([built[o] for o in rows], roofline, repeats, architecture, distinct)
        made.tags[:, [PRICED_BY, CURVE]] = tags[rows]
        made.weight[is_included[rows]] = 0.0
        return made._replace(**more)

    repeats = stage_repeats(architecture, parallelism.pipeline)
    of_stage = {stage: [o for o, operator in enumerate(built) if operator.stage == stage] for stage in STAGES}
    return PricedStep(
        table(list(range(len(built))), [repeats[operator.stage] for operator in built]),
        {stage: table(rows, [1] * len(rows)) for stage, rows in of_stage.items() if rows},
        built, tuple(sources), tuple(sorted(includes)),
    )  # fmt: skip


ROW_STEP = 1.1
"""Ratio of the numbers of rows at which a rank's experts are priced; below 32 all are."""


def _expert_table(
    experts: ExpertTimes, operator: Operator, roof: Roof, max_tokens: int, num_experts: int
) -> ExpertTable:
    """num_experts: of a rank, with those that adapters add"""
    top_k = operator.shape[2]
    largest = max(max_tokens * min(top_k, num_experts), 64)
    steps = np.geomspace(32, largest, int(np.log(largest / 32) / np.log(ROW_STEP)) + 2)
    rows = np.unique(np.concatenate([np.arange(1, 32), np.round(steps), experts.fit.points[:, 0]]))
    touched = np.arange(1, num_experts + 1, max(num_experts // 64, 1))
    measured = experts.fit.points[:, 1]
    touched = np.unique([*touched, *measured[measured <= num_experts], num_experts])
    at = np.array([(r, min(e, r)) for r in rows for e in touched])
    times = experts.at(at, roof)
    shape = (len(rows), len(touched))
    is_outside = (times.source == Source.EXTRAPOLATED).reshape(shape)
    return ExpertTable(rows, touched.astype(np.float64), times.seconds.reshape(shape), is_outside)


def _roof(roofline: Roofline, operator: Operator) -> Roof:
    """Seconds by the roofline of [n, 1] counts of tokens, or of [n, 2] expert rows and experts that they touch."""
    def seconds(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.zeros((len(points), len(Feature)))
        x[:, Feature.ONE] = 1
        x[:, Feature.TOKENS] = x[:, Feature.SEQUENCES] = x[:, Feature.EXPERT_ROWS] = np.maximum(points[:, 0], 1)
        if points.shape[1] > 1:
            x[:, Feature.DISTINCT_EXPERTS] = np.maximum(points[:, 1], 1)
        return roofline.seconds(operator, x)

    return seconds
