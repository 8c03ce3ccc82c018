"""The search for the highest rate, against services whose highest rate is known in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.capacity import Capacity, Verdict, search
from sim.serving.load import GROWTH, load_of, wait_growth


def highest_rate(probe, first_rate, tolerance=0.02) -> Capacity:
    """`search`, where trying a rate is a call."""
    rates = search(first_rate, tolerance)
    rate = next(rates)
    while True:
        try:
            rate = rates.send(probe(rate))
        except StopIteration as stop:
            found: Capacity = stop.value
            return found


def holds_below(critical, tried=None):
    def probe(rate):
        if tried is not None:
            tried.append(rate)
        return Verdict(rate <= critical, None if rate <= critical else "p99_itl_ms")

    return probe


@pytest.mark.parametrize("first", [0.001, 0.9, 1.0, 1.01, 700.0])
def test_the_mean_wait_of_a_markov_queue(first):
    """M/M/1 with service rate mu: the mean time in the service is 1 / (mu - lambda), at most T up to mu - 1 / T.

    mu = 3 /s and T = 0.5 s: 1 /s."""
    found = highest_rate(lambda rate: Verdict(rate < 3 and 1 / (3 - rate) <= 0.5), first)
    assert found.rate <= 1.0 < found.next_rate <= 1.02 * found.rate


def test_the_mean_wait_of_a_constant_service():
    """M/D/1: the mean wait is rho s / (2 (1 - rho)), at most W up to rho = 2 W / (s + 2 W).

    s = 0.1 s and W = 0.2 s: rho = 0.8, 8 /s. A tolerance of 0.1 % costs log2(log 2 / log 1.001) more probes."""
    tried = []

    def probe(rate):
        rho = 0.1 * rate
        tried.append(rate)
        return Verdict(rho < 1 and rho * 0.1 / (2 * (1 - rho)) <= 0.2)

    found = highest_rate(probe, 5.0, 0.001)
    assert found.rate <= 8.0 < found.next_rate <= 1.001 * found.rate
    assert len(tried) == found.num_probes == 2 + math.ceil(math.log2(math.log(2) / math.log(1.001)))


def test_two_percent_take_six_probes_more_than_the_bracket():
    """From 1 /s: 1, 2, 4, 8 bracket 5 /s; then each probe halves log 2, six times until below log 1.02."""
    tried = []
    highest_rate(holds_below(5.0, tried), 1.0)
    assert tried[:5] == [1, 2, 4, 8, pytest.approx(math.sqrt(32))] and len(tried) == 4 + 6


@given(st.floats(1e-3, 1e3), st.floats(0.5, 2.0), st.integers(0, 2**20))
def test_noise_does_not_break_the_promise(first, critical, noise):
    """Verdicts by chance around the critical rate: every rate tried up to the found one held, none above it did."""
    rng, verdicts = np.random.default_rng(noise), {}

    def probe(rate):
        verdicts[rate] = bool(rate * math.exp(0.3 * rng.standard_normal()) <= critical)
        return Verdict(verdicts[rate], None if verdicts[rate] else "p99_itl_ms")

    found = highest_rate(probe, first)
    assert found.rate is not None and found.next_rate <= 1.02 * found.rate
    assert all(is_held == (rate <= found.rate) for rate, is_held in verdicts.items())
    assert found.next_rate == min(rate for rate, is_held in verdicts.items() if not is_held)


def test_no_rate_holds():
    """A service that misses even when it is idle, from 1/8 on: it is not asked again at half of that."""
    tried = []

    def probe(rate):
        tried.append(rate)
        return Verdict(False, "p99_itl_ms", is_idle=rate <= 1 / 8)

    found = highest_rate(probe, 1.0)
    assert (found.rate, found.next_rate, found.limit) == (None, 1 / 8, "p99_itl_ms")
    assert tried == [1, 1 / 2, 1 / 4, 1 / 8]


def test_no_limit_and_no_idle_service_end_the_search_too():
    assert highest_rate(lambda rate: Verdict(True), 1.0).rate == 2**20
    assert highest_rate(lambda rate: Verdict(True), 1.0).next_rate is None
    assert highest_rate(lambda rate: Verdict(False), 1.0).next_rate == 2**-20


def test_the_limit_is_what_misses_just_above():
    """The time between tokens is too long from 3 /s on, and the queue grows from 6 /s on."""

    def probe(rate):
        return Verdict(rate < 3, None if rate < 3 else "overloaded" if rate > 6 else "p99_itl_ms")

    assert highest_rate(probe, 1.0).limit == "p99_itl_ms"


@pytest.mark.parametrize(("first", "tolerance"), [(0.0, 0.02), (math.inf, 0.02), (1.0, 0.0), (1.0, math.nan)])
def test_a_search_needs_a_rate_and_a_tolerance(first, tolerance):
    with pytest.raises(ValueError, match="must be positive and finite"):
        highest_rate(lambda rate: Verdict(True), first, tolerance)


# --- is it stable? ----------------------------------------------------------------------------------------------------


def waits_s(arrival_s, service_s):
    """Lindley: wait' = max(0, wait + service - gap)."""
    waits = np.zeros(len(arrival_s))
    for i, gap in enumerate(np.diff(arrival_s)):
        waits[i + 1] = max(0.0, waits[i] + service_s[i] - gap)
    return waits


def test_waits_of_too_many_arrivals_grow_by_their_excess():
    """D/D/1: arrivals every 1 s, served in 1.25 s: request i waits i 0.25 s, 0.25 s more each second."""
    arrival_s = np.arange(100.0)
    growth, num = wait_growth(arrival_s, waits_s(arrival_s, np.full(100, 1.25)))
    assert (growth, num) == (pytest.approx(0.25), 25)
    assert wait_growth(arrival_s, waits_s(arrival_s, np.full(100, 0.99))) == (0.0, 25)


@pytest.mark.parametrize(("rho", "expected"), [(0.5, "stable"), (0.8, "stable"), (1.2, "overloaded")])
def test_a_markov_queue_is_told_by_its_load(rho, expected):
    """M/M/1 over 4,000 arrivals: chance alone moves the wait by less than 2 sqrt(2 / 1000) = 9 % of the time."""
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(1.0, 4000))
    growth, num = wait_growth(arrival_s, waits_s(arrival_s, rng.exponential(rho, 4000)))
    assert load_of([growth], [num], arrivals_span_s=4000, mean_latency_s=10) == expected


def test_what_chance_can_do_is_not_called_overload():
    """5 % over 100 arrivals may be chance (2 sqrt(2 / 100) = 28 %); over 10 seeds of 1,000 it is not (2.8 %)."""
    assert load_of([0.05], [100], 100, 1) == "backlogged"
    assert load_of([0.05] * 10, [1000] * 10, 1000, 1) == "overloaded"
    assert load_of([GROWTH, GROWTH - 0.001], [1e6, 1e6], 1000, 1) == "stable"


def test_a_burst_shows_no_steady_state():
    """All requests within two of their latencies: none waits, and yet the rate is not one that could go on."""
    assert load_of([0.0], [100], arrivals_span_s=2, mean_latency_s=1) == "too short"
    assert load_of([0.0], [100], arrivals_span_s=3, mean_latency_s=1) == "stable"
    assert wait_growth(np.zeros(8), np.arange(8.0)) == (0.0, 2)
    assert wait_growth(np.zeros(3), np.zeros(3)) == (0.0, 0)
    assert load_of([0.0], [0], 0, 1) == "too short"
