"""Figures of a study: the map of who wins where, and each contender along each axis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sim.results.drawing import (
    INK,
    PALETTE,
    QUIET,
    WIDTH_IN,
    DrawnFigure,
    literal,
    new_figure,
    plain_log_ticks,
    put_title,
    spans_decades,
)
from sim.results.metrics import common_unit, number
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval, ratio_of_means
from sim.results.study import Finding, Verdict, answer_of, findings_of, is_ordered

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")
ROW_IN, GROUP_ROWS = 0.34, 0.95
EVEN, UNSURE = "#ececea", "#ffffff"
DEEPEST = 0.25
"""A gain from which on a cell of the map has the full colour of its winner."""


def colours_of(names: Sequence[str], first: int = 0) -> dict[str, str]:
    return {name: PALETTE[(first + i) % len(PALETTE)] for i, name in enumerate(names)}


def sides_of(runs: Sequence[RunResults]) -> list[str]:
    """The sides of a study; without any, its contenders."""
    sides = list(dict.fromkeys(side for run in runs for side in run.sides.values()))
    return sides if len(sides) > 1 else contenders_of(runs)


def contenders_of(runs: Sequence[RunResults]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.contenders if name != run.ideal_variant))


# --- the map ----------------------------------------------------------------------------------------------------------


def draw_map(runs: Sequence[tuple[str, RunResults, Sequence[Finding]]]) -> DrawnFigure | None:
    """A cell per set of circumstances: columns are the entries of the first axis, rows what else there is.

    Its colour is that of the winning side, the deeper the more it gains; grey: no difference; white: contested.
    """
    runs = [item for item in runs if len(item[1].axes) > 1 and item[2]]
    if not runs:
        return None
    columns = list(dict.fromkeys(entry for _, run, _ in runs for entry in next(iter(run.axes.values()))))
    rows: list[tuple[str, str]] = []
    cells: dict[tuple[tuple[str, str], str], Finding] = {}
    for label, _, findings in runs:
        for finding in findings:
            row = (label, ", ".join(entry for _, entry in finding.circumstances[1:]))
            if row not in rows:
                rows.append(row)
            cells[row, finding.circumstances[0][1]] = finding
    groups = list(dict.fromkeys(label for label, _ in rows))
    figure = new_figure(WIDTH_IN, ROW_IN * (len(rows) + GROUP_ROWS * len(groups)) + 1.5)
    axes = figure.subplots()
    colours = colours_of(sides_of([run for _, run, _ in runs]))
    ticks, y, group = [], 0.0, None
    for row in rows:
        if row[0] != group:
            group = row[0]
            axes.text(-0.49, y + 0.16, literal(group), va="center", fontweight="bold", fontsize=9.5, color=INK)
            y += GROUP_ROWS
        ticks.append((y, row))
        for x, column in enumerate(columns):
            if (row, column) in cells:
                _draw_cell(axes, x, y, cells[row, column], colours)
        y += 1
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(y - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [literal(column) for column in columns])
    axes.xaxis.tick_top()
    axes.set_yticks([tick for tick, _ in ticks], [literal(row[1] or row[0]) for _, row in ticks])
    axes.tick_params(length=0, pad=6)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _draw_legend(axes, colours)
    everything = [finding for _, _, findings in runs for finding in findings]
    other = "other side" if any(finding.has_sides for finding in everything) else "next"
    title = f"Who is best where, and how much less that takes than the {other}"
    put_title(figure, title, WIDTH_IN)
    caption = (
        "Each cell names the best contender and how much less its mean is than the other side's best "
        "(without sides: than the next one's). Grey: within 1 % of one another; white: the 95 % interval includes 0; "
        "*: one seed."
    )
    return DrawnFigure("study-map", "Answer", title, caption, f"{caption} {answer_of(everything)}", figure)


def _draw_cell(axes: Axes, x: float, y: float, finding: Finding, colours: Mapping[str, str]) -> None:
    verdict = finding.side_verdict if finding.has_sides else finding.verdict
    shade, text = _cell(finding, verdict, colours)
    axes.add_patch(Rectangle((x - 0.485, y - 0.46), 0.97, 0.92, facecolor=shade, edgecolor="#d0d0d0", lw=0.6))
    dark = sum(to_rgb(shade)) < 1.55
    axes.text(x, y, literal(text), ha="center", va="center", fontsize=8.8, color="white" if dark else INK)


def _cell(finding: Finding, verdict: Verdict | None, colours: Mapping[str, str]) -> tuple[Any, str]:
    if verdict is None:
        return UNSURE, "–"
    gain = verdict.gain.mean or 0.0
    if verdict.state == "no difference":
        return EVEN, f"{verdict.best} ≈ {verdict.other}"
    if verdict.state == "contested":
        return UNSURE, f"{verdict.best} or {verdict.other}"
    winner = finding.sides[verdict.best] if finding.has_sides else verdict.best
    depth = 0.28 + 0.72 * min(1.0, gain / DEEPEST)
    base = np.array(to_rgb(colours[winner]))
    note = "" if verdict.state == "clear" else " *"
    return tuple(1 - depth * (1 - base)), f"{verdict.best}  −{number(100 * gain, 1 if gain < 0.095 else 0)} %{note}"


def _draw_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    shown = [*colours.items(), ("no difference (within 1 %)", EVEN), ("contested", UNSURE)]
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#b0b0b0", lw=0.6) for _, colour in shown]
    axes.legend(
        handles, [literal(name) for name, _ in shown], loc="upper center", bbox_to_anchor=(0.45, 0.0), ncol=4,
        handlelength=1.1, handleheight=1.1, fontsize=8.8, columnspacing=1.6,
    )  # fmt: skip


# --- along an axis ----------------------------------------------------------------------------------------------------


def draw_course(run: RunResults, colours: Mapping[str, str]) -> DrawnFigure | None:
    """One panel per set of other circumstances: each contender along the ordered axis, as a multiple of an ideal
    fabric's time where the run has one; a band is the 95 % interval."""
    findings = findings_of(run)
    names = list(run.axes)[:-1]
    if not findings or not names:
        return None
    along = next((axis for axis in reversed(names) if is_ordered(run.axes[axis])), names[-1])
    panels: dict[str, list[Finding]] = {}
    for finding in findings:
        others = ", ".join(entry for axis, entry in finding.circumstances if axis != along)
        panels.setdefault(others, []).append(finding)
    columns = min(3, len(panels))
    blocks = -(-len(panels) // columns)
    figure = new_figure(WIDTH_IN, 0.95 + 2.9 * blocks)
    grid = figure.subplots(blocks, columns, squeeze=False)
    is_relative = all(finding.ideal is not None for finding in findings)
    entries = list(run.axes[along])
    meaning = findings[0].meaning
    everything = [mean_interval(values).mean for finding in findings for values in finding.values.values()]
    factor, unit = (1.0, "") if is_relative else common_unit(meaning, everything)
    for i, (panel, found) in enumerate(panels.items()):
        axes = grid[i // columns, i % columns]
        by_entry = {finding.entry(along): finding for finding in found}
        means = _draw_lines(axes, entries, by_entry, colours, is_relative, factor)
        axes.set_title(literal(panel or run.scenario_name))
        width = max(8, 42 // (columns * len(entries)) + 4)
        axes.set_xticks(range(len(entries)), [textwrap.fill(literal(entry), width) for entry in entries])
        axes.set_xlim(-0.45, len(entries) - 0.55)
        axes.set_xlabel(literal(along.replace("_", " ")))
        _scale(axes, means + [1.0] * is_relative)
    words = "times as long as on an ideal fabric" if is_relative else f"{meaning.label} ({unit})"
    grid[0, 0].set_ylabel(literal(words))
    for i in range(len(panels), blocks * columns):
        grid[i // columns, i % columns].set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=min(6, len(labels)), fontsize=8.8)
    title = f"{run.scenario_name}: {answer_of(findings, is_short=True).replace('Of', 'of', 1)}"
    put_title(figure, title, WIDTH_IN)
    caption = (
        f"{meaning.label[:1].upper()}{meaning.label[1:]} of each contender by {along.replace('_', ' ')}"
        f"{', over that on an ideal fabric (unlimited, behind the same NICs)' if is_relative else ''}; mean and 95 % "
        "interval over the seeds."
    )
    return DrawnFigure(f"study-{along.replace('_', '-')}", "Along the axis", title, caption, caption, figure)


def _draw_lines(
    axes: Axes,
    entries: Sequence[str],
    by_entry: Mapping[str | None, Finding],
    colours: Mapping[str, str],
    is_relative: bool,
    factor: float,
) -> list[float]:
    """Draws each contender, a little beside the others; returns the means. Only quantities are joined by lines."""
    names = list(dict.fromkeys(name for finding in by_entry.values() for name in finding.values))
    means: list[float] = []
    for k, name in enumerate(names):
        shift = (k - (len(names) - 1) / 2) * 0.055
        here = [(i, by_entry[entry]) for i, entry in enumerate(entries) if entry in by_entry]
        known = [(i + shift, e) for i, f in here if (e := _estimate(f, name, is_relative, factor)).mean is not None]
        if not known:
            continue
        x = [i for i, _ in known]
        y = np.array([e.mean for _, e in known], dtype=float)
        low = np.array([e.mean if e.low is None else e.low for _, e in known], dtype=float)
        high = np.array([e.mean if e.high is None else e.high for _, e in known], dtype=float)
        line, marker = "-" if is_ordered(entries) else "", MARKERS[list(colours).index(name) % len(MARKERS)]
        axes.errorbar(
            x, y, np.vstack((y - low, high - y)), color=colours[name], marker=marker, ms=4.2, lw=1.5,
            ls=line, elinewidth=1.1, capsize=1.8, label=literal(name), alpha=0.95,
        )  # fmt: skip
        means += list(y)
    if is_relative:
        axes.axhline(1, color=QUIET, lw=0.8, ls=(0, (3, 2)), zorder=1)
    return means


def _scale(axes: Axes, means: Sequence[float]) -> None:
    """Limits by the means, so that one wide interval does not flatten all the rest, and no less than 4 % apart."""
    low, high = min(means), max(means)
    if spans_decades(low / 4, high):
        axes.set(yscale="log", ylim=(low / 1.12, high * 1.25))
        plain_log_ticks(axes.yaxis, 4 * high / low)
        return
    span = max(high - low, 0.04 * high)
    axes.set_ylim(low - 0.12 * span, low + 1.22 * span)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _estimate(finding: Finding, name: str, is_relative: bool, factor: float) -> Estimate:
    if is_relative and finding.ideal is not None:
        return ratio_of_means(finding.values[name], finding.ideal)
    return mean_interval(finding.values[name]).mapped(lambda value: value / factor)
