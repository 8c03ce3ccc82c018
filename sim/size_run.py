"""`spindle size`: the fewest accelerators that hold a scenario's load within its targets, for every variant."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from sim.capacity_sweep import QUEUE_WORDS, Probe, by_label, judged, simulating
from sim.console import print_rows, print_text
from sim.engine.interruption import Interruption
from sim.engine.progress import Progress
from sim.results.drawing import image_bytes
from sim.results.run_results import RunResults
from sim.results.size_figure import SizePoint, draw_size
from sim.run import calibration_fingerprint
from sim.size import Candidate, search
from sim.size_question import Sized, SizeQuestion

CANDIDATES, FOUND = "candidates.csv", "size.json"


@dataclass(slots=True)
class Outcome:
    """What was tried: probes by (shape, replicas) of each variant, and the searches that came to their end."""

    question: SizeQuestion
    probes: dict[str, dict[tuple[int, int], Probe]] = field(default_factory=lambda: defaultdict(dict))
    finished: set[str] = field(default_factory=set)

    @property
    def partial(self) -> bool:
        return len(self.finished) < len(self.question.candidates)

    def probe(self, variant: str, sized: Sized) -> Probe | None:
        return self.probes[variant].get((sized.candidate.shape, sized.candidate.replicas))

    def best(self, variant: str) -> Sized | None:
        """The one of least key that was tried and holds."""
        held = [
            sized for sized in self.question.candidates[variant]
            if (probe := self.probe(variant, sized)) is not None and probe.verdict.holds
        ]  # fmt: skip
        return min(held, key=lambda sized: sized.candidate.key, default=None)

    def verdict(self, variant: str, sized: Sized) -> tuple[str, str]:
        """(holds | misses | ruled out | not run, why)."""
        probe = self.probe(variant, sized)
        if probe is not None:
            return ("holds", "") if probe.verdict.holds else ("misses", self.why_missed(probe))
        if sized.ruling is not None:
            return "ruled out", sized.ruling.reason
        shape, replicas = sized.candidate.shape, sized.candidate.replicas
        of_shape = [(count, probe.verdict.holds) for (s, count), probe in self.probes[variant].items() if s == shape]
        if any(not holds and count > replicas for count, holds in of_shape):
            return "not run", "more replicas of this shape miss"
        if any(holds and count < replicas for count, holds in of_shape):
            return "not run", "fewer replicas of this shape hold"
        if (best := self.best(variant)) is not None and sized.candidate.key >= best.candidate.key:
            return "not run", f"no better than {best.shape}, {best.candidate.replicas} replicas, which hold"
        return "not run", "interrupted before"

    def why_missed(self, probe: Probe) -> str:
        missed = probe.verdict.missed or ""
        if missed in QUEUE_WORDS:
            return QUEUE_WORDS[missed]
        found = probe.metrics[missed].mean
        bound = self.question.targets[missed]
        return f"{missed} {'has no value' if found is None else f'is {found:.4g}'}, not within {bound:g}"


def run_size(question: SizeQuestion, folder: Path, workers: int, quiet: bool) -> Outcome:
    """Search every variant, one candidate of each at a time, and keep folder/candidates.csv up to date.

    Ctrl-C ends it; every candidate whose seeds have all run by then is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome, seeds = Outcome(question), question.loaded.seeds
    by_key = {
        label: {(s.candidate.shape, s.candidate.replicas): s for s in candidates}
        for label, candidates in question.candidates.items()
    }
    searches: dict[str, Any] = {}
    wanted: dict[str, Candidate] = {}
    for label, candidates in question.candidates.items():
        shapes: dict[int, list[Candidate]] = defaultdict(list)
        for sized in candidates:
            if sized.ruling is None:
                shapes[sized.candidate.shape].append(sized.candidate)
        searches[label] = search(list(shapes.values()))
        _advance(outcome, searches, wanted, label, None)
    _write_candidates(outcome, folder / CANDIDATES)
    try:
        with (
            Interruption() as interruption,
            Progress(0, quiet) as progress,
            simulating(question.workload, workers, progress, interruption) as simulated,
        ):
            while wanted:
                trying = {label: by_key[label][each.shape, each.replicas] for label, each in wanted.items()}
                jobs = []
                for seed in seeds:
                    for label, sized in trying.items():
                        assert sized.loaded is not None
                        jobs.append((label, dict(sized.loaded.variants)[label], seed))
                progress.total_runs += len(jobs)
                runs = by_label(simulated(jobs), progress)
                for label, sized in trying.items():
                    if len(runs[label]) < len(seeds):
                        continue
                    probe = judged(question.of_candidate(sized), label, 0.0, "", runs[label])
                    outcome.probes[label][sized.candidate.shape, sized.candidate.replicas] = probe
                    _advance(outcome, searches, wanted, label, probe.verdict.holds)
                _write_candidates(outcome, folder / CANDIDATES)
                interruption.check()
    except KeyboardInterrupt:
        pass  # what is missing shows in the searches that did not come to their end
    return outcome


def _advance(outcome: Outcome, searches: Any, wanted: dict[str, Candidate], label: str, holds: bool | None) -> None:
    """Tell a variant's search what came of its candidate, and keep the next one that it wants."""
    try:
        wanted[label] = next(searches[label]) if holds is None else searches[label].send(holds)
    except StopIteration:
        outcome.finished.add(label)
        wanted.pop(label, None)


# --- what is written --------------------------------------------------------------------------------------------------


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """A row per candidate, of plain numbers."""
    rows = []
    question = outcome.question
    for label, candidates in question.candidates.items():
        best = outcome.best(label)
        for sized in candidates:
            probe = outcome.probe(label, sized)
            verdict, why = outcome.verdict(label, sized)
            row: dict[str, Any] = {
                "variant": label, "shape": sized.shape, "replicas": sized.candidate.replicas,
                "accelerators": sized.num_accelerators, "verdict": verdict, "why": why, "is_found": sized is best,
            }  # fmt: skip
            if any(each.dollars_per_hour is not None for each in candidates):
                row["dollars_per_hour"] = sized.dollars_per_hour
            for name in question.targets:
                found = probe.metrics[name] if probe is not None else None
                row[name] = found and found.mean
                row |= {f"{name}.low": found and found.low, f"{name}.high": found and found.high}
                row[f"{name}.at_least"] = sized.floors.get(name)
            row["output_tokens_per_s_per_accelerator"] = probe and probe.tokens_per_s_per_accelerator
            row["cost_per_million_output_tokens"] = probe and probe.cost_per_million_tokens
            row |= {what: probe and getattr(probe, what) for what in ("completed", "failed", "unfinished")}
            rows.append(row)
    return rows


def _write_candidates(outcome: Outcome, path: Path) -> None:
    pd.DataFrame(rows_of(outcome)).to_csv(path, index=False)


def answers(outcome: Outcome) -> list[str]:
    """A sentence per variant."""
    said = []
    for label, candidates in outcome.question.candidates.items():
        best, who = outcome.best(label), "" if len(outcome.question.candidates) == 1 else f"{label}: "
        ran = f"{len(outcome.probes[label])} of {len(candidates)} candidates simulated"
        ruled = sum(sized.ruling is not None for sized in candidates)
        ran += f", {ruled} ruled out before" if ruled else ""
        if best is None:
            said.append(f"{who}no candidate holds ({ran})")
        else:
            num = best.num_accelerators
            plural = "" if best.candidate.replicas == 1 else "s"
            cost = "" if best.dollars_per_hour is None else f", ${best.dollars_per_hour:g} an hour"
            said.append(f"{who}{num} accelerator{'s' * (num != 1)} hold: {best.shape}, {best.candidate.replicas} "
                        f"replica{plural}{cost} ({ran})")  # fmt: skip
        if label not in outcome.finished:
            said.append(f"{who}interrupted, so that there may be a better one")
    missed = {probe.verdict.missed for probes in outcome.probes.values() for probe in probes.values()}
    if "too short" in missed:
        said.append("some arrivals are over before a queue could show; raise num_requests, or take a longer trace")
    if "backlogged" in missed:
        said.append("some waits grow, or seem to; more requests or seeds would tell")
    if len(outcome.question.loaded.seeds) == 1:
        said.append("one seed, so no intervals; --seeds 5 gives them (a trace is the same with every seed)")
    return said


def _shown(outcome: Outcome) -> list[dict[str, Any]]:
    """For people: without what was not run, ruled out once where several numbers of replicas were for one reason."""
    rows: list[dict[str, Any]] = []
    last: tuple[Any, ...] = ()
    several = len(outcome.question.candidates) > 1
    for row in rows_of(outcome):
        if row["verdict"] == "not run":
            continue
        shown: dict[str, Any] = {"variant": row["variant"]} if several else {}
        shown |= {"shape": row["shape"], "replicas": str(row["replicas"]), "accelerators": row["accelerators"]}
        if row.get("dollars_per_hour") is not None:
            shown["$ per hour"] = row["dollars_per_hour"]
        shown["verdict"] = "holds, found" if row["is_found"] else row["verdict"]
        for name, bound in outcome.question.targets.items():
            low, high = row[f"{name}.low"], row[f"{name}.high"]
            around = "" if low is None else f" [{low:.4g}, {high:.4g}]"
            shown[f"{name} <= {bound:g}"] = None if row[name] is None else f"{row[name]:.4g}{around}"
        shown["why"] = row["why"] or None
        same = (row["variant"], row["shape"], row["verdict"], row["why"].partition(", and there ")[0])
        if row["verdict"] == "ruled out" and same == last:
            for key in ("replicas", "accelerators", "$ per hour"):
                if key in shown:
                    rows[-1][key] = f"{str(rows[-1][key]).partition(' ')[0]} to {shown[key]}"
            rows[-1]["why"] = same[-1]
        else:
            rows.append(shown)
        last = same
    return rows


def _draw(outcome: Outcome, folder: Path) -> list[Path]:
    """A figure for each variant."""
    question, loaded, drawn = outcome.question, outcome.question.loaded, []
    for i, (label, candidates) in enumerate(question.candidates.items(), 1):
        points = []
        best = outcome.best(label)
        for sized in candidates:
            probe = outcome.probe(label, sized)
            if sized.num_accelerators is None or (probe is None and sized.ruling is None):
                continue
            known = sized.floors if probe is None else {name: probe.metrics[name].mean for name in question.targets}
            points.append(SizePoint(
                sized.shape, sized.candidate.replicas, sized.num_accelerators,
                {name: known.get(name) for name in question.targets}, probe is not None and probe.verdict.holds,
                sized is best, None if sized.ruling is None else sized.ruling.short,
            ))  # fmt: skip
        shapes = tuple(dict.fromkeys(sized.shape for sized in candidates))
        about = RunResults(
            loaded.name, loaded.question, tuple(loaded.seeds), shapes, version("spindle-sim"),
            calibration_fingerprint(s.cost.table for _, s in loaded.variants if s.cost.table),
        )  # fmt: skip
        variant = label if len(question.candidates) > 1 else ""
        figure = draw_size(about, question.workload, question.targets, points, variant)
        if figure is not None:
            drawn.append(folder / ("size.png" if len(question.candidates) == 1 else f"size-{i}.png"))
            drawn[-1].write_bytes(image_bytes(figure, "png", about))
    return drawn


def command(question: SizeQuestion, folder: Path, workers: int, quiet: bool, as_json: bool) -> bool:
    """Search, write, print; True when it was interrupted."""
    outcome = run_size(question, folder, workers, quiet)
    rows = rows_of(outcome)
    (folder / FOUND).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = _draw(outcome, folder)
    if as_json:
        print_rows(rows, "", as_json)
    elif not quiet:
        print_rows(_shown(outcome), f"Sizes of {question.workload}", as_json)
        print_text("\n".join([*answers(outcome), *map(str, drawn or [folder])]))
    return outcome.partial
