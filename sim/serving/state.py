"""The state of one replica's engine, as arrays; what is done with it is in `sim.serving.verbs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import typeof
from numpy.typing import NDArray

from sim.devices.kv_cache import (
    Contents,
    KVCache,
    new_holdings,
    new_kv_cache,
)
from sim.devices.kv_tiers import TierLimits, Tiers, new_asked, new_tiers
from sim.serving.request import REQUEST
from sim.serving.residency import ADAPTER, Residency, held
from sim.serving.speculation import Speculation
from sim.serving.time_split import new_splits

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
        ("past_load_s", "f8"),
        ("load_to_do_s", "f8"),
        ("link_free_s", "f8"),
        ("looked_s", "f8"),
        ("adapter_load_s", "f8"),
        ("evict_s", "f8"),
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
        ("num_discarded", "i8"),
        ("first_mark", "i8"),
        ("num_recomputing", "i8"),
        ("adapter_capacity", "i8"),
        ("adapter_room", "i8"),
        ("is_overlapped", "i8"),
        ("awaits_load", "i8"),
        ("num_loads", "i8"),
        ("num_evictions", "i8"),
        ("num_adapters_given", "i8"),
        ("num_adapters_lost", "i8"),
        ("num_joined", "i8"),
        ("num_joined_at_once", "i8"),
        ("is_async", "i8"),
        ("ends_unforeseen", "i8"),
        ("is_formed", "i8"),
        ("is_steady", "i8"),
        ("keeps_blocks", "i8"),
        ("num_tiers", "i8"),
        ("first_fetch", "i8"),
        ("is_asked", "i8"),
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
past_compute_s … past_load_s   of the steps finished so far, as the flight has them
adapter_capacity, is_overlapped    as in `sim.serving.residency.Residency`; 0: no adapters come and go
adapter_room               of the capacity, what no adapter takes
load_to_do_s               of loads and evictions that the batch being formed waits for
link_free_s, looked_s      when the last load that runs beside the steps is over; when loads were last begun for those
                           who wait
awaits_load                nothing runs, and who waits needs a load that is not over
num_loads, adapter_load_s, num_evictions, evict_s   so far; num_adapters_given, num_adapters_lost   there at the
                           beginning, or again after a death, and lost with the memory
num_joined, num_joined_at_once    times that a request with an adapter joined a batch, and that without a load
max_graph_tokens           batches up to here run as recorded graphs of certain sizes (`graph_tokens`); 0: none do
head, arrived, submitted   the waiting line is entries head … arrived - 1 of the ring; arrived … submitted - 1
                           are known to come later
batch_size … decode_context    the batch being formed: entries, and the sums that its cost follows from
                           (`models.operators.Feature`); a kernel takes whoever computes one token for a decode, so
                           the last token of a prompt may be among the decodes, and is among prefill_tokens too; a
                           token and its drafts are one decode that reads its context once
first_mark, num_recomputing    who changes its stage when the next batch starts (`mark`), how many are in RECOMPUTING
is_async                   a batch is formed when the one before it starts, not when that has finished
ends_unforeseen            of an asynchronous engine: whose last token is in flight is in the next batch too, because
                           nobody knows that it is the last; num_discarded    tokens computed in vain for that reason
is_formed, is_steady       whether the batch waits for its turn, 2 if there is none; whether the policy called it steady
keeps_blocks               whoever ends keeps its blocks until somebody else frees them
num_tiers                  behind the KV cache
first_fetch                the request + 1 that blocks are fetched for and that was admitted last; 0: there is none
is_asked                   the policy found nothing to run at now_s, and has to wait for an arrival or a fetch
"""

BATCH_ENTRY = np.dtype([("request", "i4"), ("num_tokens", "i4"), ("prefix", "i4"), ("samples", "i4")], align=True)
"""A request's part of a batch: tokens, how many are in the cache before them, and of how many the next is wanted: 0 of
a prompt that goes on, 1 of a prompt's end or a decode, of a decode with drafts all."""

FLIGHT = np.dtype(
    [("started_s", "f8"), ("finish_s", "f8"), ("compute_s", "f8"), ("communication_s", "f8"), ("uncontended_s", "f8"),
     ("load_s", "f8"), ("batch_size", "i8"), ("tokens", "i8"), ("prefill_tokens", "i8"), ("decode_context", "i8"),
     ("is_steady", "i8")],
    align=True,
)  # fmt: skip
"""A batch in flight; batch_size is 0 where there is none.

uncontended_s    of its communication, what it would take alone on an ideal fabric; 0 where nobody asks
load_s           what it waits for adapters before anything else
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
    tiers          behind the KV cache; arrays without rows where there are none
    adapters       [adapters + 1] ADAPTER where they come and go, else empty
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
    tiers: Tiers
    adapters: NDArray[Any]


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
    ends_unforeseen: bool = False,
    contents: Contents | None = None,
    is_caching: bool = False,
    max_graph_tokens: int = 0,
    num_host_blocks: int = 0,
    block_copy_s: float = 0.0,
    speculation: Speculation | None = None,
    splits: NDArray[Any] | None = None,
    tiers: Sequence[TierLimits] = (),
    asked: NDArray[Any] | None = None,
    residency: Residency | None = None,
) -> EngineState:
    """An idle engine at time 0.

    splits, asked (of the tiers)    None: its own; residency    None: no adapters come and go
    is_async, ends_unforeseen, max_graph_tokens, block_copy_s    as in COUNTS; contents, is_caching,
    num_host_blocks    as in `new_kv_cache`
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
    counts["ends_unforeseen"] = is_async and ends_unforeseen
    counts["block_copy_s"] = block_copy_s
    counts["byte_share"] = 1.0
    counts["num_tiers"] = len(tiers)
    num_slots = 0
    if speculation is not None:
        num_slots = speculation.num_slots
        counts["num_spec_tokens"] = speculation.num_tokens
        counts["draft_seed"] = speculation.seed
        for name in ("acceptance", "num_lookahead", "draft_s", "draft_cost", "flop_share", "byte_share"):
            counts[name] = getattr(speculation, name)
    adapters = np.zeros(0, ADAPTER) if residency is None else residency.new_adapters()
    if residency is not None:
        counts["adapter_capacity"], counts["is_overlapped"] = residency.capacity, residency.is_overlapped
        counts["num_adapters_given"], room = held(adapters)
        counts["adapter_room"] = residency.capacity - room
    lengths = requests["num_prompt_tokens"].astype(np.int64) + requests["num_output_tokens"]
    longest = int(lengths.max(initial=1))
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
        new_tiers(
            tiers, int((lengths // max(block_size, 1)).sum()),
            new_asked(len(requests) if tiers else 0) if asked is None else asked,
        ),
        adapters,
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
