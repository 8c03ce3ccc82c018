"""The traffic workload: one pattern of messages, once or several times."""

from __future__ import annotations

from collections.abc import Generator, Iterator
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

_Delivered = tuple[Float64, Float64, Float64]
"""Of delivered flows: completion times, slowdowns and sizes; the last two are empty without ideal times."""


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
        self._delivered: list[_Delivered] = []

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
                self._delivered.append(self._delivered_of(graph, results))

    def _jitter(self) -> Float64 | float:
        if self._jitter_s == 0:
            return 0.0
        late = self._rng.random(self._graph.num_messages) * self._jitter_s
        return np.where(self._graph.num_inputs == 0, late, 0.0)

    def _delivered_of(self, graph: MessageGraph, results: MessageResults) -> _Delivered:
        times = fct_s(graph, results)
        if self._ideal_fct_s is None:
            return times, np.zeros(0), np.zeros(0)
        delivered = is_flow(graph) & (results.outcome == DELIVERED)
        return times, times / self._ideal_fct_s[delivered], graph.size_bytes[delivered].astype(np.float64)

    def _samples(self) -> _Delivered:
        """Of every flow that was delivered so far."""
        parts = list(self._delivered)
        if (unfinished := self._log.unfinished) is not None:
            parts.append(self._delivered_of(*unfinished))
        return _joined([p[0] for p in parts]), _joined([p[1] for p in parts]), _joined([p[2] for p in parts])

    @property
    def planned(self) -> tuple[MessageGraph, int]:
        """What one repetition sends, and how many there are."""
        return self._graph, self._repeat

    @property
    def progress(self) -> tuple[float, float]:
        """(repetitions done, all repetitions); the one under way counts for its messages that have ended."""
        return self._log.num_carried, self._repeat

    def notes(self) -> list[str]:
        """What a reader of the results has to know: flows that were not delivered, or that there was none."""
        if not is_flow(self._graph).any():
            return ["no flow at all: the pattern sends nothing"]
        return self._log.notes(self._repeat)

    def metrics(self) -> dict[str, float | None]:
        """Completion and flow completion times; None where no repetition, or no flow, was delivered whole.

        completion_time_s, acknowledged_s   mean over repetitions that were delivered whole
        delivered_bytes, fct_s.*            over every flow delivered, also of a repetition that was cut short
        extra_pieces                        pieces that the path policy made beyond one for each flow that it placed
        slowdown.*                          fct over the ideal, of the same flows as fct_s
        slowdown.1e4-1e5.*                  of flows from 10^4 to below 10^5 bytes; smaller decades first
        """
        done = self._log.summaries if is_flow(self._graph).any() else []
        totals = self._log.totals()
        durations = np.array([s.duration_s for s in done if s.duration_s is not None])
        acknowledged = [s.acknowledged_after_s for s in done if s.acknowledged_after_s is not None]
        times, slowdown, sizes = self._samples()
        found: dict[str, float | None] = {
            "completion_time_s": float(durations.mean()) if len(durations) else None,
            "acknowledged_s": float(np.mean(acknowledged)) if acknowledged else None,
            "delivered_bytes": totals.delivered_bytes,
            "extra_pieces": totals.extra_pieces,
        }
        found |= self._log.quality()
        found |= statistics(times, "fct_s", (50, 90, 99))
        found["fct_s.max"] = float(times.max()) if len(times) else None
        if self._repeat > 1:
            found |= statistics(durations, "repetition_s", (99,))
        if self._ideal_fct_s is not None:
            found |= statistics(slowdown, "slowdown", (50, 99))
            for exponent, inside in _by_decade(slowdown, sizes):
                found |= statistics(inside, f"slowdown.1e{exponent}-1e{exponent + 1}", (50, 99))
        return found

    def record(self, recorder: Recorder) -> None:
        """Table `flows`; with ideal times also `slowdowns`: percentiles by size, a bin per power of ten."""
        self._log.record(recorder)
        _, slowdown, sizes = self._samples()
        for exponent, inside in _by_decade(slowdown, sizes):
            p50, p90, p99 = np.percentile(inside, (50, 90, 99))
            recorder.append(
                "slowdowns",
                workload=self.name,
                from_bytes=10**exponent,
                below_bytes=10 ** (exponent + 1),
                num_flows=len(inside),
                mean=float(inside.mean()),
                p50=float(p50),
                p90=float(p90),
                p99=float(p99),
            )


def _by_decade(values: Float64, sizes: Float64) -> Iterator[tuple[int, Float64]]:
    """(exponent e, values of flows from 10^e to below 10^(e + 1) bytes), by size; e = 0 takes in empty flows."""
    exponents = np.searchsorted(10.0 ** np.arange(1, 19), sizes, side="right")
    for exponent in np.unique(exponents).tolist():
        yield exponent, values[exponents == exponent]


def _joined(parts: list[Float64]) -> Float64:
    return np.concatenate(parts) if parts else np.zeros(0)
