"""The verbs that batching policies, and the engine, are written in: who waits, who joins, what a batch takes."""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from sim.devices.kv_cache import (
    blocks_for,
    can_hold,
    forget_contents,
    hold,
    leave_host,
    note_contents,
    num_shared,
    share,
)  # fmt: skip
from sim.serving.adapter_pool import bring, first_servable, join_adapter
from sim.serving.offload import fetch, is_fetched_for
from sim.serving.speculation import query_weight, slots_ahead
from sim.serving.state import EngineState
from sim.serving.time_split import PREFILLING, RECOMPUTING, mark


@borrowing
def num_waiting(state: EngineState) -> int:
    """Requests that have arrived and are not running."""
    counts = state.counts[0]
    return counts.arrived - counts.head


@borrowing
def waiting_head(state: EngineState) -> int:
    """The first request in the waiting line; `num_waiting` must be positive."""
    return state.waiting[state.counts[0].head & (state.waiting.size - 1)]


@borrowing
def is_on_host(state: EngineState) -> bool:
    """Whether the first in the waiting line, if there is one, has its blocks in host memory."""
    counts = state.counts[0]
    # In this order, because nobody is there where nobody was ever swapped.
    return counts.num_swaps > 0 and counts.arrived > counts.head and state.kv.holdings[waiting_head(state)].num_host > 0


@inner_borrowing(forceinline=True)
def missing_tokens(counts, row) -> int:
    expected = row.num_generated + row.num_in_flight
    if expected >= row.num_output_tokens and counts.ends_unforeseen == 0:
        return 0
    return row.num_prompt_tokens + expected + row.num_drafts - row.num_computed


@borrowing
def num_missing(state: EngineState, request: int) -> int:
    """Tokens to schedule: the rest of the prompt, or the last token, which may still be in flight, and its drafts.

    After a preemption the tokens generated so far count as prompt. 0 where the last output token is in flight: a
    server that was told how many to generate knows. Where requests end by themselves it does not, and one more is
    scheduled.
    """
    return missing_tokens(state.counts[0], state.requests[request])


@inner_borrowing(forceinline=True)
def _sum_up(counts, row, entry, sign: int) -> None:
    """Add a part to the sums of the batch, or take it out (sign -1)."""
    num_tokens, prefix = sign * entry.num_tokens, entry.prefix
    context = prefix + entry.num_tokens
    counts.tokens += num_tokens
    if entry.samples > 1:
        counts.decodes += sign
        counts.decode_context += sign * int(context * query_weight(counts, entry.num_tokens) + 0.5)
        counts.drafts += sign * (entry.samples - 1)
        return
    if entry.num_tokens > 1 or context <= row.num_prompt_tokens:
        counts.prefill_tokens += num_tokens
    if entry.num_tokens == 1:
        counts.decodes += sign
        counts.decode_context += sign * context
    else:
        counts.prefill_pairs += num_tokens * prefix + num_tokens * (entry.num_tokens + 1) // 2
        counts.prefill_context += sign * context


@borrowing(forceinline=True)
def schedule(state: EngineState, request: int, num_tokens: int) -> bool:
    """Put the request's next tokens into the batch and take the blocks for them; the room must be there.

    Returns whether it computes one token, and the next one comes of it.
    """
    row = state.requests[request]
    counts = state.counts[0]
    prefix = row.num_computed
    context = prefix + num_tokens
    known = row.num_prompt_tokens + row.num_generated
    samples = max(context - known - row.num_in_flight + 1, 0)
    slots = context + slots_ahead(counts, row)
    # Most tokens need no new block and fill none: asked here, because a call hands over all arrays of the cache.
    held, kv = state.kv.holdings[request], state.kv.counts[0]
    if held.num_blocks * kv.block_size < slots:
        hold(state.kv, request, slots)
    if kv.is_caching != 0 and (held.num_known + 1) * kv.block_size <= min(context, known):
        note_contents(state.kv, request, min(context, known))
    entry = state.batch[counts.batch_size]
    entry.request = request
    entry.num_tokens = num_tokens
    entry.prefix = prefix
    entry.samples = samples
    row.num_computed = context
    row.num_in_flight += samples > 0
    counts.batch_size += 1
    _sum_up(counts, row, entry, 1)
    if np.isnan(row.scheduled_s):
        row.scheduled_s = counts.now_s
    return samples == 1 and num_tokens == 1


@inner_borrowing
def unschedule(state: EngineState, request: int) -> None:
    """Take the request's part out of the batch, if it has one: as if it had not been scheduled, but for its blocks."""
    counts, batch = state.counts[0], state.batch
    row = state.requests[request]
    for i in range(counts.batch_size):
        if batch[i].request != request:
            continue
        entry = batch[i]
        _sum_up(counts, row, entry, -1)
        row.num_computed = entry.prefix
        row.num_in_flight -= entry.samples > 0
        forget_contents(state.kv, request, entry.prefix)
        counts.batch_size -= 1
        for j in range(i, counts.batch_size):
            batch[j] = batch[j + 1]
        return


@borrowing
def schedule_decodes(state: EngineState, position: int, budget: int) -> int:
    """Schedule running requests from `position` on, while each is one token that the next one comes of, within the
    budget and the room; returns the first position that is not.

    What `num_missing`, `make_room` and `schedule` would do one by one, for the usual case in one loop.
    """
    requests, running, batch, holdings = state.requests, state.running, state.batch, state.kv.holdings
    counts, kv = state.counts[0], state.kv.counts[0]
    block_size = kv.block_size
    last = min(counts.num_running, position + budget)
    while position < last:
        request = running[position]
        row, held = requests[request], holdings[request]
        known = row.num_prompt_tokens + row.num_generated
        context = row.num_computed + 1
        if missing_tokens(counts, row) != 1 or context <= row.num_prompt_tokens:
            break
        if held.num_blocks * block_size < context:
            if kv.num_free == 0:
                break
            hold(state.kv, request, context)
        if kv.is_caching != 0 and (held.num_known + 1) * block_size <= min(context, known):
            note_contents(state.kv, request, min(context, known))
        entry = batch[counts.batch_size]
        entry.request = request
        entry.num_tokens = 1
        entry.prefix = row.num_computed
        entry.samples = 1
        row.num_computed = context
        row.num_in_flight += 1
        counts.batch_size += 1
        counts.tokens += 1
        counts.decodes += 1
        counts.decode_context += context
        position += 1
    return position


@borrowing
def can_admit(state: EngineState) -> bool:
    """Whether somebody waits, a slot is free, and free blocks hold all of the first in line that is not cached: of one
    in host memory all that it had, and what is missing; of one that comes with blocks, filled elsewhere, the rest.

    Where adapters come and go, the first whose adapter can be had takes the head of the line, if it has blocks.
    """
    counts = state.counts[0]
    if counts.arrived == counts.head or counts.num_running >= counts.max_num_seqs:
        return False
    if counts.adapter_capacity == 0:
        return _has_blocks(state, waiting_head(state))
    place = first_servable(state)
    if place < 0 or not _has_blocks(state, state.waiting[place & (state.waiting.size - 1)]):
        return False
    bring(state, place)
    return True


@inner_borrowing
def _has_blocks(state: EngineState, request: int) -> bool:
    num_tokens = num_missing(state, request)
    if state.kv.holdings[request].num_blocks > 0:
        return can_hold(state.kv, request, state.requests[request].num_computed + num_tokens)
    num_blocks = blocks_for(state.kv, state.requests[request].num_computed + num_tokens)
    num_free = state.kv.counts[0].num_free
    if num_blocks <= num_free:
        return True
    if state.counts[0].num_swaps > 0 and state.kv.holdings[request].num_host > 0:
        return False
    shared, num_idle = num_shared(state.kv, request, num_tokens)
    return num_blocks - shared + num_idle <= num_free


@borrowing
def can_reserve(state: EngineState) -> bool:
    """Whether somebody waits, a slot is free, and blocks are left for the first in line and for all that run, each with
    its whole output: who is admitted then is never preempted.

    The output is known as a request's limit is. What a cache might share counts as taken.
    """
    counts = state.counts[0]
    if counts.arrived == counts.head or counts.num_running >= counts.max_num_seqs:
        return False
    return _blocks_to_end(state) <= state.kv.counts[0].num_free


@borrowing
def can_reserve_rest(state: EngineState) -> bool:
    """As `can_reserve`, but of the first in line what others hold already counts as there."""
    counts = state.counts[0]
    if counts.arrived == counts.head or counts.num_running >= counts.max_num_seqs:
        return False
    needed, num_free = _blocks_to_end(state), state.kv.counts[0].num_free
    if needed <= num_free:
        return True
    request = waiting_head(state)
    shared, num_idle = num_shared(state.kv, request, num_missing(state, request))
    return needed - shared + num_idle <= num_free


@inner_borrowing
def _blocks_to_end(state: EngineState) -> int:
    """Blocks that all who run, and the first in line, lack to the end of their outputs."""
    counts = state.counts[0]
    # The last token has no place, unless one more is computed before it is known to be the last.
    beyond = 0 if counts.ends_unforeseen else 1
    requests, running, holdings = state.requests, state.running, state.kv.holdings
    row = requests[waiting_head(state)]
    needed = blocks_for(state.kv, row.num_prompt_tokens + row.num_output_tokens - beyond)
    for position in range(counts.num_running):
        row, held = requests[running[position]], holdings[running[position]]
        needed += max(blocks_for(state.kv, row.num_prompt_tokens + row.num_output_tokens - beyond) - held.num_blocks, 0)
    return needed


@borrowing
def admit(state: EngineState) -> int:
    """Move the first in line to the end of the running list, with what the cache, the host, or a tier has of it;
    returns it. Where blocks have to come first, it misses nothing until then."""
    counts = state.counts[0]
    request = waiting_head(state)
    counts.head += 1
    state.running[counts.num_running] = request
    counts.num_running += 1
    row = state.requests[request]
    if counts.num_swaps > 0 and state.kv.holdings[request].num_host > 0:
        counts.blocks_to_copy += leave_host(state.kv, request)
        hold(state.kv, request, row.num_computed)
        note_contents(state.kv, request, min(row.num_computed, row.num_prompt_tokens + row.num_generated))
    elif state.kv.counts[0].is_caching != 0 and state.kv.holdings[request].num_blocks == 0:
        num_tokens = num_missing(state, request)
        shared, _ = num_shared(state.kv, request, num_tokens)
        share(state.kv, request, shared)
        if counts.num_tiers > 0:
            shared = fetch(state, request, num_tokens)
        num_cached = shared * state.kv.counts[0].block_size
        if np.isnan(row.scheduled_s):
            row.num_cached = num_cached
        if is_fetched_for(state, request):
            return request
        row.num_computed = num_cached
    splits = state.splits
    if counts.adapter_capacity > 0:
        join_adapter(state, request)
    mark(counts, splits, request, RECOMPUTING if row.num_computed < splits[request].num_lost else PREFILLING)
    return request


@inner_borrowing
def take_arrivals(state: EngineState) -> None:
    """Let those who have arrived by now join the waiting line."""
    counts = state.counts[0]
    mask = state.waiting.size - 1
    while counts.arrived < counts.submitted:
        row = state.requests[state.waiting[counts.arrived & mask]]
        if row.submitted_s > counts.now_s:
            break
        counts.arrived += 1


@inner_borrowing
def next_arrival_s(state: EngineState) -> float:
    """Time of the next arrival that is known, infinity when there is none."""
    counts = state.counts[0]
    if counts.arrived == counts.submitted:
        return np.inf
    return state.requests[state.waiting[counts.arrived & (state.waiting.size - 1)]].submitted_s


def submit(state: EngineState, request: int) -> EngineState:
    """Append a request, which comes at its submitted_s, to the ring.

    Returns the state, with a longer ring where it was full.
    """
    counts = state.counts
    head, submitted = int(counts["head"][0]), int(counts["submitted"][0])
    # Preempted requests come back to the head, so that many places stay free.
    if submitted - head + len(state.running) >= len(state.waiting):
        entries = np.arange(head, submitted)
        longer = np.zeros(2 * len(state.waiting), dtype=np.int64)
        longer[entries & (len(longer) - 1)] = state.waiting[entries & (len(state.waiting) - 1)]
        state = state._replace(waiting=longer)
    state.waiting[submitted & (len(state.waiting) - 1)] = request
    counts["submitted"] = submitted + 1
    return state
