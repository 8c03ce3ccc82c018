"""The simulated engine against a recorded run of a real one: error by error, with each mechanism switched off in turn.

Nothing is fitted to the run. Blind, the number of KV blocks follows from our own accounting of memory; matched, it is
the recorded one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.architecture import ARCHITECTURES
from models.cost.measured import Measured
from models.cost.priced import PricedStep, measured_step
from models.cost.step import AttentionTable
from models.cost.table import CostTable
from models.experts import Popularity
from models.features import ACTIVATION_BYTES
from models.hardware import ACCELERATORS
from models.memory import MemoryPlan, plan_memory
from models.parallelism import Parallelism
from models.pipeline import stage_shares
from sim.engine.clock import Clock
from sim.scenario.cost_table import is_of
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.graphs import largest_graph
from sim.serving.pipeline_replica import Stages
from sim.serving.replica import EngineLimits
from sim.serving.workload import ServingWorkload
from sim.validate.recorded_runs import RecordedRun, RunError

Float64 = NDArray[np.float64]

TARGETS = {"mean wait": 0.03, "mean first token - scheduled": 0.08, "mean ttft": 0.03, "mean tpot": 0.01,
           "mean e2el": 0.015, "mean absolute e2el error": 0.02, "makespan": 0.015}  # fmt: skip
"""Relative errors that we are out for; of every p99 5 %."""
P99_TARGET = 0.05


@dataclass(frozen=True)
class Served:
    """Times of each request, in seconds from the first arrival; running and waiting can be counted from them."""

    arrival_s: Float64
    scheduled_s: Float64 | None
    first_token_s: Float64
    last_token_s: Float64
    num_output_tokens: NDArray[np.int64]

    def quantities(self) -> dict[str, Float64]:
        """By name, seconds of each request; tpot of those with several tokens."""
        several = self.num_output_tokens > 1
        found = {"ttft": self.first_token_s - self.arrival_s}
        if several.any():
            decode_s = (self.last_token_s - self.first_token_s)[several]
            found["tpot"] = decode_s / (self.num_output_tokens[several] - 1)
        found["e2el"] = self.last_token_s - self.arrival_s
        if self.scheduled_s is None:
            return found
        wait_s, start_s = self.scheduled_s - self.arrival_s, self.first_token_s - self.scheduled_s
        return {"wait": wait_s, "first token - scheduled": start_s} | found


@dataclass(frozen=True)
class Error:
    """One figure of a run: recorded and simulated seconds, None where it is of differences, the relative error, and the
    target."""

    name: str
    recorded: float | None
    simulated: float | None
    error: float
    target: float

    @property
    def is_within(self) -> bool:
        return abs(self.error) <= self.target

    @property
    def is_mean(self) -> bool:
        return self.name.startswith("mean")


@dataclass(frozen=True)
class Switches:
    """Mechanisms of the engine."""

    asynchronous_scheduling: bool = True
    prefix_caching: bool = True
    recorded_graphs: bool = True
    uneven_attention: bool = True
    chunk_with_decodes: bool = True


MECHANISMS = tuple(Switches.__dataclass_fields__)


class Replay:
    """A recorded run, ready to be served again by the simulated engine on the times of a table."""

    def __init__(self, run: RecordedRun, table: CostTable, model: str, accelerator: str) -> None:
        if accelerator not in ACCELERATORS:
            raise RunError(f"unknown accelerator {accelerator!r}; choose one of {', '.join(ACCELERATORS)}")
        if model not in ARCHITECTURES:
            raise RunError(f"unknown model {model!r}; choose one of {', '.join(ARCHITECTURES)}")
        if not is_of(accelerator, table.gpu):
            raise RunError(f"{table.origin} has times of {table.gpu}, not of {accelerator}, which ran it")
        self.run = run
        architecture, device, parallelism = ARCHITECTURES[model], ACCELERATORS[accelerator], parallelism_of(run, model)
        self.architecture, self.parallelism = architecture, parallelism
        longest = int((run.num_prompt_tokens + run.num_output_tokens).max())
        self.priced: PricedStep = measured_step(
            Measured(table), architecture, device, parallelism,
            max_tokens=max(run.max_num_batched_tokens, run.max_num_seqs, longest), max_seqs=run.max_num_seqs,
            max_context=longest,
        )  # fmt: skip
        plan: MemoryPlan = plan_memory(
            architecture, device, parallelism, memory_fraction=run.memory_fraction, block_size=run.block_size,
            max_num_batched_tokens=run.max_num_batched_tokens, max_num_seqs=run.max_num_seqs,
        )  # fmt: skip
        self.plan, self.planned_blocks = plan, plan.num_kv_blocks

    def serve(self, num_blocks: int, switches: Switches = Switches()) -> Served:
        """Every request as the simulated engine serves it."""
        run, priced = self.run, self.priced
        attention = priced.table.attention
        if not switches.uneven_attention:
            attention = attention._replace(tail=np.zeros((0, 0, 0, 0)))
        if not switches.chunk_with_decodes:
            attention = attention._replace(extra=np.zeros((0, 0, 0, 0)))
        priced = replace(priced, table=priced.table._replace(attention=attention))
        has_graphs = run.has_graphs and switches.recorded_graphs
        limits = EngineLimits(
            run.policy, num_blocks, run.block_size, run.max_num_seqs, run.max_num_batched_tokens,
            is_async=run.is_async and switches.asynchronous_scheduling and run.pipeline == 1,
            is_caching=run.is_caching and switches.prefix_caching,
            max_graph_tokens=largest_graph(run.max_num_seqs, run.max_num_batched_tokens) if has_graphs else 0,
        )  # fmt: skip
        clock = Clock()
        contents = None if run.blocks is None else run.blocks.contents(run.num_prompt_tokens, run.block_size)
        is_spread = self.parallelism.expert > 1
        workload = ServingWorkload(
            "recorded", clock, arrival_s=run.arrival_s, num_prompt_tokens=run.num_prompt_tokens,
            num_output_tokens=run.num_output_tokens, limits=limits, priced=priced, contents=contents,
            num_replicas=1 if is_spread else run.data, router="least_outstanding",
            table=None if is_spread else priced.table, iterations=[self._iteration(attention)] if is_spread else [],
            stages=self._stages(1 if is_spread else run.data),
        )  # fmt: skip
        clock.run(until=workload.start())
        if workload.failures:
            raise RunError(f"{workload.failures.total()} requests are {next(iter(workload.failures))}")
        rows = workload.requests
        return Served(rows["arrival_s"], rows["scheduled_s"], rows["first_token_s"], rows["finished_s"],
                      run.num_output_tokens)  # fmt: skip

    def _stages(self, num_replicas: int) -> Stages | None:
        """Of layers cut into stages, all of them in one host: nobody recorded where they lay."""
        parallelism, architecture = self.parallelism, self.architecture
        if parallelism.pipeline == 1:
            return None
        num = num_replicas * parallelism.num_accelerators
        ranks = np.arange(num).reshape(num_replicas, parallelism.pipeline, parallelism.tensor)
        shares = stage_shares(self.priced.operators, architecture, parallelism.pipeline)
        crosses = np.zeros((num_replicas, parallelism.pipeline - 1), np.bool_)
        return Stages(*shares, ranks, crosses, architecture.hidden_size * ACTIVATION_BYTES)

    def _iteration(self, attention: AttentionTable) -> ExpertParallelIteration:
        """Of engines that step together; nobody recorded which experts were popular: all alike."""
        experts = self.architecture.experts
        assert experts is not None, "checked"
        stages = {name: table._replace(attention=attention) for name, table in self.priced.stages.items()}
        return ExpertParallelIteration(
            self.architecture, self.parallelism, stages, range(self.parallelism.num_accelerators),
            Popularity.uniform(experts.num_routed, experts.top_k), np.random.default_rng(0), exchange="all_gather",
        )  # fmt: skip

    @property
    def recorded(self) -> Served:
        run = self.run
        return Served(run.arrival_s, run.scheduled_s, run.first_token_s, run.last_token_s, run.num_output_tokens)

    def blocks_used(self) -> dict[str, int]:
        """matched: as recorded, where that is known; blind: by our own accounting."""
        matched = {} if self.run.num_blocks is None else {"matched": self.run.num_blocks}
        return matched | {"blind": self.planned_blocks}

    def mechanisms(self, num_blocks: int) -> dict[str, dict[str, float]]:
        """Errors of the means, with everything on, and with one mechanism off at a time."""
        ways = {"all on": Switches()} | {f"no {name.replace('_', ' ')}": replace(Switches(), **{name: False})
                                         for name in MECHANISMS}  # fmt: skip
        return {
            way: {e.name: e.error for e in errors(self.recorded, self.serve(num_blocks, switches)) if e.is_mean}
            for way, switches in ways.items()
        }


def parallelism_of(run: RecordedRun, model: str) -> Parallelism:
    """How the run's model was cut: experts over all devices where they were, else over the tensor-parallel ones.

    Raises RunError for data-parallel engines of a mixture of experts that cut each expert over all devices, and for
    stages whose experts lie on several of them.
    """
    if ARCHITECTURES[model].experts is None:
        return Parallelism(run.tensor, pipeline=run.pipeline)
    if run.pipeline > 1 and (run.is_expert_parallel or run.data > 1):
        raise RunError(
            f"{run.name}: pipeline_parallel_size {run.pipeline} with experts over several devices of a stage: not "
            "replayed so far"
        )
    if run.data > 1 and not run.is_expert_parallel:
        raise RunError(
            f"{run.name}: data_parallel_size {run.data} of a mixture of experts without enable_expert_parallel: only "
            "runs whose experts lie whole on devices are replayed so far"
        )
    num_devices = run.tensor * run.data
    experts = num_devices if run.is_expert_parallel else 1
    return Parallelism(run.tensor, experts, "all_gather", run.pipeline)


def errors(recorded: Served, simulated: Served) -> list[Error]:
    """Every figure that TARGETS names, and the p99 of every quantity."""
    real, ours = recorded.quantities(), simulated.quantities()
    found = []
    for name, values in real.items():
        found.append(_error(f"mean {name}", values.mean(), ours[name].mean(), TARGETS[f"mean {name}"]))
    for name, values in real.items():
        recorded_s, simulated_s = np.quantile(values, 0.99), np.quantile(ours[name], 0.99)
        found.append(_error(f"p99 {name}", recorded_s, simulated_s, P99_TARGET))
    each = np.abs(ours["e2el"] / real["e2el"] - 1).mean()
    found.append(Error("mean absolute e2el error", None, None, float(each), TARGETS["mean absolute e2el error"]))
    found.append(
        _error("makespan", recorded.last_token_s.max(), simulated.last_token_s.max(), TARGETS["makespan"])
    )
    return found


def _error(name: str, recorded: float, simulated: float, target: float) -> Error:
    error = simulated / recorded - 1 if recorded else np.inf if simulated else 0.0
    return Error(name, float(recorded), float(simulated), float(error), target)


def in_service(served: Served, at_s: Float64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(running, waiting) requests at times; of a run that says when requests were first scheduled."""
    assert served.scheduled_s is not None, "only engines say when they schedule"
    arrived, scheduled, ended = (
        np.searchsorted(np.sort(times), at_s, side="right")
        for times in (served.arrival_s, served.scheduled_s, served.last_token_s)
    )
    return scheduled - ended, arrived - scheduled
