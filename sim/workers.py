"""The runs of a scenario, one by one or in several processes. What a worker process imports starts here: no figures."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sim.engine.interruption import Interruption
from sim.engine.progress import Progress
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import write_result
from sim.scenario.schema import Scenario
from sim.simulate import simulate

Job = tuple[str, Scenario, int]
T = TypeVar("T")


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


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start in here hold Ctrl-C back until `_initialise` ignores it: they import for seconds before."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialise(reports: Any, stop: Any) -> None:
    """A worker leaves Ctrl-C to the parent, which tells it to stop through `stop`."""
    global _reports, _stop
    _reports, _stop = reports, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job, finish: Callable[[VariantResult], T]) -> T | None:
    label, scenario, seed = job
    if _stop.is_set():
        return None

    def report(*standing: Any) -> None:
        if _stop.is_set():
            raise KeyboardInterrupt
        _reports.put((f"{label}, seed {seed}", *standing))

    return finish(simulate(scenario, seed, label, report))


def in_workers(
    jobs: list[Job],
    progress: Progress,
    interruption: Interruption,
    workers: int,
    out_dir: Path,
    run: RunResults,
    keeps_tables: bool = True,
) -> Iterator[VariantResult]:
    """In processes, each written where it ran, in the order in which they end."""
    run = replace(run, results={})  # pickled for each job, while results are added to the other one
    with worker_pool(workers, progress, interruption) as simulated:
        yield from simulated(jobs, partial(_stored, out_dir, run, keeps_tables))


def _stored(out_dir: Path, run: RunResults, keeps_tables: bool, result: VariantResult) -> VariantResult:
    return write_result(out_dir, run, result if keeps_tables else replace(result, tables={}))


@contextmanager
def worker_pool(
    workers: int, progress: Progress, interruption: Interruption
) -> Iterator[Callable[[list[Job], Callable[[VariantResult], T]], Iterator[T]]]:
    """Processes that stay for several lists of jobs: call what is given with jobs, and with what finishes each result.

    What `finish` returns comes in the order in which runs end; an interruption ends them all where they are.
    Raises BrokenProcessPool when a worker dies, unless an interruption was asked for: what ends a whole group of
    processes (SIGTERM) ends workers too.
    """
    context = multiprocessing.get_context("spawn")
    reports, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(workers, context, _initialise, (reports, stop)) as pool:

        def simulated(jobs: list[Job], finish: Callable[[VariantResult], T]) -> Iterator[T]:
            with _interrupts_held():  # each worker starts when its first job is submitted
                pending: set[Future[T | None]] = {pool.submit(_work, job, finish) for job in jobs}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if interruption.is_requested:
                    stop.set()
                _show(reports, progress)
                for future in sorted(finished, key=lambda future: future.exception() is not None):
                    result = future.result()
                    if result is not None:
                        yield result

        try:
            yield simulated
        except BrokenProcessPool:
            if not interruption.is_requested:
                raise
        except BaseException:
            stop.set()
            raise


def _show(reports: Any, progress: Progress) -> None:
    while True:
        try:
            progress.update(*reports.get_nowait())
        except queue.Empty:
            return
