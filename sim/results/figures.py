"""All figures of a run: the headline first, then what explains it. What has no data is left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.results.cost_figure import draw_cost_sources
from sim.results.disagreement_figure import draw_disagreement
from sim.results.drawing import (
    FAINT,
    INK,
    QUIET,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    literal,
    new_figure,
    put_title,
    ranked_by,
    shortened,
    style,
    variant_styles,
)
from sim.results.fabric_figures import draw_load_maps, draw_tier_balance, draw_utilisation
from sim.results.headline import Headline, headline_of
from sim.results.latency_figures import draw_flow_times, draw_latencies
from sim.results.main_metric import network_tax_key
from sim.results.metrics import MetricMeaning, common_unit, cut_at_zero, format_percent, format_value, meaning_of
from sim.results.packet_figures import draw_price_of_reordering, draw_waits
from sim.results.run_results import RunResults
from sim.results.slowdown_figures import draw_slowdowns
from sim.results.split_figure import draw_time_split
from sim.results.statistics import Estimate, mean_interval, paired_difference, present
from sim.results.time_figures import draw_latency_over_time, draw_repetitions

Drawing = Callable[[RunResults, dict[str, VariantStyle]], list[DrawnFigure]]

DETAILS: dict[str, Drawing] = {
    "disagreement": draw_disagreement,
    "flow times": draw_flow_times,
    "slowdown": draw_slowdowns,
    "latency": draw_latencies,
    "time split": draw_time_split,
    "load map": draw_load_maps,
    "tier balance": draw_tier_balance,
    "utilisation": draw_utilisation,
    "price of reordering": draw_price_of_reordering,
    "waits": draw_waits,
    "latency over time": draw_latency_over_time,
    "repetitions": draw_repetitions,
    "cost sources": draw_cost_sources,
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
    """The main metric per variant: bar to the mean, whisker over its interval, a dot per seed.

    Numbers stand in a column beside the plot, where no bar and no line between seeds reaches them.
    """
    if headline.key is None:
        return []
    run = run.comparable()
    meaning = meaning_of(headline.key)
    values = {name: run.values(name, headline.key) for name in run.variants}
    means = {name: cut_at_zero(mean_interval(v), meaning) for name, v in values.items()}
    shown = [name for name in run.variants if means[name].mean is not None]
    if not shown:
        return []
    reach = max(float(np.max(np.append(present(values[name]), means[name].high or 0.0))) for name in shown)
    reach = reach if reach > 0 else 1.0
    factor, unit = common_unit(meaning, [reach, *(means[name].mean for name in shown)])
    row = 0.52 if len(shown) <= 8 else 0.44
    figure = new_figure(width_in, row * len(shown) + 1.25)
    is_mixed = run.mixes_fidelities(shown)
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
        suffix = "  ·  best" if is_lead and headline.best else ""
        if is_mixed:
            suffix += f"  ·  {run.fidelity_of(name)}"
        axes.text(
            0, y - 0.27, shortened(name, 34) + suffix, transform=axes.get_yaxis_transform(), va="bottom",
            fontweight="bold", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 0.8}, zorder=2,
        )  # fmt: skip
        value, difference = _value_texts(run, name, meaning, values, (factor, unit))
        for text, shift, ink in ((value, -0.04, INK), (difference, 0.25, QUIET)):
            axes.text(
                1.015, y + shift, literal(text), transform=axes.get_yaxis_transform(), va="center",
                fontsize=9, color=ink,
            )  # fmt: skip
    lowest = min(0.0, *(float(present(values[n]).min()) / factor for n in shown))
    lowest = min(lowest, *((means[n].low or 0.0) / factor for n in shown))
    axes.set(xlim=(lowest, 1.02 * reach / factor), ylim=(len(shown) - 0.62, -0.78))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    if len(run.seeds) > 1 and ranked_by({n: abs(means[n].mean or 0.0) for n in shown})[2] < 1.5:
        _join_seeds(axes, [values[name] for name in shown], factor)
    unit_text = f" ({literal(unit)})" if unit else ""
    better = {"lower": ", less is better", "higher": ", more is better"}.get(meaning.better or "", "")
    axes.set_xlabel(literal(meaning.full_label) + unit_text + better)
    put_title(figure, headline.short, width_in)
    seeds_text = (
        f"mean of {len(run.seeds)} seeds, 95 % CI, a dot per seed" if len(run.seeds) > 1 else "one seed"
    )
    caption = f"{_sentence_start(meaning)} per variant; {seeds_text}."
    if len(shown) > 1 and not meaning.is_share:
        caption += f" In grey: the difference to {run.variants[0]}."
    parts = "; ".join(f"{name}: {format_value(means[name].mean, meaning)}" for name in shown)
    return [DrawnFigure("headline", "Answer", headline.short, caption, f"{caption} {parts}.", figure)]


def _value_texts(
    run: RunResults,
    name: str,
    meaning: MetricMeaning,
    values: dict[str, list[float | None]],
    scale: tuple[float, str],
) -> tuple[str, str]:
    """The variant's mean and, for all but the first, its relative difference to the first."""
    text = format_value(mean_interval(values[name]).mean, meaning, scale)
    first = run.variants[0]
    if name == first or meaning.is_share:
        return text, ""
    found = paired_difference(*run.paired(name, first, meaning.key), meaning.better)
    relative = found.relative.mean
    tax = network_tax_key(run, meaning.key) if first == run.ideal_variant else None
    if tax is not None:
        relative = mean_interval(run.values(name, tax)).mean
    if relative is None:
        return text, ""
    where = " in fluid" if run.compares_in_fluid(name, first) else ""
    if found.verdict == "no difference" or abs(relative) < 5e-4:
        return text, f"no difference{where}"
    return text, format_percent(Estimate(relative, None, None, 1)) + where


def _sentence_start(meaning: MetricMeaning) -> str:
    label = meaning.label[:1].upper() + meaning.label[1:]
    return f"{label} of {meaning.workload}" if meaning.workload else label


def _join_seeds(axes, rows: list[list[float | None]], factor: float) -> None:
    """A faint line per seed from variant to variant: the pairs that the differences are taken over."""
    if len(rows) > 6 or len(rows[0]) > 20:
        return
    for pair in zip(*rows, strict=True):
        points = [(v / factor, y) for y, v in enumerate(pair) if v is not None]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=FAINT, lw=0.8, zorder=1)
