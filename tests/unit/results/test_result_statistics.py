import math

import numpy as np
import pytest
from scipy import stats

from sim.results.statistics import (
    mean_interval,
    paired_difference,
    percentile_interval,
    percentiles_of_sorted,
    ratio_of_means,
)

T2 = 4.302652729911275
"""Student's t at 97.5 % with two degrees of freedom, from a printed table (4.3027)."""


def test_mean_interval_is_the_t_interval_by_hand():
    """1, 2, 3: mean 2, s = 1, half = 4.3027 · 1 / sqrt(3) = 2.4841."""
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert estimate.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_missing_values_and_too_few():
    assert mean_interval([None, float("nan")]).mean is None
    single = mean_interval([None, 5.0])
    assert (single.mean, single.low, single.num_values) == (5.0, None, 1)
    same = mean_interval([0.1, 0.1, 0.1])
    assert same.low == same.mean == same.high == 0.1


def test_paired_difference_by_hand():
    """Pairs (11, 10), (13, 11), (15, 12): differences 1, 2, 3, so 2 ± 2.4841, which includes 0."""
    found = paired_difference([11.0, 13.0, 15.0], [10.0, 11.0, 12.0], "lower")
    assert found.difference.mean == 2.0
    assert found.difference.low == pytest.approx(2 - T2 / math.sqrt(3))
    assert found.relative.mean == pytest.approx(2 / 11)
    assert found.verdict == "unclear"


def test_a_seed_missing_on_one_side_drops_out_of_the_pairs():
    found = paired_difference([1.0, None, 3.0], [1.0, 7.0, None], "lower")
    assert found.difference.num_values == 1
    assert found.verdict is None


def test_verdicts_follow_direction_and_margin():
    reference = [100.0, 101.0, 99.0]
    assert paired_difference([50.0, 51.0, 50.0], reference, "lower").verdict == "better"
    assert paired_difference([50.0, 51.0, 50.0], reference, "higher").verdict == "worse"
    assert paired_difference([50.0, 51.0, 50.0], reference, None).verdict == "lower"
    shifted = [value * 1.005 for value in reference]
    assert paired_difference(shifted, reference, "lower").verdict == "no difference"
    assert paired_difference([0.0, 0.0], [0.0, 0.0], "lower").verdict == "no difference"
    tax, tax_reference = [0.020, 0.021, 0.019], [0.015, 0.016, 0.014]
    assert paired_difference(tax, tax_reference, "lower", is_share=True).verdict == "no difference"
    assert paired_difference(tax, tax_reference, "lower").verdict == "worse"


def test_equal_within_one_percent_even_where_the_seeds_differ_widely():
    """Differences 0.001, 0.001, 0.002 on a mean of 2: 0.00133 ± 0.00143, at most 0.14 %, though s = 1."""
    found = paired_difference([1.001, 2.001, 3.002], [1.0, 2.0, 3.0], "lower")
    assert found.verdict == "no difference"
    assert found.judged.high == pytest.approx((0.004 / 3 + T2 * 0.001 / 3) / 2, rel=1e-6)


def test_ratio_with_a_constant_denominator_is_the_t_interval():
    ratio = ratio_of_means([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    interval = mean_interval([0.25, 0.5, 0.75])
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((interval.mean, interval.low, interval.high))


def test_fieller_bounds_satisfy_their_definition_and_invert():
    """At a bound r:  (ȳ - r x̄)² = t² var(ȳ - r x̄); exchanging the two inverts the interval."""
    y, x = np.array([5.0, 6.1, 5.5, 5.9]), np.array([2.0, 2.3, 1.9, 2.2])
    ratio = ratio_of_means(list(y), list(x))
    t = stats.t.ppf(0.975, 3)
    for bound in (ratio.low, ratio.high):
        z = y - bound * x
        assert abs(z.mean()) == pytest.approx(t * z.std(ddof=1) / 2, rel=1e-9)
    inverse = ratio_of_means(list(x), list(y))
    assert (inverse.low, inverse.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))


def test_ratio_to_something_near_zero_has_no_interval():
    ratio = ratio_of_means([1.0, 1.0, 1.0], [1.0, -1.0, 0.5])
    assert ratio.mean == pytest.approx(6.0)
    assert ratio.low is None
    assert ratio_of_means([1.0], [0.0]).mean is None


def test_median_of_a_hundred_lies_between_the_40th_and_the_61st():
    """The textbook interval of the median for n = 100."""
    value, low, high = percentile_interval(np.arange(1.0, 101.0), 50)
    assert (value, low, high) == (50.5, 40.0, 61.0)


def test_a_p99_of_few_samples_has_no_upper_bound():
    value, low, high = percentile_interval(np.arange(1.0, 51.0), 99)
    assert value == pytest.approx(np.percentile(np.arange(1.0, 51.0), 99))
    assert low is not None and high is None
    assert percentile_interval(np.zeros(0), 50) == (None, None, None)


@pytest.mark.parametrize("num", [1, 2, 7, 1000])
def test_percentiles_of_sorted_samples_are_numpy_s(num):
    samples = np.sort(np.random.default_rng(num).exponential(1.0, num))
    percents = np.array([0, 1, 37.5, 50, 99, 99.95, 100])
    assert percentiles_of_sorted(samples, percents) == pytest.approx(np.percentile(samples, percents), rel=1e-14)
