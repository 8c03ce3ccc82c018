"""A packet in hand, over ports that may lose: from its sender's port to its receiver, and its answer back.

What the two ends make of it is theirs: `full_sender.py`, `full_receiver.py`.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import alarms, full_routes, readiness, wheel
from sim.fabric import full_ports as ports
from sim.fabric import full_receiver as receiver
from sim.fabric import full_sender as sender
from sim.fabric import packet_ends as lean_ends
from sim.fabric import packet_ports as lean
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import DATA, PULL
from sim.fabric.packet_state import AT_SWITCH, seconds


@inner
def pick(state, p, now):
    """Port p is free: control first, then data, or at a source port the piece whose turn it is."""
    port = state.ports[p]
    k = ports.next_queued(state, p)
    r = NONE
    if k == NONE and port.is_source and state.rings[p].first != NONE and not port.is_paused:
        r = lean.next_in_ring(state, p)
        if not sender.may_send(state, state.pieces[r]):  # its window has closed since it joined the ring
            lean.wake(state, p)
            return
        k = sender.next_packet(state, r, now)
    if k == NONE:
        return
    ports.send(state, p, k, now)
    if r != NONE:
        sender.offer(state, r, now)


@inner(forceinline=True)
def _give(state, k):
    """Packet k is no more."""
    piece = state.pieces[state.packets[k].piece]
    lean.give_packet(state, k)
    piece.under_way -= 1
    if piece.is_settled and piece.under_way == 0:
        free_if_over(state, piece.message)


@inner(forceinline=True)
def _forward(state, p, k, came_over, now):
    if not ports.enter(state, p, k, came_over, now):
        _give(state, k)


@inner(inline="always")
def _receive(state, k, now):
    """Packet k has arrived, with or without its payload. True: it has become an answer; otherwise it is gone."""
    kind = receiver.answer_due(state, k, now)
    if kind == NONE:
        _give(state, k)
        return False
    receiver.answer(state, k, kind)
    return True


@inner(inline="always")
def _hear(state, k, now):
    """Packet k is back at its sender."""
    r = np.int64(state.packets[k].piece)
    goes_on = sender.hear(state, state.packets[k], now)
    _give(state, k)
    if goes_on:
        sender.offer(state, r, now)


@inner
def deliver(state, p, now):
    """The packet at the end of port p's link: it enters its next port, or is there."""
    ports.catch_up(state, p, now)
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
            full_routes.decide_at_switch(state, packet, now)
    elif packet.kind == DATA:
        if not _receive(state, k, now):
            return
    else:
        _hear(state, k, now)
        return
    _forward(state, np.int64(packet.route[packet.hop]), k, p, now)


@inner
def hand_on(state, p, now):
    """A source port has sent its packet's last bit: where packets may (`packet_state._early`), it enters its next port
    now, with the time of its arrival there."""
    port = state.ports[p]
    k = np.int64(port.serving)
    if k == NONE:
        return
    port.serving = NONE
    packet = state.packets[k]
    arrival = now + lean.pace_of(state, p).latency
    packet.hop = 1
    if packet.kind == DATA:
        state.c[0].num_hops += 1
    if packet.route[1] == AT_SWITCH:
        full_routes.decide_at_switch(state, packet, arrival)
    _forward(state, np.int64(packet.route[1]), k, p, arrival)


@inner
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
    _forward(state, np.int64(packet.route[0]), k, NONE, now)


@inner
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
