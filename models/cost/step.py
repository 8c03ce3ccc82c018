"""The cost of an engine step, compiled: what the serving loop calls.

`models.cost.build.step_table` and `stage_tables` make the tables; the functions here read them, from compiled code (a call from
plain Python costs about 2 us, most of it handing over the arrays).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["StepTable", "expert_seconds", "operator_seconds", "step_parts", "step_seconds"]


class StepTable(NamedTuple):
    """Operators of a step, or of one stage of it, as arrays; row o is operator `names[o]` of the builder's order.

    An operator costs, where its feature `runs_on[o]` is positive,
        calls · scale · (max(flops / flops_per_s, bytes / bytes_per_s) + fixed_s)
    with flops and bytes the products of their coefficients and the features. Efficiencies are inside the rates.

    flops, bytes: [operators, features] per call, features as `models.operators.Feature` orders them
    flops_per_s, bytes_per_s, fixed_s, scale, calls: [operators]
    runs_on: [operators], a `Feature`
    source: [operators], a `models.cost.provenance.Source`
    is_communication: [operators], 1 for transfers inside the host
    distinct_experts: [max_tokens + 1], expected different routed experts a layer touches for that many tokens
    top_k: routed experts of a token, 0 in a dense model
    """

    flops: NDArray[np.float64]
    bytes: NDArray[np.float64]
    flops_per_s: NDArray[np.float64]
    bytes_per_s: NDArray[np.float64]
    fixed_s: NDArray[np.float64]
    scale: NDArray[np.float64]
    calls: NDArray[np.float64]
    runs_on: NDArray[np.int64]
    source: NDArray[np.int64]
    is_communication: NDArray[np.int64]
    distinct_experts: NDArray[np.float64]
    top_k: float


@njit(cache=True)
def _features(table, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context):
    """All nine features; the last two follow from the tokens."""
    rows = table.top_k * tokens
    distinct = 0.0
    if rows > 0.0:
        last = table.distinct_experts.size - 1
        if tokens > last:
            raise ValueError("more tokens in a step than the table's max_tokens")
        distinct = table.distinct_experts[int(tokens)]
    return (
        1.0,
        float(tokens),
        float(decodes),
        float(sequences),
        float(prefill_pairs),
        float(prefill_context),
        float(decode_context),
        rows,
        distinct,
    )


@njit(cache=True)
def _operator_s(table, o, features):
    if features[table.runs_on[o]] <= 0.0:
        return 0.0
    flops = 0.0
    size_bytes = 0.0
    for f in range(len(features)):
        flops += table.flops[o, f] * features[f]
        size_bytes += table.bytes[o, f] * features[f]
    busy_s = max(flops / table.flops_per_s[o], size_bytes / table.bytes_per_s[o])
    return table.calls[o] * table.scale[o] * (busy_s + table.fixed_s[o])


@njit(cache=True)
def step_seconds(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
) -> float:
    """Time of one step, or of one pass of a stage, in seconds; 0 for an empty step.

    The arguments are the first features of `models.operators.Feature`, which explains each; expert rows and distinct
    experts follow from the tokens. A stage table ignores those it does not need.

    Raises ValueError for a model with experts and more tokens than the table was built for.
    """
    features = _features(table, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context)
    total_s = 0.0
    for o in range(table.runs_on.size):
        total_s += _operator_s(table, o, features)
    return total_s


@njit(cache=True)
def step_parts(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
) -> tuple[float, float]:
    """(compute, communication inside the host) seconds of a step; their sum is `step_seconds`."""
    features = _features(table, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context)
    compute_s = 0.0
    communication_s = 0.0
    for o in range(table.runs_on.size):
        if table.is_communication[o]:
            communication_s += _operator_s(table, o, features)
        else:
            compute_s += _operator_s(table, o, features)
    return compute_s, communication_s


@njit(cache=True)
def operator_seconds(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
    seconds: NDArray[np.float64],
) -> None:
    """Adds each operator's seconds of one step to `seconds` [operators]: shares by operator and by source.

    Adding instead of returning lets a loop accumulate a whole run without an array per step.
    """
    features = _features(table, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context)
    for o in range(table.runs_on.size):
        seconds[o] += _operator_s(table, o, features)


@njit(cache=True)
def expert_seconds(table: StepTable, expert_rows: float, distinct_experts: float) -> float:
    """Time of the stage "experts" on one rank and in one layer, given what the dispatch brought there.

    expert_rows: (token, expert) pairs received; distinct_experts: local experts among them. 0 without rows.
    """
    features = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float(expert_rows), float(distinct_experts))
    total_s = 0.0
    for o in range(table.runs_on.size):
        total_s += _operator_s(table, o, features)
    return total_s
