"""Where each request's time goes: stages that follow one another, and parts that add up to its end-to-end latency.

From arrival to its last token a request is in one stage at a time, and changes it only between two steps of its
replica. While it is running, every moment lies in a step. So what happened to it in a stage is the difference of two
readings of the replica: the clock, and the sums over its finished steps (`past_…` of COUNTS). That costs a request
three readings, and five more for each preemption, however many steps it lives through, and needs no recorded step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import inner_borrowing

QUEUED, PREFILLING, DECODING, PREEMPTED, RECOMPUTING, TRANSFERRING, ENDED = 0, 1, 2, 3, 4, 5, 6
"""Stages. QUEUED ends when the first step that computes the request starts, which under asynchronous scheduling is
after it was scheduled. RECOMPUTING lasts until the end of the step that has computed again all that was lost."""

SPLIT = np.dtype(
    [
        ("since_s", "f8"),
        ("since_compute_s", "f8"),
        ("since_communication_s", "f8"),
        ("since_uncontended_s", "f8"),
        ("since_load_s", "f8"),
        ("queue_s", "f8"),
        ("prefill_s", "f8"),
        ("decode_s", "f8"),
        ("host_s", "f8"),
        ("communication_s", "f8"),
        ("uncontended_s", "f8"),
        ("recompute_s", "f8"),
        ("waiting_again_s", "f8"),
        ("kv_transfer_s", "f8"),
        ("adapter_load_s", "f8"),
        ("next_mark", "i4"),
        ("num_lost", "i4"),
        ("stage", "i1"),
        ("next_stage", "i1"),
    ],
    align=True,
)
"""One request's time so far.

since_s, since_compute_s …   the readings when its stage began; QUEUED began at its arrival
queue_s … kv_transfer_s      the parts: whole stages QUEUED, PREEMPTED (waiting_again_s) and TRANSFERRING; of the others
                             what the accelerator computed (prefill_s, decode_s, recompute_s), communication_s, of which
                             uncontended_s, adapter_load_s, and in host_s what steps took beyond all three; of the
                             queue, adapter_load_s is what it waited for a load beside the steps, known when it joins
num_lost                     tokens whose keys and values were there when it was preempted
next_stage, next_mark        of a request that changes its stage when the next batch starts: to which, and the number
                             of the next such request + 1 (0: none)
"""


def new_splits(num_requests: int) -> NDArray[Any]:
    """Of requests that have not arrived."""
    return np.zeros(num_requests, SPLIT)


@inner_borrowing
def mark(counts: Any, splits: NDArray[Any], request: int, stage: int) -> None:
    """The request enters `stage` when the batch that is being formed starts."""
    split = splits[request]
    if split.next_stage == QUEUED:
        split.next_mark = counts.first_mark
        counts.first_mark = request + 1
    split.next_stage = stage


@inner_borrowing
def forget(counts: Any, splits: NDArray[Any], request: int) -> None:
    """The request leaves before its end. What it has lived through here is lost: if it comes again, all of the time
    since its arrival was queueing."""
    split = splits[request]
    if split.next_stage != QUEUED:
        if counts.first_mark == request + 1:
            counts.first_mark = split.next_mark
        else:
            before = counts.first_mark - 1
            while splits[before].next_mark != request + 1:
                before = splits[before].next_mark - 1
            splits[before].next_mark = split.next_mark
    if split.stage == RECOMPUTING:
        counts.num_recomputing -= 1
    split.queue_s = split.prefill_s = split.decode_s = split.host_s = split.communication_s = 0.0
    split.uncontended_s = split.recompute_s = split.waiting_again_s = split.kv_transfer_s = split.adapter_load_s = 0.0
    split.num_lost = 0
    split.stage = split.next_stage = QUEUED


@inner_borrowing
def enter_marked(counts: Any, requests: NDArray[Any], splits: NDArray[Any]) -> None:
    """A batch starts: whoever waits for that enters its stage. Who has ended meanwhile stays ended."""
    while counts.first_mark > 0:
        request = counts.first_mark - 1
        split = splits[request]
        stage = split.next_stage
        counts.first_mark = split.next_mark
        split.next_stage = QUEUED
        if split.stage == ENDED:
            continue
        enter(counts, requests, splits, request, stage, counts.now_s)


@inner_borrowing
def enter(
    counts: Any, requests: NDArray[Any], splits: NDArray[Any], request: int, stage: int, now_s: float
) -> None:
    """End the request's stage now, between two steps of its replica, and begin another."""
    split = splits[request]
    compute_s, communication_s = counts.past_compute_s, counts.past_communication_s
    uncontended_s = counts.past_uncontended_s
    if stage == PREFILLING and requests[request].num_generated > 0:
        stage = DECODING
    since_s = requests[request].arrival_s if split.stage == QUEUED else split.since_s
    elapsed_s = now_s - since_s
    if split.stage == QUEUED:
        split.queue_s += elapsed_s - split.adapter_load_s
    elif split.stage == PREEMPTED:
        split.waiting_again_s += elapsed_s
    elif split.stage == TRANSFERRING:
        split.kv_transfer_s += elapsed_s
    else:
        computed_s = compute_s - split.since_compute_s
        communicated_s = communication_s - split.since_communication_s
        loaded_s = counts.past_load_s - split.since_load_s
        if split.stage == PREFILLING:
            split.prefill_s += computed_s
        elif split.stage == DECODING:
            split.decode_s += computed_s
        else:
            split.recompute_s += computed_s
            counts.num_recomputing -= 1
        split.communication_s += communicated_s
        split.uncontended_s += uncontended_s - split.since_uncontended_s
        split.adapter_load_s += loaded_s
        split.host_s += elapsed_s - computed_s - communicated_s - loaded_s
    if stage == RECOMPUTING:
        counts.num_recomputing += 1
    split.stage = stage
    split.since_s = now_s
    split.since_compute_s = compute_s
    split.since_communication_s = communication_s
    split.since_uncontended_s = uncontended_s
    split.since_load_s = counts.past_load_s


PARTS = (
    "queue", "prefill", "decode", "host", "in_host_communication", "fabric", "fabric_contention", "kv_transfer",
    "recompute", "waiting_again",
)  # fmt: skip
"""What an end-to-end latency is made of, in the order of the tables."""

ADAPTER_LOAD = "adapter_load"
"""One part more where adapters come and go: loads that a request's steps, or itself in the queue, waited for."""


def parts_s(
    splits: NDArray[Any], crosses_fabric: bool, is_compared: bool, is_staged: bool = False,
    loads_adapters: bool = False,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Seconds of each of PARTS, and of ADAPTER_LOAD where adapters come and go, of requests that have ended; they add
    up to last token - arrival.

    crosses_fabric   whether the communication of a step goes through the fabric or stays inside the host
    is_compared      whether the fabric's time is split into what it takes on an idle ideal fabric and contention; if
                     not, all of it is `fabric` and `fabric_contention` is NaN
    is_staged        of pipeline stages on several hosts: uncontended_s then is what stays inside hosts
    """
    communication_s, zero = splits["communication_s"], np.zeros(len(splits))
    if is_staged and crosses_fabric:
        inside_s = splits["uncontended_s"]
        found = {"in_host_communication": inside_s, "fabric": communication_s - inside_s,
                 "fabric_contention": np.full(len(splits), np.nan)}  # fmt: skip
        return {part: found[part] if part in found else splits[f"{part}_s"] for part in PARTS}
    alone_s = splits["uncontended_s"] if is_compared else communication_s
    contention_s = communication_s - alone_s if is_compared else np.full(len(splits), np.nan)
    found = {
        "in_host_communication": zero if crosses_fabric else communication_s,
        "fabric": alone_s if crosses_fabric else zero,
        "fabric_contention": contention_s if crosses_fabric else zero,
    }
    parts = (*PARTS, ADAPTER_LOAD) if loads_adapters else PARTS
    return {part: found[part] if part in found else splits[f"{part}_s"] for part in parts}
