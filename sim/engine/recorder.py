"""The recorder: where a run's rows go while it runs, in columns, until they are written as tables.

A table too large to stand in memory twice is streamed: its rows are made when they are written, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROWS_PER_CHUNK = 1 << 16


Chunks = Callable[[], Iterator[dict[str, Any]]]
"""Makes a table's rows anew at each call: columns as of `Recorder.append`, at least once, with no rows if need be."""


class RecorderError(ValueError):
    """Columns that do not make rows: the text names the table and the column."""


class _Column:
    """One column: finished chunks, then the single rows that wait to become one.

    A chunk is an array, or (value, count) for a scalar repeated. A missing value is None; NaN is taken
    as missing too, because Parquet readers cannot be relied on to tell them apart.
    """

    def __init__(self) -> None:
        self.chunks: list[NDArray[Any] | tuple[Any, int]] = []
        self.rows: list[Any] = []

    @property
    def num_rows(self) -> int:
        return _length(self.chunks) + len(self.rows)

    def flush(self) -> None:
        if self.rows:
            values = np.empty(len(self.rows), dtype=object)
            values[:] = self.rows
            self.chunks.append(_narrowed(values))
            self.rows = []

    def extend(self, values: NDArray[Any] | tuple[Any, int]) -> None:
        self.flush()
        self.chunks.append(values)

    def values(self) -> Any:
        """The whole column: int64, Int64 (integers with gaps), float64, bool, boolean or categorical."""
        self.flush()
        kinds = {kind for chunk in self.chunks if (kind := _kind(chunk)) is not None}
        if not kinds:
            return np.full(_length(self.chunks), np.nan)
        if kinds <= {"integer", "number"}:
            has_gap = any(_has_gap(chunk) for chunk in self.chunks)
            if "number" in kinds:
                return _joined(self.chunks, np.float64, np.nan)
            if not has_gap:
                return _joined(self.chunks, np.int64, 0)
            gaps = np.concatenate([_gaps(chunk) for chunk in self.chunks])
            return pd.arrays.IntegerArray(_joined(self.chunks, np.int64, 0), gaps)
        if kinds == {"boolean"}:
            gaps = np.concatenate([_gaps(chunk) for chunk in self.chunks])
            values = _joined(self.chunks, np.bool_, False)
            return pd.arrays.BooleanArray(values, gaps) if gaps.any() else values
        if kinds == {"text"}:
            return _categorical(self.chunks)
        raise RecorderError(f"mixes {' and '.join(sorted(kinds))}")


class Recorder:
    """Collects rows of named tables, column by column.

    Rows keep the order in which they were appended, so the same run gives the same table. Text columns come
    out categorical, in order of first appearance.
    """

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, _Column]] = {}
        self._streams: dict[str, list[Chunks]] = {}

    def stream(self, table: str, chunks: Chunks) -> None:
        """Add rows that are made when the table is read or written. They follow those of earlier streams; a table is
        appended to or streamed, not both."""
        self._streams.setdefault(table, []).append(chunks)

    def append(self, table: str, **columns: Any) -> None:
        """Add rows to a table: each column an array (all of one length) or a scalar, repeated.

        With scalars only, it is one row. None (and NaN) is a missing value. Arrays are copied.
        Raises RecorderError on unequal lengths, or on columns other than the table's first rows had.
        """
        arrays = {name: np.array(value) for name, value in columns.items() if _is_array(value)}
        lengths = {name: len(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            if array.ndim != 1:
                raise RecorderError(f"{table}.{name} has shape {array.shape}; one value a row is expected")
        if len(set(lengths.values())) > 1:
            raise RecorderError(f"{table}: columns of unequal length: {lengths}")
        known = self._tables.setdefault(table, {name: _Column() for name in columns})
        if known.keys() != columns.keys():
            odd = ", ".join(sorted(known.keys() ^ columns.keys()))
            raise RecorderError(f"{table}: its first rows had the columns {list(known)}; differing: {odd}")
        if not lengths:
            self._append_row(known, columns)
            return
        num_rows = next(iter(lengths.values()))
        if num_rows == 0:
            return
        for name, column in known.items():
            column.extend(_narrowed(arrays[name]) if name in arrays else (_plain(columns[name]), num_rows))

    def append_some(self, table: str, **columns: Any) -> None:
        """As `append`, to a table whose rows do not all have the same columns: those that a row lacks are missing."""
        known = self._tables.setdefault(table, {name: _Column() for name in columns})
        num_rows = max(column.num_rows for column in known.values())
        for name in [name for name in columns if name not in known]:
            known[name] = _Column()
            known[name].extend((None, num_rows))
        self.append(table, **columns, **dict.fromkeys(known.keys() - columns.keys()))

    def _append_row(self, known: dict[str, _Column], columns: dict[str, Any]) -> None:
        for name, column in known.items():
            column.rows.append(_plain(columns[name]))
            if len(column.rows) >= ROWS_PER_CHUNK:
                column.flush()

    def frames(self) -> dict[str, pd.DataFrame]:
        """Every table as a data frame; the column order is that of the table's first append.

        Raises RecorderError when a column mixes, say, text and numbers.
        """
        return dict(self.tables())

    def tables(self) -> RecordedTables:
        """As `frames`, but those of streams are made when they are asked for, whole or in chunks."""
        frames = {}
        for table, columns in self._tables.items():
            values = {}
            for name, column in columns.items():
                try:
                    values[name] = column.values()
                except RecorderError as error:
                    raise RecorderError(f"{table}.{name} {error}") from error
            frames[table] = pd.DataFrame(values)
        return RecordedTables(frames, self._streams)


class RecordedTables(Mapping[str, pd.DataFrame]):
    """Tables of a run in memory."""

    def __init__(self, frames: dict[str, pd.DataFrame], streams: dict[str, list[Chunks]]) -> None:
        self._frames, self._streams = frames, streams

    def __getitem__(self, table: str) -> pd.DataFrame:
        if table in self._frames:
            return self._frames[table]
        recorder = Recorder()
        for chunks in self._streams[table]:
            for columns in chunks():
                recorder.append(table, **columns)
        return recorder.frames()[table]

    def __contains__(self, table: object) -> bool:
        return table in self._frames or table in self._streams  # a Mapping's own would make the table

    def __iter__(self) -> Iterator[str]:
        return iter([*self._frames, *self._streams])

    def __len__(self) -> int:
        return len(self._frames) + len(self._streams)

    def chunks(self, table: str) -> Iterator[pd.DataFrame]:
        """The table's rows in order, in one or several frames."""
        if table in self._frames:
            yield self._frames[table]
            return
        for chunks in self._streams[table]:
            for columns in chunks():
                recorder = Recorder()
                recorder.append(table, **columns)
                yield recorder.frames()[table]


def _is_array(value: Any) -> bool:
    return not isinstance(value, str) and hasattr(value, "__len__")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _narrowed(values: NDArray[Any]) -> NDArray[Any]:
    """Objects as a plain array where they all have one kind and none is missing."""
    if values.dtype != object or len(values) == 0 or any(v is None for v in values):
        return values
    kinds = {_scalar_kind(v) for v in values}
    types = {frozenset({"integer"}): np.int64, frozenset({"boolean"}): np.bool_}
    if kinds <= {"integer", "number"} and "number" in kinds:
        return values.astype(np.float64)
    plain = types.get(frozenset(k for k in kinds if k is not None))
    return values.astype(plain) if plain is not None else values


def _scalar_kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (int, np.integer)):
        return "integer"
    if isinstance(value, (float, np.floating)):
        return "number"
    if isinstance(value, str):
        return "text"
    raise RecorderError(f"holds a {type(value).__name__}; numbers, text and None are kept")


def _kind(chunk: NDArray[Any] | tuple[Any, int]) -> str | None:
    if isinstance(chunk, tuple):
        return _scalar_kind(chunk[0])
    by_letter = {"i": "integer", "u": "integer", "f": "number", "b": "boolean", "U": "text", "T": "text"}
    if chunk.dtype.kind in by_letter:
        return by_letter[chunk.dtype.kind]
    kinds = {_scalar_kind(v) for v in chunk} - {None}
    if len(kinds) > 1 and kinds <= {"integer", "number"}:
        return "number"
    if len(kinds) > 1:
        raise RecorderError(f"mixes {' and '.join(sorted(k for k in kinds if k))}")
    return kinds.pop() if kinds else None


def _length(chunks: list[NDArray[Any] | tuple[Any, int]]) -> int:
    return sum(chunk[1] if isinstance(chunk, tuple) else len(chunk) for chunk in chunks)


def _gaps(chunk: NDArray[Any] | tuple[Any, int]) -> NDArray[np.bool_]:
    if isinstance(chunk, tuple):
        return np.full(chunk[1], chunk[0] is None)
    if chunk.dtype == object:
        return np.array([v is None for v in chunk], dtype=bool)
    return np.zeros(len(chunk), dtype=bool)


def _has_gap(chunk: NDArray[Any] | tuple[Any, int]) -> bool:
    return chunk[0] is None if isinstance(chunk, tuple) else bool(_gaps(chunk).any())


def _joined(chunks: list[NDArray[Any] | tuple[Any, int]], dtype: Any, gap: Any) -> NDArray[Any]:
    out = np.empty(_length(chunks), dtype=dtype)
    start = 0
    for chunk in chunks:
        if isinstance(chunk, tuple):
            stop = start + chunk[1]
            out[start:stop] = gap if chunk[0] is None else chunk[0]
        else:
            stop = start + len(chunk)
            out[start:stop] = [gap if v is None else v for v in chunk] if chunk.dtype == object else chunk
        start = stop
    return out


def _categorical(chunks: list[NDArray[Any] | tuple[Any, int]]) -> pd.Categorical:
    code_of: dict[str, int] = {}
    codes = np.empty(_length(chunks), dtype=np.int32)
    start = 0
    for chunk in chunks:
        if isinstance(chunk, tuple):
            stop = start + chunk[1]
            codes[start:stop] = -1 if chunk[0] is None else code_of.setdefault(chunk[0], len(code_of))
        else:
            stop = start + len(chunk)
            codes[start:stop] = [-1 if v is None else code_of.setdefault(str(v), len(code_of)) for v in chunk]
        start = stop
    return pd.Categorical.from_codes(codes, categories=pd.Index(list(code_of), dtype="str"))
