"""Replicas whose layers lie on several stages: one that stays inside a host, and one whose stages span hosts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.step import StepTable
from models.pipeline import HANDOVER_TENSORS
from sim.engine.clock import Clock
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.transfer import Fabric, Transfer
from sim.serving.fabric_replica import FabricReplica
from sim.serving.pipeline import (
    PipelineState,
    advance_pipeline,
    begin_micro_batch,
    complete_micro_batch,
    forget_parts,
    lose_batches,
    new_pipeline_state,
    next_pipeline_end_s,
)
from sim.serving.replica import STEPS_PER_ADVANCE, Engine, LocalReplica


@dataclass(frozen=True, slots=True)
class Stages:
    """How replicas are cut into p stages, each of `tensor` accelerators.

    of_stages, of_sends    as `models.pipeline.stage_shares`, for the rows of the table that prices a step
    ranks                  [replicas, p, tensor] accelerators
    crosses                [replicas, p - 1] whether a stage and the next lie on different hosts
    row_bytes              of one token's activations, in one of the HANDOVER_TENSORS tensors
    """

    of_stages: NDArray[np.float64]
    of_sends: NDArray[np.float64]
    ranks: NDArray[np.int64]
    crosses: NDArray[np.bool_]
    row_bytes: int


class PipelineEngine(Engine):
    """An engine with batches in flight on several stages."""

    pipeline: PipelineState

    def cut(self, stages: Stages) -> PipelineEngine:
        """What crosses hosts has no time of its own here: it goes through the fabric."""
        of_sends = np.where(stages.crosses[self.index][:, None], 0.0, stages.of_sends)
        self.pipeline = new_pipeline_state(stages.of_stages, of_sends, self.limits.max_num_seqs)
        return self

    def take_away(self, request: int) -> int:
        forget_parts(self.pipeline, request)
        return super().take_away(request)

    def lose_memory(self) -> None:
        super().lose_memory()
        lose_batches(self.pipeline)

    def busy_s(self) -> tuple[NDArray[np.float64], float]:
        """(accelerator time of each stage, time in which any batch was in flight), of batches that have finished."""
        return self.pipeline.stages["busy_s"], float(self.pipeline.queue["active_s"][0])


class PipelineReplica(LocalReplica):
    """A replica whose stages all lie in one host: times follow from its own batches."""

    engine: PipelineEngine

    def _step(self, until_s: float) -> int:
        engine = self.engine
        return int(advance_pipeline(
            engine.state, engine.pipeline, engine.policy, self.table, until_s, STEPS_PER_ADVANCE,
            engine.limits.max_step_rows,
        ))  # fmt: skip

    @property
    def next_s(self) -> float:
        return float(next_pipeline_end_s(self.engine.state, self.engine.pipeline))


@dataclass(slots=True)
class _Batch:
    """A batch on its way. left: each stage is done with it; crossing_s: time that it was between hosts."""

    stage_s: list[float]
    send_s: list[float]
    num_rows: int
    left: list[Event]
    done: Event
    crossing_s: float = 0.0


@dataclass(slots=True)
class _Underway:
    """Batches in flight, in order, and transfers between stages; a new one after a death, so that what was on its way
    before knows that nobody waits for it."""

    batches: deque[_Batch] = field(default_factory=deque)
    transfers: list[Transfer] = field(default_factory=list)


class FabricPipelineReplica(FabricReplica):
    """A replica whose stages lie on several hosts: between them activations go through the fabric.

    Each of the `tensor` ranks of a stage sends its part of each of the HANDOVER_TENSORS tensors to its twin on the next
    stage, in messages of their own, and the next stage begins when all have come. A stage that has sent goes on with
    the next batch meanwhile. Between stages of one host the time is the cost table's.

    Leaves out: what the first stage is told of the sampled tokens (8 bytes a request).
    """

    def __init__(
        self, clock: Clock, engine: PipelineEngine, table: StepTable, stages: Stages, fabric: Fabric | None,
        owner: str = "",
    ) -> None:  # fmt: skip
        self.clock, self.engine, self.table, self.fabric, self.owner = clock, engine, table, fabric, owner
        self.engines = (engine,)
        self.ranks, self.crosses = stages.ranks[engine.index], stages.crosses[engine.index].tolist()
        self.part_bytes = stages.row_bytes / self.ranks.shape[1]
        self.alone = None
        self.held_s: Counter[tuple[str, str]] = Counter()
        self.looked_s = 0.0
        self.on_end: Callable[[], None] | None = None
        self._idle = self._drained = self._transfer = None
        self._underway = _Underway()
        self._process = clock.process(self._serve())

    def die(self) -> None:
        for transfer in self._underway.transfers:
            transfer.cancel()
        self._underway = _Underway()
        super().die()

    def _serve_steps(self) -> Generator[Event, None, None]:
        """The serving loop: fill the queue of batches, wait for the oldest, finish it."""
        engine, clock = self.engine, self.clock
        before: _Batch | None = None
        while True:
            batches = self._underway.batches
            while len(batches) < len(self.ranks):
                batch = self._form()
                if batch is None:
                    break
                clock.process(self._run_through(batch, before, self._underway))
                batches.append(batch)
                before = batch
            if not batches:
                before = None
                yield self._next_arrival()
                continue
            yield batches[0].done
            num_completed = engine.count("num_completed")
            self._complete(batches.popleft())
            if self.on_end is not None and engine.count("num_completed") > num_completed:
                self.on_end()
                yield clock.timeout(0.0)

    def _form(self) -> _Batch | None:  # type: ignore[override]
        """The next batch as of now, launched; None where there is nothing to schedule."""
        engine, clock = self.engine, self.clock
        state, pipeline = engine.state, engine.pipeline
        state.counts["now_s"] = clock.now
        if not begin_micro_batch(state, pipeline, engine.policy, self.table):
            return None
        queue = pipeline.queue[0]
        slot = (queue["first"] + queue["num"] - 1) % len(self.ranks)
        return _Batch(
            pipeline.stage_s[slot].tolist(), pipeline.send_s[slot].tolist(), int(queue["num_rows"]),
            [clock.event() for _ in self.ranks], clock.event(),
        )  # fmt: skip

    def _run_through(
        self, batch: _Batch, before: _Batch | None, underway: _Underway
    ) -> Generator[Event, None, None]:
        """One batch's way through the stages; a process."""
        clock, host_s, last = self.clock, self.engine.limits.host_s, len(self.ranks) - 1
        for stage, seconds in enumerate(batch.stage_s):
            if before is not None:
                yield before.left[stage]
            yield clock.timeout(max(seconds, host_s))
            if underway is not self._underway:
                return
            batch.left[stage].succeed()
            if stage == last:
                break
            if self.fabric is not None and self.crosses[stage]:
                sent_s = clock.now
                transfer = self.fabric.start(self._messages(stage, batch.num_rows))
                underway.transfers.append(transfer)
                yield transfer.done
                if underway is not self._underway:
                    return
                underway.transfers.remove(transfer)
                batch.crossing_s += clock.now - sent_s
            else:
                yield clock.timeout(batch.send_s[stage])
        batch.done.succeed()

    def _messages(self, stage: int, num_rows: int) -> MessageGraph:
        source = np.repeat(self.ranks[stage], HANDOVER_TENSORS)
        destination = np.repeat(self.ranks[stage + 1], HANDOVER_TENSORS)
        return message_graph(source, destination, int(np.ceil(num_rows * self.part_bytes)), owner=self.owner)

    def _complete(self, batch: _Batch) -> None:
        """The oldest batch is back, now; what passed inside hosts was priced when it was launched."""
        engine, pipeline = self.engine, self.engine.pipeline
        flight = pipeline.flights[pipeline.queue["first"][0]]
        flight["finish_s"] = self.clock.now
        flight["uncontended_s"] = flight["communication_s"]
        flight["communication_s"] += batch.crossing_s
        if len(engine.steps) == len(engine.state.steps) < engine.limits.max_step_rows:
            engine.grow_steps()
        complete_micro_batch(engine.state, pipeline)


def pipeline_metrics(engines: list[Any]) -> dict[str, float | None]:
    """Of the time in which a replica had any batch in flight: the share in which each stage's accelerators worked, the
    mean over the replicas weighted by that time, and what is left of all stages (`bubble_fraction`)."""
    found = [engine.busy_s() for engine in engines]
    busy_s, active_s = np.sum([busy for busy, _ in found], axis=0), sum(active for _, active in found)
    shares = [float(seconds) / active_s if active_s > 0 else None for seconds in busy_s]
    metrics: dict[str, float | None] = {f"stage_{i}_utilization": share for i, share in enumerate(shares)}
    metrics["bubble_fraction"] = 1 - float(busy_s.mean()) / active_s if active_s > 0 else None
    return metrics
