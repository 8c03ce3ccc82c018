"""Who gives way where blocks run out, and what becomes of what was computed.

The victim goes back to the waiting line. Its blocks are freed, and its tokens computed again when it comes back, as far
as the cache has lost them; or, where there is room for them in host memory, its blocks are copied there, and copied
back when it is admitted again. Copies are issued with the step and come before its kernels on the same stream, as
vLLM's first engine has them (worker.py, execute_worker; cache_engine.py): a step waits for all copies that were decided
while it was formed, to the host and back, one after the other.

Where the host is full vLLM ends the run; here the victim is computed again.
"""

from __future__ import annotations

from models.compiled import borrowing, inner_borrowing
from sim.devices.kv_cache import can_hold, release, swap_out
from sim.serving.adapter_pool import leave_adapter
from sim.serving.offload import drop_fetch, is_fetched_for
from sim.serving.speculation import slots_ahead
from sim.serving.state import EngineState
from sim.serving.time_split import PREEMPTED, mark
from sim.serving.verbs import unschedule
from sim.serving.waiting_line import comes_before, sink_head


@inner_borrowing
def _give_up(state: EngineState, request: int) -> None:
    """Take the blocks of a request that has left the running list, and put it at the head of the waiting line."""
    counts = state.counts[0]
    row, splits = state.requests[request], state.splits
    mark(counts, splits, request, PREEMPTED)
    if counts.adapter_capacity > 0:
        leave_adapter(state, request, counts.now_s)
    num_copied = 0
    if is_fetched_for(state, request):
        drop_fetch(state, request)
        row.num_computed = 0
    else:
        num_copied = swap_out(state.kv, request, row.num_computed)
    if num_copied > 0:
        counts.blocks_to_copy += num_copied
        counts.num_swaps += 1
        row.num_swaps += 1
    else:
        release(state.kv, request, True)
        splits[request].num_lost = max(splits[request].num_lost, row.num_computed)
        row.num_computed = 0
    row.num_drafts = 0
    row.num_preemptions += 1
    counts.num_preemptions += 1
    counts.head -= 1
    state.waiting[counts.head & (state.waiting.size - 1)] = request


@borrowing
def make_room(state: EngineState, position: int, num_tokens: int) -> bool:
    """Preempt from the tail of the running list until the request at `position` can take num_tokens more.

    False where that request itself had to go.
    """
    counts = state.counts[0]
    request = state.running[position]
    row = state.requests[request]
    needed = row.num_computed + num_tokens + slots_ahead(counts, row)
    while not can_hold(state.kv, request, needed):
        counts.num_running -= 1
        _give_up(state, state.running[counts.num_running])
        if counts.num_running == position:
            return False
    return True


@borrowing
def make_room_in_order(state: EngineState, position: int, num_tokens: int) -> int:
    """Preempt whoever runs and comes last by precedence until the request at `position` can take num_tokens more.

    Returns its position then, -1 where that request itself had to go. A victim that is in the batch leaves it, and
    goes to its place in the waiting line.
    """
    counts, running = state.counts[0], state.running
    request = running[position]
    row = state.requests[request]
    needed = row.num_computed + num_tokens + slots_ahead(counts, row)
    while not can_hold(state.kv, request, needed):
        last = 0
        for i in range(1, counts.num_running):
            if comes_before(state.requests, running[last], running[i]):
                last = i
        victim = running[last]
        counts.num_running -= 1
        for i in range(last, counts.num_running):
            running[i] = running[i + 1]
        unschedule(state, victim)
        _give_up(state, victim)
        sink_head(state)
        if victim == request:
            return -1
        position -= last < position
    return position
