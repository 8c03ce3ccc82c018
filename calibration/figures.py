"""Figures of a check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from calibration.check import OF_COLLECTIVES, HeldOut, Part, last_axis, summary
from calibration.methods import TARGET_MEDIAN, TARGET_P90

__all__ = ["draw_errors", "draw_lines", "draw_scatter"]

WIDTH_IN = 8.6
COLUMNS = 3
KEPT, OUT, QUIET = "#0072B2", "#D55E00", "#5f5f5f"
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.edgecolor": "#8a8a8a", "xtick.labelsize": 8,
    "ytick.labelsize": 8, "figure.constrained_layout.use": True, "legend.frameon": False,
}  # fmt: skip
MOST_DOTS = 3000


def _panels(num: int, height_in: float = 2.6) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, num)
    rows = -(-num // columns)
    figure = Figure(figsize=(WIDTH_IN, height_in * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[num:]:
        unused.remove()
    return figure, panels[:num]


def _seconds(value: float, _: object = None) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= 0.999 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def draw_scatter(found: Mapping[str, HeldOut]) -> Figure:
    """Found over measured seconds, a panel an operator, with the line of equals and a band of 10 %."""
    shown = {operator: held for operator, held in found.items() if operator != OF_COLLECTIVES and len(held.errors)}
    with matplotlib.style.context(["default", STYLE]):
        figure, panels = _panels(len(shown))
        for panel, (operator, held) in zip(panels, shown.items(), strict=True):
            is_there = ~np.isnan(held.found)
            measured, guess = held.measured[is_there], held.found[is_there]
            some = np.linspace(0, len(measured) - 1, min(MOST_DOTS, len(measured))).astype(int)
            ends = np.array([min(measured.min(), guess.min()) / 1.3, max(measured.max(), guess.max()) * 1.3])
            panel.fill_between(ends, ends / 1.1, ends * 1.1, color="#dcdcdc", lw=0)
            panel.plot(ends, ends, color=QUIET, lw=0.8)
            panel.plot(measured[some], guess[some], ".", ms=2.5 if len(some) > 300 else 5, color=KEPT, mew=0)
            panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
            _time_axis(panel.xaxis, ends)
            _time_axis(panel.yaxis, ends)
            within = float(np.mean(held.errors <= TARGET_P90))
            panel.set_title(f"{operator.replace('_', ' ')}: {within:.0%} in band")
        figure.supxlabel("measured", fontsize=9)
        figure.supylabel("found from the other points", fontsize=9)
    return figure


def _time_axis(axis: Any, ends: Any) -> None:
    """At most four ticks: powers of ten, or, where fewer than two lie in view, round numbers between."""
    powers = np.arange(np.floor(np.log10(ends[0])), np.ceil(np.log10(ends[1])) + 1)
    ticks = 10.0**powers
    if ((ticks >= ends[0]) & (ticks <= ends[1])).sum() < 2:
        ticks = np.sort(np.outer(ticks, (1, 2, 3, 5, 7)).ravel())
    ticks = ticks[(ticks >= ends[0]) & (ticks <= ends[1])]
    if len(ticks) < 2:
        ticks = np.unique([float(f"{tick:.2g}") for tick in np.geomspace(ends[0] * 1.1, ends[1] / 1.1, 3)])
    axis.set_ticks(ticks[:: max(int(np.ceil(len(ticks) / 4)), 1)])
    axis.set_major_formatter(FuncFormatter(_seconds))
    axis.set_minor_formatter(lambda *_: "")


def draw_errors(found: Mapping[str, HeldOut]) -> Figure:
    """Median, p90 and p95 of each operator's error beside the two targets."""
    rows = summary(found).iloc[::-1].reset_index(drop=True)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.34 * len(rows)))
        panel = figure.subplots()
        y = np.arange(len(rows))
        panel.hlines(y, rows["median"], rows["p95"], color="#b9b9b9", lw=2)
        panel.plot(rows["p95"], y, "|", color=QUIET, ms=9, mew=1.6, label="p95")
        panel.plot(rows["p90"], y, "o", color=OUT, ms=7, label="p90")
        panel.plot(rows["median"], y, "o", color=KEPT, ms=7, label="median")
        for target, colour in ((TARGET_MEDIAN, KEPT), (TARGET_P90, OUT)):
            panel.axvline(target, color=colour, lw=1, ls="--", zorder=0)
        panel.text(TARGET_MEDIAN, len(rows) - 0.35, "target of the median", color=KEPT, ha="right", fontsize=8)
        panel.text(TARGET_P90, len(rows) - 0.35, " target of the p90", color=OUT, ha="left", fontsize=8)
        panel.set(xscale="log", ylim=(-0.6, len(rows) + 0.1), xlabel="error of held-out points")
        panel.set_yticks(y, [f"{name.replace('_', ' ')} ({n:,})" for name, n in
                             zip(rows["operator"], rows["points"], strict=True)])  # fmt: skip
        low, high = panel.get_xlim()
        ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0) if low <= tick <= high]
        panel.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        panel.xaxis.set_minor_formatter(lambda *_: "")
        panel.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, reverse=True)
    return figure


def draw_lines(found: Mapping[str, HeldOut]) -> Figure:
    """Of each operator's parts the line with most held-out points: kept points, held-out points, and what is found."""
    shown = list(_typical(found))
    with matplotlib.style.context(["default", STYLE]):
        figure, panels = _panels(len(shown), 2.5)
        for panel, (title, axis, kept, out, line) in zip(panels, shown, strict=True):
            panel.plot(line[axis], line["seconds"], "-", color=QUIET, lw=1)
            panel.plot(kept[axis], kept["seconds"], "o", ms=3.5, color=KEPT, mew=0)
            panel.plot(out[axis], out["seconds"], "o", ms=6, mfc="none", color=OUT, mew=1.3)
            panel.set(xscale="log", yscale="log", xlabel=axis.replace("_", " "))
            panel.set_title(title)
            low, high = panel.get_ylim()
            panel.set_ylim(low / 1.2, high * 1.2)
            _time_axis(panel.yaxis, panel.get_ylim())
    return figure


def _typical(found: Mapping[str, HeldOut]) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    for operator, held in found.items():
        if operator != OF_COLLECTIVES:
            for kind in dict.fromkeys(part.rest.part for part in held.parts):
                parts = [part for part in held.parts if part.rest.part == kind]
                yield _longest(max(parts, key=lambda part: len(part.out)))


def _longest(part: Part) -> tuple[str, str, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rest = part.rest
    axis = "chunk" if rest.part == "prefill" else "rows" if rest.operator == "experts" else last_axis(rest.operator)
    others = [other for other in rest.axes if other != axis]
    if others:
        sizes = part.out.groupby(others).size()
        most = sizes[sizes == sizes.max()]
        at = dict(zip(others, np.atleast_1d(most.index[len(most) // 2]), strict=True))
    else:
        at = {}
    kept, out = (rows[np.logical_and.reduce([rows[c] == v for c, v in at.items()] or [np.ones(len(rows), bool)])]
                 for rows in (rest.rows, part.out))  # fmt: skip
    ends = [min(kept[axis].min(), out[axis].min()), max(kept[axis].max(), out[axis].max())]
    x = np.unique(np.concatenate([np.geomspace(max(ends[0], 1), ends[1], 400), kept[axis], out[axis]]))
    line = pd.DataFrame({axis: x, **at})
    line["seconds"] = rest.found(line, part.method)
    kind = "" if rest.part in ("shapes", "experts") else rest.part
    words = (rest.operator.replace("_", " "), str(rest.rows["name"].iloc[0]), kind)
    return " ".join(filter(None, words)) + _at(at), axis, kept.sort_values(axis), out, line


def _at(at: Mapping[str, float]) -> str:
    words = ", ".join(f"{name} {value:,.0f}" for name, value in at.items() if value > 0)
    return f"\n{words}" if words else ""
