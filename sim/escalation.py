"""`fidelity: auto`: which variants run again packet by packet, and why.

Every variant has run in fluid (or, where only packets can express it, in packets). A variant escalates for reasons of
its own: what it asks of switches and transports, loss, an incast, short flows; and because its verdict against the
best is contested. With it escalate its *rivals*, the variants of the same traffic on the same cluster: figures of two
fidelities do not compare. See docs/decisions/009-escalation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sim.escalation_reasons import columns_of, percent, reasons_of_settings, reasons_of_traffic
from sim.results.disagreement import disagreement
from sim.results.headline import ranked
from sim.results.main_metric import main_metric
from sim.results.metrics import MetricMeaning, format_value, meaning_of
from sim.results.run_results import Case, RunResults, VariantResult
from sim.results.statistics import mean_interval, paired_difference
from sim.scenario.estimate import MOST_PACKET_HOPS, PACKET_HOPS_PER_S, planned_cost
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario

FIDELITY_ERROR = 0.05
"""How far fluid and packets may lie apart where fluid is of use: what `spindle validate` holds them to."""

@dataclass(slots=True)
class PlannedHops:
    """Packet-hops of the traffic that a variant plans; worked out once for all variants that send the same."""

    known: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, scenario: Scenario, seed: int) -> int:
        sent = scenario.model_dump_json(include={"cluster", "workloads", "packet", "fidelity"}), seed
        if sent not in self.known:
            self.known[sent] = planned_cost(scenario, seed).packet_hops
        return self.known[sent]


@dataclass(slots=True)
class Decision:
    """because: sentences per variant that runs again (or ran in packets from the start); empty: fluid is enough.

    stays: variants with reasons that fluid has to do for all the same, and why.
    too_costly: those of `stays` that only the limit on packet-hops keeps in fluid.
    """

    because: dict[str, list[str]] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    too_costly: set[str] = field(default_factory=set)
    planned: PlannedHops = field(default_factory=PlannedHops)

    def to_run(self, loaded: LoadedScenario, run: RunResults) -> list[tuple[str, Scenario]]:
        """What is to run again, at packet level, and has not."""
        return [
            (label, scenario.in_fidelity("packet"))
            for label, scenario in loaded.variants
            if self.because.get(label) and label not in self.stays and run.fidelity_of(label) == "fluid"
        ]


def decide(loaded: LoadedScenario, run: RunResults, most_packet_hops: float | None = None) -> Decision:
    """From the first results of every variant and seed; depends on nothing else but the limit on packet-hops."""
    autos = {label: scenario for label, scenario in loaded.variants if scenario.fidelity == "auto"}
    decision = Decision({label: [] for label in autos})
    for label, scenario in autos.items():
        decision.because[label] += [_first_clause(sentence) for _, sentence in scenario.why_not("fluid")]
        decision.because[label] += reasons_of_settings(scenario)
        if scenario.first_fidelity == "fluid":
            decision.because[label] += reasons_of_traffic(scenario, run.of_variant(label))
    _complete(decision, contested(run), loaded, run, most_packet_hops)
    return decision


def decide_again(
    loaded: LoadedScenario, run: RunResults, decision: Decision, most_packet_hops: float | None = None
) -> None:
    """Once packets are there: the best one may be another, or so far from fluid that its lead over fluid is open."""
    _complete(decision, contested_anew(run), loaded, run, most_packet_hops)


def _complete(
    decision: Decision, contests: Mapping[str, str], loaded: LoadedScenario, run: RunResults, most: float | None
) -> None:
    for label, reason in contests.items():
        if label in decision.because:
            decision.because[label].append(reason)
    for rivals in groups_of_rivals(loaded.variants):
        _close(rivals, dict(loaded.variants), decision)
    _keep_within_budget(loaded, run, decision, most or MOST_PACKET_HOPS)


def _first_clause(sentence: str) -> str:
    return sentence.partition(";")[0]


# --- rivals -----------------------------------------------------------------------------------------------------------


def contested(run: RunResults) -> dict[str, str]:
    """Variants whose verdict on the metric that answers the question fluid cannot give, and the best with them.

    Among the contenders of each case that ran in fluid: what ran in packets does not compare with them, nor do
    variants under other circumstances.
    """
    whole = run.comparable()
    in_fluid = tuple(name for name in whole.variants if whole.fidelity_of(name) == "fluid")
    key = main_metric(replace(whole, variants=in_fluid))
    cases = [[name for name in _contenders(whole, case) if name in in_fluid] for case in whole.cases()]
    if key is None or (run.answer is not None and key != run.answer):
        missing = f"the answer, {run.answer}, is a metric of packets"
        return {name: missing for names in cases for name in names} if run.answer is not None else {}
    found: dict[str, str] = {}
    for names in cases:
        found |= _contested_in_case(whole, names, meaning_of(key))
    return found


def _contenders(run: RunResults, case: Case) -> list[str]:
    """The variants of a case that compete: with axes, the ideal one is named by its contender."""
    return [variant for contender, variant in case.variants.items() if contender != run.ideal_variant]


def _contested_in_case(run: RunResults, contenders: Sequence[str], meaning: MetricMeaning) -> dict[str, str]:
    means = {name: mean_interval(run.values(name, meaning.key)).mean for name in contenders}
    names = ranked(means, meaning.better)
    found: dict[str, str] = {}
    for name in names[1:]:
        best = names[0]
        gap = paired_difference(*run.paired(name, best, meaning.key), meaning.better, meaning.is_share)
        apart = gap.difference.mean if meaning.is_share else gap.relative.mean
        if apart is None:
            continue
        own, other = format_value(means[name], meaning), format_value(means[best], meaning)
        if abs(apart) < FIDELITY_ERROR:
            by = percent(apart) if abs(apart) >= 0.0005 else "less than 0.1 %"
            why = f"{by} apart in fluid, which may be {percent(FIDELITY_ERROR)} off"
        elif gap.verdict == "unclear":
            why = "an interval that includes 0"
        else:
            continue
        found.setdefault(best, f"contested: {meaning.label} {other}, {name} {own}: {why}")
        found[name] = f"contested: {meaning.label} {own}, {best} {other}: {why}"
    return found


def contested_anew(run: RunResults) -> dict[str, str]:
    """Contenders left in fluid that are, in fluid, no further from the best one of their case in packets than packets
    moved that one.

    Its shift stands for what packets would do to the others.
    """
    whole = run.comparable()
    key = main_metric(whole)
    found: dict[str, str] = {}
    for case in whole.cases() if key is not None else ():
        autos = [name for name in _contenders(whole, case) if whole.escalation_of(name) is not None]
        if whole.mixes_fidelities(autos):
            found |= _contested_anew_in_case(whole, autos, meaning_of(str(key)))
    return found


def _contested_anew_in_case(run: RunResults, autos: Sequence[str], meaning: MetricMeaning) -> dict[str, str]:
    gaps = {name: gap for name in autos if (gap := disagreement(run, name, meaning.key)) is not None}
    best = next(iter(ranked({name: gap.packet.mean for name, gap in gaps.items()}, meaning.better)), None)
    if best is None:
        return {}
    moved = gaps[best].difference.mean if meaning.is_share else gaps[best].relative.mean
    shift = abs(moved or 0.0)
    found = {}
    for name in autos:
        lead = paired_difference(*run.paired(name, best, meaning.key), meaning.better, meaning.is_share)
        apart = lead.difference.mean if meaning.is_share else lead.relative.mean
        if not run.compares_in_fluid(name, best) or apart is None or abs(apart) >= max(FIDELITY_ERROR, shift):
            continue
        found[name] = (
            f"contested anew: {percent(apart)} from {best} in fluid, whose {meaning.label} packets moved by "
            f"{percent(shift)}"
        )
    return found


def groups_of_rivals(variants: Sequence[tuple[str, Scenario]]) -> list[list[str]]:
    """Labels of variants that carry the same traffic over the same cluster."""
    groups: dict[str, list[str]] = {}
    for label, scenario in variants:
        same = scenario.model_dump_json(include={"cluster", "workloads", "cost", "max_time_s"})
        groups.setdefault(same, []).append(label)
    return list(groups.values())


def _close(rivals: Sequence[str], scenarios: Mapping[str, Scenario], decision: Decision) -> None:
    """One that escalates takes its rivals along; what packets cannot express stays in fluid."""
    why_not = {
        name: [_first_clause(sentence) for _, sentence in scenarios[name].why_not("packet")]
        for name in rivals
        if scenarios[name].fidelity == "auto"
    }
    first = next(
        (n for n in rivals if scenarios[n].fidelity == "packet" or (decision.because.get(n) and not why_not[n])), None
    )
    for name, sentences in why_not.items():
        if first is not None and not decision.because[name]:
            decision.because[name].append(f"rival of {first}: figures of two fidelities do not compare")
        if decision.because[name] and sentences:
            decision.stays[name] = sentences[0]


# --- cost -------------------------------------------------------------------------------------------------------------


def _keep_within_budget(loaded: LoadedScenario, run: RunResults, decision: Decision, most: float) -> None:
    """Group by group, in the scenario's order, as long as the packet-hops of all together stay below the limit."""
    for name in decision.too_costly:
        del decision.stays[name]
    decision.too_costly.clear()
    wanted = [label for label, _ in decision.to_run(loaded, run)]
    if not wanted:
        return
    hops_of = {
        label: _packet_hops(scenario, run.of_variant(label), decision.planned)
        for label, scenario in loaded.variants
        if label in wanted or run.fidelity_of(label) == "packet"
    }
    spent = sum(hops for label, hops in hops_of.items() if label not in wanted)
    for rivals in groups_of_rivals(loaded.variants):
        chosen = [name for name in rivals if name in wanted]
        hops = sum(hops_of[name] for name in chosen)
        if spent + hops <= most:
            spent += hops
            continue
        enough = _rounded_up(sum(hops_of.values()))
        decision.too_costly.update(chosen)
        for name in chosen:
            decision.stays[name] = (
                f"it and its rivals need about {hops:.2g} packet-hops ({hops / PACKET_HOPS_PER_S / 60:.0f} minutes of "
                f"one core), {spent + hops:.2g} with what runs in packets already, above the {most:.2g} allowed; "
                f"--max-packet-hops {enough:.2g} allows all that fluid is not enough for"
            )


def _rounded_up(hops: float) -> float:
    """To two digits, so that what is proposed is enough."""
    step = 10.0 ** (math.floor(math.log10(hops)) - 1)
    return math.ceil(hops / step) * step


def _packet_hops(scenario: Scenario, results: Sequence[VariantResult], planned: PlannedHops) -> float:
    """Of all seeds: what is planned, or what the runs carried over their links, whichever is more."""
    carried = 0.0
    for result in results:
        if "links" not in result.tables:
            continue
        links = columns_of(result, "links", ["tier", "wire_bytes"])
        carried += float(links.wire_bytes[links.tier != "injection"].sum()) / scenario.packet.mtu_bytes
    return max(planned.of(scenario, results[0].seed) * len(results), carried)
