"""Least times: what no batching of some work can undercut, by the table that prices the steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cost.step import BY_CURVE, BY_ROOFLINE, CURVE, PRICED_BY, RUNS_ON, StepTable
from models.features import Feature

__all__ = ["Work", "least_seconds"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be computed, however it is cut into steps; [n] numbers each, n questions at once.

    tokens          fed into the model: prompts, and every output token but the last
    decodes         those of them that are decodes
    sequences       output tokens: rows of the output head
    decode_context  keys that the decodes read, summed
    """

    tokens: Float64
    decodes: Float64
    sequences: Float64
    decode_context: Float64


def least_seconds(table: StepTable, work: Work, most_tokens: int, most_sequences: int) -> tuple[Float64, Float64]:
    """(accelerator seconds, steps) of which the work takes at least so many, in steps of bounded size.

    Steps >= max(tokens / most_tokens, sequences / most_sequences), whole. An operator that runs in N of them costs

        by roofline         >= max(sum of flops / rate, sum of bytes / rate) + N fixed_s
                            since a sum of maxima is no less than the maximum of the sums
        by a measured curve >= max(N min c(k), count min c(k) / k) over the counts k that a step may have
        by measured attention or experts >= 0

    Flops and bytes are linear in the features. Different experts of a step are concave in its tokens: n tokens in
    several steps touch no fewer in sum than in one, nor than n min d(k) / k. Whatever shares a step only adds to it,
    and so does padding.

    Leaves out: attention of prompts. Holds for tables whose rates and coefficients are not negative, with steps that
    generate one token of a request at most.
    """
    limit = min(most_tokens, table.curves.shape[1] - 1) if table.curves.size else most_tokens
    steps = np.ceil(np.maximum(work.tokens / most_tokens, work.sequences / most_sequences))
    counts = {
        Feature.TOKENS: work.tokens, Feature.DECODES: work.decodes, Feature.SEQUENCES: work.sequences,
        Feature.DECODE_CONTEXT: work.decode_context, Feature.EXPERT_ROWS: table.top_k * work.tokens,
        Feature.DISTINCT_EXPERTS: _distinct(table.distinct_experts, work.tokens, most_tokens), Feature.ONE: steps,
    }  # fmt: skip
    x = np.zeros((len(work.tokens), len(Feature)))
    for feature, count in counts.items():
        x[:, feature] = count
    seconds = np.zeros(len(work.tokens))
    for o, weight in enumerate(table.weight):
        runs_on, priced_by = int(table.tags[o, RUNS_ON]), table.tags[o, PRICED_BY]
        in_steps = steps
        if runs_on in (Feature.DECODES, Feature.DECODE_CONTEXT):
            in_steps = np.ceil(work.decodes / most_sequences)
        if priced_by == BY_ROOFLINE:
            own = np.where(np.arange(len(Feature)) == Feature.ONE, in_steps[:, None], x)
            flops_s, bytes_s = (own @ table.work[o, row] / table.rates[o, row] for row in (0, 1))
            least = np.maximum(flops_s, bytes_s) + in_steps * table.fixed_s[o]
        elif priced_by == BY_CURVE:
            most = min(limit, most_sequences) if runs_on == Feature.SEQUENCES else limit
            curve = table.curves[table.tags[o, CURVE], 1 : most + 1]
            count = work.sequences if runs_on == Feature.SEQUENCES else work.tokens
            least = np.maximum(in_steps * curve.min(), count * (curve / np.arange(1, most + 1)).min())
        else:
            continue
        seconds += weight * np.where(x[:, runs_on] > 0, least, 0.0)
    return seconds, steps


def _distinct(by_tokens: Float64, tokens: Float64, most_tokens: int) -> Float64:
    """At least so many different experts of a layer, summed over the steps; 0 of a dense model."""
    if len(by_tokens) <= 1:
        return np.zeros(len(tokens))
    most = min(most_tokens, len(by_tokens) - 1)
    each = (by_tokens[1 : most + 1] / np.arange(1, most + 1)).min()
    return np.maximum(by_tokens[np.minimum(tokens, most).astype(np.int64)], tokens * each)
