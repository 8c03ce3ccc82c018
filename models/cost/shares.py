"""Whose time is it? The time of a run by operator and by where that time came from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cost.priced import PricedStep
from models.cost.provenance import Source
from models.cost.step import BY_CURVE, BY_DECODE, BY_EXPERTS, BY_PREFILL
from models.features import Feature

__all__ = ["ROOFLINE", "StepTally", "time_by_source"]

ROOFLINE = "all that a roofline prices"


@dataclass(frozen=True)
class StepTally:
    """What the steps of a run add up to.

    with_tokens, with_sequences: [max_tokens + 1] steps by their tokens, and by their requests
    total_s: accelerator time; prefill_s, decode_s: measured attention of one layer, of which outside_s extrapolated;
    expert_s: measured experts that lie on several ranks, of which outside_expert_s extrapolated
    """

    with_tokens: NDArray[np.int64]
    with_sequences: NDArray[np.int64]
    total_s: float
    prefill_s: float
    decode_s: float
    outside_s: float
    expert_s: float = 0.0
    outside_expert_s: float = 0.0


def time_by_source(priced: PricedStep, tally: StepTally) -> dict[tuple[str, Source], float]:
    """Seconds of accelerator time by (operator, source); what the table has no row for is one operator, ROOFLINE."""
    found: dict[tuple[str, Source], float] = defaultdict(float)
    attention_s = tally.prefill_s + tally.decode_s
    outside = tally.outside_s / attention_s if attention_s > 0 else 0.0
    table = priced.table
    for o, operator in enumerate(priced.operators):
        priced_by, weight = table.tags[o, 3], float(table.weight[o])
        if priced_by == BY_CURVE:
            steps = tally.with_sequences if operator.runs_on == Feature.SEQUENCES else tally.with_tokens
            seconds = weight * steps * table.curves[table.tags[o, 4]]
            for source in Source:
                part = float(seconds[priced.sources[o] == source].sum())
                if part > 0:
                    found[operator.name, source] += part
        elif priced_by in (BY_PREFILL, BY_DECODE):
            seconds = weight * (tally.prefill_s if priced_by == BY_PREFILL else tally.decode_s)
            if seconds > 0:
                found[operator.name, Source.INTERPOLATED] += seconds * (1 - outside)
                found[operator.name, Source.EXTRAPOLATED] += seconds * outside
        elif priced_by == BY_EXPERTS:
            found[operator.name, Source.INTERPOLATED] += tally.expert_s - tally.outside_expert_s
            found[operator.name, Source.EXTRAPOLATED] += tally.outside_expert_s
    rest = tally.total_s - sum(found.values())
    if rest > 1e-9 * tally.total_s:
        found[ROOFLINE, Source.ROOFLINE] += rest
    return {key: seconds for key, seconds in found.items() if seconds > 0}
