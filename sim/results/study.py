"""What a study found: who is best under each set of circumstances, by how much and how surely, and where that flips.

A study is one or several runs whose variants are a product of axes (`compare` with several lists). The last axis holds
the contenders; the others are the circumstances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from sim.results.main_metric import main_metric
from sim.results.metrics import MetricMeaning, format_percent, meaning_of
from sim.results.run_results import RunResults
from sim.results.statistics import Difference, Estimate, paired_difference, present

State = Literal["clear", "no difference", "contested", "one seed"]
Values = list[float | None]
NO_RESULT = "no result"
UNDECIDED = ("no difference", "contested", NO_RESULT)
"""Decisions that name no winner; no result: fewer than two contenders (of different sides) have values."""


def state_of(difference: Difference) -> State:
    """clear: the interval excludes 0 · no difference: it lies within ±1 % · contested: it includes 0 and reaches
    farther · one seed: no interval, and more than 1 % apart."""
    if difference.is_none:
        return "no difference"
    if difference.verdict is None:
        return "one seed"
    return "contested" if difference.verdict == "unclear" else "clear"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The better of two, how far they are apart (paired by seed), and how sure that is.

    difference  other - best
    change      from the other to the best, (best - other) / other; of a share best - other, in points. It has the
                sign of what is better, and no mean where the other one is 0
    """

    best: str
    other: str
    difference: Difference
    state: State
    change: Estimate
    meaning: MetricMeaning

    @property
    def is_decided(self) -> bool:
        return self.state in ("clear", "one seed")

    @property
    def gain(self) -> Estimate:
        """The change, positive where the best is better."""
        sign = 1 if self.meaning.better == "higher" else -1
        return self.change.mapped(lambda change: sign * change)


@dataclass(frozen=True, slots=True)
class Finding:
    """One set of circumstances: the metric of every contender, a value per seed.

    circumstances  (axis, entry) of each
    sides          of the contenders; empty unless the run has two, so that one kind of thing wins in all of a run
    ideal          the values on an ideal fabric, which is no contender; None where there are none
    source         the scenario it comes from
    """

    circumstances: tuple[tuple[str, str], ...]
    meaning: MetricMeaning
    values: dict[str, Values]
    sides: dict[str, str]
    ideal: Values | None = None
    source: str = ""
    ranked: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        known = [name for name in self.values if len(present(self.values[name]))]
        sign = -1.0 if self.meaning.better == "higher" else 1.0
        order = sorted(known, key=lambda name: sign * float(present(self.values[name]).mean()))
        object.__setattr__(self, "ranked", tuple(order))

    @property
    def label(self) -> str:
        return ", ".join(entry for _, entry in self.circumstances)

    @property
    def num_seeds(self) -> int:
        return min((len(present(self.values[name])) for name in self.ranked), default=0)

    def entry(self, axis: str) -> str | None:
        return dict(self.circumstances).get(axis)

    def difference(self, name: str, reference: str) -> Difference:
        """`name` minus `reference`, paired by seed."""
        better = self.meaning.better or "lower"
        return paired_difference(self.values[name], self.values[reference], better, self.meaning.is_share)

    def change(self, name: str, reference: str) -> Estimate:
        """From `reference` to `name`: relative, of a share in points."""
        found = self.difference(name, reference)
        return found.difference if self.meaning.is_share else found.relative

    def against(self, best: str, other: str) -> Verdict:
        found = self.difference(other, best)
        return Verdict(best, other, found, state_of(found), self.change(best, other), self.meaning)

    @property
    def verdict(self) -> Verdict | None:
        """The best contender against the runner-up."""
        return self.against(self.ranked[0], self.ranked[1]) if len(self.ranked) > 1 else None

    @property
    def leaders(self) -> tuple[str, ...]:
        """The best one, and all that cannot be told from it or differ by no more than 1 %."""
        best = self.ranked[:1]
        return best + tuple(name for name in self.ranked[1:] if not self.against(best[0], name).is_decided)

    def best_of(self, side: str) -> str | None:
        return next((name for name in self.ranked if self.sides.get(name) == side), None)

    @property
    def side_verdict(self) -> Verdict | None:
        """The best contender of the winning side against the best of the next one; None with fewer than two sides.

        The best of a side is chosen by its mean, which flatters a side with many contenders a little.
        """
        firsts = [name for side in dict.fromkeys(self.sides.values()) if (name := self.best_of(side)) is not None]
        firsts.sort(key=self.ranked.index)
        return self.against(firsts[0], firsts[1]) if len(firsts) > 1 else None

    @property
    def deciding(self) -> Verdict | None:
        """The verdict between sides, in a run that has them; else between contenders."""
        return self.side_verdict if self.has_sides else self.verdict

    @property
    def decision(self) -> str:
        """The winning side (without sides: contender), or why there is none."""
        verdict = self.deciding
        if verdict is None:
            return NO_RESULT
        if not verdict.is_decided:
            return verdict.state
        return self.sides[verdict.best] if self.has_sides else verdict.best

    @property
    def has_sides(self) -> bool:
        return bool(self.sides)


def sides_of(run: RunResults) -> dict[str, str]:
    """The side of each contender that is on one; empty unless there are two sides."""
    sides = {name: side for name, side in run.sides.items() if name in run.contenders and name != run.ideal_variant}
    return sides if len(set(sides.values())) > 1 else {}


def findings_of(run: RunResults) -> list[Finding]:
    """A finding per set of circumstances. Results that were cut short take no part."""
    whole = run.comparable()
    key = main_metric(whole)
    if key is None:
        return []
    sides = sides_of(run)
    found = []
    for case in run.cases():
        values = {name: whole.values(variant, key) for name, variant in case.variants.items()}
        ideal = values.pop(run.ideal_variant, []) if run.ideal_variant is not None else []
        found.append(
            Finding(
                case.circumstances, meaning_of(key), values, sides, ideal if len(present(ideal)) else None,
                run.scenario_name,
            )
        )  # fmt: skip
    return found


# --- flip points ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Course:
    """What is decided along an ordered axis, everything else being equal: (entry, decision) in the axis' order."""

    axis: str
    others: str
    steps: tuple[tuple[str, str], ...]

    @property
    def flips(self) -> list[tuple[str, str, str, str]]:
        """(last entry, its winner, first entry, its winner) wherever the winner changes; what is not decided between
        the two lies within the flip."""
        decided = [(entry, winner) for entry, winner in self.steps if winner not in UNDECIDED]
        return [(a, x, b, y) for (a, x), (b, y) in pairwise(decided) if x != y]

    @property
    def stretches(self) -> list[tuple[str, str, str]]:
        """(first entry, last entry, decision) of each stretch of equal decisions."""
        found: list[tuple[str, str, str]] = []
        for entry, decision in self.steps:
            if found and found[-1][2] == decision:
                found[-1] = (found[-1][0], entry, decision)
            else:
                found.append((entry, entry, decision))
        return found


def is_ordered(entries: Sequence[str]) -> bool:
    """Whether an axis' entries are quantities: more than one, and a number in each."""
    return len(entries) > 1 and all(re.search(r"\d", entry) for entry in entries)


def courses_of(run: RunResults, findings: Sequence[Finding]) -> Iterator[Course]:
    """Along every ordered axis, one for each combination of the other circumstances."""
    for axis in list(run.axes)[:-1]:
        if not is_ordered(run.axes[axis]):
            continue
        rows: dict[str, list[tuple[str, str]]] = {}
        for finding in findings:
            others = ", ".join(entry for name, entry in finding.circumstances if name != axis)
            rows.setdefault(others, []).append((str(finding.entry(axis)), finding.decision))
        for others, steps in rows.items():
            yield Course(axis, others, tuple(steps))


# --- the answer in words ----------------------------------------------------------------------------------------------


def distinct(findings: Sequence[Finding]) -> list[Finding]:
    """Each case once: the scenarios of a study share the circumstances that they start from. A case is known by its
    values, which of one scenario's may be equal by nature; a contender or a seed may be missing on one side."""
    kept: list[Finding] = []
    for finding in findings:
        if not any(other.source != finding.source and _are_equal(finding, other) for other in kept):
            kept.append(finding)
    return kept


def _are_equal(a: Finding, b: Finding) -> bool:
    pairs = [(a.values[name], b.values[name]) for name in a.values if name in b.values]
    if a.ideal is not None and b.ideal is not None:
        pairs.append((a.ideal, b.ideal))
    return bool(pairs) and all(x == y for left, right in pairs for x, y in zip(left, right, strict=False))


def answer_of(findings: Sequence[Finding], is_short: bool = False) -> str:
    """One computed sentence: of all cases (sets of circumstances), how many each side (without sides: contender) wins,
    by how much at most, and where. A case without a result is not counted.

    is_short, as for a title: where, of those who win one; without by how much, and the confidence.
    """
    known = [finding for finding in distinct(findings) if finding.ranked]
    if not known:
        return "No answer yet: no run was finished."
    findings = [finding for finding in known if finding.decision != NO_RESULT]
    if not findings:
        return "No answer yet: nothing has a rival with results."
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.decision, []).append(finding)
    undecided = {name: groups.pop(name, []) for name in ("no difference", "contested")}
    parts = []
    for name, won in sorted(groups.items(), key=lambda item: -len(item[1])):
        where = f" ({won[0].label})" if len(won) == 1 < len(findings) and won[0].label else ""
        parts.append(f"{name} wins {len(won)}{where if is_short else _at_most(won)}")
    if undecided["no difference"]:
        parts.append(f"no difference in {len(undecided['no difference'])}{'' if is_short else ' (within 1 %)'}")
    if undecided["contested"]:
        parts.append(f"{len(undecided['contested'])} contested{'' if is_short else ' (the interval includes 0)'}")
    text = f"Of {len(findings)} case{'s' * (len(findings) > 1)} {'; '.join(parts)}"
    if is_short:
        return text
    single = sum(finding.num_seeds == 1 for finding in findings)
    seeds = max(finding.num_seeds for finding in findings)
    confidence = f"{seeds} seeds, 95 % CI" if seeds > 1 else "one seed: luck not excluded"
    if single and seeds > 1:
        confidence += f"; {single} with one seed"
    if len(known) > len(findings):
        confidence += f"; {len(known) - len(findings)} more without a result to compare"
    return f"{text} ({confidence})."


def _at_most(won: Sequence[Finding]) -> str:
    """`, by up to 14.2 % [13.0, 15.3] (direct all-reduce, 4:1: adaptive)`."""
    verdicts = [(v, f) for f in won if (v := f.deciding) is not None and v.gain.mean is not None]
    if not verdicts:
        return ""
    verdict, finding = max(verdicts, key=lambda pair: pair[0].gain.mean or 0.0)
    where = f"{finding.label}: {verdict.best}" if finding.label else verdict.best
    return f", by up to {format_change(verdict.gain, verdict.meaning, signed=False)} ({where})"


def format_change(change: Estimate, meaning: MetricMeaning, signed: bool = True) -> str:
    """`−3.4 % [−4.0, −2.9]`; of a share, where it is a difference, `−3.4 points [−4.0, −2.9]`."""
    text = format_percent(change, signed)
    return text.replace("\u00a0%", "\u00a0points") if meaning.is_share else text
