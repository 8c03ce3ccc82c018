"""Rerouting and alignment, against their references on odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import align as alignment
from kernels import reference
from kernels.align import align
from kernels.reroute import reroute, reroute_eagerly
from models.pages import expert_map

TUNED = [[3, 14, 47], [5, 13, 14, 27, 35, 57, 59]]
"""Of ExpertWeave's figure: 64 experts, room for 8 tuned ones."""


def routing(num_tokens, top_k, num_experts, num_adapters, most_tuned, seed=0):
    """(ids [T, K], adapters [T], map [N, M]): experts of a token differ, a third of the tokens has no adapter."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((num_tokens, num_experts)), axis=1)[:, :top_k].astype(np.int32)
    adapters = rng.integers(-1 - num_adapters // 2, num_adapters, num_tokens).clip(-1).astype(np.int32)
    tuned = [
        rng.choice(num_experts, rng.integers(0, most_tuned + 1), replace=False).tolist() for _ in range(num_adapters)
    ]
    return ids, adapters, expert_map(tuned, num_experts, most_tuned)


def tensors(arrays, fenced):
    return [fenced(torch.from_numpy(array)) for array in arrays]


def test_the_golden_case(fenced):
    ids = np.array([[31, 13, 62, 12, 34, 14], [13, 31, 14, 35, 15, 5], [13, 31, 14, 35, 15, 5]], np.int32)
    arguments = tensors((ids, np.array([0, 1, -1], np.int32), expert_map(TUNED, 64, 8)), fenced)
    expected = [[31, 13, 62, 12, 34, 65], [73, 31, 74, 76, 15, 72], [13, 31, 14, 35, 15, 5]]
    for way in (reroute, reroute_eagerly, reference.reroute):
        assert way(*arguments).tolist() == expected
    assert align(arguments[0], 80, 16, *arguments[1:]).slots.tolist() == expected


SHAPES = [
    (0, 6, 64, 2, 8), (1, 1, 7, 1, 3), (1, 8, 64, 3, 13), (123, 6, 60, 2, 5), (123, 3, 33, 5, 1), (57, 8, 8, 4, 8),
    (350, 6, 64, 20, 13),
]  # fmt: skip


@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts", "num_adapters", "most_tuned"), SHAPES)
def test_reroutes_as_the_reference(num_tokens, top_k, num_experts, num_adapters, most_tuned, fenced):
    arguments = tensors(routing(num_tokens, top_k, num_experts, num_adapters, most_tuned), fenced)
    before = [argument.clone() for argument in arguments]
    expected = reference.reroute(*arguments)
    assert torch.equal(reroute(*arguments), expected)
    assert torch.equal(reroute_eagerly(*arguments), expected)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def assert_aligned(found, slots_TK, num_slots, block):
    rows, blocks = reference.align(slots_TK, num_slots, block)
    assert torch.equal(found.slots, slots_TK)
    assert found.num_rows.item() == len(rows)
    assert found.rows[: len(rows)].tolist() == rows
    assert found.blocks[: len(blocks)].tolist() == blocks
    assert len(rows) <= len(found.rows)


@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts", "num_adapters", "most_tuned"), SHAPES)
@pytest.mark.parametrize("block", [16, 64])
def test_aligns_as_the_reference(num_tokens, top_k, num_experts, num_adapters, most_tuned, block, fenced):
    """With rerouting on the way, and of known slots; up to 1,024 pairs in one launch, else in three."""
    topk, adapter, table = tensors(routing(num_tokens, top_k, num_experts, num_adapters, most_tuned), fenced)
    num_slots = num_experts + num_adapters * most_tuned
    slots = reference.reroute(topk, adapter, table)
    assert_aligned(align(topk, num_slots, block, adapter, table), slots, num_slots, block)
    assert_aligned(align(slots, num_slots, block), slots, num_slots, block)


@pytest.mark.parametrize("num_tokens", [1, 40, 400])
def test_aligns_when_all_pairs_go_to_one_slot(num_tokens, fenced):
    slots = fenced(torch.full((num_tokens, 4), 5, dtype=torch.int32))
    assert_aligned(align(slots, 6, 16), slots, 6, 16)


def test_aligns_chunks_of_several_pieces(fenced, monkeypatch):
    """As a million tokens would, with fewer of them: chunks whose pieces follow each other in one program."""
    monkeypatch.setattr(alignment, "MOST_CHUNKS", 4)
    topk, adapter, table = tensors(routing(350, 6, 64, 3, 13), fenced)
    slots = reference.reroute(topk, adapter, table)
    assert_aligned(align(topk, 64 + 39, 32, adapter, table), slots, 64 + 39, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, adapter, table: (ids.long(), adapter, table), "topk: 2 axes of contiguous int32 .* torch.int64"),
        (lambda ids, adapter, table: (ids.T, adapter, table), "topk: .* strided"),
        (lambda ids, adapter, table: (ids, adapter[:-1], table), "adapter names 4 tokens, topk 5"),
        (lambda ids, adapter, table: (ids, adapter, table[0]), "map: 2 axes"),
    ],
)
def test_what_would_be_read_wrong_is_refused(change, message):
    arguments = [torch.from_numpy(array) for array in routing(5, 2, 8, 1, 2)]
    with pytest.raises(ValueError, match=message):
        reroute(*change(*arguments))
