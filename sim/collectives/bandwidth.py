"""Bus bandwidth: the figure that makes collectives of different operations and sizes comparable."""

from __future__ import annotations

from collections.abc import Callable

BUS_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send_recv": lambda n: 1.0,
}
"""Bytes that one rank's link must carry, per byte of size. Source: nccl-tests, doc/PERFORMANCE.md."""


def bus_bytes_per_s(operation: str, num_ranks: int, size_bytes: int, time_s: float) -> float | None:
    """size / time · factor(operation, n), as nccl-tests prints it; None when no time passed.

    Raises KeyError for an unknown operation, ValueError when num_ranks < 1.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}, expected at least 1")
    factor = BUS_FACTOR[operation](num_ranks)
    return size_bytes / time_s * factor if time_s > 0 else None
