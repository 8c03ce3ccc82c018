"""Two binary heaps for compiled code: a plain one, and one whose entries can be moved.

Both order by (key, id), so that ties are resolved the same way on every machine.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def _before(keys, ids, a, b):
    return keys[a] < keys[b] or (keys[a] == keys[b] and ids[a] < ids[b])


@njit(cache=True)
def _swap(keys, ids, a, b):
    keys[a], keys[b] = keys[b], keys[a]
    ids[a], ids[b] = ids[b], ids[a]


@njit(cache=True)
def sift_down(keys, ids, size, i):
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and _before(keys, ids, child + 1, child):
            child += 1
        if not _before(keys, ids, child, i):
            return
        _swap(keys, ids, i, child)
        i = child


@njit(cache=True)
def push(keys, ids, size, key, entry):
    """Add an entry; returns the new size. The arrays must have room."""
    i = size
    keys[i] = key
    ids[i] = entry
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(keys, ids, i, parent):
            break
        _swap(keys, ids, i, parent)
        i = parent
    return size + 1


@njit(cache=True)
def pop(keys, ids, size):
    """Remove the first entry (read it at index 0 before); returns the new size."""
    size -= 1
    keys[0] = keys[size]
    ids[0] = ids[size]
    sift_down(keys, ids, size, 0)
    return size


@njit(cache=True)
def heapify(keys, ids, size):
    for i in range(size // 2 - 1, -1, -1):
        sift_down(keys, ids, size, i)


@njit(cache=True)
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
        if key[other] < new_key or (key[other] == new_key and other < entry):
            break
        _place(heap, place, key, i, other)
        i = parent
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size:
            a, b = heap[child], heap[child + 1]
            if key[b] < key[a] or (key[b] == key[a] and b < a):
                child += 1
        other = heap[child]
        if new_key < key[other] or (new_key == key[other] and entry < other):
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
