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


class Scratch(NamedTuple):
    """Work space of one solver; after a solve, segments[:count[0]] are those in use and segment_rate their loads."""

    stamp: np.ndarray  # [1] current solve
    count: np.ndarray  # [2] segments in use, links in use
    segments: np.ndarray
    segment_stamp: np.ndarray
    segment_weight: np.ndarray  # unfrozen weight
    segment_open: np.ndarray  # unfrozen variables
    segment_rate: np.ndarray  # frozen load
    segment_first: np.ndarray  # start of the segment's variables in its role's list
    segment_fill: np.ndarray
    segment_total: np.ndarray
    changed: np.ndarray
    changed_weight: np.ndarray
    changed_rate: np.ndarray
    changed_open: np.ndarray
    links: np.ndarray
    link_stamp: np.ndarray
    link_weight: np.ndarray
    link_load: np.ndarray
    link_open: np.ndarray
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
    def ints(n):
        return np.zeros(n, np.int64)

    def floats(n):
        return np.zeros(n, np.float64)

    s, k = num_segments, num_links
    return Scratch(
        ints(1), ints(2), ints(s), ints(s), floats(s), ints(s), floats(s), ints(s), ints(s), ints(s),
        ints(s), floats(s), floats(s), ints(s), ints(k), ints(k), floats(k), floats(k), ints(k),
        floats(k), ints(k), np.zeros((NUM_ROLES, max_variables), np.int32),
    )  # fmt: skip


@njit(cache=True)
def _open_segments(net, work, num_variables, variables, weight, segment):
    """Register the segments and links in use, with the weight that wants to cross them."""
    work.stamp[0] += 1
    stamp = work.stamp[0]
    num_segments = 0
    for i in range(num_variables):
        v = variables[i]
        w = weight[v]
        for role in range(NUM_ROLES):
            s = segment[v, role]
            if s == NO_SEGMENT:
                continue
            if work.segment_stamp[s] != stamp:
                work.segment_stamp[s] = stamp
                work.segment_weight[s] = 0.0
                work.segment_open[s] = 0
                work.segment_rate[s] = 0.0
                work.segment_first[s] = -1
                work.segments[num_segments] = s
                num_segments += 1
            work.segment_weight[s] += w
            work.segment_open[s] += 1
    num_links = 0
    for i in range(num_segments):
        s = work.segments[i]
        work.segment_total[s] = work.segment_open[s]
        for e in range(net.segment_start[s], net.segment_start[s + 1]):
            link = net.segment_link[e]
            if work.link_stamp[link] != stamp:
                work.link_stamp[link] = stamp
                work.link_weight[link] = 0.0
                work.link_load[link] = 0.0
                work.link_open[link] = 0
                work.links[num_links] = link
                num_links += 1
            work.link_weight[link] += net.segment_share[e] * work.segment_weight[s]
            work.link_open[link] += work.segment_open[s]
    work.count[0] = num_segments
    work.count[1] = num_links


@njit(cache=True)
def _list_role(work, num_variables, variables, segment, role):
    """Sort the variables by their segment of this role (counting sort). Done only for roles that freeze one."""
    first = 0
    for i in range(num_variables):
        s = segment[variables[i], role]
        if s == NO_SEGMENT:
            continue
        if work.segment_first[s] < 0:
            work.segment_first[s] = first
            work.segment_fill[s] = first
            first += work.segment_total[s]
        work.role_variables[role, work.segment_fill[s]] = variables[i]
        work.segment_fill[s] += 1


@njit(cache=True)
def solve(net, work, num_variables, variables, weight, segment, role_of_segment, rate):
    """Fill `rate[v]` for the listed variables; every other array of the problem is only read.

    variables        [num_variables] indices into weight, segment and rate
    weight           [v] > 0;  rate[v] is the result, bytes/s
    segment          [v, 4] segment of each role or NO_SEGMENT; a variable with none gets rate infinity
    role_of_segment  [segments]

    Cost: each variable is touched once when it is listed and once when it freezes; O(links log links) on top.
    """
    for i in range(num_variables):
        rate[variables[i]] = -1.0
    _open_segments(net, work, num_variables, variables, weight, segment)
    size = work.count[1]
    for i in range(size):
        link = work.links[i]
        work.heap_link[i] = link
        work.heap_key[i] = net.capacity[link] / work.link_weight[link]
    heap.heapify(work.heap_key, work.heap_link, size)
    stamp = work.stamp[0]
    level = 0.0
    left = num_variables
    while size > 0 and left > 0:
        key = work.heap_key[0]
        link = work.heap_link[0]
        if work.link_open[link] == 0:
            size = heap.pop(work.heap_key, work.heap_link, size)
            continue
        now = (net.capacity[link] - work.link_load[link]) / max(work.link_weight[link], 1e-300)
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
            if work.segment_stamp[s] != stamp or work.segment_open[s] == 0:
                continue
            role = role_of_segment[s]
            if work.segment_first[s] < 0:
                _list_role(work, num_variables, variables, segment, role)
            first = work.segment_first[s]
            for j in range(first, first + work.segment_total[s]):
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
                    if work.changed_open[other] == 0:
                        work.changed[num_changed] = other
                        num_changed += 1
                    work.changed_open[other] += 1
                    work.changed_weight[other] += w
                    work.changed_rate[other] += x
        for j in range(num_changed):
            other = work.changed[j]
            n, w, x = work.changed_open[other], work.changed_weight[other], work.changed_rate[other]
            work.changed_open[other] = 0
            work.changed_weight[other] = 0.0
            work.changed_rate[other] = 0.0
            work.segment_open[other] -= n
            work.segment_weight[other] -= w
            work.segment_rate[other] += x
            for e in range(net.segment_start[other], net.segment_start[other + 1]):
                share = net.segment_share[e]
                k = net.segment_link[e]
                work.link_open[k] -= n
                work.link_weight[k] -= share * w
                work.link_load[k] += share * x
    for i in range(num_variables):
        if rate[variables[i]] < 0.0:
            rate[variables[i]] = np.inf
