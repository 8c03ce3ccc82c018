"""The packet network of `exact_packets` with full ports: what fits no longer is dropped or trimmed, and sent again.

A port belongs to a switch or to a host. A switch's ports have limits, or a shared buffer, or send pauses to the ports
that feed them (PFC); they mark packets (ECN). Receivers are selective or go back N; senders find losses by negative
acknowledgements, by a gap in what is acknowledged, or by a timeout, and their windows are fixed or DCTCP's.

Alarms are a fourth kind of event: pauses and their ends, then timeouts, after the deliveries of an instant and before
its starts. Control packets (answers, and data packets that were trimmed) have no limits anywhere.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappush
from typing import Literal

from exact_packets import (
    DELIVER,
    PICK,
    PS_PER_S,
    START,
    Answer,
    DataPacket,
    Network,
    Outcome,
    Packet,
    Piece,
    Port,
    Receiver,
    Route,
    Sender,
    Stalled,
    Turn,
    Wire,
    check_input,
    round_robin,
)

PAUSE, RTO = 1, 2  # alarms, in phases of their own; pacing and pulling, to come, are 3 and 4
assert DELIVER < PAUSE < RTO < START < PICK
PAUSE_BYTES = 64  # of a frame that says pause or resume
SACK_PACKETS = 256  # that an acknowledgement tells of, from its in-order point on
MAX_WINDOW = 1024  # packets
ALPHA_GAIN = 1.0 / 16
GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Full:
    """What the ports, senders and receivers do; None turns a mechanism off.

    `owner` has the switch of each port, and `end` the one that each link leads to: None for a host.
    `port_limit` is bytes; `shared` is (bytes of a switch, alpha); `ecn` is (k_min, k_max, p_max) and `pfc` is
    (xoff, xon), in bytes. With `pfc` nothing is refused for lack of room. `gap` is packets, of selective repeat only.
    `patience` is no part of the model: a piece that times out more often than this has stalled.
    """

    owner: Sequence[int | None]
    end: Sequence[int | None]
    port_limit: int | None = None
    shared: tuple[int, float] | None = None
    ecn: tuple[int, int, float] | None = None
    seed: int = 0
    pfc: tuple[int, int] | None = None
    trim: bool = False
    rto_ps: int = 10**9
    receiver: Literal["selective_repeat", "go_back_n"] = "selective_repeat"
    gap: int | None = None
    transport: Literal["fixed", "dctcp"] = "fixed"
    patience: int = 1000


@dataclass
class FullOutcome(Outcome):
    """Also, by piece: packets sent, and what became of them. By port: packets that came to it, and what it did to them.

    `ack_packets` and `wire_bytes` of a port count trimmed packets as the control packets that they are. Limits, marks
    and queues are a switch's: `longest_queue` is 0 at a host's port. `entered` are all packets that came to a port or
    were sent from its ring; each was dropped there, or transmitted.
    """

    sent_packets: list[int]
    retransmitted: list[int]
    duplicates: list[int]
    discarded: list[int]
    timeouts: list[int]
    cwnd: list[float]
    alpha: list[float]

    entered: list[int]
    drops: list[int]
    dropped_bytes: list[int]
    trims: list[int]
    marks: list[int]
    longest_queue: list[int]
    paused_ps: list[int]


@dataclass(eq=False)
class FullDataPacket(DataPacket):
    """A data packet; once trimmed, it is a control packet."""

    wants_ack: bool = False
    is_marked: bool = False

    def trim(self, header: int) -> None:
        self.is_control = True
        self.wire_bytes = header
        self.payload_bytes = 0


@dataclass(frozen=True)
class FullAnswer(Answer):
    """ack: `latest` has come and so has all of `sack`. nack: `latest` was trimmed. nak: go back to `cumulative`."""

    kind: Literal["ack", "nack", "nak"]
    latest: int
    sack: frozenset[int] = frozenset()
    marks: int = 0


@dataclass(eq=False)
class FullPort(Port):
    """A port that may be full, or paused."""

    owner: int | None = None
    random: int = 0
    queued_bytes: int = 0  # data whose serialisation has not ended
    queued: deque[tuple[int, int]] = field(default_factory=deque)  # their bytes, and the links that they came over
    is_sending_data: bool = False
    paused_since_ps: int | None = None

    entered: int = 0
    drops: int = 0
    dropped_bytes: int = 0
    trims: int = 0
    marks: int = 0
    longest_queue: int = 0
    paused_ps: int = 0

    def serialise(self, packet: Packet, now_ps: int) -> int:
        self.is_sending_data = not packet.is_control
        return super().serialise(packet, now_ps)

    def marks_at(self, queued_bytes: int, k_min: int, k_max: int, p_max: float) -> bool:
        """Whether a packet that finds this much is marked; a random number is drawn only between the thresholds."""
        if not k_min < queued_bytes < k_max:
            return queued_bytes > k_min
        self.random = (self.random + GOLDEN) & MASK
        return (mix(self.random) >> 11) * 2.0**-53 < p_max * (queued_bytes - k_min) / (k_max - k_min)


@dataclass(eq=False)
class FixedWindow:
    """A sender's window in bytes, which nothing changes; `acknowledged` and `timed_out` say what has happened."""

    mtu: int
    cwnd: float
    alpha: float = 1.0

    def packets(self) -> int:
        return max(math.floor(self.cwnd / self.mtu), 1)

    def acknowledged(self, newly: int, marks: int, found_gap: bool, cumulative: int, next_seq: int) -> None:
        pass

    def timed_out(self) -> None:
        pass


@dataclass(eq=False)
class DctcpWindow(FixedWindow):
    """A window that grows by a packet a round trip, and shrinks once a round trip, by the share of marks of late."""

    round_end: int = 0  # a sequence number
    round_acked: int = 0
    round_marked: int = 0
    is_reduced: bool = False  # in this round

    def acknowledged(self, newly: int, marks: int, found_gap: bool, cumulative: int, next_seq: int) -> None:
        self.round_acked += newly
        self.round_marked += marks
        if found_gap and not self.is_reduced:
            self.cwnd = self.cwnd * 0.5
            self.is_reduced = True
        elif marks > 0 and not self.is_reduced:
            self.cwnd = self.cwnd * (1.0 - self.alpha * 0.5)
            self.is_reduced = True
        elif marks == 0:
            self.cwnd = self.cwnd + self.mtu * (newly * self.mtu) / self.cwnd
        self.cwnd = min(max(self.cwnd, float(self.mtu)), float(MAX_WINDOW * self.mtu))
        if cumulative >= self.round_end:
            if self.round_acked > 0:
                share = min(self.round_marked / self.round_acked, 1.0)
                self.alpha = (1.0 - ALPHA_GAIN) * self.alpha + ALPHA_GAIN * share
            self.round_end = next_seq
            self.round_acked = self.round_marked = 0
            self.is_reduced = False

    def timed_out(self) -> None:
        self.cwnd = float(self.mtu)


WINDOWS = {"fixed": FixedWindow, "dctcp": DctcpWindow}


@dataclass(eq=False, kw_only=True)
class FullSender(Sender):
    """A sender with a timer, which runs from a packet sent to the alarm that finds nothing out there.

    `cumulative` is the in-order point that it knows of.
    """

    rto_ps: int
    congestion: FixedWindow
    gap: int | None
    most_sent: int = 0
    is_armed: bool = False
    deadline_ps: int = 0

    sent_packets: int = 0
    retransmitted: int = 0
    timeouts: int = 0

    def allowed(self) -> int:
        return self.congestion.packets()

    def is_settled(self) -> bool:
        return self.acknowledged_ps is not None

    def give(self, now_ps: int) -> int:
        seq = super().give(now_ps)
        self.sent_packets += 1
        self.retransmitted += seq < self.most_sent
        self.most_sent = max(self.most_sent, self.next_seq)
        if not self.is_armed:
            self.is_armed = True
            self.restart_timer(now_ps)
        return seq

    def restart_timer(self, now_ps: int) -> None:
        self.deadline_ps = now_ps + self.rto_ps

    def has_nothing_out(self) -> bool:
        return self.in_flight == 0

    def alarm(self, now_ps: int) -> bool:
        """The timer's alarm has come: whether it was the deadline, and the sender has timed out."""
        if self.is_settled() or self.has_nothing_out():
            self.is_armed = False
            return False
        if now_ps < self.deadline_ps:
            return False
        self.give_up()
        self.timeouts += 1
        self.restart_timer(now_ps)
        self.congestion.timed_out()
        return True

    def give_up(self) -> None:
        """Count what has not been acknowledged as lost."""
        raise NotImplementedError


@dataclass(eq=False, kw_only=True)
class SelectiveSender(FullSender):
    """Sends again what is lost, the lowest number first. `acked` and `lost` lie above the in-order point."""

    acked: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    resent: set[int] = field(default_factory=set)  # not lost again before a nack, or a whole round of the timer
    highest_acked: int = -1
    checked: int = 0  # the gap rule has been applied below
    timer_seq: int = 0  # the timer is of the packets below

    def upcoming(self) -> int | None:
        return min(self.lost) if self.lost else super().upcoming()

    def give(self, now_ps: int) -> int:
        seq = super().give(now_ps)
        if seq in self.lost:
            self.lost.remove(seq)
            self.resent.add(seq)
        self.check()
        return seq

    def restart_timer(self, now_ps: int) -> None:
        super().restart_timer(now_ps)
        self.timer_seq = self.next_seq

    def has_nothing_out(self) -> bool:
        return super().has_nothing_out() and not self.lost

    def is_out(self, seq: int) -> bool:
        """Sent, and not known to have come or to be lost."""
        return self.cumulative <= seq < self.next_seq and seq not in self.acked and seq not in self.lost

    def lose(self, seq: int) -> None:
        self.lost.add(seq)
        self.in_flight -= 1

    def hear(self, answer: Answer, now_ps: int) -> None:
        assert isinstance(answer, FullAnswer)
        if self.is_settled():
            return
        if answer.kind == "nack":
            if self.is_out(answer.latest):
                self.lose(answer.latest)
                self.resent.discard(answer.latest)
        else:
            assert answer.kind == "ack"
            newly = self.take_acknowledged(answer)
            if answer.cumulative > self.cumulative:
                self.cumulative = answer.cumulative
                self.acked = {seq for seq in self.acked if seq >= self.cumulative}
                self.restart_timer(now_ps)
            found_gap = self.gap is not None and self.find_gap(self.gap)
            self.congestion.acknowledged(newly, answer.marks, found_gap, self.cumulative, self.next_seq)
        self.check()
        self.settle(now_ps)

    def take_acknowledged(self, answer: FullAnswer) -> int:
        """Note every packet that an acknowledgement is the first to tell of; returns how many they are."""
        told = {*range(self.cumulative, answer.cumulative), *answer.sack, answer.latest}
        newly = {seq for seq in told if seq >= self.cumulative} - self.acked
        for seq in newly:
            if seq in self.lost:
                self.lost.remove(seq)
            else:
                self.in_flight -= 1
            self.resent.discard(seq)
        self.acked |= newly
        self.num_acknowledged += len(newly)
        self.highest_acked = max(self.highest_acked, *newly, -1)
        return len(newly)

    def find_gap(self, gap: int) -> bool:
        """Whatever was sent `gap` packets before an acknowledged one, and only once, is lost."""
        found = False
        seq = max(self.checked, self.cumulative)
        while seq + gap <= self.highest_acked:
            if self.is_out(seq) and seq not in self.resent:
                self.lose(seq)
                found = True
            seq += 1
        self.checked = seq
        return found

    def give_up(self) -> None:
        for seq in range(self.cumulative, self.timer_seq):
            if self.is_out(seq):
                if seq in self.resent:
                    self.resent.remove(seq)
                else:
                    self.lose(seq)
        self.check()

    def check(self) -> None:
        assert self.in_flight == self.next_seq - self.cumulative - len(self.acked) - len(self.lost)


@dataclass(eq=False, kw_only=True)
class GoBackSender(FullSender):
    """Goes back to the in-order point at a negative acknowledgement, and at a timeout; after a timeout it sends one
    packet at a time until something new is acknowledged."""

    is_careful: bool = False

    def allowed(self) -> int:
        return 1 if self.is_careful else super().allowed()

    def alarm(self, now_ps: int) -> bool:
        timed_out = super().alarm(now_ps)
        self.is_careful |= timed_out
        return timed_out

    def hear(self, answer: Answer, now_ps: int) -> None:
        assert isinstance(answer, FullAnswer)
        if self.is_settled():
            return
        newly = max(0, answer.cumulative - self.cumulative)
        if newly > 0:
            self.is_careful = False
            self.cumulative = self.num_acknowledged = answer.cumulative
            self.restart_timer(now_ps)
            self.next_seq = max(self.next_seq, self.cumulative)
        if answer.kind == "ack":
            self.in_flight = self.next_seq - self.cumulative
            self.congestion.acknowledged(newly, answer.marks, False, self.cumulative, self.next_seq)
        else:
            self.give_up()
            self.congestion.acknowledged(newly, 0, True, self.cumulative, self.next_seq)
        self.settle(now_ps)

    def give_up(self) -> None:
        self.next_seq = self.cumulative
        self.in_flight = 0


@dataclass(eq=False)
class SelectiveReceiver(Receiver):
    """Keeps whatever comes, and tells at once of what comes twice or was trimmed."""

    marks: int = 0  # of packets not answered
    num_trimmed: int = 0
    duplicates: int = 0
    discarded: int = 0

    def has(self, seq: int) -> bool:
        return seq < self.cumulative or seq in self.held

    def receive(self, packet: DataPacket, now_ps: int) -> Answer | None:
        assert isinstance(packet, FullDataPacket)
        if packet.is_control:
            self.num_trimmed += 1
            return self.tell(packet) if self.has(packet.seq) else self.refuse("nack", packet)
        if self.has(packet.seq):
            self.duplicates += 1
            return self.tell(packet)
        return self.receive_new(packet, now_ps)

    def receive_new(self, packet: FullDataPacket, now_ps: int) -> Answer | None:
        self.take(packet, now_ps)
        self.marks += packet.is_marked
        return self.tell(packet) if self.owes_ack() or packet.wants_ack else None

    def tell(self, packet: FullDataPacket) -> Answer:
        sack = frozenset(seq for seq in self.held if seq < self.cumulative + SACK_PACKETS)
        plain = self.acknowledge()
        answer = FullAnswer(plain.covers, plain.cumulative, "ack", packet.seq, sack, self.marks)
        self.marks = 0
        return answer

    def refuse(self, kind: Literal["nack", "nak"], packet: FullDataPacket) -> Answer:
        """A negative acknowledgement; what has not been answered is still to be."""
        return FullAnswer(0, self.cumulative, kind, packet.seq)


@dataclass(eq=False)
class GoBackReceiver(SelectiveReceiver):
    """Discards whatever is not next, and says so once."""

    nak_sent: bool = False

    def receive_new(self, packet: FullDataPacket, now_ps: int) -> Answer | None:
        if packet.seq == self.cumulative:
            self.nak_sent = False
            return super().receive_new(packet, now_ps)
        self.discarded += 1
        if self.nak_sent:
            return None
        self.nak_sent = True
        return self.refuse("nak", packet)


class FullNetwork(Network):
    """All state of a network with full ports: also its switches' buffers, and what each link has there."""

    ports: Sequence[FullPort]
    senders: Sequence[FullSender]
    receivers: Sequence[SelectiveReceiver]

    def __init__(
        self,
        wires: Sequence[Wire],
        reverse: Sequence[int | None],
        pieces: Sequence[Piece],
        route: Callable[[int, int], Route],
        mtu: int,
        header: int,
        turn: Turn,
        full: Full,
    ) -> None:
        self.full = full
        self.wires = wires
        self.mtu = mtu
        self.now_ps = 0
        self.used: Counter[int] = Counter()  # bytes, by switch
        self.ingress: Counter[int] = Counter()  # bytes, by link
        self.asserted: set[int] = set()  # links
        super().__init__(wires, reverse, pieces, route, mtu, header, turn)
        for link, port in enumerate(self.ports):
            if port.is_source and port.owner is not None:
                raise ValueError(f"link {link} is the first of a piece, and its port a switch's")

    def make_port(self, link: int, wire: Wire) -> FullPort:
        return FullPort(wire, owner=self.full.owner[link], random=mix(mix(self.full.seed) + link))

    def make_sender(self, num_packets: int, window: int) -> FullSender:
        kind = SelectiveSender if self.full.receiver == "selective_repeat" else GoBackSender
        congestion = WINDOWS[self.full.transport](self.mtu, float(window * self.mtu))
        return kind(num_packets, window, rto_ps=self.full.rto_ps, congestion=congestion, gap=self.full.gap)

    def make_receiver(self, num_packets: int, ack_every: int) -> SelectiveReceiver:
        kind = SelectiveReceiver if self.full.receiver == "selective_repeat" else GoBackReceiver
        return kind(num_packets, ack_every)

    def make_packet(self, piece: int, seq: int) -> FullDataPacket:
        """A packet of a piece; sent again, it takes the same route.

        A route for each attempt would be asked for here, and in `first_link`.
        """
        return FullDataPacket(**vars(super().make_packet(piece, seq)))

    def happen(self, now_ps: int, phase: int, index: int) -> None:
        self.now_ps = now_ps
        if phase == PAUSE:
            link, is_resume = divmod(index, 2)  # a link that is told both at once is let go
            (self.resume if is_resume else self.pause)(link, now_ps)
        elif phase == RTO:
            self.time_out(index, now_ps)
        else:
            super().happen(now_ps, phase, index)

    def admit(self, packet: Packet, link: int, now_ps: int) -> bool:
        """Whether a packet enters; a data packet that finds a switch's port full is trimmed, or dropped."""
        port = self.ports[link]
        port.entered += 1
        if packet.is_control or port.owner is None:
            return True
        assert isinstance(packet, FullDataPacket)
        if not self.has_room(port, packet.wire_bytes):
            if self.full.trim:
                port.trims += 1
                packet.trim(self.header)
                return True
            port.drops += 1
            port.dropped_bytes += packet.wire_bytes
            return False
        if self.full.ecn is not None and port.marks_at(port.queued_bytes, *self.full.ecn):
            port.marks += 1
            packet.is_marked = True
        self.occupy(port, packet.wire_bytes, packet.travelled[-1], now_ps)
        return True

    def has_room(self, port: FullPort, size: int) -> bool:
        if self.full.pfc is not None:
            return True
        if self.full.port_limit is not None and port.queued_bytes + size > self.full.port_limit:
            return False
        if self.full.shared is not None:
            assert port.owner is not None
            total, alpha = self.full.shared
            used = self.used[port.owner]
            if used + size > total or port.queued_bytes + size > alpha * (total - used):
                return False
        return True

    def occupy(self, port: FullPort, size: int, came_over: int, now_ps: int) -> None:
        """A packet takes its room; the link that it came over may have to be paused."""
        assert port.owner is not None
        port.queued.append((size, came_over))
        port.queued_bytes += size
        port.longest_queue = max(port.longest_queue, port.queued_bytes)
        self.used[port.owner] += size
        if self.full.pfc is not None and self.full.end[came_over] == port.owner:
            self.ingress[came_over] += size
            if self.ingress[came_over] > self.full.pfc[0] and came_over not in self.asserted:
                self.asserted.add(came_over)
                heappush(self.calendar, (now_ps + self.pause_delay_ps(came_over), PAUSE, 2 * came_over))

    def finish(self, link: int, now_ps: int) -> None:
        """A serialisation ends: a data packet leaves its room, and the link that it came over may resume."""
        super().finish(link, now_ps)
        port = self.ports[link]
        if port.owner is None or not port.is_sending_data:
            return
        size, came_over = port.queued.popleft()
        port.queued_bytes -= size
        self.used[port.owner] -= size
        if self.full.pfc is not None and self.full.end[came_over] == port.owner:
            self.ingress[came_over] -= size
            if self.ingress[came_over] <= self.full.pfc[1] and came_over in self.asserted:
                self.asserted.remove(came_over)
                heappush(self.calendar, (now_ps + self.pause_delay_ps(came_over), PAUSE, 2 * came_over + 1))

    def pause_delay_ps(self, link: int) -> int:
        """From a switch's decision to the port that feeds it by this link."""
        return pause_delay_ps(self.wires, self.reverse, link)

    def pause(self, link: int, now_ps: int) -> None:
        port = self.ports[link]
        if port.paused_since_ps is None:
            port.paused_since_ps = now_ps

    def resume(self, link: int, now_ps: int) -> None:
        port = self.ports[link]
        if port.paused_since_ps is not None:
            port.paused_ps += now_ps - port.paused_since_ps
            port.paused_since_ps = None
            self.call(link, now_ps)

    def next_data(self, link: int, now_ps: int) -> Packet | None:
        """None, too, while the port is paused.

        A piece may have joined a ring and, before its turn, lost its window or what it had to send, or its next packet
        starts elsewhere by now: then it leaves the ring, and may join another one.
        """
        port = self.ports[link]
        if port.paused_since_ps is not None:
            return None
        while port.ring and not self.may_send(port.ring[0], link):
            piece = port.ring.popleft()
            self.senders[piece].is_in_ring = False
            self.offer(piece, now_ps)
        return super().next_data(link, now_ps)

    def may_send(self, piece: int, link: int) -> bool:
        sender = self.senders[piece]
        seq = sender.upcoming()
        return sender.is_ready() and seq is not None and self.first_link(piece, seq) == link

    def send(self, index: int, now_ps: int) -> DataPacket:
        sender = self.senders[index]
        had_sent, was_armed = sender.most_sent, sender.is_armed
        packet = super().send(index, now_ps)
        assert isinstance(packet, FullDataPacket)
        fills_window = self.full.transport != "fixed" and sender.in_flight >= sender.allowed()
        packet.wants_ack = packet.seq < had_sent or fills_window
        self.ports[self.first_link(index, packet.seq)].entered += 1
        if not was_armed:
            heappush(self.calendar, (sender.deadline_ps, RTO, index))
        return packet

    def time_out(self, piece: int, now_ps: int) -> None:
        sender = self.senders[piece]
        has_timed_out = sender.alarm(now_ps)
        if sender.is_armed:
            heappush(self.calendar, (sender.deadline_ps, RTO, piece))
        if has_timed_out:
            if sender.timeouts > self.full.patience:
                raise Stalled(f"piece {piece} has timed out {sender.timeouts} times")
            self.offer(piece, now_ps)

    def outcome(self) -> FullOutcome:
        stuck = [link for link, port in enumerate(self.ports) if port.paused_since_ps is not None]
        if any(self.ports[link].data or self.ports[link].ring for link in stuck):
            raise Stalled(f"ports {stuck} are paused for ever")
        lean = super().outcome()
        self.check_ledgers()
        return FullOutcome(
            **vars(lean),
            sent_packets=[sender.sent_packets for sender in self.senders],
            retransmitted=[sender.retransmitted for sender in self.senders],
            duplicates=[receiver.duplicates for receiver in self.receivers],
            discarded=[receiver.discarded for receiver in self.receivers],
            timeouts=[sender.timeouts for sender in self.senders],
            cwnd=[sender.congestion.cwnd for sender in self.senders],
            alpha=[sender.congestion.alpha for sender in self.senders],
            entered=[port.entered for port in self.ports],
            drops=[port.drops for port in self.ports],
            dropped_bytes=[port.dropped_bytes for port in self.ports],
            trims=[port.trims for port in self.ports],
            marks=[port.marks for port in self.ports],
            longest_queue=[port.longest_queue for port in self.ports],
            paused_ps=[port.paused_ps + self.still_paused_ps(port) for port in self.ports],
        )

    def still_paused_ps(self, port: FullPort) -> int:
        return 0 if port.paused_since_ps is None else self.now_ps - port.paused_since_ps

    def check_ledgers(self) -> None:
        """What came went on or was dropped, nothing is left, and every packet sent is accounted for."""
        for port in self.ports:
            assert port.entered == port.data_packets + port.ack_packets + port.drops
            assert port.queued_bytes == 0 and not port.queued
        assert not any(self.used.values()) and not any(self.ingress.values()) and not self.asserted
        sent = sum(sender.sent_packets for sender in self.senders)
        came = sum(r.num_received + r.duplicates + r.discarded + r.num_trimmed for r in self.receivers)
        assert sent == came + sum(port.drops for port in self.ports)


def pause_delay_ps(wires: Sequence[Wire], reverse: Sequence[int | None], link: int) -> int:
    """A pause's flight over the reverse link, or one like this link where there is none."""
    back = reverse[link]
    wire = wires[link if back is None else back]
    return wire.latency + PAUSE_BYTES * 8 * PS_PER_S // wire.rate


def check_full(wires: Sequence[Wire], reverse: Sequence[int | None], full: Full) -> None:
    if not len(full.owner) == len(full.end) == len(wires):
        raise ValueError(f"{len(wires)} wires need as many owners and ends, not {len(full.owner)} and {len(full.end)}")
    if full.receiver not in ("selective_repeat", "go_back_n") or full.transport not in WINDOWS:
        raise ValueError(f"there is no receiver {full.receiver}, or no transport {full.transport}")
    if full.rto_ps < 1 or (full.gap is not None and full.gap < 1):
        raise ValueError(f"need rto_ps and gap >= 1, not {full.rto_ps} and {full.gap}")
    if full.ecn is not None and not 0 <= full.ecn[0] <= full.ecn[1]:
        raise ValueError(f"need 0 <= k_min <= k_max, not {full.ecn}")
    if full.pfc is not None:
        if not 0 <= full.pfc[1] <= full.pfc[0]:
            raise ValueError(f"need 0 <= xon <= xoff, not {full.pfc}")
        for link in range(len(wires)):
            if full.end[link] is not None and pause_delay_ps(wires, reverse, link) < 1:
                raise ValueError(f"link {link}: a pause takes less than 1 ps")


def simulate_full(
    wires: Sequence[Wire],
    reverse: Sequence[int | None],
    pieces: Sequence[Piece],
    route: Callable[[int, int], Route],
    *,
    mtu: int = 4096,
    header: int = 64,
    turn: Turn = round_robin,
    full: Full,
) -> FullOutcome:
    """As `exact_packets.simulate`, with full ports; a piece's first port is a host's.

    What comes to a piece's sender after its last acknowledgement changes nothing; what comes to its receiver counts.
    """
    check_input(wires, reverse, pieces, mtu, header)
    check_full(wires, reverse, full)
    network = FullNetwork(wires, reverse, pieces, route, mtu, header, turn, full)
    network.run()
    return network.outcome()
