"""How far the times between measured ones are off: every fifth point held out, and found from the others.

The same code finds them that the simulator uses, by methods that are chosen without the held-out points. What counts as
one point is one operator at one place; of each group of points that are interpolated together, in the order of their
places, the third of every five is left out (of attention: of each number of heads).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.groups import EVERY, FIRST, LAWS, Group, groups
from calibration.methods import TARGET_MEDIAN, TARGET_P90, choose
from models.cost.collectives import other_ranks
from models.cost.method import LINEAR, LINES, LOG, Method
from models.cost.step import no_attention, tail_seconds
from models.cost.table import FAMILIES, NUMBERS, CostTable
from models.cost.uneven import tail_of_batches, uneven_batches

__all__ = ["OF_COLLECTIVES", "HeldOut", "Part", "drops", "held_out", "last_axis", "lines", "other_rank_errors", "peaks",
           "place", "summary", "uneven_errors"]

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
OF_COLLECTIVES = "collectives"
DROP, PEAK = 0.05, 1.3


@dataclass(frozen=True)
class Part:
    """A group without its held-out rows, these rows, the seconds found for them (NaN: nothing surrounds one), how."""

    rest: Group
    out: pd.DataFrame
    found: NDArray[np.float64]
    method: Method

    @property
    def label(self) -> str:
        return " ".join(filter(None, self.rest.key[1:]))


@dataclass(frozen=True)
class HeldOut:
    """One operator's held-out points."""

    operator: str
    parts: tuple[Part, ...]

    @property
    def measured(self) -> NDArray[np.float64]:
        return np.concatenate([part.out["seconds"].to_numpy(float) for part in self.parts])

    @property
    def found(self) -> NDArray[np.float64]:
        return np.concatenate([part.found for part in self.parts])

    @property
    def methods(self) -> dict[str, str]:
        """By part and precision, in words."""
        return {part.label: part.method.text for part in self.parts}

    def of(self, label: str) -> HeldOut:
        """Those of one part and precision."""
        return HeldOut(self.operator, tuple(part for part in self.parts if part.label == label))

    @property
    def errors(self) -> NDArray[np.float64]:
        """|found / measured - 1| where there is a figure."""
        is_there = ~np.isnan(self.found)
        return np.abs(self.found[is_there] / self.measured[is_there] - 1)

    @property
    def num_outside(self) -> int:
        return int(np.isnan(self.found).sum())


def held_out(table: CostTable, on: str | None = None, first: int = FIRST) -> dict[str, HeldOut]:
    """By operator, and for the collectives together, the held-out points of all groups.

    on: LINEAR or LOG puts all axes and times on that scale, gaps on lines, instead of the methods that are chosen
    first: the place of the first held-out point among five
    """
    splits = [group.split(first) for group in groups(table)]
    chosen = choose(rest for rest, _ in splits) if on is None else {}
    parts: dict[str, list[Part]] = {}
    for rest, out in splits:
        if not len(rest.rows) or not len(out):
            continue
        method = chosen[rest.key] if on is None else Method((str(on),) * (len(rest.axes) + 1), LINES)
        for operator in (rest.operator, *((OF_COLLECTIVES,) if rest.operator in COLLECTIVES else ())):
            parts.setdefault(operator, []).append(Part(rest, out, rest.found(out, method), method))
    return {operator: HeldOut(operator, tuple(each)) for operator, each in parts.items()}


def other_rank_errors(table: CostTable) -> NDArray[np.float64]:
    """|found / measured - 1| of collectives on each number of ranks between others, found from those alone."""
    errors = [np.zeros(0)]
    rows = table.rows[table.rows["operator"].isin(COLLECTIVES)]
    for _, same in rows.groupby(["operator", "name"]):
        for ranks in sorted(same["ranks"].unique())[1:-1]:
            found = other_ranks(same[same["ranks"] != ranks], int(ranks))
            out = same[same["ranks"] == ranks]
            if found is not None:
                seconds = found[0].inside(out[["size_bytes"]].to_numpy(float))
                errors.append(np.abs(seconds / out["seconds"].to_numpy(float) - 1)[~np.isnan(seconds)])
    return np.concatenate(errors)


def uneven_errors(table: CostTable, first: int = FIRST) -> dict[str, NDArray[np.float64]]:
    """|found / measured - 1| of every fifth uneven batch: "with a tail" from the others, "without" as if even."""
    found: dict[str, list[NDArray[np.float64]]] = {"with a tail": [], "without": []}
    rows = table.rows[table.rows["operator"] == "uneven_attention"]
    for _, same in rows.groupby([*FAMILIES["uneven_attention"].shape, "precision"]):
        uneven = uneven_batches(same).sort_values(["chunk", "prefix", "decodes", "longest", "evenness"])
        is_out = np.arange(len(uneven)) % EVERY == first
        out, tail = uneven[is_out], tail_of_batches(uneven[~is_out])
        attention = no_attention()._replace(
            tail_chunk=tail.chunk, tail_decodes=tail.decodes, tail_longest=tail.longest, tail_evenness=tail.evenness,
            tail=tail.seconds,
        )  # fmt: skip
        places = out[["chunk", "decodes", "mean", "longest"]].to_numpy(float)
        tail_s = np.array([tail_seconds(attention, *at) for at in places])
        measured_s, even_s = out["seconds"].to_numpy(float), out["even_s"].to_numpy(float)
        found["with a tail"].append(np.abs((even_s + tail_s) / measured_s - 1))
        found["without"].append(np.abs(even_s / measured_s - 1))
    return {way: np.concatenate([np.zeros(0), *errors]) for way, errors in found.items()}


def drops(table: CostTable) -> pd.DataFrame:
    """Places where more work took less time: rows that are faster than the one before along the last axis, by share.

    Real ones, such as a library's change of protocol or tile: they are kept, and listed here so that nobody takes them
    for a fault of the interpolation.
    """
    found = []
    for rows, others, axis in _lines_along(table):
        before = rows.groupby(others, dropna=False)["seconds"].shift()
        falls = 1 - rows["seconds"] / before
        is_drop = falls > DROP
        found.append(rows[is_drop].assign(fell_by=falls[is_drop], axis=axis))
    return pd.concat(found, ignore_index=True).sort_values("fell_by", ascending=False) if found else pd.DataFrame()


def peaks(table: CostTable) -> dict[tuple[str, str], tuple[int, int]]:
    """By (operator, precision): rows that stand alone, PEAK times slower than both neighbours along the last axis, and
    all rows that have two. No neighbour tells of such a row, and held out it is found too fast."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for rows, others, _ in _lines_along(table):
        times = rows.groupby(others, dropna=False)["seconds"]
        beside = pd.concat([times.shift(), times.shift(-1)], axis=1).max(axis=1, skipna=False)
        ratio = (rows["seconds"] / beside).dropna()
        for precision, of in ratio.groupby(rows["precision"]):
            found[str(rows["operator"].iloc[0]), str(precision)] = int((of > PEAK).sum()), len(of)
    return found


def last_axis(operator: str) -> str:
    """The axis along which a row's neighbours are looked for."""
    return "context" if operator in ("attention", "latent_attention") else FAMILIES[operator].axes[-1]


def _lines_along(table: CostTable) -> Iterator[tuple[pd.DataFrame, list[str], str]]:
    """Of each operator its rows in order, the columns that are the same along a line, and the axis of the lines."""
    all_rows = table.rows.astype(dict.fromkeys(NUMBERS, float))
    for operator, family in FAMILIES.items():
        rows = all_rows[all_rows["operator"] == operator]
        if len(rows) and operator not in LAWS:
            axis = last_axis(operator)
            others = ["name", "precision", *family.shape, *(a for a in family.axes if a != axis)]
            yield rows.sort_values([*others, axis]), others, axis


def summary(found: Mapping[str, HeldOut]) -> pd.DataFrame:
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


def lines(table: CostTable, found: dict[str, HeldOut], alternatives: bool = False) -> Iterator[str]:
    """Lines that say how far the table's interpolation is off, and, if asked, how far others would be."""
    yield f"{table.origin}: {len(table.rows)} rows of {table.gpu}"
    yield f"every fifth point held out; targets: median {TARGET_MEDIAN:.0%}, p90 {TARGET_P90:.0%}"
    yield from _table(found)
    yield "methods, chosen without the held-out points: a scale for each axis, one for the time, what fills gaps"
    for operator, held in found.items():
        for label, text in held.methods.items() if operator != OF_COLLECTIVES else ():
            errors = held.of(label).errors
            if len(errors):
                median, p90 = np.quantile(errors, [0.5, 0.9])
                yield f"  {operator} {label}: {text} (median {median:.2%}, p90 {p90:.2%})"
    errors = other_rank_errors(table)
    if len(errors):
        median, p90, p95 = np.quantile(errors, [0.5, 0.9, 0.95])
        yield (f"collectives on a number of ranks left out, from fewer and more: {len(errors)} points, median "
               f"{median:.2%}, p90 {p90:.2%}, p95 {p95:.2%}")  # fmt: skip
    for way, errors in uneven_errors(table).items():
        if len(errors):
            median, p90, p95 = np.quantile(errors, [0.5, 0.9, 0.95])
            yield (f"attention with uneven contexts, {way}: {len(errors)} points, median {median:.2%}, p90 {p90:.2%}, "
                   f"p95 {p95:.2%}")  # fmt: skip
    if alternatives:
        for on in (LINEAR, LOG):
            yield f"the same with all axes and times on {on} scales"
            yield from _table(held_out(table, on))
    for (operator, precision), (num, of) in peaks(table).items():
        if num > 0.01 * of:
            yield (f"{num} of {of} rows of {operator} {precision} ({num / of:.1%}) take over {PEAK} times as long as "
                   f"both neighbours along {last_axis(operator)}")  # fmt: skip
    fallen = drops(table)
    yield f"{len(fallen)} rows are faster than less work, by more than 5 %; the largest drops:"
    for row in fallen.head(5).to_dict("records"):
        yield f"  {row['operator']} {row['name']} {place(row)}: {row['fell_by']:.0%}, {row['seconds'] * 1e6:.1f} us"


def place(row: Mapping[Hashable, Any]) -> str:
    """A row's numbers in words."""
    family = FAMILIES[row["operator"]]
    return ", ".join(f"{name} {int(row[name])}" for name in (*family.shape, *family.axes) if not pd.isna(row[name]))
