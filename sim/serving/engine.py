"""The engine: one replica's steps, compiled.

A batch is formed by the batching policy, priced by the cost table for exactly what it holds, launched when the batch
before it has finished, and finished itself. A synchronous engine forms a batch when the one before has finished; an
asynchronous one when the one before starts, so that it sees arrivals, freed slots and freed blocks a step later.
Nothing here knows SimPy: the engine is a core that is advanced to a time.
"""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from models.cost.step import AttentionTable, StepTable, decode_seconds, step_parts, tail_seconds
from sim.devices.kv_cache import hold, leave_host, note_contents, release
from sim.serving.adapter_experts import tally_experts, touched_experts
from sim.serving.adapter_pool import leave_adapter, next_ready_s, start_loads
from sim.serving.attention import attention_of, tally
from sim.serving.offload import store_filled, store_leapt, take_fetched, wait_for_blocks
from sim.serving.request import COMPLETED
from sim.serving.speculation import verify
from sim.serving.state import MAX_LEAP, EngineState
from sim.serving.time_split import DECODING, ENDED, PREFILLING, RECOMPUTING, enter, enter_marked
from sim.serving.verbs import next_arrival_s, num_waiting, take_arrivals

REACHED, PAUSED, ROWS_FULL, STALLED = 0, 1, 2, 3
"""Why `advance` returned: the time was reached (or there is nothing left to do), the number of steps was,
the step table has to grow, or requests wait that the policy never schedules."""

NOTHING = 2
"""COUNTS.is_formed: the policy found nothing to run behind the step in flight. It is asked again when that has
finished, and not before, however often the engine is stopped on the way."""


@inner_borrowing
def clear_batch(counts) -> None:
    """Begin a batch."""
    counts.batch_size = 0
    counts.tokens = 0
    counts.prefill_tokens = 0
    counts.decodes = 0
    counts.prefill_pairs = 0
    counts.prefill_context = 0
    counts.decode_context = 0
    counts.drafts = 0
    counts.is_asked = 0


@borrowing
def form_batch(state: EngineState, policy) -> None:
    """Let the policy fill the batch, with what it sees now."""
    counts = state.counts[0]
    clear_batch(counts)
    take_arrivals(state)
    if counts.first_fetch > 0:
        take_fetched(state)
    num_preemptions = counts.num_preemptions
    is_steady = policy(state)
    # Who is first in a step may have given way to those behind, and nothing runs that would end and ask again.
    while counts.batch_size == 0 and counts.num_preemptions > num_preemptions and state.flight[0].batch_size == 0:
        num_preemptions = counts.num_preemptions
        is_steady = policy(state)
    if counts.is_overlapped:
        start_loads(state)
    # With drafts, steps differ in what they bring.
    counts.is_steady = is_steady and counts.num_spec_tokens == 0


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


@borrowing
def price_batch(state: EngineState, table: StepTable) -> None:
    """Find out what the batch just formed takes."""
    counts = state.counts[0]
    prefill_s = 0.0
    decode_s = 0.0
    is_outside = False
    if table.attention.chunk.size > 0:
        prefill_s, decode_s, is_outside = attention_of(state, table.attention, counts.decodes, counts.decode_context)
    tokens = graph_tokens(counts.tokens, counts.max_graph_tokens)
    touched = 0.0
    if table.mix.log_miss.size > 0:  # asked here, because a call hands over all arrays
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


@borrowing
def launch_batch(state: EngineState) -> None:
    """Put the batch in flight, now: it takes max(accelerator, host), after the adapters that it waits for."""
    counts = state.counts[0]
    formed, flight = state.flight[1], state.flight[0]
    batch, in_flight = state.batch, state.in_flight
    for i in range(counts.batch_size):
        in_flight[i] = batch[i]
    flight.batch_size = counts.batch_size
    flight.tokens = counts.tokens
    flight.prefill_tokens = counts.prefill_tokens
    flight.decode_context = counts.decode_context
    flight.is_steady = counts.is_steady
    flight.compute_s = formed.compute_s
    flight.communication_s = formed.communication_s
    flight.load_s = formed.load_s
    flight.started_s = counts.now_s
    flight.finish_s = counts.now_s + formed.load_s + max(formed.compute_s + formed.communication_s, counts.host_s)
    counts.is_formed = 0
    if counts.first_mark > 0:
        enter_marked(counts, state.requests, state.splits)


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


@borrowing
def complete_step(state: EngineState) -> None:
    """Finish the step in flight: each sequence whose known tokens were all in it has one more token, and as many as its
    drafts hold."""
    counts, flight = state.counts[0], state.flight[0]
    kv = state.kv.counts[0]
    finish_s = flight.finish_s
    record_step(state, kv.num_blocks - kv.num_free)
    num_finished = 0
    in_flight, requests, token_time_s = state.in_flight, state.requests, state.token_time_s
    for i in range(flight.batch_size):
        if in_flight[i].samples == 0:
            continue
        row = requests[in_flight[i].request]
        if in_flight[i].samples > 1:
            num_more = verify(counts, row, in_flight[i].request, in_flight[i].samples - 1) - 1
            for _ in range(num_more):
                token_time_s[row.first_token + row.num_generated] = finish_s
                row.num_generated += 1
        token_time_s[row.first_token + row.num_generated] = finish_s
        row.num_in_flight -= 1
        row.num_generated += 1
        row.num_drafts = counts.num_spec_tokens
        if row.num_generated == 1:
            row.first_token_s = finish_s
            enter(counts, requests, state.splits, in_flight[i].request, DECODING, finish_s)
        if row.num_generated == row.num_output_tokens:
            num_finished += 1
    if counts.num_recomputing > 0:
        _end_recomputing(state)
    if counts.num_tiers > 0:
        store_filled(state)
    if num_finished > 0:
        retire(state, finish_s, num_finished)
        if counts.ends_unforeseen:
            _discard_ended(state)
    flight.batch_size = 0
    counts.now_s = finish_s


@inner_borrowing
def _discard_ended(state: EngineState) -> None:
    """Who has just ended may be in the batch that was formed meanwhile: that part is computed for nobody, as vLLM skips
    what comes back for requests that it has finished (v1/core/sched/scheduler.py, update_from_output)."""
    counts = state.counts[0]
    batch, requests = state.batch, state.requests
    for i in range(counts.batch_size):
        row = requests[batch[i].request]
        if row.outcome == COMPLETED:
            counts.num_discarded += batch[i].num_tokens
            batch[i].samples = 0
            row.num_in_flight = 0
            # The batch is not the one that its successors would be.
            counts.is_steady = 0


@inner_borrowing
def _end_recomputing(state: EngineState) -> None:
    """The step in flight has finished: who has computed again in it all that was lost goes on."""
    counts, flight = state.counts[0], state.flight[0]
    in_flight, requests, splits = state.in_flight, state.requests, state.splits
    for i in range(flight.batch_size):
        entry = in_flight[i]
        split = splits[entry.request]
        if split.stage == RECOMPUTING and entry.prefix + entry.num_tokens >= split.num_lost:
            enter(counts, requests, splits, entry.request, PREFILLING, flight.finish_s)


@inner_borrowing
def retire(state: EngineState, finish_s: float, num_finished: int) -> None:
    """Take the num_finished who have all their tokens from the running list, which keeps its order.

    One may have been preempted while its last token was in flight: it waits in the line, and goes from there.
    """
    counts = state.counts[0]
    kept = 0
    running, requests = state.running, state.requests
    for i in range(counts.num_running):
        request = running[i]
        if requests[request].num_generated == requests[request].num_output_tokens:
            _end(state, request, finish_s)
        else:
            running[kept] = request
            kept += 1
    num_finished -= counts.num_running - kept
    counts.num_running = kept
    mask = state.waiting.size - 1
    place = counts.head
    while num_finished > 0 and place < counts.arrived:
        request = state.waiting[place & mask]
        if state.requests[request].num_generated == state.requests[request].num_output_tokens:
            for i in range(place, counts.head, -1):
                state.waiting[i & mask] = state.waiting[(i - 1) & mask]
            counts.head += 1
            num_finished -= 1
            _end(state, request, finish_s)
        place += 1


@inner_borrowing
def _end(state: EngineState, request: int, finish_s: float) -> None:
    row = state.requests[request]
    row.finished_s = finish_s
    row.outcome = COMPLETED
    counts = state.counts[0]
    enter(counts, state.requests, state.splits, request, ENDED, finish_s)
    counts.num_completed += 1
    if counts.adapter_capacity > 0:
        leave_adapter(state, request, finish_s)
    if counts.keeps_blocks == 0:
        release(state.kv, request)
    if counts.num_swaps > 0:
        leave_host(state.kv, request)


@inner_borrowing
def _decodes_from(
    state: EngineState, attention: AttentionTable, num_steps: int
) -> tuple[float, float, int, bool, int]:
    """Attention of the steady batch in flight, `num_steps` on: (seconds, what each further step adds, the step at which
    that changes because a context has come to a node of the table, whether any lies beyond the table, the longest
    context)."""
    size = state.flight[0].batch_size
    decode_s = 0.0
    slope_s = 0.0
    steps_on = MAX_LEAP
    longest = 0
    in_flight = state.in_flight
    for i in range(size):
        context = in_flight[i].prefix + 1 + num_steps
        segment = attention.segment[context]
        decode_s += decode_seconds(attention, size, context)
        slope_s += attention.decode_slope[size, segment]
        steps_on = min(steps_on, max(int(attention.context[segment + 1]) - context, 1))
        longest = max(longest, context)
    return decode_s, slope_s, num_steps + steps_on, longest > attention.decode_limit[size], longest - num_steps


@inner_borrowing
def _end_first_stages(state: EngineState) -> None:
    """After the first step of a leap: a prompt of one token, or the last token computed again."""
    counts, flight = state.counts[0], state.flight[0]
    if counts.num_recomputing > 0:
        _end_recomputing(state)
    in_flight, requests, splits = state.in_flight, state.requests, state.splits
    for i in range(flight.batch_size):
        if requests[in_flight[i].request].num_generated == 0:
            enter(counts, requests, splits, in_flight[i].request, DECODING, flight.finish_s)


@inner_borrowing
def _next_change_s(state: EngineState) -> float:
    """When somebody comes, or an adapter that is being loaded is there."""
    arrival_s = next_arrival_s(state)
    return min(arrival_s, next_ready_s(state)) if state.counts[0].is_overlapped else arrival_s


@inner_borrowing
def leap(state: EngineState, table: StepTable, until_s: float, is_trial: bool = False) -> int:
    """Run the steady batch in flight again and again, until something may change; returns the steps finished.

    Of a trial the state keeps nothing but when the last one ends, at that place of leap_finish_s.

    That is: until a request is to compute its last token, somebody arrives, an adapter has been loaded, blocks run out,
    or a step would end after until_s. The steps differ only in their contexts, each one longer than before, so they are
    priced one by one here, and the requests are brought up to date once at the end. The last one is then in flight.
    """
    counts, flight = state.counts[0], state.flight[0]
    kv = state.kv.counts[0]
    size = flight.batch_size
    limit = MAX_LEAP - 1
    is_stage_over = counts.num_recomputing > 0
    # A request needs a new block in the step that finds its last one full: count those by distance.
    fill = state.block_fill
    fill[:] = 0
    in_flight, requests, token_time_s = state.in_flight, state.requests, state.token_time_s
    for i in range(size):
        row = requests[in_flight[i].request]
        limit = min(limit, row.num_output_tokens - row.num_generated - 1)
        is_stage_over |= row.num_generated == 0
        fill[row.num_computed % kv.block_size] += 1
    if limit <= 0:
        return 0
    arrival_s = _next_change_s(state)
    num_free = kv.num_free
    residue = 0
    context = flight.decode_context
    num_steps = 0
    is_measured = table.attention.chunk.size > 0
    tokens = graph_tokens(size, counts.max_graph_tokens)
    has_adapters = table.mix.log_miss.size > 0
    touched = touched_experts(state, table, in_flight, size, tokens - size) if has_adapters else 0.0
    decode_s = 0.0
    slope_s = 0.0
    is_outside = False
    next_node = 1
    longest = 0
    started_s, finish_s = flight.started_s, flight.finish_s
    flight_compute_s, flight_communication_s = flight.compute_s, flight.communication_s
    flight_prompt = flight.prefill_tokens
    while num_steps < limit:
        formed_s = flight.started_s if counts.is_async else flight.finish_s
        # In step j a request with c tokens computed needs a block if (c + j) is a multiple of the size.
        if fill[residue] > num_free or formed_s >= arrival_s or formed_s >= until_s or flight.finish_s > until_s:
            break
        held = kv.num_blocks - num_free
        num_free -= fill[residue]
        if counts.is_async:
            held = kv.num_blocks - num_free
        residue = kv.block_size - 1 if residue == 0 else residue - 1
        if not is_trial:
            record_step(state, held)
        state.leap_finish_s[num_steps] = flight.finish_s
        if is_stage_over and num_steps == 0 and not is_trial:
            _end_first_stages(state)
        num_steps += 1
        context += size
        tail_s = 0.0
        if is_measured:
            if num_steps == next_node:
                decode_s, slope_s, next_node, is_outside, longest = _decodes_from(state, table.attention, num_steps)
            else:
                decode_s += slope_s
            if table.attention.tail.size > 0:
                tail_s = tail_seconds(table.attention, 0, size, context / size, longest + num_steps)
        compute_s, communication_s = step_parts(
            table, tokens, size, size, 0, 0, context, 0.0, decode_s + tail_s, touched
        )
        if not is_trial:
            tally(state, tokens, size, 0.0, decode_s + tail_s, is_outside)
            counts.total_s += compute_s + communication_s
        flight.prefill_tokens = 0
        flight.compute_s = compute_s
        flight.communication_s = communication_s
        flight.started_s = flight.finish_s
        flight.finish_s = flight.started_s + max(compute_s + communication_s, counts.host_s)
    if is_trial:
        state.leap_finish_s[num_steps] = flight.finish_s
        flight.started_s, flight.finish_s = started_s, finish_s
        flight.compute_s, flight.communication_s = flight_compute_s, flight_communication_s
        flight.prefill_tokens = flight_prompt
    if num_steps == 0 or is_trial:
        return num_steps
    if has_adapters:
        tally_experts(state, table, tokens, touched, num_steps)
    flight.decode_context = context
    counts.now_s = flight.started_s
    leap_finish_s = state.leap_finish_s
    if counts.num_tiers > 0:
        store_leapt(state, num_steps)
    for i in range(size):
        request = in_flight[i].request
        row = requests[request]
        first = row.first_token + row.num_generated
        for j in range(num_steps):
            token_time_s[first + j] = leap_finish_s[j]
        if row.num_generated == 0:  # a prompt of one token
            row.first_token_s = leap_finish_s[0]
        row.num_generated += num_steps
        row.num_computed += num_steps
        in_flight[i].prefix += num_steps
        hold(state.kv, request, row.num_computed)
        # As of when the last step was formed: then the one before was still to bring its token.
        known = row.num_prompt_tokens + row.num_generated - counts.is_async
        note_contents(state.kv, request, min(row.num_computed, known))
    return num_steps


@borrowing
def advance(
    state: EngineState, policy, table: StepTable, until_s: float, max_steps: int, max_rows: int
) -> int:
    """Form every batch that is formed before until_s, finish every step that ends by then; returns why it stopped.

    Arrivals before until_s must have been submitted. May return early, after max_steps or when the recorded
    steps need room (up to max_rows are kept); it is then called again.
    """
    counts, flight = state.counts[0], state.flight[0]
    last_step = counts.num_steps + max_steps
    while counts.num_steps < last_step:
        if counts.num_recorded + MAX_LEAP > state.steps.size and state.steps.size < max_rows:
            return ROWS_FULL
        if counts.is_formed == 0 and (flight.batch_size == 0 or counts.is_async):
            if flight.is_steady and flight.batch_size > 0 and leap(state, table, until_s) > 0:
                continue
            if counts.now_s >= until_s:
                return REACHED
            if counts.awaits_load:  # it was asked, and nothing changes before
                change_s = _next_change_s(state)
                if change_s >= until_s:
                    return REACHED
                counts.awaits_load = 0
                counts.now_s = change_s
            form_batch(state, policy)
            if counts.batch_size > 0:
                price_batch(state, table)
                counts.is_formed = 1
            elif flight.batch_size == 0:
                if counts.first_fetch == 0 and (num_waiting(state) > 0 or counts.num_running > 0):
                    if counts.is_overlapped == 0 or next_ready_s(state) == np.inf:
                        return STALLED
                    counts.awaits_load = 1
                    continue
                event_s = next_arrival_s(state)
                if counts.first_fetch > 0:
                    event_s = min(event_s, wait_for_blocks(state))
                if event_s >= until_s:
                    counts.is_asked = 1
                    return REACHED
                counts.now_s = event_s
                continue
            else:
                counts.is_formed = NOTHING
        if flight.batch_size > 0:
            if flight.finish_s > until_s:
                return REACHED
            complete_step(state)
        if counts.is_formed == NOTHING:
            counts.is_formed = 0
        elif counts.is_formed:
            launch_batch(state)
            if counts.is_async == 0 and flight.is_steady:
                leap(state, table, until_s)
    return PAUSED
