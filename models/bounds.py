"""Closed forms that simulations are checked against."""

from __future__ import annotations

import math

__all__ = [
    "all_to_all_s",
    "break_even_bytes_per_s",
    "bus_bytes_per_s",
    "halving_doubling_all_reduce_s",
    "md1_mean_wait_s",
    "ring_all_gather_s",
    "ring_all_reduce_s",
]


def ring_all_reduce_s(size_bytes: float, num_ranks: int, bytes_per_s: float, latency_s: float) -> float:
    """Time of a ring all-reduce on an idle, homogeneous ring.

    2 (n - 1) steps, each moving size / n bytes:  2 (n - 1) (latency + size / (n rate))

    Leaves out: reduction compute, chunk pipelining.
    Raises ValueError when num_ranks < 1, or a size, rate or latency is out of range.
    """
    return 2 * ring_all_gather_s(size_bytes, num_ranks, bytes_per_s, latency_s)


def ring_all_gather_s(size_bytes: float, num_ranks: int, bytes_per_s: float, latency_s: float) -> float:
    """Time of a ring all-gather, or of a ring reduce-scatter, on an idle, homogeneous ring.

    n - 1 steps, each moving size / n bytes:  (n - 1) (latency + size / (n rate)), size being the full vector.

    Leaves out: reduction compute, chunk pipelining.
    Raises ValueError as `ring_all_reduce_s`.
    """
    _check(size_bytes, num_ranks, bytes_per_s, latency_s)
    return (num_ranks - 1) * (latency_s + size_bytes / (num_ranks * bytes_per_s))


def halving_doubling_all_reduce_s(
    size_bytes: float, num_ranks: int, bytes_per_s: float, latency_s: float
) -> float:
    """Time of an all-reduce by recursive halving, then doubling, on an idle, homogeneous network.

    log2 n steps halve what they exchange, size / 2, size / 4 … size / n, and as many double it again:
        2 log2(n) latency + 2 (n - 1) / n · size / rate

    Leaves out: reduction compute, contention between the pairs of a step.
    Raises ValueError when num_ranks is not a power of two, and as `ring_all_reduce_s`.
    """
    _check(size_bytes, num_ranks, bytes_per_s, latency_s)
    if num_ranks & (num_ranks - 1):
        raise ValueError(f"num_ranks must be a power of two, got {num_ranks}")
    return 2 * math.log2(num_ranks) * latency_s + 2 * (num_ranks - 1) / num_ranks * size_bytes / bytes_per_s


def all_to_all_s(size_bytes: float, num_ranks: int, bytes_per_s: float, latency_s: float = 0.0) -> float:
    """Shortest time of an all-to-all where each rank's port is the limit.

    Every rank sends n - 1 of its n blocks:  latency + (n - 1) / n · size / rate, size being one rank's
    buffer.

    Leaves out: everything between the ports, so a real fabric is never faster.
    Raises ValueError as `ring_all_reduce_s`.
    """
    _check(size_bytes, num_ranks, bytes_per_s, latency_s)
    if num_ranks == 1:
        return 0.0
    return latency_s + (num_ranks - 1) / num_ranks * size_bytes / bytes_per_s


_BUS_FACTORS = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send_recv": lambda n: 1.0,
}


def bus_bytes_per_s(operation: str, size_bytes: float, num_ranks: int, time_s: float) -> float:
    """Bus bandwidth as nccl-tests prints it: what a link carries, comparable over rank counts.

    size / time, times 2 (n - 1) / n for all-reduce, (n - 1) / n for all-gather, reduce-scatter and
    all-to-all, 1 for broadcast and send/recv. `size_bytes` is the larger of one rank's send and receive
    buffer.

    Raises ValueError for an unknown operation, num_ranks < 1 or a time that is not positive.
    Source: nccl-tests, doc/PERFORMANCE.md.
    """
    if operation not in _BUS_FACTORS:
        raise ValueError(f"unknown operation {operation!r}; known: {', '.join(sorted(_BUS_FACTORS))}")
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    if not time_s > 0:
        raise ValueError(f"time_s must be positive, got {time_s}")
    return size_bytes / time_s * _BUS_FACTORS[operation](num_ranks)


def md1_mean_wait_s(arrivals_per_s: float, service_s: float) -> float:
    """Mean time in the queue before one server with fixed service time and Poisson arrivals (M/D/1).

    With the load rho = arrivals · service:  rho · service / (2 (1 - rho))

    Raises ValueError when the load is not below 1, or a value is negative.
    Source: Pollaczek-Khinchine formula with zero service variance.
    """
    if arrivals_per_s < 0 or service_s < 0:
        raise ValueError(f"rate and service time must not be negative, got {arrivals_per_s} and {service_s}")
    load = arrivals_per_s * service_s
    if load >= 1:
        raise ValueError(f"load must be below 1 for a finite wait, got {load:g}")
    return load * service_s / (2 * (1 - load))


def break_even_bytes_per_s(kv_bytes_per_token: float, prefill_tokens_per_s: float) -> float:
    """The rate above which fetching keys and values takes less time than computing them, of one request alone.

    n tokens are computed in n / r and fetched in n b / B, r being the rate of prefill and b the bytes of a token:
    equal at B = b r. With a latency a: B = b r / (1 - a r / n), and at no rate where a r >= n. Of rates one after the
    other, disk and host, the inverses add up: 1 / B = 1 / B_disk + 1 / B_host.

    Leaves out: that a server computes for others while it fetches, so that under load fetching pays from below on.
    Raises ValueError for a value that is not above 0.
    """
    if not (kv_bytes_per_token > 0 and prefill_tokens_per_s > 0):
        raise ValueError(f"both must be above 0, got {kv_bytes_per_token} bytes and {prefill_tokens_per_s} tokens/s")
    return kv_bytes_per_token * prefill_tokens_per_s


def _check(size_bytes: float, num_ranks: int, bytes_per_s: float, latency_s: float) -> None:
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    if size_bytes < 0 or latency_s < 0 or not bytes_per_s > 0:
        raise ValueError(
            f"size and latency must not be negative and the rate must be positive, "
            f"got {size_bytes}, {latency_s}, {bytes_per_s}"
        )
