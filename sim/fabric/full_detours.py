"""Ways around dead links, packet by packet.

A piece with a path of its own moves to another one; what it has under way on the old one is lost, and noticed as any
loss is. A sprayed one skips what routing has withdrawn: its sender, or the switch, chooses among what is left.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import detours, policies, readiness
from sim.fabric import full_ports as ports
from sim.fabric import packet_ports as lean
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import GOLDEN
from sim.fabric.packet_state import ADAPTIVE, FIXED, ROUND_ROBIN, SWITCH, seconds
from sim.fabric.policies import mix

# --- pieces with a path of their own ----------------------------------------------------------------------------------


@inner
def has_choice(state, r):
    """Whether a path policy has placed piece r on one path."""
    message = state.messages[state.pieces[r].message]
    return state.pieces[r].spray == FIXED and not readiness.is_direct(state, message.source, message.destination)


@inner
def _withdrawn_link(state, s):
    """A link of segment s that routing has withdrawn, or NONE."""
    if s != NONE:
        for e in range(state.segment_start[s], state.segment_start[s + 1]):
            if state.paths.withdrawn[state.segment_link[e]]:
                return state.segment_link[e]
    return NONE


@inner
def _dead_link(state, s):
    """A link of segment s that is down, or NONE."""
    if s != NONE:
        for e in range(state.segment_start[s], state.segment_start[s + 1]):
            if state.ports[state.segment_link[e]].is_down:
                return state.segment_link[e]
    return NONE


@inner
def withdrawn_link(state, piece):
    """A link of the piece's only path that routing has withdrawn, or NONE."""
    for s in (piece.out, piece.up, piece.down, piece.into):
        link = _withdrawn_link(state, np.int64(s))
        if link != NONE:
            return link
    return NONE


@inner
def _index(state, r):
    """The place of piece r among those of its message: a message's list begins with the last one."""
    index = 0
    r = np.int64(state.pieces[r].next_of_message)
    while r != NONE:
        index += 1
        r = np.int64(state.pieces[r].next_of_message)
    return index


@inner
def move(state, r, link, now):
    """Put piece r on another path, if there is one, because `link` is dead (NONE: nobody knows why it is silent)."""
    piece = state.pieces[r]
    m = np.int64(piece.message)
    state.paths.parameters[policies.NOW] = seconds(now)
    path = detours.another_path(state, m, np.int64(_index(state, r)))
    if path == NONE:
        return
    if piece.is_in_ring:
        lean.leave_ring(state, r)
    out, up, down, into = detours.route_of_path(state, m, path)
    piece.out = out
    piece.up = up
    piece.down = down
    piece.into = into
    piece.source_port = routes.first_link(state, piece.out)
    piece.quiet_since = now
    for i in range(len(piece.resent)):
        piece.resent[i] = 0  # nothing of it is under way on the new path
    if link != NONE:
        c = state.c[0]
        payload = (piece.num_packets - 1) * c.payload_per_packet + piece.last_size - c.header_bytes
        state.ports[link].moved += max(payload - piece.acknowledged * c.payload_per_packet, 0)


@inner
def give_up(state, r, now):
    """At a timeout of piece r: a sender that watches its path, and has heard nothing new for long, marks it bad and
    moves. Behind a dead port of a host with no other port no path would help: it waits, and none is marked."""
    c = state.c[0]
    piece = state.pieces[r]
    if piece.acknowledged != piece.heard:
        piece.heard = piece.acknowledged
        piece.quiet_since = piece.deadline - c.rto
    if c.path_timeout == 0 or len(state.paths.bad_until_s) == 0 or not has_choice(state, r):
        return
    if now - piece.quiet_since < c.path_timeout:
        return
    at_host = max(_dead_link(state, np.int64(piece.out)), _dead_link(state, np.int64(piece.into)))
    if at_host != NONE and c.num_planes == 1:
        return
    m = np.int64(piece.message)
    message = state.messages[m]
    a, b = state.accelerators[message.source], state.accelerators[message.destination]
    path = detours.path_of(state, m, np.int64(piece.up), np.int64(piece.out))
    state.paths.bad_until_s[a.leaf, b.leaf, path] = seconds(now) + c.bad_for_s
    inside = max(_dead_link(state, np.int64(piece.up)), _dead_link(state, np.int64(piece.down)))
    move(state, r, max(at_host, inside), now)


# --- sprayed pieces ---------------------------------------------------------------------------------------------------


@inner
def _blocked_above(state, piece, path):
    """A withdrawn link of a path between the leaves, or NONE."""
    link = _withdrawn_link(state, np.int64(piece.up + path))
    return link if link != NONE else _withdrawn_link(state, np.int64(piece.down + path))


@inner
def _blocked(state, piece, choice):
    """A withdrawn link in what a sprayed piece's sender may choose (a path; a plane, if switches choose the path)."""
    scope = state.scopes[piece.scope]
    is_plane = piece.spray >= SWITCH
    plane = choice if is_plane else state.plane[scope.first_plane + choice]
    link = _withdrawn_link(state, np.int64(piece.out + plane))
    if link == NONE:
        link = _withdrawn_link(state, np.int64(piece.into + plane))
    if link != NONE or piece.up == NONE:
        return link
    if not is_plane:
        return _blocked_above(state, piece, choice)
    for path in range(scope.num_paths):
        if state.plane[scope.first_plane + path] == plane:
            link = _blocked_above(state, piece, path)
            if link == NONE:
                return link
    return link


@inner
def _count_moved(state, link):
    state.ports[link].moved += state.c[0].payload_per_packet


@inner
def avoid(state, piece):
    """The next packet of a sprayed piece is not for a withdrawn path: in turn the next one, or one drawn anew."""
    link = _blocked(state, piece, np.int64(piece.next_path))
    if link == NONE:
        return
    num_choices = np.int64(routes.num_choices(state, piece))
    num_left = 0
    for other in range(num_choices):
        num_left += _blocked(state, piece, other) == NONE
    if num_left == 0:
        return
    _count_moved(state, link)
    choice = np.int64(piece.next_path)
    skip = np.int64(0)
    if piece.spray != ROUND_ROBIN and piece.spray < SWITCH:
        piece.random += GOLDEN
        skip = np.int64(mix(piece.random) % np.uint64(num_left))
    while skip >= 0:
        choice = (choice + 1) % num_choices
        if _blocked(state, piece, choice) == NONE:
            skip -= 1
    piece.next_path = choice


@inner
def _in_turn(state, piece, leaf, plane):
    scope = state.scopes[piece.scope]
    num_paths = scope.leaf_choices // state.c[0].num_planes * max(scope.next_choices, 1)
    path = routes.path_in_turn(state, piece, leaf, plane)
    link = _blocked_above(state, piece, path)
    if link == NONE:
        return path
    for _ in range(num_paths):
        path = routes.path_in_turn(state, piece, leaf, plane)
        if _blocked_above(state, piece, path) == NONE:
            _count_moved(state, link)
            return path
    return path


@inner
def _in_use(state, piece, first_path, choices, stride, turn):
    """The leaf's choice whose turn it is among those with a path in use; `turn` itself where there is none."""
    num_left = 0
    for i in range(choices):
        num_left += _is_in_use(state, piece, first_path + i * stride, stride)
    if num_left == 0:
        return turn
    skip = turn % num_left
    for i in range(choices):
        if _is_in_use(state, piece, first_path + i * stride, stride):
            if skip == 0:
                return np.int64(i)
            skip -= 1
    return turn


@inner
def _is_in_use(state, piece, first_path, stride):
    num_left = 0
    for path in range(first_path, first_path + stride):
        num_left += _blocked_above(state, piece, path) == NONE
    return num_left > 0


@inner
def _shortest(state, piece, leaf, plane, now):
    """By the leaf's queue, then by the next switch's; among equals the next from `turn` on.

    Turns count the leaf's links in use: if all were counted, the one after a dead link would take its share too.
    """
    scope = state.scopes[piece.scope]
    choices, stride = scope.leaf_choices // state.c[0].num_planes, max(scope.next_choices, 1)
    turn = _in_use(state, piece, plane * choices * stride, choices, stride, np.int64(state.turns[leaf, plane]))
    state.turns[leaf, plane] += 1
    best, least, least_next = plane * choices * stride, np.int64(2**62), np.int64(2**62)
    for i in range(choices):
        for j in range(stride):
            path = (plane * choices + (turn + i) % choices) * stride + (turn + j) % stride
            if _blocked_above(state, piece, path) != NONE:
                continue
            first = state.segment_start[piece.up + path]
            queue, queue_next = ports.queue_at(state, state.segment_link[first], now), np.int64(0)
            if scope.next_choices > 1:
                queue_next = ports.queue_at(state, state.segment_link[first + 1], now)
            if queue < least or (queue == least and queue_next < least_next):
                best, least, least_next = path, queue, queue_next
    return best


@inner
def decide_at_switch(state, packet, now):
    """The switch that the packet has reached chooses among the paths in use."""
    piece = state.pieces[packet.piece]
    leaf = state.accelerators[state.messages[piece.message].source].leaf
    plane = routes.plane_of(state, piece, packet)
    is_adaptive = piece.spray == ADAPTIVE
    path = _shortest(state, piece, leaf, plane, now) if is_adaptive else _in_turn(state, piece, leaf, plane)
    routes.complete(state, piece, packet, path, plane)
