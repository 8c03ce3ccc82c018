"""Components: which pieces share links, and their rates.

A component is a list of pieces that are connected through shared links. Only the component that a change
touches is settled (its pieces' remaining bytes brought up to now) and solved again. Components grow
together when a new piece touches two of them, and are checked for falling apart when they have shrunk.

Segments and links carry the label of the component that last used them. A label from an earlier life of a
component's slot is recognised by its generation.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit

from models.compiled import inner
from sim.fabric import heap, maxmin
from sim.fabric.fluid_state import NONE

SMALL = 32
"""Components up to this size are checked for falling apart at every change."""
LARGE = 256
"""From this size on, pieces that join may wait for a moment (within the tolerance) so that many are solved at once."""


@inner
def take_piece(state):
    c = state.c[0]
    p = c.free_piece
    c.free_piece = state.next_piece[p]
    c.num_free_pieces -= 1
    return p


@inner
def give_piece(state, p):
    c = state.c[0]
    state.pieces[p].message = NONE
    state.next_piece[p] = c.free_piece
    c.free_piece = p
    c.num_free_pieces += 1


# --- time -------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def fold_series(state):
    """Twice the time in the same number of bins."""
    bins = state.series.shape[0]
    for b in range(bins // 2):
        for s in range(state.series.shape[1]):
            state.series[b, s] = state.series[2 * b, s] + state.series[2 * b + 1, s]
    state.series[bins // 2 :] = 0.0
    state.c[0].bin_s *= 2.0


@njit(cache=True)
def account(state, s, now):
    """Bring a segment's outstanding bytes and time series up to now, at the rate it had."""
    segment = state.segments[s]
    since = segment.settled_s
    if now <= since:
        return
    segment.settled_s = now
    rate = segment.rate
    if rate <= 0.0:
        return
    segment.outstanding -= rate * (now - since)
    bins = state.series.shape[0]
    if bins == 0:
        return
    while now >= state.c[0].bin_s * bins:
        fold_series(state)
    width = state.c[0].bin_s
    b = int(since / width)
    last = int(now / width)
    while b < last:
        edge = (b + 1) * width
        state.series[b, s] += rate * max(edge - since, 0.0)
        since = max(edge, since)
        b += 1
    state.series[b, s] += rate * max(now - since, 0.0)


@inner
def settle(state, k, now):
    """Bring the remaining bytes of component k's pieces up to now."""
    dt = now - state.components[k].settled_s
    if dt <= 0.0:
        return
    state.components[k].settled_s = now
    p = state.components[k].first
    while p != NONE:
        state.remaining[p] = max(state.remaining[p] - state.rate[p] * dt, 0.0)
        p = state.next_piece[p]


# --- membership -------------------------------------------------------------------------------------------------------


@inner
def _label(state, k):
    return state.components[k].generation << 32 | k


@inner
def component_of(state, label):
    """The component a label means, or NONE when that component is gone."""
    if label < 0:
        return NONE
    k = label & 0xFFFFFFFF
    return k if state.components[k].generation == label >> 32 else NONE


@inner
def _new_component(state, now):
    c = state.c[0]
    c.num_free_components -= 1
    k = state.free_components[c.num_free_components]
    component = state.components[k]
    component.first = NONE
    component.last = NONE
    component.num_pieces = 0
    component.checked = 0
    component.settled_s = now
    component.is_dirty = False
    state.place[k] = NONE
    return k


@inner
def unschedule(state, k):
    c = state.c[0]
    c.num_scheduled = heap.remove(state.scheduled, state.place, state.finish_s, c.num_scheduled, k)


@inner
def _schedule(state, k, time_s):
    c = state.c[0]
    c.num_scheduled = heap.move(state.scheduled, state.place, state.finish_s, c.num_scheduled, k, time_s)


@inner
def _drop_component(state, k):
    state.components[k].generation += 1
    unschedule(state, k)
    c = state.c[0]
    state.free_components[c.num_free_components] = k
    c.num_free_components += 1


@inner
def mark_dirty(state, k):
    """Component k is solved before this instant ends."""
    if not state.components[k].is_dirty:
        c = state.c[0]
        state.components[k].is_dirty = True
        state.dirty[c.num_dirty] = _label(state, k)
        c.num_dirty += 1


@inner
def _append(state, k, p):
    component = state.components[k]
    state.next_piece[p] = NONE
    if component.first == NONE:
        component.first = p
    else:
        state.next_piece[component.last] = p
    component.last = p
    component.num_pieces += 1


@inner
def _stamp(state, p, label):
    """Label the segments and links of a piece."""
    for role in range(maxmin.NUM_ROLES):
        s = state.route[p, role]
        if s != NONE and state.segments[s].label != label:
            state.segments[s].label = label
            for e in range(state.network.segment_start[s], state.network.segment_start[s + 1]):
                state.link_label[state.network.segment_link[e]] = label


@inner
def _merge(state, a, b, now):
    """Join two components; the smaller is relabelled. Returns the one that lives on."""
    if state.components[a].num_pieces < state.components[b].num_pieces:
        a, b = b, a
    settle(state, a, now)
    settle(state, b, now)
    label = _label(state, a)
    p = state.components[b].first
    while p != NONE:
        _stamp(state, p, label)
        p = state.next_piece[p]
    state.next_piece[state.components[a].last] = state.components[b].first
    state.components[a].last = state.components[b].last
    state.components[a].num_pieces += state.components[b].num_pieces
    if state.components[b].is_dirty:
        mark_dirty(state, a)
    if state.place[b] != NONE and (state.place[a] == NONE or state.finish_s[b] < state.finish_s[a]):
        _schedule(state, a, state.finish_s[b])
    _drop_component(state, b)
    return a


@inner
def _join(state, k, found, now):
    """The component of a piece that touched k (NONE so far) and now touches `found`."""
    if found in (NONE, k):
        return k
    return found if k == NONE else _merge(state, k, found, now)


@inner
def _when_to_solve(state, k, p, now):
    """A new piece may wait for as long as its own time would move by no more than the tolerance."""
    tolerance = state.c[0].tolerance
    link = state.network.segment_link[state.network.segment_start[state.route[p, 0]]]
    capacity = state.network.capacity[link]
    can_wait = tolerance > 0.0 and state.components[k].num_pieces > LARGE and capacity > 0.0
    if can_wait and not state.components[k].is_dirty:
        solve_s = now + tolerance * state.pieces[p].wire_bytes / capacity
        if state.place[k] == NONE or solve_s < state.finish_s[k]:
            _schedule(state, k, solve_s)
    else:
        mark_dirty(state, k)


@inner
def _enter(state, p, k, now):
    """Join component k (NONE: none so far) with those that piece p's segments touch; returns what they have become."""
    for role in range(maxmin.NUM_ROLES):
        s = state.route[p, role]
        if s == NONE:
            continue
        state.segments[s].active += 1
        label = state.segments[s].label
        if k != NONE and label == _label(state, k):
            continue
        found = component_of(state, label)
        k = _join(state, k, found, now)
        if found == NONE:
            for e in range(state.network.segment_start[s], state.network.segment_start[s + 1]):
                k = _join(state, k, component_of(state, state.link_label[state.network.segment_link[e]]), now)
    return k


@inner
def add_piece(state, p, now):
    """Put a piece into the component it belongs to, joining components where it touches several."""
    k = _enter(state, p, NONE, now)
    if k == NONE:
        k = _new_component(state, now)
    state.rate[p] = 0.0
    _append(state, k, p)
    _stamp(state, p, _label(state, k))
    _when_to_solve(state, k, p, now)


@inner
def home(state, p):
    """The component of a piece that is under way."""
    for role in range(maxmin.NUM_ROLES):
        if state.route[p, role] != NONE:
            return component_of(state, state.segments[state.route[p, role]].label)
    return NONE


@inner
def move_piece(state, p, route, now):
    """Put a piece that is under way, and settled, on another route, with all that it has left."""
    k = home(state, p)
    leave(state, p, now)
    for role in range(maxmin.NUM_ROLES):
        state.route[p, role] = route[role]
        if route[role] != NONE:
            state.segments[route[role]].outstanding += state.remaining[p]
    k = _enter(state, p, k, now)
    _stamp(state, p, _label(state, k))
    mark_dirty(state, k)


@inner
def leave(state, p, now):
    """Take a piece's rate off its segments (it finished, or was cancelled)."""
    for role in range(maxmin.NUM_ROLES):
        s = int64(state.route[p, role])
        if s == NONE:
            continue
        account(state, s, now)
        segment = state.segments[s]
        segment.active -= 1
        segment.outstanding -= state.remaining[p]
        segment.rate = max(segment.rate - state.rate[p], 0.0) if segment.active > 0 else 0.0
    state.rate[p] = 0.0


# --- solving ----------------------------------------------------------------------------------------------------------


@inner
def _gather(state, k):
    """Copy a component's live pieces to the work list and drop the dead ones; returns their number."""
    n = 0
    previous = NONE
    p = state.components[k].first
    while p != NONE:
        following = state.next_piece[p]
        if state.pieces[p].message == NONE:
            if previous == NONE:
                state.components[k].first = following
            else:
                state.next_piece[previous] = following
            give_piece(state, p)
        else:
            state.solving[n] = p
            n += 1
            previous = p
        p = following
    state.components[k].last = previous
    state.components[k].num_pieces = n
    if n > LARGE:
        _keep_sorted(state, k, n)
    return n


@inner
def _keep_sorted(state, k, n):
    """Large components are kept in the order of memory: solving one in random order takes five times as long."""
    solving = state.solving[:n]
    lowest, highest = solving[0], solving[0]
    is_sorted = True
    for i in range(1, n):
        is_sorted &= solving[i] > solving[i - 1]
        lowest = min(lowest, solving[i])
        highest = max(highest, solving[i])
    if is_sorted:
        return
    if highest - lowest > 64 * n:
        heap.sort(np.zeros(n), solving, n)
    else:  # few gaps: tick the members off
        is_member = state.work.is_frozen
        for p in range(lowest, highest + 1):
            is_member[p] = False
        for p in solving:
            is_member[p] = True
        i = 0
        for p in range(lowest, highest + 1):
            if is_member[p]:
                solving[i] = p
                i += 1
    for i in range(n - 1):
        state.next_piece[solving[i]] = solving[i + 1]
    state.next_piece[solving[n - 1]] = NONE
    state.components[k].first = solving[0]
    state.components[k].last = solving[n - 1]


@inner
def _solve_alone(state, p):
    """A piece that shares nothing runs at its slowest link."""
    network = state.network
    rate = np.inf
    for role in range(maxmin.NUM_ROLES):
        s = state.route[p, role]
        if s == NONE:
            continue
        for e in range(network.segment_start[s], network.segment_start[s + 1]):
            rate = min(rate, network.capacity[network.segment_link[e]] / network.segment_share[e])
    state.rate[p] = rate


@inner
def _root(state, s):
    while state.segments[s].parent != s:
        state.segments[s].parent = state.segments[state.segments[s].parent].parent
        s = state.segments[s].parent
    return s


@inner
def _unite(state, first, s):
    """Join the set of s to that of `first` (NONE: none yet). Returns (representative, 1 if two sets became one)."""
    root = _root(state, s)
    if first == NONE:
        return root, 0
    if root == first:
        return first, 0
    state.segments[root].parent = first
    return first, 1


@inner
def _count_parts(state, num_pieces):
    """Connected parts of the solved component, over its segments."""
    network, work = state.network, state.work
    parts = work.sizes[0].num_segments
    for i in range(parts):
        state.segments[work.used_segments[i]].parent = work.used_segments[i]
    for i in range(work.sizes[0].num_links):
        link = work.used_links[i]
        first = NONE
        for e in range(network.link_start[link], network.link_start[link + 1]):
            s = network.link_segment[e]
            if work.segment[s].total > 0:
                first, joined = _unite(state, first, s)
                parts -= joined
    for i in range(num_pieces):
        first = NONE
        for role in range(maxmin.NUM_ROLES):
            s = int64(state.route[state.solving[i], role])
            if s != NONE:
                first, joined = _unite(state, first, s)
                parts -= joined
    return parts


@inner
def _end_s(state, p, now):
    """When a piece ends at the rate it has; never on a dead link."""
    return now + state.remaining[p] / state.rate[p] if state.rate[p] > 0.0 else np.inf


@inner
def _fall_apart(state, k, num_pieces, now):
    """Split a solved component into its connected parts and schedule each; False when it is still one."""
    work = state.work
    state.components[k].checked = num_pieces
    if _count_parts(state, num_pieces) == 1:
        return False
    _drop_component(state, k)
    for i in range(work.sizes[0].num_segments):
        work.segment[work.used_segments[i]].fill = NONE  # from here on: the root's new component
    for i in range(num_pieces):
        p = state.solving[i]
        s = NONE
        for role in range(maxmin.NUM_ROLES):
            if state.route[p, role] != NONE:
                s = int64(state.route[p, role])
        root = _root(state, s)
        part = work.segment[root].fill
        finish_s = _end_s(state, p, now)
        if part == NONE:
            part = _new_component(state, now)
            work.segment[root].fill = part
            _schedule(state, part, finish_s)
        elif finish_s < state.finish_s[part]:
            _schedule(state, part, finish_s)
        _append(state, part, p)
        _stamp(state, p, _label(state, part))
        state.components[part].checked = state.components[part].num_pieces
    return True


@inner
def _catch_up(state, num_pieces, now):
    """Pieces that waited for this solve get the bytes they would have sent since they joined.

    Their links owe that much less; their time series leave it out, as they were full.
    """
    for i in range(num_pieces):
        p = state.solving[i]
        since = state.pieces[p].started_s
        if since < now and state.remaining[p] == state.pieces[p].wire_bytes:
            sent = min(state.rate[p] * (now - since), state.remaining[p])
            state.remaining[p] -= sent
            for role in range(maxmin.NUM_ROLES):
                s = int64(state.route[p, role])
                if s != NONE:
                    state.segments[s].outstanding -= sent


@inner
def solve_component(state, k, now):
    """New rates for a component, and when its next piece ends."""
    state.components[k].is_dirty = False
    settle(state, k, now)
    n = _gather(state, k)
    if n == 0:
        _drop_component(state, k)
        return
    c = state.c[0]
    c.num_solves += 1
    c.num_solved_pieces += n
    if n == 1:
        p = state.solving[0]
        _solve_alone(state, p)
        _catch_up(state, n, now)
        for role in range(maxmin.NUM_ROLES):
            s = int64(state.route[p, role])
            if s != NONE:
                account(state, s, now)
                state.segments[s].rate = state.rate[p]
        state.components[k].checked = 1
        _schedule(state, k, _end_s(state, p, now))
        return
    work = state.work
    maxmin.solve(state.network, work, n, state.solving, state.weight, state.route, state.segments, state.rate)
    _catch_up(state, n, now)
    for i in range(work.sizes[0].num_segments):
        s = work.used_segments[i]
        account(state, s, now)
        state.segments[s].rate = work.segment[s].rate
    if (n <= SMALL or 2 * n <= state.components[k].checked) and _fall_apart(state, k, n, now):
        return
    finish_s = np.inf
    for i in range(n):
        p = state.solving[i]
        finish_s = min(finish_s, _end_s(state, p, now))
    state.components[k].checked = max(state.components[k].checked, n)
    _schedule(state, k, finish_s)
