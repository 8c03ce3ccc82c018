"""The heaps against Python's own sorting."""

from __future__ import annotations

import numpy as np
import pytest

from sim.fabric import heap


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100])
def test_sort_orders_by_key_then_id(size):
    rng = np.random.default_rng(size)
    keys, ids = rng.integers(0, 5, size).astype(float), rng.permutation(size)
    expected = [entry for _, entry in sorted(zip(keys, ids, strict=True))]

    heap.sort(keys, ids, size)

    assert ids.tolist() == expected


def test_entries_come_out_in_order_whatever_the_order_they_went_in():
    rng = np.random.default_rng(1)
    entries = [(float(key), entry) for entry, key in enumerate(rng.integers(0, 9, 50))]
    keys, ids = np.empty(50), np.empty(50, np.int64)
    size = 0
    for key, entry in entries:
        size = heap.push(keys, ids, size, key, entry)

    out = []
    while size > 0:
        out.append((keys[0], ids[0]))
        size = heap.pop(keys, ids, size)

    assert out == sorted(entries)


def test_moved_and_removed_entries_keep_the_rest_in_order():
    """Each of 20 entries goes in, half get another key, a quarter leave; the rest come out by their last keys."""
    rng = np.random.default_rng(2)
    order, place, keys = np.empty(20, np.int64), np.full(20, -1), np.empty(20)
    size = 0
    for entry in [*range(20), *range(0, 20, 2)]:
        size = heap.move(order, place, keys, size, entry, float(rng.integers(0, 6)))
    for entry in (3, 7, 11, 15, 19, 3):
        size = heap.remove(order, place, keys, size, entry)

    out = []
    while size > 0:
        out.append(int(order[0]))
        size = heap.remove(order, place, keys, size, order[0])

    left = [entry for entry in range(20) if entry % 4 != 3]
    assert out == sorted(left, key=lambda entry: (keys[entry], entry))
    assert (place == -1).all()
