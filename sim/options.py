"""Options of the command `spindle`: those that several commands share, those of a search, and where output goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sim.scenario.errors import Refused

RUNS = Path("runs")

ScenarioArgument = Annotated[Path, typer.Argument(help="scenario file (YAML)", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change the scenario first, e.g. paths.policy=spray; repeatable"),
]
SmallOption = Annotated[bool, typer.Option("--small", help="merge the scenario's `small:` block in first")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="first seed, in place of the scenario's")]
SeedsOption = Annotated[
    int | None, typer.Option("--seeds", min=1, help="repeat with this many seeds and give intervals")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="output folder; by default runs/<scenario name>, numbered", show_default=False),
]
ForceOption = Annotated[bool, typer.Option("--force", help="replace the run in an --out folder that is not empty")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="worker processes; results do not depend on it", show_default=False),
]
PacketHopsOption = Annotated[
    float | None,
    typer.Option(
        "--max-packet-hops", min=1, help="refuse runs estimated above this [default: 2e9]", show_default=False
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress and no summary, errors only")]

TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="METRIC=MS", help="search the highest rate that holds it, such as p99_itl_ms=50; repeatable"
    ),
]
OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--over", metavar="KEY=A,B,C", help="what may be changed: tensor=1,2,4, expert=…, replicas=1..8, or a dotted "
        "key such as cluster.host.accelerator; repeatable [default: tensor degrees of a host, replicas that fit]",
    ),
]  # fmt: skip
BoundOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="METRIC=MS", help="to hold, such as p99_itl_ms=50 or people.p99_ttft_ms=500; repeatable "
        "[default: the workload's targets]",
    ),
]  # fmt: skip
RatedWorkloadOption = Annotated[
    str | None,
    typer.Option("--workload", help="of --target: whose rate, where several serve a model", show_default=False),
]
ToleranceOption = Annotated[str, typer.Option("--tolerance", help="of --target: of the rate")]
PriceOption = Annotated[
    str | None,
    typer.Option(
        "--price", metavar="DOLLARS", help="of --target: per accelerator-hour, 2.5 or h200=2.5,h100=2",
        show_default=False,
    ),
]  # fmt: skip

PoliciesOption = Annotated[
    str | None,
    typer.Option(
        "--policies", metavar="A,B", help="path policies; default: each that the fidelity can express",
        show_default=False,
    ),
]  # fmt: skip
PayerOption = Annotated[
    str | None,
    typer.Option("--workload", help="whose tax, where several cross the fabric", show_default=False),
]


def output_folder(name: str, out: Path | None, force: bool) -> Path:
    """Where a run goes: the folder asked for, or runs/<name>, numbered where that is taken.

    Raises Refused when the folder asked for cannot be made, or holds something and force is False.
    """
    if out is None:
        plain = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
        slug = "-".join(part for part in plain.split("-") if part)[:60] or "run"
        return free_path(RUNS / slug)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Refused(f"--out {out}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise Refused(f"--out {out}: {there} cannot be written to; choose another folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise Refused(f"--out {out} is not empty; choose another folder, or replace the run in it with --force")
    return out


def free_path(path: Path) -> Path:
    """The path, or the first of path-2, path-3 … that is not taken; an empty folder is free."""
    candidate, number = path, 1
    while candidate.exists() and not (candidate.is_dir() and not any(candidate.iterdir())):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
