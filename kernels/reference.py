"""What each kernel computes, in plain PyTorch and fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def reroute(topk_TK: Tensor, adapter_T: Tensor, map_NM: Tensor) -> Tensor:
    """[T, K] slot of each (token, expert) pair:  where(a < 0, id, map[a, id])  with the token's adapter a; −1: base."""
    adapter_T1 = adapter_T[:, None]
    if map_NM.shape[0] == 0:
        return topk_TK.clone()
    mapped_TK = map_NM[adapter_T1.clamp(min=0).long(), topk_TK.long()]
    return torch.where(adapter_T1 < 0, topk_TK, mapped_TK.to(topk_TK.dtype))


def align(slots_TK: Tensor, num_slots: int, block: int) -> tuple[list[int], list[int]]:
    """(rows, slots of blocks): the pairs t K + k of each slot in order, each slot padded to whole blocks with T K."""
    pairs = slots_TK.flatten().tolist()
    rows: list[int] = []
    blocks: list[int] = []
    for slot in range(num_slots):
        mine = [pair for pair, of in enumerate(pairs) if of == slot]
        num_blocks = -(-len(mine) // block)
        rows += mine + [len(pairs)] * (num_blocks * block - len(mine))
        blocks += [slot] * num_blocks
    return rows, blocks


def expert_ffn(x_TH: Tensor, up_S2IH: Tensor, down_SHI: Tensor, slots_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """[T, H] sum over k, in order, of  w · down (SiLU(gate x) · (up x))  with the matrices of slot [t, k].

    up_S2IH holds gate above up. All in fp32, whatever comes in. Only slots that a pair names are read.
    """
    out_TH = torch.zeros_like(x_TH, dtype=torch.float32)
    for t, slots_K in enumerate(slots_TK.tolist()):
        x_H = x_TH[t].float()
        for k, slot in enumerate(slots_K):
            gate_I, up_I = (up_S2IH[slot].float() @ x_H).chunk(2)
            hidden_I = torch.nn.functional.silu(gate_I) * up_I
            out_TH[t] += weight_TK[t, k].float() * (down_SHI[slot].float() @ hidden_I)
    return out_TH
