"""The arrays the packet core lives in. Times are whole picoseconds, sizes whole bytes, rates whole bits per second."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int64, njit

from models.compiled import inner
from sim.fabric.fluid_state import NONE
from sim.fabric.policies import PathNetwork
from sim.fabric.state_reference import CACHE_LINE, StatePointer, StateType, borrowed, define
from sim.fabric.topology import Topology

PS_PER_S = 10**12
MOST_HOPS = 7
"""Links of the longest route: NIC injection, host, two up, two down, host."""

AT_SWITCH = -2
"""In a route: the switch that the packet reaches decides how to go on."""

REORDER_WINDOW = 1024
"""Packets that a sender may be ahead of the in-order point it knows: what a receiver's bitmap holds."""

TOLD_AT_ONCE = REORDER_WINDOW // 2
"""An in-order point that has moved on by this much is acknowledged at once, lest the sender waits for ever."""


def in_lines(fields: list[tuple]) -> np.dtype:
    """A record of whole cache lines, so that an aligned array of them never shares a line between two."""
    found = np.dtype(fields, align=True)
    names = list(found.names or ())
    places = [found.fields[name] for name in names]  # type: ignore[index]
    size = -(-found.itemsize // CACHE_LINE) * CACHE_LINE
    return np.dtype({"names": names, "formats": [place[0] for place in places],
                     "offsets": [place[1] for place in places], "itemsize": size})  # fmt: skip


PACKET_FIELDS = [
    ("time", "i8"),  # it entered its port; on a wire: when the packet behind it will be delivered
    ("next", "i4"),  # in a queue, on a wire, or free
    ("piece", "i4"),
    ("seq", "i4"),  # of an acknowledgement: the in-order point
    ("size", "i4"),  # bytes on the wire
    ("came_over", "i4"),  # link
    ("route", "i4", (MOST_HOPS,)),
    ("covers", "i2"),  # packets that an acknowledgement covers; 0: this is data
    ("hop", "i1"),
    ("num_hops", "i1"),
]
PACKET = in_lines(PACKET_FIELDS)
"""One cache line."""

PORT_FIELDS = [
    ("end", "i8"),  # of its latest serialisation
    ("remainder", "i8"),  # of the latest division, in bits ps / s
    ("ack_first", "i4"),
    ("ack_last", "i4"),
    ("data_first", "i4"),
    ("data_last", "i4"),
    ("wire_first", "i4"),  # of an ordinary port: the packet it sends; of a source port: all packets on its wire
    ("wire_last", "i4"),
    ("serving", "i4"),  # source port: the packet it serialises, if it hands it on; or BUSY; NONE: it is free
    ("data_packets", "i4"),
    ("ack_packets", "i4"),
    ("pace", "i2"),  # row of `paces`
    ("is_source", "?"),
    ("is_woken", "?"),  # it picks in this instant's last phase
]
PORT = in_lines(PORT_FIELDS)
"""One cache line."""

BUSY = -2

PACE_FIELDS = [
    ("rate", "i8"),
    ("latency", "i8"),
    ("full_time", "i8"),  # of a full packet, and what its division leaves
    ("full_remainder", "i8"),
    ("header_time", "i8"),  # and of a header
    ("header_remainder", "i8"),
]
PACE = np.dtype(PACE_FIELDS, align=True)
"""What the links of one kind have in common: few rows, which stay in the cache."""

RING = np.dtype([("first", "i4"), ("last", "i4")], align=True)
"""Of a source port: pieces that may send, in order of their turns."""

PIECE_FIELDS = [
    # sender, in one cache line
    ("message", "i4"),  # NONE: free
    ("next_ready", "i4"),
    ("num_packets", "i4"),
    ("next_seq", "i4"),
    ("in_flight", "i4"),
    ("window", "i4"),
    ("acknowledged", "i4"),
    ("known", "i4"),  # in-order point as it knows
    ("last_size", "i4"),  # bytes of its last packet on the wire
    ("source_port", "i4"),  # of its next packet
    ("next_path", "i4"),  # of a sprayed piece: of its next packet (a plane, if the switch chooses)
    ("is_in_ring", "?"),
    ("is_started", "?"),
    ("is_settled", "?"),  # acknowledged whole, or cancelled and gone
    ("spray", "i1"),  # how packets choose their path; FIXED: they do not
    ("random", "u8"),
    ("next_of_message", "i4"),
    ("scope", "i4"),
    # path: segments out of the NIC and into one (of one plane, or the first of them), up and down (NONE: none)
    ("out", "i4"),
    ("up", "i4"),
    ("down", "i4"),
    ("into", "i4"),
    ("extra", "i4"),  # link that stands for an unlimited fabric; NONE: none
    ("ack_every", "i4"),
    # receiver, in one cache line with the above
    ("received", "i4"),
    ("unanswered", "i4"),
    ("in_order", "i4"),  # smallest number not received
    ("told", "i4"),  # the one that the latest acknowledgement carried
    ("highest", "i4"),
    ("displacement", "i4"),
    ("held_bytes", "i4"),
    ("most_held_bytes", "i4"),
    ("arrived_bytes", "i8"),  # payload, to be added to the message's with the last packet
    ("bitmap", "u8", (REORDER_WINDOW // 64,)),
]
PIECE = in_lines(PIECE_FIELDS)

FLOW_FIELDS = [
    ("num_packets", "i4"),
    ("retransmitted", "i4"),
    ("spurious", "i4"),
    ("displacement", "i4"),
    ("held_bytes", "i8"),
]
FLOW = np.dtype(FLOW_FIELDS, align=True)
"""What a message's packets went through: how many were sent, and again, their largest displacement, most bytes held
for order."""

FIXED, ROUND_ROBIN, RANDOM, FLOWLET, REPS, SWITCH, ADAPTIVE = range(7)
"""How the packets of a piece get their paths; from SWITCH on, a switch decides."""

SPRAYS = {
    "round_robin": ROUND_ROBIN, "random": RANDOM, "flowlet": FLOWLET, "reps": REPS, "switch": SWITCH,
    "adaptive": ADAPTIVE,
}  # fmt: skip

COUNTER_FIELDS = [
    ("now_s", "f8"),
    ("next_s", "f8"),
    ("window_s", "f8"),
    ("window_bdp", "f8"),
    ("now", "i8"),
    ("num_agenda", "i8"),
    ("num_ready", "i8"),
    ("num_batch", "i8"),
    ("num_starting", "i8"),
    ("num_fired", "i8"),
    ("num_events", "i8"),
    ("num_hops", "i8"),  # deliveries of data packets
    ("num_woken", "i8"),
    ("free_piece", "i8"),
    ("num_free_pieces", "i8"),
    ("needed_pieces", "i8"),
    ("free_packet", "i8"),
    ("num_free_packets", "i8"),
    ("num_sources", "i8"),  # ports that may take a packet out of the pool at one instant
    ("num_planes", "i8"),
    ("num_paces", "i8"),
    ("num_log", "i8"),
    ("num_unlogged", "i8"),
    ("num_withdrawn", "i8"),  # links that routing knows to be dead
    ("header_bytes", "i8"),
    ("payload_per_packet", "i8"),
    ("mtu_bytes", "i8"),
    ("ack_every", "i8"),
    ("window_packets", "i8"),  # 0: from the bandwidth-delay product
    ("spray", "i8"),
    ("seed", "u8"),
    ("num_leaf_turns", "i8"),  # rows of `turns_to` that are leaves'
    ("bin_shift", "i8"),  # a bin of the time series is 2^bin_shift ps
    # the wheel
    ("shift", "i8"),  # a bucket is 2^shift ps
    ("bucket", "i8"),  # number of the one being emptied
    ("num_wheel", "i8"),  # entries in buckets
    ("num_far", "i8"),
    ("num_keys", "i8"),
    ("key", "i8"),
    ("is_resuming", "?"),
    ("is_live", "?"),
]
COUNTERS = np.dtype(COUNTER_FIELDS, align=True)


class PacketState(NamedTuple):
    """Everything the packet core works on; the first part is what readiness and placing need of any core."""

    c: np.ndarray
    messages: np.ndarray
    successors: np.ndarray
    transfers: np.ndarray
    watches: np.ndarray
    nodes: np.ndarray
    fired: np.ndarray
    agenda_s: np.ndarray
    agenda_code: np.ndarray
    ready: np.ndarray
    waiting: np.ndarray
    windows: np.ndarray
    accelerators: np.ndarray
    nics: np.ndarray
    leaf_up: np.ndarray
    leaf_down: np.ndarray
    pod_of_leaf: np.ndarray
    scopes: np.ndarray
    plane: np.ndarray
    batch: np.ndarray
    placed: np.ndarray
    segments: np.ndarray
    paths: PathNetwork
    flows: np.ndarray  # [messages]
    packets: np.ndarray
    pieces: np.ndarray
    starting: np.ndarray  # [pieces] those that may send from this instant on
    ports: np.ndarray
    paces: np.ndarray
    reverse: np.ndarray
    is_early: np.ndarray
    rings: np.ndarray
    segment_start: np.ndarray
    segment_link: np.ndarray
    crossing: np.ndarray  # [nics, scopes] link that stands for an unlimited fabric
    turns: np.ndarray  # [leaves, planes] where an adaptive leaf begins among equals
    turns_to: np.ndarray  # [switches, destination leaves] turns: of leaves and planes, then of pods and their switches
    waits: np.ndarray  # [WAIT_BINS] data packets by the time they waited at a port
    series: np.ndarray  # [bins, ports]
    log: np.ndarray  # see packet_log.py
    woken: np.ndarray
    buckets: np.ndarray  # first slot of each bucket
    bucket_group: np.ndarray  # entries per 64 buckets
    slots: np.ndarray
    far_time: np.ndarray
    far_slot: np.ndarray
    keys: np.ndarray  # of the bucket being emptied: (time within it) << 32 | phase << 31 | port
    # of full ports only
    alarm_time: np.ndarray  # a heap of timers, pauses and turns
    alarm_code: np.ndarray
    switches: np.ndarray
    pullers: np.ndarray  # [nics]


class PacketStateType(StateType):
    """Compiled type of PacketStatePointer."""


class PacketStatePointer(StatePointer):
    """What the compiled functions take."""


define(PacketStatePointer, PacketStateType, PacketState._fields)


@njit(cache=True)
def pointer(state):
    """The compiled functions' view of a PacketState, which must outlive it; made anew when an array was replaced."""
    return PacketStatePointer(*borrowed(state))  # type: ignore[call-arg]


SERIES = np.dtype([("bytes", "i8"), ("wait", "i8")])
"""Of a port in a stretch of time: wire bytes that left, and the longest wait of a data packet that began to leave."""

LOG = np.dtype(
    [
        ("time", "i8"),
        ("end", "i8"),
        ("wait", "i8"),
        ("ready_s", "f8"),
        ("link", "i4"),
        ("source", "i4"),
        ("destination", "i4"),
        ("queue_pair", "i4"),
        ("seq", "i4"),
        ("size", "i4"),
        ("event", "i1"),
        ("kind", "i1"),
        ("is_marked", "?"),
    ],
    align=True,
)

NUM_BUCKETS = 1 << 14
SLOT = np.dtype([("time", "u4"), ("next", "i4")])
"""Of an event: the low half of its time in ps, and the next event of its bucket."""
IDEAL_RATE = 4 * 10**12
"""Bits per second of the link, one per NIC and distance, that stands for an unlimited fabric."""


def ports_of(t: Topology, mtu_bytes: int, header_bytes: int) -> dict[str, np.ndarray]:
    """One port per link, followed by those that stand for an unlimited fabric, and what belongs to them.

    ports, paces    the ports, and what those of one kind have in common
    reverse         the link that acknowledgements take back; NONE: left out
    is_early        see _early
    rings           of source ports
    crossing        [nics, scopes] port that stands for an unlimited fabric; NONE: no such way
    """
    flight = _fabric_latency_s(t)
    crossing = np.full((t.num_nics, 3), NONE)
    extra = np.argwhere(flight > 0)
    crossing[extra[:, 0], extra[:, 1]] = t.num_links + np.arange(len(extra))
    num_ports = t.num_links + len(extra)
    ports = aligned(num_ports, PORT)
    rate = np.append(np.rint(t.link_rate * 8).astype(np.int64), np.full(len(extra), IDEAL_RATE))
    latency_s = np.append(t.link_latency_s, flight[extra[:, 0], extra[:, 1]])
    latency = np.rint(latency_s * PS_PER_S).astype(np.int64)
    kinds, pace = np.unique(np.stack([rate, latency], axis=1), axis=0, return_inverse=True)
    paces = np.zeros(len(kinds), PACE)
    paces["rate"], paces["latency"] = kinds.T
    for name, size in (("full", mtu_bytes), ("header", header_bytes)):
        paces[f"{name}_time"], paces[f"{name}_remainder"] = np.divmod(size * 8 * PS_PER_S, paces["rate"])
    ports["pace"] = pace.reshape(-1)
    for name in ("ack_first", "ack_last", "data_first", "data_last", "wire_first", "wire_last", "serving"):
        ports[name] = NONE
    ports["end"] = -1
    number = {name: i for i, name in enumerate(t.link_name)}
    reverse = np.arange(num_ports, dtype=np.int32)
    reverse[: t.num_links] = [number.get(_reversed(name), NONE) for name in t.link_name]
    for table in (t.nic_up, t.nvlink_up[t.nvlink_up >= 0]):
        planes = t.num_planes if table is t.nic_up else 1
        for plane in range(planes):
            ports["is_source"][t.segment_link[t.segment_start[table + plane]]] = True
    fastest = paces["header_time"][pace.reshape(-1)]
    if fastest.min() < 1:
        i = int(fastest.argmin())
        raise ValueError(f"link {t.link_name[i]} passes {header_bytes} bytes in less than a picosecond")
    rings = np.full(num_ports, NONE, np.int32).repeat(2).view(RING)
    return {"ports": ports, "paces": paces, "reverse": reverse, "rings": rings, "crossing": crossing,
            "is_early": _early(t, ports["is_source"], latency)}  # fmt: skip


def _early(t: Topology, is_source: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """[ports] whether packets may enter a port when the source port before it has sent them, with the time at which
    they arrive: that is so where all that it ever gets comes from source ports whose links are equally long, so that
    they enter in the order in which they arrive. A source port's own entry is about the ports that a switch chooses.
    """
    early = np.zeros(len(is_source), np.bool_)
    of_nic = np.stack([links_at(t, t.nic_up + plane, -1) for plane in range(t.num_planes)], axis=1)

    def is_uniform(sources: np.ndarray) -> bool:
        delays = latency[sources]
        return bool(is_source[sources].all()) and delays.min() > 0 and delays.min() == delays.max()

    for leaf in range(t.num_leaves):
        nics = np.flatnonzero(t.leaf_of_nic == leaf)
        if len(nics) == 0 or not is_uniform(of_nic[nics].ravel()):
            continue
        early[of_nic[nics].ravel()] = True
        above = t.leaf_up[leaf]
        for scope, first in zip(t.scopes, above, strict=True):
            if first >= 0:
                early[links_at(t, first + np.arange(scope.num_paths), 0)] = True
        if (above < 0).all():
            early[np.concatenate([links_at(t, t.nic_down[nics] + p, 0) for p in range(t.num_planes)])] = True
    for host in np.unique(t.host_of_accelerator[t.nvlink_up >= 0]):
        inside = np.flatnonzero(t.host_of_accelerator == host)
        if is_uniform(links_at(t, t.nvlink_up[inside], 0)):
            early[links_at(t, t.nvlink_down[inside], 0)] = True
    early[t.num_links :] = is_uniform(of_nic.ravel())
    return early


def links_at(t: Topology, segments: np.ndarray, which: int) -> np.ndarray:
    """The first (0) or last (-1) link of each segment."""
    return t.segment_link[t.segment_start[segments] if which == 0 else t.segment_start[segments + 1] - 1]


def _fabric_latency_s(t: Topology) -> np.ndarray:
    """[nics, scopes] time of flight between the leaves, by the NIC's leaf."""
    out = np.zeros((t.num_nics, 3))
    for scope, kind in enumerate(t.scopes):
        for table in (t.leaf_up, t.leaf_down):
            first = table[t.leaf_of_nic, scope]
            spread = np.where(first >= 0, first + kind.num_paths, 0)
            out[:, scope] += np.where(first >= 0, t.segment_latency_s[spread], 0.0)
    return out


def _reversed(name: str) -> str:
    """The name of the link the other way: plane0/leaf1->spine2.lane3 and plane0/spine2->leaf1.lane3."""
    prefix, slash, rest = name.rpartition("/")
    ends, dot, lane = rest.partition(".lane")
    low, _, high = ends.partition("->")
    return f"{prefix}{slash}{high}->{low}{dot}{lane}"


EVENTS_PER_BUCKET = 32
WIDEST_BUCKET = 2**30
"""ps: a key has 31 bits for the time within its bucket."""


def wheel_shift(ports: np.ndarray, paces: np.ndarray) -> int:
    """Width of a bucket as a power of two: no event may schedule another into its own bucket.

    As wide as the shortest serialisation allows (a port's next delivery comes no sooner after the one before it), and
    no wider than holds enough events of a busy fabric to look ahead to, unless half the buckets would not span the
    longest usual delay.

    ports  those that packets may come to
    """
    used = paces[ports["pace"]]
    shortest = int(used["header_time"].min())
    longest = int((used["full_time"] + used["latency"]).max())
    events_per_ps = (2 / used["full_time"]).sum()
    wanted = max(int(EVENTS_PER_BUCKET / events_per_ps), longest // (NUM_BUCKETS // 2))
    return max(min(shortest, wanted, WIDEST_BUCKET).bit_length() - 1, 0)


@inner
def picoseconds(time_s):
    """The instant that a float is rounded to, up to half a picosecond before or after it. The core acts at that
    instant and announces its `seconds`; the clock runs the core up to a float, `wheel.last_until` of it included."""
    return int64(np.rint(time_s * PS_PER_S))


@inner
def seconds(time):
    return time / PS_PER_S


WAIT_BINS = 512


@inner
def wait_bin(wait):
    """Bin 0: no wait. Then eight bins for each doubling of the picoseconds: exponent and leading bits of the float."""
    if wait <= 0:
        return 0
    return (np.float64(wait).view(np.int64) >> 49) - (1023 << 3) + 1


def bin_start(number: int) -> float:
    """The shortest wait of a bin, ps."""
    octave, part = divmod(number - 1, 8)
    return 0.0 if number == 0 else 2.0**octave * (1 + part / 8)


def aligned(n: int, dtype: np.dtype) -> np.ndarray:
    """Zeroed rows that start on a cache line, so that one which fits into a line lies in one."""
    raw = np.zeros(n * dtype.itemsize + CACHE_LINE, np.uint8)
    first = -raw.ctypes.data % CACHE_LINE
    return raw[first : first + n * dtype.itemsize].view(dtype)


def for_packets(n: int) -> dict[str, np.ndarray]:
    return {"packets": aligned(n, PACKET)}


def for_pieces(n: int, placed: np.dtype) -> dict[str, np.ndarray]:
    pieces = aligned(n, PIECE)
    pieces["message"] = NONE
    return {"pieces": pieces, "placed": np.zeros(n, placed), "starting": np.zeros(n, np.int64)}
