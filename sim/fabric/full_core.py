"""The full packet core: finite buffers, marks, pauses, trimming, recovery and congestion control, packet by packet.

An instant has its phases, as in the lean core: deliveries, by link; alarms (pauses, timers, paces, turns), then
messages that become ready are placed and start; then ports whose serialisation has ended, and those that may go on,
pick, by port.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, typeof

from models.compiled import inner
from sim.fabric import alarms, heap, readiness, wheel
from sim.fabric import full_ends as ends
from sim.fabric import full_ports as ports
from sim.fabric import full_sender as sender
from sim.fabric import packet_core as lean
from sim.fabric import packet_placing as pieces
from sim.fabric import packet_ports as lean_ports
from sim.fabric.fluid_core import BUDGET, FIRED, GROW, IDLE
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.packet_state import picoseconds, seconds
from sim.fabric.policies import FUNCTION_TYPE


@njit(cache=True)
def refresh_next(state):
    """When the core next has something to do."""
    lean.refresh_next(state)
    c = state.c[0]
    if c.num_alarms > 0:
        c.next_s = min(c.next_s, seconds(state.alarm_time[0]))


@njit(cache=True)
def admit(state, first, last, now):
    readiness.admit(state, first, last, now)
    refresh_next(state)


@inner
def _event(state, p, what, now):
    """What happens at port p. A function of its own: it is called from three places, and large."""
    if what == lean.DELIVERY:
        ends.deliver(state, p, now)
        return
    if what == lean.END:
        ports.finish(state, p, now)
        ends.hand_on(state, p, now)
    ends.pick(state, p, now)


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
        _event(state, key & (wheel.PHASE - 1), lean.DELIVERY, now)


@inner
def _alarms(state, now):
    c = state.c[0]
    while c.num_alarms > 0 and state.alarm_time[0] <= now:
        code = state.alarm_code[0]
        c.num_alarms = heap.pop(state.alarm_time, state.alarm_code, c.num_alarms)
        c.num_events += 1
        kind = alarms.kind_of(code)
        if kind == alarms.PAUSE:
            ports.pause(state, code >> 1, code & 1 == 0, now)
        elif kind == alarms.TURN:
            ends.pull(state, alarms.row_of(code), now)
        else:
            r = alarms.row_of(code)
            if state.pieces[r].serial & 0xFFFFFFFF != alarms.serial_of(code):
                continue  # of the row's earlier life
            if kind == alarms.TIMEOUT:
                sender.time_out(state, r, now)
            else:
                state.pieces[r].is_waiting = False
                sender.offer(state, r, now)


@inner(inline="always")
def _start_pieces(state, now):
    for i in range(state.c[0].num_starting):
        sender.begin(state, state.starting[i], now)
    state.c[0].num_starting = 0


@inner(inline="always")
def _picks(state, now):
    """Last phase: ports that are free pick, in order of port, those woken by another's pick included."""
    c = state.c[0]
    while True:
        p, what = NONE, lean.WOKEN
        if c.key < c.num_keys and wheel.key_time(state) == now:
            p = state.keys[c.key] & (wheel.PHASE - 1)
        if c.num_woken > 0 and (p == NONE or state.woken[0] < p):
            p = state.woken[0]
            c.num_woken = heap.pop(state.woken, state.woken, c.num_woken)
            state.ports[p].is_woken = False
            if state.ports[p].is_busy:
                continue
        elif p == NONE:
            return
        else:
            c.key += 1
            c.num_events += 1
            what = lean.END
        _event(state, p, what, now)


@inner
def _other_time(state):
    """When something outside the wheel is due."""
    time = pieces.agenda_time(state)
    if state.c[0].num_alarms > 0:
        time = min(time, max(state.alarm_time[0], state.c[0].now))
    return time


@inner
def _has_room(state):
    """For what one instant may take out of the pool and put on the list of alarms."""
    c = state.c[0]
    return c.num_free_packets > c.num_sources and 2 * c.num_alarms < len(state.alarm_time)


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
    while i < c.num_keys and not is_open and c.num_agenda == num_agenda and _has_room(state):
        key = state.keys[i]
        time = start + (key >> 32)
        if time >= before or (c.num_alarms > 0 and state.alarm_time[0] <= time):
            break
        now = c.now = time
        lean_ports.look_ahead(state, i)
        i += 1
        _event(state, key & (wheel.PHASE - 1), lean.END if key & wheel.PHASE else lean.DELIVERY, now)
        is_open = (c.num_woken | c.num_ready | c.num_batch | c.num_starting | c.num_fired) != 0
    if i > first:
        c.key = i
        c.num_events += i - first
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
        other = _other_time(state)
        now = wheel.next_time(state, other, until)
        if now > until:
            refresh_next(state)
            return IDLE
        if not _has_room(state):
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
            _alarms(state, now)
            pieces.run_agenda(state, now)
        c.is_resuming = False
        while c.num_batch > 0:
            if not pieces.place_batch(state, choose, c.now_s):
                c.is_resuming = True
                return GROW
            pieces.run_agenda(state, now)
        _start_pieces(state, now)
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
        message.delivered_bytes += state.pieces[r].arrived_bytes
        sender.stop(state, r, now)
        r = following
    ends.free_if_over(state, m)
    readiness.close_message(state, m, now_s)
    refresh_next(state)
