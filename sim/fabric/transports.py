"""Transports of the full packet core: what a sender may have under way, and what marks, delay and loss do to it.

    window  a fixed window
    dctcp   window, reduced by the share of marked packets (Alizadeh et al. 2010; RFC 8257)
    dcqcn   rate, reduced by notices of marks, for RoCE on lossless Ethernet (Zhu et al. 2015)
    swift   window, held to a target of queueing delay (Kumar et al. 2020)
    nscc    window, steered by delay and marks together, as in Ultra Ethernet's NSCC (UE specification 1.0, 3.6.13)
    ndp     credit from the receiver, one packet per packet that leaves its link (Handley et al. 2017; EQDS 2022)

To add one: a number in full_state.TRANSPORTS, what it does in `begin`, `on_ack` and `on_timeout`, a schema entry and
a test. Sizes in bytes, times in ps. Left out: slow start (every transport begins with its first window, as RDMA does).
"""

from __future__ import annotations

from math import sqrt

from numba import int64

from models.compiled import inner
from sim.fabric import packet_ports as lean
from sim.fabric.full_state import DCQCN, DCTCP, NDP, NSCC, SWIFT, WINDOW
from sim.fabric.packet_state import REORDER_WINDOW

US = 10**6
DCTCP_GAIN = 1.0 / 16.0

NOTICE_INTERVAL = 50 * US
"""DCQCN: a receiver tells a sender of marks at most so often."""
DCQCN_GAIN = 1.0 / 256.0
DCQCN_PERIOD = 55 * US
DCQCN_BYTES = 10_000_000
FAST_RECOVERY = 5
ADDITIVE_SHARE, HYPER_SHARE = 1e-3, 1e-2
"""Of the line rate; the paper's 40 Mbit/s on 40 Gbit/s, and ten times as much."""
LEAST_RATE_SHARE = 1e-3

SWIFT_TARGET = 0.5
"""Queueing delay aimed at, in base round trips; below, cwnd grows by a packet per round trip."""
SWIFT_BETA, SWIFT_MOST_DECREASE = 0.8, 0.5
SWIFT_RANGE, SWIFT_FEW, SWIFT_MANY = 1.0, 0.1, 100.0
"""Flow scaling: up to SWIFT_RANGE base round trips more for a window of SWIFT_FEW packets, none from SWIFT_MANY on."""
SWIFT_LEAST = 1.0 / 64.0

NSCC_TARGET = 0.75
"""Queueing delay aimed at, in base round trips (with trimming; 1 without, here 0.75 throughout)."""
NSCC_ROUND_TRIP = 12 * US
NSCC_PRODUCT = 150_000
"""The network that the constants below are for: 100 Gbit/s times 12 us."""
NSCC_GAMMA = 0.8
NSCC_SMOOTHING = 0.0125
NSCC_FAST_SCALE = 0.25
NSCC_MOST = 1.5
"""Largest window, in bandwidth-delay products."""


@inner
def begin(state, r):
    """A piece starts: its first window."""
    c = state.c[0]
    piece = state.pieces[r]
    piece.cwnd = piece.window * c.mtu_bytes
    piece.alpha = 1.0
    piece.window_end = 0
    piece.window_acked = 0
    piece.window_marked = 0
    piece.is_reduced = False
    piece.last_decrease = 0
    piece.last_increase = c.now
    piece.last_marked = c.now
    piece.increases = 0
    piece.gathered = 0.0
    piece.gathered_bytes = 0.0
    piece.delay = 0.0
    piece.credit = piece.window
    piece.rate = lean.pace_of(state, piece.source_port).rate / 8e12
    piece.target_rate = piece.rate
    if c.transport == DCQCN or c.transport == NDP:
        piece.cwnd = REORDER_WINDOW * c.mtu_bytes


@inner(forceinline=True)
def packets_allowed(state, piece):
    if piece.is_careful:
        return 1
    return max(int64(piece.cwnd / state.c[0].mtu_bytes), 1)


@inner(inline="always")
def waits_for_ack(state, piece):
    """Whether the packet that goes out now asks for an answer at once: it fills a window that moves, or `ack_every`
    packets take longer than a round trip. A window that shrinks could otherwise wait for an answer that is never due.
    """
    c = state.c[0]
    if c.transport == WINDOW:
        return False
    if c.transport == DCQCN and piece.rate * piece.base_rtt < piece.ack_every * c.mtu_bytes:
        return True
    return piece.in_flight >= packets_allowed(state, piece)


@inner(inline="always")
def sent(state, r, size, now):
    """A packet leaves: when the next one may, where the transport paces."""
    c = state.c[0]
    piece = state.pieces[r]
    if c.transport == DCQCN:
        _recover(state, r, now)
        piece.gathered_bytes += size
        if piece.rate < piece.target_rate or piece.rate < lean.pace_of(state, piece.source_port).rate / 8e12:
            piece.next_send = max(piece.next_send, now) + int64(size / piece.rate)
    elif c.transport == NDP:
        piece.credit -= 1
    elif c.transport == SWIFT and piece.cwnd < c.mtu_bytes:
        piece.next_send = now + int64((piece.base_rtt + piece.delay) * c.mtu_bytes / piece.cwnd)


@inner(forceinline=True)
def on_ack(state, r, newly, marks, delay, is_loss, now):
    """`newly` packets are acknowledged, `marks` of them marked, after a queueing delay; is_loss: a gap was seen."""
    transport = state.c[0].transport
    if transport == DCTCP:
        _dctcp(state, state.pieces[r], newly, marks, is_loss)
    elif transport == DCQCN:
        _recover(state, r, now)
        if marks > 0:
            _notice(state, r, now)
    elif transport == SWIFT:
        _swift(state, state.pieces[r], newly, delay, is_loss, now)
    elif transport == NSCC:
        _nscc(state, state.pieces[r], newly, marks, delay, now)


@inner
def on_trim(state, r):
    """A packet lost its payload."""
    if state.c[0].transport == NSCC:
        piece = state.pieces[r]
        piece.cwnd = max(piece.cwnd - state.c[0].mtu_bytes, float(state.c[0].mtu_bytes))


@inner
def on_timeout(state, r, num_lost, now):
    """Nothing was acknowledged for the retransmission timeout."""
    c = state.c[0]
    piece = state.pieces[r]
    if c.transport == DCTCP or c.transport == SWIFT:
        piece.cwnd = float(c.mtu_bytes)
    elif c.transport == NSCC:
        piece.cwnd = max(piece.cwnd - num_lost * c.mtu_bytes, float(c.mtu_bytes))
    elif c.transport == NDP:
        piece.credit += num_lost
    piece.last_decrease = now


@inner
def _dctcp(state, piece, newly, marks, is_loss):
    """alpha <- (1 - g) alpha + g F per window, F the marked share; one cut by alpha / 2 per window with marks."""
    mtu = float(state.c[0].mtu_bytes)
    piece.window_acked += newly
    piece.window_marked += marks
    if is_loss and not piece.is_reduced:
        piece.cwnd = piece.cwnd * 0.5
        piece.is_reduced = True
    elif marks > 0 and not piece.is_reduced:
        piece.cwnd = piece.cwnd * (1.0 - piece.alpha * 0.5)
        piece.is_reduced = True
    elif marks == 0:
        piece.cwnd = piece.cwnd + mtu * (newly * mtu) / piece.cwnd
    piece.cwnd = min(max(piece.cwnd, mtu), REORDER_WINDOW * mtu)
    if piece.known >= piece.window_end:
        if piece.window_acked > 0:
            share = min(piece.window_marked / piece.window_acked, 1.0)
            piece.alpha = (1.0 - DCTCP_GAIN) * piece.alpha + DCTCP_GAIN * share
        piece.window_end = piece.next_seq
        piece.window_acked = 0
        piece.window_marked = 0
        piece.is_reduced = False


@inner
def _recover(state, r, now):
    """DCQCN between notices: alpha fades, and the rate climbs back, each `DCQCN_PERIOD` and each `DCQCN_BYTES`."""
    piece = state.pieces[r]
    line = lean.pace_of(state, piece.source_port).rate / 8e12
    while now - piece.last_marked >= DCQCN_PERIOD:
        piece.last_marked += DCQCN_PERIOD
        piece.alpha = (1.0 - DCQCN_GAIN) * piece.alpha
    while True:
        if now - piece.last_increase >= DCQCN_PERIOD:
            piece.last_increase += DCQCN_PERIOD
            piece.increases += 1
        elif piece.gathered_bytes >= DCQCN_BYTES:
            piece.gathered_bytes -= DCQCN_BYTES
            piece.gathered += 1.0
        else:
            return
        if piece.rate == line and piece.target_rate == line:
            continue
        if min(piece.increases, piece.gathered) > FAST_RECOVERY:
            piece.target_rate += HYPER_SHARE * line
        elif max(piece.increases, piece.gathered) > FAST_RECOVERY:
            piece.target_rate += ADDITIVE_SHARE * line
        piece.target_rate = min(piece.target_rate, line)
        piece.rate = (piece.rate + piece.target_rate) / 2.0


@inner
def _notice(state, r, now):
    """DCQCN: the receiver has told of marks."""
    piece = state.pieces[r]
    line = lean.pace_of(state, piece.source_port).rate / 8e12
    piece.target_rate = piece.rate
    piece.rate = max(piece.rate * (1.0 - piece.alpha / 2.0), LEAST_RATE_SHARE * line)
    piece.alpha = (1.0 - DCQCN_GAIN) * piece.alpha + DCQCN_GAIN
    piece.last_marked = now
    piece.last_increase = now
    piece.increases = 0
    piece.gathered = 0.0
    piece.gathered_bytes = 0.0


@inner
def _swift(state, piece, newly, delay, is_loss, now):
    """Below the target: a packet per round trip more. Above: at most once per round trip
    cwnd (1 - beta (delay - target) / delay), never below half."""
    mtu = float(state.c[0].mtu_bytes)
    piece.delay = delay
    packets = piece.cwnd / mtu
    scale = SWIFT_RANGE / (1.0 / sqrt(SWIFT_FEW) - 1.0 / sqrt(SWIFT_MANY))
    more = min(max(scale / sqrt(packets) - scale / sqrt(SWIFT_MANY), 0.0), SWIFT_RANGE)
    target = (SWIFT_TARGET + more) * piece.base_rtt
    may_decrease = now - piece.last_decrease >= piece.base_rtt + delay
    if is_loss and may_decrease:
        piece.cwnd *= SWIFT_MOST_DECREASE
        piece.last_decrease = now
    elif delay < target:
        piece.cwnd += mtu * newly / max(packets, 1.0)
    elif may_decrease:
        piece.cwnd *= max(1.0 - SWIFT_BETA * (delay - target) / delay, SWIFT_MOST_DECREASE)
        piece.last_decrease = now
    piece.cwnd = min(max(piece.cwnd, SWIFT_LEAST * mtu), REORDER_WINDOW * mtu)


@inner
def _nscc(state, piece, newly, marks, delay, now):
    """Four cases by mark and delay: unmarked and below target, grow by the distance; unmarked and above, grow
    fairly; marked and above, shrink by the average delay's excess; marked and below, wait (the path changes)."""
    mtu = float(state.c[0].mtu_bytes)
    round_trip = float(piece.base_rtt)
    product = lean.pace_of(state, piece.source_port).rate / 8e12 * round_trip
    target = NSCC_TARGET * round_trip
    speed = product / NSCC_PRODUCT
    size = newly * mtu
    seen = 0.25 * round_trip if marks == 0 and delay > target else delay  # an unmarked long queue is draining
    piece.delay += NSCC_SMOOTHING * (seen - piece.delay)
    if marks == 0 and delay < target:
        if delay < 0.1 * round_trip:
            piece.gathered_bytes += size
        else:
            piece.gathered_bytes = 0.0
        if piece.gathered_bytes > piece.cwnd:  # a whole window without a queue
            piece.cwnd += size * NSCC_FAST_SCALE * speed
        else:
            piece.gathered += 4.0 * mtu * speed / NSCC_ROUND_TRIP * size * (target - delay)
    elif marks == 0:
        piece.gathered += 5.0 * mtu * speed * size
    elif delay >= target:
        piece.gathered_bytes = 0.0
        if piece.delay > target and now - piece.last_decrease > piece.base_rtt:
            piece.cwnd *= max(1.0 - NSCC_GAMMA * (piece.delay - target) / piece.delay, 0.5)
            piece.last_decrease = now
    piece.window_acked += newly
    most = max(NSCC_MOST * product, 2.0 * mtu)
    piece.cwnd = min(max(piece.cwnd, mtu), most)
    if piece.window_acked > 8 or now - piece.last_increase > piece.base_rtt:
        piece.cwnd += piece.gathered / piece.cwnd
        piece.gathered = 0.0
        piece.window_acked = 0
        if now - piece.last_increase > piece.base_rtt:
            piece.cwnd += 0.15 * mtu * speed
            piece.last_increase = now
        piece.cwnd = min(max(piece.cwnd, mtu), most)
