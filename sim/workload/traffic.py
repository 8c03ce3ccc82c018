"""The traffic workload: one pattern of messages, once or several times."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
from simpy import Environment, Event

from sim.fabric.messages import Float64, MessageGraph, MessageResults
from sim.fabric.transfer import Fabric
from sim.workload.transfer_log import (
    DEFAULT_MAX_ROWS,
    DELIVERED,
    Recorder,
    TransferLog,
    fct_s,
    is_flow,
    statistics,
)


class TrafficWorkload:
    """Sends a message graph over the fabric, `repeat` times, each `gap_s` after the one before was done.

    graph         its earliest_s count from the start of a repetition
    start_s       clock time of the first repetition
    jitter_s      each message without inputs starts up to so much later, drawn evenly, anew in each
    repetition
    ideal_fct_s   [messages] on an empty fabric; with it, metrics include the slowdown, fct / ideal
    max_rows      rows of the flow table; beyond, an even sample (see TransferLog)
    """

    kind = "traffic"
    is_background = False

    def __init__(
        self,
        name: str,
        graph: MessageGraph,
        *,
        clock: Environment,
        fabric: Fabric,
        rng: np.random.Generator,
        repeat: int = 1,
        gap_s: float = 0.0,
        start_s: float = 0.0,
        jitter_s: float = 0.0,
        ideal_fct_s: Float64 | None = None,
        max_rows: int = DEFAULT_MAX_ROWS,
    ) -> None:
        self.name = name
        self._graph = graph
        self._clock = clock
        self._rng = rng
        self._repeat, self._gap_s, self._start_s, self._jitter_s = repeat, gap_s, start_s, jitter_s
        self._ideal_fct_s = ideal_fct_s
        self._log = TransferLog(name, fabric, rng, max_rows)
        self._fct_s: list[Float64] = []
        self._slowdown: list[Float64] = []
        self._slowdown_sizes: list[Float64] = []

    def start(self) -> Event:
        """Begin; the event triggers when the last repetition is done."""
        return self._clock.process(self._run())

    def _run(self) -> Generator[Event, Any, None]:
        if self._start_s > self._clock.now:
            yield self._clock.timeout(self._start_s - self._clock.now)
        for repetition in range(self._repeat):
            if repetition and self._gap_s > 0:
                yield self._clock.timeout(self._gap_s)
            graph = replace(self._graph, earliest_s=self._clock.now + self._graph.earliest_s + self._jitter())
            results = yield from self._log.carry(repetition, graph, self._clock)
            if results is not None:
                self._take(graph, results)

    def _jitter(self) -> Float64 | float:
        if self._jitter_s == 0:
            return 0.0
        late = self._rng.random(self._graph.num_messages) * self._jitter_s
        return np.where(self._graph.num_inputs == 0, late, 0.0)

    def _take(self, graph: MessageGraph, results: MessageResults) -> None:
        times = fct_s(graph, results)
        self._fct_s.append(times)
        if self._ideal_fct_s is not None:
            delivered = is_flow(graph) & (results.outcome == DELIVERED)
            self._slowdown.append(times / self._ideal_fct_s[delivered])
            self._slowdown_sizes.append(graph.size_bytes[delivered].astype(np.float64))

    def metrics(self) -> dict[str, float | None]:
        """Completion and flow completion times; None where no repetition, or no flow, was delivered whole."""
        done = self._log.summaries
        durations = np.array([s.duration_s for s in done if s.duration_s is not None])
        acknowledged = [s.acknowledged_after_s for s in done if s.acknowledged_after_s is not None]
        times = _joined(self._fct_s)
        found: dict[str, float | None] = {
            "completion_time_s": float(durations.mean()) if len(durations) else None,
            "acknowledged_s": float(np.mean(acknowledged)) if acknowledged else None,
            "delivered_bytes": float(sum(s.delivered_bytes for s in done)),
        }
        found |= statistics(times, "fct_s", (50, 90, 99))
        found["fct_s.max"] = float(times.max()) if len(times) else None
        if self._repeat > 1:
            found |= statistics(durations, "repetition_s", (99,))
        if self._ideal_fct_s is not None:
            found |= statistics(_joined(self._slowdown), "slowdown", (50, 99))
        return found

    def record(self, recorder: Recorder) -> None:
        """Table `flows`; with ideal times also `slowdowns`: percentiles by size, a bin per power of ten."""
        self._log.record(recorder)
        slowdown, sizes = _joined(self._slowdown), _joined(self._slowdown_sizes)
        if len(slowdown) == 0:
            return
        decade = np.searchsorted(10.0 ** np.arange(1, 19), sizes, side="right")
        for d in np.unique(decade):
            inside = slowdown[decade == d]
            p50, p90, p99 = np.percentile(inside, (50, 90, 99))
            recorder.append(
                "slowdowns",
                workload=self.name,
                from_bytes=int(10**d),
                below_bytes=int(10 ** (d + 1)),
                num_flows=len(inside),
                mean=float(inside.mean()),
                p50=float(p50),
                p90=float(p90),
                p99=float(p99),
            )


def _joined(parts: list[Float64]) -> Float64:
    return np.concatenate(parts) if parts else np.zeros(0)
