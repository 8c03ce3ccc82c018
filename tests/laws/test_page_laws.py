"""Laws of the expert pool's page table, over random pools and random lives of adapters."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pages import PAGE_BYTES, OutOfPages, PageTable, Slots, SlotTensor

NUM_BASE, MOST_TUNED, NUM_ADAPTERS = 5, 4, 3


@st.composite
def pools(draw):
    """Tensors of the same slots, whose bytes are any share of a page, and now and then too few pages."""
    eighths = st.integers(1, 24).map(lambda count: count * PAGE_BYTES // 8 + count)
    sizes = draw(st.lists(eighths, min_size=1, max_size=3))
    tensors = [SlotTensor(NUM_BASE + NUM_ADAPTERS * MOST_TUNED, size) for size in sizes]
    return PageTable(tensors, draw(st.one_of(st.none(), st.integers(0, sum(t.num_pages for t in tensors)))))


lives = st.lists(
    st.tuples(st.integers(0, NUM_ADAPTERS), st.lists(st.integers(0, MOST_TUNED), min_size=3, max_size=3)), max_size=20
)
"""Whom to load, or to evict if it is there, and how many slots it has in each tensor; the last one is the base."""


def slots_of(i: int, counts: list[int], table: PageTable) -> list[Slots]:
    if i == NUM_ADAPTERS:
        return [Slots(0, NUM_BASE)] * len(table.tensors)
    return [Slots(NUM_BASE + i * MOST_TUNED, count) for count in counts[: len(table.tensors)]]


def state(table: PageTable):
    return [table.users(i).tolist() for i in range(len(table.tensors))], dict(table.slots), table.num_mapped


def pages_in(runs):
    return [(run.tensor, page) for run in runs for page in range(run.first, run.end)]


def users_by_bytes(table: PageTable, tensor: int) -> list[int]:
    """Of each page the owners with a byte in it, counted byte range by byte range."""
    size = table.tensors[tensor].slot_bytes
    found = []
    for page in range(table.tensors[tensor].num_pages):
        first, end = page * PAGE_BYTES, (page + 1) * PAGE_BYTES
        found.append(
            sum(
                held[tensor].count > 0
                and held[tensor].first * size < end
                and (held[tensor].first + held[tensor].count) * size > first
                for held in table.slots.values()
            )
        )
    return found


@settings(max_examples=200, deadline=None)
@given(pools(), lives)
def test_a_page_is_mapped_exactly_while_somebody_uses_it(table, life):
    """What load says is mapped and evict says is unmapped leaves, at every moment, the pages that hold an owner's
    bytes: none without an owner, none unmapped while shared, none mapped twice."""
    mapped: set[tuple[int, int]] = set()
    for i, counts in life:
        if str(i) in table.slots:
            gone = pages_in(table.evict(str(i)))
            assert mapped.issuperset(gone)
            mapped.difference_update(gone)
        else:
            before = state(table)
            try:
                new = pages_in(table.load(str(i), slots_of(i, counts, table)))
            except OutOfPages:
                assert state(table) == before
                continue
            assert mapped.isdisjoint(new)
            mapped.update(new)
        for tensor in range(len(table.tensors)):
            users = table.users(tensor)
            assert users.tolist() == users_by_bytes(table, tensor)
            assert np.flatnonzero(users).tolist() == sorted(page for t, page in mapped if t == tensor)
        assert len(mapped) == table.num_mapped
        assert table.num_pages is None or table.num_mapped <= table.num_pages
        assert 0 <= table.wasted_bytes <= len(table.slots) * len(table.tensors) * 2 * PAGE_BYTES


@settings(max_examples=200, deadline=None)
@given(pools(), lives, st.integers(0, NUM_ADAPTERS), st.lists(st.integers(0, MOST_TUNED), min_size=3, max_size=3))
def test_load_then_evict_restores_the_state(table, life, i, counts):
    for j, more in life:
        if str(j) not in table.slots and j != i:
            with contextlib.suppress(OutOfPages):
                table.load(str(j), slots_of(j, more, table))
    before = copy.deepcopy(state(table))
    try:
        new = table.load(str(i), slots_of(i, counts, table))
    except OutOfPages:
        assert state(table) == before
        return
    assert sorted(pages_in(table.evict(str(i)))) == sorted(pages_in(new))
    assert state(table) == before
