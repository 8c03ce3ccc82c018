"""The engine: one replica's steps, compiled.

A step starts, runs for a time that the cost table gives for exactly this batch, and finishes. Between two
steps the batching policy decides. Nothing here knows SimPy: the engine is a core that is advanced to a time.
"""

from __future__ import annotations

from numba import njit

from models.compiled import inner
from models.cost.step import AttentionTable, StepTable, decode_seconds, step_parts
from sim.devices.kv_cache import hold, release
from sim.serving.attention import attention_of, tally
from sim.serving.request import COMPLETED
from sim.serving.state import (
    MAX_LEAP,
    EngineState,
    next_arrival_s,
    num_waiting,
    take_arrivals,
)

REACHED, PAUSED, ROWS_FULL, STALLED = 0, 1, 2, 3
"""Why `advance` returned: the time was reached (or there is nothing left to do), the number of steps was,
the step table has to grow, or requests wait that the policy never schedules."""


@njit(cache=True)
def form_batch(state: EngineState, policy) -> bool:
    """Let the policy fill the batch for a step that starts now; True where it calls its decision steady."""
    counts = state.counts[0]
    counts.batch_size = 0
    counts.tokens = 0
    counts.decodes = 0
    counts.prefill_pairs = 0
    counts.prefill_context = 0
    counts.decode_context = 0
    take_arrivals(state)
    return policy(state)


@njit(cache=True)
def start_step(state: EngineState, table: StepTable) -> None:
    """Price the batch and put the step in flight: it takes max(accelerator, host)."""
    counts = state.counts[0]
    prefill_s = 0.0
    decode_s = 0.0
    is_outside = False
    if table.attention.chunk.size > 0:
        prefill_s, decode_s, is_outside = attention_of(
            state, table.attention, 0, 1, counts.decodes, counts.decode_context
        )
    compute_s, communication_s = step_parts(
        table,
        counts.tokens,
        counts.decodes,
        counts.batch_size,
        counts.prefill_pairs,
        counts.prefill_context,
        counts.decode_context,
        prefill_s,
        decode_s,
    )
    tally(state, counts.tokens, counts.batch_size, prefill_s, decode_s, is_outside)
    counts.total_s += compute_s + communication_s
    counts.compute_s = compute_s
    counts.communication_s = communication_s
    counts.finish_s = counts.now_s + max(compute_s + communication_s, counts.host_s)
    counts.is_in_flight = 1


@inner
def record_step(
    state: EngineState,
    started_s: float,
    finished_s: float,
    compute_s: float,
    communication_s: float,
    num_kv_blocks: int,
) -> None:
    """Count the step, and keep its row if there is room for one."""
    counts = state.counts[0]
    counts.num_steps += 1
    if counts.num_recorded < state.steps.size:
        row = state.steps[counts.num_recorded]
        row.started_s = started_s
        row.finished_s = finished_s
        row.compute_s = compute_s
        row.communication_s = communication_s
        row.num_prefill_tokens = counts.tokens - counts.decodes
        row.num_decodes = counts.decodes
        row.num_kv_blocks = num_kv_blocks
        counts.num_recorded += 1


@njit(cache=True)
def complete_step(state: EngineState, finish_s: float) -> None:
    """Finish the step in flight: each sequence whose known tokens are now all computed has one more token."""
    counts = state.counts[0]
    kv = state.kv.counts[0]
    record_step(
        state, counts.now_s, finish_s, counts.compute_s, counts.communication_s, kv.num_blocks - kv.num_free
    )
    has_finished = False
    for i in range(counts.batch_size):
        entry = state.batch[i]
        row = state.requests[entry.request]
        row.num_computed += entry.num_tokens
        if row.num_computed < row.num_prompt_tokens + row.num_generated:
            continue
        state.token_time_s[row.first_token + row.num_generated] = finish_s
        row.num_generated += 1
        if row.num_generated == 1:
            row.first_token_s = finish_s
        if row.num_generated == row.num_output_tokens:
            has_finished = True
    if has_finished:
        retire(state, finish_s)
    counts.now_s = finish_s
    counts.is_in_flight = 0


@inner
def retire(state: EngineState, finish_s: float) -> None:
    """Take those who have all their tokens from the running list, which keeps its order."""
    counts = state.counts[0]
    kept = 0
    for i in range(counts.num_running):
        request = state.running[i]
        row = state.requests[request]
        if row.num_generated == row.num_output_tokens:
            row.finished_s = finish_s
            row.outcome = COMPLETED
            counts.num_completed += 1
            release(state.kv, request)
        else:
            state.running[kept] = request
            kept += 1
    counts.num_running = kept


@inner
def _decodes_from(
    state: EngineState, attention: AttentionTable, num_steps: int
) -> tuple[float, float, int, bool]:
    """Attention of a steady batch `num_steps` from now: (seconds, what each further step adds, the step at which that
    changes because a context has come to a node of the table, whether any lies beyond the table)."""
    size = state.counts[0].batch_size
    decode_s = 0.0
    slope_s = 0.0
    steps_on = MAX_LEAP
    longest = 0
    for i in range(size):
        context = state.requests[state.batch[i].request].num_computed + 1 + num_steps
        segment = attention.segment[context]
        decode_s += decode_seconds(attention, size, context)
        slope_s += attention.decode_slope[size, segment]
        steps_on = min(steps_on, max(int(attention.context[segment + 1]) - context, 1))
        longest = max(longest, context)
    return decode_s, slope_s, num_steps + steps_on, longest > attention.decode_limit[size]


@inner
def leap(state: EngineState, table: StepTable, until_s: float) -> int:
    """Run the steady batch just formed again and again, until something may change; returns the steps done.

    That is: until a request has its last token, somebody arrives, blocks run out, or a step would end after
    until_s. The steps differ only in their contexts, each one longer than before, so they are priced one by
    one here, and the requests are brought up to date once at the end.
    """
    counts = state.counts[0]
    kv = state.kv.counts[0]
    size = counts.batch_size
    limit = MAX_LEAP
    # A request needs a new block in the step that finds its last one full: count those by distance.
    fill = state.block_fill
    fill[:] = 0
    for i in range(size):
        row = state.requests[state.batch[i].request]
        limit = min(limit, row.num_output_tokens - row.num_generated)
        fill[row.num_computed % kv.block_size] += 1
    arrival_s = next_arrival_s(state)
    num_free = kv.num_free
    residue = 0
    context = counts.decode_context
    now_s = counts.now_s
    num_steps = 0
    is_measured = table.attention.chunk.size > 0
    decode_s = 0.0
    slope_s = 0.0
    is_outside = False
    next_node = 0
    while num_steps < limit:
        if num_steps > 0:
            # In step j a request with c tokens computed needs a block if (c + j) is a multiple of the size.
            residue = kv.block_size - 1 if residue == 0 else residue - 1
            if fill[residue] > num_free or now_s >= arrival_s or now_s >= until_s:
                break
        if is_measured:
            if num_steps == next_node:
                decode_s, slope_s, next_node, is_outside = _decodes_from(state, table.attention, num_steps)
            else:
                decode_s += slope_s
        compute_s, communication_s = step_parts(table, size, size, size, 0, 0, context, 0.0, decode_s)
        finish_s = now_s + max(compute_s + communication_s, counts.host_s)
        if finish_s > until_s:
            break
        if num_steps > 0:
            num_free -= fill[residue]
        record_step(state, now_s, finish_s, compute_s, communication_s, kv.num_blocks - num_free)
        tally(state, size, size, 0.0, decode_s, is_outside)
        counts.total_s += compute_s + communication_s
        state.leap_finish_s[num_steps] = finish_s
        num_steps += 1
        context += size
        now_s = finish_s
    if num_steps == 0:
        return 0
    has_finished = False
    for i in range(size):
        request = state.batch[i].request
        row = state.requests[request]
        first = row.first_token + row.num_generated
        for j in range(num_steps):
            state.token_time_s[first + j] = state.leap_finish_s[j]
        row.num_generated += num_steps
        row.num_computed += num_steps
        hold(state.kv, request, row.num_computed)
        if row.num_generated == row.num_output_tokens:
            has_finished = True
    if has_finished:
        retire(state, now_s)
    counts.now_s = now_s
    return num_steps


@njit(cache=True)
def advance(
    state: EngineState, policy, table: StepTable, until_s: float, max_steps: int, max_rows: int
) -> int:
    """Start every step that starts before until_s, finish every one that ends by then; returns why it
    stopped.

    Arrivals before until_s must have been submitted. May return early, after max_steps or when the recorded
    steps need room (up to max_rows are kept); it is then called again.
    """
    counts = state.counts[0]
    last_step = counts.num_steps + max_steps
    while counts.num_steps < last_step:
        if counts.num_recorded + MAX_LEAP > state.steps.size and state.steps.size < max_rows:
            return ROWS_FULL
        if counts.is_in_flight == 0:
            if counts.now_s >= until_s:
                return REACHED
            is_steady = form_batch(state, policy)
            if counts.batch_size == 0:
                if num_waiting(state) > 0 or counts.num_running > 0:
                    return STALLED
                arrival_s = next_arrival_s(state)
                if arrival_s >= until_s:
                    return REACHED
                counts.now_s = arrival_s
                continue
            if is_steady and leap(state, table, until_s) > 0:
                continue
            start_step(state, table)
        if counts.finish_s > until_s:
            return REACHED
        complete_step(state, counts.finish_s)
    return PAUSED
