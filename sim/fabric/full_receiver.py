"""The receiver's end of a piece over ports that may lose: its books, its answers, and the credit that it owes.

A receiver that goes back takes packets in order only.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import alarms, sequences, transports
from sim.fabric import packet_ends as lean_ends
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import ACK, DCQCN, NACK, NAK, NDP, SACK_WORDS
from sim.fabric.messages import CANCELLED
from sim.fabric.packet_state import TOLD_AT_ONCE


@inner(inline="always")
def answer_due(state, k, now):
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
    is_there = seq < piece.in_order or (not c.goes_back and sequences.has(piece.bitmap, seq))
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


@inner(inline="always")
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


@inner
def _has_notice(state, piece, packet, now):
    """DCQCN: marks are told at once, but not more often than each NOTICE_INTERVAL."""
    if state.c[0].transport != DCQCN or not packet.is_marked:
        return False
    if now - piece.last_notice < transports.NOTICE_INTERVAL:
        return False
    piece.last_notice = now
    piece.marks = 1
    return True


@inner(inline="always")
def answer(state, k, kind):
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


@inner(inline="always")
def _note_what_is_there(piece, packet):
    """sack: bit i of the 256 says whether packet (in-order point + i) is there."""
    for i in range(SACK_WORDS):
        packet.sack[i] = sequences.stretch(piece.bitmap, np.int64(piece.in_order) + 64 * i)


@inner
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
