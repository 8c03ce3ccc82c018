"""Running a scenario: every variant with every seed, written as they finish, then the report."""

from __future__ import annotations

import gc
import hashlib
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from models.hardware import ACCELERATORS
from sim.engine.interruption import Interruption
from sim.engine.progress import Progress
from sim.escalation import Decision, decide, decide_again
from sim.results.headline import headline_of
from sim.results.load_lines import herds, overloads
from sim.results.report import write_report
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import RunFolder
from sim.scenario import build
from sim.scenario.cost_table import fingerprint
from sim.scenario.errors import Refused
from sim.scenario.estimate import check_cost, estimate
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario
from sim.workers import Job, in_workers, one_by_one


@dataclass(frozen=True, slots=True)
class RunOutcome:
    out_dir: Path
    partial: bool
    headline: str
    overloads: tuple[str, ...] = ()
    """What latencies depend on beside the load: overload, and clients that begin at once."""


def identity(scenario: Scenario) -> str:
    """What decides a variant's results, as text: all but its names, its question and which seeds repeat it."""
    return scenario.model_dump_json(exclude={"name", "question", "answer", "seed", "seeds"})


def calibration_fingerprint(tables: Iterable[str]) -> str:
    """Names the numbers that times come from: tables, and the hardware presets behind the roofline."""
    roofline = "roofline-" + hashlib.sha256(repr(sorted(ACCELERATORS.items())).encode()).hexdigest()[:12]
    return ", ".join([*(fingerprint(name) for name in dict.fromkeys(tables)), roofline])


def run_scenario(
    loaded: LoadedScenario,
    out_dir: Path,
    workers: int = 1,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    trace: bool = False,
    max_packet_hops: float | None = None,
    is_part_of_study: bool = False,
    known: Mapping[tuple[str, int], VariantResult] | None = None,
) -> RunOutcome:
    """Check, run and report a loaded scenario; results do not depend on the number of workers.

    Each result is on disk as soon as it is there. Ctrl-C stops all runs where they are, writes what there is
    but no report, and marks it partial; a second one gives up what is under way. Raises KeyboardInterrupt when the
    results are whole and only the report is missing, ScenarioError before anything runs when the scenario cannot
    be built, and Refused for `trace`, which is not there yet, and for packets over more links than `max_packet_hops`.
    A part of a study keeps metrics only and writes no report of its own; `known` holds results, by (identity, seed),
    that are taken over instead of being simulated again.
    """
    if trace:
        raise Refused("--trace has no timeline to write yet; leave it out: flows, batches, token times are in tables/")
    build.check(loaded)
    progress = progress or Progress(len(loaded.variants) * len(loaded.seeds), quiet=True)
    cost = estimate(loaded)
    check_cost(cost, max_packet_hops)
    progress.announce(str(cost))
    started_s = time.monotonic()
    run = RunResults(
        scenario_name=loaded.name,
        question=loaded.question,
        answer=loaded.answer,
        seeds=tuple(loaded.seeds),
        variants=tuple(label for label, _ in loaded.variants),
        version=version("spindle-sim"),
        calibration=calibration_fingerprint(s.cost.table for _, s in loaded.variants if s.cost.table is not None),
        ideal_variant=_ideal_of(loaded),
        scenario_text=loaded.source_text,
        axes=loaded.axes,
        sides=loaded.sides,
    )
    folder = RunFolder.create(Path(out_dir), run, overwrite)
    first = [(label, scenario.in_fidelity(scenario.first_fidelity)) for label, scenario in loaded.variants]
    jobs = _jobs(loaded, first)
    if known:
        for label, scenario, seed in jobs:
            if (found := known.get((identity(scenario), seed))) is not None:
                folder.add(replace(found, name=label, tables={}))
                progress.finish_run(f"{label}, seed {seed}")
        jobs = [job for job in jobs if (job[0], job[2]) not in run.results]
    keeps_tables = not is_part_of_study
    try:
        with Interruption() as interruption:
            for result in _results(jobs, progress, interruption, workers, folder, keeps_tables):
                folder.add(result)
                progress.finish_run(f"{result.name}, seed {result.seed}")
                del result  # its tables are on disk, and may be as large as those of the next
            if run.num_finished == run.num_expected and any(s.fidelity == "auto" for _, s in loaded.variants):
                decision = decide(loaded, run, max_packet_hops)
                while _escalate(loaded, decision, progress, interruption, workers, folder, keeps_tables):
                    decide_again(loaded, run, decision, max_packet_hops)
    except KeyboardInterrupt:
        pass  # what is missing shows in the number of finished runs
    machine = {
        "wall_s": round(time.monotonic() - started_s, 3), "workers": workers, "python": platform.python_version(),
        "machine": platform.machine(), "system": platform.system(), "settings": list(loaded.overrides),
    }  # fmt: skip
    folder.finish(machine=machine)
    headline = headline_of(run).sentence if run.results else "nothing was finished"
    if is_part_of_study:
        pass
    elif not interruption.is_requested:
        gc.collect()  # a run's parts refer to one another; its arrays may be as large as what a report reads
        write_report([folder.path], folder.path / "report.html")
    elif not run.partial:
        raise KeyboardInterrupt
    return RunOutcome(folder.path, run.partial, headline, (*overloads(run), *herds(run)))


def _jobs(loaded: LoadedScenario, variants: Sequence[tuple[str, Scenario]]) -> list[Job]:
    return [(label, scenario, seed) for seed in loaded.seeds for label, scenario in variants]


def _results(
    jobs: list[Job],
    progress: Progress,
    interruption: Interruption,
    workers: int,
    folder: RunFolder,
    keeps_tables: bool,
) -> Iterator[VariantResult]:
    if workers == 1 or len(jobs) <= 1:
        whole = one_by_one(jobs, progress, interruption)
        yield from whole if keeps_tables else (replace(result, tables={}) for result in whole)
    else:
        num = min(workers, len(jobs))
        yield from in_workers(jobs, progress, interruption, num, folder.path, folder.run, keeps_tables)


def _escalate(
    loaded: LoadedScenario,
    decision: Decision,
    progress: Progress,
    interruption: Interruption,
    workers: int,
    folder: RunFolder,
    keeps_tables: bool,
) -> bool:
    """Run packet by packet what the decision says and has not run yet; True when all of that is there.

    Each result keeps why, and the fluid metrics that it replaces. Interrupted, what still awaits its packets counts as
    unfinished: half of a comparison would be of two fidelities.
    """
    run = folder.run
    again = decision.to_run(loaded, run)
    labels = [label for label, _ in again]
    fluid = {key: dict(result.metrics) for key, result in run.results.items() if key[0] in labels}
    notes = {
        label: {"because": because, "stays": decision.stays.get(label), "fluid": None}
        for label, because in decision.because.items()
    }
    for (label, seed), result in list(run.results.items()):
        if label in notes and (result.notes["fidelity"] == "fluid" or "escalation" not in result.notes):
            folder.note(label, seed, escalation=dict(notes[label]), awaits_packets=label in labels or None)
    jobs = _jobs(loaded, again)
    progress.total_runs += len(jobs)
    if not jobs or interruption.is_requested:
        return False
    for result in _results(jobs, progress, interruption, workers, folder, keeps_tables):
        folder.add(result)
        escalation = {**notes[result.name], "fluid": fluid[result.name, result.seed]}
        folder.note(result.name, result.seed, escalation=escalation)
        progress.finish_run(f"{result.name}, seed {result.seed}, packet by packet")
    return run.num_finished == run.num_expected


def _ideal_of(loaded: LoadedScenario) -> str | None:
    """The variant with an ideal fabric; with axes, the contender that has one under all circumstances."""
    ideal = [label for label, scenario in loaded.variants if scenario.paths.policy == "ideal"]
    if not loaded.axes:
        return next(iter(ideal), None)
    contenders = list(loaded.axes.values())[-1]
    labels = [label for label, _ in loaded.variants]
    each = len(contenders)
    return next((name for i, name in enumerate(contenders) if set(labels[i::each]) <= set(ideal)), None)
