"""The training workload: steps of computation, each followed by one collective."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from simpy import Environment, Event, Interrupt, Process

from sim.collectives.algorithms import algorithm as find_algorithm
from sim.collectives.plan import CollectiveError
from sim.collectives.workload import RankJitter, record_collectives
from sim.fabric.messages import Int64, MessageGraph
from sim.fabric.transfer import Fabric
from sim.workload.transfer_log import DEFAULT_MAX_ROWS, Recorder, TransferLog, statistics


class TrainingWorkload:
    """Steps of compute_s on every rank, then a collective that all wait for.

    steps      how many; None: until `stop()`, as a background to other workloads
    jitter_s   in every step each rank computes up to so much longer, drawn evenly
    Leaves out: overlap of computation and communication, and pipeline stages.
    Raises CollectiveError when the collective cannot be built, or an endless run would take no time a step.
    """

    kind = "training"

    def __init__(
        self,
        name: str,
        ranks: Int64,
        compute_s: float,
        operation: str,
        algorithm: str,
        size_bytes: int,
        *,
        clock: Environment,
        fabric: Fabric,
        rng: np.random.Generator,
        steps: int | None = None,
        chunk_bytes: int | None = None,
        hierarchical: bool = False,
        host_of_accelerator: Int64 | None = None,
        start_s: float = 0.0,
        jitter_s: float = 0.0,
        queue_pairs: int = 1,
        max_rows: int = DEFAULT_MAX_ROWS,
    ) -> None:
        ranks = np.asarray(ranks, dtype=np.int64)
        self.name = name
        self.is_background = steps is None
        self.operation, self.algorithm = operation, algorithm
        self.num_ranks, self.size_bytes = len(ranks), size_bytes
        self._graph = find_algorithm(operation, algorithm)(
            ranks,
            size_bytes,
            chunk_bytes=chunk_bytes,
            hierarchical=hierarchical,
            host_of_accelerator=host_of_accelerator,
            queue_pairs=queue_pairs,
            owner=name,
        )
        if self.is_background and compute_s <= 0 and self._graph.num_messages == 0:
            raise CollectiveError(f"{name}: steps without compute or messages take no time and never end")
        self._clock = clock
        self._steps, self._compute_s, self._start_s = steps, compute_s, start_s
        self._jitter = RankJitter(ranks, jitter_s, rng)
        self._log = TransferLog(name, fabric, rng, max_rows)
        self._process: Process | None = None
        self._is_stopped = False
        self._step_s: list[float] = []
        self._communication_s: list[float] = []

    def start(self) -> Event:
        """Begin; the event triggers after the last step, or at `stop()`."""
        self._process = self._clock.process(self._run())
        return self._process

    def stop(self) -> None:
        """Give up the step under way and cancel its messages; it counts in no metric."""
        if self._process is not None and self._process.is_alive:
            self._is_stopped = True
            self._log.abandon()
            self._process.interrupt("stopped")

    def _run(self) -> Generator[Event, Any, None]:
        try:
            if self._start_s > self._clock.now:
                yield self._clock.timeout(self._start_s - self._clock.now)
            step = 0
            while self._steps is None or step < self._steps:
                begin_s = self._clock.now
                if self._compute_s > 0:
                    yield self._clock.timeout(self._compute_s)
                computed_s = self._clock.now
                graph = self._jitter.starting_at(self._graph, computed_s)
                yield from self._log.carry(step, graph, self._clock)
                if self._is_stopped:
                    return
                self._step_s.append(self._clock.now - begin_s)
                self._communication_s.append(self._clock.now - computed_s)
                step += 1
        except Interrupt:
            return

    @property
    def planned(self) -> tuple[MessageGraph, int | None]:
        """What one step sends, and how many there are; None: until the others end."""
        return self._graph, self._steps

    @property
    def progress(self) -> tuple[float, float] | None:
        """(steps done, all steps); None when they never end."""
        return None if self._steps is None else (self._log.num_carried, self._steps)

    def metrics(self) -> dict[str, float | None]:
        """Of the finished steps; communication is the time of a step that compute_s does not cover."""
        steps, communication = np.array(self._step_s), np.array(self._communication_s)
        return {
            **statistics(steps, "step_s", (99,)),
            "num_steps": float(len(steps)),
            "communication_s.mean": float(communication.mean()) if len(steps) else None,
            "communication_share": float(communication.sum() / steps.sum()) if steps.sum() > 0 else None,
        }

    def record(self, recorder: Recorder) -> None:
        """Tables `flows` and `collectives`."""
        self._log.record(recorder)
        record_collectives(
            recorder,
            self.name,
            self.operation,
            self.algorithm,
            self.num_ranks,
            self.size_bytes,
            self._log.summaries,
        )
