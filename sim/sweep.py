"""A sweep: one scenario at every point of a grid, a run folder each, and one table of all their metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from sim.engine.progress import Progress
from sim.scenario.errors import Place, Refused, ScenarioError
from sim.scenario.load import LoadedScenario, load_scenario

MOST_POINTS = 10_000
TABLE = "sweep.csv"


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One point: what is set there, and the scenario with it set."""

    settings: tuple[str, ...]
    loaded: LoadedScenario


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """What a sweep left behind; partial when it was interrupted."""

    table: Path
    num_finished: int
    partial: bool


def grid_points(
    scenario: Path,
    grids: Sequence[str],
    settings: Sequence[str],
    small: bool,
    seed: int | None,
    seeds: int | None = None,
) -> list[GridPoint]:
    """Every combination of the grids' values, each loaded: a bad value is refused before anything runs.

    A grid is `key=a,b,c`; commas inside brackets or quotes belong to a value. The last grid varies fastest.
    """
    axes = [[f"{key}={value}" for value in values] for key, values in map(_axis, grids)]
    num_points = 1
    for axis in axes:
        num_points *= len(axis)
    if num_points > MOST_POINTS:
        raise Refused(f"the grid has {num_points} points, more than {MOST_POINTS}; leave values out")
    return [
        GridPoint(point, load_scenario(scenario, [*settings, *point], small, seed, seeds))
        for point in product(*axes)
    ]


def _axis(grid: str) -> tuple[str, list[str]]:
    key, equals, text = grid.partition("=")
    values = [value.strip() for value in _split(text)]
    if not equals or not key.strip() or not all(values):
        raise ScenarioError.at(
            Place(f"--grid {grid}"), "is no grid; write for example --grid paths.policy=ecmp,spray"
        )
    if len(set(values)) < len(values):
        raise ScenarioError.at(Place(f"--grid {grid}"), "gives a value twice; give each once")
    return key.strip(), values


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quote:
            yield part
            part = ""
        else:
            part += letter
    yield part


def run_sweep(
    points: Sequence[GridPoint],
    folder: Path,
    workers: int,
    scheduler: str | None,
    quiet: bool,
    overwrite: bool,
) -> SweepOutcome:
    """Run every point and keep folder/sweep.csv up to date: one row per point and variant.

    workers      processes within a point, when this machine does the work
    scheduler    address of a Dask scheduler whose workers see this folder; each then takes whole points

    Raises Refused when a scheduler is asked for and dask.distributed is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:0{len(str(len(points)))}}-{_slug(point)}" for i, point in enumerate(points, 1)]
    folders = [folder / name for name in names]
    finished: dict[int, bool] = {}
    total = sum(len(point.loaded.variants) * len(point.loaded.seeds) for point in points)
    try:
        if scheduler is not None:
            done = _run_on_scheduler(points, folders, scheduler, overwrite)
        else:
            done = _run_here(points, folders, workers, Progress(total, quiet), overwrite)
        for i, is_partial in done:
            finished[i] = is_partial
            _write_table(folder / TABLE, points, folders, sorted(finished))
            if is_partial:
                break
    except KeyboardInterrupt:
        finished[-1] = True
    complete = [i for i, is_partial in finished.items() if not is_partial]
    return SweepOutcome(folder / TABLE, len(complete), any(finished.values()))


def _run_here(
    points: Sequence[GridPoint], folders: Sequence[Path], workers: int, progress: Progress, overwrite: bool
) -> Iterator[tuple[int, bool]]:
    with progress:
        for i, (point, folder) in enumerate(zip(points, folders, strict=True)):
            yield i, _run_point(point, folder, workers, progress, overwrite)


def _run_on_scheduler(
    points: Sequence[GridPoint], folders: Sequence[Path], scheduler: str, overwrite: bool
) -> Iterator[tuple[int, bool]]:
    try:
        from distributed import Client, as_completed  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise Refused("--scheduler needs dask.distributed: pip install 'dask[distributed]'") from error
    with Client(scheduler) as client:
        index_of = {
            client.submit(_run_point, point, folder.resolve(), 1, None, overwrite, pure=False): i
            for i, (point, folder) in enumerate(zip(points, folders, strict=True))
        }
        for future in as_completed(index_of):
            yield index_of[future], future.result()


def _run_point(
    point: GridPoint, folder: Path, workers: int, progress: Progress | None, overwrite: bool
) -> bool:
    """Run one point; True when it was interrupted."""
    from sim.run import run_scenario

    options: dict[str, Any] = {"overwrite": True} if overwrite else {}
    if progress is None:
        progress = Progress(len(point.loaded.variants) * len(point.loaded.seeds), quiet=True)
    return bool(run_scenario(point.loaded, folder, workers, progress, **options).partial)


def _write_table(
    path: Path, points: Sequence[GridPoint], folders: Sequence[Path], finished: Sequence[int]
) -> None:
    rows = []
    for i in finished:
        set_here = dict(setting.split("=", 1) for setting in points[i].settings)
        summary = json.loads((folders[i] / "summary.json").read_text(encoding="utf-8"))
        for variant, content in summary["variants"].items():
            metrics = {key: _number(value) for key, value in content["metrics"].items()}
            fidelity = {"fidelity": content["fidelity"]} if "fidelity" in content else {}
            rows.append({"folder": folders[i].name, **set_here, "variant": variant, **fidelity, **metrics})
    pd.DataFrame(rows).to_csv(path, index=False)


def _number(metric: Any) -> Any:
    """With replications a metric is an object; its mean stands for it."""
    return metric.get("mean") if isinstance(metric, dict) else metric


def _slug(point: GridPoint) -> str:
    text = "-".join(setting.rpartition(".")[2] for setting in point.settings).lower()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
    return "-".join(part for part in plain.split("-") if part)[:60] or "point"
