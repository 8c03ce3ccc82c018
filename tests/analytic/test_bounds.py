"""Closed forms against step-by-step sums."""

import math

import numpy as np
import pytest

from models.bounds import (
    all_to_all_s,
    bus_bytes_per_s,
    halving_doubling_all_reduce_s,
    md1_mean_wait_s,
    ring_all_gather_s,
    ring_all_reduce_s,
)


def test_ring_by_hand():
    """4 ranks, 400 B at 100 B/s, 0.5 s: a step takes 0.5 + 1 s; 6 of them reduce, 3 gather."""
    assert ring_all_reduce_s(400, 4, 100, 0.5) == 9.0
    assert ring_all_gather_s(400, 4, 100, 0.5) == 4.5


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 64])
def test_halving_doubling_step_by_step(num_ranks):
    """Halving exchanges size / 2, size / 4 … size / n; doubling the same backwards."""
    size_bytes, rate, latency_s = 1e6, 5e10, 1e-6
    steps = [size_bytes / 2**level for level in range(1, int(math.log2(num_ranks)) + 1)]
    expected = 2 * sum(latency_s + piece / rate for piece in steps)
    assert halving_doubling_all_reduce_s(size_bytes, num_ranks, rate, latency_s) == pytest.approx(expected)


def test_halving_doubling_equals_the_ring_without_latency():
    ring_s = ring_all_reduce_s(1e9, 16, 5e10, 0.0)
    assert halving_doubling_all_reduce_s(1e9, 16, 5e10, 0.0) == pytest.approx(ring_s)


def test_all_to_all_of_64_ranks():
    """64 ranks, 1 MB a pair, at 400 Gbit/s: 63 MB / 50 GB/s = 1260 us."""
    assert all_to_all_s(64e6, 64, 50e9) == pytest.approx(1260e-6)
    assert all_to_all_s(64e6, 1, 50e9) == 0.0


@pytest.mark.parametrize("num_ranks", [2, 3, 8, 1024])
def test_bus_bandwidth_of_a_ring_is_the_link(num_ranks):
    time_s = ring_all_reduce_s(1e9, num_ranks, 5e10, 0.0)
    assert bus_bytes_per_s("all_reduce", 1e9, num_ranks, time_s) == pytest.approx(5e10)
    time_s = ring_all_gather_s(1e9, num_ranks, 5e10, 0.0)
    assert bus_bytes_per_s("all_gather", 1e9, num_ranks, time_s) == pytest.approx(5e10)
    time_s = all_to_all_s(1e9, num_ranks, 5e10)
    assert bus_bytes_per_s("all_to_all", 1e9, num_ranks, time_s) == pytest.approx(5e10)


def test_one_rank_has_nothing_to_send():
    assert ring_all_reduce_s(1e9, 1, 5e10, 1e-6) == 0.0
    assert halving_doubling_all_reduce_s(1e9, 1, 5e10, 1e-6) == 0.0


def test_md1_by_hand():
    """Load 1/2, service 2 s: 0.5 · 2 / (2 · 0.5) = 1 s; no arrivals, no wait."""
    assert md1_mean_wait_s(0.25, 2.0) == 1.0
    assert md1_mean_wait_s(0.0, 2.0) == 0.0


def test_md1_against_lindley():
    """W' = max(0, W + service - gap) over 400,000 arrivals at load 0.7: within 4 % (1 % standard error)."""
    gaps = np.random.default_rng(11).exponential(1 / 0.7, size=400_000)
    walk = np.concatenate([[0.0], np.cumsum(1.0 - gaps)])
    waits = walk - np.minimum.accumulate(walk)
    assert waits.mean() == pytest.approx(md1_mean_wait_s(0.7, 1.0), rel=0.04)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ring_all_reduce_s(1, 0, 1, 0),
        lambda: ring_all_reduce_s(-1, 2, 1, 0),
        lambda: ring_all_gather_s(1, 2, 0, 0),
        lambda: ring_all_gather_s(1, 2, float("nan"), 0),
        lambda: halving_doubling_all_reduce_s(1, 6, 1, 0),
        lambda: all_to_all_s(1, 2, 1, -1.0),
        lambda: bus_bytes_per_s("all_gater", 1, 2, 1),
        lambda: bus_bytes_per_s("all_gather", 1, 2, 0.0),
        lambda: md1_mean_wait_s(1.0, 1.0),
        lambda: md1_mean_wait_s(-1.0, 1.0),
    ],
)
def test_refusals(call):
    with pytest.raises(ValueError, match=r"must|unknown"):
        call()
