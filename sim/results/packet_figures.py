"""Figures of packets: what reordering costs beside what it gains, and waits in queues over time."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sim.results.drawing import (
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    few,
    literal,
    new_figure,
    of_one_seed,
    put_title,
    ranked_by,
    seconds_unit,
    sentence_of,
    shortened,
    under,
)
from sim.results.fabric_figures import first_results
from sim.results.headline import headline_of
from sim.results.main_metric import keys_with_values
from sim.results.metrics import common_unit, format_value, meaning_of
from sim.results.run_results import RunResults, VariantResult
from sim.results.samples import MOST_STEPS, table
from sim.results.statistics import mean_interval

HELD = ".reorder.max_held_bytes"


def draw_price_of_reordering(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """The answer's metric against the most that a receiver held out of order, a dot per variant; left out where
    packets came in order, or nothing is compared."""
    key = headline_of(run).key
    if key is None:
        return []
    run = run.comparable()
    answers = _means(run, key)
    held = _most_held(run)
    shown = [name for name in run.variants if name in answers and name in held]
    if len(shown) < 2 or not any(held[name] > 0 for name in shown):
        return []
    meaning, memory = meaning_of(key), meaning_of(f"any{HELD}")
    factor, unit = common_unit(meaning, [answers[name] for name in shown])
    size, size_unit = common_unit(memory, [held[name] for name in shown])
    figure = new_figure(WIDTH_IN, 3.4)
    axes = figure.subplots()
    for name in shown:
        x, y = answers[name] / factor, held[name] / size
        axes.plot([x], [y], "o", ms=9, alpha=0.85, color=styles[name].colour, label=shortened(name))
    axes.set_ylim(bottom=-0.06 * max(held.values()) / size)
    axes.margins(x=0.1)
    _name_colours(axes)
    better = {"lower": ", less is better", "higher": ", more is better"}.get(meaning.better or "", "")
    axes.set_xlabel(literal(meaning.full_label) + (f" ({literal(unit)})" if unit else "") + better)
    axes.set_ylabel(f"most held out of order ({size_unit})")
    _, high, _ = ranked_by({name: held[name] for name in shown})
    fastest, most, _ = ranked_by({name: answers[name] for name in shown})
    best = most if meaning.better == "higher" else fastest
    title = f"A receiver holds up to {format_value(held[high], memory)} out of order{under(high)}"
    title += ", the best" if best == high else f"; under the best, {shortened(best)}, {_amount(held[best])}"
    put_title(figure, title, WIDTH_IN)
    parts = [
        f"{format_value(held[n], memory)} at {format_value(answers[n], meaning)}{under(n)}"
        for n in few(run, {name: held[name] for name in shown})
    ]
    caption = f"What reordering costs beside what its policy gains: {sentence_of(parts)}. Means over seeds."
    if left_out := [name for name in run.variants if name in answers and name not in held]:
        caption += f" Without packets, and not shown: {sentence_of(left_out)}."
    alt = f"{meaning.full_label} against the most bytes held out of order, a dot per variant. {caption}"
    return [DrawnFigure("price-of-reordering", "Price of reordering", title, caption, alt, figure)]


def _amount(held: float) -> str:
    return format_value(held, meaning_of(f"any{HELD}")) if held else "nothing"


def _name_colours(axes: Axes) -> None:
    """Names in their colours beside the plot, where they cannot lie over each other."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor="linecolor")


def _means(run: RunResults, key: str) -> dict[str, float]:
    found = {name: mean_interval(run.values(name, key)).mean for name in run.variants}
    return {name: value for name, value in found.items() if value is not None}


def _most_held(run: RunResults) -> dict[str, float]:
    """Per variant the largest of its workloads' means."""
    found: dict[str, float] = {}
    for key in (key for key in keys_with_values(run) if key.endswith(HELD)):
        for name, value in _means(run, key).items():
            found[name] = max(found.get(name, 0.0), value)
    return found


def draw_waits(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """The longest wait at any link against time, a line per variant."""
    results = first_results(run)
    found = {name: series for name, result in results.items() if (series := _longest_waits(result)) is not None}
    longest = {name: float(waits.max()) for name, (_, waits) in found.items()}
    if not found or max(longest.values()) == 0:
        return []
    time_s, time_unit = seconds_unit(max(float(edges[-1]) for edges, _ in found.values()))
    wait_s, wait_unit = seconds_unit(max(longest.values()))
    figure = new_figure(WIDTH_IN, 3.2)
    axes = figure.subplots()
    for name, (edges, waits) in found.items():
        axes.stairs(waits / wait_s, edges / time_s, color=styles[name].colour, lw=1.6, label=shortened(name))
    axes.set(xlabel=f"time ({time_unit})", ylabel=f"longest wait ({wait_unit})")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    if len(found) > 1:
        _name_colours(axes)
    low, high, _ = ranked_by(longest)
    meaning = meaning_of("links.queue_wait_max_s")
    title = f"The longest wait in a queue is {format_value(longest[high], meaning)}{under(high)}"
    title += f", {format_value(longest[low], meaning)}{under(low)}" if len(found) > 1 else ""
    title += of_one_seed(run, (results[name].seed for name in found))
    put_title(figure, title, WIDTH_IN)
    typical = {name: float(np.median(waits)) for name, (_, waits) in found.items()}
    parts = [f"{format_value(typical[n], meaning)}{under(n)}" for n in few(run, typical)]
    caption = (
        "The longest that a packet had waited at any link when it left, in each stretch of time; half of the time it "
        f"is at most {sentence_of(parts)}."
    )
    alt = f"Longest wait in a queue against time, one line per variant. {caption}"
    return [DrawnFigure("waits", "Waits in queues", title, caption, alt, figure)]


def _longest_waits(result: VariantResult) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(edges [stretches + 1] seconds, the longest wait over links in each); None where the run has no packets."""
    series = table(result, "link_series", ["time_s", "span_s", "longest_wait_s"])
    if series is None:
        return None
    by_time = series.groupby("time_s", sort=True).agg({"span_s": "first", "longest_wait_s": "max"})
    starts = by_time.index.to_numpy(dtype=np.float64)
    waits = by_time["longest_wait_s"].to_numpy(dtype=np.float64)
    chosen = np.arange(0, len(starts), -(-len(starts) // MOST_STEPS))
    end = starts[-1] + float(by_time["span_s"].iloc[-1])
    return np.append(starts[chosen], end), np.maximum.reduceat(waits, chosen)
