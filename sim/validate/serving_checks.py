"""Queueing: one server with a fixed service time against M/D/1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.architecture import ARCHITECTURES
from models.bounds import md1_mean_wait_s
from models.cost.build import step_table
from models.hardware import ACCELERATORS
from sim.engine.clock import Clock
from sim.serving.replica import EngineLimits
from sim.serving.workload import ServingWorkload
from sim.validate.table import CheckResult

SERVICE_S = 1.0
BATCHES = 40
"""The interval comes from the means of this many stretches of the run."""


def md1(num_requests: int = 40_000, utilisation: float = 0.7) -> Iterator[CheckResult]:
    """Requests of one token, one at a time, each step exactly SERVICE_S: waits against the Pollaczek-Khinchine mean."""
    rng = np.random.default_rng(7)
    arrival_s = np.cumsum(rng.exponential(SERVICE_S / utilisation, num_requests))
    # The host takes SERVICE_S per step, far longer than the accelerator: a fixed service time.
    table = step_table(ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h100"])
    limits = EngineLimits("chunked_prefill", num_blocks=64, max_num_seqs=1, max_num_batched_tokens=16, host_s=SERVICE_S)
    clock = Clock()
    ones = np.ones(num_requests, np.int64)
    server = ServingWorkload(
        "server", clock, arrival_s=arrival_s, num_prompt_tokens=ones, num_output_tokens=ones, limits=limits,
        table=table, record_batches=False,
    )  # fmt: skip
    clock.run(until=server.start())
    wait_s = server.requests["scheduled_s"] - server.requests["arrival_s"]
    means = wait_s.reshape(BATCHES, -1).mean(axis=1)
    half = 3.56 * means.std(ddof=1) / np.sqrt(BATCHES)  # Student t, 39 degrees of freedom, 99.9 %
    expected = md1_mean_wait_s(utilisation / SERVICE_S, SERVICE_S)
    error = abs(float(means.mean()) - expected)
    yield CheckResult(
        f"M/D/1 mean wait at utilisation {utilisation}, s", expected, float(means.mean()), error / expected,
        f"99.9 % interval, {half / expected:.3f}", "Pollaczek-Khinchine", bool(error <= half),
    )  # fmt: skip
