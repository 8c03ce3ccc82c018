"""Figures of what changes in the course of a run: latency against arrival, repetitions of a collective."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sim.results.drawing import (
    INK,
    SECONDS,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    draw_key,
    few,
    line_widths,
    new_figure,
    of_one_seed,
    panel_title,
    put_title,
    ranked_by,
    scaled,
    seconds_unit,
    sentence_of,
    under,
)
from sim.results.latency_figures import WORKLOADS_AT_MOST
from sim.results.metrics import format_value
from sim.results.run_results import RunResults, VariantResult
from sim.results.samples import LATENCIES, request_latencies, table, workloads_in

POINTS_AT_MOST = 4000
FAULTY = "#ececec"
PEAK = 8.0
"""A longest latency so many times the p99 is a peak, and no tail: of an exponential law a thousand requests reach 1.5
times their p99, of a lognormal one of sigma 1 four times."""

Fault = tuple[float, float, str]
"""From when until when, in seconds, and what."""


def faults_of(result: VariantResult) -> list[Fault]:
    """What was down or slower during a run."""
    return [
        (row["at_s"], np.inf if row["until_s"] is None else row["until_s"], row["what"])
        for row in result.notes.get("faults", ())
    ]


def draw_latency_over_time(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """TTFT and time per output token against arrival: each request a dot, a rolling median as a line."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "requests")[:WORKLOADS_AT_MOST]:
        frames = {}
        for variant in run.variants:
            for result in run.of_variant(variant)[:1]:
                frame = request_latencies(result, workload)
                is_spread = frame is not None and np.ptp(frame["arrival_s"]) > 0  # a batch that is all there is not
                if frame is not None and is_spread and np.isfinite(frame["ttft"]).sum() >= 10:
                    frames[variant] = (result.seed, frame.sort_values("arrival_s", kind="stable"))
        if not frames:
            continue
        faults = {name: faults_of(run.of_variant(name)[0]) for name in frames}
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
                for at_s, until_s, _ in faults[variant]:
                    last_s = float(frame["arrival_s"].max())
                    if at_s < last_s:
                        axes.axvspan(at_s, min(until_s, last_s), color=FAULTY, lw=0, zorder=0)
                axes.set_ylim(0, 1.05 * largest / unit_s)
                axes.tick_params(labelleft=i % columns == 0, labelbottom=row == 1)
                if row == 0:
                    axes.set_title(panel_title(variant), color=styles[variant].text_colour)
                if i % columns == 0:
                    axes.set_ylabel(f"{quantity.upper()} ({unit})")
                if row == 1:
                    axes.set_xlabel("arrival (s)")
        for i in range(len(frames), blocks * columns):
            for row in (0, 1):
                grid[2 * (i // columns) + row, i % columns].set_axis_off()
        own = {name: frame for name, (_, frame) in frames.items()}
        title, caption = _drift_words(run, workload, own)
        peaks = _peak_words(run, workload, own, faults)
        if peaks is not None:
            title, caption = peaks[0], f"{peaks[1]} {caption}"
        if any(faults.values()):
            caption += " Shaded: while something is down or slower."
        title += of_one_seed(run, (seed for seed, _ in frames.values()))
        put_title(figure, title, WIDTH_IN)
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
        lines, seeds = {}, []
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
                    seeds.append(result.seed)
        if not lines:
            continue
        figure = new_figure(WIDTH_IN, 3.2)
        axes, key = figure.subplots(1, 2, width_ratios=[1.85, 1])
        largest = max(float(np.nanmax(duration)) for _, duration in lines.values())
        unit_s, unit = seconds_unit(largest)
        rows = {}
        widths = line_widths([duration for _, duration in lines.values()])
        for (variant, (repetition, duration)), width in zip(lines.items(), widths, strict=True):
            marker = "o" if len(repetition) <= 40 else ""
            axes.plot(repetition, duration / unit_s, **styles[variant].line_of(width), marker=marker, ms=3.5)
            rows[variant] = [scaled(float(f(duration)), unit_s) for f in (np.nanmedian, np.nanmax)]
        draw_key(key, styles, rows, ["median", "longest"], unit)
        axes.set(xlabel="repetition", ylabel=f"duration ({unit})", ylim=(0, 1.08 * largest / unit_s))
        title = f"Repetitions of {workload}"
        medians = {name: float(np.nanmedian(duration)) for name, (_, duration) in lines.items()}
        best, worst, ratio = ranked_by(medians)
        if len(lines) > 1:
            by = f"{ratio:.2f} times as long under {worst} as under {best}"
            title = f"{title} take {by}" if ratio > 1.01 else f"{title} take the same under every variant"
        title += of_one_seed(run, seeds)
        put_title(figure, title, WIDTH_IN)
        parts = [f"{format_value(medians[name], SECONDS)}{under(name)}" for name in few(run, medians)]
        caption = f"A repetition of {workload} takes a median of {sentence_of(parts)}."
        out.append(
            DrawnFigure(
                f"repetitions-{len(out) + 1}", "Repeated collectives", title, caption,
                f"Duration of each repetition of {workload}, one line per variant. {caption}", figure,
            )
        )  # fmt: skip
    return out


def _draw_against_arrival(axes: Axes, frame, quantity: str, unit_s: float, look: VariantStyle) -> None:
    arrival, value = frame["arrival_s"].to_numpy(), frame[quantity].to_numpy() / unit_s
    is_there = np.isfinite(value)
    arrival, value = arrival[is_there], value[is_there]
    if not len(value):
        return
    step = -(-len(value) // POINTS_AT_MOST)
    axes.plot(
        arrival[::step],
        value[::step],
        ".",
        ms=3.5,
        color=look.colour,
        alpha=0.3 if len(value) > 800 else 0.55,
        mew=0,
        rasterized=True,
    )
    window = max(15, len(value) // 30)
    median = frame[quantity][is_there].rolling(window, center=True, min_periods=max(3, window // 3)).median()
    axes.plot(arrival, median.to_numpy() / unit_s, color=INK, lw=1.4)


def _drift_words(run: RunResults, workload: str, frames: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """Title and caption: where the last quarter of the arrivals waits longer, or shorter, than the first.

    The medians of both quarters are compared; a change by less than a quarter is called none.
    """
    said, numbers = [], []
    for quantity in ("ttft", "tpot"):
        ends = {name: _medians(frames[name][quantity].dropna().to_numpy()) for name in frames}
        ends = {name: (first, last) for name, (first, last) in ends.items() if first > 0}
        if not ends:
            continue
        change = {name: last / first for name, (first, last) in ends.items()}
        said.append((LATENCIES[quantity], _trend(change)))
        parts = [
            f"{format_value(ends[n][0], SECONDS)} and {format_value(ends[n][1], SECONDS)}{under(n)}"
            for n in few(run, change)
        ]
        numbers.append(f"{LATENCIES[quantity]} {sentence_of(parts)}")
    if not said:
        return f"Latency of {workload}", f"Too few requests of {workload} got far enough to compare."
    caption = f"Medians over the first and the last quarter of the arrivals: {'; '.join(numbers)}."
    if len(said) == 2 and said[0][1] == said[1][1]:
        return f"Latency of {workload} {said[0][1]}", caption
    title = ", ".join(f"{label} {trend}" for label, trend in said)
    return f"Over the arrivals of {workload}, {title}", caption


def _peak_words(
    run: RunResults, workload: str, frames: dict[str, pd.DataFrame], faults: dict[str, list[Fault]]
) -> tuple[str, str] | None:
    """Title and caption, where a request under some variant waits far longer for its first token than others there.

    A fault is named where it begins while that request waits, or where the request comes while it lasts.
    """
    peaks: dict[str, tuple[float, float, str]] = {}
    for name, frame in frames.items():
        frame = frame[np.isfinite(frame["ttft"].to_numpy())]
        if not len(frame):
            continue
        ttft_s, arrival_s = frame["ttft"].to_numpy(), frame["arrival_s"].to_numpy()
        most = int(np.argmax(ttft_s))
        p99_s = float(np.percentile(ttft_s, 99))
        if ttft_s[most] >= PEAK * p99_s > 0:
            arrived_s, answered_s = arrival_s[most], arrival_s[most] + ttft_s[most]
            why = [f", as {_happening(what, 'goes down', 'begins')}" for at_s, _, what in faults[name]
                   if arrived_s <= at_s <= answered_s]  # fmt: skip
            why += [f", while {_happening(what, 'is down', 'lasts')}" for at_s, until_s, what in faults[name]
                    if at_s < arrived_s < until_s]  # fmt: skip
            peaks[name] = (float(ttft_s[most]), p99_s, why[0] if why else f", of a request at {arrived_s:.4g}\u00a0s")
    if not peaks:
        return None
    first = max(peaks, key=lambda name: peaks[name][0])
    most_s, _, why_first = peaks[first]
    title = f"Time to first token of {workload} peaks at {format_value(most_s, SECONDS)}{under(first)}{why_first}"
    parts = [f"{format_value(most, SECONDS)} against a p99 of {format_value(p99, SECONDS)}{under(name)}{why}"
             for name in run.variants if name in peaks for most, p99, why in [peaks[name]]]  # fmt: skip
    return title, f"Longest times to first token: {'; '.join(parts)}."


def _happening(what: str, of_death: str, of_others: str) -> str:
    """`host1 goes down`, of a fault called `host1 down`."""
    return f"{what.removesuffix(' down')} {of_death}" if what.endswith(" down") else f"{what} {of_others}"


def _medians(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the first and the last quarter; zeros where there is nothing."""
    quarter = max(1, len(values) // 4)
    return (float(np.median(values[:quarter])), float(np.median(values[-quarter:]))) if len(values) else (0.0, 0.0)


def _trend(change: dict[str, float]) -> str:
    """What the last over the first quarter amounts to, in words that hold for every variant."""
    rising = {name: ratio for name, ratio in change.items() if ratio >= 1.25}
    falling = {name: ratio for name, ratio in change.items() if ratio <= 0.8}
    if not rising and not falling:
        return "ends at about the level it began with"
    parts = []
    if rising:
        most = max(rising, key=lambda name: rising[name])
        parts.append(_where("grows", "up to", f"{rising[most]:.1f}-fold", most, len(rising), len(change)))
    if falling:
        least = min(falling, key=lambda name: falling[name])
        share = f"to {100 * falling[least]:.0f}\u00a0%"
        parts.append(_where("falls", "down", share, least, len(falling), len(change)))
    return " and ".join(parts)


def _where(verb: str, at_most: str, extent: str, extreme: str, num_so: int, num_variants: int) -> str:
    """`grows 3.2-fold under ecmp`, `falls under every variant, down to 40 %`."""
    if num_so == num_variants > 1:
        return f"{verb} under every variant, {at_most} {extent}"
    return f"{verb} {extent}{under(extreme)}"
