"""Which links a packet takes: all known to its sender, or decided by a switch on the way."""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import AT_SWITCH, FIXED, RANDOM, SWITCH
from sim.fabric.policies import mix
from sim.fabric.topology import SAME_LEAF


@inner(inline="always")
def append(state, route, n, segment):
    """The links of a segment at route[n:]; returns the new n."""
    for e in range(state.segment_start[segment], state.segment_start[segment + 1]):
        route[n] = state.segment_link[e]
        n += 1
    return n


@inner(forceinline=True)
def put_route(state, piece, packet):
    """The links that the piece's next packet takes, as far as its sender decides them."""
    route = packet.route
    if piece.spray == FIXED:
        n = append(state, route, 0, piece.out)
        if piece.extra != NONE:
            route[n] = piece.extra
            n += 1
        if piece.up != NONE:
            n = append(state, route, n, piece.up)
            n = append(state, route, n, piece.down)
        packet.num_hops = append(state, route, n, piece.into)
        return
    scope = state.scopes[piece.scope]
    if piece.spray >= SWITCH:
        n = append(state, route, 0, piece.out + piece.next_path)
        if piece.scope != SAME_LEAF:
            route[n] = AT_SWITCH
            packet.num_hops = n + 1  # until the switch has decided
        else:
            packet.num_hops = append(state, route, n, piece.into + piece.next_path)
        return
    plane = state.plane[scope.first_plane + piece.next_path]
    n = append(state, route, 0, piece.out + plane)
    if piece.scope != SAME_LEAF:
        n = append(state, route, n, piece.up + piece.next_path)
        n = append(state, route, n, piece.down + piece.next_path)
    packet.num_hops = append(state, route, n, piece.into + plane)


@inner
def plane_of(state, piece, packet):
    """The plane of a packet that has reached its leaf."""
    plane = np.int64(0)
    if state.c[0].num_planes > 1:
        while _last_link(state, piece.out + plane) != packet.route[packet.hop - 1]:
            plane += 1
    return plane


@inner
def complete(state, piece, packet, path, plane):
    """The rest of the packet's route, once a switch has chosen."""
    n = append(state, packet.route, packet.hop, piece.up + path)
    n = append(state, packet.route, n, piece.down + path)
    packet.num_hops = append(state, packet.route, n, piece.into + plane)


@inner
def _next_turn(state, switch, destination, choices):
    """Round robin over a switch's links up, in a turn of its own for each destination leaf."""
    turn = state.turns_to[switch, destination]
    state.turns_to[switch, destination] += 1
    return turn % choices


@inner
def path_in_turn(state, piece, leaf, plane):
    """Round robin over the leaf's links up (of the packet's plane), and over the next switch's where there is one.

    As routers with a route per prefix do it: each destination leaf is one, so that its links down are used as evenly
    as this leaf's links up. With one turn for all destinations they are not, and hosts in step meet on them. The choice
    of the next switch is made here too, in order of arrival at the leaf rather than at that switch.
    """
    scope, c = state.scopes[piece.scope], state.c[0]
    destination = state.accelerators[state.messages[piece.message].destination].leaf
    choices = scope.leaf_choices // c.num_planes
    turn = _next_turn(state, leaf * c.num_planes + plane, destination, choices)
    if scope.next_choices == 1:
        return plane * choices + turn
    above = c.num_leaf_turns + state.pod_of_leaf[leaf] * choices + turn
    return turn * scope.next_choices + _next_turn(state, above, destination, np.int64(scope.next_choices))


@inner
def decide_at_switch(state, packet):
    """The switch that the packet has reached sends it on the path whose turn it is."""
    piece = state.pieces[packet.piece]
    leaf = state.accelerators[state.messages[piece.message].source].leaf
    plane = plane_of(state, piece, packet)
    complete(state, piece, packet, path_in_turn(state, piece, leaf, plane), plane)


@inner(forceinline=True)
def first_link(state, segment):
    return state.segment_link[state.segment_start[segment]]


@inner
def _last_link(state, segment):
    return state.segment_link[state.segment_start[segment + 1] - 1]


@inner(forceinline=True)
def num_choices(state, piece):
    """What a sprayed piece's sender chooses from: paths, or planes where a switch chooses the path."""
    return state.c[0].num_planes if piece.spray >= SWITCH else state.scopes[piece.scope].num_paths


@inner(forceinline=True)
def aim(state, r):
    """The source port of the piece's next packet, which takes `next_path`."""
    piece = state.pieces[r]
    plane = piece.next_path
    if piece.spray < SWITCH:
        plane = state.plane[state.scopes[piece.scope].first_plane + piece.next_path]
    piece.source_port = first_link(state, piece.out + plane)


@inner(forceinline=True)
def draw_path(state, r):
    """Where the sender sends the piece's next packet."""
    piece = state.pieces[r]
    if piece.spray == FIXED:
        return
    if piece.spray == RANDOM:
        piece.random += np.uint64(0x9E3779B97F4A7C15)
        piece.next_path = mix(piece.random) % np.uint64(num_choices(state, piece))
    else:
        piece.next_path = (piece.next_path + 1) % num_choices(state, piece)
    aim(state, r)


@inner(forceinline=True)
def turn_back(state, packet):
    """Turn the packet's route round, each link into the one the other way; a link without one is left out."""
    first, last = 0, packet.num_hops - 1
    while first <= last:
        a, b = state.reverse[packet.route[first]], state.reverse[packet.route[last]]
        packet.route[first] = b
        packet.route[last] = a
        first += 1
        last -= 1
    num_hops = 0
    for i in range(packet.num_hops):
        if packet.route[i] != NONE:
            packet.route[num_hops] = packet.route[i]
            num_hops += 1
    packet.num_hops = num_hops
    packet.hop = 0
