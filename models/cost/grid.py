"""Times on a grid: measured points that stay where they are, straight lines between them, gaps filled from around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.cost.method import LINES, STEPS

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


def grid_of(points: ArrayLike, seconds: ArrayLike, fill: str = LINES) -> Grid:
    """The smallest product grid that holds all points [n, axes], completed where points lie on both sides.

    fill: as of `complete`. Points with the same place: the last one counts.
    """
    points = np.asarray(points, dtype=np.float64)
    axes, places = [], []
    for column in points.T:
        axis, place = np.unique(column, return_inverse=True)
        axes.append(axis)
        places.append(place)
    values = np.full([len(axis) for axis in axes], np.nan)
    values[tuple(places)] = np.asarray(seconds, dtype=np.float64)
    return Grid(tuple(axes), complete(axes, values, fill), ~np.isnan(values))


def complete(axes: Sequence[Float64], values: Float64, fill: str = LINES) -> Float64:
    """Fill each NaN that has known values on both sides along some axis. Repeated until nothing changes.

    lines  the median, over those axes, of the straight lines between the nearest known values
    steps  each of these lines is off at the known values beside the gap as well, by the same step of a kernel; what it
           is off there, at the nearest on either side along every other axis, is added, and the median taken of all.
           Never beyond the nearest known values around.

    Known values stay. Which of the two is better is for held-out points to say (`spindle calibrate --check`).
    """
    values = values.copy()
    while np.isnan(values).any():
        near = [_neighbours(axis, np.moveaxis(values, i, -1)) for i, axis in enumerate(axes)]
        low, high, lines = (
            np.stack([np.moveaxis(of_axis[part], -1, i) for i, of_axis in enumerate(near)]) for part in range(3)
        )
        can = np.isnan(values) & ~np.isnan(lines).all(axis=0)
        if not can.any():
            break
        found = np.nanmedian(lines[:, can], axis=0)
        if fill == STEPS and len(axes) > 1:
            found = _with_steps(axes, values, lines, can, found)
            around = np.concatenate([low[:, can], high[:, can]])
            found = np.clip(found, np.nanmin(around, axis=0), np.nanmax(around, axis=0))
        values[can] = found
    return values


def _with_steps(
    axes: Sequence[Float64], values: Float64, lines: Float64, can: NDArray[np.bool_], otherwise: Float64
) -> Float64:
    guesses = []
    for i in range(len(axes)):
        off = values - lines[i]
        for j, axis in enumerate(axes):
            if i != j:
                low, high, _ = _neighbours(axis, np.moveaxis(off, j, -1))
                guesses += [lines[i][can] + np.moveaxis(side, -1, j)[can] for side in (low, high)]
    stacked = np.stack(guesses)
    is_there = ~np.isnan(stacked).all(axis=0)
    found = otherwise.copy()
    found[is_there] = np.nanmedian(stacked[:, is_there], axis=0)
    return found


def _neighbours(axis: Float64, values: Float64) -> tuple[Float64, Float64, Float64]:
    """Of each place, itself left out: the nearest known values before and after it along the last axis, and where the
    line between the two passes it; NaN where there are none."""
    n = len(axis)
    index = np.broadcast_to(np.arange(n), values.shape)
    known = ~np.isnan(values)
    edge = np.full((*values.shape[:-1], 1), n)
    before = np.maximum.accumulate(np.where(known, index, -1), axis=-1)
    before = np.concatenate([edge * 0 - 1, before[..., :-1]], axis=-1)
    after = np.minimum.accumulate(np.where(known, index, n)[..., ::-1], axis=-1)[..., ::-1]
    after = np.concatenate([after[..., 1:], edge], axis=-1)
    at_low, at_high = np.maximum(before, 0), np.minimum(after, n - 1)
    low = np.where(before >= 0, np.take_along_axis(values, at_low, -1), np.nan)
    high = np.where(after < n, np.take_along_axis(values, at_high, -1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        line = low + (high - low) * (axis - axis[at_low]) / (axis[at_high] - axis[at_low])
    return low, high, line
