"""Both ends of a piece over ports that may lose: the receiver's books, and the sender's recovery.

An acknowledgement carries the in-order point, which of the next 256 packets are there, and the packet that it answers.
A receiver that goes back takes packets in order only. What is lost is noticed by its trimmed header, by the gap it
leaves, or by the retransmission timer; nothing is lost for good.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.fabric import alarms, full_detours, full_routes, readiness, transports, wheel
from sim.fabric import full_ports as ports
from sim.fabric import packet_ends as lean_ends
from sim.fabric import packet_placing as placing
from sim.fabric import packet_ports as lean
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import ACK, DATA, DCQCN, NACK, NAK, NDP, PULL, SACK_WORDS
from sim.fabric.messages import CANCELLED
from sim.fabric.packet_state import (
    AT_SWITCH,
    FIXED,
    FLOWLET,
    REORDER_WINDOW,
    REPS,
    TOLD_AT_ONCE,
    picoseconds,
    seconds,
)

WORDS = REORDER_WINDOW // 64

# --- sets of sequence numbers within the reorder window ---------------------------------------------------------------


@njit(cache=True, forceinline=True)
def _has(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    return bits[bit >> 6] >> np.uint64(bit & 63) & np.uint64(1) != 0


@njit(cache=True, forceinline=True)
def _add(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    bits[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)


@njit(cache=True, forceinline=True)
def _stretch(bits, seq):
    """The 64 of them from `seq` on, as one word."""
    shift = np.uint64(seq & 63)
    word = (seq & (REORDER_WINDOW - 1)) >> 6
    found = bits[word] >> shift
    if shift > 0:
        found |= bits[(word + 1) & (WORDS - 1)] << (np.uint64(64) - shift)
    return found


@njit(cache=True, forceinline=True)
def _lowest(bits):
    """Number of the lowest bit that is set: a power of two is a float whose exponent tells."""
    lowest = bits & (~bits + np.uint64(1))
    return (np.float64(lowest).view(np.int64) >> 52) - 1023


@njit(cache=True, forceinline=True)
def _discard(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    bits[bit >> 6] &= ~(np.uint64(1) << np.uint64(bit & 63))


# --- the sender sends -------------------------------------------------------------------------------------------------


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True, forceinline=True)
def _may_send(state, piece):
    if not piece.is_started:
        return False
    has_packet = piece.num_lost > 0 or (
        piece.next_seq < piece.num_packets and piece.next_seq - piece.known < REORDER_WINDOW
    )
    if state.c[0].transport == NDP:
        return has_packet and piece.credit > 0
    return has_packet and piece.in_flight < transports.packets_allowed(state, piece)


@njit(cache=True, forceinline=True)
def offer(state, r, now):
    """A piece may have become ready: it joins the ring of its source port, or waits until its pace lets it."""
    piece = state.pieces[r]
    if piece.is_in_ring or piece.is_waiting or not _may_send(state, piece):
        return
    if now < piece.next_send:
        piece.is_waiting = True
        alarms.push(state, piece.next_send, alarms.piece_code(state, alarms.PACE, r))
        return
    if piece.spray != FIXED:
        full_routes.aim(state, r, now)
    lean.into_ring(state, r)
    if not state.ports[piece.source_port].is_busy:
        lean.wake(state, piece.source_port)


@njit(cache=True, forceinline=True)
def _take_seq(piece):
    """The number to send: the lowest lost one, or the next new one."""
    if piece.num_lost == 0:
        piece.next_seq += 1
        return piece.next_seq - 1
    seq = np.int64(piece.known)
    while not _has(piece.lost, seq):
        seq += 1
    _discard(piece.lost, seq)
    _add(piece.resent, seq)
    piece.num_lost -= 1
    return seq


@njit(cache=True)
def arm(state, r, now):
    piece = state.pieces[r]
    piece.is_armed = True
    piece.deadline = now + state.c[0].rto
    piece.timer_seq = piece.next_seq
    alarms.push(state, piece.deadline, alarms.piece_code(state, alarms.TIMEOUT, r))


@njit(cache=True, forceinline=True)
def _next_packet(state, r, now):
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


@njit(cache=True, forceinline=True)
def _draw_next(state, r):
    """Round robin and random senders choose now, so that the piece waits at the right port; others when they wait."""
    spray = state.pieces[r].spray
    if spray != FLOWLET and spray != REPS:
        routes.draw_path(state, r)
        if state.c[0].num_withdrawn > 0:
            full_detours.avoid(state, state.pieces[r])
            routes.aim(state, r)


@njit(cache=True, forceinline=True)
def pick(state, p, now):
    """Port p is free: control first, then data, or at a source port the piece whose turn it is."""
    port = state.ports[p]
    k = ports.next_queued(state, p)
    r = NONE
    if k == NONE and port.is_source and state.rings[p].first != NONE and not port.is_paused:
        r = lean.next_in_ring(state, p)
        if not _may_send(state, state.pieces[r]):  # its window has closed since it joined the ring
            lean.wake(state, p)
            return
        k = _next_packet(state, r, now)
    if k == NONE:
        return
    ports.send(state, p, k, now)
    if r != NONE:
        offer(state, r, now)


# --- packets in hand --------------------------------------------------------------------------------------------------


@njit(cache=True, forceinline=True)
def _give(state, k):
    """Packet k is no more."""
    piece = state.pieces[state.packets[k].piece]
    lean.give_packet(state, k)
    piece.under_way -= 1
    if piece.is_settled and piece.under_way == 0:
        free_if_over(state, piece.message)


@njit(cache=True, forceinline=True)
def _forward(state, p, k, came_over, now):
    if not ports.enter(state, p, k, came_over, now):
        _give(state, k)


@njit(cache=True)
def deliver(state, p, now):
    """The packet at the end of port p's link: it enters its next port, or is there."""
    port = state.ports[p]
    k = np.int64(port.wire_first)
    packet = state.packets[k]
    port.wire_first = packet.next
    if port.wire_first != NONE:
        wheel.schedule(state, 2 * p, packet.time)
    if port.is_faulty and ports.loses(state, p, packet, now):
        _give(state, k)
        return
    packet.hop += 1
    if packet.kind == DATA and not packet.is_trimmed:
        state.c[0].num_hops += 1
    if packet.hop < packet.num_hops:
        if packet.route[packet.hop] == AT_SWITCH:
            full_routes.decide_at_switch(state, packet)
    elif packet.kind == DATA:
        if not _receive(state, k, now):
            return
    elif packet.kind == PULL:
        _credited(state, k, now)
        return
    else:
        _answered(state, k, now)
        return
    _forward(state, packet.route[packet.hop], k, p, now)


# --- the receiver -----------------------------------------------------------------------------------------------------


@njit(cache=True, forceinline=True)
def _receive(state, k, now):
    """Packet k has arrived, with or without its payload. True: it has become an answer; otherwise it is gone."""
    kind = _answer_due(state, k, now)
    if kind == NONE:
        _give(state, k)
        return False
    _answer(state, k, kind)
    return True


@njit(cache=True, forceinline=True)
def _answer_due(state, k, now):
    """Enter packet k in the receiver's books; returns how it is answered, NONE: not at all."""
    c = state.c[0]
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    if not piece.is_started and state.messages[piece.message].outcome == CANCELLED:
        return NONE
    if c.transport == NDP:
        _owe(state, r, packet, now)
    seq = packet.seq
    is_there = seq < piece.in_order or (not c.goes_back and _has(piece.bitmap, seq))
    if packet.is_trimmed:
        piece.trimmed += 1
        return ACK if is_there else NACK
    if is_there:
        piece.duplicates += 1
        return ACK
    if c.goes_back and seq > piece.in_order:
        piece.discarded += 1
        if piece.nak_sent:
            return NONE
        piece.nak_sent = True
        return NAK
    piece.nak_sent = False
    is_complete = _accept(state, r, packet, now)
    is_due = piece.unanswered >= piece.ack_every or is_complete or packet.wants_ack
    if is_due or piece.in_order - piece.told >= TOLD_AT_ONCE or _has_notice(state, piece, packet, now):
        return ACK
    return NONE


@njit(cache=True, forceinline=True)
def _accept(state, r, packet, now):
    """Enter a packet in the books; returns whether it was the last of its piece."""
    piece = state.pieces[r]
    payload = packet.size - state.c[0].header_bytes
    piece.received += 1
    piece.unanswered += 1
    piece.arrived_bytes += payload
    if packet.is_marked and state.c[0].transport != DCQCN:
        piece.marks += 1
    lean_ends.reorder(state, piece, packet, payload)
    is_complete = piece.received == piece.num_packets
    if is_complete:
        lean_ends.complete(state, r, now)
    return is_complete


@njit(cache=True)
def _has_notice(state, piece, packet, now):
    """DCQCN: marks are told at once, but not more often than each NOTICE_INTERVAL."""
    if state.c[0].transport != DCQCN or not packet.is_marked:
        return False
    if now - piece.last_notice < transports.NOTICE_INTERVAL:
        return False
    piece.last_notice = now
    piece.marks = 1
    return True


@njit(cache=True, forceinline=True)
def _answer(state, k, kind):
    """Packet k becomes an answer on its way back, with what the receiver knows."""
    packet = state.packets[k]
    piece = state.pieces[packet.piece]
    packet.kind = kind
    packet.latest = packet.seq
    packet.size = state.c[0].header_bytes
    packet.marks = 0
    if kind == ACK:
        packet.covers = piece.unanswered
        packet.marks = piece.marks
        piece.unanswered = 0
        piece.marks = 0
        piece.told = piece.in_order
    packet.seq = piece.in_order
    if not state.c[0].goes_back:
        _note_what_is_there(piece, packet)
    routes.turn_back(state, packet)


@njit(cache=True, forceinline=True)
def _note_what_is_there(piece, packet):
    """sack: bit i of the 256 says whether packet (in-order point + i) is there."""
    for i in range(SACK_WORDS):
        packet.sack[i] = _stretch(piece.bitmap, np.int64(piece.in_order) + 64 * i)


# --- the sender hears -------------------------------------------------------------------------------------------------


@njit(cache=True, forceinline=True)
def _answered(state, k, now):
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    if piece.is_settled or not piece.is_started:
        _give(state, k)
        return
    if piece.spray == REPS and packet.kind == ACK and not packet.is_marked:
        full_routes.remember(piece, packet.path)
    if packet.kind == NACK:
        _trimmed_away(state, r, packet.latest)
    elif state.c[0].goes_back:
        _go_back(state, r, packet, now)
    else:
        _selectively(state, r, packet, now)
    is_over = piece.acknowledged == piece.num_packets
    if is_over:
        _settle(state, r, now)
    _give(state, k)
    if not is_over:
        offer(state, r, now)


@njit(cache=True)
def _trimmed_away(state, r, seq):
    piece = state.pieces[r]
    if seq < piece.known or _has(piece.acked, seq) or _has(piece.lost, seq):
        return
    _lose(piece, seq)
    _discard(piece.resent, seq)
    transports.on_trim(state, r)


@njit(cache=True)
def _lose(piece, seq):
    _add(piece.lost, seq)
    piece.num_lost += 1
    piece.in_flight -= 1


@njit(cache=True, forceinline=True)
def _credit_ack(piece, seq):
    """Packet `seq` is known to be there; returns 1 if that is news."""
    if _has(piece.acked, seq):
        return 0
    _add(piece.acked, seq)
    piece.acknowledged += 1
    if _has(piece.lost, seq):
        _discard(piece.lost, seq)
        piece.num_lost -= 1
    else:
        piece.in_flight -= 1
    _discard(piece.resent, seq)
    piece.highest_acked = max(piece.highest_acked, seq)
    return 1


@njit(cache=True, forceinline=True)
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
        news = packet.sack[i] & ~_stretch(piece.acked, seq)
        if known_before > 0:
            news = news >> np.uint64(known_before) << np.uint64(known_before)
        while news != 0:
            newly += _credit_ack(piece, seq + _lowest(news))
            news &= news - np.uint64(1)
    if packet.latest >= max(piece.known, point):
        newly += _credit_ack(piece, np.int64(packet.latest))
    if point > piece.known:
        for earlier in range(np.int64(piece.known), point):
            _discard(piece.acked, earlier)
        piece.known = point
        piece.deadline = now + state.c[0].rto
        piece.timer_seq = piece.next_seq
    is_loss = state.c[0].gap > 0 and _find_gaps(state, piece)
    delay = max(now - packet.sent - piece.base_rtt, 0)
    transports.on_ack(state, r, newly, packet.marks, delay, is_loss, now)


@njit(cache=True, forceinline=True)
def _find_gaps(state, piece):
    """The gap rule: what `gap` later packets have overtaken is lost. Returns whether any was."""
    found = False
    seq = max(np.int64(piece.checked), np.int64(piece.known))
    while seq + state.c[0].gap <= piece.highest_acked:
        if not (_has(piece.acked, seq) or _has(piece.lost, seq) or _has(piece.resent, seq)):
            _lose(piece, seq)
            found = True
        seq += 1
    piece.checked = seq
    return found


@njit(cache=True)
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


@njit(cache=True)
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
            if _has(piece.acked, seq) or _has(piece.lost, seq):
                continue
            if _has(piece.resent, seq):
                _discard(piece.resent, seq)
            else:
                _lose(piece, seq)
    piece.timeouts += 1
    piece.deadline = now + c.rto
    piece.timer_seq = piece.next_seq
    alarms.push(state, piece.deadline, alarms.piece_code(state, alarms.TIMEOUT, r))
    transports.on_timeout(state, r, piece.num_lost - before, now)
    piece.num_remembered = 0
    offer(state, r, now)


# --- credit -----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _owe(state, r, packet, now):
    """NDP: what has left the receiver's link makes room for another packet, unless enough are on their way."""
    piece = state.pieces[r]
    needed = piece.num_packets - piece.window + piece.trimmed + (1 if packet.is_trimmed else 0)
    if piece.pulled >= needed:
        return
    piece.pulled += 1
    piece.num_back = packet.num_hops
    for i in range(packet.num_hops):
        piece.back[i] = packet.route[i]
    nic = np.int64(state.accelerators[state.messages[piece.message].destination].nic)
    puller = state.pullers[nic]
    piece.owed += 1
    if piece.owed == 1:
        piece.next_pull = NONE
        if puller.first == NONE:
            puller.first = r
        else:
            state.pieces[puller.last].next_pull = r
        puller.last = r
    if not puller.is_armed:
        puller.is_armed = True
        alarms.push(state, max(puller.free, now), alarms.turn_code(nic))


@njit(cache=True)
def pull(state, nic, now):
    """A receiving NIC's turn to grant credit: one pull, to the piece whose turn it is."""
    puller = state.pullers[nic]
    r = np.int64(puller.first)
    if r == NONE:
        puller.is_armed = False
        return
    piece = state.pieces[r]
    puller.first = piece.next_pull
    piece.owed -= 1
    if piece.owed > 0:
        piece.next_pull = NONE
        if puller.first == NONE:
            puller.first = r
        else:
            state.pieces[puller.last].next_pull = r
        puller.last = r
    k = lean.take_packet(state)
    packet = state.packets[k]
    packet.piece = r
    packet.kind = PULL
    packet.is_trimmed = False
    packet.is_marked = False
    packet.covers = 1
    packet.size = state.c[0].header_bytes
    packet.num_hops = piece.num_back
    for i in range(piece.num_back):
        packet.route[i] = piece.back[i]
    routes.turn_back(state, packet)
    piece.under_way += 1
    puller.free = now + puller.interval
    alarms.push(state, puller.free, alarms.turn_code(nic))
    _forward(state, packet.route[0], k, NONE, now)


@njit(cache=True)
def _credited(state, k, now):
    r = np.int64(state.packets[k].piece)
    piece = state.pieces[r]
    piece.credit += 1
    is_open = piece.is_started and not piece.is_settled
    _give(state, k)
    if is_open:
        offer(state, r, now)


# --- the end ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
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


@njit(cache=True)
def stop(state, r, now):
    """The sender of a cancelled message sends no more."""
    piece = state.pieces[r]
    if not piece.is_settled:
        if not piece.is_started:
            _reset(piece)
        _settle(state, r, now)


@njit(cache=True)
def free_if_over(state, m):
    """With the last piece settled and nothing of the message under way, all its rows are free."""
    message = state.messages[m]
    flow = state.flows[m]
    if message.unanswered > 0 or message.first_piece == NONE:
        return
    r = np.int64(message.first_piece)
    while r != NONE:
        piece = state.pieces[r]
        following = np.int64(piece.next_of_message)
        if piece.under_way > 0 or piece.owed > 0:
            return  # owed: still in its NIC's round robin, which will send a pull in vain
        r = following
    r = np.int64(message.first_piece)
    while r != NONE:
        piece = state.pieces[r]
        following = np.int64(piece.next_of_message)
        flow.num_packets += piece.most_sent
        flow.displacement = max(flow.displacement, piece.displacement)
        flow.held_bytes = max(flow.held_bytes, piece.most_held_bytes)
        flow.retransmitted += piece.retransmitted
        flow.spurious += piece.duplicates + piece.discarded
        flow.timeouts += piece.timeouts
        piece.serial = -1
        lean_ends.give_piece(state, r)
        r = following
    message.first_piece = NONE
    key = np.int64(message.transfer)
    state.transfers[key].unanswered -= 1
    if state.transfers[key].unanswered == 0 and state.transfers[key].left == 0:
        readiness.fire(state, readiness.SETTLED - key, max(state.c[0].now_s, seconds(state.c[0].now)))
