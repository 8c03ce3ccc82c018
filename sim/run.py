"""Running a scenario: every variant with every seed, in this process or several, written as they finish."""

from __future__ import annotations

import hashlib
import multiprocessing
import platform
import queue
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simpy import AllOf

from models.hardware import ACCELERATORS
from sim.engine.progress import Progress
from sim.engine.recorder import Recorder
from sim.results.headline import headline_of
from sim.results.links import link_metrics, record_links
from sim.results.report import write_report
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import RunFolder, write_result
from sim.scenario import build
from sim.scenario.errors import Refused
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario

Report = Callable[[float, float | None, int], None]
"""Told (simulated seconds, end if known, events) now and then during a run."""


class StalledError(RuntimeError):
    """Nothing can move any more, and somebody still waits; the text says who for what."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    out_dir: Path
    partial: bool
    headline: str


def calibration_fingerprint() -> str:
    """Names the numbers that times come from: today the hardware presets behind the roofline."""
    return "roofline-" + hashlib.sha256(repr(sorted(ACCELERATORS.items())).encode()).hexdigest()[:12]


def simulate(scenario: Scenario, seed: int, label: str, report: Report | None = None) -> VariantResult:
    """Simulate one variant with one seed to its end: every foreground workload done, or `max_time` reached.

    An interrupt (Ctrl-C) ends it early; the result then says so under notes.partial.
    Raises StalledError when nothing can move any more, and the fabric's ConservationError when bytes vanished.
    """
    sim = build.build(scenario, seed)
    if report is not None:
        end_s = scenario.max_time_s
        sim.clock.on_pause = lambda: report(sim.clock.now, end_s, sim.fabric.num_events)
    foreground = [w for w in sim.workloads if not w.is_background]
    done = [w.start() for w in foreground]
    for workload in sim.workloads:
        if workload.is_background:
            workload.start()
    is_partial = False
    warnings: list[str] = []
    try:
        finished = AllOf(sim.clock, done)
        limit = sim.clock.timeout(scenario.max_time_s) if scenario.max_time_s is not None else None
        sim.clock.run(until=finished if limit is None else finished | limit)
        if not finished.triggered:
            warnings.append(f"cut at max_time, {scenario.max_time_s:g} s, before every workload had ended")
    except KeyboardInterrupt:
        is_partial = True
        warnings.append(f"interrupted at {sim.clock.now:.6g} s of simulated time")
    except RuntimeError as error:
        if "No scheduled events left" not in str(error):
            raise
        waiting = sim.fabric.waiting() or ["no message is under way: a workload waits for an event nobody triggers"]
        raise StalledError(f"{label}: nothing moves at {sim.clock.now:.6g} s: " + "; ".join(waiting)) from error
    recorder = Recorder()
    metrics: dict[str, float | int | None] = {}
    for workload in sim.workloads:
        workload.record(recorder)
        metrics |= {f"{workload.kind}.{workload.name}.{key}": v for key, v in workload.metrics().items()}
        warnings += [f"{workload.name}: {text}" for text in getattr(workload, "notes", list)()]
    sim.fabric.check_conservation()
    metrics |= link_metrics(sim.topology, sim.fabric, sim.clock.now)
    record_links(recorder, sim.topology, sim.fabric)
    notes: dict[str, Any] = {"fidelity": scenario.fidelity, "warnings": warnings}
    if any(w.kind == "serving" for w in sim.workloads):
        notes["cost_sources"] = {"roofline": 1.0}
    if is_partial:
        notes["partial"] = True
    return VariantResult(label, seed, metrics, recorder.frames(), notes)


def run_scenario(
    loaded: LoadedScenario,
    out_dir: Path,
    workers: int = 1,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    trace: bool = False,
    max_packet_hops: float | None = None,
) -> RunOutcome:
    """Check, run and report a loaded scenario; results do not depend on the number of workers.

    Each result is on disk as soon as it is there. Ctrl-C stops all runs where they are, writes what there is
    and marks it partial. Raises ScenarioError before anything runs when the scenario cannot be built, and Refused
    for `trace`, which is not there yet; `max_packet_hops` bounds nothing until runs have packets.
    """
    if trace:
        raise Refused("--trace has no timeline to write yet; leave it out: flows, batches, token times are in tables/")
    build.check(loaded)
    started_s = time.monotonic()
    run = RunResults(
        scenario_name=loaded.name,
        question=loaded.question,
        answer=loaded.answer,
        seeds=tuple(loaded.seeds),
        variants=tuple(label for label, _ in loaded.variants),
        version=version("spindle-sim"),
        calibration=calibration_fingerprint(),
        ideal_variant=next((label for label, s in loaded.variants if s.paths.policy == "ideal"), None),
        scenario_text=loaded.source_text,
    )
    folder = RunFolder.create(Path(out_dir), run, overwrite)
    jobs = [(label, scenario, seed) for seed in loaded.seeds for label, scenario in loaded.variants]
    progress = progress or Progress(len(jobs), quiet=True)
    is_partial = False
    results = _one_by_one(jobs, progress) if workers == 1 or len(jobs) == 1 else _in_workers(
        jobs, progress, min(workers, len(jobs)), folder.path, run
    )  # fmt: skip
    try:
        for result in results:
            folder.add(result)
            is_partial |= bool(result.notes.get("partial"))
            progress.finish_run(f"{result.name}, seed {result.seed}")
    except KeyboardInterrupt:
        is_partial = True
    machine = {
        "wall_s": round(time.monotonic() - started_s, 3), "workers": workers, "python": platform.python_version(),
        "machine": platform.machine(), "system": platform.system(), "settings": list(loaded.overrides),
    }  # fmt: skip
    folder.finish(partial=is_partial, machine=machine)
    headline = "nothing was finished"
    if run.results:
        headline = headline_of(run).sentence
        write_report([folder.path], folder.path / "report.html")
    return RunOutcome(folder.path, is_partial, headline)


Job = tuple[str, Scenario, int]


def _one_by_one(jobs: list[Job], progress: Progress) -> Iterator[VariantResult]:
    for label, scenario, seed in jobs:
        result = simulate(scenario, seed, label, partial(progress.update, f"{label}, seed {seed}"))
        yield result
        if result.notes.get("partial"):
            return


# --- several processes ------------------------------------------------------------------------------------------------

_reports: Any = None
_stop: Any = None


def _initialise(reports: Any, stop: Any) -> None:
    """A worker leaves Ctrl-C to the parent, which tells it to stop through `stop`."""
    global _reports, _stop
    _reports, _stop = reports, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job, out_dir: Path, run: RunResults) -> VariantResult | None:
    label, scenario, seed = job
    if _stop.is_set():
        return None
    last_s = 0.0

    def report(now_s: float, end_s: float | None, num_events: int) -> None:
        nonlocal last_s
        if _stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() - last_s > 0.2:
            last_s = time.monotonic()
            _reports.put((f"{label}, seed {seed}", now_s, end_s, num_events))

    return write_result(out_dir, run, simulate(scenario, seed, label, report))


def _in_workers(
    jobs: list[Job], progress: Progress, workers: int, out_dir: Path, run: RunResults
) -> Iterator[VariantResult]:
    context = multiprocessing.get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(workers, context, _initialise, (reports, stop)) as pool:
        pending: set[Future[VariantResult | None]] = {pool.submit(_work, job, out_dir, run) for job in jobs}
        interrupted = False
        while pending:
            try:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(reports, progress)
                for future in finished:
                    result = future.result()
                    if result is not None:
                        yield result
            except KeyboardInterrupt:
                interrupted = True
                stop.set()
            except BaseException:
                stop.set()
                raise
        if interrupted:
            raise KeyboardInterrupt


def _show(reports: Any, progress: Progress) -> None:
    while True:
        try:
            progress.update(*reports.get_nowait())
        except queue.Empty:
            return
