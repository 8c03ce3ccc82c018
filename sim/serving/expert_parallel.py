"""The time and the traffic of one iteration of a model whose experts lie on several accelerators.

Attention is data parallel: a request lives on one of the replica's `data` copies (by its number, in turn),
and each copy computes its own tokens. Routed experts lie in equal contiguous groups on the ranks. Each token
chooses its experts anew in each layer, so ranks differ in load, step by step: the slowest one holds up the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.architecture import Architecture
from models.compiled import inner
from models.cost.step import StepTable, expert_seconds, is_beyond_measured, roofline_table, step_seconds
from models.experts import Popularity
from models.features import Feature
from models.parallelism import Parallelism
from sim.fabric.messages import NO_GATE, MessageGraph
from sim.serving.attention import attention_of, tally
from sim.serving.iteration_graph import iteration_nodes, successor_lists
from sim.serving.state import EngineState
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
    experts: StepTable
    head: StepTable


def _empty_table() -> StepTable:
    return roofline_table(
        np.zeros((0, 2, len(Feature))), np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros((0, 3), np.int64),
        np.zeros(1), 0.0,
    )  # fmt: skip


@inner
def features_of_copies(state: EngineState, num_copies: int) -> NDArray[np.float64]:
    """The batch's features on each copy of the attention: [copies, BATCH_FEATURES]."""
    features = np.zeros((num_copies, BATCH_FEATURES))
    for i in range(state.counts[0].batch_size):
        request = state.batch[i].request
        num_tokens = state.batch[i].num_tokens
        prefix = state.batch[i].prefix
        copy = features[request % num_copies]
        copy[0] += num_tokens
        copy[2] += 1
        if num_tokens == 1:
            copy[1] += 1
            copy[5] += prefix + 1
        else:
            copy[3] += num_tokens * prefix + num_tokens * (num_tokens + 1) // 2
            copy[4] += prefix + num_tokens
    return features


@inner
def _seconds(table: StepTable, f: NDArray[np.float64], prefill_s: float = 0.0, decode_s: float = 0.0) -> float:
    """Time of one pass of a stage on one copy, whose features are f."""
    return step_seconds(table, f[0], f[1], f[2], f[3], f[4], f[5], prefill_s, decode_s)


@inner
def own_seconds(
    state: EngineState, tables: StageTables, features: NDArray[np.float64], tensor: int,
    num_dense_before: NDArray[np.int64],
) -> NDArray[np.float64]:
    """What each rank computes by itself before each dispatch, and at the end: [layers + 1, ranks].

    num_dense_before   [layers + 1] dense layers before each layer with experts, and after the last
    """
    num_stretches, num_copies = len(num_dense_before), len(features)
    own_s = np.zeros((num_stretches, num_copies * tensor))
    for copy in range(num_copies):
        f = features[copy]
        if f[0] == 0:
            continue
        prefill_s, decode_s, is_outside = 0.0, 0.0, False
        if tables.attention.attention.chunk.size > 0:
            prefill_s, decode_s, is_outside = attention_of(
                state, tables.attention.attention, copy, num_copies, int(f[1]), f[5]
            )
        attention_s = _seconds(tables.attention, f, prefill_s, decode_s)
        dense_s = attention_s + _seconds(tables.dense_ffn, f)
        layer_s = attention_s + _seconds(tables.moe_local, f)
        for stretch in range(num_stretches):
            seconds = num_dense_before[stretch] * dense_s
            if stretch < num_stretches - 1:
                seconds += layer_s
            else:
                seconds += _seconds(tables.head, f)
            if stretch == 0:
                seconds += _seconds(tables.embed, f)
            own_s[stretch, copy * tensor : (copy + 1) * tensor] = seconds
            state.counts[0].total_s += tensor * seconds
        for _ in range(tensor):  # every rank computes it
            tally(state, int(f[0]), int(f[2]), prefill_s, decode_s, is_outside)
    return own_s


@njit(cache=True)
def tokens_of_batch(
    state: EngineState, seed: np.uint64, num_copies: int, tensor: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(key [tokens], rank that sends it [tokens]) of every token in the batch.

    Tensor-parallel ranks take their copy's tokens in turn; which one is first follows from the first token's
    position, so that a copy with a single decode does not always burden the same rank.
    """
    key = np.empty(state.counts[0].tokens, np.uint64)
    rank = np.empty(state.counts[0].tokens, np.int64)
    turn = np.full(num_copies, -1)
    token = 0
    for i in range(state.counts[0].batch_size):
        request = state.batch[i].request
        first = state.batch[i].prefix
        copy = request % num_copies
        if turn[copy] < 0:
            turn[copy] = first
        for position in range(first, first + state.batch[i].num_tokens):
            key[token] = token_key(seed, request, position)
            rank[token] = copy * tensor + turn[copy] % tensor
            turn[copy] += 1
            token += 1
    return key, rank


@inner
def _tally_experts(counts, table: StepTable, rows: int, distinct: int, seconds: float) -> None:
    counts.total_s += seconds
    if table.experts.rows.size > 0 and rows > 0:
        counts.total_expert_s += seconds
        if is_beyond_measured(table.experts, rows, distinct):
            counts.outside_expert_s += seconds


@njit(cache=True)
def draw_iteration(
    state: EngineState, tables: StageTables, draws: ExpertDraws, num_copies: int, tensor: int,
    num_dense_before: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], float]:
    """(takes_part, own_s, sent, expert_s) of the batch as in `IterationStep`, and its compute_s."""
    num_layers, num_ranks = len(num_dense_before) - 1, num_copies * tensor
    features = features_of_copies(state, num_copies)
    own_s = own_seconds(state, tables, features, tensor, num_dense_before)
    key, rank = tokens_of_batch(state, draws.seed, num_copies, tensor)
    sent = np.empty((num_layers, num_ranks, num_ranks), np.int64)
    expert_s = np.empty((num_layers, num_ranks))
    rows, distinct = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    compute_s = own_s[num_layers].max()
    for layer in range(num_layers):
        route_tokens(draws, layer, key, rank, sent[layer], rows, distinct)
        for r in range(num_ranks):
            expert_s[layer, r] = expert_seconds(tables.experts, rows[r], distinct[r])
            _tally_experts(state.counts[0], tables.experts, rows[r], distinct[r], expert_s[layer, r])
        compute_s += own_s[layer].max() + expert_s[layer].max()
    takes_part = np.empty(num_ranks, np.bool_)
    for r in range(num_ranks):
        takes_part[r] = features[r // tensor, 0] > 0
    return takes_part, own_s, sent, expert_s, compute_s


@dataclass(frozen=True, slots=True)
class IterationStep:
    """One drawn iteration, for L layers with experts and R ranks.

    takes_part   [R] whose copy of the attention has tokens
    own_s        [L + 1, R] what a rank computes by itself before each dispatch, and at the end
    sent         [L, R, R] tokens of a rank with an expert on another, itself included
    expert_s     [L, R] time of a rank's experts
    compute_s    the iteration's time if transfers took none, waiting for the slowest rank included
    """

    takes_part: NDArray[np.bool_]
    own_s: NDArray[np.float64]
    sent: NDArray[np.int64]
    expert_s: NDArray[np.float64]
    compute_s: float


class ExpertParallelIteration:
    """Turns a batch into the message graph of one iteration.

    tables               of `models.cost.build.stage_tables` for this architecture and parallelism
    accelerators         one id per expert rank; tensor-parallel ones of a copy lie next to each other
    popularity           how tokens choose experts; with a single row, who is popular is shuffled per layer
    rng                  who is popular, and the seed of the tokens' choices, are drawn from it here; replicas of
                         one model are given equal ones, so that a token chooses alike on each
    dispatch_bytes       bytes per activation on the way to the experts: 2 (bf16) or 1 (fp8)

    A token goes once to a rank that holds several of its experts, and comes back from it once, summed.
    Tensor-parallel ranks each send their share of their copy's tokens.

    Leaves out: overlap of transfers with computation (shared experts, two half batches); the scales of fp8
    dispatch; routing that is correlated between tokens or layers; padding of the copies to the largest.
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
        self.tensor = parallelism.tensor
        self.owner = owner
        self.tables = StageTables(*(tables.get(stage, _empty_table()) for stage in StageTables._fields))
        self.accelerators = np.array(accelerators, dtype=np.int64)
        self.dispatch_row_bytes = architecture.hidden_size * dispatch_bytes
        self.combine_row_bytes = architecture.hidden_size * COMBINE_BYTES_PER_NUMBER
        bounds = np.array([-1, *experts.layers, architecture.num_layers])
        self.num_dense_before = np.diff(bounds) - 1
        """[layers with experts + 1] dense layers before each, and after the last."""
        self.draws = expert_draws(popularity, len(experts.layers), rng)

    def draw(self, state: EngineState) -> IterationStep:
        """The iteration of the batch that `state` holds."""
        return IterationStep(
            *draw_iteration(state, self.tables, self.draws, self.num_copies, self.tensor, self.num_dense_before)
        )

    def graph(self, step: IterationStep, started_s: float) -> MessageGraph:
        """Its messages, if it starts at started_s."""
        nodes = iteration_nodes(
            self.accelerators, step.takes_part, step.own_s, step.sent, step.expert_s, self.dispatch_row_bytes,
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
