"""Batched rerouting (ExpertWeave, arXiv 2508.17624): which slot of the pool serves each (token, expert) pair.

    slot[t, k] = id[t, k]             where the token has no adapter (adapter −1)
                 map[adapter, id]     otherwise

Three ways: separate PyTorch operators (`reroute_eagerly`, the baseline), one kernel (`reroute`), and inside the
alignment that the grouped product needs anyway (`align.align`), which costs no pass over the pairs of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def reroute_eagerly(topk_TK: Tensor, adapter_T: Tensor, map_NM: Tensor) -> Tensor:
    """As `reroute`, in PyTorch's operators: what an engine does without a kernel of its own."""
    if map_NM.shape[0] == 0:
        return topk_TK.clone()
    adapter_T1 = adapter_T[:, None]
    mapped_TK = map_NM[adapter_T1.clamp(min=0), topk_TK]
    return torch.where(adapter_T1 < 0, topk_TK, mapped_TK)


@triton.jit
def slots_of(topk, adapter, table, pair, is_pair, num_experts, K: tl.constexpr):
    """Slots of the pairs t K + k; what they are where is_pair does not hold is not said."""
    expert = tl.load(topk + pair, mask=is_pair, other=0)
    who = tl.load(adapter + pair // K, mask=is_pair, other=-1)
    row = table + tl.maximum(who, 0).to(tl.int64) * num_experts
    return tl.where(who < 0, expert, tl.load(row + expert, mask=is_pair & (who >= 0), other=0))


@triton.jit
def _reroute(topk, adapter, table, out, num_pairs, num_experts, K: tl.constexpr, BLOCK: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_pair = pair < num_pairs
    tl.store(out + pair, slots_of(topk, adapter, table, pair, is_pair, num_experts, K), mask=is_pair)


def reroute(topk_TK: Tensor, adapter_T: Tensor, map_NM: Tensor) -> Tensor:
    """[T, K] int32 slots, one kernel.

    topk_TK    int32, contiguous, experts from 0 to M − 1
    adapter_T  int32, −1 for the base, or 0 to N − 1; neither is checked on the device
    map_NM     int32, contiguous (`models.pages.expert_map`)

    Moves 4 (2 T K + T) bytes; the map stays in the cache.
    """
    check(topk_TK, adapter_T, map_NM)
    out_TK = torch.empty_like(topk_TK)
    num_pairs = topk_TK.numel()
    if num_pairs > 0:
        grid = (triton.cdiv(num_pairs, BLOCK),)
        _reroute[grid](
            topk_TK, adapter_T, map_NM, out_TK, num_pairs, map_NM.shape[1], K=topk_TK.shape[1], BLOCK=BLOCK
        )
    return out_TK


def check(topk_TK: Tensor, adapter_T: Tensor, map_NM: Tensor) -> None:
    """Raises ValueError for what would be read out of bounds or as something else."""
    for name, tensor, num_axes in (("topk", topk_TK, 2), ("adapter", adapter_T, 1), ("map", map_NM, 2)):
        if tensor.dtype != torch.int32 or tensor.ndim != num_axes or not tensor.is_contiguous():
            raise ValueError(
                f"{name}: {num_axes} axes of contiguous int32 are needed, got {tensor.dtype} {tuple(tensor.shape)}"
                f"{'' if tensor.is_contiguous() else ', strided'}"
            )
    if adapter_T.shape[0] != topk_TK.shape[0]:
        raise ValueError(f"adapter names {adapter_T.shape[0]} tokens, topk {topk_TK.shape[0]}")
