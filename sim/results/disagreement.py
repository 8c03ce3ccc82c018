"""Fluid against packets, where `fidelity: auto` ran both: the gap of each variant, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.results.main_metric import main_metric
from sim.results.metrics import MetricMeaning, common_unit, format_percent, format_value, meaning_of
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval, paired_difference


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Packets minus fluid, and packets over fluid minus 1 (`relative`), paired by seed."""

    fluid: Estimate
    packet: Estimate
    difference: Estimate
    relative: Estimate


def disagreement(run: RunResults, variant: str, key: str) -> Disagreement | None:
    """Of a variant that ran in both; None where one of the two has no value."""
    escalation = run.escalation_of(variant)
    if escalation is None or escalation["fluid"] is None:
        return None
    fluid, packet = run.fluid_values(variant, key), run.values(variant, key)
    gap = paired_difference(packet, fluid)
    if gap.difference.mean is None:
        return None
    return Disagreement(mean_interval(fluid), mean_interval(packet), gap.difference, gap.relative)


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
