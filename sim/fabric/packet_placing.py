"""Placing at packet level: from ready messages to pieces with routes, windows and paths. Both packet cores place here.

A piece that may send is put on the list of those that start; the core offers them to their source ports.
"""

from __future__ import annotations

import numpy as np
from numba import int64

from models.compiled import inner
from sim.fabric import detours, heap, placing, readiness, wheel
from sim.fabric import packet_ports as ports
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import FIXED, MOST_HOPS, PS_PER_S, RANDOM, REORDER_WINDOW, picoseconds
from sim.fabric.policies import NO_FABRIC, NOW, mix
from sim.fabric.topology import SAME_LEAF


@inner
def idle_path(state, piece):
    """(bit/s of the slowest host link, seconds of a round trip) of an idle network: one full packet there, its
    acknowledgement back."""
    c = state.c[0]
    sample = np.zeros(MOST_HOPS, np.int64)
    n = routes.append(state, sample, 0, piece.out)
    slowest = min(ports.pace_of(state, sample[0]).rate, ports.pace_of(state, sample[n - 1]).rate)
    if piece.extra != NONE:
        sample[n] = piece.extra
        n += 1
    if piece.up != NONE:
        n = routes.append(state, sample, n, piece.up)
        n = routes.append(state, sample, n, piece.down)
    n = routes.append(state, sample, n, piece.into)
    slowest = min(slowest, ports.pace_of(state, sample[n - 1]).rate)
    round_trip = 0.0
    for i in range(n):
        pace = ports.pace_of(state, sample[i])
        round_trip += pace.full_time + pace.latency
        if state.reverse[sample[i]] != NONE:
            back = ports.pace_of(state, state.reverse[sample[i]])
            round_trip += c.header_bytes * 8e12 / back.rate + back.latency
    return slowest, round_trip / PS_PER_S


@inner
def _window_packets(state, piece):
    """window · rate · base round trip / mtu, rounded up."""
    c = state.c[0]
    if c.window_packets > 0:
        return c.window_packets
    slowest, round_trip_s = idle_path(state, piece)
    return max(int64(np.ceil(c.window_bdp * slowest * round_trip_s / (8 * c.mtu_bytes))), 1)


@inner
def _new_piece(state, m, payload_bytes, spray, scope, out, up, down, into, extra):
    """A piece of message m; up and down are NONE where it stays on one leaf."""
    c = state.c[0]
    r = c.free_piece
    piece = state.pieces[r]
    c.free_piece = np.int64(piece.next_ready)
    c.num_free_pieces -= 1
    message = state.messages[m]
    piece.message = m
    piece.next_of_message = message.first_piece
    message.first_piece = r
    if message.unanswered == 0:
        state.transfers[message.transfer].unanswered += 1
    message.pieces_left += 1
    message.num_pieces = min(message.num_pieces + 1, 32767)
    message.unanswered += 1
    piece.num_packets = max((payload_bytes + c.payload_per_packet - 1) // c.payload_per_packet, 1)
    piece.last_size = payload_bytes - (piece.num_packets - 1) * c.payload_per_packet + c.header_bytes
    piece.next_seq = 0
    piece.in_flight = 0
    piece.acknowledged = 0
    piece.known = 0
    piece.is_in_ring = False
    piece.is_started = False
    piece.is_settled = False
    piece.spray = spray
    piece.scope = scope
    piece.out = out
    piece.up = up
    piece.down = down
    piece.into = into
    piece.extra = extra
    piece.received = 0
    piece.unanswered = 0
    piece.in_order = 0
    piece.told = 0
    piece.highest = -1
    piece.displacement = 0
    piece.held_bytes = 0
    piece.arrived_bytes = 0
    piece.most_held_bytes = 0
    for i in range(REORDER_WINDOW // 64):
        piece.bitmap[i] = 0
    piece.window = _window_packets(state, piece)
    piece.ack_every = min(c.ack_every, piece.window)
    piece.source_port = routes.first_link(state, out)
    if spray != FIXED:
        state.paths.random[0] += np.uint64(0x9E3779B97F4A7C15)
        piece.random = mix(state.paths.random[0])
        piece.next_path = piece.random % np.uint64(routes.num_choices(state, piece))
        if spray == RANDOM:
            routes.draw_path(state, r)
        else:
            routes.aim(state, r)


@inner
def _place_routed(state, num_direct, k):
    """The piece that the policy has put at placed[k]."""
    placed = state.placed[k]
    entry = state.batch[placed.entry]
    m = state.waiting[num_direct + placed.entry]
    out, up, down, into, _ = placing.placed_route(state, k)
    spray, extra, plane = np.int64(FIXED), np.int64(NONE), state.c[0].num_planes
    if placed.path_up == NO_FABRIC:
        out, up, down, into = out - plane, np.int64(NONE), np.int64(NONE), into - plane
        extra = np.int64(state.crossing[state.accelerators[entry.source].nic, entry.scope])
    elif placed.path_up == entry.num_paths:
        spray = state.c[0].spray
        out, into = out - plane, into - plane
        is_inside = entry.scope == SAME_LEAF
        up = np.int64(NONE) if is_inside else up - entry.num_paths
        down = np.int64(NONE) if is_inside else down - entry.num_paths
    elif state.c[0].num_withdrawn > 0:
        index = state.messages[m].num_pieces
        out, up, down, into = detours.around_withdrawn(state, m, index, out, up, down, into)
    _new_piece(state, m, placed.payload_bytes, spray, np.int64(entry.scope), out, up, down, into, extra)


@inner
def _refresh_outstanding(state):
    """Bytes placed on each link and not yet acknowledged, for policies that look."""
    for link in range(len(state.paths.outstanding)):
        state.paths.outstanding[link] = 0.0
    for r in range(len(state.pieces)):
        piece = state.pieces[r]
        if piece.message == NONE or piece.spray != FIXED or piece.is_settled:
            continue
        left = float(piece.num_packets - piece.acknowledged) * state.c[0].mtu_bytes
        for segment in (piece.out, piece.up, piece.down, piece.into):
            if segment != NONE:
                for e in range(state.segment_start[segment], state.segment_start[segment + 1]):
                    state.paths.outstanding[state.segment_link[e]] += left
    if state.c[0].num_withdrawn > 0:
        for link in range(len(state.paths.outstanding)):
            if state.paths.withdrawn[link]:
                state.paths.outstanding[link] = np.inf


@inner
def _start(state, m, now_s, delay_s):
    start_s = placing.first_byte_s(state, m, now_s, delay_s)
    if start_s > now_s:
        readiness.push(state, start_s, 2 * m + 1)
    else:
        _activate(state, m, now_s)


@inner
def _activate(state, m, now_s):
    """The pieces of message m may send from now on."""
    state.messages[m].started_s = now_s
    r = np.int64(state.messages[m].first_piece)
    while r != NONE:
        state.pieces[r].is_started = True
        state.starting[state.c[0].num_starting] = r
        state.c[0].num_starting += 1
        r = np.int64(state.pieces[r].next_of_message)


@inner
def place_batch(state, choose, now_s):
    """Let the policy place what is ready. False when there is no room: needed_pieces says for how many."""
    c = state.c[0]
    state.paths.parameters[NOW] = now_s
    if c.is_live:
        _refresh_outstanding(state)
    num_direct, num_routed, num_placed = placing.decide(state, choose)
    if num_placed < 0:
        c.needed_pieces = -num_placed
        return False
    for i in range(num_direct):
        m = state.waiting[i]
        out, _, _, into = placing.direct_route(state, m)
        size, none = np.int64(state.messages[m].size_bytes), np.int64(NONE)
        _new_piece(state, m, size, np.int64(FIXED), np.int64(SAME_LEAF), out, none, none, into, none)
    for k in range(num_placed):
        _place_routed(state, num_direct, k)
    for i in range(num_direct):
        _start(state, state.waiting[i], now_s, 0.0)
    for i in range(num_routed):
        _start(state, state.waiting[num_direct + i], now_s, state.batch[i].start_delay_s)
    c.num_batch = 0
    return True


@inner
def run_agenda(state, now):
    """Messages whose time has come, and those that they let go at this instant."""
    c = state.c[0]
    for i in range(c.num_ready):
        c.num_events += 1
        readiness.make_ready(state, state.ready[i], c.now_s)
    c.num_ready = 0
    while c.num_agenda > 0 and picoseconds(state.agenda_s[0]) <= now:
        code = state.agenda_code[0]
        c.num_agenda = heap.pop(state.agenda_s, state.agenda_code, c.num_agenda)
        c.num_events += 1
        m = readiness.handle(state, code, c.now_s)
        if m != NONE:
            _activate(state, m, c.now_s)


@inner
def agenda_time(state):
    """When the next message is ready, or something is left to do at this instant, in ps; NEVER: not foreseen."""
    c = state.c[0]
    if c.num_ready > 0 or c.num_woken > 0 or c.is_resuming:
        return max(picoseconds(c.now_s), c.now)
    if c.num_agenda > 0:
        return max(picoseconds(state.agenda_s[0]), c.now)
    return wheel.NEVER
