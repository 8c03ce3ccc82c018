"""Timers, pauses and turns of the full packet core: a heap of (time, code).

At one instant they come in the order of their codes: pauses by port (a link that is told both is let go), then
retransmission timers and paces by piece (in order of birth), then pulls by NIC. An alarm cannot be taken back: who is
woken looks whether it still holds.
"""

from __future__ import annotations

from models.compiled import inner
from sim.fabric import heap

PAUSE, TIMEOUT, PACE, TURN = range(4)
KIND_BITS, ROW_BITS = 60, 28


@inner
def push(state, time, code):
    state.c[0].num_alarms = heap.push(state.alarm_time, state.alarm_code, state.c[0].num_alarms, time, code)


@inner
def pause_code(port, is_pause):
    return 2 * port + (0 if is_pause else 1)


@inner
def piece_code(state, kind, r):
    return kind << KIND_BITS | (state.pieces[r].serial & 0xFFFFFFFF) << ROW_BITS | r


@inner
def turn_code(nic):
    return TURN << KIND_BITS | nic


@inner
def kind_of(code):
    return code >> KIND_BITS


@inner
def row_of(code):
    """Piece, or NIC."""
    return code & ((1 << ROW_BITS) - 1)


@inner
def serial_of(code):
    return (code >> ROW_BITS) & 0xFFFFFFFF
