"""The message graph: what every workload hands to the fabric, and what it gets back.

A message graph is a set of arrays, one entry per message, plus the edges between messages. The fabric
core follows the edges itself, so a collective of two thousand steps is one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

DELIVERED, CANCELLED, FAILED, PENDING = 0, 1, 2, 3
"""Outcome codes of a message; PENDING only while the run goes on (or when it stopped early)."""
OUTCOMES = ("delivered", "cancelled", "failed", "pending")

NO_GATE = -1


class MessageGraphError(ValueError):
    """The arrays do not describe a message graph: the text names the array, the entry and its value."""


@dataclass(frozen=True, slots=True)
class MessageGraph:
    """Messages and what each waits for.

    A message is ready at  max(earliest_s, latest input received + delay_s, its gate opened).
    With n messages and e edges:

    source, destination   [n] global accelerator ids; equal ids are a local copy of zero time
    size_bytes            [n] payload; 0 is allowed (a pure signal: one header on the wire)
    earliest_s            [n] absolute clock time before which the message never starts; 0 for "at once"
    delay_s               [n] seconds between the last input's arrival and readiness (compute, reduction)
    successor_start       [n + 1], successors [e]: message i feeds successors[successor_start[i]:successor_start[i+1]]
    num_inputs            [n] how many edges end at the message (derived from successors)
    gate                  [n] id of a gate that computation opens, or NO_GATE
    queue_pairs           [n] queue pairs the message is striped over; each is hashed on its own
    traffic_class         [n] 0 is bulk
    owner                 the workload's name, for records
    """

    source: Int64
    destination: Int64
    size_bytes: Int64
    earliest_s: Float64
    delay_s: Float64
    successor_start: Int64
    successors: Int64
    num_inputs: Int64
    gate: Int64
    queue_pairs: Int64
    traffic_class: Int64
    owner: str = ""

    @property
    def num_messages(self) -> int:
        return len(self.source)


def message_graph(
    source,
    destination,
    size_bytes,
    *,
    edges: tuple[Int64, Int64] | None = None,
    earliest_s=0.0,
    delay_s=0.0,
    gate=NO_GATE,
    queue_pairs=1,
    traffic_class=0,
    owner: str = "",
) -> MessageGraph:
    """Build a message graph from arrays or scalars (scalars are repeated).

    edges: (from, to) index arrays: message from[i] must be received before message to[i] may start.
    Raises MessageGraphError on unequal lengths, negative sizes, NaN times or edges out of range.
    """
    source = np.ascontiguousarray(source, dtype=np.int64)
    n = len(source)

    def full(name, value, dtype):
        a = np.asarray(value, dtype=dtype)
        if a.ndim == 0:
            return np.full(n, a, dtype=dtype)
        if a.shape != (n,):
            raise MessageGraphError(f"{name} has shape {a.shape}, expected ({n},) like source")
        return np.ascontiguousarray(a)

    destination = full("destination", destination, np.int64)
    size_bytes = full("size_bytes", size_bytes, np.int64)
    earliest_s = full("earliest_s", earliest_s, np.float64)
    delay_s = full("delay_s", delay_s, np.float64)
    gate = full("gate", gate, np.int64)
    queue_pairs = full("queue_pairs", queue_pairs, np.int64)
    traffic_class = full("traffic_class", traffic_class, np.int64)
    for name, array, low in (
        ("source", source, 0),
        ("destination", destination, 0),
        ("size_bytes", size_bytes, 0),
        ("delay_s", delay_s, 0.0),
        ("queue_pairs", queue_pairs, 1),
        ("gate", gate, NO_GATE),
    ):
        bad = ~(array >= low)
        if bad.any():
            i = int(np.argmax(bad))
            raise MessageGraphError(f"{name}[{i}] = {array[i]} is below {low}")
    if not np.isfinite(earliest_s).all() or not np.isfinite(delay_s).all():
        raise MessageGraphError("earliest_s and delay_s must be finite")

    if edges is None:
        edges = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    tail = np.asarray(edges[0], dtype=np.int64)
    head = np.asarray(edges[1], dtype=np.int64)
    if len(tail) != len(head):
        raise MessageGraphError(f"edges: {len(tail)} tails but {len(head)} heads")
    if len(tail) and (min(tail.min(), head.min()) < 0 or max(tail.max(), head.max()) >= n):
        raise MessageGraphError(f"edges refer to messages outside 0 … {n - 1}")
    out_degree = np.bincount(tail, minlength=n)
    successor_start = np.zeros(n + 1, np.int64)
    np.cumsum(out_degree, out=successor_start[1:])
    if len(tail) and np.any(tail[1:] < tail[:-1]):
        head = head[np.argsort(tail, kind="stable")]
    return MessageGraph(
        source, destination, size_bytes, earliest_s, delay_s, successor_start, np.ascontiguousarray(head),
        np.bincount(head, minlength=n).astype(np.int64), gate, queue_pairs, traffic_class, owner,
    )  # fmt: skip


@njit(cache=True)
def message_in_cycle(successor_start, successors, num_inputs):
    """A message that waits for itself through its inputs, or for one that does; -1 where there is none.

    Takes away, over and over, a message without inputs (Kahn 1962); what is left is on or behind a cycle.
    """
    n = len(num_inputs)
    waits_for = num_inputs.astype(np.int32)
    free = np.empty(n, np.int32)
    first, last = 0, 0
    for i in range(n):
        if waits_for[i] == 0:
            free[last] = i
            last += 1
    while first < last:
        i = free[first]
        first += 1
        for e in range(successor_start[i], successor_start[i + 1]):
            j = successors[e]
            waits_for[j] -= 1
            if waits_for[j] == 0:
                free[last] = j
                last += 1
    for i in range(n):
        if waits_for[i] > 0:
            return i
    return -1


@dataclass(slots=True)
class MessageResults:
    """What happened to each message; NaN where it has not happened (yet).

    ready_s          [n] inputs there, gate open, earliest time reached
    started_s        [n] the path policy and the NIC let go of the first byte
    received_s       [n] last payload byte at the destination
    acknowledged_s   [n] last acknowledgement back at the source
    delivered_bytes  [n] payload bytes that arrived
    outcome          [n] index into OUTCOMES
    num_pieces       [n] pieces that the path policy cut it into; 0 before it is placed, and for local copies
    displacement     [n] packets, the most by which one arrived behind a later one of its piece; None in fluid
    held_bytes       [n] payload, the most that a piece's receiver held out of order; None in fluid
    num_packets      [n] sent, without those sent again; None in fluid
    retransmitted    [n] packets sent again; None in fluid
    spurious         [n] packets that arrived although they were there, or were turned away for order; None in fluid
    """

    ready_s: Float64
    started_s: Float64
    received_s: Float64
    acknowledged_s: Float64
    delivered_bytes: Float64
    outcome: NDArray[np.int8]
    num_pieces: NDArray[np.int16]
    displacement: NDArray[np.int32] | None = None
    held_bytes: NDArray[np.int64] | None = None
    num_packets: NDArray[np.int32] | None = None
    retransmitted: NDArray[np.int32] | None = None
    spurious: NDArray[np.int32] | None = None
