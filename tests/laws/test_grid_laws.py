"""Times between measured points: none moves, none is negative, none overshoots its neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cost.fit import ExpertTimes, Fit
from models.cost.grid import complete, grid_of
from models.cost.method import LINEAR, LINES, LOG, ROOT, STEPS
from models.cost.provenance import Source


@st.composite
def measured_points(draw):
    """Points on a ragged grid of up to three axes, at least two places an axis, with times from 1 us to 1 s."""
    num_axes = draw(st.integers(1, 3))
    places = st.lists(st.integers(0, 4096), min_size=2, max_size=5, unique=True)
    axes = [np.unique(draw(places)) for _ in range(num_axes)]
    nodes = np.array(np.meshgrid(*axes, indexing="ij")).reshape(num_axes, -1).T.astype(float)
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    kept = rng.random(len(nodes)) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    kept[rng.integers(len(nodes))] = True
    return nodes[kept], 10 ** (6 * rng.random(kept.sum()) - 6), rng


@given(measured_points(), st.sampled_from([LINEAR, LOG]), st.sampled_from([LINEAR, LOG, ROOT]),
       st.sampled_from([LINES, STEPS]))  # fmt: skip
def test_measured_points_stay_and_nothing_overshoots(measured, of_axes, of_value, fill):
    points, seconds, rng = measured
    fit = Fit(points, seconds, (of_axes,) * points.shape[1] + (of_value,), fill=fill)
    assert fit.inside(points) == pytest.approx(seconds, rel=1e-9)
    between = points.min(axis=0) + rng.random((50, points.shape[1])) * np.ptp(points, axis=0)
    found = fit.inside(between)
    found = found[~np.isnan(found)]
    assert (found >= seconds.min() * (1 - 1e-9)).all() and (found <= seconds.max() * (1 + 1e-9)).all()


@given(measured_points(), st.sampled_from([LINES, STEPS]))
def test_a_plane_is_found_again_wherever_points_lie_on_both_sides(measured, fill):
    """On straight lines the median over the axes of a plane is the plane."""
    points, _, rng = measured
    slopes = rng.random(points.shape[1])
    grid = grid_of(points, 1 + points @ slopes, fill)
    places = np.array(np.meshgrid(*grid.axes, indexing="ij")).reshape(points.shape[1], -1).T
    expected = (1 + places @ slopes).reshape(grid.values.shape)
    known = ~np.isnan(grid.values)
    assert grid.values[known] == pytest.approx(expected[known], rel=1e-9)
    assert (known >= grid.is_measured).all()


def test_a_gap_takes_the_median_of_the_lines_through_it():
    """Through the middle of a 3 x 3 grid go a line of 2 and 4 and one of 10 and 30: 3 and 20."""
    values = np.array([[0.0, 2.0, 0.0], [10.0, np.nan, 30.0], [0.0, 4.0, 0.0]])
    axes = [np.arange(3.0), np.arange(3.0)]
    assert complete(axes, values)[1, 1] == 11.5
    values[0, 0] = np.nan  # a corner has nothing on its other side
    assert np.isnan(complete(axes, values)[0, 0])


def test_a_gap_takes_the_step_of_its_neighbours():
    """Rows of 1, 2 and 3 times a kernel that takes 10 until the third place and 30 from it on; the middle one is not
    known there. Lines say the mean of 20 and 60 (beside it), and 40 along the others; the step of both others says 60,
    and so does the line across them."""
    kernel = np.array([10.0, 10.0, 30.0, 30.0])
    values = np.outer([1.0, 2.0, 3.0], kernel)
    values[1, 2] = np.nan
    axes = [np.arange(3.0), np.arange(4.0)]
    assert complete(axes, values, LINES)[1, 2] == 50.0  # 40 along the row, 60 across
    assert complete(axes, values, STEPS)[1, 2] == 60.0  # 40 + 10 or 30, 60 and 60: never beyond 60


def test_gaps_in_a_slice_are_filled_from_beside_it():
    """Heads 1, 2 and 4 take as many us at 0, 1 and 2; heads 2 were not measured at 1."""
    points = np.array([(h, x) for h in (1.0, 2.0, 4.0) for x in (0.0, 1.0, 2.0) if (h, x) != (2, 1)])
    fit = Fit(points, points[:, 0] * np.where(points[:, 1] > 0, 5.0, 1.0), (LINEAR,) * 3, fill=STEPS)
    two = fit.along(2.0)
    assert two.points.tolist() == [[0.0], [2.0]]
    assert two.inside([[0.0], [1.0], [2.0]]).tolist() == [2.0, 10.0, 10.0]
    assert fit.along(3.0) is None


def test_beyond_the_edge_the_roofline_goes_on_and_says_so():
    """Twice the flops take twice the time, from the nearest point on; what launching takes at the edge stays in it."""
    fit = Fit(np.array([[1.0], [4.0], [8.0]]), np.array([3.0, 5.0, 9.0]), (LINEAR, LINEAR))
    times = fit.at([[0.5], [1], [2], [8], [16], [80]], lambda points: points[:, 0])
    assert times.seconds.tolist() == [1.5, 3.0, 3 + 2 / 3, 9.0, 18.0, 90.0]
    assert [Source(s).label for s in times.source] == [
        "extrapolated", "imported", "interpolated", "imported", "extrapolated", "extrapolated",
    ]  # fmt: skip
    own = Fit(fit.points, fit.seconds, fit.scales, own=True)
    assert own.at([[4]], lambda points: points[:, 0]).source.tolist() == [Source.MEASURED]


def test_experts_between_reading_each_and_computing_each_row():
    """A rank that reads its experts (1 us each) or computes its rows (0.1 us each), whichever is longer: on a ragged
    set of points, within a tenth in between and exact where measured."""

    def true_s(points):
        return np.maximum(1e-6 * points[:, 1], 1e-7 * points[:, 0])

    points = np.array([(r, e) for r in 2.0 ** np.arange(3, 12) for e in (1, 4, 16, 64) if e <= r][:-1])
    times = ExpertTimes(Fit(points, true_s(points), (LINEAR,) * 3))
    assert times.at(points, true_s).seconds == pytest.approx(true_s(points), rel=1e-9)
    between = np.array([(100.0, 7.0), (700.0, 40.0), (24.0, 10.0), (1500.0, 2.0)])
    found = times.at(between, true_s)
    assert found.seconds == pytest.approx(true_s(between), rel=0.3)
    assert set(found.source) == {Source.INTERPOLATED}
