"""Fluid against packets, where `fidelity: auto` ran both: the gap of each variant, its table and its figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from sim.results.metrics import MetricMeaning, common_unit, format_percent, format_value, meaning_of
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, is_missing, mean_interval, ratio_of_means

SECTION = "Fluid against packets"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """relative: packets over fluid of the same seeds, minus 1."""

    fluid: Estimate
    packet: Estimate
    relative: Estimate


def disagreement(run: RunResults, variant: str, key: str) -> Disagreement | None:
    """Of a variant that ran in both; None where one of the two has no value."""
    escalation = run.escalation_of(variant)
    if escalation is None or escalation["fluid"] is None:
        return None
    fluid, packet = run.fluid_values(variant, key), run.values(variant, key)
    pairs = [(f, p) for f, p in zip(fluid, packet, strict=True) if not (is_missing(f) or is_missing(p))]
    if not pairs:
        return None
    f, p = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Disagreement(mean_interval(f), mean_interval(p), ratio_of_means(p, f).mapped(lambda r: r - 1))


def disagreements(run: RunResults, key: str) -> dict[str, Disagreement]:
    """Of all variants that ran in both."""
    found = {name: disagreement(run, name, key) for name in run.variants}
    return {name: gap for name, gap in found.items() if gap is not None}


def fidelity_table(run: RunResults) -> dict[str, Any] | None:
    """Which fidelity each variant's figures come from, why, and how far the two lie apart; None without `auto`."""
    autos = {name: found for name in run.variants if (found := run.escalation_of(name)) is not None}
    if not autos:
        return None
    key = main_metric(run.comparable())
    meaning = meaning_of(key) if key else None
    gaps = disagreements(run, key) if key else {}
    scale = common_unit(meaning, [e.mean for g in gaps.values() for e in (g.fluid, g.packet)]) if meaning else None
    rows = [_row(run, name, found, gaps.get(name), meaning, scale) for name, found in autos.items()]
    return {"label": meaning.full_label if meaning else "", "sentence": _sentence(autos, gaps, meaning), "rows": rows}


def _row(
    run: RunResults,
    name: str,
    escalation: dict[str, Any],
    gap: Disagreement | None,
    meaning: MetricMeaning | None,
    scale: tuple[float, str] | None,
) -> dict[str, Any]:
    fidelity = run.fidelity_of(name) or ""
    texts = {"fluid": "–", "packet": "–", "gap": "–"}
    if meaning is not None and gap is not None:
        texts = {
            "fluid": format_value(gap.fluid.mean, meaning, scale),
            "packet": format_value(gap.packet.mean, meaning, scale),
            "gap": format_percent(gap.relative),
        }
    elif meaning is not None and fidelity:
        texts[fidelity] = format_value(mean_interval(run.values(name, meaning.key)).mean, meaning)
    because = list(escalation["because"])
    if escalation["stays"] is not None:
        because.append(f"stays fluid: {escalation['stays']}")
    return {"name": name, "fidelity": fidelity, **texts, "because": because or ["nothing that fluid leaves out counts"]}


def _sentence(
    autos: dict[str, dict[str, Any]], gaps: dict[str, Disagreement], meaning: MetricMeaning | None
) -> str:
    num_packet = sum(bool(found["because"]) and found["stays"] is None for found in autos.values())
    which = "all" if num_packet == len(autos) else "none" if num_packet == 0 else f"{num_packet} of {len(autos)}"
    text = f"The figures of {which} variants come from packets"
    known = {name: gap.relative.mean for name, gap in gaps.items() if gap.relative.mean is not None}
    if known and meaning is not None:
        name = max(known, key=lambda n: abs(known[n]))
        largest = format_percent(Estimate(known[name], None, None, 1))
        of = f" of {meaning.workload}" if meaning.workload else ""
        text += f"; in the {meaning.label}{of} packets lie at most {largest} from fluid (under {name})"
    return f"{text}."


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
    axes.set_xlabel(literal(f"{meaning.full_label} ({unit})" if unit else meaning.full_label))
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
