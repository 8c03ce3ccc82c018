"""Where did the time go? The end-to-end latency of a request, stacked from its parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sim.results.drawing import (
    INK,
    QUIET,
    SECONDS,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    few,
    new_figure,
    put_title,
    ranked_by,
    seconds_unit,
    sentence_of,
    shortened,
    under,
)
from sim.results.latency_figures import WORKLOADS_AT_MOST
from sim.results.metrics import format_value, number
from sim.results.run_results import RunResults
from sim.results.samples import table, workloads_in
from sim.serving.time_split import ADAPTER_LOAD

PARTS = {
    "queue": ("#B9B9B9", "queue"),
    "waiting_again": ("#7A7A7A", "waiting again after a preemption"),
    "prefill": ("#0072B2", "prefill"),
    "decode": ("#7CC0E8", "decode"),
    "recompute": ("#5B4A9E", "computed again after a preemption"),
    "host": ("#B8860B", "host"),
    "in_host_communication": ("#009E73", "communication inside the host"),
    "adapter_load": ("#E69F00", "loads of adapters"),
    "fabric": ("#8FC9B4", "fabric, uncontended"),
    "fabric_contention": ("#D55E00", "contention in the fabric"),
    "kv_transfer": ("#AA3377", "transfer of keys and values"),
}
"""Colour and words of each part, as they are stacked: waiting in grey, computing in blue, moving in green and red."""

SOMETIMES = [f"{ADAPTER_LOAD}_s"]
"""Columns that are there only where the part can be; of another workload's requests they are missing."""

VARIANTS_AT_MOST = 8
SLOW_SHARE = 0.1
FEWEST_REQUESTS = 20
"""Below this, the slowest tenth is one request or two, and not drawn."""
LABELLED_FROM = 0.08
"""A part's share of the axis from which its own share stands in it."""


def draw_time_split(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """Bars of the mean request and of the tenth with the longest end-to-end latency, one per variant."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "time_split")[:WORKLOADS_AT_MOST]:
        found = {variant: split for variant in run.variants if (split := _split(run, variant, workload)) is not None}
        if found:
            out.append(_drawn(run, workload, found, styles, len(out) + 1))
    return out


def _split(run: RunResults, variant: str, workload: str) -> tuple[pd.Series, pd.Series | None] | None:
    """(mean seconds of each part, and of the slowest tenth), means over the seeds; None without a completed request.

    Where contention is not told apart, all time in the fabric is `fabric`, and `fabric_contention` is NaN.
    """
    columns = [f"{part}_s" for part in PARTS]
    means, slow = [], []
    for result in run.of_variant(variant):
        everywhere = [column for column in columns if column not in SOMETIMES]
        frame = table(result, "time_split", ["workload", "e2e_s", *everywhere])
        more = table(result, "time_split", SOMETIMES)
        if frame is not None:
            frame = frame.assign(**{
                column: 0.0 if more is None else more[column].fillna(0.0) for column in SOMETIMES
            })  # fmt: skip
        own = None if frame is None else frame[(frame["workload"] == workload).to_numpy()]
        if own is None or own.empty:
            continue
        means.append(own[columns].mean())
        if len(own) >= FEWEST_REQUESTS:
            slow.append(own.nlargest(round(SLOW_SHARE * len(own)), "e2e_s")[columns].mean())
    if not means:
        return None
    mean, slowest = (
        pd.concat(each, axis=1).mean(axis=1, skipna=False).set_axis(list(PARTS)) if each else None
        for each in (means, slow)
    )
    assert mean is not None
    return mean, slowest


def _drawn(
    run: RunResults, workload: str, found: Mapping[str, tuple[pd.Series, pd.Series | None]],
    styles: dict[str, VariantStyle], number_: int,
) -> DrawnFigure:  # fmt: skip
    shown = dict(list(found.items())[:VARIANTS_AT_MOST])
    panels = {"the mean request": {name: mean for name, (mean, _) in shown.items()}}
    if all(slow is not None for _, slow in shown.values()):
        panels["the slowest tenth"] = {name: slow for name, (_, slow) in shown.items() if slow is not None}
    figure = new_figure(WIDTH_IN, 1.75 + 0.46 * len(shown))
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, splits) in zip(drawn, panels.items(), strict=True):
        _draw_bars(axes, splits)
        axes.set_title(title)
    drawn[0].set_yticks(range(len(shown)), ["" if name == "run" else shortened(name, 24) for name in shown])
    for label, name in zip(drawn[0].get_yticklabels(), shown, strict=True):
        label.set_color(styles[name].text_colour)
    bars = pd.DataFrame([split for splits in panels.values() for split in splits.values()]).fillna(0.0)
    used = [part for part in PARTS if bars[part].max() > 1e-3 * bars.sum(axis=1).max()]
    is_told = any(not np.isnan(mean["fabric_contention"]) for mean, _ in shown.values())
    handles = [drawn[0].barh(-9, 0, color=PARTS[p][0], label=_words(p, is_told)) for p in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(used)), frameon=False, fontsize=8.5,
                  labelcolor=INK)  # fmt: skip
    title = _title(workload, {name: mean for name, (mean, _) in found.items()})
    put_title(figure, title, WIDTH_IN)
    caption = _caption(run, workload, found)
    return DrawnFigure(
        f"time-split-{number_}", "Where did the time go?", title, caption,
        f"Stacked bars of the parts of an end-to-end latency, one bar per variant. {caption}", figure,
    )  # fmt: skip


def _draw_bars(axes: Axes, splits: Mapping[str, pd.Series]) -> None:
    reach = max(float(split.sum()) for split in splits.values())
    unit_s, unit = seconds_unit(reach)
    for y, split in enumerate(splits.values()):
        left, whole = 0.0, float(split.sum())
        for part, (colour, _) in PARTS.items():
            width = float(np.nan_to_num(split[part])) / unit_s
            axes.barh(y, width, left=left, color=colour, height=0.62, lw=0)
            if width * unit_s > LABELLED_FROM * 1.15 * reach:
                is_dark = part in ("prefill", "recompute", "waiting_again", "kv_transfer", "fabric_contention",
                                   "in_host_communication", "host")  # fmt: skip
                axes.text(
                    left + width / 2, y, f"{100 * width * unit_s / whole:.0f} %", ha="center", va="center",
                    fontsize=8, color="white" if is_dark else INK,
                )  # fmt: skip
            left += width
        text = format_value(whole, SECONDS)
        axes.text(left + 0.015 * reach / unit_s, y, text, va="center", fontsize=8.5, color=QUIET)
    axes.set(xlim=(0, 1.2 * reach / unit_s), ylim=(len(splits) - 0.45, -0.55), xlabel=f"end-to-end latency ({unit})")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _words(part: str, is_told: bool) -> str:
    """What a part is called; where contention is not told apart, it is in the fabric's time."""
    return PARTS[part][1] if is_told or part != "fabric" else "fabric"


def biggest_part(mean: pd.Series) -> tuple[str, float]:
    """(the largest part, its share of the whole)."""
    part = str(mean.idxmax())
    return part, float(mean[part] / mean.sum())


def _title(workload: str, means: Mapping[str, pd.Series]) -> str:
    """What makes the slowest variant slower than the fastest; where they do not differ, the biggest part."""
    is_told = any(not np.isnan(mean["fabric_contention"]) for mean in means.values())
    fastest, slowest, ratio = ranked_by({name: float(mean.sum()) for name, mean in means.items()})
    if ratio > 1.01:
        growth = (means[slowest] - means[fastest]).fillna(0.0)
        part = str(growth.idxmax())
        is_all = growth[part] > 1.005 * growth.sum()  # other parts shrink
        share = "all of what it adds, and more"
        if not is_all:
            share = f"{100 * growth[part] / growth.sum():.0f} % of what it adds"
        longer = f"{ratio:.1f} times as long" if ratio >= 1.5 else f"{100 * (ratio - 1):.0f} % longer"
        than = "as under" if ratio >= 1.5 else "than under"
        part_words = _words(part, is_told)
        return f"A mean request of {workload} takes {longer}{under(slowest)} {than} {fastest}: {part_words} is {share}"
    part, share_of_all = biggest_part(next(iter(means.values())))
    start = "Most" if share_of_all >= 0.5 else "The biggest part"
    return f"{start} of a mean request of {workload} is {_words(part, is_told)}: {100 * share_of_all:.0f} %"


def _caption(run: RunResults, workload: str, found: Mapping[str, tuple[pd.Series, pd.Series | None]]) -> str:
    means = {name: mean for name, (mean, _) in found.items()}
    is_told = any(not np.isnan(mean["fabric_contention"]) for mean in means.values())
    sentences = []
    for name in few(run, {name: float(mean.sum()) for name, mean in means.items()}):
        mean = means[name].fillna(0.0)
        largest = [part for part in mean.sort_values(ascending=False, kind="stable").index if mean[part] > 0][:3]
        shares = sentence_of([f"{_words(p, is_told)} {number(100 * mean[p] / mean.sum(), 1)} %" for p in largest])
        sentences.append(f"{format_value(float(mean.sum()), SECONDS)}{under(name)} ({shares})")
    text = f"Mean end-to-end latency of {workload}: {sentence_of(sentences)}."
    if not is_told and any(mean["fabric"] > 0 for mean in means.values()):
        text += " Contention is part of the fabric's time; `contention: true` tells it apart."
    text += _held_up(run, workload, max(means, key=lambda name: float(np.nan_to_num(means[name]["fabric_contention"]))))
    if len(found) > VARIANTS_AT_MOST:
        text += f" The first {VARIANTS_AT_MOST} of {len(found)} variants; table time_split has all."
    return text


def _held_up(run: RunResults, workload: str, variant: str) -> str:
    """What held up the messages of a variant: whose other messages, and on which link; means over the seeds."""
    shares = []
    for result in run.of_variant(variant):
        frame = table(result, "contention", ["workload", "link", "with_workload", "share"])
        if frame is not None:
            shares.append(frame[(frame["workload"] == workload).to_numpy()])
    if not shares:
        return ""
    held = pd.concat(shares)
    num = len(run.of_variant(variant))
    by_other, by_link = (
        (held.groupby(name, observed=True)["share"].sum() / num).sort_values(ascending=False, kind="stable")
        for name in ("with_workload", "link")
    )
    names = {"": "nobody else", workload: f"{workload} itself"}
    parts = [f"{100 * share:.0f} % with {names.get(str(other), str(other))}" for other, share in by_other.items()][:3]
    return (
        f" Its messages are held up {100 * by_other.sum():.0f} % of the time that they are under way{under(variant)}: "
        f"{sentence_of(parts)}; most on {by_link.index[0]} ({100 * by_link.iloc[0]:.0f} %)."
    )
