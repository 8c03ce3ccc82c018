"""Rows of a table by what is interpolated together, as `models.cost.measured` does, and points held out of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.cost.fit import ExpertTimes, fit_of
from models.cost.method import Method, default_method
from models.cost.table import FAMILIES, NUMBERS, CostTable

__all__ = ["EVERY", "FIRST", "LAWS", "Group", "Key", "groups"]

LAWS = ("uneven_attention",)
"""Operators whose rows no time is read from between: a law is taken from them (`models.cost.uneven`)."""

EVERY, FIRST = 5, 2
"""The third of every five points is held out."""

Key = tuple[str, str, str]
"""(operator, part, precision): whose groups share a method."""


@dataclass(frozen=True)
class Group:
    """Points that are interpolated together.

    part: of attention "prefill", "decode" or "together"; of products "shapes" where all shapes are one grid
    apart: columns whose values each have their own every fifth point
    """

    operator: str
    part: str
    rows: pd.DataFrame
    axes: tuple[str, ...]
    apart: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.operator, self.part, str(self.rows["precision"].iloc[0])

    @property
    def default(self) -> Method:
        return default_method(self.part, len(self.axes))

    def split(self, first: int = FIRST) -> tuple[Group, pd.DataFrame]:
        """The group without every fifth point, in the order of their places, from the `first` on; and these points."""
        rows = self.rows.sort_values([*self.apart, *(axis for axis in self.axes if axis not in self.apart)])
        number = np.asarray(rows.groupby(list(self.apart)).cumcount() if self.apart else np.arange(len(rows)))
        if len(self.axes) > 1:
            stretch = rows.groupby(list(self.axes[:-1])).ngroup()
            if (stretch.value_counts() % EVERY == 0).all():  # else every stretch would lose the same places
                number = number + stretch.to_numpy()
        is_out = number % EVERY == first
        return replace(self, rows=rows[~is_out]), rows[is_out]

    def found(self, at: pd.DataFrame, method: Method) -> NDArray[np.float64]:
        """Seconds at rows, NaN where the group's points do not surround them."""
        fit = fit_of(self.rows, self.axes, self.part, method)
        if fit is None or not len(at):
            return np.full(len(at), np.nan)
        points = at[list(self.axes)].to_numpy(float)
        if self.operator != "experts":
            return fit.inside(points)
        return ExpertTimes(fit).at(points, lambda points: points[:, 0] * np.nan).seconds


def groups(table: CostTable) -> Iterator[Group]:
    """All rows of a table."""
    all_rows = table.rows.astype(dict.fromkeys(NUMBERS, float))  # sorted and compared far faster than whole numbers
    for operator, family in FAMILIES.items():
        rows = all_rows[all_rows["operator"] == operator]
        if operator in LAWS:
            continue
        if operator == "linear":
            for _, same in rows.groupby("precision", dropna=False):
                if same["inputs"].nunique() > 2 and same["outputs"].nunique() > 2 and (same["name"] == "").all():
                    yield Group(operator, "shapes", same, ("inputs", "outputs", "rows"))
                else:
                    yield from _by_shape(operator, "", same, family.shape, family.axes)
        elif operator in ("attention", "latent_attention"):
            chunks, decodes = rows["chunk"] > 0, rows["decodes"] > 0
            others = tuple(column for column in family.shape if column != "heads")
            for part, which, axes in (
                ("prefill", chunks & ~decodes, ("heads", "chunk", "prefix")),
                ("decode", decodes & ~chunks, ("heads", "decodes", "context")),
            ):
                yield from _by_shape(operator, part, rows[which], others, axes, ("heads",))
            yield from _by_shape(operator, "together", rows[chunks & decodes], family.shape, family.axes)
        elif operator == "experts":  # pooled over the ranks' numbers of experts, as `Measured.experts` does
            rows = rows.drop_duplicates(["name", "precision", "hidden", "inner", "top_k", *family.axes])
            yield from _by_shape(operator, "experts", rows, ("hidden", "inner", "top_k"), family.axes)
        else:
            yield from _by_shape(operator, "", rows, family.shape, family.axes)


def _by_shape(
    operator: str, part: str, rows: pd.DataFrame, shape: tuple[str, ...], axes: tuple[str, ...],
    apart: tuple[str, ...] = (),
) -> Iterator[Group]:  # fmt: skip
    for _, same in rows.groupby(["name", "precision", *shape], dropna=False):
        yield Group(operator, part, same, axes, apart)
