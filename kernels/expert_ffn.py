"""Expert feed-forward over the pool:  out[t] = sum over k, in order, of  w[t, k] · down (SiLU(gate x) · (up x)).

Three launches: gate and up together, down, and the sum over a token's experts. bf16 in, fp32 accumulation. The rows of
a tile all belong to one slot (`align`), so that slots without tokens are never read: in a pool nothing need be mapped
behind them. A row's result depends on that row and its slot's weights alone: no split of the inner dimension, no
atomics. Tiles end at their slot's last row of weights, whatever their size divides.

`expert_ffn_grouped` is the same with PyTorch's grouped matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.align import Alignment
from kernels.interpreter import WIDEN


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of one tile: rows (the alignment's block), columns, and inner elements at a time; and how it runs."""

    rows: int
    columns: int
    inner: int
    group: int
    num_warps: int
    num_stages: int


FEW, MANY = Tiles(16, 64, 128, 1, 4, 4), Tiles(128, 128, 64, 8, 8, 3)
TILES: dict[str, list[tuple[float, Tiles]]] = {
    "any": [
        (0.0, FEW),
        (16.0, Tiles(32, 64, 128, 1, 4, 3)),
        (48.0, Tiles(64, 64, 64, 8, 4, 4)),
        (256.0, MANY),
    ],
    "NVIDIA H200": [
        (0.0, Tiles(16, 64, 128, 1, 4, 3)),
        (4.6, Tiles(32, 128, 128, 1, 8, 3)),
        (13.0, Tiles(64, 128, 64, 8, 8, 4)),
        (26.0, Tiles(128, 64, 64, 8, 8, 3)),
        (52.0, Tiles(64, 128, 64, 8, 4, 4)),
        (104.0, MANY),
    ],
}
"""GPU, as torch names it -> (from so many rows per slot, tiles). `python -m kernels.tune` prints what to put here on a
GPU; "any" is a guess, measured on none."""


def rows_per_slot(num_pairs: int, num_slots: int) -> float:
    """Rows that a slot gets when pairs spread over as many slots as they can."""
    return num_pairs / max(min(num_pairs, num_slots), 1)


def tiles_for(num_pairs: int, num_slots: int, gpu: str | None = None) -> Tiles:
    """Tiles by the rows per slot, for this GPU unless another is named."""
    if gpu is None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "any"
    rows = rows_per_slot(num_pairs, num_slots)
    return [tiles for least, tiles in TILES.get(gpu, TILES["any"]) if rows >= least][-1]


@triton.jit
def _tile(num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(block of rows, block of columns) of this program: GROUP blocks of rows share their columns' weights in L2."""
    pid = tl.program_id(0)
    in_columns = tl.cdiv(num_columns, COLUMNS)
    in_rows = tl.num_programs(0) // in_columns
    first = pid // (GROUP * in_columns) * GROUP
    height = tl.minimum(in_rows - first, GROUP)
    place = pid % (GROUP * in_columns)
    return first + place % height, place // height


@triton.jit
def _rows_of(rows, blocks, block, num_pairs, ROWS: tl.constexpr):
    """(pair of each row of a block, whether it is one, the slot that all of them go to)."""
    pair = tl.load(rows + block * ROWS + tl.arange(0, ROWS))
    return pair, pair < num_pairs, tl.load(blocks + block).to(tl.int64)


@triton.jit
def _load(at, mask, WIDEN: tl.constexpr):
    found = tl.load(at, mask=mask, other=0.0)
    return found.to(tl.float32) if WIDEN else found


@triton.jit
def _gate_up(
    x, weights, rows, blocks, num_rows, hidden, num_pairs, H, I, K: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """hidden[pair, :] = SiLU(gate x) · (up x) for the rows of one block and some columns of I."""
    block, column = _tile(num_rows, I, ROWS, COLUMNS, GROUP)
    if block * ROWS >= tl.load(num_rows):
        return
    pair, is_pair, slot = _rows_of(rows, blocks, block, num_pairs, ROWS)
    i = column * COLUMNS + tl.arange(0, COLUMNS)
    gate_at = weights + slot * (2 * I * H) + i[None, :].to(tl.int64) * H
    up_at = gate_at + I.to(tl.int64) * H
    x_at = x + (pair // K)[:, None].to(tl.int64) * H
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, H, INNER):
        h = first + tl.arange(0, INNER)
        mine = _load(x_at + h[None, :], is_pair[:, None] & (h[None, :] < H), WIDEN)
        is_weight = (i[None, :] < I) & (h[:, None] < H)
        gate = tl.dot(mine, _load(gate_at + h[:, None], is_weight, WIDEN), gate)
        up = tl.dot(mine, _load(up_at + h[:, None], is_weight, WIDEN), up)
    found = gate * tl.sigmoid(gate) * up
    out = hidden + pair[:, None].to(tl.int64) * I + i[None, :]
    tl.store(out, found.to(hidden.dtype.element_ty), mask=is_pair[:, None] & (i[None, :] < I))


@triton.jit
def _down(
    hidden, weights, rows, blocks, num_rows, router, parts, num_pairs, H, I,  # noqa: E741
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """parts[pair, :] = w · down hidden[pair] for the rows of one block and some columns of H."""
    block, column = _tile(num_rows, H, ROWS, COLUMNS, GROUP)
    if block * ROWS >= tl.load(num_rows):
        return
    pair, is_pair, slot = _rows_of(rows, blocks, block, num_pairs, ROWS)
    h = column * COLUMNS + tl.arange(0, COLUMNS)
    weights_at = weights + slot * (H * I) + h[None, :].to(tl.int64) * I
    hidden_at = hidden + pair[:, None].to(tl.int64) * I
    found = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, I, INNER):
        i = first + tl.arange(0, INNER)
        mine = _load(hidden_at + i[None, :], is_pair[:, None] & (i[None, :] < I), WIDEN)
        found = tl.dot(mine, _load(weights_at + i[:, None], (h[None, :] < H) & (i[:, None] < I), WIDEN), found)
    found *= tl.load(router + pair, mask=is_pair, other=0.0).to(tl.float32)[:, None]
    out = parts + pair[:, None].to(tl.int64) * H + h[None, :]
    tl.store(out, found.to(parts.dtype.element_ty), mask=is_pair[:, None] & (h[None, :] < H))


@triton.jit
def _sum(parts, out, H, K: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr):
    """out[t, :] = parts[t, 0, :] + … + parts[t, K − 1, :], in this order."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for k in tl.static_range(K):
        total += _load(parts + (token * K + k) * H + h, h < H, WIDEN).to(tl.float32)
    tl.store(out + token * H + h, total.to(out.dtype.element_ty), mask=h < H)


def expert_ffn(
    x_TH: Tensor, up_S2IH: Tensor, down_SHI: Tensor, weight_TK: Tensor, alignment: Alignment, tiles: Tiles
) -> Tensor:
    """[T, H] in x's type.

    up_S2IH    [S, 2 I, H], gate above up; down_SHI [S, H, I]: the pool's tensors, or padded ones
    weight_TK  the router's weight of each pair
    alignment  of the pairs' slots, with blocks of `tiles.rows`

    Reads the weights of each slot in use once per block of rows, x and hidden once per block of columns.
    """
    num_tokens, top_k = weight_TK.shape
    H, I = down_SHI.shape[1:]  # noqa: E741, as in the formulas
    _check(x_TH, up_S2IH, down_SHI, weight_TK, alignment, tiles)
    stored = torch.float32 if WIDEN else x_TH.dtype  # the interpreter does not round to bf16, it cuts
    out_TH = torch.empty_like(x_TH, dtype=stored)
    if num_tokens == 0:
        return out_TH.to(x_TH.dtype)
    num_pairs, in_rows = num_tokens * top_k, len(alignment.blocks)
    hidden = x_TH.new_empty((num_pairs, I), dtype=stored)
    parts = x_TH.new_empty((num_pairs, H), dtype=stored)
    where = (alignment.rows, alignment.blocks, alignment.num_rows)
    shape = {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "INNER": tiles.inner, "GROUP": tiles.group, "WIDEN": WIDEN}
    runs = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    _gate_up[(in_rows * triton.cdiv(I, tiles.columns),)](
        x_TH, up_S2IH, *where, hidden, num_pairs, H, I, K=top_k, **shape, **runs
    )
    _down[(in_rows * triton.cdiv(H, tiles.columns),)](
        hidden, down_SHI, *where, weight_TK, parts, num_pairs, H, I, **shape, **runs
    )
    columns = min(triton.next_power_of_2(H), 1024)
    _sum[(num_tokens, triton.cdiv(H, columns))](parts, out_TH, H, K=top_k, COLUMNS=columns, WIDEN=WIDEN)
    return out_TH.to(x_TH.dtype)


def _check(x_TH, up_S2IH, down_SHI, weight_TK, alignment, tiles) -> None:
    """Raises ValueError for shapes that do not belong together, or that the kernels would read wrongly."""
    num_slots, H, I = down_SHI.shape  # noqa: E741
    expected = {"x": (x_TH, (weight_TK.shape[0], H)), "up": (up_S2IH, (num_slots, 2 * I, H)),
                "alignment.slots": (alignment.slots, tuple(weight_TK.shape))}  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, with down {tuple(down_SHI.shape)} it is {shape}")
    for name, tensor in (("x", x_TH), ("up", up_S2IH), ("down", down_SHI), ("weight", weight_TK)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is strided; pass it contiguous")
    if alignment.block != tiles.rows:
        raise ValueError(f"pairs are aligned to blocks of {alignment.block} rows, the tiles have {tiles.rows}")


def expert_ffn_grouped(
    x_TH: Tensor, up_S2IH: Tensor, down_SHI: Tensor, slots_TK: Tensor, weight_TK: Tensor
) -> Tensor:
    """The same by PyTorch's grouped matrix product, with its permutation, SiLU, weighting and sum.

    It computes with whole tensors, so that the pool behind up and down must be mapped as far as it reads them: the
    slots in use, which its offsets name.
    """
    num_tokens, top_k = weight_TK.shape
    slots = slots_TK.flatten().long()
    pairs = slots.argsort(stable=True)
    counts_S = slots.new_zeros(down_SHI.shape[0]).scatter_add_(0, slots, torch.ones_like(slots))
    ends_S = counts_S.cumsum(0).to(torch.int32)
    rows = x_TH[pairs // top_k]
    gate, up = torch.nn.functional.grouped_mm(rows, up_S2IH.transpose(1, 2), offs=ends_S).chunk(2, dim=1)
    hidden = torch.nn.functional.silu(gate) * up
    sorted_parts = torch.nn.functional.grouped_mm(hidden, down_SHI.transpose(1, 2), offs=ends_S)
    parts = torch.empty_like(sorted_parts)
    parts[pairs] = sorted_parts * weight_TK.flatten()[pairs, None].to(sorted_parts.dtype)
    return parts.view(num_tokens, top_k, -1).sum(dim=1, dtype=torch.float32).to(x_TH.dtype)
