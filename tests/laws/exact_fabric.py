"""A fluid fabric in exact fractions: slow, plain, and written from the design, to hold the compiled one against.

A message is ready at max(earliest, latest input + delay, gate opened). It is then placed (when its leaf's window
closes, if the policy has one), waits for the policy's delay and its turn at its NIC, and its pieces share links
max-min fairly on wire bytes until each has sent its last byte, which arrives one time of flight later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from exact_networks import Network

from sim.validate.oracle import max_min_rates


@dataclass
class Graph:
    """Messages as lists; edges are (from, to) pairs."""

    source: list[int]
    destination: list[int]
    size_bytes: list[int]
    earliest_s: list[float]
    delay_s: list[float]
    edges: list[tuple[int, int]]
    gate: list[int]
    queue_pairs: list[int]


@dataclass
class Piece:
    message: int
    payload: int
    wire: int
    weight: Fraction
    links: dict[str, Fraction]
    flight: Fraction
    left: Fraction
    is_moving: bool = False


@dataclass
class Message:
    """State of one message; `id` orders those of one instant."""

    graph: int
    index: int
    source: int
    destination: int
    size: int
    earliest: Fraction
    delay: Fraction
    gate: int
    queue_pairs: int
    num_inputs: int = 0
    feeds: list[int] = field(default_factory=list)
    input_s: Fraction = Fraction(0)
    ready_s: Fraction | None = None
    started_s: Fraction | None = None
    received_s: Fraction | None = None
    acknowledged_s: Fraction | None = None
    delivered: Fraction = Fraction(0)
    outcome: str = "pending"
    pieces_left: int = 0
    arrived_s: Fraction = Fraction(0)
    answered_s: Fraction = Fraction(0)


Choice = tuple[object, object, int, int]
"""One piece of a message: path up, path down, payload bytes, weight."""


class ExactFabric:
    """Runs a story of actions; `choose(source, destination, size, queue_pairs, num_paths, down_lanes)` is the policy.

    It returns (delay in seconds, [Choice, ...]).
    """

    def __init__(self, network: Network, choose: Callable, *, mtu=4096, header=64, by_message=False, window_s=0.0):
        self.network, self.choose = network, choose
        self.mtu, self.header, self.by_message = mtu, header, by_message
        self.window_s = Fraction(window_s)
        self.now = Fraction(0)
        self.agenda: list[tuple[Fraction, int, Callable]] = []
        self.num_entries = 0
        self.messages: list[Message] = []
        self.pieces: list[Piece] = []
        self.ready: list[int] = []
        self.windows: dict[int, list[int]] = {}
        self.nic_free: dict[tuple[int, int], Fraction] = {}
        self.open_gates: set[int] = set()
        self.payload: dict[str, Fraction] = dict.fromkeys(network.capacity, Fraction(0))

    # --- actions --------------------------------------------------------------------------------------------------

    def at(self, time_s, action: Callable) -> None:
        self.agenda.append((Fraction(time_s), self.num_entries, action))
        self.num_entries += 1

    def start(self, number: int, graph: Graph) -> None:
        first = len(self.messages)
        for i in range(len(graph.source)):
            self.messages.append(Message(
                number, i, graph.source[i], graph.destination[i], graph.size_bytes[i], Fraction(graph.earliest_s[i]),
                Fraction(graph.delay_s[i]), graph.gate[i], graph.queue_pairs[i], input_s=self.now,
            ))  # fmt: skip
        for a, b in graph.edges:
            self.messages[first + a].feeds.append(first + b)
            self.messages[first + b].num_inputs += 1
        for m in range(first, len(self.messages)):
            self._see_whether_ready(m)

    def open_gate(self, gate: int) -> None:
        self.open_gates.add(gate)
        for m, message in enumerate(self.messages):
            if message.gate == gate and message.ready_s is None:
                message.earliest = max(message.earliest, self.now)
                self._see_whether_ready(m)

    def cancel(self, number: int, indices: list[int]) -> None:
        for m, message in enumerate(self.messages):
            if message.graph == number and message.index in indices and message.outcome == "pending":
                message.outcome = "cancelled"
                for piece in [p for p in self.pieces if p.message == m]:
                    self._count(piece, 1 - piece.left / piece.wire)
                    self.pieces.remove(piece)

    # --- running --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until nothing is left to do."""
        while True:
            moving = [p for p in self.pieces if p.is_moving]
            rates = max_min_rates(self.network.capacity, [p.links for p in moving], [p.weight for p in moving])
            times = [self.now + p.left / rate for p, rate in zip(moving, rates, strict=True)]
            times += [entry[0] for entry in self.agenda]
            if not times:
                return
            now = min(times)
            for piece, rate in zip(moving, rates, strict=True):
                piece.left -= rate * (now - self.now)
            self.now = now
            for piece in [p for p in moving if p.left == 0]:
                self._sent(piece)
            self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        while True:
            due = sorted(entry for entry in self.agenda if entry[0] <= self.now)
            if not due:
                break
            self.agenda.remove(due[0])
            due[0][2]()
        self._place_ready()
        if any(entry[0] <= self.now for entry in self.agenda):
            self._do_what_is_due()

    def _see_whether_ready(self, m: int) -> None:
        message = self.messages[m]
        if message.num_inputs == 0 and (message.gate < 0 or message.gate in self.open_gates):
            self.at(max(message.earliest, message.input_s + message.delay), lambda: self._is_ready(m))

    def _is_ready(self, m: int) -> None:
        message = self.messages[m]
        if message.outcome != "pending":
            return
        message.ready_s = self.now
        if message.source == message.destination:
            message.started_s, message.delivered = self.now, Fraction(message.size)
            self._ended(m, self.now, self.now)
        elif self.window_s > 0 and self.network.needs_path(message.source, message.destination):
            leaf = self.network.leaf_of(message.source)
            if leaf not in self.windows:
                self.windows[leaf] = []
                self.at(self.now + self.window_s, lambda: self.ready.extend(self.windows.pop(leaf)))
            self.windows[leaf].append(m)
        else:
            self.ready.append(m)

    def _place_ready(self) -> None:
        """In order of id; those that need no path go to their NIC first."""
        network = self.network

        def turn(m):
            return network.needs_path(self.messages[m].source, self.messages[m].destination), m

        for m in sorted(self.ready, key=turn):
            message = self.messages[m]
            if message.outcome != "pending":
                continue
            a, b = message.source, message.destination
            delay_s, choices = 0.0, [(0, 0, message.size, message.queue_pairs)]
            if network.needs_path(a, b):
                leaves = network.leaf_of(a), network.leaf_of(b)
                delay_s, choices = self.choose(
                    a, b, message.size, message.queue_pairs, network.num_paths(*leaves), network.down_lanes(*leaves)
                )
            for up, down, payload, weight in choices:
                links, flight = network.route(a, b, up, down)
                wire = payload + self.header * max(1, -(-payload // (self.mtu - self.header)))
                share = Fraction(1, len(choices)) if self.by_message else Fraction(weight)
                self.pieces.append(Piece(m, payload, wire, share, links, flight, Fraction(wire)))
            message.pieces_left = len(choices)
            start_s = self.now + Fraction(delay_s)
            overhead = network.overhead(a)
            if overhead and not network.is_inside_host(a, b):
                nic = network.hosts.nic_of[a]
                start_s = max(start_s, self.nic_free.get(nic, Fraction(0))) + overhead
                self.nic_free[nic] = start_s
            self.at(start_s, lambda m=m: self._starts(m))
        self.ready = []

    def _starts(self, m: int) -> None:
        if self.messages[m].outcome == "pending":
            self.messages[m].started_s = self.now
            for piece in self.pieces:
                if piece.message == m:
                    piece.is_moving = True

    def _count(self, piece: Piece, share: Fraction) -> None:
        self.messages[piece.message].delivered += share * piece.payload
        for link, part in piece.links.items():
            self.payload[link] += part * share * piece.payload

    def _sent(self, piece: Piece) -> None:
        self.pieces.remove(piece)
        self._count(piece, Fraction(1))
        message = self.messages[piece.message]
        message.arrived_s = max(message.arrived_s, self.now + piece.flight)
        message.answered_s = max(message.answered_s, self.now + 2 * piece.flight)
        message.pieces_left -= 1
        if message.pieces_left == 0:
            self._ended(piece.message, message.arrived_s, message.answered_s)

    def _ended(self, m: int, received_s: Fraction, acknowledged_s: Fraction) -> None:
        message = self.messages[m]
        message.outcome, message.received_s, message.acknowledged_s = "delivered", received_s, acknowledged_s
        for other in message.feeds:
            fed = self.messages[other]
            fed.num_inputs -= 1
            fed.input_s = max(fed.input_s, received_s)
            self._see_whether_ready(other)
