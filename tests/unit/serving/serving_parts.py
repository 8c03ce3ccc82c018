"""Small parts that the serving tests share: cost tables in round numbers, and a run in one call."""

from __future__ import annotations

import numpy as np

from models.cost.step import StepTable, roofline_table
from models.features import Feature
from sim.engine.clock import Clock
from sim.serving.replica import EngineLimits
from sim.serving.workload import ServingWorkload


def linear_table(fixed_s=1.0, **seconds_per_feature: float) -> StepTable:
    """A step takes fixed_s, plus so many seconds per unit of each feature named."""
    names = ["tokens", *seconds_per_feature]
    work = np.zeros((len(names), 2, len(Feature)))
    tags = np.array([[Feature[name.upper()], 0, 0] for name in names])
    for i, (name, seconds) in enumerate(seconds_per_feature.items(), start=1):
        work[i, 0, Feature[name.upper()]] = seconds
    fixed = np.zeros(len(names))
    fixed[0] = fixed_s
    return roofline_table(work, np.ones((len(names), 2)), fixed, np.ones(len(names)), tags, np.zeros(1), 0.0)


def workload(arrivals, prompts, outputs, *, table=None, clock=None, policy="chunked_prefill", **options):
    """A workload of requests on small engines (100 blocks of 4 tokens unless told otherwise)."""
    limit_names = EngineLimits.__dataclass_fields__.keys() & options.keys()
    limits = {"num_blocks": 100, "block_size": 4} | {name: options.pop(name) for name in limit_names}
    if "classes" in options:
        names, class_of = options["classes"]
        options["classes"] = names, np.asarray(class_of)
    if "iterations" not in options:
        options["table"] = linear_table() if table is None else table
    return ServingWorkload(
        "chat",
        clock or Clock(),
        arrival_s=np.asarray(arrivals, dtype=float),
        num_prompt_tokens=np.asarray(prompts),
        num_output_tokens=np.asarray(outputs),
        limits=EngineLimits(policy, **limits),
        **options,
    )


def served(*arguments, **options) -> ServingWorkload:
    """The same, after it has run."""
    made = workload(*arguments, **options)
    made.clock.run(until=made.start())
    return made


def tokens_of(made: ServingWorkload, request: int) -> list[float]:
    """Times of the request's output tokens."""
    row = made.requests[request]
    return made.token_time_s[row["first_token"] :][: row["num_generated"]].tolist()
