"""Placing: from messages that are ready to pieces on paths, and to their first byte.

Messages inside a host or on one leaf go direct; the others are handed to the path policy as one batch. A placed
message starts after the policy's delay and its turn at the NIC.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.fabric import components as comp
from sim.fabric import heap
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import PENDING
from sim.fabric.policies import NO_FABRIC
from sim.fabric.topology import FAR, SAME_LEAF, SAME_POD


@njit(cache=True)
def wire_bytes(payload_bytes, header_bytes, payload_per_packet):
    """Bytes on the wire: payload plus one header per packet, at least one packet."""
    packets = (payload_bytes + payload_per_packet - 1) // payload_per_packet
    return payload_bytes + header_bytes * max(packets, 1)


@njit(cache=True)
def push(state, time_s, code):
    """Agenda codes: 2 m message m is ready, 2 m + 1 its first byte leaves, -1 - leaf that leaf's window closes."""
    state.c[0].num_agenda = heap.push(state.agenda_s, state.agenda_code, state.c[0].num_agenda, time_s, code)


@njit(cache=True)
def is_direct(state, source, destination):
    """Needs no path policy: inside a host, or on one leaf with a single plane."""
    a, b = state.accelerators[source], state.accelerators[destination]
    return a.host == b.host or (a.leaf == b.leaf and state.c[0].num_planes == 1)


@njit(cache=True)
def _scope(state, source_leaf, destination_leaf):
    if source_leaf == destination_leaf:
        return SAME_LEAF
    if state.pod_of_leaf[source_leaf] == state.pod_of_leaf[destination_leaf]:
        return SAME_POD
    return FAR


@njit(cache=True)
def _new_piece(state, m, payload_bytes, weight, s0, s1, s2, s3, extra_latency_s):
    message = state.messages[m]
    p = comp.take_piece(state)
    wire = wire_bytes(payload_bytes, state.c[0].header_bytes, state.c[0].payload_per_packet)
    piece = state.pieces[p]
    piece.message = m
    piece.payload_bytes = payload_bytes
    piece.wire_bytes = wire
    state.remaining[p] = wire
    state.rate[p] = 0.0
    state.weight[p] = weight
    state.route[p, 0] = s0
    state.route[p, 1] = s1
    state.route[p, 2] = s2
    state.route[p, 3] = s3
    latency_s = extra_latency_s
    for role in range(4):
        s = state.route[p, role]
        if s != NONE:
            latency_s += state.segments[s].latency_s
            state.segments[s].outstanding += wire
    piece.latency_s = latency_s
    piece.next_of_message = message.first_piece
    message.first_piece = p
    message.pieces_left += 1


@njit(cache=True)
def _place_direct(state, m):
    message = state.messages[m]
    a, b = state.accelerators[message.source], state.accelerators[message.destination]
    weight = float(message.queue_pairs)
    if a.host == b.host:
        _new_piece(state, m, message.size_bytes, weight, a.nvlink_up, NONE, NONE, b.nvlink_down, 0.0)
    else:
        up, down = state.nics[a.nic].up, state.nics[b.nic].down
        _new_piece(state, m, message.size_bytes, weight, up, NONE, NONE, down, 0.0)


@njit(cache=True)
def _fill_batch(state, num_direct, count):
    """Describe the routed messages (they follow the direct ones) to the policy."""
    for i in range(count):
        message = state.messages[state.waiting[num_direct + i]]
        a, b = state.accelerators[message.source], state.accelerators[message.destination]
        scope = _scope(state, a.leaf, b.leaf)
        entry = state.batch[i]
        entry.source = message.source
        entry.destination = message.destination
        entry.source_leaf = a.leaf
        entry.destination_leaf = b.leaf
        entry.scope = scope
        entry.num_paths = state.scopes[scope].num_paths
        entry.leaf_choices = state.scopes[scope].leaf_choices
        entry.next_choices = state.scopes[scope].next_choices
        entry.down_lanes = state.scopes[scope].down_lanes
        entry.source_nic = a.nic
        entry.destination_nic = b.nic
        entry.size_bytes = message.size_bytes
        entry.wire_bytes = wire_bytes(message.size_bytes, state.c[0].header_bytes, state.c[0].payload_per_packet)
        entry.queue_pairs = message.queue_pairs
        entry.start_delay_s = 0.0


@njit(cache=True)
def _place_routed(state, num_direct, num_placed):
    for k in range(num_placed):
        placed = state.placed[k]
        entry = state.batch[placed.entry]
        m = state.waiting[num_direct + placed.entry]
        scope = entry.scope
        source = state.nics[state.accelerators[entry.source].nic]
        destination = state.nics[state.accelerators[entry.destination].nic]
        up, down = NONE, NONE
        plane = state.c[0].num_planes
        latency_s = 0.0
        if placed.path_up != NO_FABRIC:
            plane = state.plane[state.scopes[scope].first_plane + placed.path_up]
            if scope != SAME_LEAF:
                up = state.leaf_up[entry.source_leaf, scope] + placed.path_up
                down = state.leaf_down[entry.destination_leaf, scope] + placed.path_down
        elif scope != SAME_LEAF:  # no fabric to fill, but the light still has to cross it
            spread = entry.num_paths
            latency_s += state.segments[state.leaf_up[entry.source_leaf, scope] + spread].latency_s
            latency_s += state.segments[state.leaf_down[entry.destination_leaf, scope] + spread].latency_s
        _new_piece(
            state, m, placed.payload_bytes, placed.weight, source.up + plane, up, down, destination.down + plane,
            latency_s,
        )  # fmt: skip


@njit(cache=True)
def _refresh_outstanding(state, now):
    """Bytes placed on each link and not yet sent, for policies that look."""
    network = state.network
    for link in range(len(network.capacity)):
        state.paths.outstanding[link] = 0.0
    for s in range(len(state.segments)):
        segment = state.segments[s]
        left = segment.outstanding - segment.rate * (now - segment.settled_s)
        if left < 0.5:
            continue
        for e in range(network.segment_start[s], network.segment_start[s + 1]):
            state.paths.outstanding[network.segment_link[e]] += network.segment_share[e] * left


@njit(cache=True)
def activate(state, m, now):
    """The first byte leaves."""
    state.messages[m].started_s = now
    p = state.messages[m].first_piece
    while p != NONE:
        following = state.pieces[p].next_of_message
        state.pieces[p].started_s = now
        comp.add_piece(state, p, now)
        p = following


@njit(cache=True)
def _start(state, m, now, delay_s):
    """Start a placed message after the policy's delay and its turn at the NIC."""
    if state.c[0].is_fair_by_message:
        p = state.messages[m].first_piece
        while p != NONE:
            state.weight[p] = 1.0 / state.messages[m].pieces_left
            p = state.pieces[p].next_of_message
    start_s = now + delay_s
    source, destination = state.messages[m].source, state.messages[m].destination
    if state.accelerators[source].host != state.accelerators[destination].host:
        nic = state.nics[state.accelerators[source].nic]
        if nic.overhead_s > 0.0:
            start_s = max(start_s, nic.free_s) + nic.overhead_s
            nic.free_s = start_s
    if start_s > now:
        push(state, start_s, 2 * m + 1)
    else:
        activate(state, m, now)


@njit(cache=True)
def _order_by_transfer(state, n):
    """Sort the messages that wait by (transfer, place in it): rows are used again, so theirs is no order."""
    serials = np.empty(n)
    is_sorted = True
    for i in range(n):
        serials[i] = state.transfers[state.messages[state.waiting[i]].transfer].serial
        if i > 0:
            is_sorted &= serials[i - 1] < serials[i] or (
                serials[i - 1] == serials[i] and state.waiting[i - 1] < state.waiting[i]
            )
    if not is_sorted:
        heap.sort(serials, state.waiting, n)


@njit(cache=True)
def _sort_waiting(state):
    """Live messages to place, in the order they were handed over, those that need no policy first.

    Returns (direct, routed).
    """
    n = state.c[0].num_batch
    _order_by_transfer(state, n)
    kept = 0
    num_direct = 0
    for i in range(n):
        m = state.waiting[i]
        if state.messages[m].outcome == PENDING:
            state.waiting[kept] = m
            kept += 1
            if is_direct(state, state.messages[m].source, state.messages[m].destination):
                num_direct += 1
    if 0 < num_direct < kept:
        copy = state.waiting[:kept].copy()
        d, r = 0, num_direct
        for i in range(kept):
            m = copy[i]
            if is_direct(state, state.messages[m].source, state.messages[m].destination):
                state.waiting[d] = m
                d += 1
            else:
                state.waiting[r] = m
                r += 1
    return num_direct, kept - num_direct


@njit(cache=True)
def place_batch(state, choose, now):
    """Let the policy place what is ready. False when there is no room: needed_pieces says for how many."""
    c = state.c[0]
    num_direct, num_routed = _sort_waiting(state)
    num_placed = 0
    if num_routed > 0:
        _fill_batch(state, num_direct, num_routed)
        if c.is_live:
            _refresh_outstanding(state, now)
        num_placed = choose(state.batch, num_routed, state.paths, state.placed)
    if num_placed < 0 or num_placed + num_direct > c.num_free_pieces:
        c.needed_pieces = abs(num_placed) + num_direct
        c.num_batch = num_direct + num_routed
        return False
    for i in range(num_direct):
        _place_direct(state, state.waiting[i])
    _place_routed(state, num_direct, num_placed)
    for i in range(num_direct):
        _start(state, state.waiting[i], now, 0.0)
    for i in range(num_routed):
        _start(state, state.waiting[num_direct + i], now, state.batch[i].start_delay_s)
    c.num_batch = 0
    return True
