"""Ports of the packet core: what waits at them, what they send next, and when it is at the end of the link.

An ordinary port picks when its packet has been delivered, as of the moment that it could have started on the next
one. A source port picks when its serialisation ends: pieces wait there for their turn and for room in their windows.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import heap, packet_log, wheel
from sim.fabric import packet_routes as routes
from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import AT_SWITCH, BUSY, PS_PER_S, REORDER_WINDOW, wait_bin
from sim.fabric.state_reference import prefetch


@inner(forceinline=True)
def pace_of(state, p):
    return state.paces[state.ports[p].pace]


@inner(forceinline=True)
def serialise(state, p, size, now):
    """Start on `size` bytes and say when the last bit leaves; what a division leaves is carried while packets are
    back to back:  duration, remainder = divmod(bits 10^12 + remainder, rate)."""
    port = state.ports[p]
    pace = state.paces[port.pace]
    carried = port.remainder if port.end == now else 0
    if size == state.c[0].mtu_bytes:
        duration, left = pace.full_time, pace.full_remainder + carried
    elif size == state.c[0].header_bytes:
        duration, left = pace.header_time, pace.header_remainder + carried
    else:
        bits_ps = size * 8 * PS_PER_S
        duration = bits_ps // pace.rate
        left = bits_ps - duration * pace.rate + carried
    if left >= pace.rate:
        duration += 1
        left -= pace.rate
    port.remainder = left
    port.end = now + duration
    _enter_in_series(state, p, size, now, port.end)


@inner
def fold_series(state):
    """The time series has run out of bins: make them twice as wide."""
    num_bins = state.series.shape[0]
    for i in range(num_bins // 2):
        for p in range(state.series.shape[1]):
            early, late, both = state.series[2 * i, p], state.series[2 * i + 1, p], state.series[i, p]
            both.bytes, both.wait = early.bytes + late.bytes, max(early.wait, late.wait)
    for i in range(num_bins // 2, num_bins):
        for p in range(state.series.shape[1]):
            state.series[i, p].bytes = 0
            state.series[i, p].wait = 0
    state.c[0].bin_shift += 1


@inner(inline="always")
def _enter_in_series(state, p, size, begin, end):
    """Spread the bytes over the bins in which they leave."""
    shift = state.c[0].bin_shift
    first, last = begin >> shift, (end - 1) >> shift
    if first < last or last >= state.series.shape[0]:
        size = _spread(state, p, size, begin, end)
        last = (end - 1) >> state.c[0].bin_shift
    state.series[last, p].bytes += size


@inner
def _spread(state, p, size, begin, end):
    """Enter all but what leaves in the last bin, and return that."""
    while (end - 1) >> state.c[0].bin_shift >= state.series.shape[0]:
        fold_series(state)
    shift = state.c[0].bin_shift
    first, last = begin >> shift, (end - 1) >> shift
    left = size
    while first < last:
        share = size * (((first + 1) << shift) - max(begin, first << shift)) // (end - begin)
        state.series[first, p].bytes += share
        left -= share
        first += 1
    return left


@inner(forceinline=True)
def count_wait(state, p, wait, now):
    """A data packet has waited at an ordinary port until now."""
    state.waits[wait_bin(wait)] += 1
    series = state.series[now >> state.c[0].bin_shift, p]
    series.wait = max(series.wait, wait)


@inner(forceinline=True)
def _count(state, p, packet, now):
    """Enter packet, whose serialisation at port p has begun, in the books."""
    port = state.ports[p]
    if len(state.log) > 0:
        packet_log.note(state, p, packet, 1 if packet.covers > 0 else 0, False, now, packet_log.SENT)
    if packet.covers > 0:
        port.ack_packets += 1
        return
    port.data_packets += 1
    if not port.is_source:
        count_wait(state, p, now - packet.time, now)


@inner(forceinline=True)
def _send(state, p, k, now):
    """Ordinary port p starts on packet k."""
    serialise(state, p, state.packets[k].size, now)
    _count(state, p, state.packets[k], now)
    state.ports[p].wire_first = k
    wheel.schedule(state, 2 * p, state.ports[p].end + pace_of(state, p).latency)


@inner(inline="always")
def _fetch_packets(state, p, is_delivery):
    """Have the packets that an event at port p is about brought into the cache."""
    port = state.ports[p]
    if is_delivery and port.wire_first != NONE:
        prefetch(state.packets, port.wire_first, 1)  # type: ignore[call-arg]
    if port.data_first != NONE:
        prefetch(state.packets, port.data_first, 1)  # type: ignore[call-arg]
    if port.ack_first != NONE:
        prefetch(state.packets, port.ack_first, 1)  # type: ignore[call-arg]


@inner(inline="always")
def look_ahead(state, i):
    """Have what the events in hand after the i-th need brought into the cache: first their ports, then those ports'
    packets, then the ports or pieces that these come to.

    A large fabric does not fit into it, and events come in no order of memory.
    """
    c = state.c[0]
    if i + 16 < c.num_keys:
        prefetch(state.ports, state.keys[i + 16] & (wheel.PHASE - 1), 2)  # type: ignore[call-arg]
    if i + 8 < c.num_keys:
        _fetch_packets(state, state.keys[i + 8] & (wheel.PHASE - 1), state.keys[i + 8] & wheel.PHASE == 0)
    if i + 4 < c.num_keys and state.keys[i + 4] & wheel.PHASE == 0:
        packet = state.packets[state.ports[state.keys[i + 4] & (wheel.PHASE - 1)].wire_first]
        if packet.hop + 1 < packet.num_hops and packet.route[packet.hop + 1] >= 0:
            prefetch(state.ports, packet.route[packet.hop + 1], 2)  # type: ignore[call-arg]
        else:
            prefetch(state.pieces, packet.piece, 2)  # type: ignore[call-arg]


@inner(forceinline=True)
def wake(state, p):
    """Port p picks in this instant's last phase."""
    if not state.ports[p].is_woken:
        state.ports[p].is_woken = True
        state.c[0].num_woken = heap.push(state.woken, state.woken, state.c[0].num_woken, p, p)


@inner(forceinline=True)
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


@inner(forceinline=True)
def enter(state, p, k, came_over, now):
    """Packet k reaches port p over a link."""
    port = state.ports[p]
    packet = state.packets[k]
    packet.time = now
    packet.came_over = came_over
    if port.is_source:
        queue(state, p, k, packet.covers > 0)
        if port.serving == NONE:
            wake(state, p)
    elif port.wire_first != NONE or port.ack_first != NONE or port.data_first != NONE:
        queue(state, p, k, packet.covers > 0)
    elif port.end == now:  # its serialisation ends at this instant, so that others may still come before it picks
        queue(state, p, k, packet.covers > 0)
        wake(state, p)
    else:
        _send(state, p, k, now)


@inner(forceinline=True)
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


@inner(forceinline=True)
def into_ring(state, r):
    """Piece r waits for its turn at its source port."""
    piece = state.pieces[r]
    piece.is_in_ring = True
    piece.next_ready = NONE
    ring = state.rings[piece.source_port]
    if ring.first == NONE:
        ring.first = r
    else:
        state.pieces[ring.last].next_ready = r
    ring.last = r


@inner(forceinline=True)
def next_in_ring(state, p):
    """The piece whose turn it is leaves the ring of source port p."""
    ring = state.rings[p]
    r = np.int64(ring.first)
    ring.first = state.pieces[r].next_ready
    state.pieces[r].is_in_ring = False
    return r


@inner
def leave_ring(state, r):
    """A cancelled piece gives up its turn."""
    ring = state.rings[state.pieces[r].source_port]
    before, other = NONE, np.int64(ring.first)
    while other != r:
        before, other = other, np.int64(state.pieces[other].next_ready)
    following = state.pieces[r].next_ready
    if before == NONE:
        ring.first = following
    else:
        state.pieces[before].next_ready = following
    if following == NONE:
        ring.last = before
    state.pieces[r].is_in_ring = False


@inner(inline="always")
def _may_send(piece):
    return (
        piece.is_started
        and piece.next_seq < piece.num_packets
        and piece.in_flight < piece.window
        and piece.next_seq - piece.known < REORDER_WINDOW
    )


@inner(forceinline=True)
def offer(state, r):
    """A piece may have become ready."""
    piece = state.pieces[r]
    if not piece.is_in_ring and _may_send(piece):
        into_ring(state, r)
        if state.ports[piece.source_port].serving == NONE:
            wake(state, np.int64(piece.source_port))


@inner(forceinline=True)
def take_packet(state):
    c = state.c[0]
    k = c.free_packet
    c.free_packet = state.packets[k].next
    c.num_free_packets -= 1
    return k


@inner(forceinline=True)
def give_packet(state, k):
    c = state.c[0]
    state.packets[k].next = c.free_packet
    c.free_packet = k
    c.num_free_packets += 1


@inner(inline="always")
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


@inner(inline="always")
def goes_early(state, p, packet):
    """Whether a packet that source port p sends enters its next port as soon as it is sent."""
    if packet.num_hops < 2:
        return False
    following = packet.route[1]
    return state.is_early[p if following == AT_SWITCH else following]


@inner
def pick_at_source(state, p, now):
    """A source port is free: acknowledgements first, then the piece whose turn it is, which goes to the end."""
    port = state.ports[p]
    if port.ack_first != NONE:
        k = np.int64(port.ack_first)
        port.ack_first = state.packets[k].next
    elif state.rings[p].first != NONE:
        r = next_in_ring(state, p)
        k = _next_packet(state, r)
        port.serving = BUSY
        offer(state, r)
    else:
        return
    packet = state.packets[k]
    serialise(state, p, packet.size, now)
    _count(state, p, packet, now)
    wheel.schedule(state, 2 * p + 1, port.end)
    if goes_early(state, p, packet):
        port.serving = k
        return
    port.serving = BUSY
    time = port.end + pace_of(state, p).latency
    packet.next = NONE
    if port.wire_first == NONE:
        port.wire_first = k
        wheel.schedule(state, 2 * p, time)
    else:
        state.packets[port.wire_last].next = k
        state.packets[port.wire_last].time = time
    port.wire_last = k


@inner
def finish_at_source(state, p, now):
    """A source port has sent a packet's last bit. Where all packets come over equally long links from such ports,
    they come in the order in which they were sent: they enter the next port now, with the time of their arrival."""
    port = state.ports[p]
    k = np.int64(port.serving)
    port.serving = NONE
    if k == BUSY:
        return
    packet = state.packets[k]
    packet.hop = 1
    if packet.covers == 0:
        state.c[0].num_hops += 1
    if packet.route[1] == AT_SWITCH:
        routes.decide_at_switch(state, packet)
    enter(state, np.int64(packet.route[1]), k, p, now + pace_of(state, p).latency)
