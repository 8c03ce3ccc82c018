"""Path choices that look at queues, gaps or marks."""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import full_detours as detours
from sim.fabric import full_ports as ports
from sim.fabric import packet_routes as routes
from sim.fabric.full_state import GOLDEN, PATHS_REMEMBERED
from sim.fabric.packet_state import ADAPTIVE, FLOWLET, REPS
from sim.fabric.policies import mix


@inner
def _draw(state, piece):
    piece.random += GOLDEN
    piece.next_path = mix(piece.random) % np.uint64(routes.num_choices(state, piece))


@inner
def aim(state, r, now):
    """A piece is about to wait for its turn: where its next packet goes, if that depends on what has happened.

    flowlet: another random path after a pause of `flowlet_gap`. reps: the oldest remembered path whose
    acknowledgement came back unmarked, or a random one.
    """
    piece = state.pieces[r]
    if piece.spray == FLOWLET:
        if now - piece.last_sent > state.c[0].flowlet_gap:
            _draw(state, piece)
    elif piece.spray == REPS:
        if piece.num_remembered > 0:
            piece.next_path = piece.remembered[0]
            piece.num_remembered -= 1
            for i in range(piece.num_remembered):
                piece.remembered[i] = piece.remembered[i + 1]
        else:
            _draw(state, piece)
    elif state.c[0].num_withdrawn == 0:  # else the first path of a new piece was drawn among all
        return
    if state.c[0].num_withdrawn > 0:
        detours.avoid(state, piece)
    routes.aim(state, r)


@inner
def remember(piece, path):
    """An unmarked acknowledgement has come back for this path; the oldest memory makes room."""
    if piece.num_remembered == PATHS_REMEMBERED:
        for i in range(PATHS_REMEMBERED - 1):
            piece.remembered[i] = piece.remembered[i + 1]
        piece.num_remembered -= 1
    piece.remembered[piece.num_remembered] = path
    piece.num_remembered += 1


@inner
def _shortest(state, first_segment, stride, choices, turn, position, now):
    """Of `choices` alternatives, the one whose port has the shortest queue; among equals the next from `turn` on."""
    best, least = np.int64(0), np.int64(2**62)
    for i in range(choices):
        choice = (turn + i) % choices
        link = state.segment_link[state.segment_start[first_segment + choice * stride] + position]
        queue = ports.queue_at(state, link, now)
        if queue < least:
            best, least = choice, queue
    return best


@inner
def decide_at_switch(state, packet, now):
    """The switch that the packet has reached chooses its way up: in turn, or by the shortest queue.

    An adaptive leaf looks at its own queues; it also chooses for the next switch up, by that switch's queues.
    """
    piece = state.pieces[packet.piece]
    if state.c[0].num_withdrawn > 0:
        detours.decide_at_switch(state, packet, now)
        return
    if piece.spray != ADAPTIVE:
        routes.decide_at_switch(state, packet)
        return
    scope = state.scopes[piece.scope]
    leaf = state.accelerators[state.messages[piece.message].source].leaf
    plane = routes.plane_of(state, piece, packet)
    choices = scope.leaf_choices // state.c[0].num_planes
    turn = state.turns[leaf, plane]
    state.turns[leaf, plane] += 1
    stride = max(scope.next_choices, 1)
    first = piece.up + plane * choices * stride
    path = plane * choices * stride + _shortest(state, first, stride, choices, turn, np.int64(0), now) * stride
    if scope.next_choices > 1:
        path += _shortest(state, piece.up + path, np.int64(1), scope.next_choices, turn, np.int64(1), now)
    routes.complete(state, piece, packet, path, plane)
