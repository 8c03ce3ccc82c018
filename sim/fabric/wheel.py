"""The packet core's calendar: a timing wheel of narrow buckets, and a heap for what lies beyond its horizon.

A slot is what an event belongs to; each has at most one event at a time: slot 2 p is a delivery at the end of port
p's link, slot 2 p + 1 the end of a serialisation at source port p. A bucket is emptied at once, in order of
(time, phase, port); nothing that happens in it is scheduled into it, because it is narrower than the shortest delay.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import heap
from sim.fabric.fluid_state import NONE
from sim.fabric.packet_state import picoseconds, seconds

NEVER = np.int64(2**62)
PHASE = np.int64(1 << 31)
"""Of a key: the serialisations that end, after all deliveries of the same time."""

GROUP_BITS = 6
LOW = np.int64((1 << 32) - 1)
MANY = 16


@inner
def last_until(until_s):
    """The last instant in ps that is not after `until_s`."""
    if until_s >= seconds(NEVER):
        return NEVER - 1
    time = picoseconds(max(until_s, 0.0))
    while seconds(time) > until_s and time >= 0:
        time -= 1
    while seconds(time + 1) <= until_s:
        time += 1
    return time


@inner(forceinline=True)
def _into_bucket(state, slot, time):
    bucket = (time >> state.c[0].shift) & (len(state.buckets) - 1)
    state.slots[slot].time = time & LOW
    state.slots[slot].next = state.buckets[bucket]
    state.buckets[bucket] = slot
    state.bucket_group[bucket >> GROUP_BITS] += 1
    state.c[0].num_wheel += 1


@inner(forceinline=True)
def schedule(state, slot, time):
    """An event of the slot at that time, which is at least a bucket's width from now."""
    c = state.c[0]
    if (time >> c.shift) - c.bucket < len(state.buckets):
        _into_bucket(state, slot, time)
    else:
        c.num_far = heap.push(state.far_time, state.far_slot, c.num_far, time, slot)


@inner
def move_to(state, bucket):
    """The wheel has turned to this bucket: what has come within its horizon leaves the heap."""
    c = state.c[0]
    c.bucket = bucket
    while c.num_far > 0 and (state.far_time[0] >> c.shift) - bucket < len(state.buckets):
        slot, time = state.far_slot[0], state.far_time[0]
        c.num_far = heap.pop(state.far_time, state.far_slot, c.num_far)
        _into_bucket(state, slot, time)


@inner(forceinline=True)
def next_bucket(state):
    """Number of the next bucket that holds something, NEVER if none does. The present one has been emptied."""
    c = state.c[0]
    if c.num_wheel == 0:
        return state.far_time[0] >> c.shift if c.num_far > 0 else NEVER
    mask = len(state.buckets) - 1
    bucket = c.bucket + 1
    while True:
        place = bucket & mask
        if place & 63 == 0 and state.bucket_group[place >> GROUP_BITS] == 0:
            bucket += 64
        elif state.buckets[place] == NONE:
            bucket += 1
        else:
            return bucket


@inner(forceinline=True)
def _since(state, slot, start):
    """From the start of its bucket to the slot's event."""
    return (np.int64(state.slots[slot].time) - start) & LOW


@inner
def first_time(state, bucket):
    """Time of the earliest event of a bucket that is not empty."""
    slot = np.int64(state.buckets[bucket & (len(state.buckets) - 1)])
    if slot == NONE:  # it lies beyond the horizon
        return state.far_time[0]
    start = bucket << state.c[0].shift
    first = NEVER
    while slot != NONE:
        first = min(first, start + _since(state, slot, start))
        slot = np.int64(state.slots[slot].next)
    return first


@inner(inline="always")
def empty(state, bucket):
    """Turn to the bucket and put its events into `keys`, in order."""
    c = state.c[0]
    move_to(state, bucket)
    place = bucket & (len(state.buckets) - 1)
    start = bucket << c.shift
    slot = np.int64(state.buckets[place])
    state.buckets[place] = NONE
    n = np.int64(0)
    while slot != NONE:
        state.keys[n] = _since(state, slot, start) << 32 | (slot & 1) << 31 | slot >> 1
        n += 1
        slot = np.int64(state.slots[slot].next)
    state.bucket_group[place >> GROUP_BITS] -= n
    c.num_wheel -= n
    _sort(state.keys, n)
    c.num_keys = n
    c.key = 0


@inner(inline="always")
def _sort(keys, n):
    """Shell's sort with Ciura's gaps: a bucket holds some events, or a thousand in lockstep."""
    if n > MANY:
        for gap in (1750, 701, 301, 132, 57, 23, 10, 4):
            _insert(keys, n, gap)
    _insert(keys, n, np.int64(1))


@inner(forceinline=True)
def _insert(keys, n, gap):
    for i in range(gap, n):
        key = keys[i]
        j = i
        while j >= gap and keys[j - gap] > key:
            keys[j] = keys[j - gap]
            j -= gap
        keys[j] = key


@inner(forceinline=True)
def key_time(state):
    """Time of the next event of the bucket being emptied."""
    return (state.c[0].bucket << state.c[0].shift) + (state.keys[state.c[0].key] >> 32)


@inner
def next_time(state, other, until):
    """The next instant in ps, NEVER if there is none up to `until`. Empties the wheel's next bucket in its turn.

    `other` is when something outside the wheel is due.
    """
    c = state.c[0]
    if c.key < c.num_keys:
        return min(key_time(state), other)
    bucket = next_bucket(state)
    if bucket != NEVER and bucket << c.shift <= other:
        if bucket << c.shift > until:
            return NEVER
        empty(state, bucket)
        return min(key_time(state), other)
    if other != NEVER and other >> c.shift > c.bucket and other <= until:
        move_to(state, other >> c.shift)
        c.num_keys = 0
        c.key = 0
    return other
