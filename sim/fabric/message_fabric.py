"""What both fidelities do with message graphs: hand them to the core, watch, cancel, and hand the results back.

A fidelity adds its core: the arrays, the compiled loop, and what it knows of links.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from simpy import Event

from sim.engine.clock import Clock
from sim.fabric import fluid_state as fs
from sim.fabric import handover, readiness
from sim.fabric.messages import (
    CANCELLED,
    DELIVERED,
    NO_GATE,
    PENDING,
    MessageGraph,
    MessageGraphError,
    MessageResults,
    message_in_cycle,
)
from sim.fabric.topology import Topology
from sim.fabric.transfer import Transfer

EVENTS_PER_CALL = 2**18
SMALLEST = 64
"""Rows that every table starts with."""


class ConservationError(RuntimeError):
    """Bytes appeared or vanished: a bug in the simulator, never in the scenario."""


class _Ranges:
    """Contiguous index ranges out of one growing space: first fit, neighbours joined when given back."""

    def __init__(self) -> None:
        self.size = 0
        self.free: list[tuple[int, int]] = []

    def take(self, n: int) -> int:
        for k, (first, last) in enumerate(self.free):
            if last - first >= n:
                self.free[k : k + 1] = [(first + n, last)] if last - first > n else []
                return first
        first = self.size
        if self.free and self.free[-1][1] == self.size:
            first = self.free.pop()[0]
        self.size = first + n
        return first

    def give(self, first: int, n: int) -> None:
        if n == 0:
            return
        spans = sorted([*self.free, (first, first + n)])
        joined: list[tuple[int, int]] = []
        for a, b in spans:
            if joined and joined[-1][1] == a:
                joined[-1] = (joined[-1][0], b)
            else:
                joined.append((a, b))
        self.free = joined


def copied(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The larger array with the old one's rows in front."""
    new[: len(old)] = old
    return new


@dataclass(slots=True)
class _Span:
    """Where a live transfer's rows are."""

    transfer: Transfer
    first: int
    first_edge: int
    watches: list[int]


class MessageFabric(ABC):
    """The contract's side of a fabric: transfers, gates, watches, and the ledger of application bytes."""

    has_packets = False
    _state: Any
    _core: Any

    def __init__(self, clock: Clock, topology: Topology) -> None:
        self.clock = clock
        self.topology = topology
        self._ranges, self._edge_ranges = _Ranges(), _Ranges()
        self._spans: dict[int, _Span] = {}
        self._free_transfers = list(range(SMALLEST - 1, -1, -1))
        self._free_watches = list(range(SMALLEST - 1, -1, -1))
        self._free_nodes = list(range(SMALLEST - 1, -1, -1))
        self._watch_events: dict[int, Event] = {}
        self._nodes_of_watch: dict[int, list[int]] = {}
        self._num_gates = 0
        self._waiting_gate: dict[int, list[int]] = {}
        self._open_gates: set[int] = set()
        self._num_started = 0
        self.injected_bytes = 0
        self.closed_bytes = np.zeros(4)

    # --- what a fidelity adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def advance(self, until_s: float) -> None:
        """Run the compiled loop until then, until something watched is complete, or for 2^18 units of work."""

    @abstractmethod
    def link_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """(payload, wire) bytes of every link so far."""

    @abstractmethod
    def link_series(self) -> tuple[np.ndarray, np.ndarray]:
        """(bin edges [bins + 1] seconds, utilisation [links, bins]) over the time up to now."""

    def queue_metrics(self, now_s: float) -> dict[str, float | None]:
        """What queues did to packets; nothing where there are none."""
        return {}

    def queue_columns(self, now_s: float) -> dict[str, np.ndarray]:
        """The same for each link."""
        return {}

    def wait_series(self) -> np.ndarray | None:
        """How long packets waited over time; None where there are none."""
        return None

    def packet_log(self) -> tuple[dict[str, np.ndarray], int]:
        """(columns of the packet log, events that found no room in it)."""
        return {}, 0

    @abstractmethod
    def check_conservation(self) -> None:
        """Raises ConservationError naming the law that does not hold, and the numbers."""

    @abstractmethod
    def settle(self) -> None:
        """Let what is on its way arrive, acknowledgements included, once the run is over."""

    @abstractmethod
    def _admit(self, first: int, last: int) -> None:
        """Messages in rows first … last - 1 have been handed over."""

    @abstractmethod
    def _cancel_message(self, m: int) -> None: ...

    @abstractmethod
    def _refresh(self) -> None:
        """Say anew when the core next has something to do."""

    @abstractmethod
    def _pointer(self, state: Any) -> Any:
        """The compiled functions' view of the state."""

    def set_links(self, links: np.ndarray, rate_bytes_per_s: np.ndarray) -> int:
        """From now on these links carry so much, 0: they are down. Returns the messages under way across them."""
        raise NotImplementedError

    def set_losses(self, links: np.ndarray, probability: np.ndarray) -> int:
        """From now on these links lose each packet with this probability. Returns the messages under way across them.

        Only where there are packets.
        """
        raise NotImplementedError

    def set_routing(self, links: np.ndarray, is_withdrawn: np.ndarray) -> None:
        """Routing learns now that these links are dead (withdrawn), or alive again."""
        raise NotImplementedError

    def _allow_marks(self) -> None:
        """Room for the senders' marks: none before the first dead link. Pages that hold no mark take no memory."""
        if not len(self._state.paths.bad_until_s):
            t = self.topology
            marks = np.zeros((t.num_leaves, t.num_leaves, max(scope.num_paths for scope in t.scopes)))
            self._replace(paths=self._state.paths._replace(bad_until_s=marks))

    @property
    def moved_bytes(self) -> np.ndarray:
        """[links] payload that has moved to another path because the link was dead."""
        return np.zeros(self.topology.num_links)

    def _held_up(self) -> dict[int, str]:
        """Rows of messages that are under way and cannot move -> the dead link that they wait for."""
        return {}

    # --- the contract -------------------------------------------------------------------------------------------------

    def start(self, graph: MessageGraph) -> Transfer:
        """Hand a message graph over at the present time.

        Raises MessageGraphError for accelerators that are not there, or messages that wait for each other in a cycle.
        """
        n = graph.num_messages
        if n and max(graph.source.max(), graph.destination.max()) >= self.topology.num_accelerators:
            raise MessageGraphError(
                f"{graph.owner or 'a message graph'} sends to accelerator "
                f"{max(graph.source.max(), graph.destination.max())}; there are {self.topology.num_accelerators}"
            )
        stuck = message_in_cycle(graph.successor_start, graph.successors, graph.num_inputs)
        if stuck >= 0:
            raise MessageGraphError(
                f"{graph.owner or 'a message graph'}: message {stuck} would wait for ever: "
                "it is on a cycle of inputs, or behind one"
            )
        done = self.clock.event()
        if n == 0:
            transfer = Transfer(self, graph, done, -1)
            none = np.zeros(0)
            transfer.close(MessageResults(none, none, none, none, none, np.zeros(0, np.int8), np.zeros(0, np.int16)))
            done.succeed(transfer)
            return transfer
        key = self._take_transfer()
        transfer = Transfer(self, graph, done, key)
        first = self._ranges.take(n)
        first_edge = self._edge_ranges.take(len(graph.successors))
        self._ensure_room()
        self.injected_bytes += handover.copy_in(self._core, first, first_edge, key, graph)
        self._state.transfers[key] = (n, self.clock.now, self._num_started, 0)
        self._num_started += 1
        self._spans[key] = _Span(transfer, first, first_edge, [])
        for i in np.nonzero(graph.gate != NO_GATE)[0]:
            gate = int(graph.gate[i])
            if gate not in self._open_gates:
                self._state.messages[first + i]["waits_for"] += 1
                self._waiting_gate.setdefault(gate, []).append(first + int(i))
        self._set_now()
        self._admit(first, first + n)
        return transfer

    def new_gate(self) -> int:
        self._num_gates += 1
        return self._num_gates - 1

    def open_gate(self, gate: int) -> None:
        """Messages that wait for the gate may go, from now on."""
        self._open_gates.add(gate)
        self._set_now()
        for m in self._waiting_gate.pop(gate, []):
            readiness.gate_opened(self._core, m, self.clock.now)
        self._refresh()

    @property
    def now_s(self) -> float:
        return float(self._state.c["now_s"][0])

    @property
    def next_s(self) -> float:
        return float(self._state.c["next_s"][0])

    @property
    def num_events(self) -> int:
        return int(self._state.c["num_events"][0])

    def watch(self, transfer: Transfer, indices: np.ndarray) -> Event:
        event = self.clock.event()
        span = self._spans.get(transfer.key)
        if span is not None and span.transfer is transfer:
            rows = self._state.messages[span.first + indices]
            is_pending = rows["outcome"] == PENDING
            received_s = np.where(rows["outcome"] == DELIVERED, rows["arrived_s"], np.nan)
        else:
            received_s, is_pending = transfer.results.received_s[indices], np.zeros(len(indices), np.bool_)
        last_s = float(np.nanmax(received_s, initial=self.clock.now))  # the last byte sent may still be in flight
        if not is_pending.any():
            self.clock.succeed_at(event, last_s)
            return event
        assert span is not None
        pending = (span.first + indices[is_pending]).tolist()
        self._ensure_watches(len(pending))
        w = self._free_watches.pop()
        self._state.watches[w] = (len(pending), last_s, 0, 0)
        nodes = [self._free_nodes.pop() for _ in pending]
        for m, node in zip(pending, nodes, strict=True):
            self._state.nodes[node] = (w, self._state.messages[m]["first_watch"])
            self._state.messages[m]["first_watch"] = node
        self._watch_events[w] = event
        self._nodes_of_watch[w] = nodes
        span.watches.append(w)
        return event

    def cancel(self, transfer: Transfer, indices: np.ndarray) -> None:
        span = self._spans.get(transfer.key)
        if span is None or span.transfer is not transfer:
            return
        self._set_now()
        for i in indices:
            self._cancel_message(span.first + int(i))

    def results_of(self, transfer: Transfer) -> MessageResults:
        span = self._spans[transfer.key]
        return self._copy_out(span.first, transfer.graph.num_messages)

    def _copy_out(self, first: int, count: int) -> MessageResults:
        """What is known of the messages in rows first … first + count - 1."""
        return handover.copy_out(self._core, first, count)

    def num_ended(self, transfer: Transfer) -> int:
        """Messages that were delivered, cancelled or failed."""
        left = 0 if transfer.is_final else int(self._state.transfers[transfer.key]["left"])
        return transfer.graph.num_messages - left

    def waiting(self, limit: int = 5) -> list[str]:
        """What has not ended and what it waits for: the diagnosis when nothing moves.

        First what a dead link holds up, then what is under way, then what waits for inputs.
        """
        held_up = self._held_up()
        rows = np.concatenate([
            np.arange(span.first, span.first + span.transfer.graph.num_messages) for span in self._spans.values()
        ] or [np.zeros(0, np.int64)])  # fmt: skip
        rows = rows[self._state.messages["outcome"][rows] == PENDING]
        waits_for = self._state.messages["waits_for"][rows]
        urgency = np.where(np.isin(rows, list(held_up)), 0, np.where(waits_for == 0, 1, 2))
        return [self._waits(int(m), held_up.get(int(m))) for m in rows[np.argsort(urgency, kind="stable")][:limit]]

    def _waits(self, m: int, dead_link: str | None) -> str:
        """What the pending message in row m waits for."""
        message = self._state.messages[m]
        span = self._spans[int(message["transfer"])]
        graph, i = span.transfer.graph, m - span.first
        reason = "is under way" if dead_link is None else f"cannot move, {dead_link} is down"
        if message["waits_for"] > 0:
            gate = "" if graph.gate[i] == NO_GATE else f" and gate {graph.gate[i]}"
            reason = f"waits for {message['waits_for']} of {graph.num_inputs[i]} inputs{gate}"
        return (
            f"{graph.owner or 'transfer'}: message {i} "
            f"({graph.source[i]} -> {graph.destination[i]}, {graph.size_bytes[i]} B) {reason}"
        )

    def open_bytes(self) -> tuple[int, float]:
        """(payload bytes to move, those delivered) of the transfers that have not ended."""
        to_move, delivered = 0, 0.0
        for span in self._spans.values():
            graph = span.transfer.graph
            remote = graph.source != graph.destination
            to_move += int(graph.size_bytes[remote].sum())
            rows = self._state.messages[span.first : span.first + graph.num_messages]
            delivered += float(rows["delivered_bytes"][remote].sum())
        return to_move, delivered

    # --- inside -------------------------------------------------------------------------------------------------------

    def _set_now(self) -> None:
        self._state.c["now_s"] = self.clock.now

    def _replace(self, **arrays: Any) -> None:
        self._state = self._state._replace(**arrays)
        self._core = self._pointer(self._state)

    def _take_transfer(self) -> int:
        if not self._free_transfers:
            n = len(self._state.transfers)
            self._replace(transfers=fs.grown(self._state.transfers, 2 * n))
            self._free_transfers.extend(range(2 * n - 1, n - 1, -1))
            self._size_fired()
        return self._free_transfers.pop()

    def _ensure_watches(self, num_nodes: int) -> None:
        if not self._free_watches:
            n = len(self._state.watches)
            self._replace(watches=fs.grown(self._state.watches, 2 * n))
            self._free_watches.extend(range(2 * n - 1, n - 1, -1))
            self._size_fired()
        if len(self._free_nodes) < num_nodes:
            n = len(self._state.nodes)
            more = max(2 * n, n + num_nodes)
            self._replace(nodes=fs.grown(self._state.nodes, more))
            self._free_nodes.extend(range(more - 1, n - 1, -1))

    def _size_fired(self) -> None:
        room = len(self._state.watches) + 2 * len(self._state.transfers)
        if len(self._state.fired) < room:
            self._replace(fired=fs.grown(self._state.fired, room))

    def _ensure_room(self) -> None:
        have = len(self._state.messages)
        if self._ranges.size > have:
            new = self._for_messages(max(self._ranges.size, 2 * have))
            self._replace(**{name: copied(getattr(self._state, name), array) for name, array in new.items()})
        edges = len(self._state.successors)
        if self._edge_ranges.size > edges:
            self._replace(successors=fs.grown(self._state.successors, max(self._edge_ranges.size, 2 * edges)))

    def _deliver_fired(self) -> None:
        c = self._state.c[0]
        fired = self._state.fired[: c["num_fired"]].tolist()
        c["num_fired"] = 0
        for code, time_s in fired:
            time_s = max(time_s, self.clock.now)
            if code >= 0:
                self.clock.succeed_at(self._watch_events.pop(code), time_s)
                self._free_nodes.extend(self._nodes_of_watch.pop(code))
                self._free_watches.append(code)
            elif code > readiness.SETTLED:
                self._ended(-1 - code, time_s)
            else:
                self._close(readiness.SETTLED - code)
        self._refresh()

    def _forget(self, span: _Span) -> None:
        """Cancelled messages still wait on the agenda, in windows and at gates; their rows will be used again."""
        first, last = span.first, span.first + span.transfer.graph.num_messages
        readiness.forget(self._core, first, last)
        for gate in np.unique(span.transfer.graph.gate).tolist():
            if gate in self._waiting_gate:
                self._waiting_gate[gate] = [m for m in self._waiting_gate[gate] if not first <= m < last]

    def _for_messages(self, n: int) -> dict[str, np.ndarray]:
        """What grows with the number of messages."""
        return fs.for_messages(n, self.topology.num_leaves)

    def _ended(self, key: int, time_s: float) -> None:
        """Every message of a transfer has ended: tell who waits for it. Its rows stay until all is acknowledged."""
        self.clock.succeed_at(self._spans[key].transfer.done, time_s, self._spans[key].transfer)
        if self._state.transfers[key]["unanswered"] == 0:
            self._close(key)

    def _close(self, key: int) -> None:
        """Copy a finished transfer's results out and free its rows."""
        span = self._spans.pop(key)
        graph = span.transfer.graph
        final = self._copy_out(span.first, graph.num_messages)
        span.transfer.close(final)
        if (final.outcome == CANCELLED).any():
            self._forget(span)
        handover.enter_in_ledger(self._core, span.first, graph.num_messages, self.closed_bytes)
        self._ranges.give(span.first, graph.num_messages)
        self._edge_ranges.give(span.first_edge, len(graph.successors))
        self._free_transfers.append(key)
