"""The table of measured times: one row per operator and shape, wherever it was measured.

A Parquet or CSV file. What a row says:

operator, name     what ran: a key of FAMILIES; the name tells kernels of one family apart ("layernorm", "moe")
precision          of the weights, or of the cache: bf16, fp8
shape and axes     whole numbers, in the columns that the operator's family lists; the others are empty
seconds            median of one call; p10_s and p90_s where known
rates              bytes_per_s and flop_per_s of what the call must move and compute; of_ceiling: the larger of their
                   shares of what the same device reached in a pass over memory and a large product; where known
unit               always "s": a file in another unit is refused, not converted
gpu, source        the device as it calls itself, and where the row comes from, with its licence
driver, torch, triton, commit, date    of the measurement, where known
method             how times between these rows are found (`models.cost.method`); empty: as is usual for the operator

Everything that reads or writes times for the simulator goes through here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.cost.method import read_method

__all__ = ["COLUMNS", "FAMILIES", "CostTable", "Family", "TableError", "read_table", "table_of", "write_table"]


class TableError(ValueError):
    """A table that cannot be used; the message names file, row, value and remedy."""


@dataclass(frozen=True, slots=True)
class Family:
    """Operators that are priced alike.

    shape: columns that must be equal, or are interpolated where a family says so in `models.cost.measured`
    axes: columns along which times are interpolated
    """

    shape: tuple[str, ...]
    axes: tuple[str, ...]


FAMILIES = {
    # rows x inputs times inputs x outputs
    "linear": Family(("inputs", "outputs"), ("rows",)),
    # a pass over `numbers` activations a row
    "elementwise": Family(("numbers",), ("rows",)),
    # the same by bytes read and written, for kernels that have no row of their own
    "memory_pass": Family((), ("size_bytes",)),
    # one prefill chunk after a prefix, and decodes with a context each, in one call; 0: none
    "attention": Family(("heads", "kv_heads", "head_dim"), ("chunk", "prefix", "decodes", "context")),
    # decodes beside a chunk, num_long of them with the context `longest`, the others with `context`; num_long 0: even
    "uneven_attention": Family(
        ("heads", "kv_heads", "head_dim"), ("chunk", "prefix", "decodes", "context", "num_long", "longest")
    ),
    # the attention block of a latent-attention model with its projections, one chunk or decodes
    "latent_attention": Family(("heads", "hidden"), ("chunk", "prefix", "decodes", "context")),
    # routed experts of one rank: `rows` (token, expert) pairs, which touch `experts` of the rank's `num_experts`
    "experts": Family(("hidden", "inner", "top_k", "num_experts"), ("rows", "experts")),
    # size_bytes as nccl-tests prints it: of a gather or scatter the whole
    "all_reduce": Family(("ranks",), ("size_bytes",)),
    "all_gather": Family(("ranks",), ("size_bytes",)),
    "reduce_scatter": Family(("ranks",), ("size_bytes",)),
    "all_to_all": Family(("ranks",), ("size_bytes",)),
    # tokens to experts and back over `ranks` ranks of expert parallelism
    "dispatch": Family(("ranks", "hidden", "top_k", "num_experts"), ("rows",)),
    "combine": Family(("ranks", "hidden", "top_k", "num_experts"), ("rows",)),
    # ExpertWeave's rerouting of `rows` tokens over `adapters` maps; the name says which way
    "reroute": Family(("top_k", "num_experts", "adapters"), ("rows",)),
    # pairs of `rows` tokens sorted by slot; the name says whether rerouting takes place on the way
    "align": Family(("top_k", "num_experts", "adapters", "slots"), ("rows",)),
    # a copy from pinned host memory
    "host_copy": Family((), ("size_bytes",)),
    # a call of the virtual-memory interface for so many pages; the name says which
    "page_call": Family((), ("pages",)),
}

NUMBERS = tuple(dict.fromkeys(c for family in FAMILIES.values() for c in (*family.shape, *family.axes)))
TEXTS = ("operator", "name", "precision", "unit", "gpu", "source", "driver", "torch", "triton", "commit", "date",
         "method")  # fmt: skip
TIMES = ("seconds", "p10_s", "p90_s")
RATES = ("bytes_per_s", "flop_per_s", "of_ceiling")
COLUMNS = (*TEXTS, *NUMBERS, *TIMES, *RATES)
KEY = ("operator", "name", "precision", *NUMBERS)
NEEDED = ("operator", "seconds", "unit", "gpu", "source")


@dataclass(frozen=True)
class CostTable:
    """Rows in the columns of COLUMNS, all of one device; of rows for one shape the median is kept once."""

    rows: pd.DataFrame
    origin: str

    @property
    def gpu(self) -> str:
        return str(self.rows["gpu"].iloc[0]) if len(self.rows) else ""

    def of(self, operator: str, **equal: Any) -> pd.DataFrame:
        """Rows of an operator in which these columns have these values."""
        found = self.rows[self.rows["operator"] == operator]
        for column, value in equal.items():
            found = found[found[column] == value]
        return found


def table_of(rows: pd.DataFrame | Iterable[dict[str, Any]], origin: str) -> CostTable:
    """A checked table. Raises TableError, which names the row (the first is 1) and what is wrong with it.

    Rows with the same operator, name, precision and numbers are the same call measured again: their median is taken.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    missing = [column for column in NEEDED if column not in frame]
    if missing:
        raise TableError(f"{origin}: no column {missing[0]}; it has {', '.join(map(str, frame.columns)) or 'none'}")
    unknown = [column for column in frame if column not in COLUMNS]
    if unknown:
        raise TableError(f"{origin}: unknown column {unknown[0]}; columns are {', '.join(COLUMNS)}")
    frame = frame.reindex(columns=COLUMNS).reset_index(drop=True)
    for column in TEXTS:
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "").astype(str)
    for column in (*NUMBERS, *TIMES, *RATES):
        read = pd.to_numeric(frame[column], errors="coerce")
        _refuse(origin, frame, read.isna() & frame[column].notna(), column, "is no number")
        frame[column] = read.astype(float)
    _check(origin, frame)
    frame[list(NUMBERS)] = frame[list(NUMBERS)].astype("Int64")
    first = {c: "median" if c in (*TIMES, *RATES) else "first" for c in COLUMNS if c not in KEY}
    merged = frame.groupby(list(KEY), sort=False, dropna=False).agg(first).reset_index()
    return CostTable(merged[list(COLUMNS)], origin)


def _check(origin: str, frame: pd.DataFrame) -> None:
    known = ", ".join(FAMILIES)
    _refuse(origin, frame, ~frame["operator"].isin(FAMILIES), "operator", f"is unknown; operators are {known}")
    _refuse(origin, frame, frame["unit"] != "s", "unit", 'must be "s"; convert the times to seconds')
    seconds = frame["seconds"]
    _refuse(origin, frame, ~(np.isfinite(seconds) & (seconds > 0)), "seconds", "must be a time above 0")
    for text in frame["method"].unique():
        try:
            _ = text and read_method(text)
        except ValueError as error:
            _refuse(origin, frame, frame["method"] == text, "method", str(error))
    usual = frame["gpu"].mode().iloc[0] if len(frame) else ""
    is_other = frame["gpu"] != usual
    _refuse(origin, frame, is_other, "gpu", f"differs from the other rows' {usual!r}; a table is of one device")
    for operator, family in FAMILIES.items():
        is_it = frame["operator"] == operator
        for column in NUMBERS:
            value = frame[column]
            if column in (*family.shape, *family.axes):
                is_wrong = is_it & ~((value >= 0) & (value == np.floor(value)))
                _refuse(origin, frame, is_wrong, column, f"must be a whole number: {operator} needs it")
            else:
                _refuse(origin, frame, is_it & value.notna(), column, f"must be empty: {operator} has no {column}")


def _refuse(origin: str, frame: pd.DataFrame, is_wrong: pd.Series, column: str, sentence: str) -> None:
    if is_wrong.any():
        row = int(np.argmax(is_wrong.to_numpy()))
        value = frame[column].iloc[row]
        raise TableError(f"{origin}: row {row + 1}: {column} {value!r} {sentence}")


def read_table(path: str | Path) -> CostTable:
    """A table from a .parquet or .csv file. Raises TableError, also for a file that is neither."""
    path = Path(path)
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; `spindle calibrate` makes tables") from None
    except Exception as error:
        raise TableError(f"{path}: cannot be read as {path.suffix or 'Parquet'}: {error}") from error
    return table_of(frame, str(path))


def write_table(table: CostTable, path: str | Path) -> None:
    """As read_table reads it, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if path.suffix == ".csv":
        table.rows.dropna(axis=1, how="all").to_csv(beside, index=False)
    else:
        table.rows.to_parquet(beside, index=False)
    beside.replace(path)
