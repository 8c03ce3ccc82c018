"""Requests that leave an engine before they have ended: cancelled by their client, or lost with the replica."""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from sim.devices.kv_cache import NONE, leave_host, release
from sim.devices.kv_tiers import clear_tiers
from sim.serving.adapter_pool import leave_adapter, lose_adapters
from sim.serving.offload import drop_fetch, is_fetched_for
from sim.serving.state import EngineState
from sim.serving.time_split import forget


@borrowing
def take_away(state: EngineState, request: int) -> int:
    """Forget a request that was submitted and has not ended: its blocks are free at once, its tokens are lost.

    A step in flight, or already scheduled, computes its part all the same, for nobody: vLLM aborts between two steps.
    Returns the output tokens that are lost. The row is as before its arrival.
    """
    counts, flight = state.counts[0], state.flight[0]
    num_running = counts.num_running
    _leave(state, request)
    if counts.adapter_capacity > 0 and counts.num_running < num_running:
        leave_adapter(state, request, counts.now_s)
    in_flight, batch = state.in_flight, state.batch
    # Whoever leaves, also from the line, may have been all that kept somebody out: the policy has to be asked again.
    flight.is_steady = 0
    counts.is_steady = 0
    for i in range(flight.batch_size):
        if in_flight[i].request == request:
            in_flight[i].samples = 0
    for i in range(counts.batch_size):
        if batch[i].request == request:
            batch[i].samples = 0
    if counts.is_async and flight.batch_size > 0 and counts.is_formed == 0 and counts.batch_size == 0:
        # Nothing could be scheduled when the step in flight began. That was then, and room comes too late for it.
        counts.is_formed = 1
    counts.is_asked = 0
    if is_fetched_for(state, request):
        drop_fetch(state, request)
    release(state.kv, request)
    if counts.num_swaps > 0:
        leave_host(state.kv, request)
    forget(counts, state.splits, request)
    row = state.requests[request]
    num_lost = row.num_generated
    token_time_s = state.token_time_s
    for i in range(num_lost):
        token_time_s[row.first_token + i] = np.nan
    row.num_computed = 0
    row.num_generated = 0
    row.num_in_flight = 0
    row.num_drafts = 0
    row.num_cached = 0
    row.scheduled_s = np.nan
    row.first_token_s = np.nan
    return num_lost


@inner_borrowing
def _leave(state: EngineState, request: int) -> None:
    """Take it out of the running list or of the line, which keep their order."""
    counts = state.counts[0]
    running, waiting = state.running, state.waiting
    kept = 0
    for i in range(counts.num_running):
        if running[i] != request:
            running[kept] = running[i]
            kept += 1
    if kept < counts.num_running:
        counts.num_running = kept
        return
    mask = waiting.size - 1
    place = counts.head
    while waiting[place & mask] != request:
        place += 1
    if place >= counts.arrived:
        counts.arrived += 1
    for i in range(place, counts.head, -1):
        waiting[i & mask] = waiting[(i - 1) & mask]
    counts.head += 1


def lose_memory(state: EngineState) -> None:
    """Stop at once and forget every block's content, in all tiers; all requests must have been taken away."""
    clear_tiers(state.tiers)
    state.flight["batch_size"] = 0
    state.flight["is_steady"] = 0
    for name in ("batch_size", "is_formed", "is_steady", "blocks_to_copy"):
        state.counts[name] = 0
    if state.counts["adapter_capacity"][0] > 0:
        lose_adapters(state)
    blocks, counts = state.kv.blocks, state.kv.counts
    num_blocks = len(blocks)
    blocks["content"] = NONE
    blocks["before"] = np.arange(num_blocks) - 1
    blocks["after"] = np.append(np.arange(1, num_blocks), NONE)
    counts["first_free"], counts["last_free"] = 0, num_blocks - 1
    state.kv.block_of[:] = NONE
