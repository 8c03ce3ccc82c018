"""Figures of a study: the map of who wins where, and each contender along each axis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
from sim.results.metrics import MetricMeaning, common_unit, format_value, number
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval, ratio_of_means
from sim.results.study import NO_RESULT, Finding, Verdict, answer_of, findings_of, is_ordered, sides_of

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")
LINES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")
"""A style of line per side; the markers of every second side are hollow."""
ROW_IN, GROUP_ROWS = 0.34, 0.95
EVEN, UNSURE = "#ececea", "#ffffff"
DEEPEST = 0.25
"""A gain from which on a cell of the map has the full colour of its winner."""


def colours_of(runs: Sequence[RunResults]) -> dict[str, str]:
    """A colour per contender and, after them, per side, the same in every figure of a study."""
    contenders = [name for run in runs for name in run.contenders if name != run.ideal_variant]
    names = dict.fromkeys([*contenders, *(side for run in runs for side in sides_of(run).values())])
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


# --- the map ----------------------------------------------------------------------------------------------------------


def draw_map(
    runs: Sequence[tuple[str, RunResults, Sequence[Finding]]], colours: Mapping[str, str]
) -> DrawnFigure | None:
    """A cell per set of circumstances: columns are the entries of the first axis, rows what else there is.

    Its colour is that of the winning side, the deeper the more it gains; grey: no difference; white: contested. None
    where nothing has circumstances and a result.
    """
    rows: dict[str, dict[str, dict[str, Finding]]] = {}
    used = [(run, finding) for _, run, findings in runs for finding in findings if _is_on_map(finding)]
    for label, _, findings in runs:
        for finding in filter(_is_on_map, findings):
            (_, column), *others = finding.circumstances
            row = ", ".join(entry for _, entry in others)
            rows.setdefault(label, {}).setdefault(row, {})[column] = finding
    if not used:
        return None
    shown = {finding.circumstances[0][1] for _, finding in used}
    first_axes = (next(iter(run.axes.values())) for run, _ in used)
    columns = list(dict.fromkeys(entry for entries in first_axes for entry in entries if entry in shown))
    headed = {label for label, group in rows.items() if len(rows) > 1 and list(group) != [""]}
    height = ROW_IN * (sum(map(len, rows.values())) + GROUP_ROWS * len(headed))
    figure = new_figure(WIDTH_IN, height + 1.5)
    axes = figure.subplots()
    ticks: dict[float, str] = {}
    y = 0.0
    for label, group in rows.items():
        if label in headed:
            axes.text(-0.49, y + 0.16, literal(label), va="center", fontweight="bold", fontsize=9.5, color=INK)
            y += GROUP_ROWS
        for row, cells in group.items():
            ticks[y] = literal(row or label)
            for column, finding in cells.items():
                _draw_cell(axes, columns.index(column), y, finding, colours)
            y += 1
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(y - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [textwrap.fill(literal(c), max(9, 60 // len(columns))) for c in columns])
    axes.xaxis.tick_top()
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(length=0, pad=6)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    everything = [finding for _, finding in used]
    _draw_legend(axes, _parties(everything, colours))
    title = answer_of(everything, is_short=True)
    put_title(figure, title, WIDTH_IN)
    caption = _map_caption(everything)
    return DrawnFigure("study-map", "Answer", title, caption, f"{caption} {answer_of(everything)}", figure)


def _is_on_map(finding: Finding) -> bool:
    return bool(finding.circumstances) and finding.decision != NO_RESULT


def _parties(findings: Sequence[Finding], colours: Mapping[str, str]) -> dict[str, str]:
    """The colours that the map may show: of sides, or of what wins without sides."""
    sides = [side for finding in findings for side in finding.sides.values()]
    winners = {finding.decision for finding in findings}
    return {name: colour for name, colour in colours.items() if name in sides or name in winners}


def _map_caption(findings: Sequence[Finding]) -> str:
    verdicts = [verdict for finding in findings if (verdict := finding.deciding) is not None]
    amounts = [_amount(meaning) for meaning in dict.fromkeys(verdict.meaning for verdict in verdicts)]
    amount = amounts[0] if len(set(amounts)) == 1 else "how far its mean is from that"
    with_sides = {finding.has_sides for finding in findings}
    if with_sides == {True}:
        best, of = "the best contender of the winning side", "of the next side's best"
    elif with_sides == {False}:
        best, of = "the best contender", "of the next one"
    else:
        best = "the best contender (of the winning side, where there are sides)"
        of = "of the next side's best or the next one"
    aside = {name for finding in findings if finding.has_sides for name in finding.ranked if name not in finding.sides}
    return (
        f"Each cell names {best} and {amount} {of}. Grey: within 1 % of one another; white: the 95 % interval "
        f"includes 0; *: one seed; empty: no result.{_left_out(sorted(aside))}"
    )


def _left_out(aside: Sequence[str]) -> str:
    return f" On no side, so not shown: {', '.join(aside)}." if aside else ""


def _amount(meaning: MetricMeaning) -> str:
    direction = "more" if meaning.better == "higher" else "less"
    if meaning.is_share:
        return f"how many points its {meaning.label} is {'above' if direction == 'more' else 'below'} that"
    return f"how much {direction} its {meaning.label} is than that"


def _draw_cell(axes: Axes, x: float, y: float, finding: Finding, colours: Mapping[str, str]) -> None:
    verdict = finding.deciding
    if verdict is None:
        return
    shade, text = _cell(finding, verdict, colours)
    axes.add_patch(Rectangle((x - 0.485, y - 0.46), 0.97, 0.92, facecolor=shade, edgecolor="#d0d0d0", lw=0.6))
    dark = sum(to_rgb(shade)) < 1.55
    axes.text(x, y, literal(text), ha="center", va="center", fontsize=8.8, color="white" if dark else INK)


def _cell(finding: Finding, verdict: Verdict, colours: Mapping[str, str]) -> tuple[Any, str]:
    if verdict.state == "no difference":
        return EVEN, f"{verdict.best} ≈ {verdict.other}"
    if verdict.state == "contested":
        return UNSURE, f"{verdict.best} or {verdict.other}"
    gain = verdict.gain.mean
    depth = 0.28 + 0.72 * min(1.0, (1.0 if gain is None else gain) / DEEPEST)
    base = np.array(to_rgb(colours[finding.decision]))
    note = "" if verdict.state == "clear" else " *"
    return tuple(1 - depth * (1 - base)), f"{verdict.best}  {_short_change(verdict)}{note}"


def _short_change(verdict: Verdict) -> str:
    """`−12 %`; without an interval, which has no room in a cell."""
    change = verdict.change.mean
    if change is None:  # the other one is 0
        gap = verdict.difference.difference.mean
        return "" if gap is None else f"{'−' if gap > 0 else '+'}{format_value(abs(gap), verdict.meaning)}"
    digits = 1 if abs(change) < 0.095 else 0
    sign = "+" if change > 0 else ""
    return f"{sign}{number(100 * change, digits)} {'points' if verdict.meaning.is_share else '%'}"


def _draw_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    shown = [*colours.items(), ("no difference (within 1 %)", EVEN), ("contested", UNSURE)]
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#b0b0b0", lw=0.6) for _, colour in shown]
    axes.legend(
        handles, [literal(name) for name, _ in shown], loc="upper center", bbox_to_anchor=(0.45, 0.0), ncol=4,
        handlelength=1.1, handleheight=1.1, fontsize=8.8, columnspacing=1.6,
    )  # fmt: skip


# --- along an axis ----------------------------------------------------------------------------------------------------


def draw_course(run: RunResults, colours: Mapping[str, str]) -> DrawnFigure | None:
    """One panel per set of other circumstances: each contender along the ordered axis, as a multiple of what an ideal
    fabric has where the run has one (not of a share); a bar is the 95 % interval.

    Without circumstances one panel, the contenders side by side. None without results.
    """
    findings = [finding for finding in findings_of(run) if finding.ranked]
    if not findings:
        return None
    names = list(run.axes)[:-1]
    along = next((axis for axis in reversed(names) if is_ordered(run.axes[axis])), names[-1] if names else None)
    entries = list(run.axes[along]) if along else [""]
    panels: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        others = ", ".join(entry for axis, entry in finding.circumstances if axis != along)
        panels.setdefault(others, {})[(finding.entry(along) or "") if along else ""] = finding
    columns = min(3, len(panels))
    blocks = -(-len(panels) // columns)
    figure = new_figure(WIDTH_IN, 0.95 + 2.9 * blocks)
    grid = figure.subplots(blocks, columns, squeeze=False)
    scale = _Scale.of(findings)
    is_cut = False
    for i, (panel, found) in enumerate(panels.items()):
        axes = grid[i // columns, i % columns]
        bars = _draw_lines(axes, entries, found, colours, scale)
        axes.set_title(literal(panel or run.scenario_name))
        width = max(8, 42 // (columns * len(entries)) + 4)
        axes.set_xticks(range(len(entries)), [textwrap.fill(literal(entry), width) for entry in entries])
        axes.set_xlim(-0.45, len(entries) - 0.55)
        axes.set_xlabel(literal(along.replace("_", " ")) if along else "")
        _set_limits(axes, [mean for _, mean, _, _, _ in bars] + [1.0] * scale.is_relative)
        is_cut |= _mark_cut(axes, bars)
    grid[0, 0].set_ylabel(literal(scale.words))
    for i in range(len(panels), blocks * columns):
        grid[i // columns, i % columns].set_axis_off()
    _put_legend(figure, findings[0].sides)
    title = f"{run.scenario_name}: {answer_of(findings, is_short=True).replace('Of', 'of', 1)}"
    put_title(figure, title, WIDTH_IN)
    caption = _course_caption(findings[0], scale, along, is_cut)
    key = f"study-{along.replace('_', '-')}" if along else "study-contenders"
    return DrawnFigure(key, "Along the axis", title, caption, caption, figure)


def _course_caption(finding: Finding, scale: _Scale, along: str | None, is_cut: bool) -> str:
    label = finding.meaning.label
    text = f"{label[:1].upper()}{label[1:]} of each contender"
    if along:
        text += f" by {along.replace('_', ' ')}"
    if scale.is_relative:
        text += ", over that on an ideal fabric (unlimited, behind the same NICs)"
    text += "; mean and 95 % interval over the seeds."
    if is_cut:
        text += " A triangle on the frame: the interval reaches beyond it."
    return text


@dataclass(frozen=True, slots=True)
class _Scale:
    """What the vertical axis of all panels shows: a multiple of the ideal, or the metric in one unit."""

    is_relative: bool
    factor: float
    words: str

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> _Scale:
        meaning = findings[0].meaning
        if not meaning.is_share and all(_has_ratios(finding) for finding in findings):
            is_time = meaning.quantity in ("seconds", "milliseconds") and meaning.better == "lower"
            words = "times as long as on an ideal fabric" if is_time else f"{meaning.label}, over an ideal fabric's"
            return cls(True, 1.0, words)
        means = [mean_interval(values).mean for finding in findings for values in finding.values.values()]
        factor, unit = common_unit(meaning, means)
        return cls(False, factor, f"{meaning.label} ({unit})" if unit else meaning.label)

    def estimate(self, finding: Finding, name: str) -> Estimate:
        if self.is_relative and finding.ideal is not None:
            return ratio_of_means(finding.values[name], finding.ideal)
        return mean_interval(finding.values[name]).mapped(lambda value: value / self.factor)


def _has_ratios(finding: Finding) -> bool:
    """Whether everything can be told as a multiple of the ideal: it is there, for a common seed, and not 0."""
    ideal = finding.ideal
    return ideal is not None and all(
        ratio_of_means(finding.values[name], ideal).mean is not None for name in finding.ranked
    )


Bar = tuple[float, float, float, float, str]
"""Place, mean, low and high end of the interval, and the colour."""


def _draw_lines(
    axes: Axes, entries: Sequence[str], by_entry: Mapping[str, Finding], colours: Mapping[str, str], scale: _Scale
) -> list[Bar]:
    """Draws each contender, a little beside the others. Only quantities are joined by lines, and no line or point is
    hidden by an interval."""
    names = list(dict.fromkeys(name for finding in by_entry.values() for name in finding.values))
    sides = next(iter(by_entry.values())).sides
    step = 0.055 if len(entries) > 1 else min(0.12, 0.8 / len(names))
    bars: list[Bar] = []
    for k, name in enumerate(names):
        shift = (k - (len(names) - 1) / 2) * step
        own: list[Bar] = []
        for i, entry in enumerate(entries):
            estimate = scale.estimate(by_entry[entry], name) if entry in by_entry else Estimate(None, None, None, 0)
            if (mean := estimate.mean) is not None:
                low, high = (mean if bound is None else bound for bound in (estimate.low, estimate.high))
                own.append((i + shift, mean, low, high, colours[name]))
        if not own:
            continue
        x, y, low_ends, high_ends = (np.array([bar[j] for bar in own], dtype=float) for j in range(4))
        axes.errorbar(
            x, y, np.vstack((y - low_ends, high_ends - y)), color=colours[name], ls="", elinewidth=1.1, capsize=1.8,
            alpha=0.6, zorder=2,
        )  # fmt: skip
        style = _side_style(sides, sides.get(name))
        if not is_ordered(entries):
            style["ls"] = ""
        marker = MARKERS[list(colours).index(name) % len(MARKERS)]
        axes.plot(x, y, color=colours[name], marker=marker, ms=4.6, lw=1.5, zorder=3, label=literal(name), **style)
        bars += own
    if scale.is_relative:
        axes.axhline(1, color=QUIET, lw=0.8, ls=(0, (3, 2)), zorder=1)
    return bars


def _side_style(sides: Mapping[str, str], side: str | None) -> dict[str, Any]:
    """What `Axes.plot` takes to tell a side: its style of line, and hollow markers for every second one."""
    place = list(dict.fromkeys(sides.values())).index(side) if side is not None else 0
    style: dict[str, Any] = {"ls": LINES[place % len(LINES)]}
    return style | {"markerfacecolor": "white", "markeredgewidth": 1.2} if place % 2 else style


def _put_legend(figure: Figure, sides: Mapping[str, str]) -> None:
    """The contenders of all panels, then the sides."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    for side in dict.fromkeys(sides.values()):
        found[literal(side)] = Line2D([], [], color=QUIET, marker="o", ms=4.6, lw=1.5, **_side_style(sides, side))
    columns = max(1, min(6, len(found), 110 // (6 + max(map(len, found)))))
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncol=columns, fontsize=8.8, handlelength=2.6
    )


def _set_limits(axes: Axes, means: Sequence[float]) -> None:
    """Limits by the means, so that one wide interval does not flatten all the rest, and no less than 4 % apart."""
    low, high = min(means), max(means)
    if spans_decades(low / 4, high):
        axes.set(yscale="log", ylim=(low / 1.12, high * 1.25))
        plain_log_ticks(axes.yaxis, 4 * high / low)
        return
    span = max(high - low, 0.04 * abs(high)) or 1.0
    axes.set_ylim(low - 0.12 * span, low + 1.22 * span)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _mark_cut(axes: Axes, bars: Sequence[Bar]) -> bool:
    """Marks each interval that reaches beyond the frame by a triangle on it; returns whether there is any."""
    bottom, top = axes.get_ylim()
    cut = [(x, top, "^", colour) for x, _, _, high, colour in bars if high > top]
    cut += [(x, bottom, "v", colour) for x, _, low, _, colour in bars if low < bottom]
    for x, edge, marker, colour in cut:
        axes.plot([x], [edge], color=colour, marker=marker, ms=4.5, ls="", clip_on=False, zorder=4)
    return bool(cut)
