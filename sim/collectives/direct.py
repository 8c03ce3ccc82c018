"""Direct algorithms: every rank sends to every other at once, to r + 1 first, then r + 2, and so on.

Message (offset k, rank r) goes to rank r + k and has index (k − 1) n + r, so that successive messages start
at different ranks and no destination is everybody's first.
"""

from __future__ import annotations

import numpy as np

from sim.collectives.plan import (
    COPY,
    REDUCE,
    CollectiveError,
    Plan,
    block_offsets,
    empty_plan,
    in_sequence,
    plan,
)
from sim.fabric.messages import Int64


def all_reduce(num_ranks: int, size_bytes: int) -> Plan:
    """Everyone sends its n-th block to everyone, adds up its own, and sends the sum to everyone: 2 steps."""
    phases = [reduce_scatter(num_ranks, size_bytes), all_gather(num_ranks, size_bytes)]
    return in_sequence(phases, num_ranks)


def reduce_scatter(num_ranks: int, size_bytes: int) -> Plan:
    """Every rank sends block p to rank p, which adds it. `size_bytes` is the vector each rank sends."""
    source, destination = rotated_pairs(num_ranks)
    offsets = block_offsets(size_bytes, num_ranks)
    return plan(source, destination, np.diff(offsets)[destination], offsets[destination], REDUCE)


def all_gather(num_ranks: int, size_bytes: int) -> Plan:
    """Rank r sends its block r to everyone. `size_bytes` is the vector that each rank ends with."""
    source, destination = rotated_pairs(num_ranks)
    offsets = block_offsets(size_bytes, num_ranks)
    return plan(source, destination, np.diff(offsets)[source], offsets[source], COPY)


def all_to_all(num_ranks: int, size_bytes: int) -> Plan:
    """Rank r sends block p of its own `size_bytes` to every rank p and keeps block r.

    The plan's vector is the ranks' send buffers one after another: rank r's begins at byte r · size_bytes.
    """
    source, destination = rotated_pairs(num_ranks)
    offsets = block_offsets(size_bytes, num_ranks)
    first_byte = source * size_bytes + offsets[destination]
    return plan(source, destination, np.diff(offsets)[destination], first_byte, COPY)


def send_recv(num_ranks: int, size_bytes: int, pairs: Int64 | None = None) -> Plan:
    """Rank i sends `size_bytes` to rank i + 1, the last to the first; or the given pairs [m, 2] of ranks.

    The plan's vector is the ranks' send buffers one after another: rank r's begins at byte r · size_bytes.
    Raises CollectiveError when a pair names an unknown rank or a rank and itself.
    """
    if pairs is None:
        if num_ranks == 1:
            return empty_plan()
        source = np.arange(num_ranks, dtype=np.int64)
        destination = (source + 1) % num_ranks
    else:
        source, destination = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
        for s, d in zip(source, destination, strict=True):
            if s == d or not (0 <= s < num_ranks and 0 <= d < num_ranks):
                raise CollectiveError(
                    f"send_recv pair {s} -> {d}: give two different ranks of 0 … {num_ranks - 1}"
                )
    return plan(source, destination, np.full(len(source), size_bytes), source * size_bytes, COPY)


def rotated_pairs(num_ranks: int) -> tuple[Int64, Int64]:
    """Source and destination of every ordered pair of ranks, by offset and then by source: n (n − 1) each."""
    rank = np.arange(num_ranks, dtype=np.int64)
    offset = np.arange(1, num_ranks, dtype=np.int64)[:, None]
    return np.tile(rank, num_ranks - 1), ((rank + offset) % num_ranks).ravel()
