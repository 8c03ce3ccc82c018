"""Rates that vary: the integrated rate is that of the law, and with it the process is a Poisson process of rate 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from sim.workload.arrivals import arrival_times_s
from sim.workload.rate_shape import Burst, Diurnal

RATE = 50.0
SHAPES = {
    "diurnal": (Diurnal(100.0, 0.9), lambda t: 1 + 0.9 * np.sin(2 * np.pi * t / 100.0)),
    "to nothing": (Diurnal(60.0, 1.0), lambda t: 1 + np.sin(2 * np.pi * t / 60.0)),
    # 50 s calm and 10 s at 4 times that: 60 / 90 and 240 / 90 of the mean.
    "burst": (Burst(60.0, 10.0, 4.0), lambda t: 60 / 90 if t % 60 < 50 else 240 / 90),
    "lull": (Burst(60.0, 10.0, 0.25), lambda t: 60 / 52.5 if t % 60 < 50 else 15 / 52.5),
}
by_shape = pytest.mark.parametrize("name", SHAPES)


@by_shape
def test_the_integral_is_that_of_the_rate(name):
    shape, relative_rate = SHAPES[name]
    for end_s in (7.0, 50.0, 55.0, 60.0, 131.0):
        corners = [t for t in (50.0, 60.0, 110.0, 120.0) if t < end_s]
        expected, _ = integrate.quad(relative_rate, 0.0, end_s, points=corners or None, limit=200)
        assert shape.integral(np.array([end_s]))[0] == pytest.approx(expected, rel=1e-6)


@given(
    period_s=st.floats(0.1, 1e5), share=st.floats(0.01, 0.99), factor=st.floats(0.01, 100),
    times=st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
)  # fmt: skip
def test_time_at_is_the_inverse_and_rises(period_s, share, factor, times):
    sought = np.sort(np.array(times))
    for shape in (Diurnal(period_s, share), Burst(period_s, share * period_s, factor)):
        found = shape.time_at(sought)
        assert (np.diff(found) >= 0).all() and (found >= 0).all()
        # a rate of up to 100 times the mean magnifies the rounding of a time of 1e6 s
        assert shape.integral(found) == pytest.approx(sought, rel=1e-9, abs=1e-9 * period_s + 1e-12)


@by_shape
def test_counts_in_each_part_of_the_period_are_poisson(name):
    """100 periods in twelfths: counts have the mean and the variance that the integrated rate gives; chi-squared."""
    shape, _ = SHAPES[name]
    edges = np.arange(1201) * shape.period_s / 12
    arrivals = arrival_times_s("poisson", RATE, np.random.default_rng(5), duration_s=edges[-1], shape=shape)
    counts = np.histogram(arrivals, edges)[0].reshape(100, 12).sum(axis=0)
    expected = RATE * np.diff(shape.integral(edges)).reshape(100, 12).sum(axis=0)
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), 12) > 1e-3
    assert arrivals[-1] < edges[-1]


@by_shape
def test_changed_back_the_gaps_are_exponential(name):
    shape, _ = SHAPES[name]
    arrivals = arrival_times_s("poisson", RATE, np.random.default_rng(7), num_requests=20_000, shape=shape)
    gaps = RATE * np.diff(shape.integral(arrivals))
    assert stats.kstest(gaps, "expon").pvalue > 1e-3


def test_a_constant_process_arrives_where_the_integral_is_whole():
    """Two a second by the clock of the burst: in [0, 50) s that clock goes 33.3 s, in the burst 26.7 s."""
    shape = SHAPES["burst"][0]
    arrivals = arrival_times_s("constant", 2.0, np.random.default_rng(0), num_requests=120, shape=shape)
    assert arrivals[0] == pytest.approx(0.75) and arrivals[-1] == pytest.approx(60.0)
    assert ((arrivals > 50) & (arrivals < 60 - 1e-9)).sum() == 53  # of 26.67 s at two a second, less the last


def test_without_a_shape_nothing_changes():
    plain = arrival_times_s("gamma", 2.0, np.random.default_rng(3), num_requests=50, burstiness=0.5)
    flat = Diurnal(10.0, 1e-12)
    shaped = arrival_times_s("gamma", 2.0, np.random.default_rng(3), num_requests=50, burstiness=0.5, shape=flat)
    assert shaped == pytest.approx(plain)
