"""`python -m calibration.measure --out FILE`: a table of times measured on this machine's GPU.

Ceilings first, then a coarse grid, then what lies between. Each point is in a journal beside FILE before the next one
begins: the same command goes on after an interruption, and the table is the same as without one. `--seconds` stops in
time. What the device cannot do is counted and said. Needs torch, triton, numpy, pandas, pyarrow, scipy and
cuda-bindings, nothing else. `spindle calibrate --out FILE` is the same.

Exit codes: 0 done · 1 it failed, or the device can do no point · 2 refused · 3 stopped in time, points are left ·
130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from calibration.budget import estimated_s
from calibration.grids import grid, points_of, tiny
from calibration.journal import Journal, JournalError, journal_of
from calibration.methods import with_methods
from calibration.points import CEILINGS, Point, rates
from calibration.progress import Progress
from models.cost.needs import needs_from_json
from models.cost.table import FAMILIES, CostTable, TableError, read_table, table_of, write_table

__all__ = ["Timer", "main", "measure", "table_from"]

DONE, FAILED, REFUSED, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 130
SOURCE = "spindle calibrate"


class Timer(Protocol):
    """A device that times points."""

    def identity(self) -> dict[str, str]: ...
    def seconds(self, point: Point) -> np.ndarray: ...
    def close(self) -> None: ...


def measure(
    journal: Journal, timer: Timer, refusals: tuple[type[Exception], ...] = (), stop_after_s: float | None = None,
    clock: Callable[[], float] = time.monotonic, progress: Progress | None = None,
) -> bool:  # fmt: skip
    """Time what is left of a journal's points; whether all are done.

    refusals: errors by which the timer says that the device cannot do a point, which is noted with its words
    stop_after_s: no point begins later
    Any other error of the timer's is noted too, and raised: the next run goes on with the point after it.
    """
    begin = clock()
    for point in journal.left:
        if stop_after_s is not None and clock() - begin >= stop_after_s:
            return False
        if progress is not None:
            progress.show(len(journal.found), str(point))
        try:
            seconds = timer.seconds(point)
        except refusals as error:
            journal.add(point, skipped=str(error))
            continue
        except Exception as error:  # the device may be of no use now, and fail at this point again: go on behind it
            words = str(error).strip().partition("\n")[0]
            journal.add(point, skipped=f"it failed with {type(error).__name__}: {words}")
            raise
        p10_s, median_s, p90_s = np.percentile(seconds, (10, 50, 90))
        journal.add(point, seconds=float(median_s), p10_s=float(p10_s), p90_s=float(p90_s))
    return True


def table_from(journal: Journal, known: CostTable | None = None) -> CostTable:
    """The rows of what was measured so far, in the order of the points, after those of a table that they complete."""
    found = journal.found
    ceilings = {point: found[point]["seconds"] for point in CEILINGS if "seconds" in found.get(point, {})}
    rows = [
        {
            "operator": point.operator, "name": point.name, "precision": point.precision, **point.columns, "unit": "s",
            "source": SOURCE, "date": journal.date, **journal.identity, **found[point],
            **rates(point, found[point]["seconds"], ceilings),
        }
        for point in journal.points
        if "seconds" in found.get(point, {})
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return table_of(frame if known is None else pd.concat([known.rows, frame], ignore_index=True), str(journal.path))


def _points(given: argparse.Namespace, known: CostTable | None) -> tuple[str, Sequence[Point]]:
    """What was asked for, in a word, and its points. Raises TableError for a file of needs that is none."""
    if given.needs is None:
        return "quick" if given.quick else "whole", grid(given.quick)
    try:
        text = given.needs.read_text(encoding="utf-8")
        needs = needs_from_json(text)
    except (OSError, ValueError) as error:
        raise TableError(f"--needs {given.needs}: {error}") from error
    asked = f"{'quick ' if given.quick else ''}needs {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    there = set() if known is None else _places(known)
    levels = (True,) if given.quick else (True, False)  # coarse ones first
    points = [point for is_quick in levels for need in needs for point in points_of(need, is_quick)]
    missing = [point for point in points if point not in there]
    return asked, list(dict.fromkeys([*CEILINGS, *missing])) if missing else []


def _places(table: CostTable) -> set[Point]:
    """Points that a table has rows of."""
    found = set()
    for operator, rows in table.rows.groupby("operator", sort=False):
        family = FAMILIES[str(operator)]
        numbers = rows[[*family.shape, *family.axes]].to_numpy(int).tolist()
        for name, precision, each in zip(rows["name"], rows["precision"], numbers, strict=True):
            found.add(Point(str(operator), name, precision, tuple(each)))
    return found


def _run(given: argparse.Namespace, timer: Timer, refusals: tuple[type[Exception], ...], clock: Callable[[], float],
         say: Callable[[str], None]) -> int:  # fmt: skip
    path, identity = journal_of(given.out), {**timer.identity(), "commit": given.commit}
    known = read_table(given.known) if given.known is not None else None
    if known is not None and known.gpu != identity["gpu"]:
        if given.out.resolve() == given.known.resolve():
            raise TableError(f"{given.known} has times of {known.gpu}, this is {identity['gpu']}; choose another --out")
        say(f"{given.known} has times of {known.gpu}, this is {identity['gpu']}: {given.out} gets the new rows alone")
        known = None
    completes = known is not None and given.out.resolve() == given.known.resolve()
    if given.out.exists() and not path.exists() and not completes:
        raise TableError(f"--out {given.out} exists; choose another file, or remove it to measure again")
    asked, points = _points(given, known)
    if not points and not path.exists():
        say("the table has a row for every shape and size asked for: nothing to measure")
        return DONE
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock()))
    with Journal.open(path, identity, asked, points, date) as journal:
        say(f"{len(journal.left)} of {len(journal.points)} points to measure on {identity['gpu']}")
        progress = Progress(len(journal.points), sys.stderr)
        code = INTERRUPTED
        try:
            code = DONE if measure(journal, timer, refusals, given.seconds, progress=progress) else UNFINISHED
        except KeyboardInterrupt:
            pass
        finally:
            progress.end()
        if code == DONE or not completes:  # a table that is being completed changes once, in the end
            has_rows = _write(journal, given.out, known, say)
        if code == DONE:
            journal.remove()
            code = DONE if has_rows else FAILED
        else:
            say(f"{len(journal.left)} points are left, about {estimated_s(journal.left) / 60:.0f} minutes; the same "
                "command goes on")  # fmt: skip
    return code


def _write(journal: Journal, out: Path, known: CostTable | None, say: Callable[[str], None]) -> bool:
    """Whether there is any row to write."""
    reasons = [found["skipped"] for found in journal.found.values() if "skipped" in found]
    for reason in dict.fromkeys(reasons):
        say(f"{reasons.count(reason)} points left out: {reason}")
    if len(reasons) == len(journal.found):
        say("nothing was measured, so no table is written")
        return False
    table = with_methods(table_from(journal, known))
    write_table(table, out)
    say(f"{out}: {len(table.rows)} rows of {table.gpu}")
    return True


def _list(given: argparse.Namespace, say: Callable[[str], None]) -> None:
    _, points = _points(given, read_table(given.known) if given.known is not None else None)
    sys.stdout.writelines(f"{point}\n" for point in points)
    sys.stdout.flush()
    say(f"{len(points)} points, about {estimated_s(points) / 60:.0f} minutes on an H100")


def _has_gpu() -> bool:
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(torch.cuda.is_available())


def _rehearse(say: Callable[[str], None]) -> int:
    """Run each family's calls on tiny shapes, on a CPU under Triton's interpreter where there is no GPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is decorated
    from calibration.calls import Unmeasurable
    from calibration.gpu import rehearse

    for point in tiny():
        try:
            rehearse(point, device)
            say(f"{point}: runs")
        except Unmeasurable as error:
            say(f"{point}: left out, {error}")
    return DONE


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m calibration.measure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="the table, .parquet or .csv; its journal lies beside it")
    parser.add_argument("--quick", action="store_true", help="fewer models and sizes")
    parser.add_argument("--commit", default="unknown", help="of this code, for the rows")
    parser.add_argument("--seconds", type=float, help="begin no point later than this")
    parser.add_argument("--needs", type=Path, help="measure what this file of needs asks for (models.cost.needs)")
    parser.add_argument("--known", type=Path, help="a table that has some of it; FILE gets its rows as well")
    parser.add_argument("--list", action="store_true", help="print the points, measure nothing")
    parser.add_argument("--rehearse", action="store_true", help="run each kind of call on tiny shapes, time nothing")
    given = parser.parse_args(arguments)
    if given.out is None and not (given.list or given.rehearse):
        parser.error("--out FILE is needed")
    return given


def main(
    arguments: list[str] | None = None, timer: Timer | None = None, refusals: tuple[type[Exception], ...] = (),
    clock: Callable[[], float] = time.time,
) -> int:  # fmt: skip
    """timer, refusals, clock: in place of the GPU, its errors and the time of day, for tests."""
    given = _arguments(arguments)

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    if given.rehearse:
        return _rehearse(say)
    try:
        if given.list:
            _list(given, say)
            return DONE
        if timer is None:
            if not _has_gpu():
                if given.needs is not None:
                    _list(given, say)
                raise TableError("no CUDA device with torch, so nothing can be measured; take published times with "
                                 "`spindle calibrate --import aiconfigurator`")  # fmt: skip
            from calibration.calls import Unmeasurable
            from calibration.gpu import GpuTimer

            timer, refusals = GpuTimer(), (Unmeasurable,)
        try:
            return _run(given, timer, refusals, clock, say)
        finally:
            timer.close()
    except (TableError, JournalError) as error:
        say(str(error))
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
