"""Batched rerouting (ExpertWeave, arXiv 2508.17624) as an operator: from experts to slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.features import Operator, affine

__all__ = ["Rerouting", "Way", "rerouting_operator"]

Way = Literal["eager", "fused", "aligned"]
"""eager: PyTorch's operators, one launch each · fused: one kernel before the alignment, as ExpertWeave has it ·
aligned: on the way of the alignment that the grouped product needs anyway (`kernels.align`)."""


@dataclass(frozen=True, slots=True)
class Rerouting:
    """How a layer with experts reroutes the pairs of its tokens, over so many adapters' maps."""

    way: Way
    num_adapters: int


def rerouting_operator(rerouting: Rerouting, top_k: int, num_experts: int) -> Operator:
    """One call a layer with experts. Bytes a token, with K experts each and 4-byte numbers:

    fused    4 (2 K + 1): the experts and the adapter read, the slots written; the maps stay in the cache
    aligned  the same: the adapter and the maps' entries read, the slots written; experts are read anyway
    eager    34 + 40 K: the adapter clamped and widened to an index, experts widened, slots gathered, adapters compared,
             one or the other chosen

    Bytes are all that the roofline knows. What decides on a GPU is launching: 7 kernels or so take eight times as long
    as one (`docs/calibration.md`), which rows measured in a table say.
    """
    token_bytes = 34 + 40 * top_k if rerouting.way == "eager" else 4 * (2 * top_k + 1)
    return Operator(
        "rerouting", "moe_local", affine(), affine(tokens=token_bytes), kind=f"reroute_{rerouting.way}",
        shape=(top_k, num_experts, rerouting.num_adapters),
    )  # fmt: skip
