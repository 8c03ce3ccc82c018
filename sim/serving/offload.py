"""KV blocks that are stored in tiers behind the cache, and fetched from there instead of being computed again.

A full block is stored once it is computed, behind the step's back. At admission the tiers are asked for the blocks that
come after those that the device has; what they have is fetched into blocks of the request, which holds its place among
the running requests meanwhile and computes nothing, while others go on. That is vLLM's OffloadingConnector
(v1/.../offloading/scheduler.py), whose requests are WAITING_FOR_REMOTE_KVS. There they count as running only when the
blocks have come, and nobody can take the blocks from them; here they may have to give way as everybody may.
"""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from sim.devices.kv_cache import NONE, content_of, hold, note_contents
from sim.devices.kv_tiers import DISK, HOST, fetched_s, find, put, stored_s, touch
from sim.serving.state import EngineState
from sim.serving.time_split import PREFILLING, QUEUED, RECOMPUTING, TRANSFERRING, enter, enter_marked, mark


@inner_borrowing
def is_fetched_for(state: EngineState, request: int) -> bool:
    """Whether blocks are on their way to it."""
    return state.counts[0].first_fetch > 0 and state.tiers.asked[request].num_blocks > 0


@inner_borrowing
def fetch(state: EngineState, request: int, num_tokens: int) -> int:
    """Ask the tiers for what the device has not of a request just admitted, and fetch it; returns its leading blocks of
    num_tokens - 1 that are there or on their way."""
    counts, kv, row = state.counts[0], state.kv, state.requests[request]
    places, tiers = state.tiers.places, state.tiers.tiers
    asked = state.tiers.asked[request]
    block_size = kv.counts[0].block_size
    num_here = kv.holdings[request].num_blocks
    most = (num_tokens - 1) // block_size
    num, num_on_disk = num_here, 0
    while num < most:
        content = content_of(kv, request, num)
        place = find(places, tiers, HOST, content)
        if place == NONE or places[place].ready_s > counts.now_s:
            place = find(places, tiers, DISK, content) if tiers.size > DISK else NONE
            if place == NONE or places[place].ready_s > counts.now_s:
                break
            num_on_disk += 1
        num += 1
    for i in range(num - 1, -1, -1):
        touch(places, tiers, content_of(kv, request, i))
    asked.num_offered = 0
    if np.isnan(row.scheduled_s):
        asked.from_host = (num - num_here - num_on_disk) * block_size
        asked.from_disk = num_on_disk * block_size
    if num == num_here:
        return num
    hold(kv, request, num * block_size)
    asked.num_tokens = num * block_size
    asked.num_blocks = num - num_here
    asked.is_reading = num_on_disk > 0
    if num_on_disk == 0:
        asked.until_s = fetched_s(tiers, HOST, counts.now_s, num - num_here)
    else:
        asked.until_s = fetched_s(tiers, DISK, counts.now_s, num_on_disk)
        for i in range(num_here, num):
            content = content_of(kv, request, i)
            if find(places, tiers, HOST, content) == NONE:
                put(places, tiers, HOST, content, asked.until_s, counts.now_s)
    asked.next = counts.first_fetch
    counts.first_fetch = request + 1
    # All that it knows, so that nothing of it is missing until then.
    row.num_computed = row.num_prompt_tokens + row.num_generated
    take_fetched(state)
    if asked.num_blocks > 0:
        split = state.splits[request]
        if split.next_stage != QUEUED:  # it gave way in this very step
            split.next_stage = TRANSFERRING
        enter(counts, state.requests, state.splits, request, TRANSFERRING, counts.now_s)
    return num


@inner_borrowing
def _first_to_move(state: EngineState) -> int:
    """Of the fetches under way the one whose present part is over first, of several the oldest."""
    asked = state.tiers.asked
    request = state.counts[0].first_fetch - 1
    first = request
    while asked[request].next > 0:
        request = asked[request].next - 1
        if asked[request].until_s <= asked[first].until_s:
            first = request
    return first


@borrowing
def wait_for_blocks(state: EngineState) -> float:
    """Nothing runs or can run until blocks have come, or somebody arrives: whoever gave way waits again from now on.
    Returns when the next part of a fetch is over; infinity where there is none."""
    counts = state.counts[0]
    if counts.first_fetch == 0:
        return np.inf
    enter_marked(counts, state.requests, state.splits)
    return next_fetch_s(state)


@inner_borrowing
def next_fetch_s(state: EngineState) -> float:
    """When the next part of a fetch is over; infinity where there is none."""
    return state.tiers.asked[_first_to_move(state)].until_s if state.counts[0].first_fetch > 0 else np.inf


@inner_borrowing
def take_fetched(state: EngineState) -> None:
    """What has come from the disk by now goes on to the device; whose blocks have all come goes on computing."""
    counts, splits = state.counts[0], state.splits
    while counts.first_fetch > 0:
        request = _first_to_move(state)
        asked = state.tiers.asked[request]
        if asked.until_s > counts.now_s:
            return
        if asked.is_reading:
            asked.is_reading = 0
            asked.until_s = fetched_s(state.tiers.tiers, HOST, asked.until_s, asked.num_blocks)
            continue
        drop_fetch(state, request)
        row = state.requests[request]
        row.num_computed = asked.num_tokens
        note_contents(state.kv, request, asked.num_tokens)
        mark(counts, splits, request, RECOMPUTING if row.num_computed < splits[request].num_lost else PREFILLING)


@inner_borrowing
def drop_fetch(state: EngineState, request: int) -> None:
    """Nobody waits for its blocks any more; what is on a link already is not stopped."""
    counts, asked = state.counts[0], state.tiers.asked
    if counts.first_fetch == request + 1:
        counts.first_fetch = asked[request].next
    else:
        before = counts.first_fetch - 1
        while asked[before].next != request + 1:
            before = asked[before].next - 1
        asked[before].next = asked[request].next
    asked[request].num_blocks = 0


@inner_borrowing
def _store(state: EngineState, request: int, num_done: int, at_s: float) -> None:
    """Of a request's leading blocks that num_done tokens fill, send to the host at at_s those that are not there."""
    asked, block_size = state.tiers.asked[request], state.kv.counts[0].block_size
    if (asked.num_offered + 1) * block_size > num_done:
        return
    places, tiers = state.tiers.places, state.tiers.tiers
    while (asked.num_offered + 1) * block_size <= num_done:
        content = content_of(state.kv, request, asked.num_offered)
        if tiers[HOST].num_blocks > 0 and find(places, tiers, HOST, content) == NONE:
            put(places, tiers, HOST, content, stored_s(tiers, HOST, at_s), at_s)
        asked.num_offered += 1


@inner_borrowing
def store_filled(state: EngineState) -> None:
    """The step in flight has finished: blocks that it filled, and whose content is known, are stored."""
    flight, block_size = state.flight[0], state.kv.counts[0].block_size
    in_flight, requests, holdings = state.in_flight, state.requests, state.kv.holdings
    for i in range(flight.batch_size):
        entry = in_flight[i]
        row, held = requests[entry.request], holdings[entry.request]
        num_done = min(entry.prefix + entry.num_tokens, row.num_prompt_tokens + row.num_generated - 1)
        num_noted = min(held.num_blocks, held.num_known) * block_size
        _store(state, entry.request, min(num_done, num_noted), flight.finish_s)


@inner_borrowing
def store_leapt(state: EngineState, num_steps: int) -> None:
    """The same for so many steps of one token of each, of which the batch in flight was the first; they finished at
    leap_finish_s. When a step ends the next one has been formed, or will be, so that its token is known."""
    in_flight, asked, finish_s = state.in_flight, state.tiers.asked, state.leap_finish_s
    block_size = state.kv.counts[0].block_size
    for j in range(num_steps):
        for i in range(state.flight[0].batch_size):
            request, num_done = in_flight[i].request, in_flight[i].prefix + j + 1
            if (asked[request].num_offered + 1) * block_size <= num_done:
                _store(state, request, num_done, finish_s[j])
