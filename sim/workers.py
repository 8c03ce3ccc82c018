"""The runs of a scenario, one by one or in several processes. What a worker process imports starts here: no figures."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from sim.engine.interruption import Interruption
from sim.engine.progress import Progress
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import write_result
from sim.scenario.schema import Scenario
from sim.simulate import simulate

Job = tuple[str, Scenario, int]


def one_by_one(jobs: list[Job], progress: Progress, interruption: Interruption) -> Iterator[VariantResult]:
    """In this process; an interrupted run is the last."""
    for label, scenario, seed in jobs:

        def report(*standing: Any, run_label: str = f"{label}, seed {seed}") -> None:
            interruption.check()
            progress.update(run_label, *standing)

        yield simulate(scenario, seed, label, report)
        if interruption.is_requested:
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

    def report(*standing: Any) -> None:
        if _stop.is_set():
            raise KeyboardInterrupt
        _reports.put((f"{label}, seed {seed}", *standing))

    return write_result(out_dir, run, simulate(scenario, seed, label, report))


def in_workers(
    jobs: list[Job], progress: Progress, interruption: Interruption, workers: int, out_dir: Path, run: RunResults
) -> Iterator[VariantResult]:
    """In processes, in the order in which they end; an interruption ends them all where they are."""
    context = multiprocessing.get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(workers, context, _initialise, (reports, stop)) as pool:
        pending: set[Future[VariantResult | None]] = {pool.submit(_work, job, out_dir, run) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if interruption.is_requested:
                    stop.set()
                _show(reports, progress)
                for future in finished:
                    result = future.result()
                    if result is not None:
                        yield result
        except BaseException:
            stop.set()
            raise


def _show(reports: Any, progress: Progress) -> None:
    while True:
        try:
            progress.update(*reports.get_nowait())
        except queue.Empty:
            return
