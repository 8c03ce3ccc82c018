"""Where packets wait at one moment, and which senders wait for room in their windows."""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import PS_PER_S, PacketState

NEVER = 2**62
"""ps"""
ENTRY = np.dtype([("link", "i4"), ("message", "i4"), ("size", "i4"), ("waits", "?")])
"""A data packet in a queue. One that has begun to leave does not wait: it stands in others' way."""


def waiting_packets(state: PacketState, num_links: int, now: int) -> np.ndarray:
    """[packets] ENTRY of the queues of all links.

    now   ps; a packet may be in a queue before it has arrived (`packet_state._early`), and be there when it has left,
          since a port looks at its queue only when something is delivered: both are told by its times. What a leaf's
          port up has sent ahead of the clock, by at most the latency of a host's link, is missing.
    """
    ports = state.ports
    is_full = "is_paused" in (ports.dtype.names or ())
    stops = ports["is_paused"][:num_links] if is_full else np.zeros(num_links, np.bool_)
    leaving = ports["wire_last" if is_full else "wire_first"][:num_links]
    rate = state.paces["rate"][ports["pace"][:num_links]]
    room = len(state.packets) - int(state.c["num_free_packets"][0])
    found = np.zeros(max(room, 1), ENTRY)
    return found[: _walk(ports, state.packets, state.pieces["message"], leaving, rate, stops, now, found)]


@njit(cache=True)
def _walk(ports, packets, message_of, leaving, rate, stops, now, found):
    num = 0
    for p in range(len(rate)):
        leaves = ports[p]["end"]
        sends = ports[p]["wire_first"] != NONE and not ports[p]["is_source"]
        if sends and leaves - _serialisation(packets[leaving[p]]["size"], rate[p]) <= now < leaves:
            num = _enter(found, num, p, packets, leaving[p], message_of, False)
        k = ports[p]["data_first"]
        while k != NONE:
            if packets[k]["time"] <= now:
                begins = max(leaves, packets[k]["time"])
                waits = stops[p] or begins > now
                leaves = begins + _serialisation(packets[k]["size"], rate[p])
                if leaves > now:
                    num = _enter(found, num, p, packets, k, message_of, waits)
            k = packets[k]["next"]
    return num


@njit(cache=True)
def _serialisation(size, rate):
    return size * 8 * PS_PER_S // rate if rate > 0 else NEVER


@njit(cache=True)
def _enter(found, num, link, packets, k, message_of, waits):
    """How many there are then: acknowledgements and what belongs to no message any more are left out."""
    message = message_of[packets[k]["piece"]]
    if packets[k]["covers"] > 0 or message == NONE:
        return num
    found[num]["link"] = link
    found[num]["message"] = message
    found[num]["size"] = packets[k]["size"]
    found[num]["waits"] = waits
    return num + 1


def senders(state: PacketState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(message, link of its NIC, whether it waits for its turn there) of the pieces under way: one that does not has
    a full window, or has sent all it has."""
    pieces = state.pieces
    live = pieces[(pieces["message"] >= 0) & pieces["is_started"] & ~pieces["is_settled"]]
    return live["message"], live["source_port"], live["is_in_ring"]
