"""Faults in the fluid core: links change their rate, routing learns of it, senders give up waiting.

A dead link has rate 0, and so has whatever crosses it: nothing is lost, it waits. What has been sent has been
received; what a real sender would have had in flight, and would send again, is left out.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.compiled import inner
from sim.fabric import components as comp
from sim.fabric import detours, fluid_core, maxmin, readiness
from sim.fabric.fluid_state import NONE
from sim.fabric.policies import NOW


@inner
def _is_started(state, p):
    return not np.isnan(state.messages[state.pieces[p].message].started_s)


@inner
def _has_choice(state, p):
    """Whether slot p holds a piece that a path policy has placed."""
    m = state.pieces[p].message
    return m != NONE and not readiness.is_direct(state, state.messages[m].source, state.messages[m].destination)


@inner
def dead_since(state, s, down_since_s):
    """Since when segment s has been dead; infinity when it is not."""
    network = state.network
    since_s = np.inf
    if s != NONE:
        for e in range(network.segment_start[s], network.segment_start[s + 1]):
            link = network.segment_link[e]
            if network.capacity[link] <= 0.0:
                since_s = min(since_s, down_since_s[link])
    return since_s


@inner
def _stuck_since(state, p, down_since_s):
    """Since when a piece under way has stood still before a dead link; infinity when it does not."""
    since_s = np.inf
    for role in range(maxmin.NUM_ROLES):
        since_s = min(since_s, dead_since(state, state.route[p, role], down_since_s))
    return max(since_s, state.pieces[p].started_s)


@njit(cache=True)
def set_rates(state, links, rate_bytes_per_s, down_since_s, now):
    """From now on these links carry so much; 0: they are dead. Every component that crosses one is solved again."""
    for link in links:
        k = comp.component_of(state, state.link_label[link])
        if k != NONE:  # what has nothing left to send is not held up
            fluid_core.finish_due(state, k, now, fluid_core.EXACT)
    for i in range(len(links)):
        link, rate = links[i], rate_bytes_per_s[i]
        was_dead = state.network.capacity[link] <= 0.0
        state.network.capacity[link] = rate
        if rate > 0.0:
            state.paths.rate[link] = rate
            down_since_s[link] = np.inf
        elif not was_dead:
            down_since_s[link] = now
    for link in links:
        k = comp.component_of(state, state.link_label[link])
        p = state.components[k].first if k != NONE else NONE
        while p != NONE:
            is_stuck = state.pieces[p].message != NONE and state.rate[p] <= 0.0
            if is_stuck and _stuck_since(state, p, down_since_s) == np.inf:
                state.pieces[p].started_s = now  # nothing is to be made up for from the time it stood still
            p = state.next_piece[p]
    fluid_core.refresh_next(state)


@inner
def _move(state, p, route, now):
    """Put a piece on another route with what it has left. Returns the payload that moves."""
    piece = state.pieces[p]
    for role in range(maxmin.NUM_ROLES):
        if state.route[p, role] != NONE:
            piece.latency_s -= state.segments[state.route[p, role]].latency_s
        if route[role] != NONE:
            piece.latency_s += state.segments[route[role]].latency_s
    if _is_started(state, p):
        comp.settle(state, comp.home(state, p), now)
        sent = piece.wire_bytes - state.remaining[p]
        payload = np.floor(piece.payload_bytes * sent / piece.wire_bytes)
        fluid_core.count_bytes(state, p, payload, sent)
        piece.payload_bytes -= payload
        piece.wire_bytes = state.remaining[p]
        piece.started_s = now
        comp.move_piece(state, p, route, now)
        return piece.payload_bytes
    for role in range(maxmin.NUM_ROLES):
        if state.route[p, role] != NONE:
            state.segments[state.route[p, role]].outstanding -= piece.wire_bytes
        if route[role] != NONE:
            state.segments[route[role]].outstanding += piece.wire_bytes
        state.route[p, role] = route[role]
    return piece.payload_bytes


@inner
def _withdrawn_link(state, p):
    """The first link of a piece's route that routing has withdrawn, or NONE."""
    network = state.network
    for role in range(maxmin.NUM_ROLES):
        s = state.route[p, role]
        if s != NONE:
            for e in range(network.segment_start[s], network.segment_start[s + 1]):
                if state.paths.withdrawn[network.segment_link[e]]:
                    return network.segment_link[e]
    return NONE


@inner
def _sprayed_route(state, m, is_ideal):
    """(segments, share of its paths that it has just lost) of a piece on all paths in use."""
    message = state.messages[m]
    a, b = state.accelerators[message.source], state.accelerators[message.destination]
    scope, planes = detours.scope_of(state, m), state.c[0].num_planes
    up, down = NONE, NONE
    if not is_ideal:
        up = state.leaf_up[a.leaf, scope] + state.scopes[scope].num_paths
        down = state.leaf_down[b.leaf, scope] + state.scopes[scope].num_paths
    return detours.overlaid(state, m, state.nics[a.nic].up + planes, up, down, state.nics[b.nic].down + planes)


@njit(cache=True)
def reroute(state, moved_bytes, now):
    """Routing has changed: pieces that cross a withdrawn link move, sprayed ones take the paths now in use.

    moved_bytes  [links] grows by the payload that leaves a withdrawn link
    """
    state.paths.parameters[NOW] = now
    for p in range(len(state.pieces)):
        if not _has_choice(state, p) or state.remaining[p] <= 0.0:
            continue
        m = state.pieces[p].message
        link, share = _withdrawn_link(state, p), 1.0
        s0, s1, s2, s3 = state.route[p, 0], state.route[p, 1], state.route[p, 2], state.route[p, 3]
        if state.c[0].is_spread:
            r0, r1, r2, r3, share = _sprayed_route(state, m, s1 == NONE)
        elif link == NONE:
            continue
        else:
            path = detours.another_path(state, m, state.pieces[p].index)
            if path == NONE:
                continue
            r0, r1, r2, r3 = detours.route_of_path(state, m, path)
        if r0 == s0 and r1 == s1 and r2 == s2 and r3 == s3:
            continue
        payload = _move(state, p, (r0, r1, r2, r3), now)
        if link != NONE:
            moved_bytes[link] += share * payload
    fluid_core.refresh_next(state)


@njit(cache=True)
def time_out(state, timeout_s, bad_for_s, down_since_s, moved_bytes, now):
    """Queue pairs that have stood still for timeout_s mark their path bad for bad_for_s and move to a good one.

    One behind a dead port of a host with no other port waits: no path would help, and none is marked.
    Returns when the next one will have waited for so long; infinity when none stands still.
    """
    state.paths.parameters[NOW] = now
    timed_out = np.empty(len(state.pieces), np.int64)
    count, next_s = 0, np.inf
    for p in range(len(state.pieces)):
        if not _has_choice(state, p) or not _is_started(state, p) or state.remaining[p] <= 0.0:
            continue
        since_s = _stuck_since(state, p, down_since_s)
        if since_s == np.inf:
            continue
        out_of_nic, into_nic = state.route[p, 0], state.route[p, 3]
        port_since_s = min(dead_since(state, out_of_nic, down_since_s), dead_since(state, into_nic, down_since_s))
        if port_since_s < np.inf and state.c[0].num_planes == 1:
            continue
        if since_s + timeout_s > now:
            next_s = min(next_s, since_s + timeout_s)
            continue
        m = state.pieces[p].message
        a, b = state.accelerators[state.messages[m].source], state.accelerators[state.messages[m].destination]
        path = detours.path_of(state, m, state.route[p, 1], state.route[p, 0])
        state.paths.bad_until_s[a.leaf, b.leaf, path] = now + bad_for_s
        timed_out[count] = p
        count += 1
    for i in range(count):
        p = timed_out[i]
        m = state.pieces[p].message
        link = NONE
        for role in range(maxmin.NUM_ROLES):
            s = state.route[p, role]
            if s != NONE and link == NONE:
                for e in range(state.network.segment_start[s], state.network.segment_start[s + 1]):
                    if state.network.capacity[state.network.segment_link[e]] <= 0.0:
                        link = state.network.segment_link[e]
        state.pieces[p].started_s = now
        next_s = min(next_s, now + timeout_s)
        path = detours.another_path(state, m, state.pieces[p].index)
        if path != NONE:
            moved_bytes[link] += _move(state, p, detours.route_of_path(state, m, path), now)
    fluid_core.refresh_next(state)
    return next_s
