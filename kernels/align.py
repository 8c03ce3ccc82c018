"""Token-to-expert alignment: pairs sorted by slot, each slot's rows padded to whole blocks of the grouped product.

A counting sort, stable, so that rows stand in order of pairs and nothing depends on who runs first:
    count  how many pairs of each chunk go to each slot
    scan   where, among a slot's pairs, each chunk's begin; how many there are
    start  where each slot's rows begin
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

PIECE = 64
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
def _load_slots(
    topk, adapter, table, slots, pair, is_pair, num_experts, K: tl.constexpr, REROUTE: tl.constexpr
):  # fmt: skip
    if REROUTE:
        found = slots_of(topk, adapter, table, pair, is_pair, num_experts, K)
        tl.store(slots + pair, found, mask=is_pair)
        return found
    return tl.load(topk + pair, mask=is_pair, other=0)


@triton.jit
def _count(
    topk, adapter, table, slots, counts, num_pairs, num_experts, num_slots, num_pieces, num_chunks,
    K: tl.constexpr, REROUTE: tl.constexpr, PIECE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """counts[slot, chunk]. BINS: a power of two above num_slots; what is no pair falls into the last bin."""
    chunk = tl.program_id(0)
    found = tl.zeros([BINS], tl.int32)
    for i in range(num_pieces):
        pair = (chunk.to(tl.int64) * num_pieces + i) * PIECE + tl.arange(0, PIECE)
        is_pair = pair < num_pairs
        slot = _load_slots(topk, adapter, table, slots, pair, is_pair, num_experts, K, REROUTE)
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
def _start(totals, starts, num_rows, num_slots, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """starts[slot]: its first row. Slots have whole blocks of rows."""
    bins = tl.arange(0, BINS)
    total = tl.load(totals + bins, mask=bins < num_slots, other=0)
    padded = (total + BLOCK - 1) // BLOCK * BLOCK
    tl.store(starts + bins, tl.cumsum(padded, 0) - padded, mask=bins < num_slots)
    tl.store(num_rows, tl.sum(padded, 0))


@triton.jit
def _rank(slot, is_pair, PIECE: tl.constexpr):
    """(pairs of the piece before each that go to the same slot, whether it is the last of them)."""
    i = tl.arange(0, PIECE)
    is_same = (slot[:, None] == slot[None, :]) & is_pair[None, :]
    weight = tl.where(i[None, :] < i[:, None], 1, tl.where(i[None, :] > i[:, None], 65536, 0))  # before, after
    both = tl.sum(tl.where(is_same, weight, 0), 1)
    return both & 65535, both < 65536


@triton.jit
def _place(
    slots, counts, totals, starts, rows, blocks, num_pairs, num_slots, num_pieces, num_chunks,
    BLOCK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Program p writes the rows of chunk p's pairs; the blocks of slot p, and the padding behind its last row."""
    p = tl.program_id(0)
    if p < num_slots:
        start, total = tl.load(starts + p), tl.load(totals + p)
        end = start + (total + BLOCK - 1) // BLOCK * BLOCK
        for block in range(start // BLOCK, end // BLOCK):
            tl.store(blocks + block, p)
        row = start + total + tl.arange(0, BLOCK)
        tl.store(rows + row, tl.zeros([BLOCK], tl.int32) + num_pairs, mask=row < end)
    if p < num_chunks:
        for i in range(num_pieces):
            pair = (p.to(tl.int64) * num_pieces + i) * PIECE + tl.arange(0, PIECE)
            is_pair = pair < num_pairs
            slot = tl.load(slots + pair, mask=is_pair, other=0)
            place = counts + slot.to(tl.int64) * num_chunks + p
            before, is_last = _rank(slot, is_pair, PIECE)
            rank = tl.load(place, mask=is_pair, other=0) + before
            first = tl.load(starts + slot, mask=is_pair, other=0)
            tl.store(rows + first + rank, pair.to(tl.int32), mask=is_pair)
            tl.debug_barrier()  # every thread has read the counts of this piece before any changes them
            tl.store(place, rank + 1, mask=is_pair & is_last)
            tl.debug_barrier()


@triton.jit
def _align_few(
    topk, adapter, table, slots, next_rows, rows, blocks, num_rows, num_pairs, num_experts, num_slots, num_pieces,
    K: tl.constexpr, REROUTE: tl.constexpr, BLOCK: tl.constexpr, PAIRS: tl.constexpr, PIECE: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """All in one program. PAIRS: a power of two, no less than num_pairs."""
    pair = tl.arange(0, PAIRS)
    slot = _load_slots(topk, adapter, table, slots, pair, pair < num_pairs, num_experts, K, REROUTE)
    total = tl.histogram(tl.where(pair < num_pairs, slot, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    total = tl.where(bins < num_slots, total, 0)
    padded = (total + BLOCK - 1) // BLOCK * BLOCK
    starts = tl.cumsum(padded, 0) - padded
    tl.store(num_rows, tl.sum(padded, 0))
    tl.store(next_rows + bins, starts, mask=bins < num_slots)
    for i in range(tl.max(padded, 0) // BLOCK):
        tl.store(blocks + starts // BLOCK + i, bins, mask=i * BLOCK < padded)
    for i in range(BLOCK):
        row = starts + total + i
        tl.store(rows + row, tl.zeros([BINS], tl.int32) + num_pairs, mask=row < starts + padded)
    tl.debug_barrier()  # slots and next_rows are read by other threads than wrote them
    for i in range(num_pieces):
        mine = i * PIECE + tl.arange(0, PIECE)
        is_mine = mine < num_pairs
        to = tl.load(slots + mine, mask=is_mine, other=0)
        before, is_last = _rank(to, is_mine, PIECE)
        row = tl.load(next_rows + to, mask=is_mine, other=0) + before
        tl.store(rows + row, mine, mask=is_mine)
        tl.debug_barrier()
        tl.store(next_rows + to, row + 1, mask=is_mine & is_last)
        tl.debug_barrier()


def align(
    topk_TK: Tensor, num_slots: int, block: int, adapter_T: Tensor | None = None, map_NM: Tensor | None = None
) -> Alignment:
    """Sort the pairs of topk_TK [T, K] by slot; with an adapter per token and a map, reroute them on the way.

    block  rows of a tile of the grouped product, a power of two

    Without adapters topk_TK already names slots, from 0 to num_slots − 1; what it holds is not checked.
    Raises ValueError for adapters without a map, or a map without adapters.
    """
    if (adapter_T is None) != (map_NM is None):
        raise ValueError("rerouting needs adapters and a map; one of them is missing")
    does_reroute = adapter_T is not None
    if adapter_T is None or map_NM is None:
        adapter_T, map_NM = topk_TK.new_empty(topk_TK.shape[0]), topk_TK.new_empty(0, 1)
    check(topk_TK, adapter_T, map_NM)
    num_pairs, top_k = topk_TK.numel(), topk_TK.shape[1]
    most_rows = num_pairs + min(num_slots, num_pairs) * (block - 1)
    most_blocks = triton.cdiv(most_rows, block)
    new = topk_TK.new_empty
    found = Alignment(
        slots=torch.empty_like(topk_TK) if does_reroute else topk_TK,
        rows=new(most_blocks * block),
        blocks=new(most_blocks),
        num_rows=new(1),
        block=block,
    )
    if num_pairs == 0:
        found.num_rows.zero_()
        return found
    bins = triton.next_power_of_2(num_slots + 1)
    num_pieces = triton.cdiv(num_pairs, PIECE)
    if num_pairs <= FEW_PAIRS:
        _align_few[(1,)](
            topk_TK, adapter_T, map_NM, found.slots, new(num_slots), found.rows, found.blocks, found.num_rows,
            num_pairs, map_NM.shape[1], num_slots, num_pieces, K=top_k, REROUTE=does_reroute, BLOCK=block,
            PAIRS=triton.next_power_of_2(num_pairs), PIECE=PIECE, BINS=bins,
        )  # fmt: skip
        return found
    num_pieces = triton.cdiv(num_pieces, min(num_pieces, MOST_CHUNKS))
    num_chunks = triton.cdiv(num_pairs, num_pieces * PIECE)
    counts, totals, starts = new(num_slots, num_chunks), new(num_slots), new(num_slots)
    _count[(num_chunks,)](
        topk_TK, adapter_T, map_NM, found.slots, counts, num_pairs, map_NM.shape[1], num_slots, num_pieces, num_chunks,
        K=top_k, REROUTE=does_reroute, PIECE=PIECE, BINS=bins,
    )  # fmt: skip
    _scan[(num_slots,)](counts, totals, num_chunks, TILE=min(triton.next_power_of_2(num_chunks), 1024))
    _start[(1,)](totals, starts, found.num_rows, num_slots, BLOCK=block, BINS=bins)
    _place[(max(num_chunks, num_slots),)](
        found.slots, counts, totals, starts, found.rows, found.blocks, num_pairs, num_slots, num_pieces, num_chunks,
        BLOCK=block, PIECE=PIECE,
    )  # fmt: skip
    return found
