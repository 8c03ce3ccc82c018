"""How one copy of a model is cut over accelerators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.architecture import Architecture, GroupedQueryAttention

__all__ = ["Exchange", "Parallelism", "ParallelismError"]

Exchange = Literal["dispatch", "all_gather"]
"""How tokens come to experts on other ranks. dispatch: each goes to the ranks that hold its experts, and back from
them · all_gather: those of every copy of the attention to all others, and a reduce-scatter of what comes out (vLLM's
allgather_reducescatter)."""


class ParallelismError(ValueError):
    """A model that cannot be cut as asked; the message names the two numbers and a degree that works."""


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Degrees of one replica.

    `tensor` accelerators share each layer. With `expert` > 1 the routed experts of a layer lie
    whole on `expert` accelerators, which hold the attention in `data` = expert / tensor copies, each with its
    own requests; with `expert` = 1 every expert is cut over the `tensor` accelerators, as the dense
    feed-forward is.

    exchange: between ranks of experts; all_gather of one host's devices is part of a step's operators, anything else
    goes through the fabric
    pipeline: stages that the layers are cut into (`models.pipeline`), each over `tensor` accelerators of its own
    hosts: over which the tensor-parallel ranks lie, equally many on each; what they sum across hosts goes through the
    fabric, and is no operator of a step

    Leaves out: experts on several ranks inside a stage.
    """

    tensor: int = 1
    expert: int = 1
    exchange: Exchange = "dispatch"
    pipeline: int = 1
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.expert < 1 or self.pipeline < 1:
            raise ParallelismError(
                f"degrees must be at least 1, got tensor {self.tensor}, expert {self.expert}"
                f"{'' if self.pipeline == 1 else f', pipeline {self.pipeline}'}"
            )
        if self.expert > 1 and self.pipeline > 1:
            raise ParallelismError(
                f"expert degree {self.expert} and pipeline degree {self.pipeline}: ranks of experts step together, "
                "stages one after the other; one of the two must be 1"
            )
        if self.expert > 1 and self.expert % self.tensor:
            raise ParallelismError(
                f"expert degree {self.expert} must be 1 or a multiple of tensor degree {self.tensor}: "
                "the same accelerators hold attention and experts"
            )

    @property
    def tensor_in_host(self) -> int:
        """Tensor-parallel ranks on each host."""
        return self.tensor // self.hosts

    @property
    def num_accelerators(self) -> int:
        """Accelerators of one replica."""
        return max(self.tensor, self.expert) * self.pipeline

    @property
    def data(self) -> int:
        """Copies of the attention, each serving its own requests."""
        return max(self.tensor, self.expert) // self.tensor

    def check(self, architecture: Architecture) -> None:
        """Raises ParallelismError where a head, an inner width or the experts do not divide, or layers are too few."""
        if self.pipeline > architecture.num_layers:
            raise ParallelismError(
                f"{architecture.name}: {architecture.num_layers} layers are too few for pipeline degree "
                f"{self.pipeline}; at most one stage a layer"
            )
        attention = architecture.attention
        self._divide(architecture, "attention heads", attention.num_heads, self.tensor, "tensor")
        if isinstance(attention, GroupedQueryAttention):
            heads = attention.num_kv_heads
            # With more ranks than key-value heads each head is kept by several ranks.
            if heads % self.tensor and self.tensor % heads:
                self._divide(architecture, "key-value heads", heads, self.tensor, "tensor")
        if architecture.num_dense_layers:
            self._divide(architecture, "inner width", architecture.ffn_size, self.tensor, "tensor")
        experts = architecture.experts
        if experts is None:
            if self.expert > 1:
                raise ParallelismError(
                    f"{architecture.name} has no experts: expert degree {self.expert} must be 1"
                )
            return
        if self.expert == 1:
            self._divide(architecture, "expert inner width", experts.ffn_size, self.tensor, "tensor")
        self._divide(architecture, "routed experts", experts.num_routed, self.expert, "expert")
        self._divide(architecture, "shared inner width", experts.shared_ffn_size, self.tensor, "tensor")

    @staticmethod
    def _divide(architecture: Architecture, what: str, count: int, degree: int, kind: str) -> None:
        if count % degree:
            works = [d for d in range(1, min(count, 1024) + 1) if count % d == 0]
            raise ParallelismError(
                f"{architecture.name}: {count} {what} do not divide over {kind} degree {degree}; "
                f"degrees that divide: {', '.join(map(str, works))}"
            )
