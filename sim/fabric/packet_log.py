"""The packet log: what happened to each packet at each link, for runs small enough to be read."""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric.packet_state import PS_PER_S, PacketState
from sim.fabric.topology import Topology

EVENTS = ("sent", "dropped", "trimmed", "lost")
SENT, DROPPED, TRIMMED, LOST = range(len(EVENTS))
KINDS = ("data", "ack", "nak", "nack", "pull")
"""What full ports tell apart; lean ones know the first two."""


@inner
def note(state, p, packet, kind, is_marked, now, event):
    """One row, while there is room; what finds none is counted."""
    c = state.c[0]
    if c.num_log == len(state.log):
        c.num_unlogged += 1
        return
    row = state.log[c.num_log]
    c.num_log += 1
    message = state.messages[state.pieces[packet.piece].message]
    row.time = now
    row.end = state.ports[p].end if event == SENT else now
    row.wait = now - packet.time if event == SENT and not state.ports[p].is_source else 0
    row.ready_s = message.ready_s
    row.link = p
    row.source = message.source
    row.destination = message.destination
    row.queue_pair = packet.piece
    row.seq = packet.seq
    row.size = packet.size
    row.event = event
    row.kind = kind
    row.is_marked = is_marked


def columns(state: PacketState, topology: Topology, until_s: float) -> dict[str, np.ndarray]:
    """Of table `packets`, in order of time, up to then.

    time_s, end_s          first and last bit leave (sent), or the moment of the loss
    wait_s                 in the port's queue; 0 at the sender's
    link                   whose port sent or refused it, or lost it on the way; the last ones of an ideal fabric are
                           called unlimited
    event                  sent, dropped (no room), trimmed (goes on as its header), lost (a fault)
    kind                   data, ack, nak (go back), nack (was trimmed), pull (credit)
    source, destination, flow_ready_s
                           accelerators of the flow, and when it was ready: as in table `flows`
    queue_pair             row of its queue pair; a later flow may get the same
    packet                 number within the queue pair; of an answer, the smallest number not received
    size_bytes, is_marked  on the wire; by a queue on the way so far
    """
    rows = state.log[: int(state.c["num_log"][0])]
    rows = rows[rows["time"] / PS_PER_S <= until_s]
    rows = rows[np.lexsort((rows["link"], rows["time"]))]
    names = np.array([*topology.link_name, "unlimited"])
    return {
        "time_s": rows["time"] / PS_PER_S,
        "end_s": rows["end"] / PS_PER_S,
        "wait_s": rows["wait"] / PS_PER_S,
        "link": names[np.minimum(rows["link"], topology.num_links)],
        "event": np.array(EVENTS)[rows["event"]],
        "kind": np.array(KINDS)[rows["kind"]],
        "source": rows["source"],
        "destination": rows["destination"],
        "flow_ready_s": rows["ready_s"],
        "queue_pair": rows["queue_pair"],
        "packet": rows["seq"],
        "size_bytes": rows["size"],
        "is_marked": rows["is_marked"],
    }
