"""The time and the traffic of one iteration of a model whose experts lie on several accelerators.

Attention is data parallel: a request lives on one of the replica's `data` copies, each an engine of its own, and each
copy computes its own tokens. All step together: a copy without work computes a dummy batch, and where batches run as
recorded graphs every copy's is padded to the largest. Routed experts lie in equal contiguous groups on the ranks. Each
token chooses its experts anew in each layer, so ranks differ in load, step by step: the slowest one holds up the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.adapters import Adapter
from models.architecture import Architecture
from models.compiled import inner
from models.cost.step import (
    AttentionTable,
    StepTable,
    expert_seconds,
    is_beyond_measured,
    roofline_table,
    step_seconds,
)
from models.experts import Popularity
from models.features import Feature
from models.parallelism import Exchange, Parallelism
from sim.fabric.messages import NO_GATE, MessageGraph
from sim.serving.attention import attention_of, tally
from sim.serving.iteration_graph import iteration_nodes, successor_lists
from sim.serving.state import EngineState
from sim.serving.step import graph_tokens
from sim.serving.token_routing import ExpertDraws, expert_draws, route_tokens, token_key

COMBINE_BYTES_PER_NUMBER = 2
"""Expert outputs travel in bf16."""

BATCH_FEATURES = 6
"""tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context."""


class StageTables(NamedTuple):
    """Costs of the stages of `models.cost.build.stage_tables`; one the model lacks is an empty table."""

    embed: StepTable
    attention: StepTable
    dense_ffn: StepTable
    moe_local: StepTable
    exchange: StepTable
    experts: StepTable
    head: StepTable


def _empty_table() -> StepTable:
    return roofline_table(
        np.zeros((0, 2, len(Feature))), np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros((0, 3), np.int64),
        np.zeros(1), 0.0,
    )  # fmt: skip


@njit(cache=True)
def copy_features(
    state: EngineState, attention: AttentionTable, most_tokens: int, tensor: int
) -> tuple[NDArray[np.float64], float, float]:
    """(features [BATCH_FEATURES], prefill_s, decode_s) of one copy's batch, and its measured attention.

    most_tokens    of any copy's batch: up to the largest recorded graph all are padded to it. A copy without a batch
                   computes tokens, but no attention and no output
    """
    counts = state.counts[0]
    features = np.zeros(BATCH_FEATURES)
    prefill_s, decode_s, is_outside = 0.0, 0.0, False
    if most_tokens <= counts.max_graph_tokens:
        features[0] = graph_tokens(most_tokens, counts.max_graph_tokens)
    else:
        features[0] = max(counts.tokens, 1)
    if counts.batch_size > 0:
        features[1] = counts.decodes
        features[2] = counts.batch_size
        features[3] = counts.prefill_pairs
        features[4] = counts.prefill_context
        features[5] = counts.decode_context
        if attention.chunk.size > 0:
            prefill_s, decode_s, is_outside = attention_of(state, attention, counts.decodes, counts.decode_context)
    for _ in range(tensor):  # every rank computes it
        tally(state, int(features[0]), counts.batch_size, prefill_s, decode_s, is_outside)
    return features, prefill_s, decode_s


@inner
def _seconds(table: StepTable, f: NDArray[np.float64], prefill_s: float = 0.0, decode_s: float = 0.0) -> float:
    """Time of one pass of a stage on one copy, whose features are f."""
    return step_seconds(table, f[0], f[1], f[2], f[3], f[4], f[5], prefill_s, decode_s)


@njit(cache=True)
def own_seconds(
    tables: StageTables, features: NDArray[np.float64], attention_s: NDArray[np.float64], tensor: int,
    num_dense_before: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What each rank computes by itself before each dispatch, and at the end: [layers + 1, ranks].

    features           [copies, BATCH_FEATURES]
    attention_s        [copies, 2] measured attention of one layer: prefill, decode
    num_dense_before   [layers + 1] dense layers before each layer with experts, and after the last
    """
    num_stretches, num_copies = len(num_dense_before), len(features)
    own_s = np.zeros((num_stretches, num_copies * tensor))
    for copy in range(num_copies):
        f = features[copy]
        layer_attention_s = _seconds(tables.attention, f, attention_s[copy, 0], attention_s[copy, 1])
        dense_s = layer_attention_s + _seconds(tables.dense_ffn, f)
        layer_s = layer_attention_s + _seconds(tables.moe_local, f)
        for stretch in range(num_stretches):
            seconds = num_dense_before[stretch] * dense_s
            if stretch < num_stretches - 1:
                seconds += layer_s
            else:
                seconds += _seconds(tables.head, f)
            if stretch == 0:
                seconds += _seconds(tables.embed, f)
            own_s[stretch, copy * tensor : (copy + 1) * tensor] = seconds
    return own_s


@njit(cache=True)
def tokens_of_batch(
    state: EngineState, seed: np.uint64, first_rank: int, tensor: int, num_padding: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(key [tokens], rank that sends it [tokens]) of every token in a copy's batch, then of padding.

    Tensor-parallel ranks take their copy's tokens in turn; which one is first follows from the first token's
    position, so that a copy with a single decode does not always burden the same rank.
    """
    counts = state.counts[0]
    num = counts.tokens + num_padding
    key, rank = np.empty(num, np.uint64), np.empty(num, np.int64)
    turn = state.batch[0].prefix if counts.batch_size > 0 else 0
    token = 0
    batch = state.batch
    for i in range(counts.batch_size):
        entry = batch[i]
        for position in range(entry.prefix, entry.prefix + entry.num_tokens):
            key[token] = token_key(seed, entry.request, position)
            rank[token] = first_rank + turn % tensor
            turn += 1
            token += 1
    for i in range(num_padding):
        key[token] = token_key(seed, -1 - first_rank, i)
        rank[token] = first_rank + i % tensor
        token += 1
    return key, rank


@njit(cache=True)
def adapters_of_batch(state: EngineState, num_padding: int) -> NDArray[np.int64]:
    """[tokens] of every token in a copy's batch its adapter, then of padding the base."""
    counts = state.counts[0]
    adapter = np.zeros(counts.tokens + num_padding, np.int64)
    token = 0
    batch, requests = state.batch, state.requests
    for i in range(counts.batch_size):
        end = token + batch[i].num_tokens
        adapter[token:end] = requests[batch[i].request].adapter
        token = end
    return adapter


@njit(cache=True)
def draw_experts(
    table: StepTable, draws: ExpertDraws, num_layers: int, num_ranks: int, key: NDArray[np.uint64],
    rank: NDArray[np.int64], adapter: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(sent, expert_s) as in `IterationStep`, and [ranks, 2]: measured seconds of experts, and those among them that
    lie beyond what was measured."""
    sent = np.empty((num_layers, num_ranks, num_ranks), np.int64)
    expert_s = np.empty((num_layers, num_ranks))
    measured_s = np.zeros((num_ranks, 2))
    rows, distinct = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    is_measured = table.experts.rows.size > 0
    for layer in range(num_layers):
        route_tokens(draws, layer, key, rank, adapter, sent[layer], rows, distinct)
        for r in range(num_ranks):
            seconds = expert_seconds(table, rows[r], distinct[r])
            expert_s[layer, r] = seconds
            if is_measured and rows[r] > 0:
                measured_s[r, 0] += seconds
                if is_beyond_measured(table.experts, rows[r], distinct[r]):
                    measured_s[r, 1] += seconds
    return sent, expert_s, measured_s


@dataclass(frozen=True, slots=True)
class IterationStep:
    """One drawn iteration, for L layers with experts and R ranks.

    own_s        [L + 1, R] what a rank computes by itself before each dispatch, and at the end
    sent         [L, R, R] tokens that a rank sends to another, itself included
    expert_s     [L, R] time of a rank's experts
    exchange_s   of gathering and scattering inside the host, all layers
    """

    own_s: NDArray[np.float64]
    sent: NDArray[np.int64]
    expert_s: NDArray[np.float64]
    exchange_s: float = 0.0

    @property
    def compute_s(self) -> float:
        """The iteration's time if transfers took none, waiting for the slowest rank included."""
        return float(self.own_s.max(axis=1).sum() + self.expert_s.max(axis=1).sum())


class ExpertParallelIteration:
    """Turns a batch into the message graph of one iteration.

    tables               of `models.cost.build.stage_tables` for this architecture and parallelism
    accelerators         one id per expert rank; tensor-parallel ones of a copy lie next to each other
    popularity           how tokens choose experts; with a single row, who is popular is shuffled per layer
    rng                  who is popular, and the seed of the tokens' choices, are drawn from it here; replicas of
                         one model are given equal ones, so that a token chooses alike on each
    exchange             how tokens come to the experts
    dispatch_bytes       bytes per activation on the way to the experts: 2 (bf16) or 1 (fp8)
    adapters             over the model; what one has tuned lies on the rank of the expert that it stands for. Their
                         tokens choose as the base's do

    By dispatch a token goes once to a rank that holds several of its experts, and comes back from it once, summed; by
    all_gather every copy's tokens, padding included, go to all others and come back. Inside one host (`tables` have a
    stage "exchange") that is a time, elsewhere messages. Tensor-parallel ranks each dispatch their share of their
    copy's tokens; they gather all, each from its twins.

    Leaves out: overlap of transfers with computation (shared experts, two half batches); the scales of fp8
    dispatch; routing that is correlated between tokens or layers; padding that is dispatched.
    Raises ValueError where accelerators, experts or popularity do not fit the model.
    """

    def __init__(
        self,
        architecture: Architecture,
        parallelism: Parallelism,
        tables: dict[str, StepTable],
        accelerators: Sequence[int],
        popularity: Popularity,
        rng: np.random.Generator,
        dispatch_bytes: int = 2,
        owner: str = "",
        exchange: Exchange = "dispatch",
        adapters: Sequence[Adapter] = (),
    ) -> None:
        experts = architecture.experts
        if experts is None:
            raise ValueError(f"{architecture.name} has no experts to spread over ranks")
        parallelism.check(architecture)
        popularity.check(experts)
        if len(accelerators) != parallelism.num_accelerators or parallelism.expert != len(accelerators):
            raise ValueError(
                f"{len(accelerators)} accelerators for an expert degree of {parallelism.expert}; one each"
            )
        if len(set(accelerators)) != len(accelerators):
            raise ValueError(f"an accelerator serves two expert ranks: {list(accelerators)}")
        if dispatch_bytes not in (1, 2):
            raise ValueError(f"dispatch sends 1 (fp8) or 2 (bf16) bytes per activation, got {dispatch_bytes}")
        self.num_copies = parallelism.data
        self.has_pool = len(adapters) > 0
        """Whether requests' adapters lie over one base; merged models have their own."""
        self.gathers = exchange == "all_gather"
        self.tensor = parallelism.tensor
        self.owner = owner
        self.tables = StageTables(*(tables.get(stage, _empty_table()) for stage in StageTables._fields))
        self.accelerators = np.array(accelerators, dtype=np.int64)
        self.dispatch_row_bytes = architecture.hidden_size * dispatch_bytes
        self.combine_row_bytes = architecture.hidden_size * COMBINE_BYTES_PER_NUMBER
        bounds = np.array([-1, *experts.layers, architecture.num_layers])
        self.num_dense_before = np.diff(bounds) - 1
        """[layers with experts + 1] dense layers before each, and after the last."""
        self.draws = expert_draws(popularity, len(experts.layers), rng, adapters)

    def draw(self, states: Sequence[EngineState]) -> IterationStep:
        """The iteration of the batches that the copies' engines hold."""
        most = max(int(state.counts["tokens"][0]) for state in states)
        parts = [copy_features(state, self.tables.attention.attention, most, self.tensor) for state in states]
        features = np.array([features for features, _, _ in parts])
        attention_s = np.array([seconds for _, *seconds in parts])
        own_s = own_seconds(self.tables, features, attention_s, self.tensor, self.num_dense_before)
        tokens, adapters = [], []
        for copy, state in enumerate(states):
            num_padding = int(features[copy, 0] - state.counts["tokens"][0]) if self.gathers else 0
            tokens.append(tokens_of_batch(state, self.draws.seed, copy * self.tensor, self.tensor, num_padding))
            adapters.append(adapters_of_batch(state, num_padding) * self.has_pool)
        num_layers, num_ranks = len(self.num_dense_before) - 1, len(self.accelerators)
        key, rank = (np.concatenate(each) for each in zip(*tokens, strict=True))
        adapter = np.concatenate(adapters)
        sent, expert_s, measured_s = draw_experts(
            self.tables.experts, self.draws, num_layers, num_ranks, key, rank, adapter
        )
        if self.gathers:  # each with those of other copies that hold the same part of the attention
            place = np.arange(num_ranks)
            is_twin = place[:, None] % self.tensor == place % self.tensor
            sent[:] = np.where(is_twin, features[place // self.tensor, 0].astype(np.int64)[:, None], 0)
        exchange_s = num_layers * step_seconds(self.tables.exchange, round(features[:, 0].mean()), 0, 0, 0, 0, 0)
        total_s = own_s.sum(axis=0) + expert_s.sum(axis=0) + exchange_s
        for copy, state in enumerate(states):
            ranks, counts = slice(copy * self.tensor, (copy + 1) * self.tensor), state.counts
            counts["total_s"] += total_s[ranks].sum()
            counts["total_expert_s"] += measured_s[ranks, 0].sum()
            counts["outside_expert_s"] += measured_s[ranks, 1].sum()
        return IterationStep(own_s, sent, expert_s, exchange_s)

    def graph(self, step: IterationStep, started_s: float) -> MessageGraph:
        """Its messages, if it starts at started_s."""
        nodes = iteration_nodes(
            self.accelerators, step.own_s, step.sent, step.expert_s, self.dispatch_row_bytes,
            self.combine_row_bytes, started_s,
        )  # fmt: skip
        source, destination, size_bytes, num_inputs = nodes.whole
        earliest_s, delay_s = nodes.seconds
        num = len(source)
        successor_start, successors = successor_lists(nodes.edges[0], nodes.edges[1], num)
        return MessageGraph(
            source, destination, size_bytes, earliest_s, delay_s, successor_start, successors, num_inputs,
            np.full(num, NO_GATE), np.ones(num, np.int64), np.zeros(num, np.int64), self.owner,
        )  # fmt: skip
