"""The cost of an engine step, compiled: what the serving loop calls.

`models.cost.build.step_table` and `stage_tables` make the tables; the functions here read them, from compiled
code (a call from plain Python costs about 2 us, most of it handing over the arrays).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.compiled import inner

__all__ = ["StepTable", "expert_seconds", "operator_seconds", "step_parts", "step_seconds"]

RUNS_ON, IS_COMMUNICATION, SOURCE = 0, 1, 2
"""Columns of `StepTable.tags`."""


class StepTable(NamedTuple):
    """Operators of a step, or of one stage of it, as arrays; their names are
    `models.cost.build.operator_names`.

    An operator costs, where its feature `runs_on` is positive and nothing elsewhere,
        weight · (max(flops / flops_per_s, bytes / bytes_per_s) + fixed_s)
    with flops and bytes the products of their coefficients and the features, as `models.features.Feature`
    lists them. Efficiencies are inside the rates. Few arrays, because each one that a compiled call hands
    over costs 5 ns.

    work: [operators, 2, features], coefficients of the flops and of the bytes of one call
    rates: [operators, 2], flops_per_s and bytes_per_s
    fixed_s: [operators], time of one call beside its work
    weight: [operators], calls in the step times the factor that `scale` gave the operator
    tags: [operators, 3], runs_on (a `Feature`), is_communication (0 or 1), source (a `Source`)
    distinct_experts: [max_tokens + 1], expected different routed experts that so many tokens touch in a layer
    top_k: routed experts of a token, 0 in a dense model
    """

    work: NDArray[np.float64]
    rates: NDArray[np.float64]
    fixed_s: NDArray[np.float64]
    weight: NDArray[np.float64]
    tags: NDArray[np.int64]
    distinct_experts: NDArray[np.float64]
    top_k: float


@inner
def _features(
    distinct_experts, top_k, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context
):
    """All nine features; the last two follow from the tokens."""
    rows = top_k * tokens
    distinct = 0.0
    if rows > 0.0:
        if tokens >= distinct_experts.size:
            raise ValueError("more tokens in a step than the table's max_tokens")
        distinct = distinct_experts[int(tokens)]
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


@inner
def _present(x):
    """Bit f is set where feature f is positive."""
    bits = 0
    for f in range(9):
        bits |= int(x[f] > 0.0) << f
    return bits


@inner
def _dot(work, o, row, x):
    """One row of coefficients times the features; in pairs, so that the processor need not wait for each
    sum."""
    return (
        (work[o, row, 0] * x[0] + work[o, row, 1] * x[1])
        + (work[o, row, 2] * x[2] + work[o, row, 3] * x[3])
        + (
            (work[o, row, 4] * x[4] + work[o, row, 5] * x[5])
            + (work[o, row, 6] * x[6] + work[o, row, 7] * x[7])
        )
        + work[o, row, 8] * x[8]
    )


@inner
def _operator_s(table, o, x, present):
    if not (present >> table.tags[o, RUNS_ON]) & 1:
        return 0.0
    compute_s = _dot(table.work, o, 0, x) / table.rates[o, 0]
    memory_s = _dot(table.work, o, 1, x) / table.rates[o, 1]
    return table.weight[o] * (max(compute_s, memory_s) + table.fixed_s[o])


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

    The arguments are the first features of `models.features.Feature`, which explains each; expert rows and
    distinct experts follow from the tokens. A stage table ignores those it does not need.

    Raises ValueError for a model with experts and more tokens than the table was built for.
    """
    x = _features(
        table.distinct_experts,
        table.top_k,
        tokens,
        decodes,
        sequences,
        prefill_pairs,
        prefill_context,
        decode_context,
    )
    present = _present(x)
    total_s = 0.0
    for o in range(table.weight.size):
        total_s += _operator_s(table, o, x, present)
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
    """(compute, communication inside the host) seconds of a step; their sum is `step_seconds` but for
    rounding."""
    x = _features(
        table.distinct_experts,
        table.top_k,
        tokens,
        decodes,
        sequences,
        prefill_pairs,
        prefill_context,
        decode_context,
    )
    present = _present(x)
    compute_s = 0.0
    communication_s = 0.0
    for o in range(table.weight.size):
        if table.tags[o, IS_COMMUNICATION]:
            communication_s += _operator_s(table, o, x, present)
        else:
            compute_s += _operator_s(table, o, x, present)
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
    x = _features(
        table.distinct_experts,
        table.top_k,
        tokens,
        decodes,
        sequences,
        prefill_pairs,
        prefill_context,
        decode_context,
    )
    present = _present(x)
    for o in range(table.weight.size):
        seconds[o] += _operator_s(table, o, x, present)


@njit(cache=True)
def expert_seconds(table: StepTable, expert_rows: float, distinct_experts: float) -> float:
    """Time of the stage "experts" on one rank and in one layer, given what the dispatch brought there.

    expert_rows: (token, expert) pairs received; distinct_experts: local experts among them. 0 without rows.
    """
    x = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float(expert_rows), float(distinct_experts))
    present = _present(x)
    total_s = 0.0
    for o in range(table.weight.size):
        total_s += _operator_s(table, o, x, present)
    return total_s
