"""Token-to-expert alignment: pairs sorted by slot, each slot's rows padded to whole blocks of the grouped product.

A counting sort, stable, so that rows stand in order of pairs and nothing depends on who runs first:
    count  how many pairs of each chunk go to each slot
    scan   where, among a slot's pairs, each chunk's begin; how many there are
    place  each pair's row; each block's slot
Rerouting takes place on the way, in `count`. Work grows with pairs + slots · chunks; few pairs take one launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reroute import check, slots_of

PIECE = 128
"""Pairs that are ranked among each other, all against all."""
MOST_CHUNKS = 1024
FEW_PAIRS = 1024
"""So many are sorted by one program."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Pairs in order of slots.

    slots     [T, K] int32: where each pair goes
    rows      [most rows] int32: the pair of each row of the grouped product, T K for padding; `num_rows` of them count
    blocks    [most blocks] int32: the slot of each block of rows
    num_rows  [1] int32, on the device: a multiple of `block`
    """

    slots: Tensor
    rows: Tensor
    blocks: Tensor
    num_rows: Tensor
    block: int


@triton.jit
def _load_slots(topk, adapter, table, slots, pair, is_pair, top_k, num_experts, REROUTE: tl.constexpr):
    if REROUTE:
        found = slots_of(topk, adapter, table, pair, is_pair, top_k, num_experts)
        tl.store(slots + pair, found, mask=is_pair)
        return found
    return tl.load(topk + pair, mask=is_pair, other=0)


@triton.jit
def _count(
    topk, adapter, table, slots, counts, num_pairs, top_k, num_experts, num_slots, num_pieces, num_chunks,
    REROUTE: tl.constexpr, PIECE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """counts[slot, chunk]. BINS: a power of two above num_slots; what is no pair falls into the last bin."""
    chunk = tl.program_id(0)
    found = tl.zeros([BINS], tl.int32)
    for i in range(num_pieces):
        pair = (chunk.to(tl.int64) * num_pieces + i) * PIECE + tl.arange(0, PIECE)
        is_pair = pair < num_pairs
        slot = _load_slots(topk, adapter, table, slots, pair, is_pair, top_k, num_experts, REROUTE)
        found += tl.histogram(tl.where(is_pair, slot, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    tl.store(counts + bins.to(tl.int64) * num_chunks + chunk, found, mask=bins < num_slots)


@triton.jit
def _scan(counts, totals, num_chunks, TILE: tl.constexpr):
    """counts[slot, :] becomes the number of the slot's pairs in earlier chunks."""
    slot = tl.program_id(0)
    before = tl.zeros([], tl.int32)
    for first in range(0, num_chunks, TILE):
        chunk = first + tl.arange(0, TILE)
        place = counts + slot.to(tl.int64) * num_chunks + chunk
        found = tl.load(place, mask=chunk < num_chunks, other=0)
        tl.store(place, before + tl.cumsum(found, 0) - found, mask=chunk < num_chunks)
        before += tl.sum(found, 0)
    tl.store(totals + slot, before)


@triton.jit
def _starts(totals, num_slots, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """(first row of each slot, rows of each), whole blocks."""
    bins = tl.arange(0, BINS)
    total = tl.load(totals + bins, mask=bins < num_slots, other=0)
    padded = (total + BLOCK - 1) // BLOCK * BLOCK
    return tl.cumsum(padded, 0) - padded, padded


@triton.jit
def _fill(rows, blocks, slot, start, padded, total, num_pairs, BLOCK: tl.constexpr):
    """One slot's blocks, and the padding behind its last row."""
    for block in range(start // BLOCK, (start + padded) // BLOCK):
        tl.store(blocks + block, slot)
    row = start + total + tl.arange(0, BLOCK)
    tl.store(rows + row, tl.zeros([BLOCK], tl.int32) + num_pairs, mask=row < start + padded)


@triton.jit
def _rank(slot, is_pair, PIECE: tl.constexpr):
    """(pairs of the piece before each that go to the same slot, whether it is the last of them)."""
    i = tl.arange(0, PIECE)
    is_same = (slot[:, None] == slot[None, :]) & is_pair[None, :]
    before = tl.sum((is_same & (i[None, :] < i[:, None])).to(tl.int32), 1)
    after = tl.sum((is_same & (i[None, :] > i[:, None])).to(tl.int32), 1)
    return before, after == 0


@triton.jit
def _place(
    slots, counts, totals, rows, blocks, num_rows, num_pairs, num_slots, num_pieces, num_chunks,
    BLOCK: tl.constexpr, PIECE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Program p writes the rows of chunk p's pairs and the blocks of slot p."""
    p = tl.program_id(0)
    starts, padded = _starts(totals, num_slots, BLOCK, BINS)
    bins = tl.arange(0, BINS)
    if p == 0:
        tl.store(num_rows, tl.sum(padded, 0))
    if p < num_slots:
        mine = bins == p
        start, size = tl.sum(tl.where(mine, starts, 0), 0), tl.sum(tl.where(mine, padded, 0), 0)
        _fill(rows, blocks, p, start, size, tl.load(totals + p), num_pairs, BLOCK)
    if p < num_chunks:
        for i in range(num_pieces):
            pair = (p.to(tl.int64) * num_pieces + i) * PIECE + tl.arange(0, PIECE)
            is_pair = pair < num_pairs
            slot = tl.load(slots + pair, mask=is_pair, other=0)
            place = counts + slot.to(tl.int64) * num_chunks + p
            before, is_last = _rank(slot, is_pair, PIECE)
            rank = tl.load(place, mask=is_pair, other=0) + before
            tl.store(rows + tl.gather(starts, slot, 0) + rank, pair.to(tl.int32), mask=is_pair)
            tl.debug_barrier()  # every thread has read the counts of this piece before any changes them
            tl.store(place, rank + 1, mask=is_pair & is_last)
            tl.debug_barrier()


@triton.jit
def _align_few(
    topk, adapter, table, slots, counts, rows, blocks, num_rows, num_pairs, top_k, num_experts, num_slots, num_pieces,
    REROUTE: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """All in one program."""
    total = tl.zeros([BINS], tl.int32)
    for i in range(num_pieces):
        pair = i * PIECE + tl.arange(0, PIECE)
        is_pair = pair < num_pairs
        slot = _load_slots(topk, adapter, table, slots, pair, is_pair, top_k, num_experts, REROUTE)
        total += tl.histogram(tl.where(is_pair, slot, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    total = tl.where(bins < num_slots, total, 0)
    padded = (total + BLOCK - 1) // BLOCK * BLOCK
    starts = tl.cumsum(padded, 0) - padded
    tl.store(num_rows, tl.sum(padded, 0))
    tl.store(counts + bins, starts, mask=bins < num_slots)
    most = tl.max(padded, 0) // BLOCK
    for i in range(most):
        tl.store(blocks + starts // BLOCK + i, bins, mask=i * BLOCK < padded)
    for i in range(BLOCK):
        row = starts + total + i
        tl.store(rows + row, tl.zeros([BINS], tl.int32) + num_pairs, mask=row < starts + padded)
    tl.debug_barrier()
    for i in range(num_pieces):
        pair = i * PIECE + tl.arange(0, PIECE)
        is_pair = pair < num_pairs
        slot = tl.load(slots + pair, mask=is_pair, other=0)
        before, is_last = _rank(slot, is_pair, PIECE)
        row = tl.load(counts + slot, mask=is_pair, other=0) + before
        tl.store(rows + row, pair, mask=is_pair)
        tl.debug_barrier()
        tl.store(counts + slot, row + 1, mask=is_pair & is_last)
        tl.debug_barrier()


def align(
    topk_TK: Tensor, num_slots: int, block: int, adapter_T: Tensor | None = None, map_NM: Tensor | None = None
) -> Alignment:
    """Sort the pairs of topk_TK [T, K] by slot; with an adapter per token and a map, reroute them on the way.

    block  rows of a tile of the grouped product, a power of two

    Without adapters topk_TK already names slots, from 0 to num_slots − 1; what it holds is not checked.
    """
    does_reroute = adapter_T is not None and map_NM is not None
    if not does_reroute:
        adapter_T, map_NM = topk_TK.new_empty(topk_TK.shape[0]), topk_TK.new_empty(0, 1)
    assert adapter_T is not None and map_NM is not None
    check(topk_TK, adapter_T, map_NM)
    num_pairs, top_k = topk_TK.numel(), topk_TK.shape[1]
    most_rows = num_pairs + min(num_slots, num_pairs) * (block - 1)
    most_blocks = triton.cdiv(most_rows, block)
    new = topk_TK.new_empty
    found = Alignment(
        torch.empty_like(topk_TK) if does_reroute else topk_TK, new(most_blocks * block), new(most_blocks),
        topk_TK.new_zeros(1), block,
    )  # fmt: skip
    if num_pairs == 0:
        return found
    bins = triton.next_power_of_2(num_slots + 1)
    shape = {"BLOCK": block, "PIECE": PIECE, "BINS": bins}
    num_pieces = triton.cdiv(num_pairs, PIECE)
    if num_pairs <= FEW_PAIRS:
        _align_few[(1,)](
            topk_TK, adapter_T, map_NM, found.slots, new(num_slots), found.rows, found.blocks, found.num_rows,
            num_pairs, top_k, map_NM.shape[1], num_slots, num_pieces, REROUTE=does_reroute, **shape,
        )  # fmt: skip
        return found
    num_pieces = triton.cdiv(num_pieces, min(num_pieces, MOST_CHUNKS))
    num_chunks = triton.cdiv(num_pairs, num_pieces * PIECE)
    counts, totals = new(num_slots, num_chunks), new(num_slots)
    _count[(num_chunks,)](
        topk_TK, adapter_T, map_NM, found.slots, counts, num_pairs, top_k, map_NM.shape[1], num_slots, num_pieces,
        num_chunks, REROUTE=does_reroute, PIECE=PIECE, BINS=bins,
    )  # fmt: skip
    _scan[(num_slots,)](counts, totals, num_chunks, TILE=min(triton.next_power_of_2(num_chunks), 1024))
    _place[(max(num_chunks, num_slots),)](
        found.slots, counts, totals, found.rows, found.blocks, found.num_rows, num_pairs, num_slots, num_pieces,
        num_chunks, **shape,
    )  # fmt: skip
    return found
