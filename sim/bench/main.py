"""The simulator's own speed against its targets, and the dated record of it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numba
import numpy as np

from sim.bench import estimates, fabric, million, serving

BUSY_LOAD = 0.5
"""Runnable processes per core, before the benchmark itself, from which on the machine counts as shared."""


def run_benchmarks(quick: bool = False, select: str | None = None) -> list[dict]:
    """One row per figure: name, value, unit, target, ok, and wall_s where the value is CPU time.

    A target in seconds, GiB or "x time" is the most allowed; one in 1/s or steps/s the least.
    quick       only the cases that take a few seconds
    select      only figures whose name has this in it
    """
    selected = select or ""
    rows = fabric.run(quick, selected)
    if selected in "serving" or "serving" in selected:
        rows += serving.run()
    if not quick and (selected in million.NAME or "serving" in selected):
        rows += million.run()
    if selected in "batch estimates" or "estimates" in selected:
        rows += estimates.run()
    return rows


def write_record(rows: Iterable[dict], folder: Path) -> Path:
    """Write a table with the date and the machine; returns the file, FOLDER/<date>.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [f"# Benchmarks of {today}", "", *(f"- {line}" for line in machine()), ""]
    lines += ["| what | measured | wall | target | met |", "|---|---|---|---|---|"]
    for row in rows:
        most = "≥" if row["unit"].endswith("/s") else "≤"
        wall = "" if row.get("wall_s") is None else f"{row['wall_s']:.3g} s"
        measured, target = (f"{row[key]:,.3g}" for key in ("value", "target"))
        if row["value"] >= 1000:
            measured, target = (f"{row[key]:,.0f}" for key in ("value", "target"))
        note = f" ({row['note']})" if row.get("note") else ""
        met = "yes" if row["ok"] else "no"
        lines.append(f"| {row['name']}{note} | {measured} {row['unit']} | {wall} | {most} {target} | {met} |")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{today}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def machine() -> list[str]:
    """What the figures were taken on, in a few lines."""
    lines = [
        f"{_processor()}, {os.cpu_count()} cores; every fabric case on one of them",
        f"Python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}, {platform.system()}",
    ]
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[2] / (os.cpu_count() or 1)
        lines.append(
            f"load per core over the 15 minutes before: {load:.2f}"
            + ("; the machine was shared, so judge by CPU seconds" if load > BUSY_LOAD else "")
        )
    return lines


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    if known.is_file():
        for line in known.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
