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

from sim.fabric import heap

NUM_ROLES = 4
"""A route's segments in order: out of the NIC, up, down, into the NIC. A segment has one role for good."""

NO_SEGMENT = -1


class Network(NamedTuple):
    """The constraints: what the solver may read.

    segment_start, segment_link, segment_share   CSR segment -> (link, share)
    link_start, link_segment                     CSR link -> segments that load it
    capacity                                     [links] bytes/s
    """

    segment_start: np.ndarray
    segment_link: np.ndarray
    segment_share: np.ndarray
    link_start: np.ndarray
    link_segment: np.ndarray
    capacity: np.ndarray


SEGMENT_WORK = np.dtype(
    [
        ("stamp", "i8"),
        ("weight", "f8"),  # unfrozen weight
        ("open", "i8"),  # unfrozen variables
        ("rate", "f8"),  # frozen load
        ("first", "i8"),  # start of the segment's variables in its role's list
        ("fill", "i8"),
        ("total", "i8"),
        ("changed_open", "i8"),
        ("changed_weight", "f8"),
        ("changed_rate", "f8"),
    ],
    align=True,
)
LINK_WORK = np.dtype([("stamp", "i8"), ("weight", "f8"), ("load", "f8"), ("open", "i8")], align=True)
COUNT_WORK = np.dtype([("stamp", "i8"), ("num_segments", "i8"), ("num_links", "i8")], align=True)


class Scratch(NamedTuple):
    """Work space of one solver. After a solve, used_segments[:num_segments] are those in use."""

    sizes: np.ndarray  # [1] COUNT_WORK
    segment: np.ndarray
    link: np.ndarray
    used_segments: np.ndarray
    used_links: np.ndarray
    changed: np.ndarray
    heap_key: np.ndarray
    heap_link: np.ndarray
    role_variables: np.ndarray  # [roles, capacity of variables]


def network(segment_start, segment_link, segment_share, capacity) -> Network:
    """Constraints from the CSR of segments; the transposed CSR is derived."""
    num_links, num_segments = len(capacity), len(segment_start) - 1
    owner = np.repeat(np.arange(num_segments), np.diff(segment_start))
    order = np.argsort(segment_link, kind="stable")
    link_start = np.zeros(num_links + 1, np.int64)
    np.cumsum(np.bincount(segment_link, minlength=num_links), out=link_start[1:])
    return Network(segment_start, segment_link, segment_share, link_start, owner[order].astype(np.int64),
                   np.asarray(capacity, np.float64))  # fmt: skip


def scratch(num_segments: int, num_links: int, max_variables: int) -> Scratch:
    return Scratch(
        np.zeros(1, COUNT_WORK), np.zeros(num_segments, SEGMENT_WORK), np.zeros(num_links, LINK_WORK),
        np.zeros(num_segments, np.int64), np.zeros(num_links, np.int64), np.zeros(num_segments, np.int64),
        np.zeros(num_links), np.zeros(num_links, np.int64), np.zeros((NUM_ROLES, max_variables), np.int32),
    )  # fmt: skip


@njit(cache=True)
def _open_segments(net, work, num_variables, variables, weight, segment):
    """Register the segments and links in use, with the weight that wants to cross them."""
    work.sizes[0].stamp += 1
    stamp = work.sizes[0].stamp
    num_segments = 0
    for i in range(num_variables):
        v = variables[i]
        w = weight[v]
        for role in range(NUM_ROLES):
            s = segment[v, role]
            if s == NO_SEGMENT:
                continue
            if work.segment[s].stamp != stamp:
                work.segment[s].stamp = stamp
                work.segment[s].weight = 0.0
                work.segment[s].open = 0
                work.segment[s].rate = 0.0
                work.segment[s].first = -1
                work.used_segments[num_segments] = s
                num_segments += 1
            work.segment[s].weight += w
            work.segment[s].open += 1
    num_links = 0
    for i in range(num_segments):
        s = work.used_segments[i]
        work.segment[s].total = work.segment[s].open
        for e in range(net.segment_start[s], net.segment_start[s + 1]):
            link = net.segment_link[e]
            if work.link[link].stamp != stamp:
                work.link[link].stamp = stamp
                work.link[link].weight = 0.0
                work.link[link].load = 0.0
                work.link[link].open = 0
                work.used_links[num_links] = link
                num_links += 1
            work.link[link].weight += net.segment_share[e] * work.segment[s].weight
            work.link[link].open += work.segment[s].open
    work.sizes[0].num_segments = num_segments
    work.sizes[0].num_links = num_links


@njit(cache=True)
def _list_role(work, num_variables, variables, segment, role):
    """Sort the variables by their segment of this role (counting sort). Done only for roles that freeze one."""
    first = 0
    for i in range(num_variables):
        s = segment[variables[i], role]
        if s == NO_SEGMENT:
            continue
        if work.segment[s].first < 0:
            work.segment[s].first = first
            work.segment[s].fill = first
            first += work.segment[s].total
        work.role_variables[role, work.segment[s].fill] = variables[i]
        work.segment[s].fill += 1


@njit(cache=True)
def solve(net, work, num_variables, variables, weight, segment, roles, rate):
    """Fill `rate[v]` for the listed variables; every other array of the problem is only read.

    variables        [num_variables] indices into weight, segment and rate
    weight           [v] > 0;  rate[v] is the result, bytes/s
    segment          [v, 4] segment of each role or NO_SEGMENT; a variable with none gets rate infinity
    roles            [segments] records with a field `role`

    Cost: each variable is touched once when it is listed and once when it freezes; O(links log links) on top.
    """
    for i in range(num_variables):
        rate[variables[i]] = -1.0
    _open_segments(net, work, num_variables, variables, weight, segment)
    size = work.sizes[0].num_links
    for i in range(size):
        link = work.used_links[i]
        work.heap_link[i] = link
        work.heap_key[i] = net.capacity[link] / work.link[link].weight
    heap.heapify(work.heap_key, work.heap_link, size)
    stamp = work.sizes[0].stamp
    level = 0.0
    left = num_variables
    while size > 0 and left > 0:
        key = work.heap_key[0]
        link = work.heap_link[0]
        if work.link[link].open == 0:
            size = heap.pop(work.heap_key, work.heap_link, size)
            continue
        now = (net.capacity[link] - work.link[link].load) / max(work.link[link].weight, 1e-300)
        now = max(now, level)
        if now > key * (1.0 + 1e-12):
            work.heap_key[0] = now
            heap.sift_down(work.heap_key, work.heap_link, size, 0)
            continue
        level = now
        size = heap.pop(work.heap_key, work.heap_link, size)
        num_changed = 0
        for e in range(net.link_start[link], net.link_start[link + 1]):
            s = net.link_segment[e]
            if work.segment[s].stamp != stamp or work.segment[s].open == 0:
                continue
            role = roles[s].role
            if work.segment[s].first < 0:
                _list_role(work, num_variables, variables, segment, role)
            first = work.segment[s].first
            for j in range(first, first + work.segment[s].total):
                v = work.role_variables[role, j]
                if rate[v] >= 0.0:
                    continue
                w = weight[v]
                x = level * w
                rate[v] = x
                left -= 1
                for other_role in range(NUM_ROLES):
                    other = segment[v, other_role]
                    if other == NO_SEGMENT:
                        continue
                    if work.segment[other].changed_open == 0:
                        work.changed[num_changed] = other
                        num_changed += 1
                    work.segment[other].changed_open += 1
                    work.segment[other].changed_weight += w
                    work.segment[other].changed_rate += x
        for j in range(num_changed):
            other = work.changed[j]
            n, w = work.segment[other].changed_open, work.segment[other].changed_weight
            x = work.segment[other].changed_rate
            work.segment[other].changed_open = 0
            work.segment[other].changed_weight = 0.0
            work.segment[other].changed_rate = 0.0
            work.segment[other].open -= n
            work.segment[other].weight -= w
            work.segment[other].rate += x
            for e in range(net.segment_start[other], net.segment_start[other + 1]):
                share = net.segment_share[e]
                k = net.segment_link[e]
                work.link[k].open -= n
                work.link[k].weight -= share * w
                work.link[k].load += share * x
    for i in range(num_variables):
        if rate[variables[i]] < 0.0:
            rate[variables[i]] = np.inf
