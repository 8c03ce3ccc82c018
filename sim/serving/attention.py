"""Measured attention of a batch, each sequence at its own length."""

from __future__ import annotations

from models.compiled import inner_borrowing
from models.cost.step import AttentionTable, chunk_seconds, decode_seconds, extra_seconds, tail_seconds
from sim.serving.speculation import query_weight
from sim.serving.state import EngineState


@inner_borrowing(inline="always")
def attention_of(
    state: EngineState, attention: AttentionTable, decodes: int, decode_context: float
) -> tuple[float, float, bool]:
    """One layer's (prefill, decode) seconds of the batch, and whether any lies beyond the table.

    decodes, decode_context    how many decodes it has, and the sum of their contexts
    A token and its drafts are one decode, whose queries share what they read (`query_weight`).
    The chunks and the decodes each as if alone; once, what the longest decode takes beyond the others, and what the
    chunk that takes longest and the decodes take more in one call than each alone.
    """
    limits = attention.limits
    prefill_s = 0.0
    decode_s = 0.0
    longest = 0
    largest_s = 0.0
    largest_chunk = 0
    largest_prefix = 0
    is_outside = False
    batch = state.batch
    for i in range(state.counts[0].batch_size):
        entry = batch[i]
        num_tokens, prefix = entry.num_tokens, entry.prefix
        if num_tokens == 1 or entry.samples > 1:
            seconds = decode_seconds(attention, decodes, prefix + num_tokens)
            decode_s += seconds * query_weight(state.counts[0], num_tokens)
            longest = max(longest, prefix + num_tokens)
            continue
        seconds = chunk_seconds(attention, num_tokens, prefix)
        prefill_s += seconds
        is_outside |= num_tokens > limits[0] or prefix > limits[1] or num_tokens + prefix > limits[2]
        if seconds > largest_s:
            largest_s, largest_chunk, largest_prefix = seconds, num_tokens, prefix
    is_outside |= longest > attention.decode_limit[decodes]
    if decodes > 0:
        context = decode_context / decodes
        # Asked here, because a call hands over all arrays of the table.
        if attention.tail.size > 0:
            decode_s += tail_seconds(attention, largest_chunk, decodes, context, longest)
        if largest_chunk > 0 and attention.extra.size > 0:
            more_s = extra_seconds(attention, largest_chunk, largest_prefix, decodes, context)
            prefill_s = max(prefill_s + more_s, 0.0)
    return prefill_s, decode_s, is_outside


@inner_borrowing
def tally(
    state: EngineState, tokens: int, sequences: int, prefill_s: float, decode_s: float, is_outside: bool
) -> None:
    """Count what a step computes, where steps are counted."""
    if state.steps_with_tokens.size > 0:
        counts = state.counts[0]
        state.steps_with_tokens[tokens] += 1
        state.steps_with_sequences[sequences] += 1
        counts.total_prefill_s += prefill_s
        counts.total_decode_s += decode_s
        if is_outside:
            counts.outside_s += prefill_s + decode_s
