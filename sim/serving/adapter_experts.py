"""Experts that a batch touches where its requests have adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import counting, inner_borrowing
from models.cost.step import StepTable, experts_seconds, is_beyond_measured
from models.touched import expected_touched
from sim.serving.state import EngineState


@counting
def touched_experts(
    state: EngineState, table: StepTable, batch: NDArray[Any], size: int, num_padding: int
) -> float:
    """Expected distinct experts of a layer for the first `size` entries of a batch, each request's tokens with its own
    adapter, padding with none."""
    requests = state.requests
    tokens = np.zeros(table.mix.log_miss.shape[0], np.int64)
    tokens[0] = num_padding
    for i in range(size):
        tokens[requests[batch[i].request].adapter] += batch[i].num_tokens
    return expected_touched(table.mix, tokens)


@inner_borrowing
def tally_experts(state: EngineState, table: StepTable, tokens: int, touched: float, num_steps: int) -> None:
    """Count the time of the experts of so many equal steps, where it is measured by experts touched."""
    if table.experts.rows.size == 0:
        return
    counts = state.counts[0]
    seconds = num_steps * experts_seconds(table, tokens, touched)
    counts.total_expert_s += seconds
    if is_beyond_measured(table.experts, table.top_k * tokens, touched):
        counts.outside_expert_s += seconds
