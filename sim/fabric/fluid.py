"""The fluid fabric: weighted max-min fair rates on wire bytes, behind the message-graph contract.

What it leaves out: queues, loss, reordering, windows, store-and-forward of the last packet (one packet time
per hop), the acknowledgements' own load. An acknowledgement takes the path's latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from simpy import Event

from sim.engine.clock import Clock
from sim.fabric import fluid_core as core
from sim.fabric import fluid_state as fs
from sim.fabric import handover, maxmin, readiness
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
from sim.fabric.policies import PATH_POLICIES, PathPolicy, compiled, path_network
from sim.fabric.topology import Topology
from sim.fabric.transfer import Transfer

EVENTS_PER_CALL = 2**18
SMALLEST = 64
"""Rows that every table starts with."""


class ConservationError(RuntimeError):
    """Bytes appeared or vanished: a bug in the simulator, never in the scenario."""


@dataclass(frozen=True, slots=True)
class FluidSettings:
    """tolerance: a flow passes its bandwidth on when it is this close to its end, as a share of its own time.
    fairness: "queue_pair" (each piece counts as its queue pairs) or "message" (all pieces of a message count as one).
    """

    mtu_bytes: int = 4096
    header_bytes: int = 64
    tolerance: float = 1e-3
    fairness: str = "queue_pair"
    num_bins: int = 256


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


def _copied(old: np.ndarray, new: np.ndarray) -> np.ndarray:
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


class FluidFabric:
    """The fabric of one simulation; attach one to a clock."""

    def __init__(
        self,
        clock: Clock,
        topology: Topology,
        policy: str | PathPolicy = "ecmp",
        *,
        settings: FluidSettings | None = None,
        seed: int = 1,
        subflows: int = 4,
        window_s: float | None = None,
        jitter_s: float | None = None,
    ) -> None:
        self.clock = clock
        self.topology = topology
        self.settings = settings or FluidSettings()
        self.policy = PATH_POLICIES[policy] if isinstance(policy, str) else policy
        window_s = self.policy.window_s if window_s is None else window_s
        jitter_s = self.policy.jitter_s if jitter_s is None else jitter_s
        self._ranges, self._edge_ranges = _Ranges(), _Ranges()
        self._spans: dict[int, _Span] = {}
        self._free_transfers: list[int] = []
        self._free_watches: list[int] = []
        self._free_nodes: list[int] = []
        self._watch_events: dict[int, Event] = {}
        self._nodes_of_watch: dict[int, list[int]] = {}
        self._num_gates = 0
        self._waiting_gate: dict[int, list[int]] = {}
        self._open_gates: set[int] = set()
        self._num_started = 0
        self.injected_bytes = 0
        self.closed_bytes = np.zeros(4)
        self._choose = compiled(self.policy)
        self._state = self._first_state([subflows, jitter_s, window_s, seed], seed)
        self._core = fs.reference(self._state)
        self._run = core.advance_for(self._core)
        self._grow_pieces(SMALLEST)
        self._free_transfers.extend(range(SMALLEST - 1, -1, -1))
        self._free_watches.extend(range(SMALLEST - 1, -1, -1))
        self._free_nodes.extend(range(SMALLEST - 1, -1, -1))
        clock.attach(self)

    def _first_state(self, parameters: list[float], seed: int) -> fs.State:
        t = self.topology
        c = np.zeros(1, fs.COUNTERS)
        c["free_piece"] = fs.NONE
        c["header_bytes"] = self.settings.header_bytes
        c["payload_per_packet"] = self.settings.mtu_bytes - self.settings.header_bytes
        c["is_fair_by_message"] = self.settings.fairness == "message"
        c["is_live"] = self.policy.is_live
        c["next_s"] = np.inf
        c["tolerance"] = self.settings.tolerance
        c["window_s"] = parameters[2]
        c["bin_s"] = 1e-6
        c["num_planes"] = t.num_planes
        return fs.State(
            c=c,
            successors=np.zeros(SMALLEST, np.int64),
            series=np.zeros((t.num_segments, self.settings.num_bins)),
            transfers=np.zeros(SMALLEST, fs.COUNT),
            watches=np.zeros(SMALLEST, fs.COUNT),
            nodes=np.zeros(SMALLEST, fs.NODE),
            fired=np.zeros(2 * SMALLEST, fs.FIRED),
            network=maxmin.network(t.segment_start, t.segment_link, t.segment_share, t.link_rate),
            work=maxmin.scratch(t.num_segments, t.num_links, 0),
            paths=path_network(t, parameters, seed),
            **fs.static(t),
            **fs.for_messages(SMALLEST, t.num_leaves),
            **fs.for_pieces(0),
        )

    # --- the contract ----------------------------------------------------------------------------------------------

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
            transfer.close(MessageResults(none, none, none, none, none, np.zeros(0, np.int8)))
            done.succeed(transfer)
            return transfer
        key = self._take_transfer()
        transfer = Transfer(self, graph, done, key)
        first = self._ranges.take(n)
        first_edge = self._edge_ranges.take(len(graph.successors))
        self._ensure_room()
        self.injected_bytes += handover.copy_in(self._core, first, first_edge, key, graph)
        self._state.transfers[key] = (n, self.clock.now, self._num_started)
        self._num_started += 1
        self._spans[key] = _Span(transfer, first, first_edge, [])
        for i in np.nonzero(graph.gate != NO_GATE)[0]:
            gate = int(graph.gate[i])
            if gate not in self._open_gates:
                self._state.messages[first + i]["waits_for"] += 1
                self._waiting_gate.setdefault(gate, []).append(first + int(i))
        self._set_now()
        core.admit(self._core, first, first + n, self.clock.now)
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
        core.refresh_next(self._core)

    @property
    def next_s(self) -> float:
        return float(self._state.c["next_s"][0])

    @property
    def num_events(self) -> int:
        return int(self._state.c["num_events"][0])

    @property
    def num_solves(self) -> int:
        return int(self._state.c["num_solves"][0])

    def advance(self, until_s: float) -> None:
        """Run the compiled loop until then, until something watched is complete, or for 2^18 events."""
        status = self._run(self._core, self._choose, until_s, EVENTS_PER_CALL)
        if status == core.GROW:
            have = len(self._state.pieces)
            in_use = have - int(self._state.c["num_free_pieces"][0])
            self._grow_pieces(max(2 * have, in_use + int(self._state.c["needed_pieces"][0])))
            core.refresh_next(self._core)
        elif status == core.FIRED:
            self._deliver_fired()

    # --- transfers --------------------------------------------------------------------------------------------------

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
        self._state.watches[w] = (len(pending), last_s, 0)
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
            core.cancel(self._core, span.first + int(i), self.clock.now)

    def results_of(self, transfer: Transfer) -> MessageResults:
        span = self._spans[transfer.key]
        return handover.copy_out(self._core, span.first, transfer.graph.num_messages)

    # --- what happened ----------------------------------------------------------------------------------------------

    def link_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """(payload, wire) bytes of every link so far; pieces under way count for the part that has been sent."""
        state = self._state
        payload, wire = state.segments["payload_bytes"].copy(), state.segments["wire_bytes"].copy()
        live = np.nonzero(state.pieces["message"] >= 0)[0]
        live = live[~np.isnan(state.messages["started_s"][state.pieces["message"][live]])]
        for p in live:
            core.comp.settle(self._core, self._component_of(p), self.clock.now)
            piece = state.pieces[p]
            share = 1.0 - state.remaining[p] / piece["wire_bytes"]
            for s in state.route[p][state.route[p] >= 0]:
                payload[s] += share * piece["payload_bytes"]
                wire[s] += share * piece["wire_bytes"]
        return self._to_links(payload), self._to_links(wire)

    def current_rates(self) -> tuple[np.ndarray, np.ndarray]:
        """(bytes/s [pieces], segments [pieces, 4]) of the pieces under way."""
        live = np.nonzero(self._state.pieces["message"] >= 0)[0]
        return self._state.rate[live].copy(), self._state.route[live].copy()

    def link_series(self) -> tuple[np.ndarray, np.ndarray]:
        """(bin edges [bins + 1] seconds, utilisation [links, bins]) over the time up to now."""
        while self.clock.now >= float(self._state.c["bin_s"][0]) * max(self.settings.num_bins, 1):
            core.comp.fold_series(self._core)
        for s in range(self.topology.num_segments):
            core.comp.account(self._core, s, self.clock.now)
        width = float(self._state.c["bin_s"][0])
        used = max(int(np.ceil(self.clock.now / width)), 1) if self.clock.now > 0 else 0
        series = self._state.series[:, :used]
        links = np.zeros((self.topology.num_links, used))
        t = self.topology
        owner = np.repeat(np.arange(t.num_segments), np.diff(t.segment_start))
        np.add.at(links, t.segment_link, series[owner] * t.segment_share[:, None])
        edges = np.minimum(np.arange(used + 1) * width, self.clock.now)
        return edges, links / (t.link_rate[:, None] * np.maximum(np.diff(edges), 1e-300))

    def check_conservation(self) -> None:
        """Two ledgers, kept apart: of messages and of links.

        Application bytes: injected = delivered + cancelled + failed + still under way.
        Links: what left the sources (payload and wire bytes) = what arrived at the destinations, and its payload
        = what the messages got, cancelled ones in part.

        Raises ConservationError naming the law and the numbers.
        """
        open_bytes, open_delivered = 0, 0.0
        for span in self._spans.values():
            graph = span.transfer.graph
            remote = graph.source != graph.destination
            open_bytes += int(graph.size_bytes[remote].sum())
            rows = self._state.messages[span.first : span.first + graph.num_messages]
            open_delivered += float(rows["delivered_bytes"][remote].sum())
        segments = self._state.segments
        sent, arrived = segments["role"] == 0, segments["role"] == maxmin.NUM_ROLES - 1
        payload, wire = segments["payload_bytes"], segments["wire_bytes"]
        for law, expected, found in (
            ("application bytes: injected = delivered + cancelled + failed + under way",
             self.injected_bytes, self.closed_bytes.sum() + open_bytes),
            ("payload bytes on links: sent = arrived", payload[sent].sum(), payload[arrived].sum()),
            ("wire bytes on links: sent = arrived", wire[sent].sum(), wire[arrived].sum()),
            ("payload bytes: sent on links = delivered to messages",
             payload[sent].sum(), self.closed_bytes[DELIVERED] + open_delivered),
        ):  # fmt: skip
            if abs(found - expected) > 0.5 + 1e-9 * expected:
                raise ConservationError(f"{law} does not hold: {expected} is not {found}")

    def waiting(self, limit: int = 5) -> list[str]:
        """What has not ended and what it waits for: the diagnosis when nothing moves."""
        lines = []
        for span in self._spans.values():
            graph = span.transfer.graph
            for i in range(graph.num_messages):
                message = self._state.messages[span.first + i]
                if message["outcome"] != PENDING:
                    continue
                if message["waits_for"] > 0:
                    gate = "" if graph.gate[i] == NO_GATE else f" and gate {graph.gate[i]}"
                    reason = f"waits for {message['waits_for']} of {graph.num_inputs[i]} inputs{gate}"
                else:
                    reason = "is under way"
                lines.append(
                    f"{graph.owner or 'transfer'}: message {i} "
                    f"({graph.source[i]} -> {graph.destination[i]}, {graph.size_bytes[i]} B) {reason}"
                )
                if len(lines) >= limit:
                    return lines
        return lines

    # --- inside -----------------------------------------------------------------------------------------------------

    def _set_now(self) -> None:
        self._state.c["now_s"] = self.clock.now

    def _component_of(self, p: int) -> int:
        s = next(s for s in self._state.route[p] if s >= 0)
        return int(core.comp.component_of(self._core, self._state.segments["label"][s]))

    def _to_links(self, per_segment: np.ndarray) -> np.ndarray:
        t = self.topology
        owner = np.repeat(np.arange(t.num_segments), np.diff(t.segment_start))
        return np.bincount(t.segment_link, weights=per_segment[owner] * t.segment_share, minlength=t.num_links)

    def _replace(self, **arrays: Any) -> None:
        self._state = self._state._replace(**arrays)
        self._core = fs.reference(self._state)

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
        room = len(self._state.watches) + len(self._state.transfers)
        if len(self._state.fired) < room:
            self._replace(fired=fs.grown(self._state.fired, room))

    def _ensure_room(self) -> None:
        have = len(self._state.messages)
        if self._ranges.size > have:
            new = fs.for_messages(max(self._ranges.size, 2 * have), self.topology.num_leaves)
            self._replace(**{name: _copied(getattr(self._state, name), array) for name, array in new.items()})
        edges = len(self._state.successors)
        if self._edge_ranges.size > edges:
            self._replace(successors=fs.grown(self._state.successors, max(self._edge_ranges.size, 2 * edges)))

    def _grow_pieces(self, room: int) -> None:
        have = len(self._state.pieces)
        new = fs.for_pieces(room)
        self._replace(**{name: _copied(getattr(self._state, name), array) for name, array in new.items()})
        state, c = self._state, self._state.c[0]
        state.next_piece[have:room] = np.append(np.arange(have + 1, room), c["free_piece"])
        c["free_piece"] = have
        c["num_free_pieces"] += room - have
        free = int(c["num_free_components"])
        state.free_components[free : free + room - have] = np.arange(room - 1, have - 1, -1)
        c["num_free_components"] += room - have
        self._replace(work=maxmin.with_room(state.work, room))

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
            else:
                self._close(-1 - code, time_s)
        core.refresh_next(self._core)

    def _forget(self, span: _Span) -> None:
        """Cancelled messages still wait on the agenda, in windows and at gates; their rows will be used again."""
        first, last = span.first, span.first + span.transfer.graph.num_messages
        readiness.forget(self._core, first, last)
        for gate in np.unique(span.transfer.graph.gate).tolist():
            if gate in self._waiting_gate:
                self._waiting_gate[gate] = [m for m in self._waiting_gate[gate] if not first <= m < last]

    def _close(self, key: int, time_s: float) -> None:
        """Copy a finished transfer's results out and free its rows."""
        span = self._spans.pop(key)
        graph = span.transfer.graph
        final = handover.copy_out(self._core, span.first, graph.num_messages)
        span.transfer.close(final)
        if (final.outcome == CANCELLED).any():
            self._forget(span)
        handover.enter_in_ledger(self._core, span.first, graph.num_messages, self.closed_bytes)
        self._ranges.give(span.first, graph.num_messages)
        self._edge_ranges.give(span.first_edge, len(graph.successors))
        self._free_transfers.append(key)
        self.clock.succeed_at(span.transfer.done, time_s, span.transfer)
