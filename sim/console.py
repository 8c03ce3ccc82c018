"""What the command writes: tables on standard output, errors in words on standard error."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sim.scenario.errors import Refused

BAD_INPUT = 2
TRACEBACK_FILE = "error.txt"
PIPED_WIDTH = 200


def titled_table(title: str, *columns: str) -> Table:
    """An empty table; its first column is never broken."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    return table


def _table_of_rows(rows: list[dict[str, Any]], title: str) -> Table:
    """Rows of equal keys as a table; numbers with four digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = titled_table(title, *columns)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rows_of(results: Iterable[Any]) -> list[dict[str, Any]]:
    """Results as mappings: dataclasses, named tuples and mappings are all understood."""
    rows = []
    for result in results:
        if isinstance(result, Mapping):
            rows.append(dict(result))
        elif dataclasses.is_dataclass(result) and not isinstance(result, type):
            row = dataclasses.asdict(result)
            if "passed" not in row and hasattr(result, "passed"):
                row["passed"] = result.passed
            rows.append(row)
        else:
            rows.append(result._asdict())
    return rows


def print_rows(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    if as_json:
        print_text(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    standard_output().print(_table_of_rows(rows, title))


def print_text(text: str) -> None:
    """A line or more on standard output."""
    _end_with_the_reader()
    typer.echo(text)


def _end_with_the_reader() -> None:
    """From here on a closed pipe (`spindle list | head -1`) ends the process, as it ends every other command.

    Called when results are about to be printed, not sooner: a simulation's own pipes must not end it.
    """
    if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def standard_output() -> Console:
    """Standard output for tables; lines stay whole where a file or another program reads them."""
    _end_with_the_reader()
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def fail(error: Exception, folder: Path | None = None) -> NoReturn:
    """Say in a line what went wrong and leave; bad input is never answered with a traceback."""
    if isinstance(error, typer.Exit):
        raise error
    if isinstance(error, Refused) or _is_about_folders(error):
        typer.echo(str(error), err=True)
        raise typer.Exit(BAD_INPUT) from None
    typer.echo(f"{type(error).__name__}: {error}", err=True)
    text = "".join(traceback.format_exception(error))
    if os.environ.get("SPINDLE_TRACEBACK"):
        typer.echo(text, err=True)
    elif folder is not None and folder.is_dir():
        (folder / TRACEBACK_FILE).write_text(text, encoding="utf-8")
        typer.echo(f"where it happened: {folder / TRACEBACK_FILE}", err=True)
    else:
        typer.echo("to see where it happened, set SPINDLE_TRACEBACK=1", err=True)
    raise typer.Exit(1) from None


def _is_about_folders(error: Exception) -> bool:
    from sim.results.store import RunFolderError

    return isinstance(error, RunFolderError)
