"""What a measurement has found so far: a file of JSON lines beside the table to be, a line for each point.

The first line says what is measured on what, all points included; each other one has the times of one point, or why it
has none. A line is on disk before the next point begins. A last line without its end, such as a power cut leaves, is
cut off; nothing else is ever changed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from calibration.points import Point

__all__ = ["Journal", "JournalError", "journal_of"]

FORMAT = 1
Found = dict[str, Any]
"""Of one point: seconds, p10_s and p90_s, or skipped: why it has none."""


class JournalError(ValueError):
    """A journal that cannot be gone on with; the message names it, what differs, and the remedy."""


def journal_of(out: Path) -> Path:
    """Where the journal of a table lies."""
    return out.with_name(f"{out.name}.journal")


@dataclass
class Journal:
    """Open for appending; one process at a time.

    identity  gpu, driver, torch, triton and commit
    date      of the beginning
    found     of each point measured so far, in the order of measuring
    """

    path: Path
    identity: dict[str, str]
    date: str
    points: tuple[Point, ...]
    found: dict[Point, Found] = field(default_factory=dict)
    _file: BinaryIO | None = None

    @classmethod
    def open(
        cls, path: Path, identity: Mapping[str, str], asked: str, points: Sequence[Point], date: str
    ) -> Journal:
        """Go on with the journal at `path`, or begin one.

        asked: what the points were made from, such as "quick"; where the journal goes on, its own points count
        Raises JournalError for another device's, version's or request's, for a broken one, and while another process
        writes it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise JournalError(f"{path}: another process is measuring into it; wait, or choose another file") from None
        try:
            file.seek(0)
            *whole, torn = file.read().split(b"\n")
            if torn:
                file.truncate(sum(len(line) + 1 for line in whole))
            if whole:
                return cls._resumed(path, file, whole, dict(identity), asked)
            made = cls(path, dict(identity), date, tuple(points), {}, file)
            keys = [_key(point) for point in points]
            made._append({"format": FORMAT, "asked": asked, "date": date, **identity, "points": keys})
            return made
        except BaseException:
            file.close()
            raise

    @classmethod
    def _resumed(cls, path: Path, file: BinaryIO, lines: list[bytes], identity: dict[str, str], asked: str) -> Journal:
        remedy = f"finish it there, or remove {path} to begin again"
        try:
            header, *read = [json.loads(line) for line in lines]
            points = tuple(Point(o, n, p, tuple(numbers)) for o, n, p, numbers in header["points"])
            before = {"format": FORMAT, "asked": header["asked"], **{name: header[name] for name in identity}}
            found = {points[line.pop("point")]: line for line in read}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise JournalError(f"{path}: no journal of a measurement ({error}); remove it to begin again") from error
        for name, now in {"format": FORMAT, "asked": asked, **identity}.items():
            if before[name] != now:
                raise JournalError(f"{path}: begun with {name} {before[name]!r}, here it is {now!r}; {remedy}")
        return cls(path, identity, header["date"], points, found, file)

    @property
    def left(self) -> list[Point]:
        """Points not yet tried."""
        return [point for point in self.points if point not in self.found]

    def add(self, point: Point, **found: Any) -> None:
        """Write what one point came to; on disk when this returns."""
        self._append({"point": self.points.index(point), **found})
        self.found[point] = found

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None, "closed"
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """The table is written: the journal is done with."""
        self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _key(point: Point) -> list[Any]:
    return [point.operator, point.name, point.precision, list(point.numbers)]
