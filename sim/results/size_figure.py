"""How large a service has to be: its accelerators against the latencies that are to be held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sim.results.capacity_figure import target_label
from sim.results.drawing import (
    INK,
    WIDTH_IN,
    VariantStyle,
    draw_key,
    literal,
    new_figure,
    plain_log_ticks,
    put_title,
    style,
    variant_styles,
)
from sim.results.run_results import RunResults

PANELS_AT_MOST = 3
REACH = 4.0
"""The axis of a latency ends at this many times the target; what lies beyond is drawn at its edge."""


@dataclass(frozen=True, slots=True)
class SizePoint:
    """One candidate. ruled_out: a word for why it was not simulated; latency_ms is then what it cannot undercut."""

    shape: str
    replicas: int
    num_accelerators: int
    latency_ms: Mapping[str, float | None]
    holds: bool
    is_found: bool
    ruled_out: str | None


def draw_size(
    run: RunResults, workload: str, targets: Mapping[str, float], points: Sequence[SizePoint], variant: str = ""
) -> Figure | None:
    """A panel for each target (the first three), a line for each shape (`run.variants`). None without points.

    variant: whose sizes these are, where there are several."""
    if not points:
        return None
    shown = dict(list(targets.items())[:PANELS_AT_MOST])
    with style():
        styles = variant_styles(run)
        figure = new_figure(WIDTH_IN, 3.6)
        grid = figure.subplots(1, len(shown) + 1, squeeze=False, width_ratios=[1.85 / len(shown)] * len(shown) + [1.0])
        for axes, (name, bound) in zip(grid[0], shown.items(), strict=False):
            _draw(axes, name, bound, points, styles)
        rows = {shape: _found_of(shape, points) for shape in run.variants}
        note = "large: found; open: misses; ×: ruled out"
        draw_key(grid[0, -1], styles, rows, ["least"], note)
        put_title(figure, _title(workload, targets, points, variant), WIDTH_IN - 0.5)
    return figure


def _draw(
    axes: Axes, name: str, bound: float, points: Sequence[SizePoint], styles: Mapping[str, VariantStyle]
) -> None:
    """What was run, at its latency; what was ruled out by this latency, at what it cannot undercut; other crosses lie
    in a row of their shape along the upper edge."""
    last = max(p.num_accelerators for p in points)
    values = [bound, *(v for p in points if _is_placed(p, name, bound) and (v := p.latency_ms[name]) is not None)]
    top = min(max(1.3 * bound, 1.25 * max(values)), REACH * bound)
    bottom = max(0.75 * min(values), bound / 50)
    shapes = dict.fromkeys(p.shape for p in points)
    at_edge = [shape for shape in shapes if any(p.shape == shape and not _is_placed(p, name, bound) for p in points)]
    row = 0.05 / max(len(at_edge) / 6, 1)
    for shape in shapes:
        own = [p for p in points if p.shape == shape]
        colour = styles[shape].colour
        ran = [p for p in own if p.ruled_out is None]
        ys = [min(p.latency_ms[name] or top, top) for p in ran]
        axes.plot([p.num_accelerators for p in ran], ys, **styles[shape].line_of(1.4))
        height = 1.0 - row * (at_edge.index(shape) if shape in at_edge else 0)
        edge = [p for p in own if p.ruled_out is not None and not _is_placed(p, name, bound)]
        cross: dict[str, Any] = {"ls": "none", "marker": "x", "ms": 4, "color": colour, "mew": 1.1, "zorder": 3,
                                 "clip_on": False, "in_layout": False}  # fmt: skip
        at_height = axes.get_xaxis_transform()
        axes.plot([p.num_accelerators for p in edge], [height] * len(edge), transform=at_height, **cross)
        if edge and edge[-1].num_accelerators < 0.75 * last:
            axes.annotate(edge[-1].ruled_out or "", (edge[-1].num_accelerators, height), (5, 0), fontsize=7.5,
                          xycoords=at_height, textcoords="offset points", va="center", color=colour,
                          in_layout=False)  # fmt: skip
        for point in own:
            if not _is_placed(point, name, bound):
                continue
            at = [point.num_accelerators], [min(point.latency_ms[name] or top, top)]
            if point.ruled_out is not None:
                axes.plot(*at, **cross)
            elif point.is_found:
                axes.plot(*at, "o", ms=10, color=colour, mec="white", mew=1.2, zorder=5)
            else:
                face = colour if point.holds else "white"
                axes.plot(*at, "o", ms=4.5, color=face, mec=colour, mew=1.0, zorder=4, clip_on=False)
    axes.axhline(bound, color=INK, lw=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    upper = top * (top / bottom) ** (1.2 * row * len(at_edge))
    axes.set_ylim(bottom, upper)
    plain_log_ticks(axes.yaxis, upper / bottom)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, 1.08 * last)
    axes.set_xlabel("accelerators")
    axes.set_ylabel(f"{literal(target_label(name))} (ms)")
    axes.annotate(f"target {bound:g} ms", (0.0, bound), (3, 3), xycoords=axes.get_yaxis_transform(),
                  textcoords="offset points", fontsize=9, color=INK, in_layout=False)  # fmt: skip


def _is_placed(point: SizePoint, name: str, bound: float) -> bool:
    """Whether it has a place by its latency: it ran, or its least latency alone is above the target."""
    return point.ruled_out is None or (point.latency_ms[name] or 0.0) > bound


def _found_of(shape: str, points: Sequence[SizePoint]) -> list[str]:
    """The fewest accelerators of a shape that were tried and hold, or why there are none."""
    own = [p for p in points if p.shape == shape]
    held = [p.num_accelerators for p in own if p.holds]
    if held:
        return [str(min(held))]
    if any(p.ruled_out is None for p in own):
        return ["misses"]
    return [next((p.ruled_out for p in own if p.ruled_out is not None), "not run")]


def _title(workload: str, targets: Mapping[str, float], points: Sequence[SizePoint], variant: str) -> str:
    one = [f"{target_label(name)} ≤ {bound:g}\u00a0ms" for name, bound in targets.items()]
    bounds = one[0] if len(one) == 1 else f"its {len(one)} targets"
    start = f"{variant}: " if variant else ""
    found = next((p for p in points if p.is_found), None)
    if found is None:
        return f"{start}{'no' if start else 'No'} size of {workload} that was tried holds {bounds}"
    num, replicas = found.num_accelerators, found.replicas
    return (
        f"{start}{num} accelerator{'s hold' if num != 1 else ' holds'} {workload} at {bounds}: {found.shape}, "
        f"{replicas} replica{'s' * (replicas != 1)}"
    )
