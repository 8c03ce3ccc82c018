"""Readiness: which messages may go, and who is told when they have ended. Both fidelities share it.

The functions work on any core's state: its messages, edges, agenda, windows, transfers and watches.
"""

from __future__ import annotations

from numba import njit

from models.compiled import inner
from sim.fabric import heap
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import DELIVERED, PENDING

SETTLED = -(1 << 40)
"""Fired code of a transfer whose last acknowledgement came after its end: SETTLED - transfer."""


@inner
def push(state, time_s, code):
    """Agenda codes: 2 m message m is ready, 2 m + 1 its first byte leaves, -1 - leaf that leaf's window closes."""
    state.c[0].num_agenda = heap.push(state.agenda_s, state.agenda_code, state.c[0].num_agenda, time_s, code)


@inner
def is_direct(state, source, destination):
    """Needs no path policy: inside a host, or on one leaf with a single plane."""
    a, b = state.accelerators[source], state.accelerators[destination]
    return a.host == b.host or (a.leaf == b.leaf and state.c[0].num_planes == 1)


@inner
def fire(state, code, time_s):
    fired = state.fired[state.c[0].num_fired]
    fired.code = code
    fired.time_s = time_s
    state.c[0].num_fired += 1


@inner
def close_message(state, m, time_s):
    """The message is over (delivered or cancelled): tell its transfer and whoever watches it."""
    transfer = state.transfers[state.messages[m].transfer]
    transfer.left -= 1
    transfer.last_s = max(transfer.last_s, time_s)
    if transfer.left == 0:
        fire(state, -1 - state.messages[m].transfer, transfer.last_s)
    node = state.messages[m].first_watch
    while node != NONE:
        watch = state.watches[state.nodes[node].watch]
        watch.left -= 1
        watch.last_s = max(watch.last_s, time_s)
        if watch.left == 0:
            fire(state, state.nodes[node].watch, watch.last_s)
        node = state.nodes[node].next


@inner
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


@inner
def finish_message(state, m):
    message = state.messages[m]
    message.outcome = DELIVERED
    for e in range(message.successor_start, message.successor_end):
        input_arrived(state, state.successors[e], message.arrived_s)
    close_message(state, m, message.arrived_s)


@inner
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


@inner
def _to_batch(state, m):
    state.waiting[state.c[0].num_batch] = m
    state.c[0].num_batch += 1


@inner
def make_ready(state, m, now):
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.ready_s = now
    if message.source == message.destination:  # a local copy takes no time
        message.started_s = now
        message.delivered_bytes = message.size_bytes
        message.arrived_s = now
        message.answered_s = now
        finish_message(state, m)
        return
    if state.c[0].window_s <= 0.0 or is_direct(state, message.source, message.destination):
        _to_batch(state, m)
        return
    leaf = state.accelerators[message.source].leaf
    window = state.windows[leaf]
    if not window.is_open:
        window.is_open = True
        push(state, now + state.c[0].window_s, -1 - leaf)
    _into_window(state, window, m)


@inner
def _into_window(state, window, m):
    state.messages[m].next_in_window = NONE
    if window.first == NONE:
        window.first = m
    else:
        state.messages[window.last].next_in_window = m
    window.last = m


@inner
def handle(state, code, now):
    """One entry of the agenda; returns the message whose first byte leaves now, if it is that."""
    if code < 0:
        window = state.windows[-1 - code]
        window.is_open = False
        m = window.first
        window.first = NONE
        while m != NONE:
            _to_batch(state, m)
            m = state.messages[m].next_in_window
    elif code % 2 == 0:
        make_ready(state, code // 2, now)
    elif state.messages[code // 2].outcome == PENDING:
        return code // 2
    return NONE


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
                _into_window(state, window, m)
            m = following
    c = state.c[0]
    kept = 0
    for i in range(c.num_agenda):
        code = state.agenda_code[i]
        if code < 0 or not first <= code // 2 < last:
            state.agenda_s[kept] = state.agenda_s[i]
            state.agenda_code[kept] = code
            kept += 1
    c.num_agenda = kept
    heap.heapify(state.agenda_s, state.agenda_code, kept)
