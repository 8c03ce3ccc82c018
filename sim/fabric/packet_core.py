"""The packet core: every packet and every acknowledgement, hop by hop, in whole picoseconds.

Lean ports: unlimited buffers, acknowledgements ahead of data, first come first served in each class. A port's output
is ordered in time, so only its head is in the calendar: when a packet reaches the end of its link, the port's next
packet is chosen among those that had arrived when the one before it ended. One event per hop. A *source port*, where
a NIC's pieces wait for their turn and their windows, decides in an event of its own.

An instant has three phases: deliveries, in order of link; messages that become ready are placed and start; ports
whose serialisation has ended, and source ports that were idle, pick what they send next.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, typeof

from sim.fabric import heap, placing, readiness, wheel
from sim.fabric import packet_ends as ends
from sim.fabric import packet_ports as ports
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_core import BUDGET, FIRED, GROW, IDLE
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.packet_state import (
    FIXED,
    MOST_HOPS,
    PS_PER_S,
    REORDER_WINDOW,
    ROUND_ROBIN,
    SWITCH,
    picoseconds,
    seconds,
)
from sim.fabric.policies import FUNCTION_TYPE, NO_FABRIC, mix
from sim.fabric.topology import SAME_LEAF


@njit(cache=True)
def refresh_next(state):
    """When the core next has something to do."""
    c = state.c[0]
    next_s = np.inf
    if c.num_ready > 0 or c.num_fired > 0 or c.is_resuming or c.num_woken > 0:
        next_s = c.now_s
    if c.num_agenda > 0:
        next_s = min(next_s, state.agenda_s[0])
    if c.key < c.num_keys:
        next_s = min(next_s, seconds(wheel.key_time(state)))
    else:
        bucket = wheel.next_bucket(state)
        if bucket != wheel.NEVER:
            next_s = min(next_s, seconds(wheel.first_time(state, bucket)))
    c.next_s = next_s


@njit(cache=True)
def admit(state, first, last, now):
    readiness.admit(state, first, last, now)
    refresh_next(state)


# --- placing ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _window_packets(state, piece):
    """window · rate · base round trip / mtu, rounded up, of an idle network: one full packet there, its answer back."""
    c = state.c[0]
    if c.window_packets > 0:
        return c.window_packets
    sample = np.zeros(MOST_HOPS, np.int64)
    n = routes.append(state, sample, 0, piece.out)
    slowest = min(state.ports[sample[0]].rate, state.ports[sample[n - 1]].rate)
    if piece.extra != NONE:
        sample[n] = piece.extra
        n += 1
    if piece.up != NONE:
        n = routes.append(state, sample, n, piece.up)
        n = routes.append(state, sample, n, piece.down)
    n = routes.append(state, sample, n, piece.into)
    slowest = min(slowest, state.ports[sample[n - 1]].rate)
    round_trip = 0.0
    for i in range(n):
        port = state.ports[sample[i]]
        round_trip += port.full_time + port.latency
        if port.reverse != NONE:
            back = state.ports[port.reverse]
            round_trip += c.header_bytes * 8e12 / back.rate + back.latency
    return max(int64(np.ceil(c.window_bdp * slowest * round_trip / PS_PER_S / (8 * c.mtu_bytes))), 1)


@njit(cache=True)
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
    piece.most_held_bytes = 0
    for i in range(REORDER_WINDOW // 64):
        piece.bitmap[i] = 0
    piece.window = _window_packets(state, piece)
    piece.ack_every = min(c.ack_every, piece.window)
    piece.source_port = routes.first_link(state, out)
    if spray != FIXED:
        state.paths.random[0] += np.uint64(0x9E3779B97F4A7C15)
        piece.random = mix(state.paths.random[0])
        choices = c.num_planes if spray == SWITCH else state.scopes[scope].num_paths
        piece.next_path = 0
        if spray in (ROUND_ROBIN, SWITCH):
            piece.next_path = piece.random % np.uint64(choices)
        routes.draw_path(state, r)


@njit(cache=True)
def _place_routed(state, num_direct, k):
    """The piece that the policy has put at placed[k]."""
    placed = state.placed[k]
    entry = state.batch[placed.entry]
    m = state.waiting[num_direct + placed.entry]
    out, up, down, into, _ = placing.placed_route(state, k)
    if placed.path_up == NO_FABRIC:
        nic = state.accelerators[entry.source].nic
        plane = state.c[0].num_planes
        _new_piece(
            state, m, placed.payload_bytes, FIXED, entry.scope, out - plane, NONE, NONE, into - plane,
            state.crossing[nic, entry.scope],
        )  # fmt: skip
    elif placed.path_up == entry.num_paths:
        plane = state.c[0].num_planes
        first_up, first_down = NONE, NONE
        if entry.scope != SAME_LEAF:
            first_up, first_down = up - entry.num_paths, down - entry.num_paths
        _new_piece(
            state, m, placed.payload_bytes, state.c[0].spray, entry.scope, out - plane, first_up, first_down,
            into - plane, NONE,
        )  # fmt: skip
    else:
        _new_piece(state, m, placed.payload_bytes, FIXED, entry.scope, out, up, down, into, NONE)


@njit(cache=True)
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


@njit(cache=True)
def _start(state, m, now_s, delay_s):
    start_s = placing.first_byte_s(state, m, now_s, delay_s)
    if start_s > now_s:
        readiness.push(state, start_s, 2 * m + 1)
    else:
        _activate(state, m, now_s)


@njit(cache=True)
def _activate(state, m, now_s):
    """The pieces of message m may send."""
    state.messages[m].started_s = now_s
    r = np.int64(state.messages[m].first_piece)
    while r != NONE:
        state.pieces[r].is_started = True
        ports.offer(state, r)
        r = np.int64(state.pieces[r].next_of_message)


@njit(cache=True)
def _place_batch(state, choose, now_s):
    """Let the policy place what is ready. False when there is no room: needed_pieces says for how many."""
    c = state.c[0]
    if c.is_live:
        _refresh_outstanding(state)
    num_direct, num_routed, num_placed = placing.decide(state, choose)
    if num_placed < 0:
        c.needed_pieces = -num_placed
        return False
    for i in range(num_direct):
        m = state.waiting[i]
        out, _, _, into = placing.direct_route(state, m)
        _new_piece(state, m, state.messages[m].size_bytes, FIXED, SAME_LEAF, out, NONE, NONE, into, NONE)
    for k in range(num_placed):
        _place_routed(state, num_direct, k)
    for i in range(num_direct):
        _start(state, state.waiting[i], now_s, 0.0)
    for i in range(num_routed):
        _start(state, state.waiting[num_direct + i], now_s, state.batch[i].start_delay_s)
    c.num_batch = 0
    return True


# --- the loop ---------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _run_agenda(state, now):
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


@njit(cache=True)
def _deliveries(state, now):
    """First phase: packets that reach the end of a link."""
    c = state.c[0]
    while c.key < c.num_keys and wheel.key_time(state) == now:
        key = state.keys[c.key]
        if key & wheel.PHASE:
            return
        c.key += 1
        c.num_events += 1
        ends.deliver(state, key & (wheel.PHASE - 1), now)


@njit(cache=True)
def _picks(state, now):
    """Last phase: ports that are free pick, in order of port, those woken by another's pick included."""
    c = state.c[0]
    while True:
        p = NONE
        if c.key < c.num_keys and wheel.key_time(state) == now:
            p = state.keys[c.key] & (wheel.PHASE - 1)
        if c.num_woken > 0 and (p == NONE or state.woken[0] < p):
            p = state.woken[0]
            c.num_woken = heap.pop(state.woken, state.woken, c.num_woken)
            state.ports[p].is_woken = False
            if not state.ports[p].is_source:
                if state.ports[p].wire_first == NONE:
                    ports.pick(state, p)
                continue
            if state.ports[p].is_busy:
                continue
        elif p == NONE:
            return
        else:
            c.key += 1
            c.num_events += 1
        ports.pick_at_source(state, p, now)


@njit(cache=True)
def _next_time(state, until_s):
    """The next instant in ps, NEVER if there is none up to `until_s`. Empties the wheel's next bucket in its turn."""
    c = state.c[0]
    agenda = wheel.NEVER
    if c.num_agenda > 0:
        agenda = max(picoseconds(state.agenda_s[0]), c.now)
    if c.num_ready > 0 or c.num_woken > 0 or c.is_resuming:
        agenda = max(picoseconds(c.now_s), c.now)
    if c.key < c.num_keys:
        return min(wheel.key_time(state), agenda)
    bucket = wheel.next_bucket(state)
    if bucket != wheel.NEVER and bucket << c.shift <= agenda and seconds(bucket << c.shift) <= until_s:
        wheel.empty(state, bucket)
        return min(wheel.key_time(state), agenda)
    if bucket != wheel.NEVER and bucket << c.shift <= agenda:
        return wheel.NEVER  # it lies beyond `until_s`
    if agenda != wheel.NEVER and agenda >> c.shift > c.bucket and seconds(agenda) <= until_s:
        wheel.move_to(state, agenda >> c.shift)
        c.num_keys = 0
        c.key = 0
    return agenda


def _advance(state, choose, until_s, max_events):
    """Run every instant up to and including `until_s`; returns why it stopped (IDLE, FIRED, BUDGET, GROW)."""
    c = state.c[0]
    budget = c.num_events + max_events
    while True:
        now = _next_time(state, until_s)
        if now == wheel.NEVER or seconds(now) > until_s:
            refresh_next(state)
            return IDLE
        if c.num_free_packets <= c.num_sources:
            refresh_next(state)
            return GROW
        if now > c.now:
            c.now = now
            c.now_s = seconds(now)
        if not c.is_resuming:
            _deliveries(state, now)
            _run_agenda(state, now)
        c.is_resuming = False
        while c.num_batch > 0:
            if not _place_batch(state, choose, c.now_s):
                c.is_resuming = True
                return GROW
            _run_agenda(state, now)
        _picks(state, now)
        if c.num_fired > 0:
            refresh_next(state)
            return FIRED
        if c.num_events >= budget:
            refresh_next(state)
            return BUDGET


_compiled: dict[object, object] = {}


def advance_for(state):
    """The compiled loop for this state's types; the policy enters as a first-class function."""
    kind = typeof(state)
    if kind not in _compiled:
        _compiled[kind] = njit(int64(kind, FUNCTION_TYPE, float64, int64), cache=True)(_advance)
    return _compiled[kind]


@njit(cache=True)
def cancel(state, m, now_s):
    """The sender stops: what is on its way drains, and counts as cancelled."""
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.outcome = CANCELLED
    now = max(picoseconds(now_s), state.c[0].now)
    state.c[0].now_s = max(state.c[0].now_s, now_s)
    r = np.int64(message.first_piece)
    while r != NONE:
        following = np.int64(state.pieces[r].next_of_message)
        if state.pieces[r].is_in_ring:
            ports.leave_ring(state, r)
        state.pieces[r].is_started = False
        ends.drain(state, r, now)
        r = following
    readiness.close_message(state, m, now_s)
    refresh_next(state)
