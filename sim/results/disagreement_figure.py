"""The figure of fluid against packets."""

from __future__ import annotations

from matplotlib.lines import Line2D

from sim.results.disagreement import disagreements
from sim.results.drawing import (
    INK,
    QUIET,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    literal,
    new_figure,
    put_title,
    shortened,
)
from sim.results.main_metric import main_metric
from sim.results.metrics import common_unit, format_percent, meaning_of
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate

SECTION = "Fluid against packets"


def _dot(label: str, fill: str) -> Line2D:
    """An entry of the legend, in no variant's colour."""
    return Line2D([], [], marker="o", ms=8, ls="", mfc=fill, mec=QUIET, mew=1.6, label=label)


def draw_disagreement(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """The answer's metric of each variant in fluid (hollow) and in packets (full), joined."""
    key = main_metric(run.comparable())
    gaps = disagreements(run, key) if key else {}
    if not gaps or key is None:
        return []
    meaning = meaning_of(key)
    means = [estimate.mean or 0.0 for gap in gaps.values() for estimate in (gap.fluid, gap.packet)]
    factor, unit = common_unit(meaning, [max(means), *means])
    figure = new_figure(WIDTH_IN, 0.42 * len(gaps) + 1.35)
    axes = figure.subplots()
    for y, (name, gap) in enumerate(gaps.items()):
        fluid, packet = ((estimate.mean or 0.0) / factor for estimate in (gap.fluid, gap.packet))
        colour = styles[name].colour
        axes.plot([fluid, packet], [y, y], color=colour, lw=2.4, zorder=2)
        axes.plot(fluid, y, "o", ms=8, mfc="white", mec=colour, mew=1.6, zorder=3)
        axes.plot(packet, y, "o", ms=8, color=colour, zorder=4)
        text = format_percent(Estimate(gap.relative.mean, None, None, 1)) if gap.relative.mean is not None else ""
        axes.text(1.015, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=QUIET)
    axes.set_yticks(range(len(gaps)), [shortened(name, 30) for name in gaps])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set(xlim=(0, 1.05 * max(means) / factor), ylim=(len(gaps) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    better = {"lower": ", less is better", "higher": ", more is better"}.get(meaning.better or "", "")
    axes.set_xlabel(literal(f"{meaning.full_label} ({unit})" if unit else meaning.full_label) + better)
    axes.legend(
        handles=[_dot("fluid", "white"), _dot("packets", QUIET)], loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=2,
        frameon=False, fontsize=9, handletextpad=0.2, borderaxespad=0.1,
    )  # fmt: skip
    known = {name: gap.relative.mean for name, gap in gaps.items() if gap.relative.mean is not None}
    furthest = max(known, key=lambda n: abs(known[n])) if known else None
    title = SECTION
    if furthest is not None:
        size = format_percent(Estimate(abs(known[furthest]), None, None, 1), signed=False)
        side = "above" if known[furthest] > 0 else "below"
        title = f"Packets lie up to {size} {side} fluid: {furthest}"
    put_title(figure, title, WIDTH_IN)
    label = meaning.label[:1].upper() + meaning.label[1:] + (f" of {meaning.workload}" if meaning.workload else "")
    caption = (
        f"{label} of the variants that ran in both, means over {len(run.seeds)} "
        f"seed{'s' * (len(run.seeds) > 1)}: hollow in fluid, full in packets, with which this report goes on."
    )
    parts = "; ".join(f"{name}: {format_percent(Estimate(gap, None, None, 1))}" for name, gap in known.items())
    return [DrawnFigure("disagreement", SECTION, title, caption, f"{caption} {parts}.", figure)]
