"""Both ends of a piece: the receiver's books and acknowledgements, and what they do to the sender."""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import packet_ports as ports
from sim.fabric import packet_routes as routes
from sim.fabric import readiness, wheel
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.packet_state import AT_SWITCH, REORDER_WINDOW, TOLD_AT_ONCE, seconds


@inner(forceinline=True)
def reorder(state, piece, packet, payload):
    """Enter a packet's arrival in the receiver's books: in-order point, displacement, bytes held out of order."""
    bit = packet.seq & (REORDER_WINDOW - 1)
    piece.bitmap[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
    piece.displacement = max(piece.displacement, piece.highest - packet.seq)
    piece.highest = max(piece.highest, packet.seq)
    piece.held_bytes += payload
    full = state.c[0].payload_per_packet
    while piece.in_order <= piece.highest:
        bit = piece.in_order & (REORDER_WINDOW - 1)
        mask = np.uint64(1) << np.uint64(bit & 63)
        if piece.bitmap[bit >> 6] & mask == 0:
            break
        piece.bitmap[bit >> 6] ^= mask
        is_last = piece.in_order == piece.num_packets - 1
        piece.held_bytes -= piece.last_size - state.c[0].header_bytes if is_last else full
        piece.in_order += 1
    piece.most_held_bytes = max(piece.most_held_bytes, piece.held_bytes)


@inner
def complete(state, r, now):
    """All packets of a piece have arrived."""
    piece = state.pieces[r]
    m = np.int64(piece.message)
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.delivered_bytes += piece.arrived_bytes
    piece.arrived_bytes = 0
    message.arrived_s = max(message.arrived_s, seconds(now))
    message.pieces_left -= 1
    if message.pieces_left == 0:
        readiness.finish_message(state, m)


@inner(inline="always")
def _receive(state, k, came_over, now):
    """Packet k has arrived; it turns into an acknowledgement when one is due."""
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    payload = packet.size - state.c[0].header_bytes
    piece.received += 1
    piece.unanswered += 1
    piece.arrived_bytes += payload
    reorder(state, piece, packet, payload)
    is_complete = piece.received == piece.num_packets
    if is_complete:
        complete(state, r, now)
    if piece.unanswered < piece.ack_every and not is_complete and piece.in_order - piece.told < TOLD_AT_ONCE:
        ports.give_packet(state, k)
        drain(state, r, now)
        return
    packet.covers = piece.unanswered
    packet.seq = piece.in_order
    piece.unanswered = 0
    piece.told = piece.in_order
    packet.size = state.c[0].header_bytes
    routes.turn_back(state, packet)
    ports.enter(state, np.int64(packet.route[0]), k, came_over, now)


@inner(inline="always")
def _acknowledge(state, k, now):
    """An acknowledgement is back at its sender."""
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    piece.in_flight -= packet.covers
    piece.acknowledged += packet.covers
    piece.known = max(piece.known, packet.seq)
    ports.give_packet(state, k)
    if piece.acknowledged == piece.num_packets:
        _settle(state, r, now)
    else:
        drain(state, r, now)
        ports.offer(state, r)


@inner(forceinline=True)
def drain(state, r, now):
    """A cancelled piece ends when nothing of it is under way any more; what was received last was never answered."""
    piece = state.pieces[r]
    if piece.is_started or piece.is_settled or piece.in_flight != piece.unanswered:
        return
    if state.messages[piece.message].outcome == CANCELLED:
        _settle(state, r, now)


@inner
def _settle(state, r, now):
    """A piece is acknowledged whole, or cancelled and gone. With the last one of its message all rows are free."""
    piece = state.pieces[r]
    m = np.int64(piece.message)
    message = state.messages[m]
    piece.is_settled = True
    piece.is_started = False
    message.answered_s = max(message.answered_s, seconds(now))
    message.unanswered -= 1
    flow = state.flows[m]
    flow.num_packets += piece.next_seq
    flow.displacement = max(flow.displacement, piece.displacement)
    flow.held_bytes = max(flow.held_bytes, piece.most_held_bytes)
    if message.unanswered > 0:
        return
    r = np.int64(message.first_piece)
    while r != NONE:
        following = np.int64(state.pieces[r].next_of_message)
        give_piece(state, r)
        r = following
    message.first_piece = NONE
    key = np.int64(message.transfer)
    state.transfers[key].unanswered -= 1
    if state.transfers[key].unanswered == 0 and state.transfers[key].left == 0:
        readiness.fire(state, readiness.SETTLED - key, seconds(now))


@inner
def give_piece(state, r):
    c = state.c[0]
    state.pieces[r].message = NONE
    state.pieces[r].next_ready = c.free_piece
    c.free_piece = r
    c.num_free_pieces += 1


@inner
def deliver(state, p, now):
    """The packet at the end of port p's link: it enters its next port, or is there. Then p's next one."""
    port = state.ports[p]
    k = np.int64(port.wire_first)
    packet = state.packets[k]
    if port.is_source:
        port.wire_first = packet.next
        if port.wire_first != NONE:
            wheel.schedule(state, 2 * p, packet.time)
    packet.hop += 1
    if packet.covers == 0:
        state.c[0].num_hops += 1
    if packet.hop < packet.num_hops:
        if packet.route[packet.hop] == AT_SWITCH:
            routes.decide_at_switch(state, packet)
        ports.enter(state, np.int64(packet.route[packet.hop]), k, p, now)
    elif packet.covers > 0:
        _acknowledge(state, k, now)
    else:
        _receive(state, k, p, now)
    if not port.is_source:
        if ports.pace_of(state, p).latency == 0:
            port.wire_first = NONE
            ports.wake(state, p)
        else:
            ports.pick(state, p)
