"""How far the times between measured ones are off: every fifth point held out, and found from the others.

The same code finds them that the simulator uses. What counts as one point is one operator at one place; of each group
of points that are interpolated together, in the order of their places, the third of every five is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.cost.measured import LINEAR, LOG, PREFILL, ExpertTimes, Fit, fit_of
from models.cost.table import FAMILIES, CostTable

__all__ = ["HeldOut", "drops", "held_out", "report", "summary"]

EVERY, FIRST = 5, 2
NOT_INTERPOLATED = ("uneven_attention",)
"""Rows that no time is read from between: a law is taken from them (`models.cost.uneven`)."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
TARGET_MEDIAN, TARGET_P90 = 0.03, 0.10


@dataclass(frozen=True)
class Group:
    """Points that are interpolated together."""

    operator: str
    rows: pd.DataFrame
    axes: tuple[str, ...]
    scales: tuple[str, ...] | None = None


@dataclass(frozen=True)
class HeldOut:
    """One operator's held-out points: measured and found seconds; NaN where no others surround the point."""

    operator: str
    measured: NDArray[np.float64]
    found: NDArray[np.float64]

    @property
    def errors(self) -> NDArray[np.float64]:
        """|found / measured - 1| where there is a figure."""
        is_there = ~np.isnan(self.found)
        return np.abs(self.found[is_there] / self.measured[is_there] - 1)

    @property
    def num_outside(self) -> int:
        return int(np.isnan(self.found).sum())


def groups(table: CostTable) -> Iterator[Group]:
    """All rows of a table, by what is interpolated together."""
    for operator, family in FAMILIES.items():
        rows = table.rows[table.rows["operator"] == operator]
        if operator in NOT_INTERPOLATED:
            continue
        if operator == "linear":
            for _, same in rows.groupby("precision", dropna=False):
                if same["inputs"].nunique() > 2 and same["outputs"].nunique() > 2 and (same["name"] == "").all():
                    yield Group(operator, same, ("inputs", "outputs", "rows"))
                else:
                    yield from _by_shape(operator, same, family.shape, family.axes)
        elif operator in ("attention", "latent_attention"):
            chunks, decodes = rows["chunk"] > 0, rows["decodes"] > 0
            yield from _by_shape(operator, rows[chunks & ~decodes], family.shape, ("chunk", "prefix"), PREFILL)
            yield from _by_shape(operator, rows[decodes & ~chunks], family.shape, ("decodes", "context"))
            yield from _by_shape(operator, rows[chunks & decodes], family.shape, family.axes)
        elif operator == "experts":  # pooled over the ranks' numbers of experts, as `Measured.experts` does
            rows = rows.drop_duplicates(["name", "precision", "hidden", "inner", "top_k", *family.axes])
            yield from _by_shape(operator, rows, ("hidden", "inner", "top_k"), family.axes)
        else:
            yield from _by_shape(operator, rows, family.shape, family.axes)


def _by_shape(
    operator: str, rows: pd.DataFrame, shape: tuple[str, ...], axes: tuple[str, ...],
    scales: tuple[str, ...] | None = None,
) -> Iterator[Group]:  # fmt: skip
    for _, same in rows.groupby(["name", "precision", *shape], dropna=False):
        yield Group(operator, same, axes, scales)


def held_out(table: CostTable, on: str | None = None) -> dict[str, HeldOut]:
    """By operator, the held-out points of all its groups.

    on: LINEAR or LOG puts all axes and times on that scale, instead of those that the simulator uses
    """
    parts: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for group in groups(table):
        rows = group.rows.sort_values(list(group.axes))
        is_out = np.zeros(len(rows), bool)
        is_out[FIRST::EVERY] = True
        scales = group.scales if on is None else (on,) * (len(group.axes) + 1)
        fit = fit_of(rows[~is_out], group.axes, scales)
        if fit is None or not is_out.any():
            continue
        at = rows.loc[is_out, list(group.axes)].to_numpy(float)
        seconds = rows.loc[is_out, "seconds"].to_numpy(float)
        parts.setdefault(group.operator, []).append((seconds, _found(group, fit, at) if on is None else fit.inside(at)))
        if group.operator in COLLECTIVES:
            parts.setdefault("collectives", []).append(parts[group.operator][-1])
    return {operator: HeldOut(operator, np.concatenate([m for m, _ in found]), np.concatenate([f for _, f in found]))
            for operator, found in parts.items()}  # fmt: skip


def _found(group: Group, fit: Fit, at: NDArray[np.float64]) -> NDArray[np.float64]:
    if group.operator != "experts":
        return fit.inside(at)
    return ExpertTimes(fit).at(at, lambda points: points[:, 0] * np.nan).seconds


def drops(table: CostTable) -> pd.DataFrame:
    """Places where more work took less time: rows that are faster than the one before along the last axis, by share.

    Real ones, such as a library's change of protocol or tile: they are kept, and listed here so that nobody takes them
    for a fault of the interpolation.
    """
    found = []
    for operator, family in FAMILIES.items():
        rows = table.rows[table.rows["operator"] == operator]
        if not len(rows) or operator in NOT_INTERPOLATED:
            continue
        axis = family.axes[-1] if operator not in ("attention", "latent_attention") else "context"
        others = ["name", "precision", *family.shape, *(a for a in family.axes if a != axis)]
        rows = rows.sort_values([*others, axis])
        before = rows.groupby(others, dropna=False)["seconds"].shift()
        falls = 1 - rows["seconds"] / before
        is_drop = falls > 0.05
        found.append(rows[is_drop].assign(fell_by=falls[is_drop], axis=axis))
    return pd.concat(found, ignore_index=True).sort_values("fell_by", ascending=False) if found else pd.DataFrame()


def summary(found: dict[str, HeldOut]) -> pd.DataFrame:
    """One row an operator: held-out points, those outside, median, p90 and p95 of the error, and the verdict."""
    rows = []
    for operator, held in found.items():
        errors = held.errors
        if not len(errors):
            continue
        median, p90, p95 = np.quantile(errors, [0.5, 0.9, 0.95])
        meets = median <= TARGET_MEDIAN and p90 <= TARGET_P90
        rows.append((operator, len(errors), held.num_outside, median, p90, p95, "ok" if meets else "above"))
    return pd.DataFrame(rows, columns=["operator", "points", "outside", "median", "p90", "p95", "verdict"])


def _table(found: dict[str, HeldOut]) -> Iterator[str]:
    yield f"{'operator':18}{'points':>8}{'outside':>9}{'median':>9}{'p90':>9}{'p95':>9}"
    for row in summary(found).to_dict("records"):
        yield (f"{row['operator']:18}{row['points']:8}{row['outside']:9}{row['median']:9.2%}{row['p90']:9.2%}"
               f"{row['p95']:9.2%}  {row['verdict']}")  # fmt: skip


def report(table: CostTable, alternatives: bool = False) -> Iterator[str]:
    """Lines that say how far the table's interpolation is off, and, if asked, how far others would be."""
    yield f"{table.origin}: {len(table.rows)} rows of {table.gpu}"
    yield f"every fifth point held out; targets: median {TARGET_MEDIAN:.0%}, p90 {TARGET_P90:.0%}"
    yield from _table(held_out(table))
    if alternatives:
        for on in (LINEAR, LOG):
            yield f"the same with all axes and times on {on} scales"
            yield from _table(held_out(table, on))
    fallen = drops(table)
    yield f"{len(fallen)} rows are faster than less work, by more than 5 %; the largest drops:"
    for row in fallen.head(5).to_dict("records"):
        numbers = ", ".join(f"{name} {int(row[name])}" for name in (*FAMILIES[row["operator"]].shape,
                            *FAMILIES[row["operator"]].axes) if not pd.isna(row[name]))  # fmt: skip
        yield f"  {row['operator']} {row['name']} {numbers}: {row['fell_by']:.0%}, {row['seconds'] * 1e6:.1f} us"
