"""Times from measured points: what lies between them, and a roofline through the edge beyond them.

A `Fit` keeps every measured point where it is. Where nothing was measured on both sides, the time is that of the
nearest point that was, times the ratio of the two rooflines: the efficiency at the edge, carried on. That is called
extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import LinearNDInterpolator

from models.cost.grid import Grid, grid_of
from models.cost.method import FLAT, LINES, Method, default_method, method_of, scaled, time_scaled, unscaled
from models.cost.provenance import Source

__all__ = ["ExpertTimes", "Fit", "Roof", "Times", "fit_of"]

Float64 = NDArray[np.float64]
Roof = Callable[[Float64], Float64]
"""[n, axes] points -> seconds by the roofline, up to a factor."""


class Times(NamedTuple):
    """Seconds of points and where each comes from (a `Source`)."""

    seconds: Float64
    source: NDArray[np.int8]


@dataclass(frozen=True)
class Fit:
    """Measured times over some axes.

    scales, fill: as of a `Method`
    own: whether the points are this project's measurements
    whole: the grid, where it is part of a larger one
    """

    points: Float64
    seconds: Float64
    scales: tuple[str, ...]
    own: bool = False
    fill: str = LINES
    whole: Grid | None = None

    @cached_property
    def grid(self) -> Grid:
        if self.whole is not None:
            return self.whole
        return grid_of(self._scaled(self.points), time_scaled(self.seconds, self.scales[-1]), self.fill)

    def _scaled(self, points: Float64) -> Float64:
        return np.stack([scaled(x, scale) for x, scale in zip(points.T, self.scales, strict=False)], axis=1)

    def along(self, *places: float) -> Fit | None:
        """The part at these places on the first axes, gaps filled from beside it; None where nothing was measured."""
        n = len(places)
        is_it = (self.points[:, :n] == places).all(axis=1)
        if not is_it.any():
            return None
        at = tuple(int(np.argmin(np.abs(axis - scaled(np.array([place]), scale))))
                   for axis, place, scale in zip(self.grid.axes, places, self.scales, strict=False))  # fmt: skip
        whole = Grid(self.grid.axes[n:], self.grid.values[at], self.grid.is_measured[at])
        return Fit(self.points[is_it, n:], self.seconds[is_it], self.scales[n:], self.own, self.fill, whole)

    def inside(self, points: ArrayLike) -> Float64:
        """Seconds at points [n, axes], NaN where no measured points surround them."""
        found = self.grid.at(self._scaled(np.atleast_2d(np.asarray(points, dtype=np.float64))))
        return unscaled(found, self.scales[-1])

    def at(self, points: ArrayLike, roof: Roof, inside: Float64 | None = None) -> Times:
        """Seconds at points [n, axes], also outside of what was measured; inside: as `inside` finds them."""
        points = np.atleast_2d(np.asarray(points, dtype=np.float64))
        seconds = self.inside(points) if inside is None else inside
        outside = np.isnan(seconds)
        source = np.full(len(points), Source.INTERPOLATED, np.int8)
        known = set(map(tuple, self.points.tolist()))
        exact = [tuple(point) in known for point in points.tolist()]
        source[exact] = Source.MEASURED if self.own else Source.IMPORTED
        if outside.any():
            edge = self._nearest(points[outside])
            seconds[outside] = self.seconds[edge] * roof(points[outside]) / roof(self.points[edge])
            source[outside] = Source.EXTRAPOLATED
        return Times(seconds, source)

    def _nearest(self, points: Float64) -> NDArray[np.int64]:
        """The measured point nearest to each, by ratio."""
        here = np.log2(self.points + 1)
        return np.array([np.argmin(((here - np.log2(point + 1)) ** 2).sum(axis=1)) for point in points], np.int64)


def fit_of(
    rows: pd.DataFrame, axes: Sequence[str], part: str = "", method: Method | None = None
) -> Fit | None:
    """A fit of a table's rows, None where there are none.

    part: whose default holds where neither `method` nor the rows say how (`models.cost.method`)
    """
    if not len(rows):
        return None
    own = bool((rows["commit"] != "").all())
    if method is None:
        method = method_of(rows["method"], default_method(part, len(axes)))
    return Fit(rows[list(axes)].to_numpy(float), rows["seconds"].to_numpy(float), method.scales, own, method.fill)


FLATNESS = 3.0
"""By held-out error on the tables of four devices; see decision 12."""


@dataclass(frozen=True)
class ExpertTimes:
    """Routed experts of one rank over (rows, experts touched): a row is a token at one of its experts.

    On the grid of all points where they fill most of one. Elsewhere, as where a law says how many experts so many rows
    touch, on the triangles between points, all on logarithmic scales: time goes from that of reading each expert to
    that of computing each row, which no line follows. Where the fit's gaps are filled `flat`, corners with the same
    number of experts count as FLATNESS times nearer than those with the same number of rows: as long as reading
    decides, rows cost nothing.

    is_scaled: whether the fit's points are no measured ones, but made from those of other experts
    """

    fit: Fit
    is_scaled: bool = False

    @cached_property
    def _between(self) -> LinearNDInterpolator | None:
        """Over the logarithms, where the points span a plane."""
        if len(self.fit.points) < 4 or min(len(np.unique(axis)) for axis in self.fit.points.T) < 2:
            return None
        return LinearNDInterpolator(self._placed(self.fit.points), np.log(self.fit.seconds))

    def _placed(self, points: Float64) -> Float64:
        return np.log2(points) * ((1.0, FLATNESS) if self.fit.fill == FLAT else (1.0, 1.0))

    @cached_property
    def _on_grid(self) -> Fit:
        """The fit, with the corners of its grid where more experts would be touched than there are rows: as with the
        fewest rows that can touch them, since reading decides there. Points beside the diagonal lie inside then."""
        grid = self.fit.grid
        rows, touched = (np.unique(axis) for axis in self.fit.points.T)
        values = grid.values.copy()
        for i in range(len(rows) - 2, -1, -1):
            is_corner = np.isnan(values[i]) & (touched > rows[i])
            values[i, is_corner] = values[i + 1, is_corner]
        return replace(self.fit, whole=Grid(grid.axes, values, grid.is_measured))

    @property
    def _is_grid(self) -> bool:
        return bool(2 * len(self.fit.points) > np.prod([len(np.unique(axis)) for axis in self.fit.points.T]))

    def at(self, points: ArrayLike, roof: Roof) -> Times:
        """Seconds at points [n, (rows, experts)]; `roof` of such points."""
        # Chances that add up to eight experts may miss that by the last digit.
        points = np.maximum(np.atleast_2d(np.asarray(points, dtype=np.float64)).round(9), 1)
        if self._is_grid or self._between is None:
            found = self._on_grid.at(points, roof)
        else:
            found = self.fit.at(points, roof, np.exp(self._between(self._placed(points))))
        if self.is_scaled:
            return found._replace(source=np.full(len(points), Source.EXTRAPOLATED, np.int8))
        return found
