"""What several commands do: run a scenario or a search, and say what an interruption left."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import typer

from models import compile_cache
from sim.console import fail
from sim.scenario.errors import Refused

INTERRUPTED = 130


def say_if_compiling(quiet: bool) -> None:
    if sys.stderr.isatty() and not quiet and not compile_cache.is_warm():
        typer.echo("first run of this version: compiling the simulation core, about a minute, once", err=True)


def simulated(loaded: Any, folder: Path, workers: int | None, quiet: bool, options: dict[str, Any]) -> Any:
    """Run a loaded scenario and write its report: a RunOutcome. Leaves where that fails, or is interrupted."""
    from sim.engine.progress import Progress

    simulate = imported("sim.run").run_scenario
    num_runs = len(loaded.variants) * len(loaded.seeds)
    say_if_compiling(quiet)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress(num_runs, quiet) as progress:
            return simulate(loaded, folder, workers or usual_workers(num_runs), progress, **options)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what was finished is in {folder}{how_to_report(folder)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        fail(error, folder)


def leave_if(is_partial: bool, remedy: str = "") -> None:
    """Leave with what an interrupted command says."""
    if is_partial:
        typer.echo(f"interrupted: the results are partial{remedy}", err=True)
        raise typer.Exit(INTERRUPTED)


def searched(
    module: str, question: Any, folder: Path, workers: int | None, quiet: bool, as_json: bool
) -> bool:
    """Answer a question about a loaded scenario by many runs; returns whether that was interrupted."""
    num_runs = len(question.loaded.variants) * len(question.loaded.seeds)
    say_if_compiling(quiet)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = imported(module).command
        return bool(command(question, folder, workers or usual_workers(num_runs), quiet, as_json))
    except Exception as error:
        fail(error, folder)


def usual_workers(num_runs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, num_runs))


def how_to_report(folder: Path) -> str:
    """What to do where a run has results and no report."""
    if (folder / "report.html").exists() or not (folder / "summary.json").exists():
        return ""
    return f"; for their report: spindle report {shlex.quote(str(folder))}"


def asked_for(**options: Any) -> dict[str, Any]:
    """Only what the user gave; the rest is left to the defaults of what is called."""
    return {key: value for key, value in options.items() if value not in (None, False)}


def imported(module: str) -> Any:
    """A part of Spindle that a command needs. Raises Refused where this version does not have it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise Refused(f"this version has no {module}; update Spindle") from error
