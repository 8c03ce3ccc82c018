"""The arrays the fluid core lives in, grouped by what they describe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.fabric.messages import PENDING
from sim.fabric.topology import Topology

NONE = -1


class Messages(NamedTuple):
    """One entry per message; transfers own contiguous ranges."""

    source: np.ndarray
    destination: np.ndarray
    size_bytes: np.ndarray
    earliest_s: np.ndarray
    delay_s: np.ndarray
    successor_start: np.ndarray  # into Edges.successor
    successor_end: np.ndarray
    waits_for: np.ndarray  # inputs (and gate) not there yet
    queue_pairs: np.ndarray
    transfer: np.ndarray
    input_s: np.ndarray  # latest input so far
    ready_s: np.ndarray
    started_s: np.ndarray
    received_s: np.ndarray
    acknowledged_s: np.ndarray
    delivered_bytes: np.ndarray
    outcome: np.ndarray
    latency_s: np.ndarray
    pieces_left: np.ndarray
    first_piece: np.ndarray
    next_in_window: np.ndarray
    first_watch: np.ndarray


class Edges(NamedTuple):
    successor: np.ndarray


class Pieces(NamedTuple):
    """One entry per piece of a message on one path (or spread over all)."""

    message: np.ndarray
    payload_bytes: np.ndarray
    wire_bytes: np.ndarray
    remaining: np.ndarray  # wire bytes, as of its component's settled_s
    rate: np.ndarray
    weight: np.ndarray
    segment: np.ndarray  # [pieces, 4]
    started_s: np.ndarray
    latency_s: np.ndarray
    next_of_message: np.ndarray
    next: np.ndarray  # in its component, or in the free list


class Components(NamedTuple):
    """Pieces that share links, directly or through others: solved together, and only when one of them changes."""

    first: np.ndarray
    last: np.ndarray
    num_pieces: np.ndarray
    checked: np.ndarray  # num_pieces when it was last checked for falling apart
    settled_s: np.ndarray
    merged_into: np.ndarray  # union-find parent; itself while it stands alone, NONE when free
    is_dirty: np.ndarray
    dirty: np.ndarray
    finish_s: np.ndarray  # key of the heap: when its next piece ends
    heap: np.ndarray
    place: np.ndarray
    free: np.ndarray
    pieces: np.ndarray  # work space: the pieces of the component being solved


class Loads(NamedTuple):
    """Per segment; links get theirs at the end through the shares."""

    component: np.ndarray
    rate: np.ndarray
    active: np.ndarray
    settled_s: np.ndarray
    outstanding: np.ndarray  # wire bytes not yet sent, as of settled_s
    payload_bytes: np.ndarray
    wire_bytes: np.ndarray
    series: np.ndarray  # [segments, bins] wire bytes
    link_component: np.ndarray


class Transfers(NamedTuple):
    left: np.ndarray
    last_s: np.ndarray


class Watches(NamedTuple):
    left: np.ndarray
    last_s: np.ndarray
    node_watch: np.ndarray
    node_next: np.ndarray
    fired: np.ndarray  # watches (>= 0) and transfers (-1 - id) that are complete
    fired_s: np.ndarray


class Agenda(NamedTuple):
    """What happens when: a heap of message events, and lists for the instant being worked on."""

    heap_s: np.ndarray
    heap_code: np.ndarray
    now: np.ndarray  # messages ready at once
    batch: np.ndarray  # messages to place at this instant
    window_first: np.ndarray  # [leaves]
    window_last: np.ndarray
    nic_free_s: np.ndarray


class Routes(NamedTuple):
    """The topology as the core reads it."""

    host: np.ndarray
    nic: np.ndarray
    leaf: np.ndarray
    pod: np.ndarray
    nvlink_up: np.ndarray
    nvlink_down: np.ndarray
    nic_up: np.ndarray
    nic_down: np.ndarray
    nic_overhead_s: np.ndarray
    leaf_up: np.ndarray
    leaf_down: np.ndarray
    scope_paths: np.ndarray  # [3]
    scope_radix: np.ndarray  # [3, 3]
    plane_start: np.ndarray  # [3] into plane
    plane: np.ndarray
    num_planes: np.ndarray
    segment_latency_s: np.ndarray
    segment_role: np.ndarray


class Counters(NamedTuple):
    """Scalars. `n` is indexed by the names below, `t` by T_*."""

    n: np.ndarray
    t: np.ndarray


(
    HEAP_SIZE, NUM_NOW, NUM_BATCH, FREE_PIECE, FREE_PIECES, NUM_FREE_COMPONENTS, COMPONENT_HEAP_SIZE, NUM_DIRTY,
    NUM_FIRED, NUM_EVENTS, NUM_SOLVES, NUM_SOLVED_PIECES, NEEDED_PIECES, RESUME, BY_MESSAGE, IS_LIVE, HEADER,
    PAYLOAD_PER_PACKET, NUM_COUNTERS,
) = range(19)  # fmt: skip

T_NOW, T_NEXT, T_TOLERANCE, T_WINDOW, T_BIN, NUM_TIMES = range(6)


def grown(array: np.ndarray, n: int, fill=0) -> np.ndarray:
    """A copy with room for n rows; new rows hold `fill`."""
    out = np.full((n, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


def messages(n: int) -> Messages:
    def ints():
        return np.zeros(n, np.int64)

    def floats():
        return np.full(n, np.nan)

    return Messages(ints(), ints(), ints(), floats(), floats(), ints(), ints(), ints(), ints(), ints(), floats(),
                    floats(), floats(), floats(), floats(), np.zeros(n), np.full(n, PENDING, np.int8), np.zeros(n),
                    ints(), np.full(n, NONE), np.full(n, NONE), np.full(n, NONE))  # fmt: skip


def pieces(n: int) -> Pieces:
    def ints(fill=NONE):
        return np.full(n, fill, np.int64)

    return Pieces(ints(), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.ones(n),
                  np.full((n, 4), NONE, np.int32), np.zeros(n), np.zeros(n), ints(), ints())  # fmt: skip


def components(n: int) -> Components:
    def ints(fill=NONE):
        return np.full(n, fill, np.int64)

    return Components(ints(), ints(), ints(0), ints(0), np.zeros(n), ints(), np.zeros(n, np.bool_), ints(0),
                      np.full(n, np.inf), ints(0), ints(), ints(0), ints(0))  # fmt: skip


def loads(num_segments: int, num_links: int, num_bins: int) -> Loads:
    def floats():
        return np.zeros(num_segments)

    return Loads(np.full(num_segments, NONE), floats(), np.zeros(num_segments, np.int64), floats(), floats(),
                 floats(), floats(), np.zeros((num_segments, num_bins)), np.full(num_links, NONE))  # fmt: skip


def agenda(num_messages: int, num_leaves: int, num_nics: int) -> Agenda:
    def ints(n, fill=NONE):
        return np.full(n, fill, np.int64)

    room = num_messages + num_leaves
    return Agenda(np.zeros(room), ints(room), ints(num_messages), ints(num_messages), ints(num_leaves),
                  ints(num_leaves), np.zeros(num_nics))  # fmt: skip


def routes(t: Topology) -> Routes:
    role = np.zeros(t.num_segments, np.int64)
    for table, which in ((t.leaf_up, 1), (t.leaf_down, 2)):
        for scope in range(3):
            first = table[:, scope][table[:, scope] >= 0]
            for path in range(t.scopes[scope].num_paths + 1):
                role[first + path] = which
    for first in (t.nic_down[:, None] + np.arange(t.num_planes + 1)).ravel():
        role[first] = 3
    role[t.nvlink_down[t.nvlink_down >= 0]] = 3
    planes = [scope.plane for scope in t.scopes]
    return Routes(
        t.host_of_accelerator, t.nic_of_accelerator, t.leaf_of_accelerator, t.pod_of_leaf, t.nvlink_up, t.nvlink_down,
        t.nic_up, t.nic_down, t.nic_overhead_s, t.leaf_up, t.leaf_down,
        np.array([s.num_paths for s in t.scopes], np.int64),
        np.array([[*s.radix, s.down_lanes] for s in t.scopes], np.int64),
        np.cumsum([0, *(len(p) for p in planes[:-1])]).astype(np.int64), np.concatenate(planes).astype(np.int64),
        np.array([t.num_planes], np.int64), t.segment_latency_s, role,
    )  # fmt: skip
