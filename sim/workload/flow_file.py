"""Files that list traffic: their lines, their errors, and the flows they give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sim.fabric.messages import Float64, Int64


class TrafficFileError(ValueError):
    """A traffic file that cannot be used: file, line, what is wrong, and what to write instead."""

    def __init__(self, path: Path, line: int | None, problem: str) -> None:
        super().__init__(f"{path}{'' if line is None else f', line {line}'}: {problem}")


@dataclass(frozen=True, slots=True)
class MatrixFlows:
    """Messages of a file, between ranks 0 … num_ranks − 1.

    source, destination  [m] ranks; equal only for joins of no bytes
    size_bytes           [m]
    start_s              [m] after the workload's start
    edge_from, edge_to   [e] message edge_from[i] is received before edge_to[i] starts
    """

    num_ranks: int
    source: Int64
    destination: Int64
    size_bytes: Int64
    start_s: Float64
    edge_from: Int64
    edge_to: Int64


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold something, without comments (`#` to the end of the line), with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TrafficFileError(path, None, "is not a text file (UTF-8)") from None
    except OSError as error:
        raise TrafficFileError(path, None, f"cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if line:
            yield number, line


def whole_number(path: Path, number: int, cell: str, what: str) -> int:
    """The cell as an integer ≥ 0 that a float holds exactly; raises TrafficFileError naming `what`."""
    try:
        value = float(cell)
    except ValueError:
        raise TrafficFileError(path, number, f"'{cell}' is not a {what}") from None
    if not math.isfinite(value) or value < 0 or value != int(value) or value >= 2**53:
        raise TrafficFileError(path, number, f"'{cell}' is not a {what}: give a whole number, 0 or more")
    return int(value)
