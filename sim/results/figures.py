"""All figures of a run: the headline first, then what explains it. What has no data is left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.results.drawing import (
    FAINT,
    INK,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    literal,
    new_figure,
    put_title,
    shortened,
    style,
    variant_styles,
)
from sim.results.fabric_figures import draw_load_map, draw_tier_balance, draw_utilisation
from sim.results.headline import Headline, headline_of
from sim.results.latency_figures import (
    draw_flow_times,
    draw_latencies,
    draw_latency_over_time,
    draw_repetitions,
)
from sim.results.metrics import MetricMeaning, format_percent, format_value, meaning_of, unit_for
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval, paired_difference, present

Drawing = Callable[[RunResults, dict[str, VariantStyle]], list[DrawnFigure]]

DETAILS: dict[str, Drawing] = {
    "flow times": draw_flow_times,
    "latency": draw_latencies,
    "load map": draw_load_map,
    "tier balance": draw_tier_balance,
    "utilisation": draw_utilisation,
    "latency over time": draw_latency_over_time,
    "repetitions": draw_repetitions,
}
"""Every figure after the headline, in the report's order. A new figure is one function and one line here."""

NARROW_IN = 4.3


def draw_all(run: RunResults) -> list[DrawnFigure]:
    """Draw every figure for which the run has data."""
    with style():
        styles = variant_styles(run)
        drawn = draw_headline(run, headline_of(run), styles)
        for draw in DETAILS.values():
            drawn.extend(draw(run, styles))
    return drawn


def draw_headline(
    run: RunResults, headline: Headline, styles: dict[str, VariantStyle], width_in: float = WIDTH_IN
) -> list[DrawnFigure]:
    """The main metric per variant: bar to the mean, whisker over its interval, a dot per seed."""
    if headline.key is None:
        return []
    meaning = meaning_of(headline.key)
    values = {name: run.values(name, headline.key) for name in run.variants}
    means = {name: mean_interval(v) for name, v in values.items()}
    shown = [name for name in run.variants if means[name].mean is not None]
    if not shown:
        return []
    reach = max(float(np.max(np.append(present(values[name]), means[name].high or 0.0))) for name in shown)
    reach = reach if reach > 0 else 1.0
    factor, unit = unit_for(meaning, reach)
    row = 0.52 if len(shown) <= 8 else 0.44
    figure = new_figure(width_in, row * len(shown) + 1.25)
    axes = figure.subplots()
    for y, name in enumerate(shown):
        estimate, colour = means[name], styles[name].colour
        assert estimate.mean is not None
        is_lead = name == headline.best or name in headline.ties
        axes.barh(y, estimate.mean / factor, height=0.34, color=colour, alpha=0.8 if is_lead else 0.5, lw=0)
        seeds = present(values[name]) / factor
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), y), "o", ms=4.5, mfc="white", mec=INK, mew=0.7, zorder=4)
        if estimate.low is not None and estimate.high is not None and estimate.high > estimate.low:
            axes.plot([estimate.low / factor, estimate.high / factor], [y, y], color=INK, lw=1.6, zorder=3)
        _label_row(axes, y, name, run, headline, meaning, values, estimate)
    lowest = min(0.0, *(float(present(values[n]).min()) / factor for n in shown))
    axes.set(xlim=(lowest, 1.02 * reach / factor), ylim=(len(shown) - 0.62, -0.78))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    if len(run.seeds) > 1:
        _join_seeds(axes, [values[name] for name in shown], factor)
    unit_text = f" ({literal(unit)})" if unit else ""
    better = {"lower": ", less is better", "higher": ", more is better"}.get(meaning.better or "", "")
    axes.set_xlabel(literal(meaning.full_label) + unit_text + better)
    put_title(figure, headline.short, width_in)
    seeds_text = (
        f"mean of {len(run.seeds)} seeds, 95 % CI, a dot per seed" if len(run.seeds) > 1 else "one seed"
    )
    caption = f"{meaning.full_label[0].upper()}{meaning.full_label[1:]} per variant; {seeds_text}."
    parts = "; ".join(f"{name}: {format_value(means[name].mean, meaning)}" for name in shown)
    return [DrawnFigure("headline", "Answer", headline.short, caption, f"{caption} {parts}.", figure)]


def _label_row(
    axes,
    y: int,
    name: str,
    run: RunResults,
    headline: Headline,
    meaning: MetricMeaning,
    values,
    estimate: Estimate,
) -> None:
    """Above each bar: the variant's name at the left, its value and its difference at the right."""
    where = axes.get_yaxis_transform()
    above = y - 0.27
    best = "" if name != headline.best else "  ·  best"
    axes.text(
        0, above, shortened(name, 34) + best, transform=where, va="bottom", fontweight="bold", fontsize=9
    )
    text = format_percent(Estimate(estimate.mean, None, None, 1), False) if meaning.is_share else format_value(
        estimate.mean, meaning
    )  # fmt: skip
    first = run.variants[0]
    if name != first and not meaning.is_share:
        found = paired_difference(values[name], values[first], meaning.better)
        if found.relative.mean is not None:
            same = found.verdict == "no difference" or abs(found.relative.mean) < 5e-4
            change = "no difference" if same else format_percent(Estimate(found.relative.mean, None, None, 1))
            text = f"{text}   {change}"
    axes.text(1, above, literal(text), transform=where, ha="right", va="bottom", fontsize=9, color=INK)


def _join_seeds(axes, rows: list[list[float | None]], factor: float) -> None:
    """A faint line per seed from variant to variant: the pairs that the differences are taken over."""
    if len(rows) > 6 or len(rows[0]) > 20:
        return
    for pair in zip(*rows, strict=True):
        points = [(v / factor, y) for y, v in enumerate(pair) if v is not None]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=FAINT, lw=0.8, zorder=1)
