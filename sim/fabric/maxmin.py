"""Weighted max-min fair rates by progressive filling.

The solver knows capacities, weights and shares; it does not know what a network is. A *variable* (a flow)
crosses up to four *segments*; a segment loads its links, each with a share of the variable's rate.

All rates rise together, x = weight * level, until a link is full; the variables that cross it are frozen
at that level, and the rest rise on. A link fills at level (capacity - frozen load) / (unfrozen weight);
this can only grow as others freeze, so links wait in a heap under a key that is brought up to date when
it comes to the top.

Source: Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2 (max-min flow control).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from models.compiled import inner
from sim.fabric import heap

NUM_ROLES = 4
"""A route's segments in order: out of the NIC, up, down, into the NIC. A segment has one role for good."""

NO_SEGMENT = -1


class Network(NamedTuple):
    """The constraints: what the solver may read.

    segment_start, segment_link, segment_share   CSR segment -> (link, share)
    link_start, link_segment, link_share         CSR link -> (segment that loads it, share)
    capacity                                     [links] bytes/s
    """

    segment_start: np.ndarray
    segment_link: np.ndarray
    segment_share: np.ndarray
    link_start: np.ndarray
    link_segment: np.ndarray
    link_share: np.ndarray
    capacity: np.ndarray


SEGMENT_WORK = np.dtype(
    [
        ("total", "i4"),  # variables; 0 where no variable of this solve crosses it
        ("open", "i4"),  # unfrozen variables
        ("first", "i4"),  # start of the segment's variables in its role's list
        ("fill", "i8"),
        ("weight", "f8"),  # unfrozen weight
        ("rate", "f8"),  # frozen load
        ("level", "f8"),  # at which one of its links was full; infinity before that
    ],
    align=True,
)
COUNT_WORK = np.dtype([("stamp", "i8"), ("num_segments", "i8"), ("num_links", "i8"), ("left", "i8")], align=True)


class Scratch(NamedTuple):
    """Work space of one solver. After a solve, used_segments[:num_segments] are those in use."""

    sizes: np.ndarray  # [1] COUNT_WORK
    segment: np.ndarray
    link_stamp: np.ndarray
    used_segments: np.ndarray
    used_links: np.ndarray
    heap_key: np.ndarray
    heap_link: np.ndarray
    is_frozen: np.ndarray  # [capacity of variables]
    listed: np.ndarray  # [roles, capacity of variables] grouped by segment


def network(segment_start, segment_link, segment_share, capacity) -> Network:
    """Constraints from the CSR of segments; the transposed CSR is derived."""
    num_links, num_segments = len(capacity), len(segment_start) - 1
    owner = np.repeat(np.arange(num_segments), np.diff(segment_start))
    order = np.argsort(segment_link, kind="stable")
    link_start = np.zeros(num_links + 1, np.int64)
    np.cumsum(np.bincount(segment_link, minlength=num_links), out=link_start[1:])
    return Network(
        segment_start, segment_link, segment_share, link_start, owner[order].astype(np.int64),
        np.asarray(segment_share, np.float64)[order], np.asarray(capacity, np.float64),
    )  # fmt: skip


def scratch(num_segments: int, num_links: int, max_variables: int) -> Scratch:
    return Scratch(
        np.zeros(1, COUNT_WORK), np.zeros(num_segments, SEGMENT_WORK), np.zeros(num_links, np.int64),
        np.zeros(num_segments, np.int64), np.zeros(num_links, np.int64),
        np.zeros(num_links), np.zeros(num_links, np.int64), np.zeros(max_variables, np.bool_),
        np.zeros((NUM_ROLES, max_variables), np.int32),
    )  # fmt: skip


def with_room(work: Scratch, max_variables: int) -> Scratch:
    """The same work space for more variables."""
    return work._replace(
        is_frozen=np.zeros(max_variables, np.bool_), listed=np.zeros((NUM_ROLES, max_variables), np.int32)
    )


@inner
def _open_segments(work, num_variables, variables, weight, segment):
    """Register the segments in use, with the weight that wants to cross them."""
    segments, used_segments, sizes = work.segment, work.used_segments, work.sizes[0]
    for i in range(sizes.num_segments):
        segments[used_segments[i]].total = 0
    num_segments = 0
    for i in range(num_variables):
        v = variables[i]
        work.is_frozen[v] = False
        for role in range(NUM_ROLES):
            s = segment[v, role]
            if s == NO_SEGMENT:
                continue
            used = segments[s]
            if used.total == 0:
                used.first = NO_SEGMENT
                used.weight = 0.0
                used.rate = 0.0
                used.level = np.inf
                used_segments[num_segments] = s
                num_segments += 1
            used.total += 1
            used.weight += weight[v]
    sizes.num_segments = num_segments


@inner
def _open_links(net, work):
    """Register the links in use."""
    sizes, stamps = work.sizes[0], work.link_stamp
    sizes.stamp += 1
    num_links = 0
    for i in range(sizes.num_segments):
        s = work.used_segments[i]
        work.segment[s].open = work.segment[s].total
        for e in range(net.segment_start[s], net.segment_start[s + 1]):
            k = net.segment_link[e]
            if stamps[k] != sizes.stamp:
                stamps[k] = sizes.stamp
                work.used_links[num_links] = k
                num_links += 1
    sizes.num_links = num_links


@inner(inline="always")
def _full_at(link_start, link_segment, link_share, capacity, segments, k):
    """The level at which link k will be full as things stand; infinity when nothing that crosses it can grow."""
    load, weight, is_open = 0.0, 0.0, False
    for e in range(link_start[k], link_start[k + 1]):
        s = segments[link_segment[e]]
        if s.total > 0:
            load += link_share[e] * s.rate
            weight += link_share[e] * s.weight
            is_open |= s.open > 0
    return (capacity[k] - load) / max(weight, 1e-300) if is_open else np.inf


@inner
def _list_role(work, num_variables, variables, segment, role):
    """Sort the variables by their segment of this role (counting sort). Done only for roles that freeze one."""
    segments, listed = work.segment, work.listed[role]
    first = 0
    for i in range(num_variables):
        v = variables[i]
        s = segment[v, role]
        if s == NO_SEGMENT:
            continue
        used = segments[s]
        if used.first == NO_SEGMENT:
            used.first = first
            used.fill = first
            first += used.total
        listed[used.fill] = v
        used.fill += 1


@inner
def _freeze(work, weight, segment, s, role, level):
    """Freeze what still crosses segment s."""
    segments, is_frozen = work.segment, work.is_frozen
    segments[s].level = level
    listed = work.listed[role]
    for j in range(segments[s].first, segments[s].first + segments[s].total):
        v = listed[j]
        if is_frozen[v]:
            continue
        is_frozen[v] = True
        work.sizes[0].left -= 1
        w = weight[v]
        for other_role in range(NUM_ROLES):
            crossed = segment[v, other_role]
            if crossed != NO_SEGMENT:
                segments[crossed].open -= 1
                segments[crossed].weight -= w
                segments[crossed].rate += level * w


@inner
def _read_rates(work, num_variables, variables, weight, segment, rate):
    """A variable froze at the level at which the first of its segments did, and levels only rise."""
    segments = work.segment
    for i in range(num_variables):
        v = variables[i]
        level = np.inf
        for role in range(NUM_ROLES):
            s = segment[v, role]
            if s != NO_SEGMENT:
                level = min(level, segments[s].level)
        rate[v] = level * weight[v]


@njit(cache=True)
def solve(net, work, num_variables, variables, weight, segment, roles, rate):
    """Fill `rate[v]` for the listed variables; every other array of the problem is only read.

    variables        [num_variables] indices into weight, segment and rate
    weight           [v] > 0;  rate[v] is the result, bytes/s
    segment          [v, 4] segment of each role or NO_SEGMENT; a variable with none gets rate infinity
    roles            [segments] records with a field `role`

    Cost: each variable is touched once when it is listed and once when it freezes; O(links log links) on top.
    """
    _open_segments(work, num_variables, variables, weight, segment)
    _open_links(net, work)
    segments, keys, waiting = work.segment, work.heap_key, work.heap_link
    start, member, share, capacity = net.link_start, net.link_segment, net.link_share, net.capacity
    size = work.sizes[0].num_links
    for i in range(size):
        waiting[i] = work.used_links[i]
        keys[i] = _full_at(start, member, share, capacity, segments, waiting[i])
    heap.heapify(keys, waiting, size)
    work.sizes[0].left = num_variables
    level = 0.0
    while size > 0 and work.sizes[0].left > 0:
        k = waiting[0]
        full_at = max(_full_at(start, member, share, capacity, segments, k), level)
        if keys[0] * (1.0 + 1e-12) < full_at < np.inf:
            keys[0] = full_at
            heap.sift_down(keys, waiting, size, np.int64(0))
            continue
        size = heap.pop(keys, waiting, size)
        if full_at == np.inf:
            continue
        level = full_at
        for e in range(start[k], start[k + 1]):
            s = member[e]
            if segments[s].total == 0 or segments[s].open == 0:
                continue
            role = roles[s].role
            if segments[s].first == NO_SEGMENT:
                _list_role(work, num_variables, variables, segment, role)
            _freeze(work, weight, segment, s, role, level)
    _read_rates(work, num_variables, variables, weight, segment, rate)
