"""The expert pool's page table, against ExpertWeave's figures (arXiv 2508.17624) and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.pages import (
    PAGE_BYTES,
    OutOfPages,
    PageRun,
    PageTable,
    Slots,
    SlotTensor,
    expert_map,
    padding_overhead,
    slot_tensors,
)

LITE = ARCHITECTURES["deepseek-v2-lite"]
NUM_LAYERS, NUM_EXPERTS = 26, 64
BASE_GIB = 29.26
MIB = 2**20

TUNED = {
    "gate-math": (12, 7.04), "gate-intent": (12, 9.50), "gate-summary": (11, 7.73), "gate-law": (12, 7.35),
    "gate-translation": (13, 4.69), "token-math": (9, 6.12), "token-intent": (8, 7.12), "token-summary": (8, 5.15),
    "token-law": (10, 6.58), "token-translation": (6, 3.85),
}  # fmt: skip
"""Most and mean tuned experts per layer, as published."""


def tuned_per_layer(name: str) -> np.ndarray:
    """[layers] counts with the published maximum and mean: the paper gives no more."""
    most, mean = TUNED[name]
    left = round(mean * NUM_LAYERS) - most
    others, more = divmod(left, NUM_LAYERS - 1)
    return np.array([most] + [others + (i < more) for i in range(NUM_LAYERS - 1)])


def loaded(names: list[str], most_tuned: int) -> PageTable:
    """The base and these adapters in one pool."""
    table = PageTable(slot_tensors(LITE, len(names), most_tuned))
    table.load("base", [Slots(0, NUM_EXPERTS)] * 2 * NUM_LAYERS)
    for i, name in enumerate(names):
        counts = tuned_per_layer(name).repeat(2)
        table.load(name, [Slots(NUM_EXPERTS + i * most_tuned, int(count)) for count in counts])
    return table


def test_an_expert_is_five_and_a_half_pages_and_two_and_three_quarters():
    up, down = slot_tensors(LITE, 2, 8)[:2]
    assert (up.slot_bytes, down.slot_bytes) == (11 * MIB, 5.5 * MIB)
    assert (up.slot_bytes / PAGE_BYTES, down.slot_bytes / PAGE_BYTES) == (5.5, 2.75)
    assert len(slot_tensors(LITE, 2, 8)) == 2 * NUM_LAYERS
    assert up.num_slots == NUM_EXPERTS + 2 * 8


def test_padding_overhead_of_the_ten_adapters():
    """Published as 1.51, from means that are rounded to a hundredth."""
    counts = np.stack([tuned_per_layer(name) for name in TUNED])
    assert counts.max() == 13
    assert padding_overhead(counts, NUM_EXPERTS) == pytest.approx(1.51, rel=0.01)


@pytest.mark.parametrize(
    ("num_adapters", "pool_gib", "padded_gib"), [(1, 32.1, 34.0), (2, 36.2, 39.0), (3, 38.7, 44.3)]
)
def test_weights_with_adapters(num_adapters, pool_gib, padded_gib):
    """GiB of weights as published, with the adapters gate-math, gate-intent, token-math over a base of 29.26."""
    names = ["gate-math", "gate-intent", "token-math"][:num_adapters]
    table = loaded(names, most_tuned=12)
    base_pages = loaded([], 12).num_mapped
    assert base_pages * PAGE_BYTES == NUM_LAYERS * NUM_EXPERTS * 16.5 * MIB  # whole pages, all of them
    adapters_gib = (table.num_mapped - base_pages) * PAGE_BYTES / 2**30
    assert BASE_GIB + adapters_gib == pytest.approx(pool_gib, rel=0.01)
    slots = sum(tensor.num_slots * tensor.slot_bytes for tensor in table.tensors)
    padding_gib = slots / 2**30 - NUM_LAYERS * NUM_EXPERTS * 16.5 / 1024
    assert BASE_GIB + padding_gib == pytest.approx(padded_gib, rel=0.01)


def test_neighbours_share_the_page_between_them():
    """Slots of three quarters of a page. Slots 0 and 1 end in the middle of page 1, where slot 2 begins."""
    table = PageTable([SlotTensor(8, 3 * PAGE_BYTES // 4)])
    assert table.load("a", [Slots(0, 2)]) == [PageRun(0, 0, 2)]
    assert table.wasted_bytes == PAGE_BYTES // 2
    assert table.load("b", [Slots(2, 2)]) == [PageRun(0, 2, 3)]  # page 1 is there already
    assert table.users(0).tolist() == [1, 2, 1, 0, 0, 0]
    assert (table.num_mapped, table.num_shared, table.wasted_bytes) == (3, 1, 0)
    assert table.evict("a") == [PageRun(0, 0, 1)]  # page 1 carries b's first slot
    assert table.evict("b") == [PageRun(0, 1, 3)]
    assert table.num_mapped == 0


def test_both_ends_may_be_there_already():
    """Of the middle one of three owners, with slots of one and a half pages, both end pages are mapped."""
    table = PageTable([SlotTensor(5, 3 * PAGE_BYTES // 2)])
    table.load("left", [Slots(0, 1)])
    table.load("right", [Slots(4, 1)])
    assert table.load("middle", [Slots(1, 3)]) == [PageRun(0, 2, 6)]
    assert table.users(0).tolist() == [1, 2, 1, 1, 1, 1, 1, 1]


def test_what_does_not_fit_changes_nothing():
    table = PageTable([SlotTensor(4, PAGE_BYTES), SlotTensor(4, PAGE_BYTES)], num_pages=5)
    table.load("a", [Slots(0, 1), Slots(0, 2)])
    with pytest.raises(OutOfPages, match=r"b needs 3 pages of 2097152 bytes, 2 of 5 are free; evict a"):
        table.load("b", [Slots(1, 1), Slots(2, 2)])
    assert list(table.slots) == ["a"]
    assert table.num_mapped == 3
    table.load("c", [Slots(1, 1), Slots(2, 1)])
    assert table.num_mapped == 5


@pytest.mark.parametrize(
    ("owner", "slots", "message"),
    [
        ("a", Slots(3, 1), "a is loaded already; evict it first"),
        ("b", Slots(1, 2), "b: slot 1 of tensor 0 is held by another"),
        ("b", Slots(3, 2), "b: slots 3 to 4 of tensor 0, which has 4"),
    ],
)
def test_slots_that_cannot_be_had(owner, slots, message):
    table = PageTable([SlotTensor(4, 100)])
    table.load("a", [Slots(0, 2)])
    with pytest.raises(ValueError, match=message):
        table.load(owner, [slots])
    assert table.users(0).tolist() == [1]


def test_expert_map_of_two_adapters():
    """M = 64, E_max = 8; adapter 0 tunes three experts, adapter 1 seven."""
    found = expert_map([[3, 14, 47], [5, 13, 14, 27, 35, 57, 59]], 64, 8)
    assert found.shape == (2, 64)
    assert found[0, [3, 14, 47]].tolist() == [64, 65, 66]
    assert found[1, [5, 13, 14, 27, 35, 57, 59]].tolist() == list(range(72, 79))
    left = np.delete(found[0], [3, 14, 47])
    assert left.tolist() == np.delete(np.arange(64), [3, 14, 47]).tolist()


@pytest.mark.parametrize(
    ("tuned", "message"),
    [([[0, 64]], "each of 0 to 63"), ([[1, 1]], "once at most"), ([[0, 1, 2]], "tunes 3 experts, .* room for 2")],
)
def test_expert_maps_that_cannot_be(tuned, message):
    with pytest.raises(ValueError, match=message):
        expert_map(tuned, 64, 2)
