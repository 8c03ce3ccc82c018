"""Two binary heaps for compiled code: a plain one, and one whose entries can be moved.

Both order by (key, id), so that ties are resolved the same way on every machine. Which of two children comes first
is a coin toss that no processor predicts: it is computed, not branched on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.compiled import inner


@inner
def _before(key, entry, other_key, other_entry):
    return (key < other_key) | ((key == other_key) & (entry < other_entry))


@inner
def sift_down(keys, ids, size, i):
    """Move entry i down to where it belongs; the others move up into the gap."""
    key, entry = keys[i], ids[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = min(child + 1, size - 1)
        child += _before(keys[right], ids[right], keys[child], ids[child])
        if not _before(keys[child], ids[child], key, entry):
            break
        keys[i], ids[i] = keys[child], ids[child]
        i = child
    keys[i], ids[i] = key, entry


@njit(cache=True)
def push(keys, ids, size, key, entry):
    """Add an entry; returns the new size. The arrays must have room."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(key, entry, keys[parent], ids[parent]):
            break
        keys[i], ids[i] = keys[parent], ids[parent]
        i = parent
    keys[i], ids[i] = key, entry
    return size + 1


@njit(cache=True)
def pop(keys, ids, size):
    """Remove the first entry (read it at index 0 before); returns the new size."""
    size -= 1
    keys[0] = keys[size]
    ids[0] = ids[size]
    sift_down(keys, ids, size, np.int64(0))
    return size


@inner
def heapify(keys, ids, size):
    for i in range(size // 2 - 1, -1, -1):
        sift_down(keys, ids, size, i)


@njit(cache=True)
def sort(keys, ids, size):
    """Put the ids into the order of (key, id). Quick to compile, which numpy's sorts are not, and never slow."""
    heapify(keys, ids, size)
    for last in range(size - 1, 0, -1):
        keys[0], keys[last] = keys[last], keys[0]
        ids[0], ids[last] = ids[last], ids[0]
        sift_down(keys, ids, last, np.int64(0))
    for i in range(size // 2):
        ids[i], ids[size - 1 - i] = ids[size - 1 - i], ids[i]


@inner
def _place(heap, place, key, i, entry):
    heap[i] = entry
    place[entry] = i


@njit(cache=True)
def move(heap, place, key, size, entry, new_key):
    """Give `entry` a new key in the indexed heap, adding it if it is not there; returns the new size.

    heap [size] entries, place [entry] its index or -1, key [entry].
    """
    i = place[entry]
    if i < 0:
        i = size
        size += 1
    key[entry] = new_key
    while i > 0:
        parent = (i - 1) >> 1
        other = heap[parent]
        if _before(key[other], other, new_key, entry):
            break
        _place(heap, place, key, i, other)
        i = parent
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        a, b = heap[child], heap[min(child + 1, size - 1)]
        child += _before(key[b], b, key[a], a)
        other = heap[child]
        if _before(new_key, entry, key[other], other):
            break
        _place(heap, place, key, i, other)
        i = child
    _place(heap, place, key, i, entry)
    return size


@njit(cache=True)
def remove(heap, place, key, size, entry):
    """Take `entry` out of the indexed heap if it is there; returns the new size."""
    i = place[entry]
    if i < 0:
        return size
    place[entry] = -1
    size -= 1
    if i == size:
        return size
    last = heap[size]
    place[last] = i
    heap[i] = last
    return move(heap, place, key, size, last, key[last])
