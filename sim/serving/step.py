"""One step of an engine: what it takes, and its row in the books."""

from __future__ import annotations

from typing import Any

from models.compiled import borrowing, inner_borrowing
from models.cost.step import StepTable, step_parts
from sim.serving.adapter_experts import tally_experts, touched_experts
from sim.serving.attention import attention_of, tally
from sim.serving.state import EngineState


@inner_borrowing
def graph_tokens(num_tokens: int, largest: int) -> int:
    """Tokens that the operators of so many compute: up to `largest` the next size of a recorded graph.

    Sizes as vLLM 0.19 records them: 1, 2, 4, multiples of 8 up to 256, of 16 beyond (vllm/config/vllm.py).
    """
    if num_tokens > largest or num_tokens <= 2:
        return num_tokens
    if num_tokens <= 4:
        return min(4, largest)
    step = 8 if num_tokens <= 256 else 16
    return min((num_tokens + step - 1) // step * step, largest)


@inner_borrowing(inline="always")
def attention_and_tokens(state: EngineState, table: StepTable) -> tuple[float, float, bool, int]:
    """Of the batch just formed: measured attention of a layer (`attention_of`), and tokens that operators compute."""
    counts = state.counts[0]
    prefill_s = 0.0
    decode_s = 0.0
    is_outside = False
    if table.attention.chunk.size > 0:
        prefill_s, decode_s, is_outside = attention_of(state, table.attention, counts.decodes, counts.decode_context)
    return prefill_s, decode_s, is_outside, graph_tokens(counts.tokens, counts.max_graph_tokens)


@inner_borrowing
def enter_flight(counts: Any, flight: Any) -> None:
    """The batch just formed is in flight from now on."""
    flight.batch_size = counts.batch_size
    flight.tokens = counts.tokens
    flight.prefill_tokens = counts.prefill_tokens
    flight.decode_context = counts.decode_context
    flight.is_steady = counts.is_steady
    flight.started_s = counts.now_s


@borrowing
def price_batch(state: EngineState, table: StepTable) -> None:
    """Find out what the batch just formed takes."""
    counts = state.counts[0]
    prefill_s, decode_s, is_outside, tokens = attention_and_tokens(state, table)
    touched = 0.0
    if table.mix.log_miss.size > 0:
        touched = touched_experts(state, table, state.batch, counts.batch_size, tokens - counts.tokens)
        tally_experts(state, table, tokens, touched, 1)
    compute_s, communication_s = step_parts(
        table,
        tokens,
        counts.decodes,
        counts.batch_size + counts.drafts,
        counts.prefill_pairs,
        counts.prefill_context,
        counts.decode_context,
        prefill_s,
        decode_s,
        touched,
    )
    tally(state, tokens, counts.batch_size + counts.drafts, prefill_s, decode_s, is_outside)
    counts.total_s += compute_s + communication_s
    if counts.num_spec_tokens > 0:
        compute_s += draft_seconds(state, table, compute_s + communication_s, decode_s, touched)
    if counts.blocks_to_copy > 0:
        communication_s += copy_seconds(state)
    formed = state.flight[1]
    formed.compute_s = compute_s
    formed.communication_s = communication_s
    formed.load_s = counts.load_to_do_s
    counts.load_to_do_s = 0.0


@inner_borrowing
def draft_seconds(state: EngineState, table: StepTable, step_s: float, decode_s: float, touched: float) -> float:
    """Time of drafting after a step of step_s: draft_s where any sequence is to go on, and the passes of a draft model.

    Its first pass takes the step's tokens, as a share draft_cost of the step; each of the k - 1 others one token of
    each sequence, as the same share of a step of so many decodes: k · draft_cost · step_s where steps are alike.
    """
    counts, batch = state.counts[0], state.batch
    sequences = 0
    for i in range(counts.batch_size):
        sequences += batch[i].samples > 0
    seconds = counts.draft_cost * step_s
    if sequences > 0:
        seconds += counts.draft_s
    if sequences > 0 and counts.draft_cost > 0 and counts.num_spec_tokens > 1:
        tokens = graph_tokens(sequences, counts.max_graph_tokens)
        compute_s, communication_s = step_parts(
            table, tokens, counts.decodes, sequences, 0, 0, counts.decode_context, 0.0, decode_s, touched
        )
        seconds += (counts.num_spec_tokens - 1) * counts.draft_cost * (compute_s + communication_s)
    counts.total_draft_s += seconds
    return seconds


@inner_borrowing
def copy_seconds(state: EngineState) -> float:
    """Time of the copies between device and host that the step in the making waits for, which are then decided no
    more."""
    counts = state.counts[0]
    seconds = counts.blocks_to_copy * counts.block_copy_s
    counts.total_copy_s += seconds
    counts.blocks_to_copy = 0
    return seconds


@inner_borrowing
def record_step(state: EngineState, num_kv_blocks: int) -> None:
    """Count the step in flight, and keep its row if there is room for one."""
    counts, flight = state.counts[0], state.flight[0]
    counts.num_steps += 1
    counts.past_compute_s += flight.compute_s
    counts.past_communication_s += flight.communication_s
    counts.past_uncontended_s += flight.uncontended_s
    counts.past_load_s += flight.load_s
    if counts.num_recorded < state.steps.size:
        row = state.steps[counts.num_recorded]
        row.started_s = flight.started_s
        row.finished_s = flight.finish_s
        row.compute_s = flight.compute_s
        row.communication_s = flight.communication_s
        row.num_prefill_tokens = flight.prefill_tokens
        row.num_decodes = flight.tokens - flight.prefill_tokens
        row.num_kv_blocks = num_kv_blocks
        counts.num_recorded += 1
