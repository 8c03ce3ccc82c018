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
    """The better of two, how much worse the other is (relative, paired by seed), and how sure that is."""

    best: str
    other: str
    difference: Difference
    state: State

    @property
    def is_decided(self) -> bool:
        return self.state in ("clear", "one seed")

    @property
    def gain(self) -> Estimate:
        """By which share the best is below the other (above, where more is better): 1 - best / other."""
        sign = 1 if (self.difference.relative.mean or 0.0) >= 0 else -1
        return self.difference.relative.mapped(lambda r: sign * r / (1 + r))


@dataclass(frozen=True, slots=True)
class Finding:
    """One set of circumstances: the metric of every contender, a value per seed.

    circumstances  (axis, entry) of each
    ideal          the values on an ideal fabric, which is no contender; None where the run has none
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

    def against(self, best: str, other: str) -> Verdict:
        found = self.difference(other, best)
        return Verdict(best, other, found, state_of(found))

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
    def decision(self) -> str:
        """The winning side (without sides: contender), or why there is none."""
        verdict = self.side_verdict if self.has_sides else self.verdict
        if verdict is None:
            return self.ranked[0] if self.ranked else "no result"
        if not verdict.is_decided:
            return verdict.state
        return self.sides[verdict.best] if self.has_sides else verdict.best

    @property
    def has_sides(self) -> bool:
        return len({self.sides.get(name) for name in self.ranked} - {None}) > 1


def findings_of(run: RunResults) -> list[Finding]:
    """A finding per set of circumstances. Results that were cut short take no part."""
    whole = run.comparable()
    key = main_metric(whole)
    if key is None:
        return []
    return [
        Finding(
            case.circumstances,
            meaning_of(key),
            {name: whole.values(v, key) for name, v in case.variants.items() if name != run.ideal_variant},
            run.sides,
            whole.values(case.variants[run.ideal_variant], key) if run.ideal_variant in case.variants else None,
            run.scenario_name,
        )
        for case in run.cases()
    ]


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
        decided = [(entry, winner) for entry, winner in self.steps if winner not in ("no difference", "contested")]
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
    by how much at most, and where.

    is_short leaves out the last two, and the confidence, as for a title.
    """
    findings = [finding for finding in distinct(findings) if finding.ranked]
    if not findings:
        return "No answer yet: no run was finished."
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.decision, []).append(finding)
    undecided = {name: groups.pop(name, []) for name in ("no difference", "contested")}
    parts = []
    for name, won in sorted(groups.items(), key=lambda item: -len(item[1])):
        parts.append(f"{name} wins {len(won)}{'' if is_short else _at_most(won)}")
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
    return f"{text} ({confidence})."


def _at_most(won: Sequence[Finding]) -> str:
    """`, by up to 14.2 % [13.0, 15.3] (direct all-reduce, 4:1)`."""
    verdicts = [(verdict, f) for f in won if (verdict := f.side_verdict if f.has_sides else f.verdict) is not None]
    if not verdicts:
        return ""
    verdict, finding = max(verdicts, key=lambda pair: pair[0].gain.mean or 0.0)
    return f", by up to {format_percent(verdict.gain, signed=False)} ({finding.label}: {verdict.best})"
