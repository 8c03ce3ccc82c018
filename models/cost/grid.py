"""Times on a grid: measured points that stay where they are, and straight lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Grid", "complete", "grid_of"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """values[i, j, …] at axes[0][i], axes[1][j], …; NaN where nothing can be said without leaving what was measured.

    is_measured: of each value, whether it is a measured one
    """

    axes: tuple[Float64, ...]
    values: Float64
    is_measured: NDArray[np.bool_]

    def at(self, points: ArrayLike) -> Float64:
        """[n] values at points [n, axes], linear between neighbours; NaN outside."""
        points = np.atleast_2d(np.asarray(points, dtype=np.float64))
        low, shares = [], []
        outside = np.zeros(len(points), bool)
        for axis, x in zip(self.axes, points.T, strict=True):
            outside |= (x < axis[0]) | (x > axis[-1])
            i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
            width = axis[np.minimum(i + 1, len(axis) - 1)] - axis[i]
            low.append(i)
            shares.append(np.where(width > 0, (x - axis[i]) / np.where(width > 0, width, 1), 0.0))
        found = np.zeros(len(points))
        for corner in product((0, 1), repeat=len(self.axes)):
            weight = np.prod([share if c else 1 - share for c, share in zip(corner, shares, strict=True)], axis=0)
            at = tuple(np.minimum(i + c, len(axis) - 1) for i, c, axis in zip(low, corner, self.axes, strict=True))
            # What is unknown counts only where it matters.
            found += np.where(weight > 0, weight * self.values[at], 0.0)
        found[outside] = np.nan
        return found


def grid_of(points: ArrayLike, seconds: ArrayLike) -> Grid:
    """The smallest product grid that holds all points [n, axes], completed where points lie on both sides.

    Points with the same place: the last one counts.
    """
    points = np.asarray(points, dtype=np.float64)
    axes, places = [], []
    for column in points.T:
        axis, place = np.unique(column, return_inverse=True)
        axes.append(axis)
        places.append(place)
    values = np.full([len(axis) for axis in axes], np.nan)
    values[tuple(places)] = np.asarray(seconds, dtype=np.float64)
    return Grid(tuple(axes), complete(axes, values), ~np.isnan(values))


def complete(axes: Sequence[Float64], values: Float64) -> Float64:
    """Fill each NaN that has known values on both sides along some axis, from the straight lines between them.

    The median over those axes: held out, fewer points are far off than on the line between the nearest neighbours
    (`spindle calibrate --check`). Repeated until nothing changes; known values stay.
    """
    values = values.copy()
    while np.isnan(values).any():
        lines = np.stack([np.moveaxis(_along(axis, np.moveaxis(values, i, -1)), -1, i) for i, axis in enumerate(axes)])
        can = np.isnan(values) & ~np.isnan(lines).all(axis=0)
        if not can.any():
            break
        values[can] = np.nanmedian(lines[:, can], axis=0)
    return values


def _along(axis: Float64, values: Float64) -> Float64:
    """On the line between the nearest known neighbours along the last axis; NaN where there are none on both sides."""
    n = len(axis)
    index = np.broadcast_to(np.arange(n), values.shape)
    known = ~np.isnan(values)
    before = np.maximum.accumulate(np.where(known, index, -1), axis=-1)
    after = np.minimum.accumulate(np.where(known, index, n)[..., ::-1], axis=-1)[..., ::-1]
    has_both = (before >= 0) & (after < n) & ~known
    low, high = np.where(has_both, before, 0), np.where(has_both, after, 0)
    at_low, at_high = np.take_along_axis(values, low, -1), np.take_along_axis(values, high, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        line = at_low + (at_high - at_low) * (axis - axis[low]) / (axis[high] - axis[low])
    return np.where(has_both, line, np.nan)
