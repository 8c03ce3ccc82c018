"""A packet network in whole picoseconds: slow, plain, and written from the design, to hold the compiled one against.

A link is an output port (an acknowledgement queue, served first, and a data queue) followed by a wire. The first link
of a piece is its source port: there a ring of pieces that may send stands in the data queue's place. A packet is
serialised, flies for the wire's latency, and enters the next port; the last link hands it to the receiver, which
answers every few packets with an acknowledgement that goes back over the reverse links. Buffers have no limit.

Whatever happens at one instant happens in three phases: every delivery, in order of link; every start of a piece, in
order of piece; then every port that has become free, and every idle source port, picks its next packet. An event is
(time, phase, link or piece), so the calendar's own order is the order of ties.

`exact_full` extends these classes by ports that are full, and senders that lose packets.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import ClassVar

PS_PER_S = 10**12
MAX_UNSETTLED = 1024  # packets between the in-order point that the sender knows of and the next one it sends
ANSWER_JUMP = 512  # an in-order point that has moved on by this much is told at once, or MAX_UNSETTLED could stall
DELIVER, START, PICK = 0, 8, 9  # the phases of an instant; in `exact_full`, alarms come between the first two


class Stalled(RuntimeError):
    """Nothing is left to happen, and a piece is not acknowledged."""


@dataclass(frozen=True)
class Wire:
    """A link: bits per second, and picoseconds from the end of a packet's serialisation to its delivery."""

    rate: int
    latency: int


@dataclass(frozen=True)
class Piece:
    """One queue pair's share of a message: start in ps, payload in bytes, window and ack_every in packets.

    An acknowledgement never waits for more packets than the window has.
    """

    start: int
    payload: int
    window: int
    ack_every: int = 4


@dataclass(frozen=True)
class Choice:
    """A switch that sprays in turn: each packet that arrives takes the group's next alternative, a list of links."""

    group: int
    alternatives: tuple[tuple[int, ...], ...]


Route = Sequence["int | Choice"]
Turn = Callable[[int, int, int], int]
"""(spraying group, number of its packet, alternatives) -> the alternative that the packet takes."""


def round_robin(group: int, n: int, choices: int) -> int:
    """In one order, for ever."""
    return n % choices


@dataclass
class Outcome:
    """What happened: times and reordering by piece, traffic and waiting by link, and the deliveries of all links.

    `max_wait_ps` is of data packets in ordinary ports; it is 0 where none waited, and for source ports.
    """

    first_sent_ps: list[int]
    received_ps: list[int]
    acknowledged_ps: list[int]
    max_displacement: list[int]
    max_held_bytes: list[int]

    data_packets: list[int]
    ack_packets: list[int]
    wire_bytes: list[int]
    payload_bytes: list[int]
    max_wait_ps: list[int]

    deliveries: int


@dataclass(eq=False)
class DataPacket:
    piece: int
    seq: int
    wire_bytes: int
    payload_bytes: int
    ahead: deque[int | Choice]
    travelled: list[int] = field(default_factory=list)
    entered_ps: int | None = None  # None until it enters its first ordinary port
    is_control: bool = False  # joins the acknowledgements; never here


@dataclass(frozen=True)
class Answer:
    """What an acknowledgement says: of how many packets it is the first to tell, and the receiver's in-order point."""

    covers: int
    cumulative: int


@dataclass(eq=False)
class AckPacket:
    piece: int
    answer: Answer
    wire_bytes: int
    ahead: deque[int]
    is_control: ClassVar[bool] = True


Packet = DataPacket | AckPacket


@dataclass(eq=False)
class Port:
    """An output port and its wire; a source port uses `ring`, of piece indices, and an ordinary one `data`."""

    wire: Wire
    is_source: bool = False
    acks: deque[Packet] = field(default_factory=deque)  # and other control packets
    data: deque[Packet] = field(default_factory=deque)
    ring: deque[int] = field(default_factory=deque)
    is_busy: bool = False
    end_ps: int | None = None  # of the latest serialisation
    remainder: int = 0  # of the latest division, in bits * ps / s
    in_flight: deque[Packet] = field(default_factory=deque)  # being serialised or on the wire, in order of delivery

    data_packets: int = 0
    ack_packets: int = 0
    wire_bytes: int = 0
    payload_bytes: int = 0
    max_wait_ps: int = 0

    def serialise(self, packet: Packet, now_ps: int) -> int:
        """Start on a packet and return when the last bit leaves; no picosecond is lost while packets are back to back.

        duration, remainder = divmod(bits * 10^12 + remainder carried, rate)
        """
        carried = self.remainder if self.end_ps == now_ps else 0
        duration_ps, self.remainder = divmod(packet.wire_bytes * 8 * PS_PER_S + carried, self.wire.rate)
        if duration_ps < 1:
            raise ValueError(f"{packet.wire_bytes} bytes take less than 1 ps at {self.wire.rate} bits/s")
        self.is_busy = True
        self.end_ps = now_ps + duration_ps
        self.in_flight.append(packet)
        self.wire_bytes += packet.wire_bytes
        if packet.is_control:
            self.ack_packets += 1
        else:
            assert isinstance(packet, DataPacket)
            self.data_packets += 1
            self.payload_bytes += packet.payload_bytes
            if packet.entered_ps is not None:
                self.max_wait_ps = max(self.max_wait_ps, now_ps - packet.entered_ps)
        return self.end_ps


@dataclass(eq=False)
class Sender:
    """The sending end of a piece."""

    num_packets: int
    window: int
    has_started: bool = False
    is_in_ring: bool = False
    next_seq: int = 0
    in_flight: int = 0
    cumulative: int = 0
    num_acknowledged: int = 0
    first_sent_ps: int | None = None
    acknowledged_ps: int | None = None

    def allowed(self) -> int:
        """How many packets may be in flight."""
        return self.window

    def upcoming(self) -> int | None:
        """The packet that it would send next, window permitting; None when there is none."""
        may_go_on = self.next_seq < self.num_packets and self.next_seq - self.cumulative < MAX_UNSETTLED
        return self.next_seq if may_go_on else None

    def is_ready(self) -> bool:
        return self.has_started and self.upcoming() is not None and self.in_flight < self.allowed()

    def give(self, now_ps: int) -> int:
        """Send the upcoming packet."""
        seq = self.upcoming()
        assert seq is not None, "there is nothing to send"
        if self.first_sent_ps is None:
            self.first_sent_ps = now_ps
        self.next_seq = max(self.next_seq, seq + 1)
        self.in_flight += 1
        return seq

    def hear(self, answer: Answer, now_ps: int) -> None:
        """An acknowledgement has come."""
        self.in_flight -= answer.covers
        self.num_acknowledged += answer.covers
        self.cumulative = max(self.cumulative, answer.cumulative)
        self.settle(now_ps)

    def settle(self, now_ps: int) -> None:
        if self.num_acknowledged == self.num_packets:
            self.acknowledged_ps = now_ps


@dataclass(eq=False)
class Receiver:
    """The receiving end of a piece; `held` maps each sequence number received out of order to its payload bytes."""

    num_packets: int
    ack_every: int
    num_received: int = 0
    num_unanswered: int = 0
    cumulative: int = 0  # the smallest sequence number not received
    told: int = 0  # the one that the latest acknowledgement carried
    largest_seq: int = -1
    held: dict[int, int] = field(default_factory=dict)
    max_displacement: int = 0
    max_held_bytes: int = 0
    received_ps: int | None = None

    def receive(self, packet: DataPacket, now_ps: int) -> Answer | None:
        """Take a packet that has come, and return the answer that it calls for, if any."""
        self.take(packet, now_ps)
        return self.acknowledge() if self.owes_ack() else None

    def take(self, packet: DataPacket, now_ps: int) -> None:
        assert packet.seq >= self.cumulative and packet.seq not in self.held, "a packet arrived twice"
        self.num_received += 1
        self.num_unanswered += 1
        self.max_displacement = max(self.max_displacement, self.largest_seq - packet.seq)
        self.largest_seq = max(self.largest_seq, packet.seq)
        self.held[packet.seq] = packet.payload_bytes
        while self.cumulative in self.held:
            del self.held[self.cumulative]
            self.cumulative += 1
        self.max_held_bytes = max(self.max_held_bytes, sum(self.held.values()))
        if self.num_received == self.num_packets:
            self.received_ps = now_ps

    def owes_ack(self) -> bool:
        return (
            self.num_unanswered == self.ack_every
            or self.num_received == self.num_packets
            or self.cumulative - self.told >= ANSWER_JUMP
        )

    def acknowledge(self) -> Answer:
        answer = Answer(self.num_unanswered, self.cumulative)
        self.num_unanswered = 0
        self.told = self.cumulative
        return answer


class Network:
    """All state that lives in time: the calendar, the ports, both ends of every piece, the turns that were taken."""

    ports: Sequence[Port]
    senders: Sequence[Sender]
    receivers: Sequence[Receiver]

    def __init__(
        self,
        wires: Sequence[Wire],
        reverse: Sequence[int | None],
        pieces: Sequence[Piece],
        route: Callable[[int, int], Route],
        mtu: int,
        header: int,
        turn: Turn,
    ) -> None:
        self.reverse = reverse
        self.pieces = pieces
        self.header = header
        self.max_payload = mtu - header
        self.turn = turn
        self.turns_taken: Counter[int] = Counter()  # by spraying group
        self.calendar: list[tuple[int, int, int]] = []
        self.deliveries = 0
        self.ports = [self.make_port(link, wire) for link, wire in enumerate(wires)]
        num_packets = [max(1, -(-piece.payload // self.max_payload)) for piece in pieces]
        self.senders = [self.make_sender(n, piece.window) for n, piece in zip(num_packets, pieces, strict=True)]
        self.receivers = [
            self.make_receiver(n, min(piece.ack_every, piece.window))
            for n, piece in zip(num_packets, pieces, strict=True)
        ]
        self.routes = [[tuple(route(index, seq)) for seq in range(n)] for index, n in enumerate(num_packets)]
        for index, routes in enumerate(self.routes):
            for seq in range(len(routes)):
                self.ports[self.first_link(index, seq)].is_source = True
            heappush(self.calendar, (pieces[index].start, START, index))

    def make_port(self, link: int, wire: Wire) -> Port:
        return Port(wire)

    def make_sender(self, num_packets: int, window: int) -> Sender:
        return Sender(num_packets, window)

    def make_receiver(self, num_packets: int, ack_every: int) -> Receiver:
        return Receiver(num_packets, ack_every)

    def make_packet(self, piece: int, seq: int) -> DataPacket:
        payload_bytes = min(self.max_payload, self.pieces[piece].payload - seq * self.max_payload)
        return DataPacket(piece, seq, self.header + payload_bytes, payload_bytes, deque(self.routes[piece][seq][1:]))

    def run(self) -> None:
        while self.calendar:
            self.happen(*heappop(self.calendar))

    def happen(self, now_ps: int, phase: int, index: int) -> None:
        if phase == DELIVER:
            self.deliver(index, now_ps)
        elif phase == START:
            self.senders[index].has_started = True
            self.offer(index, now_ps)
        else:
            assert phase == PICK
            port = self.ports[index]
            if port.is_busy and port.end_ps == now_ps:
                self.finish(index, now_ps)
            # A source port that was offered several things at one instant is called here once for each.
            if not port.is_busy:
                self.pick(index, now_ps)

    def deliver(self, link: int, now_ps: int) -> None:
        """A packet reaches the end of a link: it enters its next port or is there."""
        self.deliveries += 1
        packet = self.ports[link].in_flight.popleft()
        if isinstance(packet, DataPacket):
            packet.travelled.append(link)
            self.resolve(packet)
        if packet.ahead:
            self.enter(packet, now_ps)
        elif isinstance(packet, DataPacket):
            self.receive(packet, now_ps)
        else:
            self.acknowledge(packet, now_ps)

    def resolve(self, packet: DataPacket) -> None:
        """The switch that a packet has arrived at, if it sprays, puts the next alternative in the choice's place."""
        while packet.ahead and isinstance(packet.ahead[0], Choice):
            choice = packet.ahead[0]
            packet.ahead.popleft()
            chosen = self.turn(choice.group, self.turns_taken[choice.group], len(choice.alternatives))
            self.turns_taken[choice.group] += 1
            packet.ahead.extendleft(reversed(choice.alternatives[chosen]))

    def enter(self, packet: Packet, now_ps: int) -> None:
        """A packet joins its queue at the next port; an idle ordinary port starts on it at once."""
        link = packet.ahead.popleft()
        assert isinstance(link, int), "a choice was not resolved"
        port = self.ports[link]
        if isinstance(packet, DataPacket):
            if port.is_source:
                raise ValueError(f"piece {packet.piece}, packet {packet.seq}: link {link} is the first link of a piece")
            packet.entered_ps = now_ps
        if not self.admit(packet, link, now_ps):
            return
        (port.acks if packet.is_control else port.data).append(packet)
        if port.is_source:
            self.call(link, now_ps)
        elif not port.is_busy:
            self.pick(link, now_ps)

    def admit(self, packet: Packet, link: int, now_ps: int) -> bool:
        """Whether a packet that has come to a port may join a queue there."""
        return True

    def offer(self, piece: int, now_ps: int) -> None:
        """A piece that has become ready joins the ring of its next packet's source port at the tail."""
        sender = self.senders[piece]
        if sender.is_ready() and not sender.is_in_ring:
            upcoming = sender.upcoming()
            assert upcoming is not None
            link = self.first_link(piece, upcoming)
            sender.is_in_ring = True
            self.ports[link].ring.append(piece)
            self.call(link, now_ps)

    def call(self, link: int, now_ps: int) -> None:
        """Have an idle source port pick in this instant's last phase; a busy one does so when it ends."""
        if not self.ports[link].is_busy:
            heappush(self.calendar, (now_ps, PICK, link))

    def finish(self, link: int, now_ps: int) -> None:
        """A port's serialisation ends."""
        self.ports[link].is_busy = False

    def pick(self, link: int, now_ps: int) -> None:
        """A free port starts on its next packet, acknowledgements first, or stays idle."""
        port = self.ports[link]
        packet = port.acks.popleft() if port.acks else self.next_data(link, now_ps)
        if packet is None:
            return
        end_ps = port.serialise(packet, now_ps)
        heappush(self.calendar, (end_ps, PICK, link))
        heappush(self.calendar, (end_ps + port.wire.latency, DELIVER, link))
        if port.is_source and isinstance(packet, DataPacket):
            self.offer(packet.piece, now_ps)

    def next_data(self, link: int, now_ps: int) -> Packet | None:
        """Take the data packet that a port sends next from its ring or queue."""
        port = self.ports[link]
        if port.ring:
            return self.send(port.ring.popleft(), now_ps)
        return port.data.popleft() if port.data else None

    def send(self, index: int, now_ps: int) -> DataPacket:
        """The piece that was at the ring's head gives its next packet."""
        sender = self.senders[index]
        sender.is_in_ring = False
        return self.make_packet(index, sender.give(now_ps))

    def receive(self, packet: DataPacket, now_ps: int) -> None:
        """The receiver takes a data packet, and may send an acknowledgement in the same instant."""
        answer = self.receivers[packet.piece].receive(packet, now_ps)
        if answer is None:
            return
        way_back = deque(back for link in reversed(packet.travelled) if (back := self.reverse[link]) is not None)
        if not way_back:
            raise ValueError(f"piece {packet.piece}, packet {packet.seq}: no link of {packet.travelled} has a reverse")
        self.enter(AckPacket(packet.piece, answer, self.header, way_back), now_ps)

    def acknowledge(self, ack: AckPacket, now_ps: int) -> None:
        """An acknowledgement reaches its sender, which may become ready."""
        self.senders[ack.piece].hear(ack.answer, now_ps)
        self.offer(ack.piece, now_ps)

    def first_link(self, piece: int, seq: int) -> int:
        """The first link of a route; raises ValueError when it starts with none, or names one that is not there."""
        route = self.routes[piece][seq]
        where = f"piece {piece}, packet {seq}: route {route}"
        if not route or isinstance(route[0], Choice):
            raise ValueError(f"{where} must start with a link")
        for element in route:
            alternatives = element.alternatives if isinstance(element, Choice) else ((element,),)
            if not alternatives:
                raise ValueError(f"{where} has a choice without alternatives")
            if not all(0 <= link < len(self.ports) for links in alternatives for link in links):
                raise ValueError(f"{where} names a link that is not there")
        return route[0]

    def outcome(self) -> Outcome:
        """The results, once nothing is left to happen; raises Stalled when a piece is not acknowledged."""
        stalled = [index for index, sender in enumerate(self.senders) if sender.acknowledged_ps is None]
        if stalled:
            raise Stalled(f"pieces {stalled} wait for acknowledgements that nothing will send")
        for port in self.ports:
            assert not (port.is_busy or port.acks or port.ring or port.data or port.in_flight), "a packet was left"
        assert self.deliveries == sum(port.data_packets + port.ack_packets for port in self.ports)
        return Outcome(
            first_sent_ps=[known(sender.first_sent_ps) for sender in self.senders],
            received_ps=[known(receiver.received_ps) for receiver in self.receivers],
            acknowledged_ps=[known(sender.acknowledged_ps) for sender in self.senders],
            max_displacement=[receiver.max_displacement for receiver in self.receivers],
            max_held_bytes=[receiver.max_held_bytes for receiver in self.receivers],
            data_packets=[port.data_packets for port in self.ports],
            ack_packets=[port.ack_packets for port in self.ports],
            wire_bytes=[port.wire_bytes for port in self.ports],
            payload_bytes=[port.payload_bytes for port in self.ports],
            max_wait_ps=[port.max_wait_ps for port in self.ports],
            deliveries=self.deliveries,
        )


def known(time_ps: int | None) -> int:
    assert time_ps is not None
    return time_ps


def check_input(
    wires: Sequence[Wire], reverse: Sequence[int | None], pieces: Sequence[Piece], mtu: int, header: int
) -> None:
    if not 0 < header < mtu:
        raise ValueError(f"need 0 < header < mtu, not header {header} and mtu {mtu}")
    if len(reverse) != len(wires):
        raise ValueError(f"{len(wires)} wires need as many reverses, not {len(reverse)}")
    for link, (wire, back) in enumerate(zip(wires, reverse, strict=True)):
        if wire.rate < 1 or wire.latency < 0:
            raise ValueError(f"link {link}: need rate >= 1 and latency >= 0, not {wire}")
        if back is not None and not 0 <= back < len(wires):
            raise ValueError(f"link {link}: its reverse {back} is not there")
    for index, piece in enumerate(pieces):
        if piece.start < 0 or piece.payload < 0 or piece.window < 1 or piece.ack_every < 1:
            raise ValueError(f"piece {index}: need start, payload >= 0 and window, ack_every >= 1, not {piece}")


def simulate(
    wires: Sequence[Wire],
    reverse: Sequence[int | None],
    pieces: Sequence[Piece],
    route: Callable[[int, int], Sequence[int | Choice]],
    *,
    mtu: int = 4096,
    header: int = 64,
    turn: Turn = round_robin,
) -> Outcome:
    """Send every piece to its last acknowledgement, in integers throughout.

    `reverse[link]` is the link that acknowledgements of packets over `link` take back; None leaves it out.
    `route(piece, seq)` is asked once a packet, before anything runs. A piece waits for its turn at the first link of
    its next packet's route; where that is another link, it changes rings.
    `mtu` and `header` are bytes on the wire; an acknowledgement has `header` bytes. `turn(group, n, choices)` says
    which alternative the n-th packet of a spraying group takes, from 0 on.

    Raises ValueError on input that it cannot simulate, and Stalled when pieces wait for acknowledgements for ever.
    """
    check_input(wires, reverse, pieces, mtu, header)
    network = Network(wires, reverse, pieces, route, mtu, header, turn)
    network.run()
    return network.outcome()
