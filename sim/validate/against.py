"""Recorded runs of real engines beside ours: error tables, mechanisms one by one, and curves of who ran and waited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models import memory
from models.cost.table import CostTable
from models.hardware import ACCELERATORS
from sim.results.drawing import PALETTE, QUIET, WIDTH_IN, new_figure, put_title, style
from sim.validate.engine_runs import Replay, Served, errors, in_service
from sim.validate.recorded_runs import RecordedRun, RunError

Row = dict[str, Any]


def accelerator_of(run: RecordedRun, table: CostTable) -> str:
    """The preset whose name is in the device's, as the run or the table calls it."""
    for device in (run.device, table.gpu):
        plain = "".join(filter(str.isalnum, device.lower()))
        found = [name for name in ACCELERATORS if name.replace("_", "") in plain]
        if found:
            return max(found, key=len)
    raise RunError(
        f"no accelerator is called like {run.device or table.gpu!r}; give --accelerator, one of "
        f"{', '.join(ACCELERATORS)}"
    )


def error_rows(replay: Replay) -> Iterator[Row]:
    """One row a figure, blind and, where the number of blocks was recorded, matched."""
    for blocks, num_blocks in replay.blocks_used().items():
        for e in errors(replay.recorded, replay.serve(num_blocks)):
            yield {
                "KV blocks": f"{blocks}, {num_blocks}", "figure": e.name, "recorded, s": e.recorded,
                "simulated, s": e.simulated, "error": e.error, "target": e.target, "ok": e.is_within,
            }  # fmt: skip


def mechanism_rows(replay: Replay) -> Iterator[Row]:
    """Errors of the means with all mechanisms on, and with each off in turn."""
    num_blocks = next(iter(replay.blocks_used().values()))
    for way, found in replay.mechanisms(num_blocks).items():
        yield {"mechanisms": way} | found


def assumption_rows(replay: Replay) -> Iterator[Row]:
    """What half as much and as much again of the memory that an engine keeps for itself (`models.memory.ENGINE_BYTES`,
    the only constant that is not from the data) does to a blind run."""
    block_bytes = replay.plan.kv_bytes_per_block
    for factor in (0.5, 1.0, 1.5):
        num_blocks = replay.planned_blocks - round((factor - 1) * memory.ENGINE_BYTES / block_bytes)
        found = errors(replay.recorded, replay.serve(num_blocks))
        means = {e.name: e.error for e in found if e.name in ("mean ttft", "mean tpot", "mean e2el")}
        yield {"engine bytes": f"x {factor:g}", "KV blocks": num_blocks} | means


def draw_service(replay: Replay, path: Path) -> Path | None:
    """Who runs and who waits over time, ours over the recorded ones; None for a run that says nothing of it."""
    timeline = replay.run.timeline
    if timeline is None or replay.run.scheduled_s is None:
        return None
    num_blocks = next(iter(replay.blocks_used().values()))
    ours: Served = replay.serve(num_blocks)
    at_s = np.linspace(0, max(ours.last_token_s.max(), timeline["t"].max()), 600)
    running, waiting = in_service(ours, at_s)
    real_running, real_waiting = in_service(replay.recorded, at_s)
    with style():
        figure = new_figure(WIDTH_IN, 3.2)
        axes = figure.subplots(1, 2, sharex=True)
        for ax, name, real, simulated, colour in (
            (axes[0], "running", real_running, running, PALETTE[1]),
            (axes[1], "waiting", real_waiting, waiting, PALETTE[0]),
        ):
            ax.fill_between(at_s, real, step="mid", color=QUIET, alpha=0.35, lw=0, label="vLLM, recorded")
            ax.plot(at_s, simulated, color=colour, lw=1.3, label="Spindle")
            ax.set(xlabel="time (s)", ylabel=f"requests {name}", ylim=(0, None), xlim=(0, at_s[-1]))
            ax.legend(frameon=False, loc="upper right")
        gap = np.abs(running + waiting - real_running - real_waiting).mean()
        put_title(
            figure, f"{replay.run.name}: on average {gap:.1f} of {len(ours.arrival_s)} requests are elsewhere than in "
            "the real engine", WIDTH_IN,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path
