"""Traffic matrices from CSV files, and the one entry to all traffic files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sim.fabric.messages import Int64
from sim.workload.connection_file import read_connections
from sim.workload.flow_file import MatrixFlows, TrafficFileError, numbered_lines, whole_number


def read_csv(path: str | Path) -> MatrixFlows:
    """Bytes between ranks, in one of three forms told apart by the first line.

    A square table of bytes, row = source, column = destination; the same with a first row and a first
    column of labels, equal and in the same order (the cell in the corner is empty, or no number); or an edge
    list under the header `source,destination,bytes`, ranks from 0. A cell of 0 or nothing sends nothing,
    and a rank sends nothing to itself.
    """
    path = Path(path)
    rows = [(number, [cell.strip() for cell in line.split(",")]) for number, line in numbered_lines(path)]
    if not rows:
        raise TrafficFileError(path, None, "is empty; give n x n bytes, or source,destination,bytes")
    number, first = rows[0]
    if len(first) == 1 and any(mark in first[0] for mark in ";\t|"):
        raise TrafficFileError(path, number, f"'{_cut(first[0])}' has no commas; separate the cells by commas")
    if [cell.lower() for cell in first] == ["source", "destination", "bytes"]:
        return _edge_list(path, rows[1:])
    if "source" in (cell.lower() for cell in first):
        raise TrafficFileError(path, number, f"header '{','.join(first)}': write source,destination,bytes")
    return _square(path, rows)


def _edge_list(path: Path, rows: list[tuple[int, list[str]]]) -> MatrixFlows:
    source, destination, size = [], [], []
    for number, cells in rows:
        if len(cells) != 3:
            raise TrafficFileError(path, number, f"has {len(cells)} cells, expected source,destination,bytes")
        ends = [whole_number(path, number, cell, "rank") for cell in cells[:2]]
        num_bytes = whole_number(path, number, cells[2], "number of bytes")
        if ends[0] == ends[1] and num_bytes:
            raise TrafficFileError(path, number, f"rank {ends[0]} sends to itself; leave the line out")
        if num_bytes:
            source.append(ends[0])
            destination.append(ends[1])
            size.append(num_bytes)
    num_ranks = 1 + max(source + destination, default=-1)
    return _plain_flows(
        num_ranks, np.array(source, np.int64), np.array(destination, np.int64), np.array(size)
    )


def _square(path: Path, rows: list[tuple[int, list[str]]]) -> MatrixFlows:
    labels = None
    if not _is_number(rows[0][1][0]):
        labels, rows = rows[0][1][1:], rows[1:]
    n = len(rows[0][1]) - (labels is not None) if rows else 0
    if len(rows) != n:
        raise TrafficFileError(
            path, rows[-1][0] if rows else None, f"{len(rows)} rows but {n} columns; give n x n"
        )
    if labels is not None and len(labels) != n:
        raise TrafficFileError(path, None, f"{len(labels)} column labels over {n} columns")
    table = np.zeros((n, n), np.int64)
    for i, (number, cells) in enumerate(rows):
        if labels is not None:
            if cells[0] != labels[i]:
                raise TrafficFileError(
                    path,
                    number,
                    f"row label '{cells[0]}' where column {i + 1} is '{labels[i]}'; use one order",
                )
            cells = cells[1:]
        if len(cells) != n:
            raise TrafficFileError(path, number, f"has {len(cells)} numbers, expected {n}")
        table[i] = _row_of_bytes(path, number, cells)
        if table[i, i]:
            raise TrafficFileError(path, number, f"rank {i} sends {table[i, i]} bytes to itself; put 0 there")
    source, destination = np.nonzero(table)
    return _plain_flows(n, source, destination, table[source, destination])


def _row_of_bytes(path: Path, number: int, cells: list[str]) -> Int64:
    try:
        values = np.array([cell or "0" for cell in cells], dtype=np.float64)
        if np.all((values >= 0) & (values < 2**53) & (values == np.floor(values))):
            return values.astype(np.int64)
    except ValueError:
        pass
    return np.array([whole_number(path, number, cell or "0", "number of bytes") for cell in cells])


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _plain_flows(num_ranks: int, source: Int64, destination: Int64, size_bytes: Int64) -> MatrixFlows:
    none = np.zeros(0, np.int64)
    size_bytes = np.asarray(size_bytes, dtype=np.int64)
    return MatrixFlows(num_ranks, source, destination, size_bytes, np.zeros(len(source)), none, none)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


MATRIX_READERS: dict[str, Callable[[str | Path], MatrixFlows]] = {".csv": read_csv, ".cm": read_connections}


def read_matrix(path: str | Path) -> MatrixFlows:
    """The flows of a `.csv` or `.cm` file, one of them with bytes at least.

    Raises TrafficFileError for any other name or bad content.
    """
    path = Path(path)
    reader = MATRIX_READERS.get(path.suffix.lower())
    if reader is None:
        raise TrafficFileError(
            path, None, "is neither .csv (bytes between ranks) nor .cm (htsim connections)"
        )
    flows = reader(path)
    if not flows.size_bytes.any():
        raise TrafficFileError(path, None, "sends nothing: no flow in it has a byte; give at least one")
    return flows
