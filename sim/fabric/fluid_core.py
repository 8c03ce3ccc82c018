"""The fluid core: messages become ready, are placed on paths, share links fairly, and finish.

One call of `advance` runs from instant to instant. At an instant: messages whose inputs are there become
ready, pieces that have sent their last byte leave, the path policy places what is ready, and each
component that changed is solved once.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, typeof

from sim.fabric import components as comp
from sim.fabric import heap
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, DELIVERED, PENDING
from sim.fabric.placing import activate, is_direct, place_batch, push
from sim.fabric.policies import FUNCTION_TYPE

IDLE, FIRED, BUDGET, GROW = 0, 1, 2, 3
"""Why `advance` returned: nothing more until then, something watched is complete, budget spent, more room needed."""


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


# --- messages ---------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _fire(state, code, time_s):
    fired = state.fired[state.c[0].num_fired]
    fired.code = code
    fired.time_s = time_s
    state.c[0].num_fired += 1


@njit(cache=True)
def _close_message(state, m, time_s):
    """The message is over (delivered or cancelled): tell its transfer and whoever watches it."""
    transfer = state.transfers[state.messages[m].transfer]
    transfer.left -= 1
    transfer.last_s = max(transfer.last_s, time_s)
    if transfer.left == 0:
        _fire(state, -1 - state.messages[m].transfer, transfer.last_s)
    node = state.messages[m].first_watch
    while node != NONE:
        watch = state.watches[state.nodes[node].watch]
        watch.left -= 1
        watch.last_s = max(watch.last_s, time_s)
        if watch.left == 0:
            _fire(state, state.nodes[node].watch, watch.last_s)
        node = state.nodes[node].next


@njit(cache=True)
def input_arrived(state, m, time_s):
    """One thing that message m waits for is there, from `time_s` on."""
    message = state.messages[m]
    message.input_s = max(message.input_s, time_s)
    message.waits_for -= 1
    if message.waits_for == 0 and message.outcome == PENDING:
        push(state, max(message.earliest_s, message.input_s + message.delay_s), 2 * m)


@njit(cache=True)
def gate_opened(state, m, now):
    """The gate of message m is open from now on; the delay runs from its inputs, not from here."""
    state.messages[m].earliest_s = max(state.messages[m].earliest_s, now)
    input_arrived(state, m, state.messages[m].input_s)


@njit(cache=True)
def _finish_message(state, m):
    message = state.messages[m]
    message.outcome = DELIVERED
    for e in range(message.successor_start, message.successor_end):
        input_arrived(state, state.successors[e], message.arrived_s)
    _close_message(state, m, message.arrived_s)


@njit(cache=True)
def admit(state, first, last, now):
    """Messages first … last - 1 have been handed over: those that wait for nothing are ready."""
    for m in range(first, last):
        message = state.messages[m]
        message.input_s = now
        if message.waits_for == 0:
            ready_s = max(message.earliest_s, now + message.delay_s)
            if ready_s <= now:
                state.ready[state.c[0].num_ready] = m
                state.c[0].num_ready += 1
            else:
                push(state, ready_s, 2 * m)
    refresh_next(state)

# --- the loop ---------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _to_batch(state, m):
    state.waiting[state.c[0].num_batch] = m
    state.c[0].num_batch += 1


@njit(cache=True)
def _make_ready(state, m, now):
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.ready_s = now
    if message.source == message.destination:  # a local copy takes no time
        message.started_s = now
        message.delivered_bytes = message.size_bytes
        message.arrived_s = now
        message.answered_s = now
        _finish_message(state, m)
        return
    if state.c[0].window_s <= 0.0 or is_direct(state, message.source, message.destination):
        _to_batch(state, m)
        return
    leaf = state.accelerators[message.source].leaf
    window = state.windows[leaf]
    message.next_in_window = NONE
    if window.first == NONE:
        window.first = m
        push(state, now + state.c[0].window_s, -1 - leaf)
    else:
        state.messages[window.last].next_in_window = m
    window.last = m


@njit(cache=True)
def _handle(state, code, now):
    """One entry of the agenda."""
    if code < 0:
        window = state.windows[-1 - code]
        m = window.first
        window.first = NONE
        while m != NONE:
            _to_batch(state, m)
            m = state.messages[m].next_in_window
    elif code % 2 == 0:
        _make_ready(state, code // 2, now)
    elif state.messages[code // 2].outcome == PENDING:
        activate(state, code // 2, now)


@njit(cache=True)
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


@njit(cache=True)
def _count_bytes(state, p, share):
    """Enter a share of a piece's bytes into the ledger of its segments and message."""
    piece = state.pieces[p]
    for role in range(4):
        s = state.route[p, role]
        if s != NONE:
            state.segments[s].payload_bytes += share * piece.payload_bytes
            state.segments[s].wire_bytes += share * piece.wire_bytes
    state.messages[piece.message].delivered_bytes += share * piece.payload_bytes


@njit(cache=True)
def _deliver(state, p, finish_s, now):
    """A piece has sent its last byte at `finish_s` (within the tolerance of now)."""
    m = state.pieces[p].message
    message = state.messages[m]
    _count_bytes(state, p, 1.0)
    comp.leave(state, p, now)
    received_s = finish_s + state.pieces[p].latency_s
    message.arrived_s = max(message.arrived_s, received_s)
    message.answered_s = max(message.answered_s, received_s + state.pieces[p].latency_s)
    message.pieces_left -= 1
    _unlink(state, m, p)
    state.pieces[p].message = NONE
    if message.pieces_left == 0:
        _finish_message(state, m)


@njit(cache=True)
def _finish_due(state, k, now):
    """Pieces of component k that end now, or so soon that waiting would move their time by less than the tolerance.

    Each keeps the finish time that its own rate gives; only the bandwidth is passed on early.
    """
    comp.unschedule(state, k)
    comp.settle(state, k, now)
    tolerance = max(state.c[0].tolerance, 1e-12)
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


@njit(cache=True)
def _run_agenda(state, now):
    """Everything due at this instant that needs no placement or solving."""
    c = state.c[0]
    for i in range(c.num_ready):
        c.num_events += 1
        _make_ready(state, state.ready[i], now)
    c.num_ready = 0
    while True:
        if c.num_scheduled > 0 and state.finish_s[state.scheduled[0]] <= now:
            _finish_due(state, state.scheduled[0], now)
        elif c.num_agenda > 0 and state.agenda_s[0] <= now:
            code = state.agenda_code[0]
            c.num_agenda = heap.pop(state.agenda_s, state.agenda_code, c.num_agenda)
            c.num_events += 1
            _handle(state, code, now)
        else:
            return


@njit(cache=True)
def _solve_dirty(state, now):
    i = 0
    while i < state.c[0].num_dirty:
        k = comp.component_of(state, state.dirty[i])
        if k != NONE and state.components[k].is_dirty:
            comp.solve_component(state, k, now)
        i += 1
    state.c[0].num_dirty = 0


def _advance(state, choose, until_s, max_events):
    """Run every instant up to and including `until_s`; returns why it stopped (IDLE, FIRED, BUDGET, GROW)."""
    c = state.c[0]
    budget = c.num_events + max_events
    while True:
        if not c.is_resuming:
            refresh_next(state)
            if c.next_s > until_s or c.next_s == np.inf:
                return IDLE
            c.now_s = c.next_s
            _run_agenda(state, c.now_s)
        now = c.now_s
        c.is_resuming = False
        if c.num_batch > 0 and not place_batch(state, choose, now):
            c.is_resuming = True
            return GROW
        _solve_dirty(state, now)
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
def cancel(state, m, now):
    """The sender stops: what was sent counts as delivered in part, the rest never leaves."""
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.outcome = CANCELLED
    started = not np.isnan(message.started_s)
    p = message.first_piece
    while p != NONE:
        following = state.pieces[p].next_of_message
        if started:
            k = NONE
            for role in range(4):
                if state.route[p, role] != NONE:
                    k = comp.component_of(state, state.segments[state.route[p, role]].label)
            comp.settle(state, k, now)
            _count_bytes(state, p, 1.0 - state.remaining[p] / state.pieces[p].wire_bytes)
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
    _close_message(state, m, now)
    refresh_next(state)


@njit(cache=True)
def forget(state, first, last):
    """Take messages first … last - 1, which ended before their turn, off the agenda: their rows will be used again."""
    for leaf in range(len(state.windows)):
        window = state.windows[leaf]
        m = window.first
        window.first = NONE
        while m != NONE:
            following = state.messages[m].next_in_window
            if not first <= m < last:
                state.messages[m].next_in_window = NONE
                if window.first == NONE:
                    window.first = m
                else:
                    state.messages[window.last].next_in_window = m
                window.last = m
            m = following
    c = state.c[0]
    kept = 0
    for i in range(c.num_agenda):
        code = state.agenda_code[i]
        is_over = first <= code // 2 < last if code >= 0 else state.windows[-1 - code].first == NONE
        if not is_over:
            state.agenda_s[kept] = state.agenda_s[i]
            state.agenda_code[kept] = code
            kept += 1
    c.num_agenda = kept
    heap.heapify(state.agenda_s, state.agenda_code, kept)
