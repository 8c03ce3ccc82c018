"""What an operator is: a kernel whose flops and bytes are affine in the features of a step.

The features are listed once, in `Feature`; every operator and every compiled table uses that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from models.hardware import PRECISIONS, Precision

__all__ = [
    "ACTIVATION_BYTES",
    "STAGES",
    "Feature",
    "Operator",
    "affine",
    "all_reduce",
    "elementwise",
    "gather_and_scatter",
    "linear",
]

ACTIVATION_BYTES = 2
"""Activations are bf16, whatever the precision of the weights."""


class Feature(IntEnum):
    """What an operator's flops and bytes depend on, in the order of the coefficient arrays.

    ONE               1 for every step that runs the operator: weights are read once
    TOKENS            tokens computed in this step, of prefill chunks and decodes together
    DECODES           those among them that are decodes (one each); the prefill tokens are TOKENS - DECODES
    SEQUENCES         rows through the output head: one for each decode and each prefill chunk, also for
                      an unfinished one where the engine computes it
    PREFILL_PAIRS     causal query-key pairs of prefill: chunk * prefix + chunk (chunk + 1) / 2, summed
    PREFILL_CONTEXT   keys that prefill reads: prefix + chunk, summed over the chunks
    DECODE_CONTEXT    keys that decode reads: the context of each decode, its new token included, summed
    EXPERT_ROWS       (token, routed expert) pairs that one rank computes in one layer
    DISTINCT_EXPERTS  different routed experts that these pairs touch on that rank in that layer
    """

    ONE = 0
    TOKENS = 1
    DECODES = 2
    SEQUENCES = 3
    PREFILL_PAIRS = 4
    PREFILL_CONTEXT = 5
    DECODE_CONTEXT = 6
    EXPERT_ROWS = 7
    DISTINCT_EXPERTS = 8


Medium = Literal["hbm", "nvlink"]

STAGES = ("embed", "attention", "dense_ffn", "moe_local", "exchange", "experts", "head", "handover")
"""embed: once · attention: once a layer, with its two norms · dense_ffn: once a dense layer · moe_local: once
a layer with experts, its router and shared experts, on the rank's own tokens · exchange: once a layer with experts,
all-gather and reduce-scatter between the ranks of one host · experts: once a layer with experts, on the rows a rank
received · head: once · handover: once from each pipeline stage to the next."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A kernel, or a transfer inside the host, that one pass of a stage calls `calls` times on each rank.

    `flops` and `bytes` are coefficients of one call in `Feature` order. The operator runs where the feature
    `runs_on` is positive and costs nothing elsewhere. `medium` says whether its bytes pass the device's
    memory or its link to the other devices of the host; each of `num_messages` messages on that link pays its
    latency. `kind` and `shape` are what measured tables know it by (`models.cost.measured`): linear (inputs, outputs) ·
    elementwise (numbers a row) · feed_forward (hidden, inner, matrices) · attention (heads, kv_heads, head_dim) ·
    experts (hidden, inner, top_k, experts on the rank) · all_reduce (ranks, bytes a row) · all_gather, reduce_scatter
    (ranks, bytes a row of all ranks together) · reroute_eager, reroute_fused, reroute_aligned (top_k, num_experts,
    adapters).
    """

    name: str
    stage: str
    flops: tuple[float, ...]
    bytes: tuple[float, ...]
    runs_on: Feature = Feature.TOKENS
    calls: int = 1
    precision: Precision = "bf16"
    medium: Medium = "hbm"
    num_messages: int = 0
    kind: str = "elementwise"
    shape: tuple[int, ...] = ()

    @property
    def is_communication(self) -> bool:
        """Whether it moves bytes between devices instead of computing."""
        return self.medium == "nvlink"


def affine(**coefficients: float) -> tuple[float, ...]:
    """Coefficients in `Feature` order from features named in lower case; the rest are 0."""
    values = [0.0] * len(Feature)
    for name, value in coefficients.items():
        values[Feature[name.upper()]] = float(value)
    return tuple(values)


def linear(
    name: str, stage: str, inputs: float, outputs: float, precision: Precision, rows: Feature = Feature.TOKENS
) -> Operator:
    """rows x inputs times inputs x outputs: 2 · inputs · outputs flops a row, the weights read once."""
    row = rows.name.lower()
    weight_bytes = inputs * outputs * PRECISIONS[precision]
    return Operator(
        name,
        stage,
        flops=affine(**{row: 2 * inputs * outputs}),
        bytes=affine(**{"one": weight_bytes, row: (inputs + outputs) * ACTIVATION_BYTES}),
        runs_on=rows,
        precision=precision,
        kind="linear",
        shape=(int(inputs), int(outputs)),
    )


def elementwise(name: str, stage: str, numbers: float, flops: float, calls: int = 1) -> Operator:
    """A memory-bound pass that touches `numbers` activations and computes `flops` per token."""
    touched = affine(tokens=numbers * ACTIVATION_BYTES)
    return Operator(name, stage, affine(tokens=flops), touched, calls=calls, shape=(int(numbers),))


def all_reduce(stage: str, hidden_size: int, tensor: int) -> list[Operator]:
    """Sum of the ranks' activations: reduce-scatter and all-gather, each a direct exchange over the switch.

    2 (latency + (n - 1) / n · size / rate): behind a switch a phase pays one latency, on a ring n - 1.
    """
    if tensor == 1:
        return []
    size_bytes = hidden_size * ACTIVATION_BYTES
    moved = 2 * (tensor - 1) / tensor * size_bytes
    return [
        Operator(
            "tensor_all_reduce",
            stage,
            affine(),
            affine(tokens=moved),
            medium="nvlink",
            num_messages=2,
            kind="all_reduce",
            shape=(tensor, size_bytes),
        )
    ]


def gather_and_scatter(hidden_size: int, ranks: int) -> list[Operator]:
    """Every rank's tokens to all, and the sums of what all have computed for them back: each a direct exchange.

    2 (latency + (n - 1) · size / rate), size being the activations of one rank's tokens.
    """
    if ranks == 1:
        return []
    size_bytes = hidden_size * ACTIVATION_BYTES
    return [
        Operator(
            f"expert_{kind}", "exchange", affine(), affine(tokens=(ranks - 1) * size_bytes), medium="nvlink",
            num_messages=1, kind=kind, shape=(ranks, ranks * size_bytes),
        )
        for kind in ("all_gather", "reduce_scatter")
    ]  # fmt: skip
