"""Batching policies: what the next step of an engine computes.

A policy is a function `(state) -> bool` that Numba can compile. It is called between two steps, with an empty
batch, and fills it with the verbs of `sim.serving.verbs`: `schedule_decodes` for decodes in a row; `schedule` for a
running request with `num_missing` tokens (0 where its last is in flight), after `make_room`; `admit` and `schedule` for
a waiting one, if `can_admit`, which may have part of its prompt in the cache. Only
`can_reserve` and `can_reserve_rest` read `num_output_tokens`, as the limit that a request names.

It returns True where its decision is *steady*: the batch is one decode of each running request, and as long
as nobody arrives or finishes and blocks are left, it would decide the same again. The engine then leaps over
those steps. False is always right, and slower.

To add one: a function here and a line in BATCHING_POLICIES.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import types

from models.compiled import borrowing_cfunc, inner_borrowing
from sim.serving.preemption import make_room, make_room_in_order
from sim.serving.state import STATE_TYPE, EngineState
from sim.serving.verbs import (
    admit,
    can_admit,
    can_reserve,
    can_reserve_rest,
    is_on_host,
    num_missing,
    schedule,
    schedule_decodes,
    waiting_head,
)
from sim.serving.waiting_line import bring_shortest, order_line

BatchingPolicy = Callable[[EngineState], bool]


@inner_borrowing
def _decode_all(state: EngineState) -> bool:
    """One decode of each running request, which has its blocks; whether it is all of them."""
    counts = state.counts[0]
    is_steady = True
    position = 0
    while True:
        position = schedule_decodes(state, position, counts.num_running)
        if position >= counts.num_running:
            return is_steady
        if num_missing(state, state.running[position]) == 0:
            is_steady = False
        elif make_room(state, position, 1):
            schedule(state, state.running[position], 1)
        else:
            return False
        position += 1


def prefill_first(state: EngineState) -> bool:
    """vLLM's first scheduler: a step is either whole prompts, in order of arrival, or one decode of
    everybody.

    Prompts are taken while they fit into max_num_batched_tokens, a free slot and free blocks. One that is
    longer than max_num_batched_tokens runs alone (vLLM would want that limit to be raised to the model's
    context length). Only when none can be taken do the running requests decode; the last admitted are
    preempted where blocks run out. Who lies in host memory goes before any prompt: while somebody does, a step is
    decodes, his among them once there is room.

    Leaves out: vLLM's watermark of 1 % of the blocks at admission.
    """
    counts = state.counts[0]
    budget = counts.max_num_batched_tokens
    while not is_on_host(state) and can_admit(state):
        if num_missing(state, waiting_head(state)) > budget and counts.batch_size > 0:
            break
        request = admit(state)
        num_tokens = num_missing(state, request)
        schedule(state, request, num_tokens)
        budget -= num_tokens
    if counts.batch_size > 0:
        return False
    num_preemptions = counts.num_preemptions
    is_steady = _decode_all(state)
    if counts.num_preemptions > num_preemptions:
        return False
    while is_on_host(state) and can_admit(state):
        request = admit(state)
        schedule(state, request, num_missing(state, request))
        is_steady = False
    return is_steady


@inner_borrowing
def _running_first(state: EngineState, budget: int) -> tuple[int, bool]:
    """(what is left of the budget, whether each running request got one decode) after the running requests, in order
    of admission, decodes and partly done prompts alike; a prompt is cut where the budget ends."""
    counts = state.counts[0]
    is_steady = True
    position = 0
    while True:
        first = position
        position = schedule_decodes(state, first, budget)
        budget -= position - first
        if position >= counts.num_running or budget == 0:
            break
        request = state.running[position]
        num_tokens = min(num_missing(state, request), budget)
        if num_tokens == 0:
            is_steady = False
            position += 1
            continue
        if not make_room(state, position, num_tokens):
            break
        is_steady &= schedule(state, request, num_tokens)
        budget -= num_tokens
        position += 1
    return budget, is_steady and position == counts.num_running


@inner_borrowing
def _join(state: EngineState, budget: int) -> int:
    """Admit the first in line, with as much of its prompt as the budget allows; returns the tokens scheduled: none of
    one that blocks are fetched for."""
    request = admit(state)
    num_tokens = min(num_missing(state, request), budget)
    if num_tokens > 0:
        schedule(state, request, num_tokens)
    return num_tokens


def chunked_prefill(state: EngineState) -> bool:
    """Sarathi-Serve and vLLM's second scheduler: every step fills one budget of max_num_batched_tokens.

    First the running requests in order of admission, decodes and partly done prompts alike, then waiting
    ones; a prompt is cut where the budget ends. Admission wants free blocks for the whole prompt. A step that
    preempted admits nobody.

    Source: arXiv 2403.02310; the order within a step is that of vLLM 0.19's scheduler.
    """
    counts = state.counts[0]
    num_preemptions = counts.num_preemptions
    budget, is_steady = _running_first(state, counts.max_num_batched_tokens)
    if counts.num_preemptions > num_preemptions:
        return False
    while budget > 0 and can_admit(state):
        budget -= _join(state, budget)
        is_steady = False
    return is_steady


def shortest_first(state: EngineState) -> bool:
    """As chunked_prefill, but of those who wait the one with the shortest prompt comes next.

    What a cache has of it counts as well. Who was preempted comes before. Long prompts may wait as long as short ones
    keep coming: there is no ageing.

    Source: shortest job first, by the part of a job that is known when it comes.
    """
    counts = state.counts[0]
    num_preemptions = counts.num_preemptions
    budget, is_steady = _running_first(state, counts.max_num_batched_tokens)
    if counts.num_preemptions > num_preemptions:
        return False
    while budget > 0:
        bring_shortest(state)
        if not can_admit(state):
            break
        budget -= _join(state, budget)
        is_steady = False
    return is_steady


@inner_borrowing
def _running_in_order(state: EngineState) -> bool:
    """As `_running_first`, but who comes last by precedence gives way, also who is in the batch already."""
    counts = state.counts[0]
    is_steady = True
    position = 0
    while True:
        position = schedule_decodes(state, position, counts.max_num_batched_tokens - counts.tokens)
        budget = counts.max_num_batched_tokens - counts.tokens
        if position >= counts.num_running or budget == 0:
            break
        request = state.running[position]
        num_tokens = min(num_missing(state, request), budget)
        if num_tokens == 0:
            is_steady = False
            position += 1
            continue
        found = make_room_in_order(state, position, num_tokens)
        if found < 0:
            return False
        is_steady &= schedule(state, request, num_tokens)
        position = found + 1
    return is_steady and position == counts.num_running


def priority(state: EngineState) -> bool:
    """As chunked_prefill, by service class: lower `priority` first.

    Who waits is ordered by (priority, arrival); where blocks run out the running request that is last in that order
    gives way, and its tokens of this step go to others. Nobody gives way to somebody who waits.

    Source: vLLM 0.19's scheduler with `--scheduling-policy priority` (v1/core/sched/scheduler.py, request_queue.py).
    """
    counts = state.counts[0]
    order_line(state)
    num_preemptions = counts.num_preemptions
    is_steady = _running_in_order(state)
    if counts.num_preemptions > num_preemptions:
        return False
    while counts.tokens < counts.max_num_batched_tokens and can_admit(state):
        _join(state, counts.max_num_batched_tokens - counts.tokens)
        is_steady = False
    return is_steady


def batchllm(state: EngineState) -> bool:
    """BatchLLM, for a batch whose requests are all there: whoever shares a prefix runs together, groups with the most
    output to their prompts first.

    The waiting line is in the order of a plan (`sim.serving.prefix_groups`), so that a prefix is computed once, is held
    while its group runs, and is free to be evicted after. Steps are filled as in chunked_prefill; memory bounds who
    runs: a request is admitted while blocks are left for the whole output of all who run and itself, shared ones
    counted once, so that nobody is preempted.

    Leaves out: its attention kernel that reads a shared prefix once for a whole group; joining prefixes of several
    levels into one, because blocks share at every level.

    Source: Zheng et al., BatchLLM, arXiv 2412.03594.
    """
    counts = state.counts[0]
    order_line(state)
    budget, is_steady = _running_first(state, counts.max_num_batched_tokens)
    while budget > 0 and can_reserve_rest(state):
        budget -= _join(state, budget)
        is_steady = False
    return is_steady


@inner_borrowing
def _whole_prompts(state: EngineState) -> None:
    """Admit in order of arrival whoever can run to the end, with the whole prompt, while the step's tokens stay within
    max_num_batched_tokens; one that is longer goes with nobody else's prompt."""
    counts = state.counts[0]
    budget = counts.max_num_batched_tokens - counts.batch_size
    num_admitted = 0
    while can_reserve(state):
        if num_missing(state, waiting_head(state)) > budget and num_admitted > 0:
            break
        request = admit(state)
        num_tokens = num_missing(state, request)
        schedule(state, request, num_tokens)
        budget -= num_tokens
        num_admitted += 1


def orca(state: EngineState) -> bool:
    """Orca: at every iteration finished requests leave and waiting ones join, whole prompts beside the decodes.

    Keys and values of the whole output are reserved at admission, so that nobody is preempted; the output is the
    request's limit, which it reaches. Prompts join while the step stays within max_num_batched_tokens; the
    first of them joins in any case, beside all decodes.

    Leaves out: reserving contiguous memory.

    Source: Orca (Yu et al., OSDI 2022).
    """
    is_steady = _decode_all(state)
    num_decodes = state.counts[0].batch_size
    _whole_prompts(state)
    return is_steady and state.counts[0].batch_size == num_decodes


def static(state: EngineState) -> bool:
    """Request-level batching, as before Orca: who is admitted together runs to the end before anybody else joins.

    A step of all their prompts, within max_num_batched_tokens, then decodes of those that are not done. Keys and values
    are reserved as in orca.

    Leaves out: computing those who are done as padding, and holding back their tokens until all are.

    Source: FasterTransformer, as Orca's baseline (Yu et al., OSDI 2022).
    """
    if state.counts[0].num_running > 0:
        return _decode_all(state)
    _whole_prompts(state)
    return False


BATCHING_POLICIES: dict[str, BatchingPolicy] = {
    "prefill_first": prefill_first,
    "chunked_prefill": chunked_prefill,
    "shortest_first": shortest_first,
    "priority": priority,
    "batchllm": batchllm,
    "orca": orca,
    "static": static,
}

RESERVING = ("batchllm", "orca", "static")
"""Policies that admit nobody without blocks for the whole output."""


@cache
def compiled_policy(name: str) -> Any:
    """The policy as a C function, which the engine takes as an argument. Raises KeyError for an unknown name.

    A C function and not a jitted one, because the compiled engine is then kept on disk once for all policies.
    """
    return borrowing_cfunc(types.boolean(STATE_TYPE))(BATCHING_POLICIES[name])
