"""The runs of a scenario, one by one or in several processes. What a worker process imports starts here: no figures."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from sim.engine.progress import Progress
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import write_result
from sim.scenario.schema import Scenario
from sim.simulate import simulate

Job = tuple[str, Scenario, int]


def one_by_one(jobs: list[Job], progress: Progress) -> Iterator[VariantResult]:
    """In this process; an interrupted run is the last."""
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


def in_workers(
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
