"""Detours: the way around links that routing has withdrawn.

A piece with a path of its own moves to another one: hashed anew among those in use, or, where senders watch their
paths, drawn. A sprayed piece keeps its route and spreads over the paths that are left: between each two places its
segments are made anew (by `Detours`, outside of compiled code) and looked up here.

What is left out: a moved flow takes the same lane down as up; a sprayed one spreads evenly over the paths that are
left, also in a fat tree, where each switch would spread evenly over the links that it has left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numba import int64, uint64

from models.compiled import inner
from sim.fabric import placing, policies
from sim.fabric.fluid_state import DETOUR, NONE
from sim.fabric.topology import FAR, SAME_LEAF, SAME_POD, Topology

# --- compiled ---------------------------------------------------------------------------------------------------------


@inner
def key(state, source, destination):
    """What two accelerators' detours depend on: their leaves, or with several planes their NICs."""
    a, b = state.accelerators[source], state.accelerators[destination]
    if state.c[0].num_planes == 1:
        return a.leaf << 32 | b.leaf
    return a.nic << 32 | b.nic


@inner
def _find(state, wanted):
    """The row of a key, or NONE."""
    low, high = 0, len(state.detour_keys)
    while low < high:
        middle = (low + high) // 2
        if state.detour_keys[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return int64(low) if low < len(state.detour_keys) and state.detour_keys[low] == wanted else NONE


@inner
def has_all(state, count):
    """Whether the first entries of the batch find their detours."""
    for i in range(count):
        if _find(state, key(state, state.batch[i].source, state.batch[i].destination)) == NONE:
            return False
    return True


@inner
def scope_of(state, m):
    a, b = state.accelerators[state.messages[m].source], state.accelerators[state.messages[m].destination]
    return placing.scope_of(state, a.leaf, b.leaf)


@inner
def path_of(state, m, up, nic_up):
    """The number of a piece's path, from its segments up the fabric and out of the NIC."""
    a = state.accelerators[state.messages[m].source]
    if up == NONE:
        return nic_up - state.nics[a.nic].up
    return up - state.leaf_up[a.leaf, scope_of(state, m)]


@inner
def _is_in_use(state, m, path, heeds_marks):
    a, b = state.accelerators[state.messages[m].source], state.accelerators[state.messages[m].destination]
    scope = scope_of(state, m)
    plane = state.plane[state.scopes[scope].first_plane + path]
    if policies.is_withdrawn(state.paths, state.nics[a.nic].up + plane):
        return False
    if policies.is_withdrawn(state.paths, state.nics[b.nic].down + plane):
        return False
    return policies.is_good(state.paths, a.leaf, b.leaf, scope, path, heeds_marks)


@inner
def _num_in_use(state, m, num_paths, heeds_marks):
    count = 0
    for path in range(num_paths):
        count += _is_in_use(state, m, path, heeds_marks)
    return count


@inner
def another_path(state, m, index):
    """A path in use for piece `index` of message m, or NONE where routing has withdrawn all.

    Hashed from what the first choice was hashed from, so that successive messages of a queue pair keep it; drawn
    where senders choose paths themselves, from those that they think bad only when there is no other.
    """
    num_paths = state.scopes[scope_of(state, m)].num_paths
    draws = len(state.paths.bad_until_s) > 0
    heeds_marks = draws
    count = _num_in_use(state, m, num_paths, heeds_marks)
    if count == 0 and draws:
        heeds_marks = not draws  # a variable: a plain False would have its callees compiled once more
        count = _num_in_use(state, m, num_paths, heeds_marks)
    if count == 0:
        return NONE
    if draws:
        left = policies.random_below(state.paths.random, count)
    else:
        header = policies.header_of(state.messages[m].source, state.messages[m].destination, index)
        seed = uint64(state.paths.parameters[policies.SEED])
        left = int64(policies.mix(header ^ policies.mix(seed)) % uint64(count))
    for path in range(num_paths):
        if _is_in_use(state, m, path, heeds_marks):
            if left == 0:
                return int64(path)
            left -= 1
    return NONE


@inner
def route_of_path(state, m, path):
    """The segments of a path."""
    a, b = state.accelerators[state.messages[m].source], state.accelerators[state.messages[m].destination]
    scope = scope_of(state, m)
    plane = state.plane[state.scopes[scope].first_plane + path]
    up, down = NONE, NONE
    if scope != SAME_LEAF:
        up = state.leaf_up[a.leaf, scope] + path
        down = state.leaf_down[b.leaf, scope] + path
    return state.nics[a.nic].up + plane, up, down, state.nics[b.nic].down + plane


@inner
def overlaid(state, m, s0, s1, s2, s3):
    """A sprayed route with the segments of its detour, where it has any."""
    row = _find(state, key(state, state.messages[m].source, state.messages[m].destination))
    if row == NONE:
        return s0, s1, s2, s3, 0.0
    route = state.detours[row].route
    return (
        int64(route[0]) if route[0] != NONE else s0, int64(route[1]) if route[1] != NONE else s1,
        int64(route[2]) if route[2] != NONE else s2, int64(route[3]) if route[3] != NONE else s3,
        state.detours[row].lost,
    )  # fmt: skip


@inner
def _is_withdrawn(state, s):
    return s != NONE and policies.is_withdrawn(state.paths, s)


@inner
def _crosses_withdrawn(state, s0, s1, s2, s3):
    """Whether one of the segments of a single path holds a link that routing has withdrawn."""
    above = _is_withdrawn(state, s1) or _is_withdrawn(state, s2)
    return above or _is_withdrawn(state, s0) or _is_withdrawn(state, s3)


@inner
def around(state, m, index, s0, s1, s2, s3):
    """The segments of piece `index` of message m, which a policy placed on s0 … s3, as routing has it now."""
    if state.c[0].is_spread:
        s0, s1, s2, s3, _ = overlaid(state, m, s0, s1, s2, s3)
        return s0, s1, s2, s3
    return around_withdrawn(state, m, index, s0, s1, s2, s3)


@inner
def around_withdrawn(state, m, index, s0, s1, s2, s3):
    """The same of a piece with a path of its own."""
    if not _crosses_withdrawn(state, s0, s1, s2, s3):
        return s0, s1, s2, s3
    path = another_path(state, m, index)
    return (s0, s1, s2, s3) if path == NONE else route_of_path(state, m, path)


def keys_of(topology: Topology, source: np.ndarray, destination: np.ndarray) -> list[int]:
    """`key` of many pairs of accelerators, each once, in order."""
    place = topology.leaf_of_accelerator if topology.num_planes == 1 else topology.nic_of_accelerator
    return [int(k) for k in np.unique(place[source] << 32 | place[destination])]


# --- making segments --------------------------------------------------------------------------------------------------


_Row = tuple[tuple[int, ...], float]
"""(segment of each role, share lost) as in DETOUR."""
NO_DETOUR = (-1, -1, -1, -1)


@dataclass(slots=True)
class Segments:
    """Segments beyond the topology's own, in the order in which they were made."""

    links: list[np.ndarray] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)


class Detours:
    """Makes the segments that spread over the paths still in use, each set of paths once.

    With n paths left, a segment loads each of its links with the sum of the shares that single paths have on it, over
    n. Where nothing is left the route stays as it was: its flows wait.

    withdrawn    [links] shared with the core
    is_ideal     the fabric between the NICs has no limits and never fails
    """

    def __init__(self, topology: Topology, withdrawn: np.ndarray, is_ideal: bool) -> None:
        self.topology = topology
        self.withdrawn = withdrawn
        self.is_ideal = is_ideal
        self.made = Segments()
        self._is_dead = np.zeros(topology.num_segments, np.bool_)
        self._known: dict[tuple[int, bytes], int] = {}
        self._num_left: dict[int, int] = {}
        self._num_before: dict[int, int] = {}
        self._rows: dict[int, _Row] = {}

    def forget(self) -> None:
        """Routing has changed: whatever was found holds no longer."""
        t = self.topology
        self._is_dead = np.logical_or.reduceat(self.withdrawn[t.segment_link], t.segment_start[:-1])
        self._num_before, self._num_left, self._rows = self._num_left, {}, {}

    def add(self, keys: Iterable[int]) -> None:
        """Find the detours between these places (see `key`)."""
        for wanted in keys:
            if wanted not in self._rows:
                self._rows[wanted] = self._row(wanted)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys, DETOUR rows), sorted by key."""
        keys = sorted(self._rows)
        rows = np.zeros(len(keys), DETOUR)
        for i, wanted in enumerate(keys):
            rows[i] = self._rows[wanted]
        return np.array(keys, np.int64), rows

    def _row(self, wanted: int) -> _Row:
        alternatives = self._alternatives(wanted >> 32, wanted & 0xFFFFFFFF)
        dead = [self._is_dead[each] for each in alternatives if each is not None]
        if not dead:  # an ideal fabric behind single ports
            return NO_DETOUR, 0.0
        is_left = ~np.logical_or.reduce(dead)
        num_left = self._num_left[wanted] = int(is_left.sum())
        before = self._num_before.get(wanted, len(is_left))
        lost = max(0.0, 1.0 - num_left / before) if num_left and before else 0.0
        if num_left in (0, len(is_left)):
            return NO_DETOUR, lost
        made = [-1 if each is None else self._segment(role, each[is_left]) for role, each in enumerate(alternatives)]
        return tuple(made), lost

    def _alternatives(self, a: int, b: int) -> list[np.ndarray | None]:
        """Of each role the segments of single paths, in the paths' order; None where it has no part in the choice."""
        t = self.topology
        has_planes = t.num_planes > 1
        leaf_a, leaf_b = (int(t.leaf_of_nic[a]), int(t.leaf_of_nic[b])) if has_planes else (a, b)
        scope = SAME_POD if t.pod_of_leaf[leaf_a] == t.pod_of_leaf[leaf_b] else FAR
        if self.is_ideal or leaf_a == leaf_b:
            scope = SAME_LEAF
        paths = np.arange(t.scopes[scope].num_paths)
        planes = t.scopes[scope].plane[:-1]
        return [
            t.nic_up[a] + planes if has_planes else None,
            t.leaf_up[leaf_a, scope] + paths if scope != SAME_LEAF else None,
            t.leaf_down[leaf_b, scope] + paths if scope != SAME_LEAF else None,
            t.nic_down[b] + planes if has_planes else None,
        ]

    def _segment(self, role: int, members: np.ndarray) -> int:
        """One segment that spreads evenly over several."""
        name = (role, members.tobytes())
        if name not in self._known:
            t = self.topology
            loads = np.zeros(t.num_links)
            for s in members:
                span = slice(t.segment_start[s], t.segment_start[s + 1])
                loads[t.segment_link[span]] += t.segment_share[span]
            links = np.flatnonzero(loads)
            self._known[name] = t.num_segments + len(self.made.roles)
            self.made.links.append(links)
            self.made.shares.append(loads[links] / len(members))
            self.made.latency_s.append(float(t.segment_latency_s[members].max()))
            self.made.roles.append(role)
        return self._known[name]
