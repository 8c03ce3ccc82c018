"""Speed of the serving engine: steps simulated per second of wall time, compilation excluded.

The load is the Azure conversation trace on Llama-3.1-8B, one A100 at half its peak arithmetic, 256 sequences
and 2,048 tokens a step, KV blocks counted. The trace is looked for in $SPINDLE_DATA, then in ../shared/data
beside the repository; without it, a synthetic load of the same rate and mean lengths stands in, and says so.
"""

from __future__ import annotations

import time

import numpy as np

from models.architecture import ARCHITECTURES
from models.cost.build import step_table
from models.hardware import ACCELERATORS
from models.memory import plan_memory
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.recorded import recorded, roots
from sim.serving.replica import EngineLimits
from sim.serving.workload import ServingWorkload
from sim.workload.arrivals import arrival_times_s
from sim.workload.lengths import Lognormal
from sim.workload.traces import Trace, read_azure_trace

TRACE = "azure_llm/AzureLLMInferenceTrace_conv.csv"
REPEATS = 3
"""The fastest of so many runs counts: the others had company."""


def run() -> list[dict]:
    """One row per figure: name, value, unit, target, ok; and `note`, where the load is a stand-in."""
    trace, note = load()
    rows = []
    for policy in ("chunked_prefill", "prefill_first"):
        for scale, target in ((1.0, 150_000), (2.0, 40_000)):
            run_s, wall_s, num_steps = fastest(trace, policy, scale)
            name = f"serving steps, Azure conversation x{scale:g}, {policy}"
            rows.append(row(name, num_steps / run_s, "steps/s", target, num_steps / run_s >= target, note))
            if scale == 1.0:
                name = f"serving, whole Azure conversation trace, {policy}"
                rows.append(row(name, wall_s, "s", 10.0, wall_s <= 10.0, note))
    return rows


def row(name: str, value: float, unit: str, target: float, ok: bool, note: str | None) -> dict:
    made = {"name": name, "value": value, "unit": unit, "target": target, "ok": ok}
    return made if note is None else made | {"note": note}


def load() -> tuple[Trace, str | None]:
    """The trace, or a stand-in and the sentence that says so."""
    path = recorded(TRACE)
    if path is not None:
        return read_azure_trace(path), None
    streams = RandomStreams(1)
    num = 19_366
    # Rate and means of the published trace; its sigmas by eye.
    trace = Trace(
        arrival_times_s("poisson", 5.53, streams.stream("bench.arrivals"), num_requests=num),
        Lognormal(1155.0, 0.9, most=14_050).draw(streams.stream("bench.input"), num),
        Lognormal(211.0, 0.8, most=1_000).draw(streams.stream("bench.output"), num),
    )
    return trace, f"synthetic load of the same rate: {TRACE} is not in {' or '.join(map(str, roots()))}"


def fastest(trace: Trace, policy: str, scale: float) -> tuple[float, float, int]:
    """(seconds of the run, seconds from building the workload to its metrics, engine steps)."""
    architecture, accelerator = ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["a100"]
    table = step_table(architecture, accelerator, compute_efficiency=0.5)
    limits = EngineLimits(
        policy, plan_memory(architecture, accelerator).num_kv_blocks, is_async=policy == "chunked_prefill",
        is_caching=True, max_graph_tokens=512,
    )  # fmt: skip
    runs_s, walls_s = [], []
    # The first run compiles, or loads what was compiled.
    for _ in range(1 + REPEATS):
        started_s = time.perf_counter()
        clock = Clock()
        workload = ServingWorkload(
            "chat",
            clock,
            arrival_s=trace.arrival_s / scale,
            num_prompt_tokens=trace.num_prompt_tokens,
            num_output_tokens=trace.num_output_tokens,
            limits=limits,
            table=table,
        )
        running_s = time.perf_counter()
        clock.run(until=workload.start())
        runs_s.append(time.perf_counter() - running_s)
        workload.metrics()
        walls_s.append(time.perf_counter() - started_s)
    return float(np.min(runs_s[1:])), float(np.min(walls_s[1:])), workload.num_steps
