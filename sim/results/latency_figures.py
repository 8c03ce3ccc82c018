"""Figures of times: flow completion, token latencies, latency against arrival, collective repetitions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sim.results.drawing import (
    INK,
    QUIET,
    SECONDS,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    draw_key,
    few,
    new_figure,
    plain_log_ticks,
    put_title,
    scaled,
    seconds_unit,
    sentence_of,
    shortened,
    spans_decades,
)
from sim.results.metrics import format_interval, format_value
from sim.results.run_results import RunResults
from sim.results.samples import (
    LATENCIES,
    SampleSet,
    flow_times,
    latencies,
    request_latencies,
    table,
    workloads_in,
)
from sim.results.statistics import cumulative

WORKLOADS_AT_MOST = 4
PERCENTS = (50, 90, 99)
POINTS_AT_MOST = 4000


def draw_flow_times(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """CDF of flow completion times, one figure per workload with flows."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "flows")[:WORKLOADS_AT_MOST]:
        found = flow_times(run, workload)
        if not found or max(samples.num_total for samples in found.values()) < 2:
            continue
        figure = new_figure(WIDTH_IN, 3.4)
        axes, key = figure.subplots(1, 2, width_ratios=[2.1, 1])
        unit = _draw_cdfs(axes, found, styles)
        draw_key(key, styles, _key_rows(found, unit[0]), [f"p50 {unit[1]}", f"p99 {unit[1]}"])
        axes.set(xlabel=f"flow completion time ({unit[1]})", ylabel="share of flows finished")
        title = f"Flow completion times of {workload}"
        put_title(figure, _gap_title(run, found, title, "the p99"), WIDTH_IN)
        caption = _percentile_sentence(run, found, f"99 % of the flows of {workload} finish within")
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
        grid = figure.subplots(len(found), 2, width_ratios=[2.1, 1], squeeze=False)
        for (axes, key), (quantity, samples) in zip(grid, found.items(), strict=True):
            unit = _draw_cdfs(axes, samples, styles)
            draw_key(key, styles, _key_rows(samples, unit[0]), [f"p50 {unit[1]}", f"p99 {unit[1]}"])
            of = "gaps" if quantity == "itl" else "requests"
            axes.set(xlabel=f"{LATENCIES[quantity]} ({unit[1]})", ylabel=f"share of {of}")
        point = next(q for q in ("itl", "ttft", "e2el") if q in found)
        title = f"Latency of {workload}"
        put_title(figure, _gap_title(run, found[point], title, f"p99 {LATENCIES[point]}"), WIDTH_IN)
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


def draw_latency_over_time(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """TTFT and time per output token against arrival: each request a dot, a rolling median as a line."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "requests")[:WORKLOADS_AT_MOST]:
        frames = {}
        for variant in run.variants:
            for result in run.of_variant(variant)[:1]:
                frame = request_latencies(result, workload)
                if frame is not None and np.isfinite(frame["ttft"]).sum() >= 10:
                    frames[variant] = (result.seed, frame.sort_values("arrival_s", kind="stable"))
        if not frames:
            continue
        columns = min(4, len(frames))
        blocks = -(-len(frames) // columns)
        figure = new_figure(WIDTH_IN, 0.7 + 3.1 * blocks)
        grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True, sharey=False)
        for row, quantity in enumerate(["ttft", "tpot"]):
            everything = np.concatenate([f[quantity].to_numpy() for _, f in frames.values()])
            everything = everything[np.isfinite(everything)]
            largest = float(everything.max()) if len(everything) else 1.0
            unit_s, unit = seconds_unit(float(np.percentile(everything, 90)) if len(everything) else 1.0)
            for i, (variant, (_, frame)) in enumerate(frames.items()):
                axes = grid[2 * (i // columns) + row, i % columns]
                _draw_against_arrival(axes, frame, quantity, unit_s, styles[variant])
                axes.set_ylim(0, 1.05 * largest / unit_s)
                if row == 0:
                    axes.set_title(shortened(variant, 24), color=styles[variant].colour)
                if i % columns == 0:
                    axes.set_ylabel(f"{quantity.upper()} ({unit})")
                if row == 1:
                    axes.set_xlabel("arrival (s)")
        for i in range(len(frames), blocks * columns):
            for row in (0, 1):
                grid[2 * (i // columns) + row, i % columns].set_axis_off()
        seed = next(iter(frames.values()))[0]
        title = f"Latency of {workload} against arrival time"
        put_title(figure, title + (f" (seed {seed})" if len(run.seeds) > 1 else ""), WIDTH_IN)
        caption = _drift_sentence(frames)
        out.append(
            DrawnFigure(
                f"latency-over-time-{len(out) + 1}", "Latency over time", title, caption,
                f"Time to first token and time per output token of each request of {workload} against its "
                f"arrival, one column per variant. {caption}", figure,
            )
        )  # fmt: skip
    return out


def draw_repetitions(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """Duration of each repetition of a repeated collective, one line per variant (first seed)."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "collectives")[:WORKLOADS_AT_MOST]:
        lines = {}
        for variant in run.variants:
            for result in run.of_variant(variant)[:1]:
                columns = ["workload", "repetition", "started_s", "finished_s"]
                frame = table(result, "collectives", columns)
                if frame is None:
                    continue
                own = frame[(frame["workload"] == workload).to_numpy()]
                duration = (own["finished_s"] - own["started_s"]).to_numpy(dtype=np.float64)
                if np.isfinite(duration).sum() >= 2:
                    lines[variant] = (own["repetition"].to_numpy(), duration)
        if not lines:
            continue
        figure = new_figure(WIDTH_IN, 3.2)
        axes, key = figure.subplots(1, 2, width_ratios=[2.1, 1])
        largest = max(float(np.nanmax(duration)) for _, duration in lines.values())
        unit_s, unit = seconds_unit(largest)
        rows = {}
        for variant, (repetition, duration) in lines.items():
            look = styles[variant]
            marker = "o" if len(repetition) <= 40 else ""
            axes.plot(
                repetition, duration / unit_s, color=look.colour, linestyle=look.line, marker=marker, ms=3.5
            )
            rows[variant] = [scaled(float(f(duration)), unit_s) for f in (np.nanmedian, np.nanmax)]
        draw_key(key, styles, rows, [f"median {unit}", f"longest {unit}"])
        axes.set(xlabel="repetition", ylabel=f"duration ({unit})", ylim=(0, 1.08 * largest / unit_s))
        title = f"Each repetition of {workload}" + (f" (seed {run.seeds[0]})" if len(run.seeds) > 1 else "")
        put_title(figure, title, WIDTH_IN)
        parts = [
            f"{format_value(float(np.nanmedian(lines[name][1])), SECONDS)} under {name}"
            for name in few(run, list(lines))
        ]
        caption = f"A repetition of {workload} takes a median of {sentence_of(parts)}."
        out.append(
            DrawnFigure(
                f"repetitions-{len(out) + 1}", "Repeated collectives", title, caption,
                f"Duration of each repetition of {workload}, one line per variant. {caption}", figure,
            )
        )  # fmt: skip
    return out


def _draw_cdfs(axes: Axes, found: dict[str, SampleSet], styles: dict[str, VariantStyle]) -> tuple[float, str]:
    pooled = {variant: samples.pooled for variant, samples in found.items()}
    everything = np.concatenate(list(pooled.values()))
    smallest, largest = float(np.percentile(everything, 0.5)), float(everything.max())
    is_log = spans_decades(smallest, largest)
    unit = seconds_unit(float(np.median(everything)) if is_log else largest)
    for variant, samples in pooled.items():
        look = styles[variant]
        x, share = cumulative(samples, found[variant].num_total)
        x, share = np.concatenate([x[:1], x]), np.concatenate([[0.0], share])
        axes.plot(x / unit[0], share, color=look.colour, linestyle=look.line, drawstyle="steps-post")
        p99 = float(np.percentile(samples, 99))
        axes.plot([p99 / unit[0]], [0.99], "o", color=look.colour, ms=5, mec="white", mew=0.8, zorder=4)
    if is_log:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
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


def _gap_title(run: RunResults, found: dict[str, SampleSet], title: str, what: str) -> str:
    """The title with its point: how far the p99 of the variants lie apart."""
    p99 = {name: samples.percentile(99).mean for name, samples in found.items() if name != run.ideal_variant}
    known = {name: value for name, value in p99.items() if value}
    if len(known) < 2:
        return title
    best, worst = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
    ratio = known[worst] / known[best]
    if ratio <= 1.01:
        return f"{title}: the same under every variant"
    if ratio >= 1.5:
        return f"{title}: {what} is {ratio:.1f} times as long under {worst} as under {best}"
    return f"{title}: {what} is {100 * (ratio - 1):.0f} % longer under {worst} than under {best}"


def _percentile_sentence(run: RunResults, found: dict[str, SampleSet], start: str) -> str:
    parts = [
        f"{format_value(found[name].percentile(99).mean, SECONDS)} under {name}"
        for name in few(run, list(found))
    ]
    lost = [
        f"{samples.num_total - sum(map(len, samples.by_seed))} under {name}"
        for name, samples in found.items()
        if samples.num_total > sum(map(len, samples.by_seed))
    ]
    unfinished = f"; not finished: {sentence_of(lost)}" if lost else ""
    return f"{start} {sentence_of(parts)}{unfinished}."


def _draw_against_arrival(axes: Axes, frame, quantity: str, unit_s: float, look: VariantStyle) -> None:
    arrival, value = frame["arrival_s"].to_numpy(), frame[quantity].to_numpy() / unit_s
    is_there = np.isfinite(value)
    arrival, value = arrival[is_there], value[is_there]
    if not len(value):
        return
    step = -(-len(value) // POINTS_AT_MOST)
    axes.plot(arrival[::step], value[::step], ".", ms=3, color=look.colour, alpha=0.3, mew=0, rasterized=True)
    window = max(5, len(value) // 40)
    median = frame[quantity][is_there].rolling(window, center=True, min_periods=max(3, window // 3)).median()
    axes.plot(arrival, median.to_numpy() / unit_s, color=INK, lw=1.4)


def _drift_sentence(frames) -> str:
    """Whether the time to first token grows over the run: medians of its first and last quarter."""
    variant, growth = "", 0.0
    for name, (_, frame) in frames.items():
        ttft = frame["ttft"].dropna().to_numpy()
        quarter = max(1, len(ttft) // 4)
        ratio = float(np.median(ttft[-quarter:]) / max(np.median(ttft[:quarter]), 1e-12))
        if ratio > growth:
            variant, growth = name, ratio
    if growth > 2:
        grows = f"the median time to first token grows {growth:.1f}-fold"
        return (
            f"Under {variant} {grows} from the first to the last quarter of the arrivals: requests pile up."
        )
    return "The median time to first token at most doubles from the first to the last quarter of arrivals."
