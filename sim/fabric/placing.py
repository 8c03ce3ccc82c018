"""Placing: from messages that are ready to pieces on paths. Both fidelities place here.

Messages inside a host or on one leaf go direct; the others are handed to the path policy as one batch. A placed
message starts after the policy's delay and its turn at the NIC.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import heap
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import PENDING
from sim.fabric.policies import NO_FABRIC
from sim.fabric.readiness import is_direct
from sim.fabric.topology import FAR, SAME_LEAF, SAME_POD


@inner
def wire_bytes(payload_bytes, header_bytes, payload_per_packet):
    """Bytes on the wire: payload plus one header per packet, at least one packet."""
    packets = (payload_bytes + payload_per_packet - 1) // payload_per_packet
    return payload_bytes + header_bytes * max(packets, 1)


@inner
def scope_of(state, source_leaf, destination_leaf):
    if source_leaf == destination_leaf:
        return SAME_LEAF
    if state.pod_of_leaf[source_leaf] == state.pod_of_leaf[destination_leaf]:
        return SAME_POD
    return FAR


@inner
def direct_route(state, m):
    """Segments of a message that needs no policy: (out of the NIC, NONE, NONE, into the NIC)."""
    message = state.messages[m]
    a, b = state.accelerators[message.source], state.accelerators[message.destination]
    if a.host == b.host:
        return a.nvlink_up, NONE, NONE, b.nvlink_down
    return state.nics[a.nic].up, NONE, NONE, state.nics[b.nic].down


@inner
def _fill_batch(state, num_direct, count):
    """Describe the routed messages (they follow the direct ones) to the policy."""
    for i in range(count):
        message = state.messages[state.waiting[num_direct + i]]
        a, b = state.accelerators[message.source], state.accelerators[message.destination]
        scope = scope_of(state, a.leaf, b.leaf)
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


@inner
def placed_route(state, k):
    """Segments of placed piece k, and the seconds that no segment accounts for."""
    placed = state.placed[k]
    entry = state.batch[placed.entry]
    scope = entry.scope
    source = state.nics[state.accelerators[entry.source].nic]
    destination = state.nics[state.accelerators[entry.destination].nic]
    up, down = NONE, NONE
    plane = state.c[0].num_planes
    extra_s = 0.0
    if placed.path_up != NO_FABRIC:
        plane = state.plane[state.scopes[scope].first_plane + placed.path_up]
        if scope != SAME_LEAF:
            up = state.leaf_up[entry.source_leaf, scope] + placed.path_up
            down = state.leaf_down[entry.destination_leaf, scope] + placed.path_down
    elif scope != SAME_LEAF:  # no fabric to fill, but the light still has to cross it
        spread = entry.num_paths
        extra_s += state.segments[state.leaf_up[entry.source_leaf, scope] + spread].latency_s
        extra_s += state.segments[state.leaf_down[entry.destination_leaf, scope] + spread].latency_s
    return source.up + plane, up, down, destination.down + plane, extra_s


@inner
def first_byte_s(state, m, now, delay_s):
    """When a message placed now may send: after the policy's delay and its turn at the NIC."""
    start_s = now + delay_s
    source, destination = state.messages[m].source, state.messages[m].destination
    if state.accelerators[source].host != state.accelerators[destination].host:
        nic = state.nics[state.accelerators[source].nic]
        if nic.overhead_s > 0.0:
            start_s = max(start_s, nic.free_s) + nic.overhead_s
            nic.free_s = start_s
    return start_s


@inner
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


@inner
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


@inner
def decide(state, choose):
    """Let the policy place what waits; returns (direct messages, routed ones, pieces placed for the latter).

    `state.waiting` then has the direct messages first. Minus the number of pieces needed as the last of the three:
    there was no room for them, nothing is decided, and the batch still waits.
    """
    num_direct, num_routed = _sort_waiting(state)
    num_placed = 0
    if num_routed > 0:
        _fill_batch(state, num_direct, num_routed)
        num_placed = choose(state.batch, num_routed, state.paths, state.placed)
    state.c[0].num_batch = num_direct + num_routed
    if num_placed < 0 or num_placed + num_direct > state.c[0].num_free_pieces:
        return num_direct, num_routed, -(abs(num_placed) + num_direct)
    return num_direct, num_routed, num_placed
