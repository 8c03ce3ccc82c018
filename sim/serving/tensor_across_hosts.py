"""The time and the traffic of one iteration of a model whose tensor-parallel ranks lie on several hosts.

Each all-reduce is hierarchical, as NCCL's over rails: a reduce-scatter among the k ranks of each host, an all-reduce of
the k shards, each on a rail of its own among the H hosts, and an all-gather inside the hosts. The two inside are
operators of the step (together an all-reduce of k ranks); the one across hosts is messages of a ring: 2 (H - 1) turns,
in each of which every rank sends size / (k H) to the next host.

Leaves out: trees and low-latency protocols, which NCCL may take for few bytes; computing while an all-reduce goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from models.cost.step import StepTable, step_seconds
from models.features import ACTIVATION_BYTES
from models.parallelism import Parallelism
from sim.fabric.messages import NO_GATE, MessageGraph, message_graph
from sim.serving.expert_parallel import copy_features
from sim.serving.state import EngineState


@dataclass(frozen=True, slots=True)
class TensorStep:
    """own_s: [all-reduces + 1] what all ranks compute before each all-reduce across hosts, and after the last, what
    moves inside hosts included; shard_bytes: that a rank sends in a turn."""

    own_s: NDArray[np.float64]
    shard_bytes: int
    exchange_s: float = 0.0

    @property
    def compute_s(self) -> float:
        """The iteration's time if nothing crossed hosts."""
        return float(self.own_s.sum())


class TensorIteration:
    """Turns a batch into the message graph of one iteration.

    table          of `models.cost.build.step_table` for this parallelism; stages: of `stage_tables`
    accelerators   [tensor], those of a host next to each other
    """

    num_copies = 1

    def __init__(
        self, architecture: Architecture, parallelism: Parallelism, table: StepTable, stages: dict[str, StepTable],
        accelerators: Sequence[int], owner: str = "",
    ) -> None:  # fmt: skip
        self.owner = owner
        self.table, self.stages = table, stages
        self.num_hosts, self.num_ranks = parallelism.hosts, parallelism.tensor
        self.token_bytes = architecture.hidden_size * ACTIVATION_BYTES
        with_experts = architecture.experts.layers if architecture.experts is not None else ()
        self.is_dense = np.array([layer not in with_experts for layer in range(architecture.num_layers)])
        num_reduced = 1 + 2 * architecture.num_layers
        grid = np.array(accelerators, np.int64).reshape(self.num_hosts, -1)
        self.ring = _rings(grid, num_reduced)
        self.num_turns = 2 * (self.num_hosts - 1)

    def draw(self, states: Sequence[EngineState]) -> TensorStep:
        """The iteration of the batch that the engine holds."""
        (state,) = states
        attention = self.table.attention
        features, prefill_s, decode_s = copy_features(state, attention, int(state.counts["tokens"][0]), 1)
        own_s = self._own_s(features, prefill_s, decode_s)
        state.counts["total_s"] += own_s.sum()
        shard_bytes = -(-round(features[0]) * self.token_bytes // self.num_ranks)
        return TensorStep(own_s, int(shard_bytes))

    def _own_s(self, f: NDArray[np.float64], prefill_s: float, decode_s: float) -> NDArray[np.float64]:
        """Embedding, then attention and feed-forward of each layer in turn, then the head. What a layer with experts
        takes is what the step has left, since their time follows from all its tokens."""
        def of_table(table: StepTable) -> float:
            return float(step_seconds(table, f[0], f[1], f[2], f[3], f[4], f[5], prefill_s, decode_s))

        def of(stage: str) -> float:
            return of_table(self.stages[stage]) if stage in self.stages else 0.0

        whole_s = of_table(self.table)
        embed_s, attention_s, dense_s, head_s = (of(stage) for stage in ("embed", "attention", "dense_ffn", "head"))
        num_layers, num_dense = len(self.is_dense), int(self.is_dense.sum())
        left_s = whole_s - embed_s - head_s - num_layers * attention_s - num_dense * dense_s
        sparse_s = left_s / max(num_layers - num_dense, 1)
        own_s = np.empty(2 * num_layers + 2)
        own_s[0], own_s[-1] = embed_s, head_s
        own_s[1:-1:2] = attention_s
        own_s[2:-1:2] = np.where(self.is_dense, dense_s, sparse_s)
        return own_s

    def graph(self, step: TensorStep, started_s: float) -> MessageGraph:
        """Its messages, if it starts at started_s."""
        ring = self.ring
        delay_s, earliest_s = np.zeros(ring.num_messages), np.zeros(ring.num_messages)
        is_own = ring.size_bytes == 0
        delay_s[is_own] = step.own_s
        earliest_s[0], delay_s[0] = started_s + step.own_s[0], 0.0
        return MessageGraph(
            ring.source, ring.destination, np.where(is_own, 0, step.shard_bytes), earliest_s, delay_s,
            ring.successor_start, ring.successors, ring.num_inputs, ring.gate, ring.queue_pairs, ring.traffic_class,
            self.owner,
        )  # fmt: skip


def _rings(grid: NDArray[np.int64], num_reduced: int) -> MessageGraph:
    """The messages of so many all-reduces one after the other, each led by a node of its own, and a last node.

    grid    [hosts, ranks of each]
    A node is a local message of no bytes; the others have one byte for now.
    """
    num_hosts, num_rails = grid.shape
    num_turns, width = 2 * (num_hosts - 1), grid.size
    block = 1 + num_turns * width
    source = np.empty((num_reduced, block), np.int64)
    destination, size = np.empty_like(source), np.ones_like(source)
    source[:, 0] = destination[:, 0] = grid[0, 0]
    size[:, 0] = 0
    source[:, 1:] = np.tile(grid.ravel(), num_turns)
    destination[:, 1:] = np.tile(np.roll(grid, -1, axis=0).ravel(), num_turns)
    place = np.arange(width).reshape(num_hosts, num_rails)
    turn = 1 + width * np.arange(num_turns)[:, None]
    led = np.stack([np.zeros(width, np.int64), turn[0] + place.ravel()])
    # What a rank passes on in a turn is what came to it in the one before.
    passed = np.stack([turn[:-1] + place.ravel(), turn[1:] + np.roll(place, -1, axis=0).ravel()]).reshape(2, -1)
    ends = np.stack([turn[-1] + place.ravel(), np.full(width, block)])
    inside = np.concatenate([led, passed, ends], axis=1)
    edges = (inside[:, None, :] + block * np.arange(num_reduced)[None, :, None]).reshape(2, -1)
    first = np.array([grid[0, 0]])
    return message_graph(
        np.append(source.ravel(), first), np.append(destination.ravel(), first), np.append(size.ravel(), 0),
        edges=(edges[0], edges[1]), gate=NO_GATE,
    )  # fmt: skip
