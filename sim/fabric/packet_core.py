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

from models.compiled import inner
from sim.fabric import heap, readiness, wheel
from sim.fabric import packet_ends as ends
from sim.fabric import packet_placing as pieces
from sim.fabric import packet_ports as ports
from sim.fabric.fluid_core import BUDGET, FIRED, GROW, IDLE
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.packet_state import picoseconds, seconds
from sim.fabric.policies import FUNCTION_TYPE


@njit(cache=True)
def refresh_next(state):
    """When the core next has something to do: the time of that instant (see `picoseconds`), not the float that was
    rounded to it. Half a picosecond before its instant, a float would be due to the clock and not to `advance`."""
    c = state.c[0]
    time = pieces.agenda_time(state)
    if c.key < c.num_keys:
        time = min(time, wheel.key_time(state))
    else:
        bucket = wheel.next_bucket(state)
        if bucket != wheel.NEVER:
            time = min(time, wheel.first_time(state, bucket))
    c.next_s = np.inf if time == wheel.NEVER else seconds(time)
    if c.num_fired > 0:
        c.next_s = min(c.next_s, c.now_s)


@njit(cache=True)
def admit(state, first, last, now):
    readiness.admit(state, first, last, now)
    refresh_next(state)


# --- the loop ---------------------------------------------------------------------------------------------------------


@inner(inline="always")
def _start_pieces(state):
    for i in range(state.c[0].num_starting):
        ports.offer(state, state.starting[i])
    state.c[0].num_starting = 0


DELIVERY, END, WOKEN = range(3)


@inner(inline="always")
def _event(state, p, what, now):
    """What happens at port p."""
    if what == DELIVERY:
        ends.deliver(state, p, now)
        return
    if what == END:
        ports.finish_at_source(state, p, now)
    ports.pick_at_source(state, p, now)


@inner(inline="always")
def _deliveries(state, now):
    """First phase: packets that reach the end of a link."""
    c = state.c[0]
    while c.key < c.num_keys and wheel.key_time(state) == now:
        key = state.keys[c.key]
        if key & wheel.PHASE:
            return
        c.key += 1
        c.num_events += 1
        _event(state, key & (wheel.PHASE - 1), DELIVERY, now)


@inner(inline="always")
def _picks(state, now):
    """Last phase: ports that are free pick, in order of port, those woken by another's pick included."""
    c = state.c[0]
    while True:
        p, what = NONE, WOKEN
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
            if state.ports[p].serving != NONE:
                continue
        elif p == NONE:
            return
        else:
            c.key += 1
            c.num_events += 1
            what = END
        _event(state, p, what, now)


@inner(inline="always")
def _plain_stretch(state, before):
    """Events in hand that come before then, as long as none of them leaves anything else to do at its instant.
    Returns whether the last one did: then that instant is to be finished."""
    c = state.c[0]
    num_agenda = c.num_agenda
    start = c.bucket << c.shift
    first = i = c.key
    now = c.now
    is_open = False
    while i < c.num_keys and not is_open and c.num_free_packets > c.num_sources and c.num_agenda == num_agenda:
        key = state.keys[i]
        if start + (key >> 32) >= before:
            break
        now = start + (key >> 32)
        ports.look_ahead(state, i)
        i += 1
        _event(state, key & (wheel.PHASE - 1), END if key & wheel.PHASE else DELIVERY, now)
        is_open = (c.num_woken | c.num_ready | c.num_batch | c.num_starting | c.num_fired) != 0
    if i > first:
        c.key = i
        c.num_events += i - first
        c.now = now
        c.now_s = seconds(now)
    return is_open


def _advance(state, choose, until_s, max_events):
    """Run every instant up to and including `until_s`; returns why it stopped (IDLE, FIRED, BUDGET, GROW)."""
    c = state.c[0]
    budget = c.num_events + max_events
    if c.num_fired > 0:  # by a cancellation since the last call
        return FIRED
    until = wheel.last_until(until_s)
    while True:
        other = pieces.agenda_time(state)
        now = wheel.next_time(state, other, until)
        if now > until:
            refresh_next(state)
            return IDLE
        if c.num_free_packets <= c.num_sources:
            refresh_next(state)
            return GROW
        if now < other and now < until:
            if not _plain_stretch(state, min(other, until)):
                if c.num_events >= budget:
                    refresh_next(state)
                    return BUDGET
                continue
            now = c.now
        if now > c.now:
            c.now = now
            c.now_s = seconds(now)
        if not c.is_resuming:
            _deliveries(state, now)
            pieces.run_agenda(state, now)
        c.is_resuming = False
        while c.num_batch > 0:
            if not pieces.place_batch(state, choose, c.now_s):
                c.is_resuming = True
                return GROW
            pieces.run_agenda(state, now)
        _start_pieces(state)
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
        message.delivered_bytes += state.pieces[r].arrived_bytes
        state.pieces[r].is_started = False
        ends.drain(state, r, now)
        r = following
    readiness.close_message(state, m, now_s)
    refresh_next(state)
