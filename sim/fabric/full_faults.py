"""Faults in the full packet core: links change their rate, die, or lose packets; routing learns of the dead ones.

The port of a dead link goes on sending at the rate that it had, into nothing (as a sender does that does not know),
so that its queue drains; what it sends is lost, acknowledgements too, and comes back by its sender's recovery.
"""

from __future__ import annotations

from numba import njit

from models.compiled import inner
from sim.fabric import full_detours as detours
from sim.fabric import full_ports as ports
from sim.fabric import full_sender as sender
from sim.fabric import packet_ports as lean
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import NDP
from sim.fabric.packet_state import FIXED, PS_PER_S, picoseconds


@inner
def _now(state, now_s):
    return max(picoseconds(now_s), state.c[0].now)


@inner
def _watch(state, now):
    """Answers may be lost from now on: a sender that waits for credit keeps its timer running."""
    c = state.c[0]
    if c.is_faulty or c.transport != NDP:
        c.is_faulty = True
        return
    c.is_faulty = True
    for r in range(len(state.pieces)):
        piece = state.pieces[r]
        if piece.message != NONE and piece.is_started and not piece.is_settled and not piece.is_armed:
            sender.arm(state, r, now)


@inner
def _pace(state, rate, latency):
    """The row of this rate and latency, a new one if there is none; there must be room."""
    c = state.c[0]
    for i in range(c.num_paces):
        if state.paces[i].rate == rate and state.paces[i].latency == latency:
            return i
    pace = state.paces[c.num_paces]
    c.num_paces += 1
    pace.rate = rate
    pace.latency = latency
    bits_ps = 8 * PS_PER_S
    pace.full_time = c.mtu_bytes * bits_ps // rate
    pace.full_remainder = c.mtu_bytes * bits_ps - pace.full_time * rate
    pace.header_time = c.header_bytes * bits_ps // rate
    pace.header_remainder = c.header_bytes * bits_ps - pace.header_time * rate
    return c.num_paces - 1


@njit(cache=True)
def set_rates(state, links, bits_per_s, now_s):
    """Packets whose serialisation begins from now on take so long; 0: the link is down."""
    now = _now(state, now_s)
    _watch(state, now)
    for i in range(len(links)):
        port, rate = state.ports[links[i]], bits_per_s[i]
        ports.catch_up(state, links[i], now + 1)
        if rate == 0:
            port.is_faulty = True
            port.is_down = True
            continue
        if port.is_down:
            port.is_down = False
            is_empty = port.wire_first == NONE
            port.lost_until = now - 1 if is_empty else port.end + lean.pace_of(state, links[i]).latency
        state.paths.rate[links[i]] = rate / 8
        if rate != lean.pace_of(state, links[i]).rate:
            port.pace = _pace(state, rate, lean.pace_of(state, links[i]).latency)
            port.remainder = 0


@njit(cache=True)
def set_losses(state, links, probability, now_s):
    """From now on these links lose each packet with this probability."""
    _watch(state, _now(state, now_s))
    for i in range(len(links)):
        port = state.ports[links[i]]
        port.loss = probability[i]
        port.is_faulty = True


@njit(cache=True)
def reroute(state, now_s):
    """Routing has changed: pieces on a withdrawn path move, and sprayed ones that wait for their turn choose again."""
    now = _now(state, now_s)
    for r in range(len(state.pieces)):
        piece = state.pieces[r]
        if piece.message == NONE or piece.is_settled:
            continue
        if piece.spray != FIXED:
            if piece.is_in_ring:
                lean.leave_ring(state, r)
            detours.avoid(state, piece)
            routes.aim(state, r)
        elif detours.has_choice(state, r):
            link = detours.withdrawn_link(state, piece)
            if link == NONE:
                continue
            detours.move(state, r, link, now)
        else:
            continue
        sender.offer(state, r, now)
