"""Figure of open-loop traffic: how much longer flows of each size take than alone on the fabric."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sim.results.drawing import (
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    draw_key,
    few,
    line_widths,
    new_figure,
    plain_log_ticks,
    put_title,
    scaled,
    sentence_of,
    spans_decades,
    under,
)
from sim.results.latency_figures import WORKLOADS_AT_MOST
from sim.results.metrics import meaning_of, unit_for, with_unit
from sim.results.run_results import RunResults
from sim.results.samples import slowdowns, workloads_in
from sim.results.statistics import mean_interval

FLOWS_AT_LEAST = 10
"""Flows of a size, over all seeds, below which its percentiles are chance and not drawn."""
SIZE = meaning_of("any.size_bytes")


def draw_slowdowns(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """p50 and p99 slowdown against flow size: a point per power of ten, a line per variant."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "slowdowns")[:WORKLOADS_AT_MOST]:
        everything = slowdowns(run, workload)
        found = {name: bins[bins["num_flows"] >= FLOWS_AT_LEAST] for name, bins in everything.items()}
        found = {name: bins for name, bins in found.items() if len(bins)}
        if not found:
            continue
        figure = new_figure(WIDTH_IN, 3.3)
        left, right, key = figure.subplots(1, 3, width_ratios=[1, 1, 1.05])
        right.sharey(left)
        _draw_lines(left, found, "p50", styles)
        _draw_lines(right, found, "p99", styles)
        largest = max(float(bins["p99"].max()) for bins in found.values())
        if spans_decades(1.0, largest):
            left.set_yscale("log")
            plain_log_ticks(left.yaxis, largest)
            left.set_ylim(0.9, 1.3 * largest)
        else:
            left.set_ylim(0, 1.08 * largest)
        left.set_ylabel("slowdown (1 = alone on the fabric)")
        right.tick_params(labelleft=False)
        seeds = f", mean of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
        draw_key(key, styles, _overall(run, workload, found), ["p50 ×", "p99 ×"], f"all sizes{seeds}")
        title, caption = _slowdown_words(run, workload, found)
        if any(len(bins) < len(everything[name]) for name, bins in found.items()):
            caption += f" Sizes with fewer than {FLOWS_AT_LEAST} flows are left out."
        put_title(figure, title, WIDTH_IN)
        alt = f"Median and 99th percentile of the slowdown of {workload} by flow size, one line per variant."
        drawn = DrawnFigure(
            f"slowdown-{len(out) + 1}", "Slowdown by flow size", title, caption, f"{alt} {caption}", figure
        )
        out.append(drawn)
    return out


def _draw_lines(
    axes: Axes, found: dict[str, pd.DataFrame], percentile: str, styles: dict[str, VariantStyle]
) -> None:
    widths = line_widths([bins[percentile].to_numpy() for bins in found.values()])
    for (name, bins), width in zip(found.items(), widths, strict=True):
        middle = np.sqrt(bins["from_bytes"].to_numpy(float) * bins["below_bytes"].to_numpy(float))
        look = styles[name].line_of(width)
        axes.plot(middle, bins[percentile], **look, marker="o", ms=3 + look["lw"] / 2)
    edges = np.unique(pd.concat(found.values())[["from_bytes", "below_bytes"]])
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    every = -(-len(edges) // 5)
    axes.set_xticks(edges[::every], [_size(edge) for edge in edges[::every]])
    axes.set_xticks([], minor=True)
    axes.set_title(f"{percentile} of each size")
    axes.set_xlabel("flow size")


def _overall(run: RunResults, workload: str, found: dict[str, pd.DataFrame]) -> dict[str, list[str]]:
    keys = [f"traffic.{workload}.slowdown.{percentile}" for percentile in ("p50", "p99")]
    return {name: [scaled(mean_interval(run.values(name, key)).mean, 1.0) for key in keys] for name in found}


def _size(size_bytes: float) -> str:
    scale, unit = unit_for(SIZE, size_bytes)
    return with_unit(f"{size_bytes / scale:g}", unit)


def _slowdown_words(run: RunResults, workload: str, found: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """The size that suffers most under any variant, and what each variant makes of that size."""
    real = [name for name in found if name != run.ideal_variant] or list(found)
    worst = max(real, key=lambda name: float(found[name]["p99"].max()))
    row = int(found[worst]["p99"].argmax())
    start, end = (int(found[worst][edge].iloc[row]) for edge in ("from_bytes", "below_bytes"))
    sizes = f"{_size(start)} to {_size(end)}"
    same_size = {name: bins["p99"][bins["from_bytes"] == start] for name, bins in found.items()}
    p99 = {name: float(values.iloc[0]) for name, values in same_size.items() if len(values)}
    best = min((name for name in real if name in p99), key=lambda name: p99[name])
    title = f"Flows of {workload} of {sizes} suffer most: p99 slowdown {p99[worst]:.1f}"
    if p99[worst] > 1.01 * p99[best]:
        title += f"{under(worst)}, {p99[best]:.1f}{under(best)}"
    elif len(real) > 1:
        title += " under every variant"
    parts = [f"{p99[name]:.2f}{under(name)}" for name in few(run, p99)]
    caption = (
        "Slowdown is a flow's completion time over that of the flow alone on the fabric, here by size in powers of "
        f"ten. The p99 of flows of {sizes}: {sentence_of(parts)}."
    )
    return title, caption
