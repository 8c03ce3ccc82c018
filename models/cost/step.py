"""The cost of an engine step, compiled: what the serving loop calls.

`models.cost.build.step_table` and `stage_tables` make the tables; the functions here read them, from compiled
code (a call from plain Python costs about 2 us, most of it handing over the arrays).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import borrowing, inner_borrowing
from models.touched import AdapterMix, no_mix

__all__ = [
    "AttentionTable", "ExpertTable", "StepTable", "chunk_seconds", "decode_lines", "decode_seconds", "expert_seconds",
    "experts_seconds", "extra_seconds", "is_beyond_measured", "no_attention", "no_experts", "operator_seconds",
    "roofline_table", "step_parts", "step_seconds", "tail_seconds",
]  # fmt: skip

RUNS_ON, IS_COMMUNICATION, SOURCE, PRICED_BY, CURVE = 0, 1, 2, 3, 4
"""Columns of `StepTable.tags`."""
BY_ROOFLINE, BY_CURVE, BY_PREFILL, BY_DECODE, BY_EXPERTS = 0, 1, 2, 3, 4
"""What an operator's time follows from: its work, a measured curve, measured attention of chunks or of decodes, or
measured experts by rows and experts touched."""


class AttentionTable(NamedTuple):
    """Measured attention of one layer, in seconds, on straight lines between nodes; empty where there is none.

    chunk, prefix, prefill      nodes, and [chunks, prefixes] times of one prefill chunk alone
    context                     nodes of decodes' contexts
    decode_at_0, decode_slope   [decodes + 1, segments] what one of so many decodes takes from a node to the next, as
                                a line in its context
    segment                     [largest context + 1] the segment in which each context lies
    grid_chunk … grid_context   nodes of `extra`
    extra                       [chunks, prefixes, decodes, contexts] what a chunk and decodes in one call take beyond
                                the sum of the two alone
    limits                      the largest chunk, prefix, and sum of both that were measured
    decode_limit                [decodes + 1] the longest context of so many decodes with measured points around it
    tail_chunk, tail_decodes, tail_longest, tail_evenness    nodes of `tail`; evenness is mean over longest context
    tail                        [chunks, decodes, longest, evenness] seconds for each token that the longest context has
                                beyond the mean; empty where uneven batches were not measured
    """

    chunk: NDArray[np.float64]
    prefix: NDArray[np.float64]
    prefill: NDArray[np.float64]
    context: NDArray[np.float64]
    decode_at_0: NDArray[np.float64]
    decode_slope: NDArray[np.float64]
    segment: NDArray[np.int16]
    grid_chunk: NDArray[np.float64]
    grid_prefix: NDArray[np.float64]
    grid_decodes: NDArray[np.float64]
    grid_context: NDArray[np.float64]
    extra: NDArray[np.float64]
    limits: NDArray[np.float64]
    decode_limit: NDArray[np.float64]
    tail_chunk: NDArray[np.float64]
    tail_decodes: NDArray[np.float64]
    tail_longest: NDArray[np.float64]
    tail_evenness: NDArray[np.float64]
    tail: NDArray[np.float64]


class ExpertTable(NamedTuple):
    """Measured routed experts of one rank and layer: [rows, touched] seconds on nodes; empty where there are none.

    is_outside: [rows, touched] whether a time lies beyond what was measured
    """

    rows: NDArray[np.float64]
    touched: NDArray[np.float64]
    seconds: NDArray[np.float64]
    is_outside: NDArray[np.bool_]


def no_experts() -> ExpertTable:
    return ExpertTable(np.zeros(0), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0), np.bool_))


def no_attention() -> AttentionTable:
    none = np.zeros(0)
    return AttentionTable(
        none, none, np.zeros((0, 0)), none, np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0, np.int16), none, none, none,
        none, np.zeros((0, 0, 0, 0)), none, none, none, none, none, none,
        np.zeros((0, 0, 0, 0)),
    )  # fmt: skip


def decode_lines(
    context: NDArray[np.float64], decode_s: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int16]]:
    """(decode_at_0, decode_slope, segment) from times [decodes + 1, contexts] of so many decodes of equal context."""
    decodes = np.maximum(np.arange(len(decode_s)), 1)[:, None]
    slope = np.diff(decode_s, axis=1) / np.diff(context) / decodes
    at_0 = decode_s[:, :-1] / decodes - slope * context[:-1]
    segment = np.searchsorted(context, np.arange(int(context[-1]) + 1), side="right") - 1
    return at_0, slope, np.clip(segment, 0, len(context) - 2).astype(np.int16)


class StepTable(NamedTuple):
    """Operators of a step, or of one stage of it, as arrays; their names are
    `models.cost.build.operator_names`.

    An operator costs, where its feature `runs_on` is positive and nothing elsewhere, its weight times
        max(flops / flops_per_s, bytes / bytes_per_s) + fixed_s    by roofline
        its curve at the feature `runs_on`                         by a measured curve
        measured attention, as the caller found it                 by prefill, by decode
        measured experts at its rows and the experts touched       by experts
    with flops and bytes the products of their coefficients and the features, as `models.features.Feature`
    lists them. Efficiencies are inside the rates. Few arrays, because each one that a compiled call hands
    over costs 5 ns.

    work: [operators, 2, features], coefficients of the flops and of the bytes of one call
    rates: [operators, 2], flops_per_s and bytes_per_s
    fixed_s: [operators], time of one call beside its work
    weight: [operators], calls in the step times the factor that `scale` gave the operator
    tags: [operators, 5], runs_on (a `Feature`), is_communication (0 or 1), source (a `Source`), priced_by, curve
    distinct_experts: [max_tokens + 1], expected different routed experts that so many tokens touch in a layer
    top_k: routed experts of a token, 0 in a dense model
    curves: [curves, max_tokens + 1], measured seconds of one call by tokens, or by sequences
    attention: measured attention
    experts: measured routed experts of a rank, by rows and experts touched
    mix: what distinct experts follow from where requests have adapters
    """

    work: NDArray[np.float64]
    rates: NDArray[np.float64]
    fixed_s: NDArray[np.float64]
    weight: NDArray[np.float64]
    tags: NDArray[np.int64]
    distinct_experts: NDArray[np.float64]
    top_k: float
    curves: NDArray[np.float64]
    attention: AttentionTable
    experts: ExpertTable
    mix: AdapterMix


def roofline_table(
    work: NDArray[np.float64],
    rates: NDArray[np.float64],
    fixed_s: NDArray[np.float64],
    weight: NDArray[np.float64],
    tags: NDArray[np.int64],
    distinct_experts: NDArray[np.float64] | None = None,
    top_k: float = 0.0,
) -> StepTable:
    """A table in which nothing is measured; `tags` has the first three columns."""
    distinct = np.zeros(1) if distinct_experts is None else distinct_experts
    more = np.zeros((len(tags), 2), np.int64)
    all_tags = np.concatenate([tags.reshape(-1, 3), more], axis=1).astype(np.int64)
    return StepTable(
        work, rates, fixed_s, weight, all_tags, distinct, top_k, np.zeros((0, 0)), no_attention(), no_experts(),
        no_mix(),
    )  # fmt: skip


@inner_borrowing
def _features(
    distinct_experts, top_k, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context, touched
):
    """All nine features; the last two follow from the tokens, unless `touched` is known."""
    rows = top_k * tokens
    distinct = touched
    if rows > 0.0 and touched == 0.0:
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


@inner_borrowing
def _present(x):
    """Bit f is set where feature f is positive."""
    bits = 0
    for f in range(9):
        bits |= int(x[f] > 0.0) << f
    return bits


@inner_borrowing(forceinline=True)
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


@inner_borrowing
def _place(axis, x):
    """(node at or below x, share of the way to the next): on the axis; at its ends where x lies beyond."""
    last = axis.size - 1
    if last <= 0 or x <= axis[0]:
        return 0, 0.0
    if x >= axis[last]:
        return last - 1, 1.0
    i = np.searchsorted(axis, x, side="right") - 1
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])


@inner_borrowing
def _bilinear(rows, columns, values, x, y):
    """On straight lines between the nodes; at their ends where x or y lies beyond."""
    i, a = _place(rows, x)
    j, b = _place(columns, y)
    k = min(j + 1, columns.size - 1)
    low = values[i, j] + (values[i, k] - values[i, j]) * b
    i = min(i + 1, rows.size - 1)
    high = values[i, j] + (values[i, k] - values[i, j]) * b
    return low + (high - low) * a


@inner_borrowing
def _on_grid(axis_0, axis_1, axis_2, axis_3, values, x_0, x_1, x_2, x_3):
    """As `_bilinear`, over four axes."""
    a, fa = _place(axis_0, x_0)
    b, fb = _place(axis_1, x_1)
    c, fc = _place(axis_2, x_2)
    d, fd = _place(axis_3, x_3)
    total = 0.0
    for corner in range(16):
        p, q, r, s = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1, (corner >> 3) & 1
        share = (fa if p else 1 - fa) * (fb if q else 1 - fb) * (fc if r else 1 - fc) * (fd if s else 1 - fd)
        if share > 0.0:
            total += share * values[a + p, b + q, c + r, d + s]
    return total


@inner_borrowing
def _price(table, x, prefill_s, decode_s, keeps_each, each):
    """(compute, communication) seconds of all operators; adds each one's to `each` if asked to.

    One loop over arrays that are taken out of the table once, and handed to no function, which would copy their shapes.
    """
    work, rates, fixed_s, weight, tags, curves = (
        table.work, table.rates, table.fixed_s, table.weight, table.tags, table.curves,
    )  # fmt: skip
    present = _present(x)
    compute_s = 0.0
    communication_s = 0.0
    for o in range(weight.size):
        runs_on, priced_by = tags[o, RUNS_ON], tags[o, PRICED_BY]
        if not (present >> runs_on) & 1:
            continue
        if priced_by == BY_CURVE:
            # Experts run on rows; their curve is by tokens, which say how many experts are touched.
            count = int(x[3]) if runs_on == 3 else int(x[1])
            if count >= curves.shape[1]:
                raise ValueError("more tokens in a step than the table's max_tokens")
            seconds = curves[tags[o, CURVE], count]
        elif priced_by == BY_ROOFLINE:
            seconds = max(_dot(work, o, 0, x) / rates[o, 0], _dot(work, o, 1, x) / rates[o, 1]) + fixed_s[o]
        elif priced_by == BY_EXPERTS:
            seconds = _bilinear(table.experts.rows, table.experts.touched, table.experts.seconds, x[7], x[8])
        else:
            seconds = prefill_s if priced_by == BY_PREFILL else decode_s
        seconds *= weight[o]
        if tags[o, IS_COMMUNICATION]:
            communication_s += seconds
        else:
            compute_s += seconds
        if keeps_each:
            each[o] += seconds
    return compute_s, communication_s


@borrowing
def step_seconds(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
    prefill_s: float = 0.0,
    decode_s: float = 0.0,
) -> float:
    """Time of one step, or of one pass of a stage, in seconds; 0 for an empty step.

    The arguments are the first features of `models.features.Feature`, which explains each; expert rows and
    distinct experts follow from the tokens. A stage table ignores those it does not need.
    prefill_s, decode_s: one layer's measured attention (`chunk_seconds`, `decode_seconds`), where the table has it

    Raises ValueError for a model with experts, or measured times, and more tokens than the table was built for.
    """
    compute_s, communication_s = step_parts(
        table, tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context, prefill_s, decode_s
    )
    return compute_s + communication_s


@borrowing
def step_parts(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
    prefill_s: float = 0.0,
    decode_s: float = 0.0,
    touched: float = 0.0,
) -> tuple[float, float]:
    """(compute, communication inside the host) seconds of a step; their sum is `step_seconds`.

    touched: distinct experts of a layer, where they are known; 0: what so many tokens touch in the mean
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
        touched,
    )
    return _price(table, x, prefill_s, decode_s, False, table.weight)


@borrowing
def operator_seconds(
    table: StepTable,
    tokens: float,
    decodes: float,
    sequences: float,
    prefill_pairs: float,
    prefill_context: float,
    decode_context: float,
    seconds: NDArray[np.float64],
    prefill_s: float = 0.0,
    decode_s: float = 0.0,
    touched: float = 0.0,
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
        touched,
    )
    _price(table, x, prefill_s, decode_s, True, seconds)


@borrowing
def expert_seconds(table: StepTable, expert_rows: float, distinct_experts: float) -> float:
    """Time of the stage "experts" on one rank and in one layer, given what the dispatch brought there.

    expert_rows: (token, expert) pairs received; distinct_experts: local experts among them. 0 without rows.
    """
    x = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float(expert_rows), float(distinct_experts))
    return _price(table, x, 0.0, 0.0, False, table.weight)[0]


@borrowing
def experts_seconds(table: StepTable, tokens: float, touched: float) -> float:
    """Measured time of the routed experts of all layers in a step; 0 where they are not measured by experts touched."""
    total_s = 0.0
    for o in range(table.weight.size):
        if table.tags[o, PRICED_BY] == BY_EXPERTS:
            experts = table.experts
            total_s += table.weight[o] * _bilinear(
                experts.rows, experts.touched, experts.seconds, table.top_k * tokens, touched
            )
    return total_s


@borrowing
def is_beyond_measured(experts: ExpertTable, expert_rows: float, distinct_experts: float) -> bool:
    """Whether the nearest node of the table is extrapolated."""
    i, a = _place(experts.rows, expert_rows)
    j, b = _place(experts.touched, distinct_experts)
    i, j = min(i + int(a > 0.5), experts.rows.size - 1), min(j + int(b > 0.5), experts.touched.size - 1)
    return experts.is_outside[i, j]


# --- measured attention -----------------------------------------------------------------------------------------------


@borrowing
def chunk_seconds(attention: AttentionTable, chunk: float, prefix: float) -> float:
    """One layer's attention of one prefill chunk after a prefix, alone in its call."""
    return _bilinear(attention.chunk, attention.prefix, attention.prefill, chunk, prefix)


@inner_borrowing
def decode_seconds(attention: AttentionTable, decodes: int, context: int) -> float:
    """What one of `decodes` decodes adds: the time of decodes with equal contexts, shared out; with unequal ones each
    adds what it would add among its like."""
    i = attention.segment[context]
    return attention.decode_at_0[decodes, i] + attention.decode_slope[decodes, i] * context


@borrowing
def extra_seconds(
    attention: AttentionTable, chunk: float, prefix: float, decodes: float, context: float
) -> float:
    """What a chunk and decodes in one call take beyond the sum of the two alone; 0 where that was not measured."""
    if attention.extra.size == 0:
        return 0.0
    return _on_grid(
        attention.grid_chunk, attention.grid_prefix, attention.grid_decodes, attention.grid_context, attention.extra,
        chunk, prefix, decodes, context,
    )  # fmt: skip


@borrowing
def tail_seconds(
    attention: AttentionTable, chunk: float, decodes: float, context: float, longest: float
) -> float:
    """What a decode with the longest context takes beyond the others, whose mean is `context`: it reads on alone.

    chunk: of the prefill in the same call, 0 without. 0 where uneven batches were not measured.
    """
    beyond = longest - context
    if attention.tail.size == 0 or beyond <= 0.0:
        return 0.0
    return beyond * _on_grid(
        attention.tail_chunk, attention.tail_decodes, attention.tail_longest, attention.tail_evenness, attention.tail,
        chunk, decodes, longest, context / longest,
    )  # fmt: skip
