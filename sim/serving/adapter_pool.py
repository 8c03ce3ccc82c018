"""Adapters loaded and evicted on demand, where the pool has not room for all.

Who may join a batch is vLLM's rule: whose adapter is there, or has room once those that nobody runs with are evicted;
who waits for one is passed by others in the line (scheduled_loras and max_loras in vllm/v1/core/sched/scheduler.py).
The one that nobody has run with for longest goes, as in LRUCacheWorkerLoRAManager (vllm/lora/worker_manager.py).

*blocking*: the load is a part of the step that first needs it, before its kernels: vLLM's worker activates adapters in
execute_model, and all requests of the step wait. *overlapped*: loads run beside the steps, one after the other, as
S-LoRA prefetches for those who wait (arXiv 2311.03285, 5.3) and Punica copies asynchronously (arXiv 2310.18547); they
are begun when a batch is formed, for those who wait, in their order. An adapter that somebody further ahead waits for
is not evicted.

vLLM counts adapters of running requests that the step schedules; here those of all that run count. Nobody who waits for
an adapter is sure to get it while others keep theirs in use, there as here.
Leaves out: bandwidth that a copy takes from the kernels beside it.
"""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing, inner_borrowing
from sim.serving.residency import begin, held
from sim.serving.state import EngineState
from sim.serving.time_split import QUEUED


@inner_borrowing
def _count_users(state: EngineState) -> None:
    """Of each adapter, the running requests."""
    adapters, requests, running = state.adapters, state.requests, state.running
    for i in range(adapters.size):
        adapters[i].num_users = 0
    for i in range(state.counts[0].num_running):
        adapters[requests[running[i]].adapter].num_users += 1


@inner_borrowing
def _reachable(state: EngineState) -> int:
    """Room that is free, or would be with all evicted that nobody uses, of which none is on its way."""
    counts, adapters = state.counts[0], state.adapters
    room = counts.adapter_room
    for i in range(1, adapters.size):
        one = adapters[i]
        if one.is_there and one.num_users == 0 and one.ready_s <= counts.now_s:
            room += one.size
    return room


@borrowing
def first_servable(state: EngineState) -> int:
    """The place in the line of the first whose adapter is there, or can be loaded with the step; -1: nobody's."""
    counts = state.counts[0]
    requests, waiting, adapters = state.requests, state.waiting, state.adapters
    mask = waiting.size - 1
    reachable = -1
    for place in range(counts.head, counts.arrived):
        one = adapters[requests[waiting[place & mask]].adapter]
        if one.is_there:
            if one.ready_s <= counts.now_s:
                return place
        elif counts.is_overlapped == 0:
            if reachable < 0:
                _count_users(state)
                reachable = _reachable(state)
            if one.size <= reachable:
                return place
    return -1


@inner_borrowing
def bring(state: EngineState, place: int) -> None:
    """Move who stands at this place of the line to its head; the others keep their order."""
    counts, waiting = state.counts[0], state.waiting
    mask = waiting.size - 1
    request = waiting[place & mask]
    for i in range(place, counts.head, -1):
        waiting[i & mask] = waiting[(i - 1) & mask]
    waiting[counts.head & mask] = request


@inner_borrowing
def _evict(state: EngineState, size: int) -> tuple[float, float]:
    """Make room, which there is, for so much: (seconds, when the last step that used one of those evicted is over).

    First the one that was left longest ago, of several the last in number.
    """
    counts, adapters = state.counts[0], state.adapters
    seconds = 0.0
    free_s = 0.0
    while counts.adapter_room < size:
        oldest = 0
        for i in range(1, adapters.size):
            one = adapters[i]
            if one.is_there == 0 or one.num_users > 0 or one.ready_s > counts.now_s:
                continue
            if oldest == 0 or one.left_s <= adapters[oldest].left_s:
                oldest = i
        one = adapters[oldest]
        one.is_there = 0
        counts.adapter_room += one.size
        counts.num_evictions += 1
        counts.evict_s += one.evict_s
        seconds += one.evict_s
        free_s = max(free_s, one.left_s)
    return seconds, free_s


@inner_borrowing
def _take_room(state: EngineState, adapter: int) -> float:
    """Count a load, for which there is room; its seconds."""
    counts, one = state.counts[0], state.adapters[adapter]
    one.is_there = 1
    counts.adapter_room -= one.size
    counts.num_loads += 1
    counts.adapter_load_s += one.load_s
    return one.load_s


@borrowing
def join_adapter(state: EngineState, request: int) -> None:
    """The request joins the batch in the making: load its adapter with the step, where it is not there."""
    counts, row = state.counts[0], state.requests[request]
    if row.adapter == 0:
        return
    counts.num_joined += 1
    one = state.adapters[row.adapter]
    if one.is_there == 0:
        _count_users(state)
        seconds, _ = _evict(state, one.size)
        counts.load_to_do_s += seconds + _take_room(state, row.adapter)
        return
    # Since when it waited for the load, if that was not over before it came.
    waited_s = one.ready_s - max(one.loading_from_s, row.submitted_s)
    split = state.splits[request]
    if waited_s > 0 and split.stage == QUEUED:
        split.adapter_load_s = waited_s
    else:
        counts.num_joined_at_once += 1


@borrowing
def start_loads(state: EngineState) -> None:
    """Begin to load for those who wait, in their order, until one finds no room."""
    counts = state.counts[0]
    requests, waiting, adapters = state.requests, state.waiting, state.adapters
    mask = waiting.size - 1
    counts.looked_s = counts.now_s
    _count_users(state)
    for place in range(counts.head, counts.arrived):
        adapter = requests[waiting[place & mask]].adapter
        one = adapters[adapter]
        if adapter > 0 and one.is_there == 0:
            if one.size > _reachable(state):
                return
            seconds, free_s = _evict(state, one.size)
            one.loading_from_s = max(counts.now_s, counts.link_free_s, free_s)
            one.ready_s = one.loading_from_s + seconds + _take_room(state, adapter)
            counts.link_free_s = one.ready_s
        one.num_users += 1


@borrowing
def next_ready_s(state: EngineState) -> float:
    """When the next load is over that was not when a batch was last formed; infinity where none is."""
    counts, adapters = state.counts[0], state.adapters
    ready_s = np.inf
    if counts.link_free_s > counts.looked_s:
        for i in range(1, adapters.size):
            if adapters[i].is_there and adapters[i].ready_s > counts.looked_s:
                ready_s = min(ready_s, adapters[i].ready_s)
    return ready_s


@inner_borrowing
def leave_adapter(state: EngineState, request: int, now_s: float) -> None:
    """The request is not in the running list any more; a step in flight may still hold its part."""
    flight = state.flight[0]
    one = state.adapters[state.requests[request].adapter]
    one.left_s = max(one.left_s, now_s, flight.finish_s if flight.batch_size > 0 else 0.0)


def lose_adapters(state: EngineState) -> None:
    """The accelerator's memory is lost; those of the beginning are there again when it comes back."""
    adapters, counts = state.adapters, state.counts[0]
    counts["num_adapters_lost"] += held(adapters)[0]
    begin(adapters, int(counts["adapter_capacity"]))
    num_given, room = held(adapters)
    counts["num_adapters_given"] += num_given
    counts["adapter_room"] = counts["adapter_capacity"] - room
    counts["link_free_s"] = counts["looked_s"] = counts["load_to_do_s"] = 0.0
    counts["awaits_load"] = 0
