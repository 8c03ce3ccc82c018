"""The time and the traffic of one iteration of a model whose experts lie on several accelerators.

Attention is data parallel: a request lives on one of the replica's `data` copies (by its number, in turn),
and each copy computes its own tokens. Routed experts lie in equal contiguous groups on the ranks. Each token
draws its experts anew in each layer, so ranks differ in load, step by step: the slowest one holds up the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.architecture import Architecture
from models.cost.step import StepTable, expert_seconds, step_seconds
from models.experts import Popularity
from models.parallelism import Parallelism
from sim.fabric.messages import MessageGraph
from sim.serving.iteration_graph import IterationShape, iteration_shape
from sim.serving.state import EngineState, is_decode

TOKENS_PER_ORDER = 8
"""Tokens that share one random order of the experts in the draw of `route_tokens`."""

COMBINE_BYTES_PER_NUMBER = 2
"""Expert outputs travel in bf16."""

BATCH_FEATURES = 6
"""tokens, decodes, sequences, prefill_pairs, prefill_context, decode_context."""


@njit(cache=True)
def features_of_copies(state: EngineState, num_copies: int) -> NDArray[np.float64]:
    """The batch's features on each copy of the attention: [copies, BATCH_FEATURES]."""
    features = np.zeros((num_copies, BATCH_FEATURES))
    for i in range(state.counts[0].batch_size):
        request = state.batch[i].request
        num_tokens = state.batch[i].num_tokens
        prefix = state.requests[request].num_computed
        copy = features[request % num_copies]
        copy[0] += num_tokens
        copy[2] += 1
        if is_decode(state, request, num_tokens):
            copy[1] += 1
            copy[5] += prefix + 1
        else:
            copy[3] += num_tokens * prefix + num_tokens * (num_tokens + 1) // 2
            copy[4] += prefix + num_tokens
    return features


@njit(cache=True)
def stage_seconds(table: StepTable, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time of one pass of a stage on each copy: [copies]; 0 where it has no tokens."""
    seconds = np.zeros(features.shape[0])
    for i in range(seconds.size):
        f = features[i]
        if f[0] > 0:
            seconds[i] = step_seconds(table, f[0], f[1], f[2], f[3], f[4], f[5])
    return seconds


@njit(cache=True)
def route_tokens(
    rng: np.random.Generator,
    inclusion: NDArray[np.float64],
    top_k: int,
    num_tokens: NDArray[np.int64],
    sent: NDArray[np.int64],
    rows: NDArray[np.int64],
    distinct: NDArray[np.int64],
) -> None:
    """Draw each token's experts in one layer, and count what goes where.

    inclusion   [experts] chance that a token's top-k includes the expert; sums to top_k
    num_tokens  [ranks] tokens that each rank holds
    sent        [ranks, ranks] out: tokens of a rank with an expert on another (a token counts once per rank)
    rows        [ranks] out: (token, expert) pairs on a rank;  distinct [ranks] out: its experts among them

    Experts are laid end to end in a random order, each as long as its chance, and picked where a comb of unit
    spacing with a random offset falls: exactly top_k different ones, each with exactly its chance (randomised
    systematic sampling, Hartley and Rao, Annals of Mathematical Statistics 33, 1962).
    """
    num_experts = inclusion.size
    num_ranks = num_tokens.size
    per_rank = num_experts // num_ranks
    order = np.arange(num_experts)
    is_touched = np.zeros(num_experts, dtype=np.bool_)
    last_token = np.full(num_ranks, -1)
    sent[:] = 0
    rows[:] = 0
    distinct[:] = 0
    token = 0
    for source in range(num_ranks):
        for _ in range(num_tokens[source]):
            if token % TOKENS_PER_ORDER == 0:
                for i in range(num_experts - 1, 0, -1):
                    j = int(rng.random() * (i + 1))
                    order[i], order[j] = order[j], order[i]
            tooth = rng.random()
            covered = 0.0
            picked = 0
            for i in range(num_experts):
                expert = order[i]
                covered += inclusion[expert]
                if covered > tooth:
                    tooth += 1.0
                    rank = expert // per_rank
                    rows[rank] += 1
                    is_touched[expert] = True
                    if last_token[rank] != token:
                        last_token[rank] = token
                        sent[source, rank] += 1
                    picked += 1
                    if picked == top_k:
                        break
            token += 1
    for expert in range(num_experts):
        if is_touched[expert]:
            distinct[expert // per_rank] += 1


@njit(cache=True)
def fill_layers(
    rng: np.random.Generator,
    experts: StepTable,
    inclusion: NDArray[np.float64],
    top_k: int,
    num_tokens: NDArray[np.int64],
    dispatch: NDArray[np.int64],
    combine: NDArray[np.int64],
    expert: NDArray[np.int64],
    dispatch_row_bytes: int,
    combine_row_bytes: int,
    size_bytes: NDArray[np.int64],
    delay_s: NDArray[np.float64],
) -> float:
    """Draw every layer's routing into message sizes and expert delays.

    Returns the sum over layers of the slowest rank's time.
    """
    num_layers, num_ranks = expert.shape
    sent = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    rows = np.zeros(num_ranks, dtype=np.int64)
    distinct = np.zeros(num_ranks, dtype=np.int64)
    total_s = 0.0
    for layer in range(num_layers):
        route_tokens(rng, inclusion[layer], top_k, num_tokens, sent, rows, distinct)
        slowest_s = 0.0
        for rank in range(num_ranks):
            seconds = expert_seconds(experts, rows[rank], distinct[rank])
            delay_s[expert[layer, rank]] = seconds
            slowest_s = max(slowest_s, seconds)
            for other in range(num_ranks):
                if other != rank:
                    size_bytes[dispatch[layer, rank, other]] = sent[rank, other] * dispatch_row_bytes
                    size_bytes[combine[layer, other, rank]] = sent[rank, other] * combine_row_bytes
        total_s += slowest_s
    return total_s


@dataclass(frozen=True, slots=True)
class IterationStep:
    """One drawn iteration.

    compute_s   its time if transfers took none, waiting for the slowest rank included
    """

    shape: IterationShape
    compute_s: float
    size_bytes: NDArray[np.int64]
    delay_s: NDArray[np.float64]
    earliest_s: NDArray[np.float64]
    owner: str

    def graph(self) -> MessageGraph:
        return self.shape.graph(self.size_bytes, self.delay_s, self.earliest_s, self.owner)


class ExpertParallelIteration:
    """Turns a batch into the message graph of one iteration.

    tables               of `models.cost.build.stage_tables` for this architecture and parallelism
    accelerators         one id per expert rank; tensor-parallel ones of a copy lie next to each other
    popularity           how tokens choose experts; with a single row, who is popular is shuffled per layer
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
        if dispatch_bytes not in (1, 2):
            raise ValueError(f"dispatch sends 1 (fp8) or 2 (bf16) bytes per activation, got {dispatch_bytes}")
        self.num_copies = parallelism.data
        self.tensor = parallelism.tensor
        self.top_k = experts.top_k
        self.rng = rng
        self.owner = owner
        self.tables = tables
        self.shape = iteration_shape(tuple(accelerators), len(experts.layers))
        self.dispatch_row_bytes = architecture.hidden_size * dispatch_bytes
        self.combine_row_bytes = architecture.hidden_size * COMBINE_BYTES_PER_NUMBER
        bounds = np.array([-1, *experts.layers, architecture.num_layers])
        self.num_dense_before = np.diff(bounds) - 1
        """[layers with experts + 1] dense layers before each, and after the last."""
        if len(popularity.inclusion) == 1:
            rows = [rng.permutation(popularity.inclusion[0]) for _ in experts.layers]
            self.inclusion = np.stack(rows)
        else:
            self.inclusion = np.ascontiguousarray(popularity.inclusion)
        num_messages = self.shape.template.num_messages
        self._num_steps = 0
        self._no_bytes = np.zeros(num_messages, dtype=np.int64)
        self._no_delay = np.zeros(num_messages)

    def draw(self, state: EngineState, started_s: float) -> IterationStep:
        """The iteration of the batch that `state` holds, its experts drawn now."""
        shape = self.shape
        features = features_of_copies(state, self.num_copies)
        attention_s = self._seconds("attention", features)
        dense_s = attention_s + self._seconds("dense_ffn", features)
        layer_s = attention_s + self._seconds("moe_local", features)
        # [layers + 1, copies]: what each copy computes by itself before each dispatch, and at the end.
        own_s = self.num_dense_before[:, None] * dense_s
        own_s[:-1] += layer_s
        own_s[0] += self._seconds("embed", features)
        own_s[-1] += self._seconds("head", features)
        size_bytes, delay_s, earliest_s = self._no_bytes.copy(), self._no_delay.copy(), self._no_delay.copy()
        by_rank_s = np.repeat(own_s, self.tensor, axis=1)
        earliest_s[shape.attend[0]] = started_s + by_rank_s[0]
        delay_s[shape.attend[1:]] = by_rank_s[1:-1]
        delay_s[shape.end] = by_rank_s[-1]
        experts_s = fill_layers(
            self.rng,
            self.tables["experts"],
            self.inclusion,
            self.top_k,
            self._tokens_of_ranks(features[:, 0]),
            shape.dispatch,
            shape.combine,
            shape.expert,
            self.dispatch_row_bytes,
            self.combine_row_bytes,
            size_bytes,
            delay_s,
        )
        self._num_steps += 1
        compute_s = float(own_s.max(axis=1).sum()) + experts_s
        return IterationStep(shape, compute_s, size_bytes, delay_s, earliest_s, self.owner)

    def _seconds(self, stage: str, features: NDArray[np.float64]) -> Any:
        return stage_seconds(self.tables[stage], features) if stage in self.tables else 0.0

    def _tokens_of_ranks(self, tokens_of_copies: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens that each rank sends: a copy's, cut over its tensor ranks; odd ones move on each step."""
        tokens = tokens_of_copies.astype(np.int64)
        turn = (np.arange(self.tensor) + self._num_steps) % self.tensor
        return ((tokens[:, None] + turn) // self.tensor).ravel()
