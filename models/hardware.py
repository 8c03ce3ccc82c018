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
    its first byte. Devices without NVLink carry the figures of their PCIe path there. `pcie_bytes_per_s` is a copy
    between the device and pinned host memory, taken as the same in both directions; `pcie_copy_s` is what one copy
    costs beside its bytes.

    Leaves out: clocks that fall under load (an efficiency in the cost model stands for that), sparsity, FP4.
    """

    name: str
    hbm_bytes: int
    hbm_bytes_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float | None
    nvlink_bytes_per_s: float
    nvlink_latency_s: float
    pcie_bytes_per_s: float
    pcie_copy_s: float
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


_NVLINK_LATENCY = (
    "NCCL 2.20.3, src/graph/tuning.cc, hwLat: 1.9 us for an NVLink hop of a ring with protocol LL128; a constant of "
    "NCCL's cost model, not a measurement; its base latency per collective is left out"
)
_PCIE = (
    "assumption, unmeasured: 16 GB/s and 20 us between devices over PCIe, as LLMServingSim 2.0 configures "
    "RTX PRO 6000 hosts (configs/cluster/single_node_tp_pp_instance.json)"
)
_COPY = (
    "measured on an H200 (calibration/data/h200.parquet, host_copy): 256 MiB from pinned memory in 4.854 ms, 64 KiB in "
    "4.04 us, of which 1.19 are its bytes"
)
_COPY_AS = f"assumption, unmeasured on this device: as on an H200 (PCIe 5.0 x16); {_COPY}"
_COPY_4 = (
    "derived, unmeasured: the 31.5 GB/s of PCIe 4.0 x16 times the share that an H200's copies reach of 5.0's 63.0"
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
            pcie_bytes_per_s=27.65e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "CUDA total, 79.25 GiB in a PyTorch message (levihsu/OOTDiffusion issue 235); 79.32 is seen too",
                "hbm_bytes_per_s": "NVIDIA A100 80GB SXM data sheet, 2,039 GB/s",
                "bf16_flops_per_s": "NVIDIA A100 data sheet, 312 TFLOPS dense",
                "fp8_flops_per_s": "none on this architecture: FP8 weights are computed at the bf16 rate",
                "nvlink_bytes_per_s": "NVIDIA A100 data sheet, NVLink 600 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
                "pcie_bytes_per_s": _COPY_4,
                "pcie_copy_s": _COPY_AS,
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
            pcie_bytes_per_s=55.3e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "CUDA total, 79.18 GiB in PyTorch messages; 79.11 (vllm issue 27508), 79.22 (vllm PR 12126) are seen too",
                "hbm_bytes_per_s": "NVIDIA H100 SXM data sheet, 3.35 TB/s",
                "bf16_flops_per_s": "NVIDIA H100 architecture white paper, 989.4 TFLOPS dense",
                "fp8_flops_per_s": "NVIDIA H100 architecture white paper, 1,978.9 TFLOPS dense",
                "nvlink_bytes_per_s": "NVIDIA H100 SXM data sheet, NVLink 900 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
                "pcie_bytes_per_s": _COPY_AS,
                "pcie_copy_s": _COPY_AS,
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
            pcie_bytes_per_s=55.3e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "CUDA total, 139.80 GiB in PyTorch messages of several public repositories; sold as 141 GB",
                "hbm_bytes_per_s": "NVIDIA H200 SXM data sheet, 4.8 TB/s",
                "bf16_flops_per_s": "as H100, the same compute; aiconfigurator-core 0.12.0, systems/h200_sxm.yaml: 989 TFLOPS",
                "fp8_flops_per_s": "as H100, the same compute; aiconfigurator-core 0.12.0, systems/h200_sxm.yaml: 1,978 TFLOPS",
                "nvlink_bytes_per_s": "NVIDIA H200 SXM data sheet, NVLink 900 GB/s both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
                "pcie_bytes_per_s": _COPY,
                "pcie_copy_s": _COPY,
            },
        ),
        Accelerator(
            name="b200",
            hbm_bytes=int(178.35 * GIB),
            hbm_bytes_per_s=7.7e12,
            bf16_flops_per_s=2.25e15,
            fp8_flops_per_s=4.5e15,
            nvlink_bytes_per_s=900e9,
            nvlink_latency_s=1.9e-6,
            pcie_bytes_per_s=55.3e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "CUDA total, 178.35 GiB in PyTorch messages of several public repositories; sold as 180 GB",
                "hbm_bytes_per_s": "NVIDIA/exemplar-performance README: 7.7 TB/s for the 180 GB B200; a DGX is quoted at 64 TB/s for 8",
                "bf16_flops_per_s": "NVIDIA/exemplar-performance README, peak non-sparse BF16: 2,250 TFLOPS",
                "fp8_flops_per_s": "NVIDIA/exemplar-performance README, peak non-sparse FP8: 4,500 TFLOPS",
                "nvlink_bytes_per_s": "NVIDIA/exemplar-performance README, NVLink 5: 1.8 TB/s per GPU, both directions",
                "nvlink_latency_s": _NVLINK_LATENCY,
                "pcie_bytes_per_s": _COPY_AS,
                "pcie_copy_s": _COPY_AS,
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
            pcie_bytes_per_s=27.65e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "recorded with a vLLM 0.19.0 run: LLMServingSim, bench/results/llama-3.1-8b-rtx4090/meta.json",
                "hbm_bytes_per_s": "NVIDIA Ada architecture white paper, 1,008 GB/s",
                "bf16_flops_per_s": "NVIDIA Ada white paper, 165.2 TFLOPS dense, float32 accumulation",
                "fp8_flops_per_s": "NVIDIA Ada white paper, 330.3 TFLOPS dense, float32 accumulation",
                "nvlink_bytes_per_s": "assumption, unmeasured: LLMServingSim 2.0, configs/cluster/rtx4090_tp2_instance.json",
                "nvlink_latency_s": "assumption, unmeasured: as RTX PRO 6000 hosts; LLMServingSim's RTX 4090 ones have 1 us",
                "pcie_bytes_per_s": _COPY_4,
                "pcie_copy_s": _COPY_AS,
            },
        ),
        Accelerator(
            name="rtx_pro_6000",
            hbm_bytes=101_976_440_832,
            hbm_bytes_per_s=1.597e12,
            bf16_flops_per_s=480e12,
            fp8_flops_per_s=960e12,
            nvlink_bytes_per_s=16e9,
            nvlink_latency_s=20e-6,
            pcie_bytes_per_s=55.3e9,
            pcie_copy_s=2.85e-6,
            sources={
                "hbm_bytes": "recorded with a vLLM run: LLMServingSim, bench/examples/RTXPRO6000/Llama-3.1-8B/vllm/meta.json",
                "hbm_bytes_per_s": "RTX PRO 6000 Blackwell Server Edition, 1,597 GB/s (the Workstation Edition has 1,792)",
                "bf16_flops_per_s": "derived, not published: 4 x the Server Edition's 120 FP32 TFLOPS, the ratio of the Workstation Edition",
                "fp8_flops_per_s": "derived, not published: twice the bf16 rate",
                "nvlink_bytes_per_s": _PCIE,
                "nvlink_latency_s": _PCIE,
                "pcie_bytes_per_s": _COPY_AS,
                "pcie_copy_s": _COPY_AS,
            },
        ),
    )
}
"""Presets by name: SXM modules where there is a choice."""

NICS: dict[str, Nic] = {
    nic.name: nic
    for nic in (
        Nic("100g", 100 * GBIT_PER_S, "100GBASE Ethernet line rate"),
        Nic("200g", 200 * GBIT_PER_S, "ConnectX-6 (HDR, 200GbE): docs.nvidia.com, WinOF-2 v23.10, supported adapter cards"),
        Nic("400g", 400 * GBIT_PER_S, "ConnectX-7 (NDR, 400GbE): docs.nvidia.com, WinOF-2 v25.7, supported adapter cards"),
        Nic("800g", 800 * GBIT_PER_S, "ConnectX-8 (XDR InfiniBand 800 Gbit/s): docs.nvidia.com, firmware 40.44.0208 (as Ethernet 2 x 400GbE)"),
    )
}
"""NIC presets by name; one port's line rate in one direction."""
