"""What prompts have in common: content numbers of their blocks, as prefix-sharing traces record them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.devices.kv_cache import Contents


@dataclass(frozen=True, slots=True)
class SharedBlocks:
    """Numbers of the leading blocks of each request's prompt; equal numbers are equal content after equal content.

    start       [num_requests + 1] those of a request are entries start … of `number`
    num_tokens  of one block; the last block of a prompt may be partly filled
    """

    start: NDArray[np.int64]
    number: NDArray[np.int64]
    num_tokens: int

    def select(self, keep: NDArray[np.bool_]) -> SharedBlocks:
        """Those of the requests that are kept."""
        return self.taken(np.flatnonzero(keep))

    def taken(self, order: NDArray[np.int64]) -> SharedBlocks:
        """In another order of requests."""
        lengths = np.diff(self.start)[order]
        start = np.append(0, np.cumsum(lengths))
        place = np.arange(start[-1]) - np.repeat(start[:-1], lengths) + np.repeat(self.start[:-1][order], lengths)
        return SharedBlocks(start, self.number[place], self.num_tokens)

    def hit_rate(self) -> float:
        """Share of all blocks that a cache without bound has when their request arrives, one after the other."""
        seen: set[int] = set()
        num_hits = 0
        for first, end in zip(self.start[:-1], self.start[1:], strict=True):
            numbers = self.number[first:end].tolist()
            num_new = next((i for i, number in enumerate(numbers) if number not in seen), len(numbers))
            num_hits += num_new
            seen.update(numbers)
        return num_hits / max(len(self.number), 1)

    def contents(
        self, num_prompt_tokens: NDArray[np.int64], block_size: int, group: NDArray[np.int64] | None = None
    ) -> Contents:
        """For an engine's blocks, which are parts of these: those that a prompt fills.

        group: of each request; it shares only with those of its own
        Raises ValueError where block_size does not divide a block.
        """
        if self.num_tokens % block_size:
            raise ValueError(
                f"the trace says which blocks of {self.num_tokens} tokens prompts share; kv.block_size {block_size} "
                "does not divide that"
            )
        parts = self.num_tokens // block_size
        num_full = np.minimum(num_prompt_tokens // block_size, np.diff(self.start) * parts)
        start = np.append(0, np.cumsum(num_full))
        place = np.arange(start[-1]) - np.repeat(start[:-1], num_full)
        block = np.repeat(self.start[:-1], num_full) + place // parts
        part = self.number[block] * parts + place % parts
        if group is not None:
            part = part * (group.max(initial=0) + 1) + np.repeat(group, num_full)
        _, number = np.unique(part, return_inverse=True)
        return Contents(start, number.astype(np.int64))
