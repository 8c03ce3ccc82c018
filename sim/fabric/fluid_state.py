"""The arrays the fluid core lives in: one record array per kind of thing.

The state is one flat tuple of arrays, so that a compiled function takes a single argument and touches only
the arrays it names. A record holds what is read together; what the solver streams over stands alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sim.fabric.maxmin import Network, Scratch, network, scratch
from sim.fabric.policies import ENTRY, PLACED, PathNetwork
from sim.fabric.state_reference import StatePointer, StateType, borrowed, define
from sim.fabric.topology import Topology

NONE = np.int64(-1)
"""Typed, as a plain -1 would make compiled functions that take it be compiled once more for that literal."""

MESSAGE = np.dtype(
    [
        # what the arrival of an input reads comes first: it is one cache line
        ("input_s", "f8"),  # latest input so far
        ("earliest_s", "f8"),
        ("delay_s", "f8"),
        ("waits_for", "i4"),  # inputs (and a gate) that are not there yet
        ("source", "i4"),
        ("destination", "i4"),
        ("queue_pairs", "i4"),
        ("size_bytes", "i8"),
        ("transfer", "i4"),
        ("outcome", "i1"),
        ("num_pieces", "i2"),  # that the path policy made of it; 32,767 stands for more, too
        ("ready_s", "f8"),
        ("started_s", "f8"),
        ("arrived_s", "f8"),  # latest piece so far, and its acknowledgement
        ("answered_s", "f8"),
        ("delivered_bytes", "f8"),
        ("first_piece", "i4"),
        ("unanswered", "i4"),  # pieces whose last acknowledgement is still on its way
        ("successor_start", "i4"),  # into State.successors
        ("successor_end", "i4"),
        ("pieces_left", "i4"),
        ("next_in_window", "i4"),
        ("first_watch", "i4"),
    ],
    align=True,
)
"""Two cache lines. Four-byte fields: no more than 2^31 messages or edges live at a time."""

PIECE = np.dtype(
    [
        ("message", "i8"),  # NONE: free
        ("payload_bytes", "f8"),
        ("wire_bytes", "f8"),
        ("started_s", "f8"),
        ("latency_s", "f8"),
        ("next_of_message", "i4"),
        ("index", "i4"),  # among the pieces that the policy made of the message
    ],
    align=True,
)

COMPONENT = np.dtype(
    [
        ("first", "i8"),  # list of pieces
        ("last", "i8"),
        ("num_pieces", "i8"),
        ("checked", "i8"),  # num_pieces when it was last checked for falling apart
        ("settled_s", "f8"),  # the pieces' remaining bytes are as of this time
        ("generation", "i8"),  # counts the lives of this slot, so that old labels are seen to be old
        ("is_dirty", "?"),  # to be solved at this instant
    ],
    align=True,
)

SEGMENT = np.dtype(
    [
        ("label", "i8"),  # the component it was last part of: generation << 32 | slot
        ("role", "i8"),
        ("latency_s", "f8"),
        ("rate", "f8"),
        ("active", "i8"),  # pieces crossing it
        ("settled_s", "f8"),
        ("outstanding", "f8"),  # wire bytes placed and not yet sent, as of settled_s
        ("payload_bytes", "f8"),
        ("wire_bytes", "f8"),
        ("parent", "i8"),  # work space of the check for falling apart
    ],
    align=True,
)

COUNT = np.dtype([("left", "i8"), ("last_s", "f8"), ("serial", "i8"), ("unanswered", "i8")], align=True)
"""A transfer or a watch: messages that have not ended, when the last one so far did, and how many came before it.

unanswered: of a transfer, messages whose acknowledgements are not all there yet.
"""
NODE = np.dtype([("watch", "i8"), ("next", "i8")], align=True)
FIRED = np.dtype([("code", "i8"), ("time_s", "f8")], align=True)
"""Complete: a watch (code >= 0) or a transfer (-1 - code)."""
WINDOW = np.dtype([("first", "i8"), ("last", "i8"), ("is_open", "?")], align=True)
"""Messages that a leaf collects before its policy places them; it may be open and empty, if they were cancelled."""
ACCELERATOR = np.dtype(
    [("host", "i8"), ("nic", "i8"), ("leaf", "i8"), ("nvlink_up", "i8"), ("nvlink_down", "i8")], align=True
)
DETOUR = np.dtype([("route", "i4", (4,)), ("lost", "f8")], align=True)
"""Segments of a sprayed route between two places while some of its paths are withdrawn.

lost: share of the paths in use before that the latest change of routing took away.
"""
NIC = np.dtype([("up", "i8"), ("down", "i8"), ("overhead_s", "f8"), ("free_s", "f8")], align=True)
SCOPE = np.dtype(
    [("num_paths", "i8"), ("leaf_choices", "i8"), ("next_choices", "i8"), ("down_lanes", "i8"), ("first_plane", "i8")],
    align=True,
)

COUNTERS = np.dtype(
    [
        ("now_s", "f8"),
        ("next_s", "f8"),  # when the core next has something to do
        ("tolerance", "f8"),
        ("window_s", "f8"),
        ("bin_s", "f8"),  # width of the time series' bins; doubles when they run out
        ("num_agenda", "i8"),
        ("num_ready", "i8"),
        ("num_batch", "i8"),
        ("free_piece", "i8"),  # head of the list of free pieces
        ("num_free_pieces", "i8"),
        ("needed_pieces", "i8"),
        ("needed_detours", "i8"),  # entries of the batch whose detours are not all there
        ("num_withdrawn", "i8"),  # links that routing knows to be dead
        ("num_free_components", "i8"),
        ("num_scheduled", "i8"),  # components in the heap
        ("num_dirty", "i8"),
        ("num_fired", "i8"),
        ("num_events", "i8"),
        ("num_solves", "i8"),
        ("num_solved_pieces", "i8"),
        ("num_planes", "i8"),
        ("header_bytes", "i8"),
        ("payload_per_packet", "i8"),
        ("is_resuming", "?"),  # a batch waits for room
        ("is_fair_by_message", "?"),
        ("is_live", "?"),  # the policy reads outstanding bytes
        ("is_spread", "?"),  # the policy's pieces cross all paths at once
    ],
    align=True,
)


class State(NamedTuple):
    """Everything the core works on."""

    c: np.ndarray  # [1] COUNTERS
    messages: np.ndarray
    successors: np.ndarray
    pieces: np.ndarray
    next_piece: np.ndarray  # in its component, or in the free list
    remaining: np.ndarray  # wire bytes, as of its component's settled_s
    rate: np.ndarray
    weight: np.ndarray
    route: np.ndarray  # [pieces, 4] segments
    components: np.ndarray
    finish_s: np.ndarray  # [components] when its next piece ends; the heap's key
    place: np.ndarray  # [components] in the heap
    scheduled: np.ndarray  # the heap
    free_components: np.ndarray
    dirty: np.ndarray  # labels of components to solve
    solving: np.ndarray  # work space: pieces of the component being solved
    segments: np.ndarray
    series: np.ndarray  # [bins, segments] wire bytes sent in each stretch of time; what moves now lies together
    link_label: np.ndarray
    transfers: np.ndarray
    watches: np.ndarray
    nodes: np.ndarray
    fired: np.ndarray
    agenda_s: np.ndarray  # a heap of what happens when
    agenda_code: np.ndarray
    ready: np.ndarray  # messages ready at once
    waiting: np.ndarray  # messages to place at this instant
    windows: np.ndarray  # [leaves]
    accelerators: np.ndarray
    nics: np.ndarray
    leaf_up: np.ndarray  # [leaves, scopes] first segment
    leaf_down: np.ndarray
    pod_of_leaf: np.ndarray
    scopes: np.ndarray
    plane: np.ndarray
    batch: np.ndarray
    placed: np.ndarray
    detour_keys: np.ndarray  # sorted; see detours.key
    detours: np.ndarray
    network: Network
    work: Scratch
    paths: PathNetwork


class FluidStateType(StateType):
    """Compiled type of FluidStatePointer."""


class FluidStatePointer(StatePointer):
    """What the compiled functions take."""


define(FluidStatePointer, FluidStateType, State._fields)


@njit(cache=True)
def reference(state):
    """The compiled functions' view of a State, which must outlive it; made anew when an array was replaced."""
    return FluidStatePointer(*borrowed(state))  # type: ignore[call-arg]


def grown(array: np.ndarray, n: int, fill=0) -> np.ndarray:
    """A copy with room for n rows; new rows hold `fill`."""
    out = np.full((n, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


def _records(dtype: np.dtype, **columns) -> np.ndarray:
    out = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        out[name] = values
    return out


def static(t: Topology) -> dict[str, np.ndarray]:
    """The topology as the core reads it."""
    role = np.zeros(t.num_segments, np.int64)
    for table, which in ((t.leaf_up, 1), (t.leaf_down, 2)):
        for scope in range(3):
            first = table[:, scope][table[:, scope] >= 0]
            for path in range(t.scopes[scope].num_paths + 1):
                role[first + path] = which
    role[(t.nic_down[:, None] + np.arange(t.num_planes + 1)).ravel()] = 3
    role[t.nvlink_down[t.nvlink_down >= 0]] = 3
    planes = [scope.plane for scope in t.scopes]
    return {
        "segments": _records(SEGMENT, label=np.full(t.num_segments, NONE), role=role, latency_s=t.segment_latency_s),
        "accelerators": _records(
            ACCELERATOR, host=t.host_of_accelerator, nic=t.nic_of_accelerator, leaf=t.leaf_of_accelerator,
            nvlink_up=t.nvlink_up, nvlink_down=t.nvlink_down,
        ),
        "nics": _records(NIC, up=t.nic_up, down=t.nic_down, overhead_s=t.nic_overhead_s),
        "leaf_up": t.leaf_up,
        "leaf_down": t.leaf_down,
        "pod_of_leaf": t.pod_of_leaf,
        "scopes": _records(
            SCOPE, num_paths=[s.num_paths for s in t.scopes], leaf_choices=[s.radix[0] for s in t.scopes],
            next_choices=[s.radix[1] for s in t.scopes], down_lanes=[s.down_lanes for s in t.scopes],
            first_plane=np.cumsum([0, *(len(p) for p in planes[:-1])]),
        ),
        "plane": np.concatenate(planes).astype(np.int64),
        "windows": np.array([(NONE, NONE, False)] * t.num_leaves, WINDOW),
        "link_label": np.full(t.num_links, NONE),
    }  # fmt: skip


def with_segments(
    state: State,
    links: list[np.ndarray],
    shares: list[np.ndarray],
    latency_s: list[float],
    roles: list[int],
    now: float,
) -> dict[str, Any]:
    """The parts of a state that grow when these segments come after those it has."""
    have, old = len(state.segments), state.network
    segments = grown(state.segments, have + len(roles))
    segments["label"][have:], segments["settled_s"][have:] = NONE, now
    segments["role"][have:], segments["latency_s"][have:] = roles, latency_s
    series = np.zeros((len(state.series), have + len(roles)))
    series[:, :have] = state.series
    ends = old.segment_start[-1] + np.cumsum([len(each) for each in links])
    constraints = network(
        np.append(old.segment_start, ends), np.concatenate([old.segment_link, *links]),
        np.concatenate([old.segment_share, *shares]), old.capacity,
    )  # fmt: skip
    work = scratch(len(segments), len(old.capacity), len(state.pieces))
    return {"segments": segments, "series": series, "network": constraints, "work": work}


def for_messages(n: int, num_leaves: int) -> dict[str, np.ndarray]:
    """What grows with the number of messages under way."""
    return {
        "messages": np.empty(n, MESSAGE),  # a row is filled when it is handed out
        "agenda_s": np.zeros(n + num_leaves),
        "agenda_code": np.zeros(n + num_leaves, np.int64),
        "ready": np.zeros(n, np.int64),
        "waiting": np.zeros(n, np.int64),
        "batch": np.zeros(n, ENTRY),
    }


def for_pieces(n: int) -> dict[str, np.ndarray]:
    """What grows with the number of pieces under way; a component has at least one piece."""
    pieces = np.zeros(n, PIECE)
    pieces["message"] = NONE
    pieces["next_of_message"] = NONE
    return {
        "pieces": pieces,
        "next_piece": np.full(n, NONE),
        "remaining": np.zeros(n),
        "rate": np.zeros(n),
        "weight": np.ones(n),
        "route": np.full((n, 4), NONE, np.int32),
        "components": np.zeros(n, COMPONENT),
        "finish_s": np.full(n, np.inf),
        "place": np.full(n, NONE),
        "scheduled": np.zeros(n, np.int64),
        "free_components": np.zeros(n, np.int64),
        "dirty": np.zeros(2 * n, np.int64),  # a slot can be dropped and used again within an instant
        "solving": np.zeros(n, np.int64),
        "placed": np.zeros(n, PLACED),
    }
