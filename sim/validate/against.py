"""Recorded runs of real engines beside ours: error tables, mechanisms one by one, and curves of who ran and waited."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from models import memory
from models.cost.table import CostTable, read_table
from models.hardware import ACCELERATORS
from sim.recorded import recorded
from sim.results.drawing import PALETTE, QUIET, WIDTH_IN, new_figure, put_title, style
from sim.scenario.cost_table import is_of
from sim.validate.engine_runs import Replay, Served, errors, in_service
from sim.validate.recorded_runs import RecordedRun, RunError, preset_of, read_run
from sim.validate.single_steps import step_rows

Row = dict[str, Any]


def accelerator_of(run: RecordedRun, table: CostTable) -> str:
    """The preset whose name is in the device's, as the run or the table calls it."""
    for device in (run.device, table.gpu):
        found = [name for name in ACCELERATORS if is_of(name, device)]
        if found:
            return max(found, key=len)
    raise RunError(
        f"no accelerator is called like {run.device or table.gpu!r}; give --accelerator, one of "
        f"{', '.join(ACCELERATORS)}"
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded run that may lie in the recorded data, and the profile of its GPU."""

    device: str
    model: str = "meta-llama/Llama-3.1-8B"

    def replay(self, skew: str | None = None) -> Replay | None:
        """skew: "on" or "off" takes the profile's uneven batches or leaves them; None: as it says itself.

        None where the data is not here.
        """
        folder = recorded(f"vllm_ground_truth/{self.device}/{self.model.rsplit('/', 1)[-1]}")
        sent, profile = recorded("vllm_ground_truth/workload_llama-3.1-8b.jsonl"), recorded(f"profiles/{self.device}")
        if folder is None or profile is None:
            return None
        run = read_run(folder, sent)
        with TemporaryDirectory() as made:
            out = Path(made, "profile.parquet")
            words = ["import", "llmservingsim", "--from", str(profile), "--model", self.model]
            words += ["--tensor", str(run.tensor), "--out", str(out), *([] if skew is None else ["--skew", skew])]
            subprocess.run([sys.executable, "-m", "calibration", *words], check=True, stdout=subprocess.DEVNULL)
            table = read_table(out)
        return Replay(run, table, preset_of(self.model), accelerator_of(run, table))


CASES = (Case("RTX4090"), Case("RTXPRO6000"))
HEAD = ("| KV blocks | figure | recorded | simulated | error | target | |", "|---|---|---|---|---|---|---|")


def as_page() -> Iterator[str]:
    """The recorded runs that are here, as Markdown."""
    for case in CASES:
        replay = case.replay()
        if replay is None:
            continue
        yield from ("", f"### {case.model} on {case.device}", "", *HEAD)
        for row in error_rows(replay):
            seconds = (row["recorded, s"], row["simulated, s"])
            times = " | ".join("–" if s is None else f"{s:.4g} s" for s in seconds)
            verdict = "ok" if row["ok"] else "outside"
            judged = f"{row['error']:+.2%} | {row['target']:.1%} | {verdict}"
            yield f"| {row['KV blocks']} | {row['figure']} | {times} | {judged} |"
        if steps := step_rows(replay):
            yield from _as_table("Single steps with a prompt, found in the times of requests (medians):", iter(steps))
        yield from _as_table("Errors with one mechanism off at a time:", mechanism_rows(replay))
        yield from _as_table("With the profile's uneven batches, and without:", _skew_rows(case))
        words = "What is assumed, the memory that the engine keeps for itself, halved and half as much again (blind):"
        yield from _as_table(words, assumption_rows(replay))


def _skew_rows(case: Case) -> Iterator[Row]:
    for skew in ("on", "off"):
        replay = case.replay(skew)
        assert replay is not None, "it was here before"
        num_blocks = next(iter(replay.blocks_used().values()))
        found = errors(replay.recorded, replay.serve(num_blocks))
        yield {"uneven batches": skew} | {e.name: e.error for e in found if e.is_mean}


def _as_table(words: str, rows: Iterator[Row]) -> Iterator[str]:
    found = list(rows)
    yield from ("", words, "", "| " + " | ".join(found[0]) + " |", "|---" * len(found[0]) + "|")
    for row in found:
        yield "| " + " | ".join(_shown(name, value) for name, value in row.items()) + " |"


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if name.endswith(", ms") else f"{value:+.2%}"


def compare(
    folder: Path, table: Path, workload: Path | None, model: str | None, accelerator: str | None, figure: Path | None
) -> tuple[dict[str, list[Row]], list[str]]:
    """(tables by title, remarks) of a recorded run on the times of a table; draws the figure where one is asked for.

    Raises RunError, TableError, TraceError; ValueError where the model does not fit its accelerators.
    """
    run, times = read_run(folder, workload), read_table(table)
    replay = Replay(run, times, model or preset_of(run.model), accelerator or accelerator_of(run, times))
    remarks = []
    if run.scheduled_s is None:
        remarks.append(
            "a client does not say how its server was set up; assumed: one accelerator, "
            f"{run.max_num_seqs:,} sequences and {run.max_num_batched_tokens:,} tokens a step, {run.policy}, "
            f"{run.memory_fraction:g} of the memory"
        )
    if figure is not None and draw_service(replay, figure) is None:
        remarks.append("no figure: the run says nothing of who ran and waited")
    steps = step_rows(replay)
    return {
        f"{run.name}: recorded and simulated": list(error_rows(replay)),
        **({"Single steps with a prompt": steps} if steps else {}),
        "Relative errors with mechanisms switched off": list(mechanism_rows(replay)),
        "What is assumed: the engine's own memory": list(assumption_rows(replay)),
    }, remarks


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
        gaps = [np.abs(ours_now - real_now).mean()
                for ours_now, real_now in ((running, real_running), (waiting, real_waiting))]  # fmt: skip
        put_title(
            figure, f"{replay.run.name}: the number of requests that run is off by {gaps[0]:.1f} on average, of those "
            f"that wait by {gaps[1]:.1f}", WIDTH_IN,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path
