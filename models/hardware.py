"""Accelerators and NICs as numbers, each with the place it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ACCELERATORS", "NICS", "PRECISIONS", "Accelerator", "Nic", "Precision"]

Precision = Literal["bf16", "fp8"]

PRECISIONS: dict[str, int] = {"bf16": 2, "fp8": 1}
"""Bytes of one stored number, by precision."""

GIB = 2**30
GBIT_PER_S = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device: its memory, its peak arithmetic rates and its link to the others of the same host.

    `hbm_bytes` is what CUDA reports as the device's total, which is what engines take their fraction of; data
    sheets round it. The arithmetic rates are dense tensor-core peaks with float32 accumulation.
    `nvlink_bytes_per_s` is one direction of one device; `nvlink_latency_s` is what one message costs before
    its first byte. Devices without NVLink carry the figures of their PCIe path there.

    Leaves out: clocks that fall under load (an efficiency in the cost model stands for that), sparsity, FP4.
    """

    name: str
    hbm_bytes: int
    hbm_bytes_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float | None
    nvlink_bytes_per_s: float
    nvlink_latency_s: float
    sources: Mapping[str, str] = field(hash=False)
    """Source of each number, by field name."""

    def flops_per_s(self, precision: Precision) -> float:
        """Peak dense rate for operands of that precision.

        A device without FP8 arithmetic (A100) widens FP8 weights to bf16 in registers: it reads half the
        bytes and computes at the bf16 rate.
        """
        if precision == "fp8" and self.fp8_flops_per_s is not None:
            return self.fp8_flops_per_s
        return self.bf16_flops_per_s


@dataclass(frozen=True, slots=True)
class Nic:
    """A network port: what it can inject, and where the figure comes from."""

    name: str
    bytes_per_s: float
    source: str


_NVLINK_LATENCY = "NCCL 2.19, src/graph/tuning.cc: 1.9 us for an NVLink hop of a ring with protocol LL128"
_PCIE = (
    "assumption, unmeasured: 16 GB/s and 20 us between devices over PCIe, "
    "as LLMServingSim 2.0 configures such hosts"
)

ACCELERATORS: dict[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator(
            name="a100",
            hbm_bytes=int(79.25 * GIB),
            hbm_bytes_per_s=2.039e12,
            bf16_flops_per_s=312e12,
            fp8_flops_per_s=None,
            nvlink_bytes_per_s=300e9,
            nvlink_latency_s=1.9e-6,
            sources={
                "hbm_bytes": "CUDA total, 79.25 GiB in PyTorch out-of-memory messages; data sheet 80 GB",
                "hbm_bytes_per_s": "NVIDIA A100 80GB SXM data sheet (2021), 2,039 GB/s",
                "bf16_flops_per_s": "NVIDIA A100 data sheet (2021), 312 TFLOPS dense",
                "fp8_flops_per_s": "none on this architecture: FP8 weights are computed at the bf16 rate",
                "nvlink_bytes_per_s": "NVIDIA A100 data sheet (2021), NVLink 600 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
            },
        ),
        Accelerator(
            name="h100",
            hbm_bytes=int(79.18 * GIB),
            hbm_bytes_per_s=3.35e12,
            bf16_flops_per_s=989.4e12,
            fp8_flops_per_s=1978.9e12,
            nvlink_bytes_per_s=450e9,
            nvlink_latency_s=1.9e-6,
            sources={
                "hbm_bytes": "CUDA total, 79.18 GiB in PyTorch out-of-memory messages; data sheet 80 GB",
                "hbm_bytes_per_s": "NVIDIA H100 SXM data sheet (2023), 3.35 TB/s",
                "bf16_flops_per_s": "NVIDIA H100 architecture white paper (2023), 989.4 TFLOPS dense",
                "fp8_flops_per_s": "NVIDIA H100 architecture white paper (2023), 1,978.9 TFLOPS dense",
                "nvlink_bytes_per_s": "NVIDIA H100 SXM data sheet (2023), NVLink 900 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
            },
        ),
        Accelerator(
            name="h200",
            hbm_bytes=int(139.80 * GIB),
            hbm_bytes_per_s=4.8e12,
            bf16_flops_per_s=989.4e12,
            fp8_flops_per_s=1978.9e12,
            nvlink_bytes_per_s=450e9,
            nvlink_latency_s=1.9e-6,
            sources={
                "hbm_bytes": "CUDA total, 139.80 GiB in PyTorch out-of-memory messages; data sheet 141 GB",
                "hbm_bytes_per_s": "NVIDIA H200 SXM data sheet (2024), 4.8 TB/s",
                "bf16_flops_per_s": "NVIDIA H200 SXM data sheet (2024), 1,979 TFLOPS sparse, half dense",
                "fp8_flops_per_s": "NVIDIA H200 SXM data sheet (2024), 3,958 TFLOPS sparse, half dense",
                "nvlink_bytes_per_s": "NVIDIA H200 SXM data sheet (2024), NVLink 900 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
            },
        ),
        Accelerator(
            name="b200",
            hbm_bytes=int(178.35 * GIB),
            hbm_bytes_per_s=8.0e12,
            bf16_flops_per_s=2.25e15,
            fp8_flops_per_s=4.5e15,
            nvlink_bytes_per_s=900e9,
            nvlink_latency_s=1.9e-6,
            sources={
                "hbm_bytes": "CUDA total, 178.35 GiB in PyTorch out-of-memory messages; data sheet 180 GB",
                "hbm_bytes_per_s": "NVIDIA DGX B200 data sheet (2024), 64 TB/s for 8",
                "bf16_flops_per_s": "HGX B200 specification (2024), 36 PFLOPS sparse for 8, half dense",
                "fp8_flops_per_s": "NVIDIA DGX B200 data sheet (2024), 72 PFLOPS sparse for 8, half dense",
                "nvlink_bytes_per_s": "NVIDIA DGX B200 data sheet (2024), 14.4 TB/s for 8, both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
            },
        ),
        Accelerator(
            name="rtx4090",
            hbm_bytes=25_250_627_584,
            hbm_bytes_per_s=1.008e12,
            bf16_flops_per_s=165.2e12,
            fp8_flops_per_s=330.3e12,
            nvlink_bytes_per_s=16e9,
            nvlink_latency_s=20e-6,
            sources={
                "hbm_bytes": "CUDA total recorded with a vLLM 0.19 run (LLMServingSim 2.0); data sheet 24 GB",
                "hbm_bytes_per_s": "NVIDIA Ada architecture white paper (2022), 1,008 GB/s",
                "bf16_flops_per_s": "NVIDIA Ada white paper (2022), 165.2 TFLOPS dense, float32 accumulation",
                "fp8_flops_per_s": "NVIDIA Ada white paper (2022), 330.3 TFLOPS dense, float32 accumulation",
                "nvlink_bytes_per_s": _PCIE,
                "nvlink_latency_s": _PCIE,
            },
        ),
        Accelerator(
            name="rtx_pro_6000",
            hbm_bytes=int(94.97 * GIB),
            hbm_bytes_per_s=1.597e12,
            bf16_flops_per_s=500e12,
            fp8_flops_per_s=1000e12,
            nvlink_bytes_per_s=16e9,
            nvlink_latency_s=20e-6,
            sources={
                "hbm_bytes": "CUDA total, 94.97 GiB in PyTorch out-of-memory messages; data sheet 96 GB",
                "hbm_bytes_per_s": "RTX PRO 6000 Blackwell Server Edition data sheet (2025), 1,597 GB/s",
                "bf16_flops_per_s": "RTX PRO 6000 Blackwell data sheet (2025), 1/8 of 4,000 sparse FP4 TOPS",
                "fp8_flops_per_s": "RTX PRO 6000 Blackwell data sheet (2025), 1/4 of 4,000 sparse FP4 TOPS",
                "nvlink_bytes_per_s": _PCIE,
                "nvlink_latency_s": _PCIE,
            },
        ),
    )
}
"""Presets by name: SXM modules where there is a choice."""

NICS: dict[str, Nic] = {
    nic.name: nic
    for nic in (
        Nic("100g", 100 * GBIT_PER_S, "100GBASE Ethernet / InfiniBand EDR line rate"),
        Nic("200g", 200 * GBIT_PER_S, "NVIDIA ConnectX-6 data sheet (2020), 200 Gbit/s"),
        Nic("400g", 400 * GBIT_PER_S, "NVIDIA ConnectX-7 data sheet (2022), 400 Gbit/s"),
        Nic("800g", 800 * GBIT_PER_S, "NVIDIA ConnectX-8 data sheet (2024), 800 Gbit/s"),
    )
}
"""NIC presets by name; one port's line rate in one direction."""
