"""The engine: one replica's steps, compiled.

A batch is formed by the batching policy, priced by the cost table for exactly what it holds, launched when the batch
before it has finished, and finished itself. A synchronous engine forms a batch when the one before has finished; an
asynchronous one when the one before starts, so that it sees arrivals, freed slots and freed blocks a step later.
Nothing here knows SimPy: the engine is a core that is advanced to a time.
"""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from models.cost.step import StepTable
from sim.devices.kv_cache import leave_host, release
from sim.serving.adapter_pool import leave_adapter, next_ready_s, start_loads
from sim.serving.leap import end_recomputing, leap, next_change_s
from sim.serving.offload import store_filled, take_fetched, wait_for_blocks
from sim.serving.request import COMPLETED
from sim.serving.speculation import verify
from sim.serving.state import MAX_LEAP, EngineState
from sim.serving.step import enter_flight, price_batch, record_step
from sim.serving.time_split import DECODING, ENDED, enter, enter_marked
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


@borrowing
def launch_batch(state: EngineState) -> None:
    """Put the batch in flight, now: it takes max(accelerator, host), after the adapters that it waits for."""
    counts = state.counts[0]
    formed, flight = state.flight[1], state.flight[0]
    batch, in_flight = state.batch, state.in_flight
    for i in range(counts.batch_size):
        in_flight[i] = batch[i]
    enter_flight(counts, flight)
    flight.compute_s = formed.compute_s
    flight.communication_s = formed.communication_s
    flight.load_s = formed.load_s
    flight.finish_s = counts.now_s + formed.load_s + max(formed.compute_s + formed.communication_s, counts.host_s)
    counts.is_formed = 0
    if counts.first_mark > 0:
        enter_marked(counts, state.requests, state.splits)


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
        end_recomputing(state)
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
                change_s = next_change_s(state)
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
