"""The collective workload: one operation among fixed ranks, once or several times."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
from simpy import Environment, Event

from models.bounds import bus_bytes_per_s
from sim.collectives.algorithms import algorithm as find_algorithm
from sim.fabric.messages import Float64, Int64, MessageGraph
from sim.fabric.transfer import Fabric
from sim.workload.transfer_log import DEFAULT_MAX_ROWS, Recorder, Summary, TransferLog, statistics


class RankJitter:
    """Late ranks: a rank's messages start no earlier than the rank, which is up to `jitter_s` late."""

    def __init__(self, ranks: Int64, jitter_s: float, rng: np.random.Generator) -> None:
        self._ranks, self._jitter_s, self._rng = ranks, jitter_s, rng

    def starting_at(self, graph: MessageGraph, time_s: float) -> MessageGraph:
        """The graph with each rank starting at time_s plus its delay, drawn anew at every call."""
        if self._jitter_s == 0:
            return replace(graph, earliest_s=np.full(graph.num_messages, time_s, dtype=np.float64))
        start_s = np.full(int(self._ranks.max()) + 1, time_s, dtype=np.float64)
        start_s[self._ranks] += self._rng.random(len(self._ranks)) * self._jitter_s
        return replace(graph, earliest_s=start_s[graph.source])


def record_collectives(
    recorder: Recorder,
    workload: str,
    operation: str,
    algorithm: str,
    num_ranks: int,
    size_bytes: int,
    summaries: list[Summary],
) -> None:
    """Append a row per repetition to table `collectives`."""
    for repetition, s in enumerate(summaries):
        recorder.append(
            "collectives",
            workload=workload,
            repetition=repetition,
            operation=operation,
            algorithm=algorithm,
            size_bytes=size_bytes,
            started_s=s.started_s,
            finished_s=s.finished_s,
            bus_bytes_per_s=_bus_bytes_per_s(operation, size_bytes, num_ranks, s.duration_s),
        )


def _bus_bytes_per_s(operation: str, size_bytes: int, num_ranks: int, time_s: float | None) -> float | None:
    """None where the collective did not finish, or took no time (one rank)."""
    return bus_bytes_per_s(operation, size_bytes, num_ranks, time_s) if time_s else None


class CollectiveWorkload:
    """Runs a collective `repeat` times; each begins `gap_s` (say, compute) after the one before was done.

    ranks                 accelerator ids
    size_bytes            as nccl-tests prints it, see sim.collectives.algorithms
    hierarchical          through the hosts' NVLink domains; needs host_of_accelerator
    start_s               clock time of the first repetition
    jitter_s              each rank starts up to so much later, drawn evenly, anew in each repetition
    Raises CollectiveError when the collective cannot be built.
    """

    kind = "collective"
    is_background = False

    def __init__(
        self,
        name: str,
        operation: str,
        algorithm: str,
        ranks: Int64,
        size_bytes: int,
        *,
        clock: Environment,
        fabric: Fabric,
        rng: np.random.Generator,
        chunk_bytes: int | None = None,
        hierarchical: bool = False,
        host_of_accelerator: Int64 | None = None,
        repeat: int = 1,
        gap_s: float = 0.0,
        start_s: float = 0.0,
        jitter_s: float = 0.0,
        queue_pairs: int = 1,
        max_rows: int = DEFAULT_MAX_ROWS,
    ) -> None:
        ranks = np.asarray(ranks, dtype=np.int64)
        self.name = name
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
        self._clock = clock
        self._repeat, self._gap_s, self._start_s = repeat, gap_s, start_s
        self._jitter = RankJitter(ranks, jitter_s, rng)
        self._log = TransferLog(name, fabric, rng, max_rows)

    @property
    def num_messages(self) -> int:
        """Messages of one repetition."""
        return self._graph.num_messages

    def start(self) -> Event:
        """Begin; the event triggers when the last repetition is done."""
        return self._clock.process(self._run())

    def _run(self) -> Generator[Event, Any, None]:
        if self._start_s > self._clock.now:
            yield self._clock.timeout(self._start_s - self._clock.now)
        for repetition in range(self._repeat):
            if repetition and self._gap_s > 0:
                yield self._clock.timeout(self._gap_s)
            graph = self._jitter.starting_at(self._graph, self._clock.now)
            yield from self._log.carry(repetition, graph, self._clock)

    @property
    def planned(self) -> tuple[MessageGraph, int]:
        """What one repetition sends, and how many there are."""
        return self._graph, self._repeat

    @property
    def progress(self) -> tuple[float, float]:
        """(repetitions done, all repetitions); the one under way counts for its messages that have ended."""
        return self._log.num_carried, self._repeat

    def notes(self) -> list[str]:
        """What a reader of the results has to know: flows that were not delivered."""
        return self._log.notes(self._repeat)

    def metrics(self) -> dict[str, float | None]:
        """Means over the repetitions that were delivered whole; None where there are none.

        extra_pieces   pieces that the path policy made beyond one for each flow that it placed, over all repetitions
        """
        durations = _present(s.duration_s for s in self._log.summaries)
        acknowledged = _present(s.acknowledged_after_s for s in self._log.summaries)
        mean_s = float(durations.mean()) if len(durations) else None
        return {
            "completion_time_s": mean_s,
            "acknowledged_s": float(acknowledged.mean()) if len(acknowledged) else None,
            "bus_bytes_per_s": _bus_bytes_per_s(self.operation, self.size_bytes, self.num_ranks, mean_s),
            "extra_pieces": self._log.totals().extra_pieces,
            **statistics(durations, "repetition_s", (99,)),
            **self._log.quality(),
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


def _present(values) -> Float64:
    return np.array([v for v in values if v is not None], dtype=np.float64)
