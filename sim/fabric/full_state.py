"""The arrays of the full packet core: the lean core's, and what buffers, marks, pauses, losses and windows need."""

from __future__ import annotations

import numpy as np

from sim.fabric import packet_state as ps
from sim.fabric.packet_state import REORDER_WINDOW
from sim.fabric.policies import mix
from sim.fabric.topology import Topology, is_switch, link_ends

DATA, ACK, NAK, NACK, PULL = range(5)
"""What a packet is: payload; what has arrived; go back; this one lost its payload; credit for one more."""

WINDOW, DCTCP, DCQCN, SWIFT, NSCC, NDP = range(6)
"""Transports: what may be under way, and what marks, delays and losses do to it."""
TRANSPORTS = {"window": WINDOW, "dctcp": DCTCP, "dcqcn": DCQCN, "swift": SWIFT, "nscc": NSCC, "ndp": NDP}

SACK_WORDS = 4
"""An acknowledgement tells of 64 times so many packets from the in-order point on."""

PATHS_REMEMBERED = 8
"""Paths of unmarked acknowledgements that REPS keeps for use again (arXiv 2407.21625)."""

PACKET = ps.in_lines(
    [
        *ps.PACKET_FIELDS,  # with the next four in one cache line: all that switches look at
        ("kind", "i1"),
        ("is_marked", "?"),
        ("is_trimmed", "?"),
        ("wants_ack", "?"),
        ("sent", "i8"),  # by its sender; an acknowledgement returns it
        ("sack", "u8", (SACK_WORDS,)),
        ("latest", "i4"),  # of an acknowledgement: the packet that it answers
        ("marks", "i4"),  # and how many of those it covers were marked
        ("path", "i4"),  # that the sender chose
    ],
)

PORT = ps.in_lines(
    [
        *ps.PORT_FIELDS,
        ("is_busy", "?"),  # its serialisation has not ended
        ("has_ends", "?"),  # the ends of its serialisations are events
        ("node", "i4"),  # the switch that it belongs to; NONE: a host, without limits
        ("far_node", "i4"),  # the switch at the end of its link
        ("serving_size", "i4"),  # data bytes being serialised; 0: nothing, or control
        ("serving_from", "i4"),  # the link they came over
        ("is_faulty", "?"),  # it may lose packets; the last fields say how
        ("is_paused", "?"),
        ("is_asserted", "?"),  # the far switch has asked for a pause
        ("queue", "i8"),  # data bytes whose serialisation has not ended
        ("ingress", "i8"),  # data bytes in the far switch that came over this link
        ("longest_queue", "i8"),
        ("entered", "i8"),  # data packets
        ("drops", "i8"),
        ("dropped_bytes", "i8"),
        ("trims", "i8"),
        ("trimmed_bytes", "i8"),  # payload
        ("marks", "i8"),
        ("pauses", "i8"),
        ("paused_since", "i8"),
        ("paused", "i8"),  # ps
        ("random", "u8"),
        ("is_down", "?"),
        ("lost_until", "i8"),  # what was on its wire when it was repaired is lost
        ("loss", "f8"),  # probability
        ("losses", "i8"),  # data packets with their payload, at the end of the link
        ("lost_bytes", "i8"),  # payload
        ("control_losses", "i8"),
        ("moved", "i8"),  # payload that took another path because this link was dead
    ],
)

PIECE = ps.in_lines(
    [
        *ps.PIECE_FIELDS,
        ("serial", "i8"),  # counts pieces: an alarm of a row's earlier life is recognised by it
        ("base_rtt", "i8"),  # ps, of an idle network
        # sender
        ("cwnd", "f8"),  # bytes that may be under way
        ("most_sent", "i4"),
        ("highest_acked", "i4"),
        ("checked", "i4"),  # the gap rule has looked at everything below
        ("num_lost", "i4"),
        ("timer_seq", "i4"),  # what was sent before the timer last started
        ("is_armed", "?"),
        ("is_careful", "?"),  # it goes back and has timed out: one packet until something is acknowledged
        ("deadline", "i8"),
        ("acked", "u8", (REORDER_WINDOW // 64,)),  # bit of seq % 1024, of those from the in-order point on
        ("lost", "u8", (REORDER_WINDOW // 64,)),  # to be sent again
        ("resent", "u8", (REORDER_WINDOW // 64,)),  # sent again since the timer last fired
        ("retransmitted", "i4"),
        ("timeouts", "i4"),
        ("heard", "i4"),  # packets acknowledged at the latest timeout
        ("quiet_since", "i8"),
        # window rules; each transport uses what it names
        ("alpha", "f8"),
        ("window_end", "i4"),
        ("window_acked", "i4"),
        ("window_marked", "i4"),
        ("is_reduced", "?"),
        ("rate", "f8"),  # bytes / ps
        ("target_rate", "f8"),
        ("increases", "i4"),
        ("last_decrease", "i8"),
        ("last_increase", "i8"),
        ("last_marked", "i8"),
        ("gathered", "f8"),
        ("gathered_bytes", "f8"),
        ("delay", "f8"),  # average queueing delay, ps
        ("next_send", "i8"),  # pacing
        ("is_waiting", "?"),  # for that time
        ("last_sent", "i8"),
        ("remembered", "i4", (PATHS_REMEMBERED,)),
        ("num_remembered", "i4"),
        # receiver
        ("nak_sent", "?"),
        ("marks", "i4"),  # since the latest acknowledgement
        ("last_notice", "i8"),
        ("duplicates", "i4"),
        ("discarded", "i4"),
        ("trimmed", "i4"),
        # credit
        ("credit", "i4"),  # packets that may be sent
        ("owed", "i4"),  # pulls that wait for their turn at the receiver's NIC
        ("pulled", "i4"),
        ("next_pull", "i4"),  # piece
        ("under_way", "i4"),  # packets of it, acknowledgements and pulls included
        ("num_back", "i2"),
        ("back", "i4", (ps.MOST_HOPS,)),  # links from the receiver to the sender
    ],
)

FLOW = np.dtype(
    [
        *ps.FLOW_FIELDS,
        ("timeouts", "i4"),
    ],
    align=True,
)

SWITCH = np.dtype([("used", "i8")], align=True)
"""Data bytes in a switch's shared buffer."""

PULLER = np.dtype([("first", "i4"), ("last", "i4"), ("interval", "i8"), ("free", "i8"), ("is_armed", "?")], align=True)
"""A receiving NIC's round robin of pieces that are owed a pull; one leaves each `interval` ps, a full packet's time."""

COUNTERS = np.dtype(
    [
        *ps.COUNTER_FIELDS,
        ("transport", "i8"),
        ("port_limit", "i8"),  # bytes
        ("buffer", "i8"),
        ("buffer_alpha", "f8"),
        ("mark_from", "i8"),  # bytes
        ("mark_all", "i8"),
        ("mark_most", "f8"),
        ("pause_above", "i8"),
        ("resume_below", "i8"),
        ("is_trimming", "?"),
        ("is_lossless", "?"),
        ("goes_back", "?"),
        ("rto", "i8"),
        ("gap", "i8"),  # 0: no gap rule
        ("flowlet_gap", "i8"),
        ("path_timeout", "i8"),  # 0: senders do not watch their paths
        ("bad_for_s", "f8"),
        ("is_faulty", "?"),  # a link has failed: acknowledgements and credit may be lost
        ("num_alarms", "i8"),
        ("num_pieces", "i8"),  # so far
    ],
    align=True,
)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def for_packets(n: int) -> dict[str, np.ndarray]:
    return {"packets": ps.aligned(n, PACKET)}


def for_pieces(n: int, num_ports: int, num_nics: int, placed: np.dtype) -> dict[str, np.ndarray]:
    """Pieces, and alarms: of each piece its timer and its pace, of each port and NIC a few."""
    pieces = ps.aligned(n, PIECE)
    pieces["message"] = ps.NONE
    alarms = 4 * (n + num_ports + num_nics)
    return {
        "pieces": pieces,
        "placed": np.zeros(n, placed),
        "starting": np.zeros(n, np.int64),
        "alarm_time": np.zeros(alarms, np.int64),
        "alarm_code": np.zeros(alarms, np.int64),
    }


def ports_of(
    t: Topology, lean: np.ndarray, paces: np.ndarray, shares_buffers: bool, seed: int
) -> tuple[np.ndarray, int]:
    """(the lean ports with their switches, number of switches).

    shares_buffers  whether what one port holds matters to another, so that ends of serialisations are events
    """
    ports = ps.aligned(len(lean), PORT)
    for name in lean.dtype.names or ():
        ports[name] = lean[name]
    ports["node"] = ports["far_node"] = ps.NONE
    ports["lost_until"] = -1
    ports["has_ends"] = shares_buffers | ports["is_source"] | (paces["latency"][ports["pace"]] == 0)
    switches: dict[str, int] = {}
    for i, name in enumerate(t.link_name):
        for field, end in zip(("node", "far_node"), link_ends(name), strict=True):
            if is_switch(end):
                ports[i][field] = switches.setdefault(end, len(switches))
    rng = mix(np.uint64(seed))
    for i in range(len(ports)):
        ports[i]["random"] = mix(np.uint64((int(rng) + i) % 2**64))
    return ports, len(switches)


def pullers_of(t: Topology, ports: np.ndarray, paces: np.ndarray) -> np.ndarray:
    """[nics] a full packet's time on the slowest of the NIC's links in."""
    pullers = np.zeros(t.num_nics, PULLER)
    pullers["first"] = pullers["last"] = ps.NONE
    pullers["interval"] = paces["full_time"][ports["pace"][ps.links_at(t, t.nic_down, 0)]] // t.num_planes
    return pullers
