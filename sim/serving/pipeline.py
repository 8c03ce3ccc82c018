"""Batches in flight on several pipeline stages, compiled: as many as there are stages, each on its way through all.

As vLLM's engine core runs it (vllm/v1/engine/core.py, step_with_batch_queue): while the queue of batches has room, the
scheduler forms one of whatever is not in flight and launches it at once; when it finds nothing, or the queue is full,
the engine waits for the oldest batch, and sees neither arrivals nor room until that has finished. A running request
whose next token is in flight is not scheduled again before that is back; a prompt that goes on is, chunk behind chunk,
since stages compute batches in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import borrowing, inner_borrowing
from models.cost.step import IS_COMMUNICATION, StepTable, operator_seconds
from sim.serving.attention import tally
from sim.serving.engine import PAUSED, REACHED, ROWS_FULL, STALLED, clear_batch, complete_step
from sim.serving.state import BATCH_ENTRY, FLIGHT, EngineState
from sim.serving.step import attention_and_tokens, enter_flight
from sim.serving.time_split import enter_marked
from sim.serving.verbs import next_arrival_s, num_waiting, take_arrivals

QUEUE = np.dtype(
    [("first", "i8"), ("num", "i8"), ("is_blocked", "i8"), ("num_preemptions", "i8"), ("last_finish_s", "f8"),
     ("active_s", "f8"), ("num_rows", "i8")],
    align=True,
)  # fmt: skip
"""The queue of batches in flight.

first, num           the place of the oldest, and how many there are
is_blocked           the engine waits for the oldest
num_preemptions      so many are over: nothing is in flight of whoever gave way in them
last_finish_s        when the last batch left
active_s             time in which any batch was in flight, up to there
num_rows             of the activations of the batch that was priced last: its tokens, padded
"""

STAGE = np.dtype([("free_s", "f8"), ("busy_s", "f8")], align=True)
"""free_s: when it has done all that was launched; busy_s: its accelerators' time for batches that have finished."""


class PipelineState(NamedTuple):
    """What an engine with p stages has beside its `EngineState`.

    queue               [1] QUEUE
    stages              [p] STAGE
    flights, entries    [p] FLIGHT and [p, max_num_seqs] BATCH_ENTRY of the batches in flight, a ring
    stage_s, send_s     [p, p] and [p, p - 1] seconds of each on each stage, and on its way to the next
    of_stages, of_sends    [p, operators] and [p - 1, operators] shares of an operator's time (`models.pipeline`)
    each                [operators] scratch
    """

    queue: NDArray[Any]
    stages: NDArray[Any]
    flights: NDArray[Any]
    entries: NDArray[Any]
    stage_s: NDArray[np.float64]
    send_s: NDArray[np.float64]
    of_stages: NDArray[np.float64]
    of_sends: NDArray[np.float64]
    each: NDArray[np.float64]


def new_pipeline_state(
    of_stages: NDArray[np.float64], of_sends: NDArray[np.float64], max_num_seqs: int
) -> PipelineState:
    """Nothing in flight."""
    p, num_operators = of_stages.shape
    return PipelineState(
        np.zeros(1, QUEUE), np.zeros(p, STAGE), np.zeros(p, FLIGHT), np.zeros((p, max_num_seqs), BATCH_ENTRY),
        np.zeros((p, p)), np.zeros((p, p - 1)), np.ascontiguousarray(of_stages), np.ascontiguousarray(of_sends),
        np.zeros(num_operators),
    )  # fmt: skip


@inner_borrowing
def _is_held(state: EngineState, pipeline: PipelineState) -> bool:
    """Whether anything is in flight of a request that has given way meanwhile. Until it is back nobody is admitted:
    the request would be computed twice at once, and is the first in line."""
    queue = pipeline.queue[0]
    if queue.num_preemptions == state.counts[0].num_preemptions:
        return False
    requests, flights, entries = state.requests, pipeline.flights, pipeline.entries
    for j in range(queue.num):
        slot = (queue.first + j) % flights.size
        for i in range(flights[slot].batch_size):
            entry = entries[slot, i]
            if requests[entry.request].num_computed < entry.prefix + entry.num_tokens:
                return True
    queue.num_preemptions = state.counts[0].num_preemptions
    return False


@inner_borrowing
def form_micro_batch(state: EngineState, pipeline: PipelineState, policy) -> None:
    """Let the policy fill the batch with what is not in flight."""
    counts = state.counts[0]
    max_num_seqs = counts.max_num_seqs
    while True:
        clear_batch(counts)
        take_arrivals(state)
        num_preemptions = counts.num_preemptions
        if _is_held(state, pipeline):
            counts.max_num_seqs = 0
        policy(state)
        counts.max_num_seqs = max_num_seqs
        # As in `form_batch`: whoever gave way may have let those behind in.
        if counts.batch_size > 0 or counts.num_preemptions == num_preemptions or pipeline.queue[0].num > 0:
            break
    requests, batch = state.requests, state.batch
    for i in range(counts.batch_size):
        # In flight it does not count as known: the next token is scheduled when this one is back.
        requests[batch[i].request].num_in_flight = 0


@inner_borrowing
def price_stages(state: EngineState, pipeline: PipelineState, table: StepTable) -> None:
    """Find out what the batch just formed takes on each stage, and between them."""
    counts = state.counts[0]
    prefill_s, decode_s, is_outside, tokens = attention_and_tokens(state, table)
    pipeline.queue[0].num_rows = tokens
    each, tags, of_stages, of_sends = pipeline.each, table.tags, pipeline.of_stages, pipeline.of_sends
    each[:] = 0.0
    operator_seconds(
        table, tokens, counts.decodes, counts.batch_size, counts.prefill_pairs, counts.prefill_context,
        counts.decode_context, each, prefill_s, decode_s,
    )  # fmt: skip
    tally(state, tokens, counts.batch_size, prefill_s, decode_s, is_outside)
    compute_s = 0.0
    communication_s = 0.0
    queue, stage_s, send_s = pipeline.queue[0], pipeline.stage_s, pipeline.send_s
    slot = (queue.first + queue.num) % stage_s.shape[0]
    for s in range(of_stages.shape[0]):
        seconds = 0.0
        for o in range(each.size):
            part_s = of_stages[s, o] * each[o]
            seconds += part_s
            if tags[o, IS_COMMUNICATION]:
                communication_s += part_s
            else:
                compute_s += part_s
        stage_s[slot, s] = seconds
    for s in range(of_sends.shape[0]):
        seconds = 0.0
        for o in range(each.size):
            seconds += of_sends[s, o] * each[o]
        send_s[slot, s] = seconds
        communication_s += seconds
    counts.total_s += compute_s + communication_s
    formed = state.flight[1]
    formed.compute_s = compute_s
    formed.communication_s = communication_s


@inner_borrowing
def launch_micro_batch(state: EngineState, pipeline: PipelineState) -> None:
    """Put the batch just priced behind those in flight, now."""
    counts, formed, queue = state.counts[0], state.flight[1], pipeline.queue[0]
    slot = (queue.first + queue.num) % pipeline.flights.size
    flight, entries, batch = pipeline.flights[slot], pipeline.entries, state.batch
    for i in range(counts.batch_size):
        entries[slot, i] = batch[i]
    enter_flight(counts, flight)
    flight.compute_s = formed.compute_s
    flight.communication_s = formed.communication_s
    flight.uncontended_s = 0.0
    flight.finish_s = np.inf
    queue.num += 1
    if counts.first_mark > 0:
        enter_marked(counts, state.requests, state.splits)


@borrowing
def begin_micro_batch(state: EngineState, pipeline: PipelineState, policy, table: StepTable) -> bool:
    """Form a batch, price and launch it, now; False where there is nothing to schedule. One call, because each one from
    Python hands over all arrays."""
    form_micro_batch(state, pipeline, policy)
    if state.counts[0].batch_size == 0:
        return False
    price_stages(state, pipeline, table)
    launch_micro_batch(state, pipeline)
    return True


@inner_borrowing
def _run_through(state: EngineState, pipeline: PipelineState) -> None:
    """The newest batch's way: a stage begins it when it has done the one before and the activations have come. It then
    takes max(accelerators, host), for each stage has a host process of its own."""
    queue, stages, host_s = pipeline.queue[0], pipeline.stages, state.counts[0].host_s
    slot = (queue.first + queue.num - 1) % stages.size
    ready_s = state.counts[0].now_s
    for s in range(stages.size):
        stages[s].free_s = max(stages[s].free_s, ready_s) + max(pipeline.stage_s[slot, s], host_s)
        ready_s = stages[s].free_s
        if s < stages.size - 1:
            ready_s += pipeline.send_s[slot, s]
    pipeline.flights[slot].finish_s = ready_s


@borrowing
def complete_micro_batch(state: EngineState, pipeline: PipelineState) -> None:
    """The oldest batch is back, at its finish_s.

    Of the time since the batch before was back (or since this one started, if that was later) as large a share counts
    as computing and as communication as of its own way: requests divide their time by such sums, and batches overlap.
    """
    counts, queue = state.counts[0], pipeline.queue[0]
    slot = queue.first
    flight = pipeline.flights[slot]
    entries, in_flight, requests = pipeline.entries, state.in_flight, state.requests
    for i in range(flight.batch_size):
        in_flight[i] = entries[slot, i]
        if in_flight[i].samples > 0:
            requests[in_flight[i].request].num_in_flight = 1
    state.flight[0] = flight
    state.flight[0].is_steady = 0
    own_s = flight.finish_s - flight.started_s
    elapsed_s = flight.finish_s - max(flight.started_s, queue.last_finish_s)
    overlapped = 1.0 - elapsed_s / own_s if own_s > 0.0 else 0.0
    counts.past_compute_s -= overlapped * flight.compute_s
    counts.past_communication_s -= overlapped * flight.communication_s
    counts.past_uncontended_s -= overlapped * flight.uncontended_s
    complete_step(state)
    for s in range(pipeline.stages.size):
        pipeline.stages[s].busy_s += pipeline.stage_s[slot, s]
    queue.active_s += elapsed_s
    queue.last_finish_s = flight.finish_s
    queue.first = (slot + 1) % pipeline.flights.size
    queue.num -= 1
    queue.is_blocked = 0


@borrowing
def advance_pipeline(
    state: EngineState, pipeline: PipelineState, policy, table: StepTable, until_s: float, max_steps: int, max_rows: int
) -> int:
    """As `sim.serving.engine.advance`, for an engine whose stages and the ways between them are its own."""
    counts, queue, flights = state.counts[0], pipeline.queue[0], pipeline.flights
    last_step = counts.num_steps + max_steps
    while counts.num_steps < last_step:
        if counts.num_recorded == state.steps.size and state.steps.size < max_rows:
            return ROWS_FULL
        while queue.is_blocked == 0 and queue.num < flights.size:
            if counts.now_s >= until_s:
                return REACHED
            if not begin_micro_batch(state, pipeline, policy, table):
                break
            _run_through(state, pipeline)
        if queue.num == 0:
            if num_waiting(state) > 0 or counts.num_running > 0:
                return STALLED
            arrival_s = next_arrival_s(state)
            if arrival_s >= until_s:
                return REACHED
            counts.now_s = arrival_s
            continue
        queue.is_blocked = 1
        if flights[queue.first].finish_s > until_s:
            return REACHED
        complete_micro_batch(state, pipeline)
    return PAUSED


@borrowing
def next_pipeline_end_s(state: EngineState, pipeline: PipelineState) -> float:
    """As `sim.serving.lookahead.next_end_s`: batches are back in order, so that none ends before the oldest is."""
    counts, queue = state.counts[0], pipeline.queue[0]
    if queue.num == 0:
        formed_s = counts.now_s
        if counts.num_running == 0 and num_waiting(state) == 0:
            formed_s = max(formed_s, next_arrival_s(state))
        return np.nextafter(formed_s, np.inf)
    flight, entries, requests = pipeline.flights[queue.first], pipeline.entries, state.requests
    for i in range(flight.batch_size):
        entry = entries[queue.first, i]
        row = requests[entry.request]
        if entry.samples > 0 and row.num_generated + 1 >= row.num_output_tokens:
            return flight.finish_s
    return np.nextafter(flight.finish_s, np.inf)


@borrowing
def forget_parts(pipeline: PipelineState, request: int) -> None:
    """The request has been taken away: what is in flight of it is computed for nobody."""
    queue, entries = pipeline.queue[0], pipeline.entries
    for j in range(queue.num):
        slot = (queue.first + j) % pipeline.flights.size
        flight = pipeline.flights[slot]
        kept = 0
        for i in range(flight.batch_size):
            if entries[slot, i].request != request:
                entries[slot, kept] = entries[slot, i]
                kept += 1
        flight.batch_size = kept


def lose_batches(pipeline: PipelineState) -> None:
    """The replica stops at once: nothing is in flight, all stages are free."""
    pipeline.queue["num"] = 0
    pipeline.queue["is_blocked"] = 0
    pipeline.stages["free_s"] = 0.0
