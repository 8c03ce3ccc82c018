"""Figures of how times are distributed: flow completion, time to first token, between tokens, end to end."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sim.results.drawing import (
    QUIET,
    SECONDS,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    draw_key,
    few,
    line_widths,
    new_figure,
    plain_log_ticks,
    put_title,
    ranked_by,
    scaled,
    seconds_unit,
    sentence_of,
    spans_decades,
    under,
)
from sim.results.metrics import format_interval, format_value
from sim.results.run_results import RunResults
from sim.results.samples import LATENCIES, SampleSet, flow_times, latencies, workloads_in

WORKLOADS_AT_MOST = 4
PERCENTS = (50, 90, 99)


def draw_flow_times(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """CDF of flow completion times, one figure per workload with flows."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "flows")[:WORKLOADS_AT_MOST]:
        found = flow_times(run, workload)
        if not found or max(samples.num_total for samples in found.values()) < 2:
            continue
        figure = new_figure(WIDTH_IN, 3.4)
        axes, key = figure.subplots(1, 2, width_ratios=[1.85, 1])
        unit = _draw_cdfs(axes, found, styles)
        draw_key(key, styles, _key_rows(found, unit[0]), _heads(unit[1]), _over_seeds(run))
        axes.set(xlabel=f"flow completion time ({unit[1]})", ylabel="share of flows finished")
        title = _gap_title(run, found, f"Flow completion times of {workload}", "the p99")
        put_title(figure, title, WIDTH_IN)
        which = "finished flows" if any(samples.num_missing for samples in found.values()) else "flows"
        caption = _percentile_sentence(run, found, f"99 % of the {which} of {workload} take at most")
        out.append(
            DrawnFigure(
                f"flow-times-{len(out) + 1}", "Flow completion times", title, caption,
                f"Cumulative distribution of the flow completion times of {workload}, one line per variant. "
                + caption, figure, percentiles=_percentile_table(found, "flow completion time"),
            )
        )  # fmt: skip
    return out


def draw_latencies(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """CDFs of time to first token, time between tokens and end-to-end latency, per serving workload."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "requests")[:WORKLOADS_AT_MOST]:
        found = latencies(run, workload)
        if not found:
            continue
        height = 2.75 * len(found) + 0.5
        figure = new_figure(WIDTH_IN, height)
        grid = figure.subplots(len(found), 2, width_ratios=[1.85, 1], squeeze=False)
        for (axes, key), (quantity, samples) in zip(grid, found.items(), strict=True):
            unit = _draw_cdfs(axes, samples, styles)
            draw_key(key, styles, _key_rows(samples, unit[0]), _heads(unit[1]), _over_seeds(run))
            of = "gaps" if quantity == "itl" else "requests"
            axes.set(xlabel=f"{LATENCIES[quantity]} ({unit[1]})", ylabel=f"share of {of}")
        point = max((q for q in ("itl", "ttft", "e2el") if q in found), key=lambda q: _ratio(_p99_of(run, found[q])))
        title = _gap_title(run, found[point], f"Latency of {workload}", f"p99 {LATENCIES[point]}")
        put_title(figure, title, WIDTH_IN)
        caption = _percentile_sentence(run, found[point], f"The p99 {LATENCIES[point]} is")
        rows = [
            row
            for quantity, samples in found.items()
            for row in _percentile_table(samples, LATENCIES[quantity])
        ]
        out.append(
            DrawnFigure(
                f"latency-{len(out) + 1}", "Serving latency", title, caption,
                f"Cumulative distributions of the latencies of {workload}, one line per variant. {caption}",
                figure, percentiles=rows,
            )
        )  # fmt: skip
    return out


def _draw_cdfs(axes: Axes, found: dict[str, SampleSet], styles: dict[str, VariantStyle]) -> tuple[float, str]:
    curves = {variant: samples.distribution() for variant, samples in found.items()}
    values = [value for value, _ in curves.values()]
    smallest, largest = min(float(value[1]) for value in values), max(float(value[-1]) for value in values)
    is_log = spans_decades(smallest, largest)
    unit = seconds_unit(float(np.median(values)) if is_log else largest)
    for (variant, (value, share)), width in zip(curves.items(), line_widths(values), strict=True):
        axes.plot(value / unit[0], share, **styles[variant].line_of(width))
    if is_log:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis, largest / smallest)
        axes.set_xlim(left=smallest / unit[0] * 0.9)
    else:
        axes.set_xlim(0, 1.04 * largest / unit[0])
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.axhline(0.99, color=QUIET, lw=0.6, linestyle=(0, (2, 3)), zorder=0.5)
    return unit


def _key_rows(found: dict[str, SampleSet], unit_s: float) -> dict[str, list[str]]:
    return {
        variant: [scaled(samples.percentile(percent).mean, unit_s) for percent in (50, 99)]
        for variant, samples in found.items()
    }


def _percentile_table(found: dict[str, SampleSet], quantity: str) -> list[dict[str, str]]:
    rows = []
    for variant, samples in found.items():
        row = {"quantity": quantity, "variant": variant}
        for percent in PERCENTS:
            estimate = samples.percentile(percent)
            text = format_value(estimate.mean, SECONDS)
            row[f"p{percent}"] = f"{text} {format_interval(estimate, SECONDS)}".strip()
        rows.append(row)
    return rows


def _p99_of(run: RunResults, found: dict[str, SampleSet]) -> dict[str, float]:
    """Of the variants whose p99s are compared, as far as it is known."""
    p99 = {name: samples.percentile(99).mean for name, samples in found.items() if name != run.ideal_variant}
    if len(p99) < 2:  # nothing to compare with but the bound
        p99 = {name: samples.percentile(99).mean for name, samples in found.items()}
    return {name: value for name, value in p99.items() if value}


def _ratio(values: dict[str, float]) -> float:
    """How far they lie apart, in the two digits that count: 1 where there is one, or none."""
    return round(max(values.values()) / min(values.values()), 2) if len(values) > 1 else 1.0


def _gap_title(run: RunResults, found: dict[str, SampleSet], title: str, what: str) -> str:
    """The title with its point: how far the p99 of the variants lie apart."""
    known = _p99_of(run, found)
    if len(known) < 2:
        values = [format_value(value, SECONDS) for value in known.values()]
        return f"{title}: {what} is {values[0]}" if values else title
    best, worst, ratio = ranked_by(known)
    if ratio <= 1.01:
        return f"{title}: no variant differs ({what} within 1\u00a0%)"
    if ratio >= 1.5:
        return f"{title}: {what} is {ratio:.1f} times as long under {worst} as under {best}"
    return f"{title}: {what} is {100 * (ratio - 1):.0f} % longer under {worst} than under {best}"


def _percentile_sentence(run: RunResults, found: dict[str, SampleSet], start: str) -> str:
    p99 = {name: samples.percentile(99).mean or 0.0 for name, samples in found.items()}
    parts = [f"{format_value(p99[name], SECONDS)}{under(name)}" for name in few(run, p99)]
    unfinished = [f"{samples.num_missing}{under(name)}" for name, samples in found.items() if samples.num_missing]
    tail = f"; not finished: {sentence_of(unfinished)}" if unfinished else ""
    return f"{start} {sentence_of(parts)}{tail}."


def _heads(unit: str) -> list[str]:
    return [f"p50 {unit}", f"p99 {unit}"]


def _over_seeds(run: RunResults) -> str:
    return f"curves and numbers: mean of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
