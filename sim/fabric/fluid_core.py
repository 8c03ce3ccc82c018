"""The fluid core: messages become ready, are placed on paths, share links fairly, and finish.

One call of `advance` runs from instant to instant. At an instant: messages whose inputs are there become
ready, pieces that have sent their last byte leave, the path policy places what is ready, and each
component that changed is solved once.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, typeof

from models.compiled import inner
from sim.fabric import components as comp
from sim.fabric import detours, heap, placing, readiness
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.policies import FUNCTION_TYPE, NOW
from sim.fabric.state_reference import prefetch

IDLE, FIRED, BUDGET, GROW = 0, 1, 2, 3
"""Why `advance` returned: nothing more until then, something watched is complete, budget spent, more room needed."""

EXACT = 1e-12
"""The tolerance below which floats cannot tell."""


@njit(cache=True)
def refresh_next(state):
    """When the core next has something to do."""
    c = state.c[0]
    next_s = np.inf
    if c.num_ready > 0 or c.num_dirty > 0 or c.num_fired > 0 or c.is_resuming:
        next_s = c.now_s
    if c.num_agenda > 0:
        next_s = min(next_s, state.agenda_s[0])
    if c.num_scheduled > 0:
        next_s = min(next_s, state.finish_s[state.scheduled[0]])
    c.next_s = next_s


@njit(cache=True)
def admit(state, first, last, now):
    readiness.admit(state, first, last, now)
    refresh_next(state)


# --- pieces -----------------------------------------------------------------------------------------------------------


@inner
def _new_piece(state, m, payload_bytes, weight, s0, s1, s2, s3, extra_latency_s):
    message = state.messages[m]
    p = comp.take_piece(state)
    wire = placing.wire_bytes(payload_bytes, state.c[0].header_bytes, state.c[0].payload_per_packet)
    piece = state.pieces[p]
    piece.message = m
    piece.index = message.num_pieces
    piece.payload_bytes = payload_bytes
    piece.wire_bytes = wire
    state.remaining[p] = wire
    state.rate[p] = 0.0
    state.weight[p] = weight
    state.route[p, 0] = s0
    state.route[p, 1] = s1
    state.route[p, 2] = s2
    state.route[p, 3] = s3
    latency_s = extra_latency_s
    for role in range(4):
        s = state.route[p, role]
        if s != NONE:
            latency_s += state.segments[s].latency_s
            state.segments[s].outstanding += wire
    piece.latency_s = latency_s
    piece.next_of_message = message.first_piece
    message.first_piece = p
    message.pieces_left += 1
    message.num_pieces = min(message.num_pieces + 1, 32767)


@inner
def _refresh_outstanding(state, now):
    """Bytes placed on each link and not yet sent, for policies that look."""
    network = state.network
    for link in range(len(network.capacity)):
        state.paths.outstanding[link] = 0.0
    for s in range(len(state.segments)):
        segment = state.segments[s]
        left = segment.outstanding - segment.rate * (now - segment.settled_s)
        if left < 0.5:
            continue
        for e in range(network.segment_start[s], network.segment_start[s + 1]):
            state.paths.outstanding[network.segment_link[e]] += network.segment_share[e] * left
    if state.c[0].num_withdrawn > 0:
        for link in range(len(network.capacity)):
            if state.paths.withdrawn[link]:
                state.paths.outstanding[link] = np.inf


@inner
def _activate(state, m, now):
    """The first byte leaves."""
    message = state.messages[m]
    message.started_s = now
    for e in range(message.successor_start, message.successor_end):
        prefetch(state.messages, state.successors[e], 2)  # type: ignore[call-arg]
    p = message.first_piece
    while p != NONE:
        following = int64(state.pieces[p].next_of_message)
        state.pieces[p].started_s = now
        comp.add_piece(state, p, now)
        p = following


@inner
def _start(state, m, now, delay_s):
    """Start a placed message, now or when its turn comes."""
    if state.c[0].is_fair_by_message:
        p = state.messages[m].first_piece
        while p != NONE:
            state.weight[p] = 1.0 / state.messages[m].pieces_left
            p = state.pieces[p].next_of_message
    start_s = placing.first_byte_s(state, m, now, delay_s)
    if start_s > now:
        readiness.push(state, start_s, 2 * m + 1)
    else:
        _activate(state, m, now)


@inner
def _place_batch(state, choose, now):
    """Let the policy place what is ready. False when there is no room (needed_pieces says for how many), or when not
    all detours are there (needed_detours says of how many entries of the batch)."""
    c = state.c[0]
    state.paths.parameters[NOW] = now
    if c.is_live:
        _refresh_outstanding(state, now)
    num_direct, num_routed, num_placed = placing.decide(state, choose)
    if num_placed < 0:
        c.needed_pieces = -num_placed
        return False
    if c.num_withdrawn > 0 and c.is_spread and not detours.has_all(state, num_routed):
        c.needed_detours = num_routed  # such a policy keeps no state: it may well be asked again
        return False
    for i in range(num_direct):
        m = state.waiting[i]
        s0, s1, s2, s3 = placing.direct_route(state, m)
        _new_piece(state, m, state.messages[m].size_bytes, float(state.messages[m].queue_pairs), s0, s1, s2, s3, 0.0)
    for k in range(num_placed):
        s0, s1, s2, s3, extra_s = placing.placed_route(state, k)
        placed = state.placed[k]
        m = state.waiting[num_direct + placed.entry]
        if c.num_withdrawn > 0:
            s0, s1, s2, s3 = detours.around(state, m, state.messages[m].num_pieces, s0, s1, s2, s3)
        _new_piece(state, m, placed.payload_bytes, placed.weight, s0, s1, s2, s3, extra_s)
    for i in range(num_direct):
        _start(state, state.waiting[i], now, 0.0)
    for i in range(num_routed):
        _start(state, state.waiting[num_direct + i], now, state.batch[i].start_delay_s)
    c.num_batch = 0
    return True


@inner
def _unlink(state, m, p):
    """Take a piece off its message's list (its slot will be used again)."""
    following = state.pieces[p].next_of_message
    if state.messages[m].first_piece == p:
        state.messages[m].first_piece = following
        return
    previous = state.messages[m].first_piece
    while state.pieces[previous].next_of_message != p:
        previous = state.pieces[previous].next_of_message
    state.pieces[previous].next_of_message = following


@inner
def count_bytes(state, p, payload_bytes, wire_bytes):
    """Enter bytes that a piece has sent into the ledger of its segments and message."""
    for role in range(4):
        s = state.route[p, role]
        if s != NONE:
            state.segments[s].payload_bytes += payload_bytes
            state.segments[s].wire_bytes += wire_bytes
    state.messages[state.pieces[p].message].delivered_bytes += payload_bytes


@inner
def _share_sent(state, p):
    return 1.0 - state.remaining[p] / state.pieces[p].wire_bytes


@inner
def _deliver(state, p, finish_s, now):
    """A piece has sent its last byte at `finish_s` (within the tolerance of now)."""
    m = state.pieces[p].message
    message = state.messages[m]
    count_bytes(state, p, state.pieces[p].payload_bytes, state.pieces[p].wire_bytes)
    comp.leave(state, p, now)
    received_s = finish_s + state.pieces[p].latency_s
    message.arrived_s = max(message.arrived_s, received_s)
    message.answered_s = max(message.answered_s, received_s + state.pieces[p].latency_s)
    message.pieces_left -= 1
    _unlink(state, m, p)
    state.pieces[p].message = NONE
    if message.pieces_left == 0:
        readiness.finish_message(state, m)


@inner
def finish_due(state, k, now, tolerance):
    """Pieces of component k that end now, or so soon that waiting would move their time by less than the tolerance.

    Each keeps the finish time that its own rate gives; only the bandwidth is passed on early.
    """
    comp.unschedule(state, k)
    comp.settle(state, k, now)
    p = state.components[k].first
    while p != NONE:
        following = state.next_piece[p]
        if state.pieces[p].message != NONE and state.rate[p] > 0.0:
            left_s = state.remaining[p] / state.rate[p]
            if left_s <= tolerance * (now + left_s - state.pieces[p].started_s) + 1e-15 * now:
                state.c[0].num_events += 1
                _deliver(state, p, now + left_s, now)
        p = following
    comp.mark_dirty(state, k)


# --- the loop ---------------------------------------------------------------------------------------------------------


@inner
def _run_agenda(state, now):
    """Everything due at this instant that needs no placement or solving."""
    c = state.c[0]
    for i in range(c.num_ready):
        c.num_events += 1
        readiness.make_ready(state, state.ready[i], now)
    c.num_ready = 0
    while True:
        if c.num_scheduled > 0 and state.finish_s[state.scheduled[0]] <= now:
            finish_due(state, state.scheduled[0], now, max(c.tolerance, EXACT))
        elif c.num_agenda > 0 and state.agenda_s[0] <= now:
            code = state.agenda_code[0]
            c.num_agenda = heap.pop(state.agenda_s, state.agenda_code, c.num_agenda)
            c.num_events += 1
            m = readiness.handle(state, code, now)
            if m != NONE:
                _activate(state, m, now)
        else:
            return


@inner
def _solve_dirty(state, now):
    i = 0
    while i < state.c[0].num_dirty:
        k = comp.component_of(state, state.dirty[i])
        if k != NONE and state.components[k].is_dirty:
            comp.solve_component(state, k, now)
        i += 1
    state.c[0].num_dirty = 0


def _advance(state, choose, until_s, max_work):
    """Run every instant up to and including `until_s`; returns why it stopped (IDLE, FIRED, BUDGET, GROW).

    Work is counted in events and solved pieces; an instant is never left half done.
    """
    c = state.c[0]
    budget = c.num_events + c.num_solved_pieces + max_work
    while True:
        if not c.is_resuming:
            refresh_next(state)
            if c.next_s > until_s or c.next_s == np.inf:
                return IDLE
            c.now_s = c.next_s
            _run_agenda(state, c.now_s)
        now = c.now_s
        c.is_resuming = False
        if c.num_batch > 0 and not _place_batch(state, choose, now):
            c.is_resuming = True
            return GROW
        _solve_dirty(state, now)
        if c.num_fired > 0:
            refresh_next(state)
            return FIRED
        if c.num_events + c.num_solved_pieces >= budget:
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
def add_sent(state, payload, wire, now):
    """Add to [segments] the payload and wire bytes that pieces under way have sent."""
    for p in range(len(state.pieces)):
        m = state.pieces[p].message
        if m == NONE or np.isnan(state.messages[m].started_s):
            continue
        comp.settle(state, comp.home(state, p), now)
        share = _share_sent(state, p)
        for role in range(4):
            s = state.route[p, role]
            if s != NONE:
                payload[s] += share * state.pieces[p].payload_bytes
                wire[s] += share * state.pieces[p].wire_bytes


@njit(cache=True)
def cancel(state, m, now):
    """The sender stops: what was sent counts as delivered in part, the rest never leaves."""
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.outcome = CANCELLED
    started = not np.isnan(message.started_s)
    p = message.first_piece
    while p != NONE:
        following = int64(state.pieces[p].next_of_message)
        if started:
            k = comp.home(state, p)
            comp.settle(state, k, now)
            share = _share_sent(state, p)
            count_bytes(state, p, share * state.pieces[p].payload_bytes, share * state.pieces[p].wire_bytes)
            comp.leave(state, p, now)
            state.pieces[p].message = NONE
            comp.mark_dirty(state, k)
        else:
            for role in range(4):
                if state.route[p, role] != NONE:
                    state.segments[state.route[p, role]].outstanding -= state.pieces[p].wire_bytes
            comp.give_piece(state, p)
        p = following
    message.first_piece = NONE
    state.c[0].now_s = max(state.c[0].now_s, now)
    readiness.close_message(state, m, now)
    refresh_next(state)
