"""Recursive halving and doubling: log2 n exchanges between ranks whose numbers differ in one bit.

Message (step k, rank r) has index k n + r. It waits for what rank r received in step k − 1 and for rank r's
own previous send; through the latter it waits for all earlier inputs too, which its data contains.
Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005.
"""

from __future__ import annotations

import numpy as np

from sim.collectives.plan import COPY, REDUCE, CollectiveError, Plan, block_offsets, empty_plan, plan


def all_reduce(num_ranks: int, size_bytes: int) -> Plan:
    """Halving reduce-scatter, then doubling all-gather: 2 log2 n steps, 2 (n − 1) / n · size bytes a rank.

    The nearest rank comes first and gets the largest part (vector halving, distance doubling), so that on
    neighbouring accelerators most bytes stay close.
    """
    distances = _distances(num_ranks)
    return _exchange(num_ranks, size_bytes, halving=distances, doubling=distances[::-1])


def reduce_scatter(num_ranks: int, size_bytes: int) -> Plan:
    """Recursive halving, the farthest rank first, so that rank r ends with the r-th block of the vector."""
    return _exchange(num_ranks, size_bytes, halving=_distances(num_ranks)[::-1], doubling=[])


def all_gather(num_ranks: int, size_bytes: int) -> Plan:
    """Recursive doubling, the nearest rank first; rank r starts with the r-th block of the vector."""
    return _exchange(num_ranks, size_bytes, halving=[], doubling=_distances(num_ranks))


def _distances(num_ranks: int) -> list[int]:
    if num_ranks & (num_ranks - 1):
        raise CollectiveError(
            f"halving_doubling needs a power of two of ranks, not {num_ranks}: "
            "use ring or direct (any number), double_binary_tree (all_reduce), or other ranks"
        )
    return [1 << i for i in range(num_ranks.bit_length() - 1)]


def _exchange(num_ranks: int, size_bytes: int, *, halving: list[int], doubling: list[int]) -> Plan:
    """Exchanges at the given distances, which halve or double the blocks low … high − 1 of each rank."""
    if num_ranks == 1:
        return empty_plan()
    rank = np.arange(num_ranks, dtype=np.int64)
    offsets = block_offsets(size_bytes, num_ranks)
    low, high = (np.zeros_like(rank), np.full_like(rank, num_ranks)) if halving else (rank, rank + 1)
    partners, begins, ends, actions = [], [], [], []
    for distance in halving:
        middle = (low + high) // 2
        takes_upper = (rank & distance) > 0
        begins.append(np.where(takes_upper, low, middle))
        ends.append(np.where(takes_upper, middle, high))
        low, high = np.where(takes_upper, middle, low), np.where(takes_upper, high, middle)
        partners.append(rank ^ distance)
        actions.append(np.full(num_ranks, REDUCE))
    for distance in doubling:
        partner = rank ^ distance
        begins.append(low)
        ends.append(high)
        low, high = np.minimum(low, low[partner]), np.maximum(high, high[partner])
        partners.append(partner)
        actions.append(np.full(num_ranks, COPY))
    num_steps, destination = len(partners), np.stack(partners)
    tail = np.arange((num_steps - 1) * num_ranks, dtype=np.int64)
    next_step = (np.arange(1, num_steps, dtype=np.int64) * num_ranks)[:, None]
    heads = np.stack((next_step + destination[:-1], next_step + rank), axis=-1)
    first, end = offsets[np.stack(begins)], offsets[np.stack(ends)]
    return plan(
        np.tile(rank, num_steps),
        destination,
        end - first,
        first,
        np.concatenate(actions),
        (np.repeat(tail, 2), heads.ravel()),
    )
