"""Roofline: an operator takes as long as its arithmetic or its bytes, whichever is longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.cost.provenance import Estimate, Source
from models.hardware import Accelerator
from models.operators import Operator

__all__ = ["Roofline"]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Times of operators from the peak rates of a device.

    max(flops / (compute_efficiency · peak), bytes / (memory_efficiency · bandwidth)) + fixed_s, times
    `scale[operator.name]`.
    Transfers inside the host take bytes / rate + latency per message, without an efficiency.

    compute_efficiency, memory_efficiency: attained share of the peaks, in (0, 1]
    fixed_s: what a kernel costs beside its work (launch, ramp); 0 leaves it out
    Leaves out: efficiencies that depend on shape, overlap of one operator with the next.
    Raises ValueError for a value out of range.
    """

    accelerator: Accelerator
    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    fixed_s: float = 0.0
    scale: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for what in ("compute_efficiency", "memory_efficiency"):
            value = getattr(self, what)
            if not 0 < value <= 1:
                raise ValueError(f"{what} must be in (0, 1], got {value}")
        if not 0 <= self.fixed_s < float("inf"):
            raise ValueError(f"fixed_s must be a time in seconds of at least 0, got {self.fixed_s}")
        for name, factor in self.scale.items():
            if not 0 <= factor < float("inf"):
                raise ValueError(f"scale of {name} must be at least 0 and finite, got {factor}")

    def flops_per_s(self, operator: Operator) -> float:
        """Attained arithmetic rate."""
        return self.compute_efficiency * self.accelerator.flops_per_s(operator.precision)

    def bytes_per_s(self, operator: Operator) -> float:
        """Attained rate of the memory or of the link that the operator's bytes pass."""
        if operator.is_communication:
            return self.accelerator.nvlink_bytes_per_s
        return self.memory_efficiency * self.accelerator.hbm_bytes_per_s

    def fixed_s_of(self, operator: Operator) -> float:
        """Time of one call beside its flops and bytes."""
        return self.fixed_s + operator.num_messages * self.accelerator.nvlink_latency_s

    def scale_of(self, operator: Operator) -> float:
        """Factor on the operator's time, 1 unless given."""
        return self.scale.get(operator.name, 1.0)

    def seconds(self, operator: Operator, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n] seconds of one call for [n, features], without `scale`."""
        compute_s = features @ np.array(operator.flops) / self.flops_per_s(operator)
        memory_s = features @ np.array(operator.bytes) / self.bytes_per_s(operator)
        return np.maximum(compute_s, memory_s) + self.fixed_s_of(operator)

    def estimate(self, operator: Operator, features: Sequence[float]) -> Estimate:
        """Time of one call of the operator, and its source.

        features: in the order of `models.features.Feature`.
        """
        if features[operator.runs_on] <= 0:
            return Estimate(0.0, Source.ROOFLINE)
        flops = sum(a * x for a, x in zip(operator.flops, features, strict=True))
        size_bytes = sum(a * x for a, x in zip(operator.bytes, features, strict=True))
        busy_s = max(flops / self.flops_per_s(operator), size_bytes / self.bytes_per_s(operator))
        return Estimate(self.scale_of(operator) * (busy_s + self.fixed_s_of(operator)), Source.ROOFLINE)
