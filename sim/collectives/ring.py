"""Ring algorithms: every rank sends only to the next one, n − 1 steps around.

Message (step k, rank r) has index k n + r. It waits for what rank r received in step k − 1 (the block it now
forwards or has added to) and for rank r's own previous send, which uses the same queue pair.
Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.collectives.plan import COPY, REDUCE, Plan, block_offsets, empty_plan, plan


def all_reduce(num_ranks: int, size_bytes: int) -> Plan:
    """Reduce-scatter around the ring, then all-gather: 2 (n − 1) steps of size / n bytes."""
    shifts = np.arange(1, 2 * num_ranks - 1)
    return _around(num_ranks, size_bytes, shifts, np.where(shifts < num_ranks, REDUCE, COPY))


def reduce_scatter(num_ranks: int, size_bytes: int) -> Plan:
    """n − 1 steps; rank r ends with block r, reduced. `size_bytes` is the vector that each rank sends."""
    shifts = np.arange(1, num_ranks)
    return _around(num_ranks, size_bytes, shifts, np.full(len(shifts), REDUCE))


def all_gather(num_ranks: int, size_bytes: int) -> Plan:
    """n − 1 steps; rank r starts with block r. `size_bytes` is the vector that each rank ends with."""
    shifts = np.arange(num_ranks - 1)
    return _around(num_ranks, size_bytes, shifts, np.full(len(shifts), COPY))


def _around(num_ranks: int, size_bytes: int, shifts: NDArray[np.int64], actions: NDArray) -> Plan:
    """In step k every rank r sends block (r − shifts[k]) mod n to rank r + 1; shifts rise by one a step."""
    if num_ranks == 1:
        return empty_plan()
    rank = np.arange(num_ranks, dtype=np.int64)
    offsets = block_offsets(size_bytes, num_ranks)
    block = (rank - shifts[:, None]) % num_ranks
    num_steps, successor = len(shifts), (rank + 1) % num_ranks
    tail = np.arange((num_steps - 1) * num_ranks, dtype=np.int64)
    next_step = (np.arange(1, num_steps, dtype=np.int64) * num_ranks)[:, None, None]
    heads = next_step + np.stack((successor, rank), axis=1)
    return plan(
        np.tile(rank, num_steps),
        np.tile(successor, num_steps),
        np.diff(offsets)[block],
        offsets[block],
        np.repeat(actions, num_ranks),
        (np.repeat(tail, 2), heads.ravel()),
    )
