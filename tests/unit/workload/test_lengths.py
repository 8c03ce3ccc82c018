from __future__ import annotations

import numpy as np
import pytest

from sim.workload.lengths import LENGTHS, Fixed, Lognormal, Uniform


def test_fixed():
    assert Fixed(7).draw(np.random.default_rng(0), 3).tolist() == [7, 7, 7]


def test_uniform_includes_both_ends():
    drawn = Uniform(2, 4).draw(np.random.default_rng(0), 1_000)

    assert sorted(set(drawn.tolist())) == [2, 3, 4]


def test_lognormal_has_the_mean_of_the_law_and_the_spread_of_its_logarithm():
    drawn = Lognormal(1_000.0, 0.5).draw(np.random.default_rng(0), 100_000)

    assert drawn.mean() == pytest.approx(1_000.0, rel=0.01)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.01)
    assert np.median(drawn) == pytest.approx(1_000.0 * np.exp(-0.125), rel=0.01)


def test_lognormal_is_cut_and_never_empty():
    drawn = Lognormal(3.0, 2.0, most=50).draw(np.random.default_rng(0), 10_000)

    assert (drawn.min(), drawn.max()) == (1, 50)
    assert Lognormal(5.0, 0.0).draw(np.random.default_rng(0), 2).tolist() == [5, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(0),
        lambda: Uniform(0, 3),
        lambda: Uniform(4, 3),
        lambda: Lognormal(0.5, 1.0),
        lambda: Lognormal(float("nan"), 1.0),
        lambda: Lognormal(5.0, -1.0),
        lambda: Lognormal(5.0, 1.0, most=0),
    ],
)
def test_refusals(make):
    with pytest.raises(ValueError):
        make()


def test_every_law_draws_whole_tokens():
    laws = {"fixed": Fixed(5), "uniform": Uniform(1, 9), "lognormal": Lognormal(9.0, 1.0)}
    assert laws.keys() == LENGTHS.keys()
    for law in laws.values():
        assert law.draw(np.random.default_rng(0), 4).dtype == np.int64
