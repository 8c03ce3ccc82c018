"""What a latency target costs: throughput per accelerator against latency, and the highest rate that holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.results.drawing import (
    INK,
    WIDTH_IN,
    VariantStyle,
    draw_key,
    literal,
    new_figure,
    plain_log_ticks,
    put_title,
    ranked_by,
    sentence_of,
    style,
    under,
    variant_styles,
)
from sim.results.metrics import meaning_of, number
from sim.results.run_results import RunResults

PANELS_AT_MOST = 3
FRONT = "#e2e2e2"
REACH = 4.0
"""An axis of latency ends at this many times the target: beyond it queues grow, and so would the axis."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One rate of a variant; per accelerator, of output tokens. is_found: the highest rate that holds; is_stable:
    whether its queue is."""

    latency_ms: Mapping[str, float | None]
    tokens_per_s: float | None
    cost_per_million: float | None
    holds: bool
    is_found: bool
    is_stable: bool = True


@dataclass(frozen=True, slots=True)
class CapacityCurve:
    """The rates of a variant in ascending order."""

    variant: str
    points: Sequence[CurvePoint]


def draw_capacity(
    run: RunResults, workload: str, targets: Mapping[str, float], curves: Sequence[CapacityCurve]
) -> Figure | None:
    """A column for each target (the first three); below it the cost, where prices are known. None without points."""
    shown = dict(list(targets.items())[:PANELS_AT_MOST])
    has_cost = any(p.cost_per_million is not None for curve in curves for p in curve.points)
    if not any(p.tokens_per_s for curve in curves for p in curve.points):
        return None
    with style():
        styles = variant_styles(run)
        figure = new_figure(WIDTH_IN, 3.6 if not has_cost else 6.0)
        widths = [1.85 / len(shown)] * len(shown) + [1.0]
        grid = figure.subplots(1 + has_cost, len(shown) + 1, squeeze=False, width_ratios=widths)
        for column, (name, bound) in enumerate(shown.items()):
            for row in range(1 + has_cost):
                axes = grid[row, column]
                _draw(axes, name, bound, curves, styles, is_cost=row == 1)
                if column > 0:
                    axes.sharey(grid[row, 0])
                    axes.tick_params(labelleft=False)
            grid[0, column].annotate(
                f"target {bound:g} ms", (bound, 1.0), (0, 3), xycoords=grid[0, column].get_xaxis_transform(),
                textcoords="offset points", ha="center", fontsize=9, color=INK,
            )  # fmt: skip
            grid[-1, column].set_xlabel(f"{literal(target_label(name))} (ms)")
        grid[0, 0].set_ylabel("output tokens/s per accelerator")
        if has_cost:
            grid[1, 0].set_ylabel(r"\$ per million output tokens")
            grid[1, -1].set_axis_off()
        _draw_key(grid[0, -1], curves, styles, has_cost)
        put_title(figure, _title(workload, targets, curves), WIDTH_IN - 0.5)
    return figure


def target_label(name: str) -> str:
    """In words, such as "p99 time to first token", or "people: p99 time to first token" of a tenant."""
    tenant, _, latency = name.rpartition(".")
    label = meaning_of(f"serving.{latency}").label
    return f"{tenant}: {label}" if tenant else label


def _draw(
    axes: Axes, name: str, bound: float, curves: Sequence[CapacityCurve], styles: Mapping[str, VariantStyle],
    is_cost: bool,
) -> None:  # fmt: skip
    axes.axvline(bound, color=INK, lw=1.0, linestyle=(0, (4, 3)), zorder=1)
    lowest_ms = [p.latency_ms[name] or 0.0 for curve in curves for p in curve.points if p.latency_ms[name] is not None]
    reach = max(REACH * bound, 1.5 * min(lowest_ms, default=0.0))
    seen_ms, highest = [bound], 0.0
    all_known: list[tuple[float, float]] = []
    for i, curve in enumerate(curves):
        wider = min(sum(_is_alike(curve, later) for later in curves[i + 1 :]), 4)  # they would hide it
        known = [
            (x, y, p) for p in curve.points
            if (x := p.latency_ms.get(name)) is not None
            and (y := p.cost_per_million if is_cost else p.tokens_per_s) is not None
        ]  # fmt: skip
        all_known += [(x, y) for x, y, point in known if point.is_stable]
        colour, line = styles[curve.variant].colour, styles[curve.variant].line_of(1.4 + 1.2 * wider)
        axes.plot([x for x, _, _ in known], [y for _, y, _ in known], **line)
        for x, y, point in known:
            if point.is_found:
                axes.plot([x], [y], "o", ms=10 + 2.5 * wider, color=colour, mec="white", mew=1.2, zorder=5)
            else:
                axes.plot([x], [y], "o", ms=4, color=colour if point.holds else "white", mec=colour, mew=1.0, zorder=3)
            if x <= reach:
                seen_ms.append(x)
                highest = max(highest, y)
    if len(curves) > 1:
        front = pareto_front(all_known, is_cost)
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=FRONT, lw=6, zorder=0.5,
                  solid_capstyle="butt")  # fmt: skip
    low, high = 0.85 * min(seen_ms), min(1.15 * max(seen_ms), reach)
    axes.set_xscale("log")
    axes.set_xlim(low, max(high, 1.3 * bound))
    plain_log_ticks(axes.xaxis, high / low)
    axes.set_ylim(0, 1.08 * highest if highest else None)
    axes.grid(axis="x", visible=False)


def pareto_front(points: Sequence[tuple[float, float]], is_cost: bool) -> list[tuple[float, float]]:
    """Those (latency, value) than which no other has a latency as short and a value as good, by rising latency.

    A value is better the larger it is, a cost the smaller. Of equal points one is kept.
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], p[1] if is_cost else -p[1])):
        if not front or (y < front[-1][1] if is_cost else y > front[-1][1]):
            front.append((x, y))
    return front


def _is_alike(a: CapacityCurve, b: CapacityCurve) -> bool:
    """Whether two end at the same throughput, within 2 %."""
    x, y = (next((p.tokens_per_s for p in curve.points if p.is_found), None) or 0.0 for curve in (a, b))
    return abs(x - y) <= 0.02 * max(x, y)


def _draw_key(
    axes: Axes, curves: Sequence[CapacityCurve], styles: Mapping[str, VariantStyle], has_cost: bool
) -> None:
    """Each variant's figures at its highest rate that holds."""
    rows = {}
    for curve in curves:
        point = next((p for p in curve.points if p.is_found), None)
        values = [point.tokens_per_s if point else None, point.cost_per_million if point else None]
        texts = ["–" if v is None else number(v, 0) if v >= 100 else f"{v:#.3g}" for v in values]
        rows[curve.variant] = texts[: 1 + has_cost]
    heads = ["tokens/s", r"\$/million"][: 1 + has_cost]
    note = "large: highest rate that holds; open: does not"
    if len(curves) > 1:
        note += "\ngrey: as good as any at that latency (Pareto)"
    draw_key(axes, styles, rows, heads, note)


def _title(workload: str, targets: Mapping[str, float], curves: Sequence[CapacityCurve]) -> str:
    """The point: how much throughput the targets leave, and how far the variants are apart."""
    bounds = " and ".join(
        f"{target_label(name)} ≤ {bound:g}\u00a0ms" for name, bound in targets.items()
    )
    found = {c.variant: p.tokens_per_s for c in curves for p in c.points if p.is_found and p.tokens_per_s is not None}
    none = [c.variant for c in curves if c.variant not in found]
    if not found:
        return f"No rate of {workload} holds {bounds}"
    worst, best, ratio = ranked_by(found)
    if len(found) == 1:
        tail = f"; no rate does{under(none[0])}" if len(none) == 1 else "; no other variant does" if none else ""
        return f"{bounds} leaves {number(found[best], 0)} tokens/s per accelerator{under(best)}{tail}"
    if ratio < 1.02:
        return f"With {bounds} no variant serves more than another (within 2\u00a0%)"
    ties = [name for name, tokens_per_s in found.items() if tokens_per_s > found[best] / 1.02]
    who = f"{sentence_of(ties)} serve{'s' * (len(ties) == 1)}" if len(ties) <= 3 else f"{len(ties)} variants serve"
    tail = f"; no rate does under {sentence_of(none)}" if 0 < len(none) <= 2 else f"; {len(none)} hold it at no rate"
    behind = [name for name in found if name not in ties]
    second = max(behind, key=lambda name: found[name])
    next_to = f" and {found[best] / found[second]:.3g} times as many as {second}, the next" if second != worst else ""
    return f"At {bounds}, {who} {ratio:.2g} times as many tokens as {worst}{next_to}{tail if none else ''}"
