"""The run folder: every result is on disk as soon as it is there, and reads back as it was.

    summary.json                               metrics of every variant, their intervals and differences
    scenario.yaml                              the scenario's text as it ran
    tables/<variant>/<seed>/<table>.parquet    rows; tables/<variant>/<seed>/result.json: metrics and notes
    figures/, report.html                      written by sim.results.report
    run.json                                   wall time and machine, the only file that changes between runs

Files are written beside their place and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from sim.engine.recorder import RecordedTables
from sim.results.run_results import RunResults, VariantResult, add_network_tax
from sim.results.summary import plain_json, summary_of

__all__ = ["RunFolder", "RunFolderError", "RunResults", "StoredTables", "VariantResult", "read_run"]

SUMMARY, SCENARIO, RESULT, RUN = "summary.json", "scenario.yaml", "result.json", "run.json"


QUICK_S, SUMMARY_PAUSES = 0.05, 20.0
"""A summary that took longer than this is written again after so many times what was more."""


class RunFolderError(Exception):
    """A run folder cannot be written or read: the text names the path and the remedy."""


class StoredTables(Mapping[str, pd.DataFrame]):
    """The tables of one result on disk, read when asked for and not kept. Picklable: it is a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.read(table)

    def read(self, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A table, or some of its columns. Raises KeyError when there is no such table."""
        path = self.folder / f"{table}.parquet"
        if not path.is_file():
            raise KeyError(table)
        return pq.read_table(path, columns=list(columns) if columns else None).to_pandas()

    def chunks(self, table: str, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Some of a table's columns, a row group at a time. Raises KeyError when there is no such table."""
        path = self.folder / f"{table}.parquet"
        if not path.is_file():
            raise KeyError(table)
        with pq.ParquetFile(path) as file:  # its iter_batches would keep what it has read
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns)).to_pandas()

    def num_rows(self, table: str) -> int:
        """Of a table that is there."""
        return int(pq.read_metadata(self.folder / f"{table}.parquet").num_rows)

    def __contains__(self, table: object) -> bool:
        return (self.folder / f"{table}.parquet").is_file()  # a Mapping's own would read the table

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.parquet")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class RunFolder:
    """Where a run is written: `create`, then `add` per finished result, then `finish`.

    A killed run leaves every result that was added, and a summary.json marked partial, of all of them or, where
    writing it takes long, of most.
    """

    def __init__(self, path: Path, run: RunResults) -> None:
        self.path = Path(path)
        self.run = run
        self._next_summary_s = 0.0

    @classmethod
    def create(cls, path: Path, run: RunResults, overwrite: bool = False) -> RunFolder:
        """Make the folder and write the scenario's text.

        Raises RunFolderError when the folder holds anything and overwrite is False, or when it holds
        something other than a run: only what a run writes is ever removed.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file; choose another --out")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise RunFolderError(f"{path} is not empty; choose another --out, or allow overwriting")
            if not ((path / SUMMARY).is_file() or (path / SCENARIO).is_file()):
                raise RunFolderError(f"{path} holds no run, so nothing is removed; choose another --out")
            for name in ("tables", "figures"):
                shutil.rmtree(path / name, ignore_errors=True)
            for name in (SUMMARY, SCENARIO, RUN, "report.html"):
                (path / name).unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, run)
        write_atomically(path / SCENARIO, run.scenario_text.encode())
        return folder

    def add(self, result: VariantResult) -> None:
        """Write one finished result and the summary so far; its tables leave memory.

        A result that a worker has already written (`write_result`) is only taken in.
        """
        if not isinstance(result.tables, StoredTables):
            result = write_result(self.path, self.run, result)
        self.run.results[result.name, result.seed] = result
        started_s = time.monotonic()
        if started_s >= self._next_summary_s:
            self._write_summary(is_running=True)
            ended_s = time.monotonic()
            self._next_summary_s = ended_s + SUMMARY_PAUSES * max(0.0, ended_s - started_s - QUICK_S)

    def note(self, variant: str, seed: int, **notes: Any) -> None:
        """Add notes to a stored result; a note of None is taken away."""
        result = self.run.results[variant, seed]
        result.notes.update(notes)
        for key in [key for key, value in result.notes.items() if value is None]:
            del result.notes[key]
        assert isinstance(result.tables, StoredTables)
        _write_result_file(result.tables.folder, result)

    def finish(self, partial: bool = False, machine: Mapping[str, Any] | None = None) -> None:
        """Write the final summary, and run.json with what is not reproducible (wall time, machine)."""
        self.run.partial = partial or self.run.num_finished < self.run.num_expected
        self._write_summary(is_running=False)
        if machine is not None:
            write_atomically(self.path / RUN, _json_bytes(dict(machine)))

    def _write_summary(self, is_running: bool) -> None:
        add_network_tax(self.run)
        was_partial = self.run.partial
        self.run.partial = was_partial or is_running
        write_atomically(self.path / SUMMARY, _json_bytes(summary_of(self.run)))
        self.run.partial = was_partial


def variant_slugs(variants: Sequence[str]) -> dict[str, str]:
    """Folder names of variants: lower case, a-z 0-9 and dashes, made unique by a number."""
    slugs: dict[str, str] = {}
    for name in variants:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "variant"
        slug, count = plain, 1
        while slug in slugs.values():
            count += 1
            slug = f"{plain}-{count}"
        slugs[name] = slug
    return slugs


def write_result(path: Path, run: RunResults, result: VariantResult) -> VariantResult:
    """Write one result under the run folder; returns it with its tables on disk. Safe in a worker process.

    The same tables give the same bytes: no times, a fixed compression, rows in the order recorded.
    result.json is written last: it says that the tables are complete.
    """
    folder = Path(path) / "tables" / variant_slugs(run.variants)[result.name] / str(result.seed)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {
        "scenario": run.scenario_name,
        "variant": result.name,
        "seed": str(result.seed),
        "version": run.version,
        "calibration": run.calibration or "",
    }
    for stale in folder.glob("*.parquet"):  # of the fluid run that this one replaces
        if stale.stem not in result.tables:
            stale.unlink()
    tables = result.tables
    for name in tables:
        frames = tables.chunks(name) if isinstance(tables, RecordedTables) else iter([tables[name]])
        _write_table(folder / f"{name}.parquet", frames, provenance)
    _write_result_file(folder, result)
    return VariantResult(
        result.name, result.seed, dict(result.metrics), StoredTables(folder), dict(result.notes)
    )


def _write_result_file(folder: Path, result: VariantResult) -> None:
    content = {"variant": result.name, "seed": result.seed, "metrics": result.metrics, "notes": result.notes}
    write_atomically(folder / RESULT, _json_bytes(content))


def _write_table(path: Path, frames: Iterator[pd.DataFrame], provenance: Mapping[str, str]) -> None:
    """All frames one after the other; their columns and types are those of the first."""
    with _whole_or_not(path) as temporary:
        writer = None
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if writer is None:
                schema = table.schema.with_metadata({**(table.schema.metadata or {}), **provenance})
                writer = pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=3, version="2.6")
            writer.write_table(table.cast(schema))
        assert writer is not None, "a table has at least one frame"
        writer.close()


@contextmanager
def _whole_or_not(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which is put in its place at the end, or taken away on an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with _whole_or_not(path) as temporary:
        temporary.write_bytes(content)


def _json_bytes(content: Any) -> bytes:
    text = json.dumps(plain_json(content), indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def read_run(path: Path) -> RunResults:
    """Read a run folder back; tables stay on disk until asked for.

    Raises RunFolderError when there is no summary.json, or a file is not what a run writes.
    """
    path = Path(path)
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is not a run folder: {SUMMARY}: {error}") from error
    scenario = path / SCENARIO
    try:
        run = RunResults(
            scenario_name=summary["scenario"],
            question=summary.get("question"),
            seeds=tuple(summary.get("seeds") or [summary["seed"]]),
            variants=tuple(summary["variants"]),
            version=summary["version"],
            calibration=summary.get("calibration"),
            partial=bool(summary.get("partial", False)),
            answer=summary.get("answer"),
            ideal_variant=summary.get("ideal_variant"),
            axes={axis: tuple(entries) for axis, entries in summary.get("axes", {}).items()},
            sides=dict(summary.get("sides", {})),
            scenario_text=scenario.read_text(encoding="utf-8") if scenario.is_file() else "",
        )
        slugs = variant_slugs(run.variants)
        for variant in run.variants:
            for seed in run.seeds:
                result = path / "tables" / slugs[variant] / str(seed) / RESULT
                if result.is_file():
                    stored = json.loads(result.read_text(encoding="utf-8"))
                    run.results[variant, seed] = VariantResult(
                        variant, seed, stored["metrics"], StoredTables(result.parent), stored.get("notes", {})
                    )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} does not hold what a run writes: {error!r}") from error
    add_network_tax(run)
    return run
