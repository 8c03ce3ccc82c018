"""`spindle sweep --target`: the highest rate of a serving workload at which its targets hold, for every variant."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.capacity import Verdict, search
from sim.capacity_probe import LATENCIES, Probed, at_rate, probed, serving_workload
from sim.capacity_question import Question
from sim.console import print_rows, print_text
from sim.engine.interruption import Interruption
from sim.engine.progress import Progress
from sim.results.capacity_figure import CapacityCurve, CurvePoint, draw_capacity
from sim.results.drawing import image_bytes, sentence_of
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval
from sim.run import calibration_fingerprint
from sim.scenario.schema import Scenario
from sim.serving.load import Load, load_of
from sim.workers import Job, one_by_one, worker_pool

IDLE = 0.01
"""Requests in the service at a time, on average, below which a lower rate would change nothing."""
QUEUE_WORDS = {"too short": "the arrivals are over too soon to tell", "backlogged": "waits grow, or seem to",
               "overloaded": "waits grow"}  # fmt: skip
PROBES, FOUND, FIGURE = "probes.csv", "capacity.json", "capacity.png"


@dataclass(frozen=True, slots=True)
class Probe:
    """All seeds of a variant at one rate. metrics: over the seeds; tokens are output tokens."""

    rate_per_s: float
    setting: str
    verdict: Verdict
    load: Load
    growth: float
    metrics: dict[str, Estimate]
    tokens_per_s_per_accelerator: float | None
    cost_per_million_tokens: float | None
    completed: int
    failed: int
    unfinished: int


@dataclass(slots=True)
class Outcome:
    """The probes of each variant in the order of the search, and which searches came to their end."""

    question: Question
    probes: dict[str, list[Probe]] = field(default_factory=lambda: defaultdict(list))
    finished: set[str] = field(default_factory=set)

    @property
    def partial(self) -> bool:
        return len(self.finished) < len(self.question.loaded.variants)

    def best(self, variant: str) -> Probe | None:
        """The highest rate that held."""
        return max((p for p in self.probes[variant] if p.verdict.holds), key=lambda p: p.rate_per_s, default=None)

    def next_above(self, variant: str) -> Probe | None:
        """The lowest rate tried that did not hold."""
        return min((p for p in self.probes[variant] if not p.verdict.holds), key=lambda p: p.rate_per_s, default=None)


# --- the search -------------------------------------------------------------------------------------------------------

Simulate = Callable[[list[Job]], Iterator[Probed | None]]


def by_label(runs: Iterable[Probed | None], progress: Progress) -> dict[str, list[Probed]]:
    """What has run to its end, of each variant."""
    found: dict[str, list[Probed]] = defaultdict(list)
    for run in runs:
        if run is not None:
            found[run.label].append(run)
            progress.finish_run(f"{run.label}, seed {run.seed}")
    return found


def run_capacity(question: Question, folder: Path, workers: int, quiet: bool) -> Outcome:
    """Search every variant, one rate of each at a time, and keep folder/probes.csv up to date.

    Ctrl-C ends it; every rate whose seeds have all run by then is kept, and they bracket the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(question)
    scenarios, seeds = dict(question.loaded.variants), question.loaded.seeds
    searches = {label: search(question.rates_per_s[label], question.tolerance) for label in scenarios}
    wanted = {label: next(rates) for label, rates in searches.items()}
    try:
        with (
            Interruption() as interruption,
            Progress(0, quiet) as progress,
            simulating(question.workload, workers, progress, interruption) as simulated,
        ):
            while wanted:
                changed = {
                    label: at_rate(scenarios[label], question.workload, rate / question.rates_per_s[label])
                    for label, rate in wanted.items()
                }
                jobs = [(label, scenario, seed) for seed in seeds for label, (scenario, _) in changed.items()]
                progress.total_runs += len(jobs)
                runs = by_label(simulated(jobs), progress)
                for label, rate in list(wanted.items()):
                    if len(runs[label]) < len(seeds):
                        continue
                    probe = judged(question, label, rate, changed[label][1], runs[label])
                    outcome.probes[label].append(probe)
                    try:
                        wanted[label] = searches[label].send(probe.verdict)
                    except StopIteration:
                        outcome.finished.add(label)
                        del wanted[label]
                _write_probes(outcome, folder / PROBES)
                interruption.check()
    except KeyboardInterrupt:
        pass  # what is missing shows in the searches that did not come to their end
    return outcome


@contextmanager
def simulating(
    workload: str, workers: int, progress: Progress, interruption: Interruption
) -> Iterator[Simulate]:
    """Runs jobs here or in worker processes, and gives what a probe keeps of each."""
    finish = partial(probed, workload)
    if workers == 1:
        yield lambda jobs: map(finish, one_by_one(jobs, progress, interruption))
        return
    with worker_pool(workers, progress, interruption) as simulated:
        yield lambda jobs: simulated(jobs, finish)


def judged(question: Question, label: str, rate_per_s: float, setting: str, runs: Sequence[Probed]) -> Probe:
    """All seeds of a rate together: each target by its mean over them.

    Missed is the target that is furthest above its bound, or without one what is wrong with the queue.
    """
    scenario = dict(question.loaded.variants)[label]
    runs = sorted(runs, key=lambda run: run.seed)
    names = dict.fromkeys([*LATENCIES, *question.targets, *(name for run in runs for name in run.latencies_ms)])
    metrics = {name: mean_interval([run.latencies_ms.get(name) for run in runs]) for name in names}
    latency_s = 1e-3 * (metrics["mean_e2el_ms"].mean or 0.0)
    span_s = float(np.mean([run.span_s for run in runs]))
    load = load_of([run.growth for run in runs], [run.num_late for run in runs], span_s, latency_s)
    over = {
        name: math.inf if metrics[name].mean is None else (metrics[name].mean or 0.0) / bound
        for name, bound in question.targets.items()
    }
    worst = max(over, key=lambda name: over[name])
    missed = worst if over[worst] > 1 else None if load == "stable" else load
    tokens_per_s = mean_interval([run.output_tokens_per_s for run in runs]).mean
    num_accelerators = serving_workload(scenario, question.workload).num_accelerators
    each = None if tokens_per_s is None else tokens_per_s / num_accelerators
    price = question.prices.get(label)
    return Probe(
        rate_per_s, setting, Verdict(missed is None, missed, 0 < rate_per_s * latency_s < IDLE), load,
        float(np.mean([run.growth for run in runs])), metrics, each,
        None if price is None or not each else price / 3600 / each * 1e6,
        *(sum(getattr(run, what) for run in runs) for what in ("completed", "failed", "unfinished")),
    )  # fmt: skip


# --- what is written --------------------------------------------------------------------------------------------------


def _write_probes(outcome: Outcome, path: Path) -> None:
    rows = []
    for label, probes in outcome.probes.items():
        for i, probe in enumerate(probes, 1):
            row: dict[str, Any] = {
                "variant": label, "probe": i, "rate_per_s": probe.rate_per_s, "setting": probe.setting,
                "holds": probe.verdict.holds, "missed": probe.verdict.missed, "load": probe.load,
                "wait_growth": probe.growth,
                "output_tokens_per_s_per_accelerator": probe.tokens_per_s_per_accelerator,
            }  # fmt: skip
            if probe.cost_per_million_tokens is not None:
                row["cost_per_million_output_tokens"] = probe.cost_per_million_tokens
            row |= {what: getattr(probe, what) for what in ("completed", "failed", "unfinished")}
            for name, estimate_ in probe.metrics.items():
                row[name] = estimate_.mean
                if name in outcome.question.targets:
                    row |= {f"{name}.low": estimate_.low, f"{name}.high": estimate_.high}
            rows.append(row)
    pd.DataFrame(rows).to_csv(path, index=False)


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """A row per variant, of plain numbers: what `--json` prints."""
    rows = []
    for label, _ in outcome.question.loaded.variants:
        best, above = outcome.best(label), outcome.next_above(label)
        row: dict[str, Any] = {
            "variant": label, "highest_rate_per_s": best and best.rate_per_s, "setting": best and best.setting,
            "output_tokens_per_s_per_accelerator": best and best.tokens_per_s_per_accelerator,
        }  # fmt: skip
        for name in outcome.question.targets:
            found = best.metrics[name] if best is not None else Estimate(None, None, None, 0)
            row[name] = {"mean": found.mean, "ci95": None if found.low is None else [found.low, found.high]}
        row |= {"next_rate_per_s": above and above.rate_per_s, "limit": above and above.verdict.missed}
        if outcome.question.prices:
            row["cost_per_million_output_tokens"] = best and best.cost_per_million_tokens
        row |= {"num_probes": len(outcome.probes[label]), "finished": label in outcome.finished}
        rows.append(row)
    return rows


def _shown(outcome: Outcome) -> list[dict[str, Any]]:
    """The same for people: a value with its interval in a cell."""
    rows = []
    for row in rows_of(outcome):
        shown: dict[str, Any] = {
            "variant": row["variant"], "requests/s": row["highest_rate_per_s"], "as arrivals": row["setting"],
            "tokens/s per accelerator": row["output_tokens_per_s_per_accelerator"],
        }  # fmt: skip
        for name, bound in outcome.question.targets.items():
            mean, interval = row[name]["mean"], row[name]["ci95"]
            around = "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
            shown[f"{name} <= {bound:g}"] = None if mean is None else f"{mean:.4g}{around}"
        if "cost_per_million_output_tokens" in row:
            shown["$ per million tokens"] = row["cost_per_million_output_tokens"]
        next_rate = row["next_rate_per_s"]
        shown["limit"] = None if next_rate is None else f"{row['limit']}, at {next_rate:.4g} /s"
        rows.append(shown)
    return rows


def remarks(outcome: Outcome) -> list[str]:
    """What a reader of the table has to know."""
    said = []
    for label, _ in outcome.question.loaded.variants:
        above = outcome.next_above(label)
        if label not in outcome.finished:
            said.append(f"{label}: interrupted, so the highest rate lies between this one and the limit's, where known")
        elif outcome.best(label) is None:
            last = outcome.probes[label][-1]
            missed = last.metrics[last.verdict.missed].mean if last.verdict.missed in last.metrics else None
            why = f"{last.verdict.missed} {'has no value' if missed is None else f'is {missed:.4g}'}"
            why = QUEUE_WORDS.get(last.verdict.missed or "", why)
            why = why if last.completed else "no request completes"
            said.append(f"{label}: no rate holds, down to {last.rate_per_s:.3g} /s, where {why}")
        elif above is None:
            said.append(f"{label}: every rate tried holds")
        elif above.verdict.missed == "too short":
            said.append(f"{label}: at higher rates all arrive at once; raise num_requests, or take a longer trace")
        elif above.verdict.missed == "backlogged":
            said.append(f"{label}: waits grow at the next rate, or seem to; more requests or seeds would tell")
    replayed = [label for label, s in outcome.question.loaded.variants if _is_replayed(s, outcome.question.workload)]
    if replayed:
        said.append(
            f"{sentence_of(replayed)}: every seed replays the same trace, so that no interval says what another day "
            "would bring; search parts of it (trace.from, trace.until) to see how far they differ"
        )
    if len(outcome.question.loaded.seeds) == 1 and len(replayed) < len(outcome.question.loaded.variants):
        said.append("one seed, so no intervals; --seeds 5 gives them")
    return said


def _is_replayed(scenario: Scenario, workload: str) -> bool:
    """Whether arrivals and lengths are a trace's own."""
    w = serving_workload(scenario, workload)
    return w.arrivals.kind == "trace" and w.lengths is None and not any(tenant.lengths for tenant in w.tenants)


def _curves(outcome: Outcome) -> list[CapacityCurve]:
    curves = []
    for label, _ in outcome.question.loaded.variants:
        points = [
            CurvePoint(
                {name: p.metrics[name].mean for name in outcome.question.targets}, p.tokens_per_s_per_accelerator,
                p.cost_per_million_tokens, p.verdict.holds, p is outcome.best(label), p.load == "stable",
            )
            for p in sorted(outcome.probes[label], key=lambda p: p.rate_per_s)
        ]  # fmt: skip
        curves.append(CapacityCurve(label, points))
    return curves


def command(question: Question, folder: Path, workers: int, quiet: bool, as_json: bool) -> bool:
    """Search, write, print; True when it was interrupted."""
    outcome = run_capacity(question, folder, workers, quiet)
    rows = rows_of(outcome)
    (folder / FOUND).write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    loaded = question.loaded
    about = RunResults(
        loaded.name, loaded.question, tuple(loaded.seeds), tuple(label for label, _ in loaded.variants),
        version("spindle-sim"), calibration_fingerprint(s.cost.table for _, s in loaded.variants if s.cost.table),
    )  # fmt: skip
    figure = draw_capacity(about, question.workload, question.targets, _curves(outcome))
    if figure is not None:
        (folder / FIGURE).write_bytes(image_bytes(figure, "png", about))
    if as_json:
        print_rows(rows, "", as_json)
    elif not quiet:
        print_rows(_shown(outcome), f"Highest rate of {question.workload} that holds", as_json)
        print_text("\n".join([*remarks(outcome), str(folder / FIGURE if figure is not None else folder)]))
    return outcome.partial
