"""Requests as rows of one array, shared by the workload and its replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NOT_ARRIVED, UNFINISHED, COMPLETED, FAILED, TIMED_OUT = 0, 1, 2, 3, 4
OUTCOMES = ("not arrived", "unfinished", "completed", "failed", "timed out")

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("submitted_s", "f8"),
        ("scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("finished_s", "f8"),
        ("first_token", "i8"),
        ("num_prompt_tokens", "i4"),
        ("num_output_tokens", "i4"),
        ("num_computed", "i4"),
        ("num_generated", "i4"),
        ("num_in_flight", "i4"),
        ("num_drafts", "i4"),
        ("num_cached", "i4"),
        ("num_preemptions", "i4"),
        ("adapter", "i2"),
        ("num_swaps", "i4"),
        ("precedence", "i4"),
        ("replica", "i2"),
        ("copy", "i2"),
        ("outcome", "i1"),
    ],
    align=True,
)
"""One request.

arrival_s, scheduled_s (when its first step was formed), first_token_s, finished_s: NaN until it happens
submitted_s          when it comes to its replica: at arrival_s, unless it is sent again
first_token          index of its first output token in the array of token times
num_output_tokens    how many tokens it will generate: known to the engine, which ends it there, and never
                     read by a batching policy
num_computed         tokens whose keys and values are in the cache, or will be when the steps scheduled have run
num_generated        output tokens so far
num_in_flight        output tokens of steps scheduled and not finished; prompt + generated + in flight - computed
                     tokens are still to be scheduled
num_drafts           tokens drafted behind the last one known, for the next step to verify
num_cached           prompt tokens that the cache had when it was first scheduled
num_preemptions      of which num_swaps moved its blocks to the host
precedence           lower goes first, under a policy that orders the line by it
adapter              0: the base model; i: the i-th adapter
replica, copy        -1 until routed; of a replica with several copies of the attention, the one that serves it
"""


def new_requests(
    arrival_s: NDArray[np.float64],
    num_prompt_tokens: NDArray[np.int64],
    num_output_tokens: NDArray[np.int64],
    adapter: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Requests that have not arrived yet, in order of arrival; of the base model unless `adapter` says otherwise.

    Raises ValueError unless arrivals rise, and each request has at least one token in and one out.
    """
    requests = np.zeros(len(arrival_s), dtype=REQUEST)
    if not len(arrival_s) == len(num_prompt_tokens) == len(num_output_tokens):
        raise ValueError(
            f"{len(arrival_s)} arrivals, {len(num_prompt_tokens)} prompts, {len(num_output_tokens)} outputs"
        )
    if not np.isfinite(arrival_s).all() or (np.diff(arrival_s) < 0).any():
        raise ValueError("arrival times must be finite and never fall")
    for what, values in (("prompt", num_prompt_tokens), ("output", num_output_tokens)):
        bad = ~((np.asarray(values) >= 1) & (np.asarray(values) < 2**30))
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(f"request {i}: {values[i]} {what} tokens, must be from 1 to 2^30")
    requests["arrival_s"] = requests["submitted_s"] = arrival_s
    requests["num_prompt_tokens"] = num_prompt_tokens
    requests["num_output_tokens"] = num_output_tokens
    requests["first_token"] = np.cumsum(num_output_tokens) - num_output_tokens
    requests["adapter"] = 0 if adapter is None else adapter
    requests["replica"] = requests["copy"] = -1
    for field in ("scheduled_s", "first_token_s", "finished_s"):
        requests[field] = np.nan
    return requests


def new_token_times(requests: NDArray[Any]) -> NDArray[np.float64]:
    """Room for the time of every output token, NaN until it is generated: [sum of num_output_tokens]."""
    return np.full(int(requests["num_output_tokens"].sum()), np.nan)
