"""How the layers of a model are cut into pipeline stages, and what stages hand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from models.features import ACTIVATION_BYTES, Operator, affine

__all__ = ["HANDOVER_TENSORS", "StagePart", "handover", "stage_layers", "stage_parts", "stage_shares"]

HANDOVER_TENSORS = 2
"""Activations that go from a stage to the next: the hidden states and the residual, as vLLM's models hand them over
(IntermediateTensors of llama.py and others)."""


@dataclass(frozen=True, slots=True)
class StagePart:
    """What of a model one stage holds: the embedding on the first, final norm and output head on the last."""

    num_layers: int
    num_moe_layers: int
    is_first: bool
    is_last: bool

    @property
    def num_dense_layers(self) -> int:
        return self.num_layers - self.num_moe_layers

    def repeats(self) -> dict[str, int]:
        """How often a step passes each of `models.features.STAGES` here, but for what is handed over."""
        return {
            "embed": int(self.is_first), "attention": self.num_layers, "dense_ffn": self.num_dense_layers,
            "moe_local": self.num_moe_layers, "exchange": self.num_moe_layers, "experts": self.num_moe_layers,
            "head": int(self.is_last),
        }  # fmt: skip

    def num_vocabulary_matrices(self, has_tied_embeddings: bool) -> int:
        """Embedding and output head; tied ones are one matrix, of which the first and the last stage each need one."""
        return int(self.is_first) + int(self.is_last and not (self.is_first and has_tied_embeddings))


def stage_layers(num_layers: int, num_stages: int) -> tuple[range, ...]:
    """The layers of each stage.

    Each has num_layers // num_stages; the r that are left over go to the r stages before the last one, one each, so
    that of 80 layers on 3 stages they have 27, 27 and 26: the last has the output head, and the first, which has the
    embedding, gets one only where all others but the last have.

    Source: vLLM 0.19, vllm/distributed/utils.py, get_pp_indices.
    """
    each, left = divmod(num_layers, num_stages)
    bounds = [0]
    for stage in range(num_stages):
        bounds.append(bounds[-1] + each + (num_stages - 1 - left <= stage < num_stages - 1))
    return tuple(range(first, last) for first, last in pairwise(bounds))


def stage_parts(architecture: Architecture, num_stages: int) -> tuple[StagePart, ...]:
    """What each stage holds."""
    moe = set(architecture.experts.layers) if architecture.experts is not None else set()
    return tuple(
        StagePart(len(layers), len(moe.intersection(layers)), stage == 0, stage == num_stages - 1)
        for stage, layers in enumerate(stage_layers(architecture.num_layers, num_stages))
    )


def handover(hidden_size: int, tensor: int) -> list[Operator]:
    """From a stage to the next, inside a host: each of `tensor` ranks sends its part of each tensor to its twin, and
    those of the next stage gather theirs.

    2 (latency + rows · hidden · 2 / tensor / rate), then with tensor > 1 two all-gathers.

    Source: vLLM 0.19, vllm/distributed/parallel_state.py, send_tensor_dict with all_gather_group.
    """
    row_bytes = hidden_size * ACTIVATION_BYTES
    built = [
        Operator(
            "pipeline_send", "handover", affine(), affine(tokens=HANDOVER_TENSORS * row_bytes / tensor),
            medium="nvlink", num_messages=HANDOVER_TENSORS, kind="send",
        )
    ]  # fmt: skip
    if tensor > 1:
        built.append(
            Operator(
                "pipeline_all_gather", "handover", affine(), affine(tokens=(tensor - 1) / tensor * row_bytes),
                calls=HANDOVER_TENSORS, medium="nvlink", num_messages=1, kind="all_gather", shape=(tensor, row_bytes),
            )
        )  # fmt: skip
    return built


def stage_shares(
    built: Sequence[Operator], architecture: Architecture, num_stages: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(of stages [stages, operators], of sends [stages - 1, operators]): the share of each operator's time in a step
    that falls to each stage, and to each way from a stage to the next.

    Layers are alike, so that an operator's time goes by layers; what is gathered is gathered by the stage that needs
    it. All shares of an operator add up to 1.
    """
    whole = stage_parts(architecture, 1)[0].repeats()
    parts = [part.repeats() for part in stage_parts(architecture, num_stages)]
    of_stages, of_sends = np.zeros((num_stages, len(built))), np.zeros((num_stages - 1, len(built)))
    for o, operator in enumerate(built):
        if operator.name == "pipeline_send":
            of_sends[:, o] = 1 / (num_stages - 1)
        elif operator.stage == "handover":
            of_stages[1:, o] = 1 / (num_stages - 1)
        else:
            of_stages[:, o] = [part[operator.stage] / whole[operator.stage] for part in parts]
    return of_stages, of_sends
