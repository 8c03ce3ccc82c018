"""What a workload keeps of its transfers: a summary of each, and rows of the flow table."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from sim.fabric.messages import OUTCOMES, Float64, Int64, MessageGraph, MessageResults
from sim.fabric.transfer import Fabric, Transfer

DEFAULT_MAX_ROWS = 2_000_000
DELIVERED, PENDING = OUTCOMES.index("delivered"), OUTCOMES.index("pending")


class Recorder(Protocol):
    def append(self, table: str, **columns: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """One transfer as a whole. Times are None unless every message got that far.

    started_s         the first message was ready
    finished_s        the last payload byte was received
    acknowledged_s    the last acknowledgement was back
    num_flows         of them, num_ready became ready and num_delivered were delivered whole
    extra_pieces      pieces that the path policy made beyond one for each flow that it placed
    displacement      packets, the most by which one arrived behind a later one; None in fluid
    held_bytes        the most that a receiver held out of order; None in fluid
    num_packets       sent, without those sent again; retransmitted: those; spurious: those that had been there
    jain_index        of the rates of the flows delivered, (sum x)^2 / (n sum x^2); None without one
    """

    started_s: float | None
    finished_s: float | None
    acknowledged_s: float | None
    delivered_bytes: float = 0.0
    num_flows: int = 0
    num_ready: int = 0
    num_delivered: int = 0
    extra_pieces: int = 0
    displacement: int | None = None
    held_bytes: int | None = None
    num_packets: int = 0
    retransmitted: int = 0
    spurious: int = 0
    jain_index: float | None = None

    @property
    def duration_s(self) -> float | None:
        return _difference(self.finished_s, self.started_s)

    @property
    def acknowledged_after_s(self) -> float | None:
        return _difference(self.acknowledged_s, self.started_s)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over summaries; the names are theirs."""

    delivered_bytes: float
    num_flows: int
    num_ready: int
    num_delivered: int
    extra_pieces: int


@dataclass(slots=True)
class _Rows:
    """Messages of one transfer that go to the flow table; `keys` decide which stay in a sample."""

    repetition: int
    graph: MessageGraph
    message: Int64
    results: MessageResults
    keys: Float64 | None = None


class TransferLog:
    """Carries graphs over the fabric for one workload and remembers what happened to them.

    Joins (messages of no bytes from an accelerator to itself) are not flows: they appear in no row and no
    summary. Of more than `max_rows` flows, the table keeps an even random sample; `row_weight` says for how
    many flows a row stands. Summaries always come from all of them.
    """

    def __init__(
        self, workload: str, fabric: Fabric, rng: np.random.Generator, max_rows: int = DEFAULT_MAX_ROWS
    ) -> None:
        self.workload = workload
        self._summaries: list[Summary] = []
        self._arrived: list[tuple[int, MessageGraph, Transfer]] = []
        self._fabric = fabric
        self._rng = rng.spawn(1)[0]
        self._max_rows = max_rows
        self._rows: list[_Rows] = []
        self._num_seen = 0
        self._open: tuple[int, MessageGraph, Transfer] | None = None
        self._clock: Environment | None = None
        self._is_abandoned = False
        self._is_recorded = False

    def carry(
        self, repetition: int, graph: MessageGraph, clock: Environment
    ) -> Generator[Event, Any, MessageResults | None]:
        """Start the graph, wait until it is done, keep its rows and its summary.

        None for an empty graph, and for an abandoned one.
        """
        if graph.num_messages == 0:
            self._gather(everything=True)
            self._summaries.append(Summary(clock.now, clock.now, clock.now))
            return None
        transfer = self._fabric.start(graph)
        self._clock = clock
        self._open = (repetition, graph, transfer)
        yield transfer.done
        if self._is_abandoned:
            return None
        self._open = None
        self._arrived.append((repetition, graph, transfer))
        self._gather()
        return transfer.results

    @property
    def summaries(self) -> list[Summary]:
        """Of every transfer that is done, as far as it is known: ask when the run is over."""
        self._gather(everything=True)
        return self._summaries

    @property
    def unfinished(self) -> tuple[MessageGraph, MessageResults] | None:
        """The transfer under way, and its messages as they are now; None where there is none.

        A message whose last byte has left but has not arrived yet is pending, like one that still sends.
        """
        if self._open is None or self._clock is None:
            return None
        _, graph, transfer = self._open
        return graph, _as_of(self._clock.now, transfer.results)

    @property
    def num_carried(self) -> float:
        """Transfers that are done; the one under way counts for the share of its messages that have ended."""
        done = float(len(self._summaries) + len(self._arrived))
        if self._open is not None:
            _, graph, transfer = self._open
            done += transfer.num_ended / graph.num_messages
        return done

    def totals(self) -> Totals:
        """Over all transfers, the unfinished one included."""
        summaries = list(self.summaries)
        if (unfinished := self.unfinished) is not None:
            summaries.append(summary(*unfinished))
        return Totals(*(sum(getattr(s, f.name) for s in summaries) for f in fields(Totals)))

    def quality(self) -> dict[str, float | None]:
        """How evenly the flows were served, and what their packets went through, over all transfers that are done.

        jain_index                  mean over transfers
        reorder.max_displacement, reorder.max_held_bytes
                                    what spraying costs a receiver
        retransmitted_share         packets sent again, of all packets sent
        spurious_retransmissions    packets sent again that were, or had been, at their receiver
        Fluid has no packets, and only the first.
        """
        done = self.summaries
        shares = [s.jain_index for s in done if s.jain_index is not None]
        found: dict[str, float | None] = {"jain_index": float(np.mean(shares)) if shares else None}
        if not self._fabric.has_packets:
            return found
        again, packets = sum(s.retransmitted for s in done), sum(s.num_packets for s in done)
        return found | {
            "reorder.max_displacement": max((s.displacement or 0 for s in done), default=None),
            "reorder.max_held_bytes": max((s.held_bytes or 0 for s in done), default=None),
            "retransmitted_share": again / (packets + again) if packets else None,
            "spurious_retransmissions": sum(s.spurious for s in done),
        }

    def notes(self, repeat: int) -> list[str]:
        """What did not come to its end, in words; `repeat`: transfers that there were to be."""
        totals, num_begun = self.totals(), len(self.summaries) + (self._open is not None)
        missing = totals.num_flows - totals.num_delivered
        notes = []
        if missing:
            unready = totals.num_flows - totals.num_ready
            waiting = f", {unready:,} of them had not become ready" if unready else ""
            notes.append(f"{missing:,} of {totals.num_flows:,} flows were not delivered{waiting}")
        if num_begun < repeat:
            notes.append(f"{repeat - num_begun} of {repeat} repetitions had not begun")
        return notes

    def _gather(self, everything: bool = False) -> None:
        """Keep the rows and summaries of transfers whose last acknowledgement is there too; or of all that are done."""
        while self._arrived and (everything or self._arrived[0][2].is_final):
            repetition, graph, transfer = self._arrived.pop(0)
            results = transfer.results
            self._keep(repetition, graph, results)
            self._summaries.append(summary(graph, results))

    def abandon(self) -> None:
        """Cancel what is still on its way: its messages are recorded as they are, it gets no summary."""
        self._is_abandoned = True
        if self._open is not None:
            _, _, transfer = self._open
            transfer.cancel()

    def record(self, recorder: Recorder) -> None:
        """Append the rows to table `flows`, those of an unfinished transfer included."""
        self._gather(everything=True)
        if self._open is not None and (unfinished := self.unfinished) is not None and not self._is_recorded:
            self._keep(self._open[0], *unfinished)
            self._is_recorded = True
        self._thin_out()
        num_kept = sum(len(rows.message) for rows in self._rows)
        for rows in self._rows:
            r = rows.results
            recorder.append(
                "flows",
                workload=self.workload,
                repetition=rows.repetition,
                message=rows.message,
                source=rows.graph.source[rows.message],
                destination=rows.graph.destination[rows.message],
                size_bytes=rows.graph.size_bytes[rows.message],
                ready_s=r.ready_s,
                started_s=r.started_s,
                received_s=r.received_s,
                acknowledged_s=r.acknowledged_s,
                delivered_bytes=r.delivered_bytes,
                outcome=_outcome_names(r.outcome),
                num_pieces=r.num_pieces,
                **_of_packets(r),
                row_weight=self._num_seen / num_kept,
            )

    def _keep(self, repetition: int, graph: MessageGraph, results: MessageResults) -> None:
        message = np.flatnonzero(is_flow(graph))
        if len(message) < graph.num_messages:
            results = _selected(results, message)
        rows = _Rows(repetition, graph, message, results)
        self._num_seen += len(message)
        self._rows.append(rows)
        if sum(len(rows.message) for rows in self._rows) > 2 * self._max_rows:
            self._thin_out()

    def _thin_out(self) -> None:
        """Keep the max_rows rows with the smallest keys: at any time an even sample of all rows seen."""
        if self._num_seen <= self._max_rows:
            return
        for rows in self._rows:
            if rows.keys is None:
                rows.keys = self._rng.random(len(rows.message))
        keys = np.concatenate([rows.keys for rows in self._rows if rows.keys is not None])
        if len(keys) <= self._max_rows:
            return
        limit = np.partition(keys, self._max_rows - 1)[self._max_rows - 1]
        for rows in self._rows:
            assert rows.keys is not None
            chosen = np.flatnonzero(rows.keys <= limit)
            rows.results = _selected(rows.results, chosen)
            rows.message, rows.keys = rows.message[chosen], rows.keys[chosen]
        self._rows = [rows for rows in self._rows if len(rows.message)]


def is_flow(graph: MessageGraph) -> NDArray[np.bool_]:
    """Which messages move something: all but the joins of collectives and triggers."""
    return (graph.source != graph.destination) | (graph.size_bytes > 0)


def summary(graph: MessageGraph, results: MessageResults) -> Summary:
    """First and last times over the flows of a transfer."""
    flow = is_flow(graph)
    ready = results.ready_s[flow]
    is_ready = np.isfinite(ready)
    started_s = float(ready[is_ready].min()) if is_ready.any() else None
    return Summary(
        started_s,
        _last(results.received_s[flow]),
        _last(results.acknowledged_s[flow]),
        float(results.delivered_bytes[flow].sum()),
        int(flow.sum()),
        int(is_ready.sum()),
        int((results.outcome[flow] == DELIVERED).sum()),
        int(np.maximum(results.num_pieces[flow].astype(np.int64) - 1, 0).sum()),
        _largest(results.displacement, flow),
        _largest(results.held_bytes, flow),
        _total(results.num_packets, flow),
        _total(results.retransmitted, flow),
        _total(results.spurious, flow),
        _jain_index(graph, results),
    )


def fct_s(graph: MessageGraph, results: MessageResults) -> Float64:
    """Flow completion times, received − ready, of the flows delivered whole."""
    delivered = is_flow(graph) & (results.outcome == DELIVERED)
    return results.received_s[delivered] - results.ready_s[delivered]


def statistics(values: Float64, prefix: str, percentiles: tuple[int, ...]) -> dict[str, float | None]:
    """`prefix.mean`, `prefix.p50`, … of the values; None of each when there are none."""
    found: dict[str, float | None] = {f"{prefix}.mean": float(np.mean(values)) if len(values) else None}
    for p in percentiles:
        found[f"{prefix}.p{p}"] = float(np.percentile(values, p)) if len(values) else None
    return found


def _as_of(now_s: float, results: MessageResults) -> MessageResults:
    """The results without what only happens after `now_s`."""
    is_ahead = results.received_s > now_s
    return replace(
        results,
        received_s=np.where(is_ahead, np.nan, results.received_s),
        acknowledged_s=np.where(results.acknowledged_s > now_s, np.nan, results.acknowledged_s),
        outcome=np.where(is_ahead, PENDING, results.outcome).astype(np.int8),
    )


def _largest(column: NDArray[Any] | None, flow: NDArray[np.bool_]) -> int | None:
    return None if column is None else int(column[flow].max(initial=0))


def _total(column: NDArray[Any] | None, flow: NDArray[np.bool_]) -> int:
    return 0 if column is None else int(column[flow].sum())


def _jain_index(graph: MessageGraph, results: MessageResults) -> float | None:
    """Jain, Chiu and Hawe 1984, of payload / (received - ready)."""
    delivered = is_flow(graph) & (results.outcome == DELIVERED)
    seconds = results.received_s[delivered] - results.ready_s[delivered]
    size = graph.size_bytes[delivered]
    moved = (seconds > 0) & (size > 0)
    if not moved.any():
        return None
    rate = size[moved] / seconds[moved]
    return float(rate.sum() ** 2 / (len(rate) * (rate**2).sum()))


def _last(times: Float64) -> float | None:
    return float(times.max()) if len(times) and np.isfinite(times).all() else None


def _difference(end: float | None, begin: float | None) -> float | None:
    return None if end is None or begin is None else end - begin


def _selected(results: MessageResults, chosen: Int64) -> MessageResults:
    columns: dict[str, Any] = {f.name: getattr(results, f.name) for f in fields(results)}
    chosen_columns: dict[str, Any] = {k: None if column is None else column[chosen] for k, column in columns.items()}
    return MessageResults(**chosen_columns)


def _of_packets(results: MessageResults) -> dict[str, Any]:
    """Columns that only the packet level has."""
    names = ("displacement", "held_bytes", "num_packets", "retransmitted", "spurious")
    return {name: getattr(results, name) for name in names if getattr(results, name) is not None}


def _outcome_names(outcome: NDArray[np.int8]) -> str | NDArray[Any]:
    """One name where all share it, which spares the recorder millions of equal strings."""
    if len(outcome) and (outcome == outcome[0]).all():
        return OUTCOMES[outcome[0]]
    return np.array(OUTCOMES)[outcome]
