from __future__ import annotations

import numpy as np
import pytest

from sim.workload.arrivals import ARRIVALS, arrival_times_s


def gaps_s(kind, num=200_000, **options):
    times_s = arrival_times_s(kind, 4.0, np.random.default_rng(3), num_requests=num, **options)
    return np.diff(times_s, prepend=0.0)


@pytest.mark.parametrize("kind", sorted(ARRIVALS))
def test_mean_gap_is_one_over_the_rate(kind):
    gaps = gaps_s(kind)

    # Four standard errors; a constant process has none, only the rounding of a sum of 2e5 terms.
    assert abs(gaps.mean() - 0.25) <= 4 * gaps.std() / np.sqrt(len(gaps)) + 1e-9


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gamma_gaps_vary_by_one_over_the_root_of_burstiness(burstiness, variation):
    """The coefficient of variation of a gamma law of shape k is 1 / sqrt(k)."""
    gaps = gaps_s("gamma", burstiness=burstiness)

    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.02)


def test_poisson_and_constant_variation():
    poisson, constant = gaps_s("poisson"), gaps_s("constant")

    assert poisson.std() / poisson.mean() == pytest.approx(1.0, rel=0.02)
    assert constant.std() < 1e-9


@pytest.mark.parametrize("kind", sorted(ARRIVALS))
def test_a_duration_ends_the_arrivals(kind):
    times_s = arrival_times_s(kind, 100.0, np.random.default_rng(1), duration_s=10.0)

    assert (np.diff(times_s) >= 0).all()
    assert 9.0 < times_s[-1] < 10.0
    both = arrival_times_s(kind, 100.0, np.random.default_rng(1), duration_s=10.0, num_requests=5)
    assert len(both) == 5


def test_a_bursty_process_reaches_its_duration_even_if_the_first_draw_falls_short():
    times_s = arrival_times_s("gamma", 10.0, np.random.default_rng(8), duration_s=1_000.0, burstiness=0.01)

    assert times_s[-1] > 900.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "posson", "rate_per_s": 1.0, "num_requests": 1}, "unknown arrivals 'posson'"),
        ({"kind": "poisson", "rate_per_s": 0.0, "num_requests": 1}, "rate of arrivals must be positive"),
        ({"kind": "poisson", "rate_per_s": float("nan"), "num_requests": 1}, "rate of arrivals"),
        ({"kind": "gamma", "rate_per_s": 1.0, "num_requests": 1, "burstiness": -1.0}, "burstiness"),
        ({"kind": "poisson", "rate_per_s": 1.0}, "need an end"),
        ({"kind": "poisson", "rate_per_s": 1.0, "num_requests": 0}, "at least 1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        arrival_times_s(rng=np.random.default_rng(0), **arguments)
