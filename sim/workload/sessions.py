"""Conversations: each turn's prompt is all that was said before, and something new."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.devices.kv_cache import Contents

Int64 = NDArray[np.int64]

MOST_BLOCKS = 1 << 27
"""Block numbers of all prompts together; 8 bytes each."""


def session_prompts(num_turns: Int64, num_new: Int64, num_output: Int64) -> Int64:
    """Prompt tokens of every turn, session after session.

    num_turns   [sessions]
    num_new, num_output   [turns] tokens that a turn adds, and that are answered

    Of turn k the sum over j < k of (new_j + output_j), plus new_k.
    """
    said = np.cumsum(num_new + num_output) - num_output
    first = np.cumsum(num_turns) - num_turns
    before = said[first] - num_new[first]
    return said - np.repeat(before, num_turns)


def session_contents(num_turns: Int64, num_prompt: Int64, num_output: Int64, block_size: int) -> Contents:
    """What the full blocks of prompts and answers hold: equal numbers in all turns of a session, position by position.

    Raises ValueError where there are more blocks than memory has room for.
    """
    num_full = (num_prompt + num_output) // block_size
    start = np.append(0, np.cumsum(num_full))
    if start[-1] > MOST_BLOCKS:
        raise ValueError(
            f"the prompts of all turns have {start[-1]} blocks, more than the {MOST_BLOCKS} that a run can number; "
            "have fewer sessions, fewer turns, or larger blocks (kv.block_size)"
        )
    longest = num_full[np.cumsum(num_turns) - 1]
    base = np.repeat(np.cumsum(longest) - longest, num_turns)
    position = np.arange(start[-1]) - np.repeat(start[:-1], num_full)
    number = np.repeat(base, num_full) + position
    return Contents(start, number)
