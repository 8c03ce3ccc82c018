"""Ports of the packet core: what waits at them, what they send next, and when it is at the end of the link.

An ordinary port picks when its packet has been delivered, as of the moment that it could have started on the next
one. A source port picks when its serialisation ends: pieces wait there for their turn and for room in their windows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.fabric import heap, wheel
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import PS_PER_S, REORDER_WINDOW, wait_bin
from sim.fabric.state_reference import prefetch


@njit(cache=True)
def serialise(state, p, size, now):
    """Start on `size` bytes and say when the last bit leaves; what a division leaves is carried while packets are
    back to back:  duration, remainder = divmod(bits 10^12 + remainder, rate)."""
    port = state.ports[p]
    carried = port.remainder if port.end == now else 0
    if size == state.c[0].mtu_bytes:
        duration, left = port.full_time, port.full_remainder + carried
        if left >= port.rate:
            duration += 1
            left -= port.rate
    else:
        total = size * 8 * PS_PER_S + carried
        duration = total // port.rate
        left = total - duration * port.rate
    port.remainder = left
    port.end = now + duration
    port.wire_bytes += size
    _enter_in_series(state, p, size, now, port.end)


@njit(cache=True)
def fold_series(state):
    """The time series has run out of bins: make them twice as wide."""
    num_bins = state.series.shape[0]
    for i in range(num_bins // 2):
        for p in range(state.series.shape[1]):
            state.series[i, p] = state.series[2 * i, p] + state.series[2 * i + 1, p]
    state.series[num_bins // 2 :] = 0
    state.c[0].bin_shift += 1


@njit(cache=True)
def _enter_in_series(state, p, size, begin, end):
    """Spread the bytes over the bins in which they leave."""
    while (end - 1) >> state.c[0].bin_shift >= state.series.shape[0]:
        fold_series(state)
    shift = state.c[0].bin_shift
    first, last = begin >> shift, (end - 1) >> shift
    left = size
    while first < last:
        share = size * (((first + 1) << shift) - max(begin, first << shift)) // (end - begin)
        state.series[first, p] += share
        left -= share
        first += 1
    state.series[last, p] += left


@njit(cache=True)
def _count(state, p, packet, now):
    port = state.ports[p]
    if packet.covers > 0:
        port.ack_packets += 1
    else:
        port.data_packets += 1
        port.payload_bytes += packet.size - state.c[0].header_bytes
        if not port.is_source:
            wait = now - packet.time
            port.longest_wait = max(port.longest_wait, wait)
            state.waits[wait_bin(wait)] += 1


@njit(cache=True)
def _send(state, p, k, now):
    """Ordinary port p starts on packet k."""
    serialise(state, p, state.packets[k].size, now)
    _count(state, p, state.packets[k], now)
    state.ports[p].wire_first = k
    wheel.schedule(state, 2 * p, state.ports[p].end + state.ports[p].latency)


@njit(cache=True)
def look_ahead(state):
    """Have what the next events of this bucket need brought into the cache: their ports, those ports' packets, and the
    ports that these come to. A large fabric does not fit into it, and events come in no order of memory."""
    c = state.c[0]
    mask = (1 << 31) - 1
    if c.key + 6 < c.num_keys:
        prefetch(state.ports, state.keys[c.key + 6] & mask)  # type: ignore[call-arg]
    if c.key + 3 < c.num_keys:
        k = state.ports[state.keys[c.key + 3] & mask].wire_first
        if k != NONE:
            prefetch(state.packets, k)  # type: ignore[call-arg]
    if c.key + 1 < c.num_keys:
        k = state.ports[state.keys[c.key + 1] & mask].wire_first
        if k != NONE:
            packet = state.packets[k]
            if packet.hop + 1 < packet.num_hops and packet.route[packet.hop + 1] >= 0:
                prefetch(state.ports, packet.route[packet.hop + 1])  # type: ignore[call-arg]
            else:
                prefetch(state.pieces, packet.piece)  # type: ignore[call-arg]


@njit(cache=True)
def wake(state, p):
    """Port p picks in this instant's last phase."""
    if not state.ports[p].is_woken:
        state.ports[p].is_woken = True
        state.c[0].num_woken = heap.push(state.woken, state.woken, state.c[0].num_woken, p, p)


@njit(cache=True)
def queue(state, p, k, is_control):
    """Packet k waits at port p, behind others of its class."""
    port = state.ports[p]
    state.packets[k].next = NONE
    if is_control:
        if port.ack_first == NONE:
            port.ack_first = k
        else:
            state.packets[port.ack_last].next = k
        port.ack_last = k
    else:
        if port.data_first == NONE:
            port.data_first = k
        else:
            state.packets[port.data_last].next = k
        port.data_last = k


@njit(cache=True)
def enter(state, p, k, came_over, now):
    """Packet k reaches port p over a link."""
    port = state.ports[p]
    packet = state.packets[k]
    packet.time = now
    packet.came_over = came_over
    if port.is_source:
        queue(state, p, k, packet.covers > 0)
        if not port.is_busy:
            wake(state, p)
    elif port.wire_first != NONE or port.ack_first != NONE or port.data_first != NONE:
        queue(state, p, k, packet.covers > 0)
    elif port.end == now:  # its serialisation ends at this instant, so that others may still come before it picks
        queue(state, p, k, packet.covers > 0)
        wake(state, p)
    else:
        _send(state, p, k, now)


@njit(cache=True)
def pick(state, p):
    """Ordinary port p, whose packet has gone: start on the next one as of when it could, or be idle."""
    port = state.ports[p]
    port.wire_first = NONE
    ack, data = port.ack_first, port.data_first
    if ack == NONE and data == NONE:
        return
    take_ack = ack != NONE
    if ack != NONE and data != NONE and state.packets[ack].time > port.end:
        a, d = state.packets[ack], state.packets[data]
        take_ack = a.time < d.time or (a.time == d.time and a.came_over < d.came_over)
    k = ack if take_ack else data
    if take_ack:
        port.ack_first = state.packets[k].next
    else:
        port.data_first = state.packets[k].next
    _send(state, p, k, max(port.end, state.packets[k].time))


@njit(cache=True)
def into_ring(state, r):
    """Piece r waits for its turn at its source port."""
    piece = state.pieces[r]
    piece.is_in_ring = True
    piece.next_ready = NONE
    port = state.ports[piece.source_port]
    if port.ready_first == NONE:
        port.ready_first = r
    else:
        state.pieces[port.ready_last].next_ready = r
    port.ready_last = r


@njit(cache=True)
def leave_ring(state, r):
    """A cancelled piece gives up its turn."""
    port = state.ports[state.pieces[r].source_port]
    before, other = NONE, np.int64(port.ready_first)
    while other != r:
        before, other = other, np.int64(state.pieces[other].next_ready)
    following = state.pieces[r].next_ready
    if before == NONE:
        port.ready_first = following
    else:
        state.pieces[before].next_ready = following
    if following == NONE:
        port.ready_last = before
    state.pieces[r].is_in_ring = False


@njit(cache=True)
def _may_send(piece):
    return (
        piece.is_started
        and piece.next_seq < piece.num_packets
        and piece.in_flight < piece.window
        and piece.next_seq - piece.known < REORDER_WINDOW
    )


@njit(cache=True)
def offer(state, r):
    """A piece may have become ready."""
    piece = state.pieces[r]
    if not piece.is_in_ring and _may_send(piece):
        into_ring(state, r)
        if not state.ports[piece.source_port].is_busy:
            wake(state, piece.source_port)


@njit(cache=True)
def take_packet(state):
    c = state.c[0]
    k = c.free_packet
    c.free_packet = state.packets[k].next
    c.num_free_packets -= 1
    return k


@njit(cache=True)
def give_packet(state, k):
    c = state.c[0]
    state.packets[k].next = c.free_packet
    c.free_packet = k
    c.num_free_packets += 1


@njit(cache=True)
def _next_packet(state, r):
    """The packet that piece r sends now."""
    piece = state.pieces[r]
    k = take_packet(state)
    packet = state.packets[k]
    packet.piece = r
    packet.seq = piece.next_seq
    packet.covers = 0
    packet.hop = 0
    packet.size = state.c[0].mtu_bytes if piece.next_seq < piece.num_packets - 1 else piece.last_size
    routes.put_route(state, piece, packet)
    piece.next_seq += 1
    piece.in_flight += 1
    routes.draw_path(state, r)
    return k


@njit(cache=True)
def pick_at_source(state, p, now):
    """A source port is free: acknowledgements first, then the piece whose turn it is, which goes to the end."""
    port = state.ports[p]
    port.is_busy = True
    if port.ack_first != NONE:
        k = np.int64(port.ack_first)
        port.ack_first = state.packets[k].next
    elif port.ready_first != NONE:
        r = np.int64(port.ready_first)
        port.ready_first = state.pieces[r].next_ready
        state.pieces[r].is_in_ring = False
        k = _next_packet(state, r)
        offer(state, r)
    else:
        port.is_busy = False
        return
    packet = state.packets[k]
    serialise(state, p, packet.size, now)
    _count(state, p, packet, now)
    packet.time = port.end + port.latency
    packet.next = NONE
    if port.wire_first == NONE:
        port.wire_first = k
        wheel.schedule(state, 2 * p, packet.time)
    else:
        state.packets[port.wire_last].next = k
    port.wire_last = k
    wheel.schedule(state, 2 * p + 1, port.end)
