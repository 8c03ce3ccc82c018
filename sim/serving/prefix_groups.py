"""The plan of a batch whose requests are all there: who shares a prefix, and which group comes first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sim.devices.kv_cache import Contents


def plan_batch(
    num_prompt_tokens: NDArray[np.int64],
    num_output_tokens: NDArray[np.int64],
    contents: Contents | None,
    block_size: int,
) -> NDArray[np.int64]:
    """[requests] each one's place.

    A group is all that share their first block. Within it requests are in the order of their blocks' contents, so that
    those with the longest common prefix are next to each other: a walk through the group's prefix tree. Groups come in
    falling order of
        output tokens / prompt tokens that remain when each prefix is computed once,
    ties by the first of their requests. Outputs are known as the limits that requests name.

    Source: Zheng et al., BatchLLM, arXiv 2412.03594, which joins prefixes of several levels into one beforehand; blocks
    share at every level, so that nothing is lost without.
    """
    given = [_contents_of(contents, request) for request in range(len(num_prompt_tokens))]
    groups: dict[tuple[int, int], list[int]] = {}
    for request, numbers in enumerate(given):
        groups.setdefault((0, numbers[0]) if numbers else (1, request), []).append(request)
    ratios: list[float] = []
    for members in groups.values():
        members.sort(key=lambda request: (given[request], request))
        ratios.append(
            int(num_output_tokens[members].sum())
            / (int(num_prompt_tokens[members].sum()) - _shared_tokens(members, given, num_prompt_tokens, block_size))
        )
    order = sorted(zip(ratios, groups.values(), strict=True), key=lambda each: (-each[0], min(each[1])))
    place = np.empty(len(given), np.int64)
    place[[request for _, members in order for request in members]] = np.arange(len(given))
    return place


def _contents_of(contents: Contents | None, request: int) -> list[int]:
    if contents is None:
        return []
    return contents.number[contents.start[request] : contents.start[request + 1]].tolist()


def _shared_tokens(
    members: list[int], given: list[list[int]], num_prompt_tokens: NDArray[np.int64], block_size: int
) -> int:
    """Prompt tokens that the one before has computed, of requests in order; the last token is always computed."""
    tokens = 0
    for before, request in pairwise(members):
        both = zip(given[before], given[request], strict=False)
        common = next((i for i, (a, b) in enumerate(both) if a != b), min(len(given[before]), len(given[request])))
        tokens += min(common, (int(num_prompt_tokens[request]) - 1) // block_size) * block_size
    return tokens
