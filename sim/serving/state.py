"""The state of one replica's engine, and the verbs that batching policies are written in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, typeof
from numpy.typing import NDArray

from models.compiled import inner
from sim.devices.kv_cache import (
    Contents,
    KVCache,
    blocks_for,
    can_hold,
    forget_contents,
    hold,
    leave_host,
    new_holdings,
    new_kv_cache,
    note_contents,
    num_shared,
    share,
)
from sim.serving.request import REQUEST
from sim.serving.speculation import Speculation, query_weight, slots_ahead
from sim.serving.time_split import PREFILLING, RECOMPUTING, mark, new_splits

COUNTS = np.dtype(
    [
        ("now_s", "f8"),
        ("host_s", "f8"),
        ("total_s", "f8"),
        ("total_prefill_s", "f8"),
        ("total_decode_s", "f8"),
        ("outside_s", "f8"),
        ("total_expert_s", "f8"),
        ("outside_expert_s", "f8"),
        ("block_copy_s", "f8"),
        ("total_copy_s", "f8"),
        ("total_draft_s", "f8"),
        ("acceptance", "f8"),
        ("draft_s", "f8"),
        ("draft_cost", "f8"),
        ("flop_share", "f8"),
        ("byte_share", "f8"),
        ("draft_seed", "i8"),
        ("num_spec_tokens", "i8"),
        ("num_lookahead", "i8"),
        ("num_verified", "i8"),
        ("num_drafted", "i8"),
        ("num_accepted", "i8"),
        ("past_compute_s", "f8"),
        ("past_communication_s", "f8"),
        ("past_uncontended_s", "f8"),
        ("max_num_seqs", "i8"),
        ("max_num_batched_tokens", "i8"),
        ("max_graph_tokens", "i8"),
        ("num_running", "i8"),
        ("head", "i8"),
        ("arrived", "i8"),
        ("submitted", "i8"),
        ("batch_size", "i8"),
        ("tokens", "i8"),
        ("prefill_tokens", "i8"),
        ("decodes", "i8"),
        ("prefill_pairs", "i8"),
        ("prefill_context", "i8"),
        ("decode_context", "i8"),
        ("drafts", "i8"),
        ("num_steps", "i8"),
        ("num_recorded", "i8"),
        ("num_preemptions", "i8"),
        ("num_swaps", "i8"),
        ("blocks_to_copy", "i8"),
        ("num_ordered", "i8"),
        ("num_completed", "i8"),
        ("first_mark", "i8"),
        ("num_recomputing", "i8"),
        ("is_async", "i8"),
        ("is_formed", "i8"),
        ("is_steady", "i8"),
        ("keeps_blocks", "i8"),
    ],
    align=True,
)
"""The engine's numbers.

now_s                      the moment the engine stands at: when it forms a batch
total_s                    accelerator time of all steps, communication inside the host included; with experts on
                           several ranks the sum of what ranks compute
total_prefill_s … outside_expert_s    of all steps, where steps are counted: measured attention of one layer, of which
                           outside_s beyond the table, and a rank's experts, of which outside_expert_s
block_copy_s, total_copy_s    a KV block to the host or back, and of all steps, which total_s leaves out
blocks_to_copy             to the host and back, before the batch being formed may run
acceptance … num_lookahead    as in `sim.serving.speculation.Speculation`, num_tokens as num_spec_tokens, 0: nothing
                           is drafted; num_verified, num_drafted, num_accepted    sequences' steps with drafts so far,
                           drafts in them, and those taken; total_draft_s    drafting, which total_s leaves out
num_ordered                the waiting line is in order of precedence up to this entry, where the policy keeps it so
past_compute_s … past_uncontended_s   of the steps finished so far, as the flight has them
max_graph_tokens           batches up to here run as recorded graphs of certain sizes (`graph_tokens`); 0: none do
head, arrived, submitted   the waiting line is entries head … arrived - 1 of the ring; arrived … submitted - 1
                           are known to come later
batch_size … decode_context    the batch being formed: entries, and the sums that its cost follows from
                           (`models.operators.Feature`); a kernel takes whoever computes one token for a decode, so
                           the last token of a prompt may be among the decodes, and is among prefill_tokens too; a
                           token and its drafts are one decode that reads its context once
first_mark, num_recomputing    who changes its stage when the next batch starts (`mark`), how many are in RECOMPUTING
is_async                   a batch is formed when the one before it starts, not when that has finished
is_formed, is_steady       whether the batch waits for its turn, 2 if there is none; whether the policy called it steady
keeps_blocks               whoever ends keeps its blocks until somebody else frees them
"""

BATCH_ENTRY = np.dtype([("request", "i4"), ("num_tokens", "i4"), ("prefix", "i4"), ("samples", "i4")], align=True)
"""A request's part of a batch: tokens, how many are in the cache before them, and of how many the next is wanted: 0 of
a prompt that goes on, 1 of a prompt's end or a decode, of a decode with drafts all."""

FLIGHT = np.dtype(
    [("started_s", "f8"), ("finish_s", "f8"), ("compute_s", "f8"), ("communication_s", "f8"), ("uncontended_s", "f8"),
     ("batch_size", "i8"), ("tokens", "i8"), ("prefill_tokens", "i8"), ("decode_context", "i8"), ("is_steady", "i8")],
    align=True,
)  # fmt: skip
"""A batch in flight; batch_size is 0 where there is none.

uncontended_s    of its communication, what it would take alone on an ideal fabric; 0 where nobody asks
"""

STEP = np.dtype(
    [
        ("started_s", "f8"),
        ("finished_s", "f8"),
        ("compute_s", "f8"),
        ("communication_s", "f8"),
        ("num_prefill_tokens", "i4"),
        ("num_decodes", "i4"),
        ("num_kv_blocks", "i4"),
    ],
    align=True,
)
"""One engine step as it is recorded; num_kv_blocks counts those held while it ran."""

MAX_LEAP = 4096
"""Most steps advanced together."""


class EngineState(NamedTuple):
    """One replica as arrays.

    requests       [num_requests] REQUEST, shared with the workload
    token_time_s   [all output tokens] when each was generated, shared with the workload
    splits         [num_requests] SPLIT, shared with the workload
    counts         [1] COUNTS
    waiting        ring of request ids, a power of two long
    running        [max_num_seqs] request ids in order of admission; the first num_running are valid
    batch          [max_num_seqs] BATCH_ENTRY, of the batch being formed; the first batch_size are valid
    flight         [2] FLIGHT: the batch that runs, and the time of the one formed
    in_flight      [max_num_seqs] BATCH_ENTRY of the batch that runs
    steps          recorded steps
    kv             the KV cache
    leap_finish_s  [MAX_LEAP] scratch
    block_fill     [block_size] scratch
    steps_with_tokens, steps_with_sequences    [max_tokens + 1] steps so far by what they computed, from which the
                   time of measured operators follows; empty where nothing is measured
    """

    requests: NDArray[Any]
    token_time_s: NDArray[np.float64]
    splits: NDArray[Any]
    counts: NDArray[Any]
    waiting: NDArray[np.int64]
    running: NDArray[np.int64]
    batch: NDArray[Any]
    flight: NDArray[Any]
    in_flight: NDArray[Any]
    steps: NDArray[Any]
    kv: KVCache
    leap_finish_s: NDArray[np.float64]
    block_fill: NDArray[np.int64]
    steps_with_tokens: NDArray[np.int64]
    steps_with_sequences: NDArray[np.int64]


def new_engine_state(
    requests: NDArray[Any],
    token_time_s: NDArray[np.float64],
    holdings: NDArray[Any],
    *,
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    host_s: float = 0.0,
    num_step_rows: int = 1 << 16,
    max_tokens: int = -1,
    is_async: bool = False,
    contents: Contents | None = None,
    is_caching: bool = False,
    max_graph_tokens: int = 0,
    num_host_blocks: int = 0,
    block_copy_s: float = 0.0,
    speculation: Speculation | None = None,
    splits: NDArray[Any] | None = None,
) -> EngineState:
    """An idle engine at time 0.

    splits    None: its own
    is_async, max_graph_tokens, block_copy_s    as in COUNTS; contents, is_caching, num_host_blocks    as in
    `new_kv_cache`
    Raises ValueError for limits below 1 or a host time that is negative or not finite.
    """
    if max_num_seqs < 1 or max_num_batched_tokens < 1:
        raise ValueError(
            f"a batch needs room, got max_num_seqs {max_num_seqs} and "
            f"max_num_batched_tokens {max_num_batched_tokens}"
        )
    if not 0 <= host_s < np.inf:
        raise ValueError(f"host time per step must be at least 0 s and finite, got {host_s}")
    counts = np.zeros(1, dtype=COUNTS)
    counts["host_s"] = host_s
    counts["max_num_seqs"] = max_num_seqs
    counts["max_num_batched_tokens"] = max_num_batched_tokens
    counts["max_graph_tokens"] = max_graph_tokens
    counts["is_async"] = is_async
    counts["block_copy_s"] = block_copy_s
    counts["byte_share"] = 1.0
    num_slots = 0
    if speculation is not None:
        num_slots = speculation.num_slots
        counts["num_spec_tokens"] = speculation.num_tokens
        counts["draft_seed"] = speculation.seed
        for name in ("acceptance", "num_lookahead", "draft_s", "draft_cost", "flop_share", "byte_share"):
            counts[name] = getattr(speculation, name)
    longest = int((requests["num_prompt_tokens"].astype(np.int64) + requests["num_output_tokens"]).max(initial=1))
    max_blocks = min(-(-(longest + num_slots) // max(block_size, 1)) + 1, num_blocks)
    # As many again for those who were preempted and may find their blocks; of few sequences for some more.
    num_rows = 2 * min(max(max_num_seqs, 32), max(len(requests), 1))
    ring = 1 << (2 * max_num_seqs + 16).bit_length()
    return EngineState(
        requests,
        token_time_s,
        new_splits(len(requests)) if splits is None else splits,
        counts,
        np.zeros(ring, dtype=np.int64),
        np.zeros(max_num_seqs, dtype=np.int64),
        np.zeros(max_num_seqs, dtype=BATCH_ENTRY),
        np.zeros(2, dtype=FLIGHT),
        np.zeros(max_num_seqs, dtype=BATCH_ENTRY),
        np.zeros(num_step_rows, dtype=STEP),
        new_kv_cache(
            num_blocks, block_size, holdings, num_slots=num_rows, max_blocks=max_blocks, contents=contents,
            is_caching=is_caching, num_host_blocks=num_host_blocks,
        ),
        np.zeros(MAX_LEAP),
        np.zeros(block_size, dtype=np.int64),
        np.zeros(max_tokens + 1, dtype=np.int64),
        np.zeros(max_tokens + 1, dtype=np.int64),
    )


STATE_TYPE = typeof(
    new_engine_state(
        np.zeros(0, REQUEST),
        np.zeros(0),
        new_holdings(0),
        num_blocks=1,
        block_size=1,
        max_num_seqs=1,
        max_num_batched_tokens=1,
        num_step_rows=0,
    )
)
"""The compiled type of every engine state: the argument of a batching policy."""


@njit(cache=True)
def num_waiting(state: EngineState) -> int:
    """Requests that have arrived and are not running."""
    counts = state.counts[0]
    return counts.arrived - counts.head


@njit(cache=True)
def waiting_head(state: EngineState) -> int:
    """The first request in the waiting line; `num_waiting` must be positive."""
    return state.waiting[state.counts[0].head & (state.waiting.size - 1)]


@njit(cache=True)
def is_on_host(state: EngineState) -> bool:
    """Whether the first in the waiting line, if there is one, has its blocks in host memory."""
    counts = state.counts[0]
    # Asked in this order, because each array taken out of the state costs two atomic counts.
    return counts.num_swaps > 0 and counts.arrived > counts.head and state.kv.holdings[waiting_head(state)].num_host > 0


@inner(forceinline=True)
def missing_tokens(row) -> int:
    expected = row.num_generated + row.num_in_flight
    if expected >= row.num_output_tokens:
        return 0
    return row.num_prompt_tokens + expected + row.num_drafts - row.num_computed


@njit(cache=True)
def num_missing(state: EngineState, request: int) -> int:
    """Tokens to schedule: the rest of the prompt, or the last token, which may still be in flight, and its drafts.

    After a preemption the tokens generated so far count as prompt. 0 where the last output token is in flight: a
    server that was told how many to generate knows.
    """
    return missing_tokens(state.requests[request])


@inner(forceinline=True)
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


@njit(cache=True, forceinline=True)
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


@inner
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


@njit(cache=True)
def schedule_decodes(state: EngineState, position: int, budget: int) -> int:
    """Schedule running requests from `position` on, while each is one token that the next one comes of, within the
    budget and the room; returns the first position that is not.

    What `num_missing`, `make_room` and `schedule` would do one by one, for the usual case and with the arrays taken out
    of the state once: in compiled code each taking out costs two atomic counts.
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
        if missing_tokens(row) != 1 or context <= row.num_prompt_tokens:
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


@njit(cache=True)
def can_admit(state: EngineState) -> bool:
    """Whether somebody waits, a slot is free, and free blocks hold all of the first in line that is not cached: of one
    in host memory all that it had, and what is missing; of one that comes with blocks, filled elsewhere, the rest."""
    counts = state.counts[0]
    if counts.arrived == counts.head or counts.num_running >= counts.max_num_seqs:
        return False
    request = waiting_head(state)
    num_tokens = num_missing(state, request)
    if state.kv.holdings[request].num_blocks > 0:
        return can_hold(state.kv, request, state.requests[request].num_computed + num_tokens)
    num_blocks = blocks_for(state.kv, state.requests[request].num_computed + num_tokens)
    num_free = state.kv.counts[0].num_free
    if num_blocks <= num_free:
        return True
    if counts.num_swaps > 0 and state.kv.holdings[request].num_host > 0:
        return False
    shared, num_idle = num_shared(state.kv, request, num_tokens)
    return num_blocks - shared + num_idle <= num_free


@njit(cache=True)
def can_reserve(state: EngineState) -> bool:
    """Whether somebody waits, a slot is free, and blocks are left for the first in line and for all that run, each with
    its whole output: who is admitted then is never preempted.

    The output is known as a request's limit is. What a cache might share counts as taken.
    """
    counts = state.counts[0]
    if counts.arrived == counts.head or counts.num_running >= counts.max_num_seqs:
        return False
    return _blocks_to_end(state) <= state.kv.counts[0].num_free


@njit(cache=True)
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


@inner
def _blocks_to_end(state: EngineState) -> int:
    """Blocks that all who run, and the first in line, lack to the end of their outputs."""
    counts = state.counts[0]
    requests, running, holdings = state.requests, state.running, state.kv.holdings
    row = requests[waiting_head(state)]
    needed = blocks_for(state.kv, row.num_prompt_tokens + row.num_output_tokens - 1)
    for position in range(counts.num_running):
        row, held = requests[running[position]], holdings[running[position]]
        needed += max(blocks_for(state.kv, row.num_prompt_tokens + row.num_output_tokens - 1) - held.num_blocks, 0)
    return needed


@njit(cache=True)
def admit(state: EngineState) -> int:
    """Move the first in line to the end of the running list, with what the cache, or the host, has of it; returns
    it."""
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
        row.num_computed = shared * state.kv.counts[0].block_size
        if np.isnan(row.scheduled_s):
            row.num_cached = row.num_computed
    splits = state.splits
    mark(counts, splits, request, RECOMPUTING if row.num_computed < splits[request].num_lost else PREFILLING)
    return request


@inner
def take_arrivals(state: EngineState) -> None:
    """Let those who have arrived by now join the waiting line."""
    counts = state.counts[0]
    mask = state.waiting.size - 1
    while counts.arrived < counts.submitted:
        row = state.requests[state.waiting[counts.arrived & mask]]
        if row.submitted_s > counts.now_s:
            break
        counts.arrived += 1


@inner
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
    counts = state.counts[0]
    head, submitted = counts["head"].item(), counts["submitted"].item()
    # Preempted requests come back to the head, so that many places stay free.
    if submitted - head + len(state.running) >= len(state.waiting):
        entries = np.arange(head, submitted)
        longer = np.zeros(2 * len(state.waiting), dtype=np.int64)
        longer[entries & (len(longer) - 1)] = state.waiting[entries & (len(state.waiting) - 1)]
        state = state._replace(waiting=longer)
    state.waiting[submitted & (len(state.waiting) - 1)] = request
    counts["submitted"] = submitted + 1
    return state
