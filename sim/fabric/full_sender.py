"""The sender's end of a piece over ports that may lose: what it may send, and what answers and its timer tell it.

An acknowledgement carries the in-order point, which of the next 256 packets are there, and the packet that it answers.
What is lost is noticed by its trimmed header, by the gap it leaves, or by the retransmission timer; nothing is lost
for good.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import alarms, full_detours, full_routes, sequences, transports
from sim.fabric import packet_placing as placing
from sim.fabric import packet_ports as lean
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import ACK, DATA, NACK, NAK, NDP, PULL, SACK_WORDS
from sim.fabric.packet_state import FIXED, FLOWLET, REORDER_WINDOW, REPS, picoseconds, seconds
from sim.fabric.sequences import WORDS

# --- what it sends ----------------------------------------------------------------------------------------------------


@inner
def _reset(piece):
    """The books of a row's new life."""
    piece.most_sent = 0
    piece.highest_acked = -1
    piece.checked = 0
    piece.num_lost = 0
    piece.is_armed = False
    piece.is_careful = False
    piece.retransmitted = 0
    piece.timeouts = 0
    piece.heard = 0
    piece.next_send = 0
    piece.is_waiting = False
    piece.last_sent = 0
    piece.num_remembered = 0
    piece.nak_sent = False
    piece.marks = 0
    piece.last_notice = -transports.NOTICE_INTERVAL
    piece.duplicates = 0
    piece.discarded = 0
    piece.trimmed = 0
    piece.owed = 0
    piece.under_way = 0
    piece.pulled = 0
    for i in range(WORDS):
        piece.acked[i] = 0
        piece.lost[i] = 0
        piece.resent[i] = 0


@inner
def begin(state, r, now):
    """Piece r may send from now on."""
    c = state.c[0]
    piece = state.pieces[r]
    _reset(piece)
    piece.serial = c.num_pieces
    c.num_pieces += 1
    piece.quiet_since = now
    _, round_trip_s = placing.idle_path(state, piece)
    piece.base_rtt = picoseconds(round_trip_s)
    transports.begin(state, r)
    offer(state, r, now)


@inner(forceinline=True)
def may_send(state, piece):
    if not piece.is_started:
        return False
    has_packet = piece.num_lost > 0 or (
        piece.next_seq < piece.num_packets and piece.next_seq - piece.known < REORDER_WINDOW
    )
    if state.c[0].transport == NDP:
        return has_packet and piece.credit > 0
    return has_packet and piece.in_flight < transports.packets_allowed(state, piece)


@inner(forceinline=True)
def offer(state, r, now):
    """A piece may have become ready: it joins the ring of its source port, or waits until its pace lets it."""
    piece = state.pieces[r]
    if piece.is_in_ring or piece.is_waiting or not may_send(state, piece):
        return
    if now < piece.next_send:
        piece.is_waiting = True
        alarms.push(state, piece.next_send, alarms.piece_code(state, alarms.PACE, r))
        return
    if piece.spray != FIXED:
        full_routes.aim(state, r, now)
    lean.into_ring(state, r)
    if not state.ports[piece.source_port].is_busy:
        lean.wake(state, np.int64(piece.source_port))


@inner(inline="always")
def _take_seq(piece):
    """The number to send: the lowest lost one, or the next new one."""
    if piece.num_lost == 0:
        piece.next_seq += 1
        return piece.next_seq - 1
    seq = np.int64(piece.known)
    while not sequences.has(piece.lost, seq):
        seq += 1
    sequences.discard(piece.lost, seq)
    sequences.add(piece.resent, seq)
    piece.num_lost -= 1
    return seq


@inner
def arm(state, r, now):
    piece = state.pieces[r]
    piece.is_armed = True
    piece.deadline = now + state.c[0].rto
    piece.timer_seq = piece.next_seq
    alarms.push(state, piece.deadline, alarms.piece_code(state, alarms.TIMEOUT, r))


@inner(inline="always")
def next_packet(state, r, now):
    """The packet that piece r sends now."""
    c = state.c[0]
    piece = state.pieces[r]
    seq = _take_seq(piece)
    k = lean.take_packet(state)
    packet = state.packets[k]
    packet.piece = r
    packet.seq = seq
    packet.kind = DATA
    packet.covers = 0
    packet.hop = 0
    packet.came_over = NONE
    packet.is_marked = False
    packet.is_trimmed = False
    packet.size = c.mtu_bytes if seq < piece.num_packets - 1 else piece.last_size
    packet.path = piece.next_path
    packet.sent = now
    routes.put_route(state, piece, packet)
    is_again = seq < piece.most_sent
    if is_again:
        piece.retransmitted += 1
    piece.most_sent = max(piece.most_sent, seq + 1)
    piece.in_flight += 1
    packet.wants_ack = is_again or transports.waits_for_ack(state, piece)
    piece.under_way += 1
    piece.last_sent = now
    transports.sent(state, r, packet.size, now)
    if not piece.is_armed:
        arm(state, r, now)
    if piece.spray != FIXED:
        _draw_next(state, r)
    return k


@inner(inline="always")
def _draw_next(state, r):
    """Round robin and random senders choose now, so that the piece waits at the right port; others when they wait."""
    spray = state.pieces[r].spray
    if spray != FLOWLET and spray != REPS:
        routes.draw_path(state, r)
        if state.c[0].num_withdrawn > 0:
            full_detours.avoid(state, state.pieces[r])
            routes.aim(state, r)


# --- what it hears ----------------------------------------------------------------------------------------------------


@inner(inline="always")
def hear(state, packet, now):
    """An answer, or credit, is back. Returns whether its piece is to send more."""
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    if piece.is_settled or not piece.is_started:
        return False
    if packet.kind == PULL:
        piece.credit += 1
        return True
    if piece.spray == REPS and packet.kind == ACK and not packet.is_marked:
        full_routes.remember(piece, packet.path)
    if packet.kind == NACK:
        _trimmed_away(state, r, packet.latest)
    elif state.c[0].goes_back:
        _go_back(state, r, packet, now)
    else:
        _selectively(state, r, packet, now)
    if piece.acknowledged < piece.num_packets:
        return True
    _settle(state, r, now)
    return False


@inner
def _trimmed_away(state, r, seq):
    piece = state.pieces[r]
    if seq < piece.known or sequences.has(piece.acked, seq) or sequences.has(piece.lost, seq):
        return
    _lose(piece, seq)
    sequences.discard(piece.resent, seq)
    transports.on_trim(state, r)


@inner
def _lose(piece, seq):
    sequences.add(piece.lost, seq)
    piece.num_lost += 1
    piece.in_flight -= 1


@inner(forceinline=True)
def _credit_ack(piece, seq):
    """Packet `seq` is known to be there; returns 1 if that is news."""
    if sequences.has(piece.acked, seq):
        return 0
    sequences.add(piece.acked, seq)
    piece.acknowledged += 1
    if sequences.has(piece.lost, seq):
        sequences.discard(piece.lost, seq)
        piece.num_lost -= 1
    else:
        piece.in_flight -= 1
    sequences.discard(piece.resent, seq)
    piece.highest_acked = max(piece.highest_acked, seq)
    return 1


@inner(inline="always")
def _selectively(state, r, packet, now):
    """An acknowledgement by packet."""
    piece = state.pieces[r]
    newly = np.int64(0)
    point = np.int64(packet.seq)
    for earlier in range(np.int64(piece.known), point):
        newly += _credit_ack(piece, earlier)
    for i in range(SACK_WORDS):
        seq = point + 64 * i
        known_before = piece.known - seq  # an old one: what it says of packets from the known point on still holds
        if known_before >= 64:
            continue
        news = packet.sack[i] & ~sequences.stretch(piece.acked, seq)
        if known_before > 0:
            news = news >> np.uint64(known_before) << np.uint64(known_before)
        while news != 0:
            newly += _credit_ack(piece, seq + sequences.lowest(news))
            news &= news - np.uint64(1)
    if packet.latest >= max(piece.known, point):
        newly += _credit_ack(piece, np.int64(packet.latest))
    if point > piece.known:
        for earlier in range(np.int64(piece.known), point):
            sequences.discard(piece.acked, earlier)
        piece.known = point
        piece.deadline = now + state.c[0].rto
        piece.timer_seq = piece.next_seq
    is_loss = state.c[0].gap > 0 and _find_gaps(state, piece)
    delay = max(now - packet.sent - piece.base_rtt, 0)
    transports.on_ack(state, r, newly, packet.marks, delay, is_loss, now)


@inner(inline="always")
def _find_gaps(state, piece):
    """The gap rule: what `gap` later packets have overtaken is lost. Returns whether any was."""
    found = False
    seq = max(np.int64(piece.checked), np.int64(piece.known))
    while seq + state.c[0].gap <= piece.highest_acked:
        if not (sequences.has(piece.acked, seq) or sequences.has(piece.lost, seq) or sequences.has(piece.resent, seq)):
            _lose(piece, seq)
            found = True
        seq += 1
    piece.checked = seq
    return found


@inner
def _go_back(state, r, packet, now):
    """An acknowledgement in order, or the demand to go back to it."""
    piece = state.pieces[r]
    newly = max(np.int64(packet.seq) - piece.known, 0)
    if newly > 0:
        piece.is_careful = False
        piece.known = packet.seq
        piece.acknowledged = packet.seq
        piece.deadline = now + state.c[0].rto
        piece.next_seq = max(piece.next_seq, piece.known)
    if packet.kind == NAK and piece.next_seq > piece.known:
        piece.next_seq = piece.known
    piece.in_flight = piece.next_seq - piece.known
    delay = max(now - packet.sent - piece.base_rtt, 0)
    transports.on_ack(state, r, newly, packet.marks, delay, packet.kind == NAK, now)


@inner
def time_out(state, r, now):
    """The retransmission timer of piece r: what was sent before it last started, and is not there, is lost."""
    c = state.c[0]
    piece = state.pieces[r]
    is_out_of_credit = c.is_faulty and c.transport == NDP  # the pulls may be lost
    has_lost = piece.in_flight > 0 or piece.num_lost > 0
    if piece.is_settled or not piece.is_started or not (has_lost or is_out_of_credit):
        piece.is_armed = False
        return
    if now < piece.deadline:
        alarms.push(state, piece.deadline, alarms.piece_code(state, alarms.TIMEOUT, r))
        return
    full_detours.give_up(state, r, now)
    if is_out_of_credit and piece.credit <= 0:
        piece.credit = 1
    before = piece.num_lost
    if c.goes_back:
        piece.next_seq = piece.known
        piece.in_flight = 0
        piece.is_careful = True
    else:
        for seq in range(np.int64(piece.known), np.int64(piece.timer_seq)):
            if sequences.has(piece.acked, seq) or sequences.has(piece.lost, seq):
                continue
            if sequences.has(piece.resent, seq):
                sequences.discard(piece.resent, seq)
            else:
                _lose(piece, seq)
    piece.timeouts += 1
    piece.deadline = now + c.rto
    piece.timer_seq = piece.next_seq
    alarms.push(state, piece.deadline, alarms.piece_code(state, alarms.TIMEOUT, r))
    transports.on_timeout(state, r, piece.num_lost - before, now)
    piece.num_remembered = 0
    offer(state, r, now)


@inner
def _settle(state, r, now):
    """A piece is acknowledged whole, or cancelled."""
    piece = state.pieces[r]
    message = state.messages[piece.message]
    if piece.is_in_ring:  # it was to send something again
        lean.leave_ring(state, r)
    piece.is_settled = True
    piece.is_started = False
    message.answered_s = max(message.answered_s, seconds(now))
    message.unanswered -= 1


@inner
def stop(state, r, now):
    """The sender of a cancelled message sends no more."""
    piece = state.pieces[r]
    if not piece.is_settled:
        if not piece.is_started:
            _reset(piece)
        _settle(state, r, now)
