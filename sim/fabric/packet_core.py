"""The packet core: every packet and every acknowledgement, hop by hop, in whole picoseconds.

Lean ports: unlimited buffers, acknowledgements ahead of data, first come first served in each class. A port's output
is ordered in time, so only its head is in the calendar: when a packet reaches the end of its link, the port's next
packet is chosen among those that had arrived when the one before it ended. One event per hop. A *source port*, where
a NIC's pieces wait for their turn and their windows, decides in an event of its own.

An instant has three phases: deliveries, in order of link; messages that become ready are placed and start; ports
whose serialisation has ended, and source ports that were idle, pick what they send next.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, typeof

from sim.fabric import heap, placing, readiness, wheel
from sim.fabric.fluid_core import BUDGET, FIRED, GROW, IDLE
from sim.fabric.fluid_state import NONE
from sim.fabric.messages import CANCELLED, PENDING
from sim.fabric.packet_state import (
    AT_SWITCH,
    FIXED,
    MOST_HOPS,
    PS_PER_S,
    RANDOM,
    REORDER_WINDOW,
    ROUND_ROBIN,
    SWITCH,
    TOLD_AT_ONCE,
)
from sim.fabric.policies import FUNCTION_TYPE, NO_FABRIC, mix
from sim.fabric.topology import SAME_LEAF


@njit(cache=True)
def picoseconds(time_s):
    return int64(np.rint(time_s * PS_PER_S))


@njit(cache=True)
def seconds(time):
    return time / PS_PER_S


@njit(cache=True)
def refresh_next(state):
    """When the core next has something to do."""
    c = state.c[0]
    next_s = np.inf
    if c.num_ready > 0 or c.num_fired > 0 or c.is_resuming or c.num_woken > 0:
        next_s = c.now_s
    if c.num_agenda > 0:
        next_s = min(next_s, state.agenda_s[0])
    if c.key < c.num_keys:
        next_s = min(next_s, seconds(wheel.key_time(state)))
    else:
        bucket = wheel.next_bucket(state)
        if bucket != wheel.NEVER:
            next_s = min(next_s, seconds(wheel.first_time(state, bucket)))
    c.next_s = next_s


@njit(cache=True)
def admit(state, first, last, now):
    readiness.admit(state, first, last, now)
    refresh_next(state)


# --- routes -----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _append(state, route, n, segment):
    """The links of a segment at route[n:]; returns the new n."""
    for e in range(state.segment_start[segment], state.segment_start[segment + 1]):
        route[n] = state.segment_link[e]
        n += 1
    return n


@njit(cache=True)
def _put_route(state, piece, packet):
    """The links that the piece's next packet takes, as far as its sender decides them."""
    route = packet.route
    if piece.spray == FIXED:
        n = _append(state, route, 0, piece.out)
        if piece.extra != NONE:
            route[n] = piece.extra
            n += 1
        if piece.up != NONE:
            n = _append(state, route, n, piece.up)
            n = _append(state, route, n, piece.down)
        packet.num_hops = _append(state, route, n, piece.into)
        return
    scope = state.scopes[piece.scope]
    if piece.spray == SWITCH:
        n = _append(state, route, 0, piece.out + piece.next_path)
        if piece.scope != SAME_LEAF:
            route[n] = AT_SWITCH
            packet.num_hops = n + 1  # until the switch has decided
        else:
            packet.num_hops = _append(state, route, n, piece.into + piece.next_path)
        return
    plane = state.plane[scope.first_plane + piece.next_path]
    n = _append(state, route, 0, piece.out + plane)
    if piece.scope != SAME_LEAF:
        n = _append(state, route, n, piece.up + piece.next_path)
        n = _append(state, route, n, piece.down + piece.next_path)
    packet.num_hops = _append(state, route, n, piece.into + plane)


@njit(cache=True)
def _decide_at_switch(state, packet):
    """Round robin over the leaf's links up (of the packet's plane), and over the next switch's where there is one.

    The choice of the next switch is made here too, in order of arrival at the leaf rather than at that switch.
    """
    piece = state.pieces[packet.piece]
    scope = state.scopes[piece.scope]
    leaf = state.accelerators[state.messages[piece.message].source].leaf
    plane = np.int64(0)
    if state.c[0].num_planes > 1:
        while _last_link(state, piece.out + plane) != packet.route[packet.hop - 1]:
            plane += 1
    choices = scope.leaf_choices // state.c[0].num_planes
    turn = state.turns[leaf, plane] % choices
    state.turns[leaf, plane] += 1
    path = plane * choices + turn
    if scope.next_choices > 1:
        pod = state.pod_of_leaf[leaf]
        path = turn * scope.next_choices + state.higher_turns[pod, turn] % scope.next_choices
        state.higher_turns[pod, turn] += 1
    n = _append(state, packet.route, packet.hop, piece.up + path)
    n = _append(state, packet.route, n, piece.down + path)
    packet.num_hops = _append(state, packet.route, n, piece.into + plane)


@njit(cache=True)
def _first_link(state, segment):
    return state.segment_link[state.segment_start[segment]]


@njit(cache=True)
def _last_link(state, segment):
    return state.segment_link[state.segment_start[segment + 1] - 1]


@njit(cache=True)
def _draw_path(state, p):
    """Where the sender sends the piece's next packet."""
    piece = state.pieces[p]
    if piece.spray == FIXED:
        return
    choices = state.c[0].num_planes if piece.spray == SWITCH else state.scopes[piece.scope].num_paths
    if piece.spray == RANDOM:
        piece.random += np.uint64(0x9E3779B97F4A7C15)
        piece.next_path = mix(piece.random) % np.uint64(choices)
    elif piece.next_seq > 0:
        piece.next_path = (piece.next_path + 1) % choices
    plane = piece.next_path
    if piece.spray != SWITCH:
        plane = state.plane[state.scopes[piece.scope].first_plane + piece.next_path]
    piece.source_port = _first_link(state, piece.out + plane)


# --- ports ------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _serialise(state, p, size, now):
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
    num_bins = state.series.shape[1]
    for p in range(state.series.shape[0]):
        for i in range(num_bins // 2):
            state.series[p, i] = state.series[p, 2 * i] + state.series[p, 2 * i + 1]
        for i in range(num_bins // 2, num_bins):
            state.series[p, i] = 0
    state.c[0].bin_shift += 1


@njit(cache=True)
def _enter_in_series(state, p, size, begin, end):
    """Spread the bytes over the bins in which they leave."""
    while (end - 1) >> state.c[0].bin_shift >= state.series.shape[1]:
        fold_series(state)
    shift = state.c[0].bin_shift
    first, last = begin >> shift, (end - 1) >> shift
    left = size
    while first < last:
        share = size * (((first + 1) << shift) - max(begin, first << shift)) // (end - begin)
        state.series[p, first] += share
        left -= share
        first += 1
    state.series[p, last] += left


@njit(cache=True)
def _count(state, p, packet, now):
    port = state.ports[p]
    if packet.covers > 0:
        port.ack_packets += 1
    else:
        port.data_packets += 1
        port.payload_bytes += packet.size - state.c[0].header_bytes
        if not port.is_source:
            port.longest_wait = max(port.longest_wait, now - packet.time)


@njit(cache=True)
def _send(state, p, k, now):
    """Ordinary port p starts on packet k."""
    _serialise(state, p, state.packets[k].size, now)
    _count(state, p, state.packets[k], now)
    state.ports[p].wire_first = k
    wheel.schedule(state, 2 * p, state.ports[p].end + state.ports[p].latency)


@njit(cache=True)
def _wake(state, p):
    """Port p picks in this instant's last phase."""
    if not state.ports[p].is_woken:
        state.ports[p].is_woken = True
        state.c[0].num_woken = heap.push(state.woken, state.woken, state.c[0].num_woken, p, p)


@njit(cache=True)
def _queue(state, p, k):
    """Packet k waits at port p, behind others of its class."""
    port = state.ports[p]
    state.packets[k].next = NONE
    if state.packets[k].covers > 0:
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
def _enter(state, p, k, came_over, now):
    """Packet k reaches port p over a link."""
    port = state.ports[p]
    packet = state.packets[k]
    packet.time = now
    packet.came_over = came_over
    if port.is_source:
        _queue(state, p, k)
        if not port.is_busy:
            _wake(state, p)
    elif port.wire_first != NONE or port.ack_first != NONE or port.data_first != NONE:
        _queue(state, p, k)
    elif port.end == now:  # its serialisation ends at this instant, so that others may still come before it picks
        _queue(state, p, k)
        _wake(state, p)
    else:
        _send(state, p, k, now)


@njit(cache=True)
def _pick(state, p):
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
def _into_ring(state, r):
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
def _leave_ring(state, r):
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
def _offer(state, r):
    """A piece may have become ready."""
    piece = state.pieces[r]
    if not piece.is_in_ring and _may_send(piece):
        _into_ring(state, r)
        if not state.ports[piece.source_port].is_busy:
            _wake(state, piece.source_port)


@njit(cache=True)
def _take_packet(state):
    c = state.c[0]
    k = c.free_packet
    c.free_packet = state.packets[k].next
    c.num_free_packets -= 1
    return k


@njit(cache=True)
def _give_packet(state, k):
    c = state.c[0]
    state.packets[k].next = c.free_packet
    c.free_packet = k
    c.num_free_packets += 1


@njit(cache=True)
def _next_packet(state, r):
    """The packet that piece r sends now."""
    piece = state.pieces[r]
    k = _take_packet(state)
    packet = state.packets[k]
    packet.piece = r
    packet.seq = piece.next_seq
    packet.covers = 0
    packet.hop = 0
    packet.size = state.c[0].mtu_bytes if piece.next_seq < piece.num_packets - 1 else piece.last_size
    _put_route(state, piece, packet)
    piece.next_seq += 1
    piece.in_flight += 1
    _draw_path(state, r)
    return k


@njit(cache=True)
def _pick_at_source(state, p, now):
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
        _offer(state, r)
    else:
        port.is_busy = False
        return
    packet = state.packets[k]
    _serialise(state, p, packet.size, now)
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


# --- both ends --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _reorder(state, piece, packet, payload):
    """Enter a packet's arrival in the receiver's books: in-order point, displacement, bytes held out of order."""
    bit = packet.seq % REORDER_WINDOW
    piece.bitmap[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
    piece.displacement = max(piece.displacement, piece.highest - packet.seq)
    piece.highest = max(piece.highest, packet.seq)
    piece.held_bytes += payload
    full = state.c[0].payload_per_packet
    while piece.in_order <= piece.highest:
        bit = piece.in_order % REORDER_WINDOW
        mask = np.uint64(1) << np.uint64(bit & 63)
        if piece.bitmap[bit >> 6] & mask == 0:
            break
        piece.bitmap[bit >> 6] ^= mask
        is_last = piece.in_order == piece.num_packets - 1
        piece.held_bytes -= piece.last_size - state.c[0].header_bytes if is_last else full
        piece.in_order += 1
    piece.most_held_bytes = max(piece.most_held_bytes, piece.held_bytes)


@njit(cache=True)
def _receive(state, k, came_over, now):
    """Packet k has arrived; it turns into an acknowledgement when one is due."""
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    m = np.int64(piece.message)
    message = state.messages[m]
    payload = packet.size - state.c[0].header_bytes
    piece.received += 1
    piece.unanswered += 1
    _reorder(state, piece, packet, payload)
    is_complete = piece.received == piece.num_packets
    if message.outcome == PENDING:
        message.delivered_bytes += payload
        if is_complete:
            message.arrived_s = max(message.arrived_s, seconds(now))
            message.pieces_left -= 1
            if message.pieces_left == 0:
                readiness.finish_message(state, m)
    if piece.unanswered < piece.ack_every and not is_complete and piece.in_order - piece.told < TOLD_AT_ONCE:
        _give_packet(state, k)
        _drain(state, r, now)
        return
    packet.covers = piece.unanswered
    packet.seq = piece.in_order
    piece.unanswered = 0
    piece.told = piece.in_order
    packet.size = state.c[0].header_bytes
    num_hops = 0
    first, last = 0, packet.num_hops - 1
    while first <= last:  # turn the route round, each link into the one the other way
        a, b = state.ports[packet.route[first]].reverse, state.ports[packet.route[last]].reverse
        packet.route[first] = b
        packet.route[last] = a
        first += 1
        last -= 1
    for i in range(packet.num_hops):
        if packet.route[i] != NONE:
            packet.route[num_hops] = packet.route[i]
            num_hops += 1
    packet.num_hops = num_hops
    packet.hop = 0
    _enter(state, packet.route[0], k, came_over, now)


@njit(cache=True)
def _acknowledge(state, k, now):
    """An acknowledgement is back at its sender."""
    packet = state.packets[k]
    r = np.int64(packet.piece)
    piece = state.pieces[r]
    piece.in_flight -= packet.covers
    piece.acknowledged += packet.covers
    piece.known = max(piece.known, packet.seq)
    _give_packet(state, k)
    if piece.acknowledged == piece.num_packets:
        _settle(state, r, now)
    else:
        _drain(state, r, now)
        _offer(state, r)


@njit(cache=True)
def _drain(state, r, now):
    """A cancelled piece ends when nothing of it is under way any more; what was received last was never answered."""
    piece = state.pieces[r]
    is_over = state.messages[piece.message].outcome == CANCELLED
    if is_over and not piece.is_settled and piece.in_flight == piece.unanswered:
        _settle(state, r, now)


@njit(cache=True)
def _settle(state, r, now):
    """A piece is acknowledged whole, or cancelled and gone. With the last one of its message all rows are free."""
    piece = state.pieces[r]
    m = np.int64(piece.message)
    message = state.messages[m]
    piece.is_settled = True
    piece.is_started = False
    message.answered_s = max(message.answered_s, seconds(now))
    message.unanswered -= 1
    flow = state.flows[m]
    flow.num_packets += piece.next_seq
    flow.displacement = max(flow.displacement, piece.displacement)
    flow.held_bytes = max(flow.held_bytes, piece.most_held_bytes)
    if message.unanswered > 0:
        return
    r = np.int64(message.first_piece)
    while r != NONE:
        following = np.int64(state.pieces[r].next_of_message)
        _give_piece(state, r)
        r = following
    message.first_piece = NONE
    key = np.int64(message.transfer)
    state.transfers[key].unanswered -= 1
    if state.transfers[key].unanswered == 0 and state.transfers[key].left == 0:
        readiness.fire(state, readiness.SETTLED - key, seconds(now))


@njit(cache=True)
def _give_piece(state, r):
    c = state.c[0]
    state.pieces[r].message = NONE
    state.pieces[r].next_ready = c.free_piece
    c.free_piece = r
    c.num_free_pieces += 1


@njit(cache=True)
def _deliver(state, p, now):
    """The packet at the end of port p's link: it enters its next port, or is there. Then p's next one."""
    port = state.ports[p]
    k = np.int64(port.wire_first)
    packet = state.packets[k]
    if port.is_source:
        port.wire_first = packet.next
        if port.wire_first != NONE:
            wheel.schedule(state, 2 * p, state.packets[port.wire_first].time)
    packet.hop += 1
    if packet.covers == 0:
        state.c[0].num_hops += 1
    if packet.hop < packet.num_hops:
        if packet.route[packet.hop] == AT_SWITCH:
            _decide_at_switch(state, packet)
        _enter(state, packet.route[packet.hop], k, p, now)
    elif packet.covers > 0:
        _acknowledge(state, k, now)
    else:
        _receive(state, k, p, now)
    if not port.is_source:
        if port.latency == 0:
            port.wire_first = NONE
            _wake(state, p)
        else:
            _pick(state, p)


# --- placing ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _window_packets(state, piece):
    """window · rate · base round trip / mtu, rounded up, of an idle network: one full packet there, its answer back."""
    c = state.c[0]
    if c.window_packets > 0:
        return c.window_packets
    sample = np.zeros(MOST_HOPS, np.int64)
    n = _append(state, sample, 0, piece.out)
    slowest = min(state.ports[sample[0]].rate, state.ports[sample[n - 1]].rate)
    if piece.extra != NONE:
        sample[n] = piece.extra
        n += 1
    if piece.up != NONE:
        n = _append(state, sample, n, piece.up)
        n = _append(state, sample, n, piece.down)
    n = _append(state, sample, n, piece.into)
    slowest = min(slowest, state.ports[sample[n - 1]].rate)
    round_trip = 0.0
    for i in range(n):
        port = state.ports[sample[i]]
        round_trip += port.full_time + port.latency
        if port.reverse != NONE:
            back = state.ports[port.reverse]
            round_trip += c.header_bytes * 8e12 / back.rate + back.latency
    return max(int64(np.ceil(c.window_bdp * slowest * round_trip / PS_PER_S / (8 * c.mtu_bytes))), 1)


@njit(cache=True)
def _new_piece(state, m, payload_bytes, spray, scope, out, up, down, into, extra):
    """A piece of message m; up and down are NONE where it stays on one leaf."""
    c = state.c[0]
    r = c.free_piece
    piece = state.pieces[r]
    c.free_piece = np.int64(piece.next_ready)
    c.num_free_pieces -= 1
    message = state.messages[m]
    piece.message = m
    piece.next_of_message = message.first_piece
    message.first_piece = r
    if message.unanswered == 0:
        state.transfers[message.transfer].unanswered += 1
    message.pieces_left += 1
    message.num_pieces = min(message.num_pieces + 1, 32767)
    message.unanswered += 1
    piece.num_packets = max((payload_bytes + c.payload_per_packet - 1) // c.payload_per_packet, 1)
    piece.last_size = payload_bytes - (piece.num_packets - 1) * c.payload_per_packet + c.header_bytes
    piece.next_seq = 0
    piece.in_flight = 0
    piece.acknowledged = 0
    piece.known = 0
    piece.is_in_ring = False
    piece.is_started = False
    piece.is_settled = False
    piece.spray = spray
    piece.scope = scope
    piece.out = out
    piece.up = up
    piece.down = down
    piece.into = into
    piece.extra = extra
    piece.received = 0
    piece.unanswered = 0
    piece.in_order = 0
    piece.told = 0
    piece.highest = -1
    piece.displacement = 0
    piece.held_bytes = 0
    piece.most_held_bytes = 0
    for i in range(REORDER_WINDOW // 64):
        piece.bitmap[i] = 0
    piece.window = _window_packets(state, piece)
    piece.ack_every = min(c.ack_every, piece.window)
    piece.source_port = _first_link(state, out)
    if spray != FIXED:
        state.paths.random[0] += np.uint64(0x9E3779B97F4A7C15)
        piece.random = mix(state.paths.random[0])
        choices = c.num_planes if spray == SWITCH else state.scopes[scope].num_paths
        piece.next_path = 0
        if spray in (ROUND_ROBIN, SWITCH):
            piece.next_path = piece.random % np.uint64(choices)
        _draw_path(state, r)


@njit(cache=True)
def _place_routed(state, num_direct, k):
    """The piece that the policy has put at placed[k]."""
    placed = state.placed[k]
    entry = state.batch[placed.entry]
    m = state.waiting[num_direct + placed.entry]
    out, up, down, into, _ = placing.placed_route(state, k)
    if placed.path_up == NO_FABRIC:
        nic = state.accelerators[entry.source].nic
        plane = state.c[0].num_planes
        _new_piece(
            state, m, placed.payload_bytes, FIXED, entry.scope, out - plane, NONE, NONE, into - plane,
            state.crossing[nic, entry.scope],
        )  # fmt: skip
    elif placed.path_up == entry.num_paths:
        plane = state.c[0].num_planes
        first_up, first_down = NONE, NONE
        if entry.scope != SAME_LEAF:
            first_up, first_down = up - entry.num_paths, down - entry.num_paths
        _new_piece(
            state, m, placed.payload_bytes, state.c[0].spray, entry.scope, out - plane, first_up, first_down,
            into - plane, NONE,
        )  # fmt: skip
    else:
        _new_piece(state, m, placed.payload_bytes, FIXED, entry.scope, out, up, down, into, NONE)


@njit(cache=True)
def _refresh_outstanding(state):
    """Bytes placed on each link and not yet acknowledged, for policies that look."""
    for link in range(len(state.paths.outstanding)):
        state.paths.outstanding[link] = 0.0
    for r in range(len(state.pieces)):
        piece = state.pieces[r]
        if piece.message == NONE or piece.spray != FIXED or piece.is_settled:
            continue
        left = float(piece.num_packets - piece.acknowledged) * state.c[0].mtu_bytes
        for segment in (piece.out, piece.up, piece.down, piece.into):
            if segment != NONE:
                for e in range(state.segment_start[segment], state.segment_start[segment + 1]):
                    state.paths.outstanding[state.segment_link[e]] += left


@njit(cache=True)
def _start(state, m, now_s, delay_s):
    start_s = placing.first_byte_s(state, m, now_s, delay_s)
    if start_s > now_s:
        readiness.push(state, start_s, 2 * m + 1)
    else:
        _activate(state, m, now_s)


@njit(cache=True)
def _activate(state, m, now_s):
    """The pieces of message m may send."""
    state.messages[m].started_s = now_s
    r = np.int64(state.messages[m].first_piece)
    while r != NONE:
        state.pieces[r].is_started = True
        _offer(state, r)
        r = np.int64(state.pieces[r].next_of_message)


@njit(cache=True)
def _place_batch(state, choose, now_s):
    """Let the policy place what is ready. False when there is no room: needed_pieces says for how many."""
    c = state.c[0]
    if c.is_live:
        _refresh_outstanding(state)
    num_direct, num_routed, num_placed = placing.decide(state, choose)
    if num_placed < 0:
        c.needed_pieces = -num_placed
        return False
    for i in range(num_direct):
        m = state.waiting[i]
        out, _, _, into = placing.direct_route(state, m)
        _new_piece(state, m, state.messages[m].size_bytes, FIXED, SAME_LEAF, out, NONE, NONE, into, NONE)
    for k in range(num_placed):
        _place_routed(state, num_direct, k)
    for i in range(num_direct):
        _start(state, state.waiting[i], now_s, 0.0)
    for i in range(num_routed):
        _start(state, state.waiting[num_direct + i], now_s, state.batch[i].start_delay_s)
    c.num_batch = 0
    return True


# --- the loop ---------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _run_agenda(state, now):
    """Messages whose time has come, and those that they let go at this instant."""
    c = state.c[0]
    for i in range(c.num_ready):
        c.num_events += 1
        readiness.make_ready(state, state.ready[i], c.now_s)
    c.num_ready = 0
    while c.num_agenda > 0 and picoseconds(state.agenda_s[0]) <= now:
        code = state.agenda_code[0]
        c.num_agenda = heap.pop(state.agenda_s, state.agenda_code, c.num_agenda)
        c.num_events += 1
        m = readiness.handle(state, code, c.now_s)
        if m != NONE:
            _activate(state, m, c.now_s)


@njit(cache=True)
def _deliveries(state, now):
    """First phase: packets that reach the end of a link."""
    c = state.c[0]
    while c.key < c.num_keys and wheel.key_time(state) == now:
        key = state.keys[c.key]
        if key & wheel.PHASE:
            return
        c.key += 1
        c.num_events += 1
        _deliver(state, key & (wheel.PHASE - 1), now)


@njit(cache=True)
def _picks(state, now):
    """Last phase: ports that are free pick, in order of port, those woken by another's pick included."""
    c = state.c[0]
    while True:
        p = NONE
        if c.key < c.num_keys and wheel.key_time(state) == now:
            p = state.keys[c.key] & (wheel.PHASE - 1)
        if c.num_woken > 0 and (p == NONE or state.woken[0] < p):
            p = state.woken[0]
            c.num_woken = heap.pop(state.woken, state.woken, c.num_woken)
            state.ports[p].is_woken = False
            if not state.ports[p].is_source:
                if state.ports[p].wire_first == NONE:
                    _pick(state, p)
                continue
            if state.ports[p].is_busy:
                continue
        elif p == NONE:
            return
        else:
            c.key += 1
            c.num_events += 1
        _pick_at_source(state, p, now)


@njit(cache=True)
def _next_time(state, until_s):
    """(the next instant in ps or NEVER, whether the wheel's next bucket must be emptied first)."""
    c = state.c[0]
    agenda = wheel.NEVER
    if c.num_agenda > 0:
        agenda = max(picoseconds(state.agenda_s[0]), c.now)
    if c.num_ready > 0 or c.num_woken > 0 or c.is_resuming:
        agenda = max(picoseconds(c.now_s), c.now)
    if c.key < c.num_keys:
        return min(wheel.key_time(state), agenda), False
    bucket = wheel.next_bucket(state)
    if bucket != wheel.NEVER and bucket << c.shift <= agenda and seconds(bucket << c.shift) <= until_s:
        wheel.empty(state, bucket)
        return min(wheel.key_time(state), agenda), True
    if bucket != wheel.NEVER and bucket << c.shift <= agenda:
        return wheel.NEVER, False  # it lies beyond `until_s`
    if agenda != wheel.NEVER and agenda >> c.shift > c.bucket and seconds(agenda) <= until_s:
        wheel.move_to(state, agenda >> c.shift)
        c.num_keys = 0
        c.key = 0
    return agenda, False


def _advance(state, choose, until_s, max_events):
    """Run every instant up to and including `until_s`; returns why it stopped (IDLE, FIRED, BUDGET, GROW)."""
    c = state.c[0]
    budget = c.num_events + max_events
    while True:
        now, _ = _next_time(state, until_s)
        if now == wheel.NEVER or seconds(now) > until_s:
            refresh_next(state)
            return IDLE
        if c.num_free_packets <= c.num_sources:
            refresh_next(state)
            return GROW
        if now > c.now:
            c.now = now
            c.now_s = seconds(now)
        if not c.is_resuming:
            _deliveries(state, now)
            _run_agenda(state, now)
        c.is_resuming = False
        while c.num_batch > 0:
            if not _place_batch(state, choose, c.now_s):
                c.is_resuming = True
                return GROW
            _run_agenda(state, now)
        _picks(state, now)
        if c.num_fired > 0:
            refresh_next(state)
            return FIRED
        if c.num_events >= budget:
            refresh_next(state)
            return BUDGET


_compiled: dict[object, object] = {}


def advance_for(state):
    """The compiled loop for this state's types; the policy enters as a first-class function."""
    kind = typeof(state)
    if kind not in _compiled:
        _compiled[kind] = njit(int64(kind, FUNCTION_TYPE, float64, int64), cache=True)(_advance)
    return _compiled[kind]


@njit(cache=True)
def cancel(state, m, now_s):
    """The sender stops: what is on its way drains, and counts as cancelled."""
    message = state.messages[m]
    if message.outcome != PENDING:
        return
    message.outcome = CANCELLED
    now = max(picoseconds(now_s), state.c[0].now)
    state.c[0].now_s = max(state.c[0].now_s, now_s)
    r = np.int64(message.first_piece)
    while r != NONE:
        following = np.int64(state.pieces[r].next_of_message)
        if state.pieces[r].is_in_ring:
            _leave_ring(state, r)
        state.pieces[r].is_started = False
        _drain(state, r, now)
        r = following
    readiness.close_message(state, m, now_s)
    refresh_next(state)
