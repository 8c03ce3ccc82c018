"""Which experts a token chooses: a property of the token, whatever batch it is in.

The draw is keyed by (seed, layer, request, position in the request), so that a token chooses alike in every
variant, batch and policy, and again when a preemption makes it come back: common random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from models.adapters import Adapter, most_tuned
from models.experts import Popularity
from models.pages import expert_map
from sim.fabric.policies import mix

NUM_ORDERS = 256
"""Random orders of the experts per layer, a power of two. Each gives every expert exactly its chance; which
experts go together differs between orders, and over so many it is close to that of a fresh order per token."""

GOLDEN = 0x9E3779B97F4A7C15


class ExpertDraws(NamedTuple):
    """What tokens draw from.

    order    [layers, NUM_ORDERS, experts] experts laid end to end
    reach    [layers, NUM_ORDERS, experts] where each ends: the sum of the chances up to it
    guide    [layers, NUM_ORDERS, experts] the first to end after j · top_k / experts, where a search may start
    slot     [layers, adapters + 1, experts] of num_slots, which serves each expert for the base's tokens, and for each
             adapter's; an adapter's own lie on the rank of the expert that they stand for
    """

    seed: np.uint64
    top_k: int
    order: NDArray[np.int16]
    reach: NDArray[np.float64]
    guide: NDArray[np.int16]
    slot: NDArray[np.int32]
    num_slots: int


def expert_draws(
    popularity: Popularity, num_layers: int, rng: np.random.Generator, adapters: Sequence[Adapter] = ()
) -> ExpertDraws:
    """Orders for each layer; with a single row of popularity, who is popular is shuffled per layer first."""
    inclusion = popularity.inclusion
    if len(inclusion) == 1:
        inclusion = np.stack([rng.permutation(inclusion[0]) for _ in range(num_layers)])
    num_experts = inclusion.shape[1]
    unshuffled = np.broadcast_to(np.arange(num_experts, dtype=np.int16), (num_layers, NUM_ORDERS, num_experts))
    order = rng.permuted(unshuffled, axis=2)
    reach = np.take_along_axis(inclusion[:, None, :], order.astype(np.int64), axis=2).cumsum(axis=2)
    room = most_tuned(adapters)
    slot = np.empty((num_layers, len(adapters) + 1, num_experts), np.int32)
    slot[:, 0] = np.arange(num_experts)
    for layer in range(num_layers):
        slot[layer, 1:] = expert_map([one.tuned[layer] for one in adapters], num_experts, room)
    return ExpertDraws(
        rng.integers(2**64, dtype=np.uint64), popularity.top_k, order, reach, _guide(reach, popularity.top_k), slot,
        num_experts + len(adapters) * room,
    )  # fmt: skip


@njit(cache=True)
def _guide(reach: NDArray[np.float64], top_k: int) -> NDArray[np.int16]:
    num_layers, num_orders, num_experts = reach.shape
    guide = np.empty(reach.shape, np.int16)
    for layer in range(num_layers):
        for which in range(num_orders):
            i = 0
            for j in range(num_experts):
                while i < num_experts - 1 and reach[layer, which, i] <= j * top_k / num_experts:
                    i += 1
                guide[layer, which, j] = i
    return guide


@njit(cache=True)
def token_key(seed: np.uint64, request: int, position: int) -> np.uint64:
    """A hash of the token."""
    return mix(mix(seed + uint64(request)) + uint64(position))


@njit(cache=True)
def choose_experts(draws: ExpertDraws, layer: int, key: np.uint64, chosen: NDArray[np.int64]) -> None:
    """Fill `chosen` [top_k] with the token's experts in this layer, all different.

    Experts lie end to end in one of the random orders, each as long as its chance, and are picked where a comb of
    unit spacing with a random offset falls: each is picked with exactly its chance (randomised systematic sampling,
    Hartley and Rao, Annals of Mathematical Statistics 33, 1962).
    """
    bits = mix(key + uint64(layer + 1) * uint64(GOLDEN))
    which = int((bits >> uint64(50)) & uint64(NUM_ORDERS - 1))
    tooth = (bits & uint64((1 << 44) - 1)) * 2.0**-44
    order, reach, guide = draws.order[layer, which], draws.reach[layer, which], draws.guide[layer, which]
    per_unit = len(order) / draws.top_k
    last = len(order) - draws.top_k
    i = -1
    for k in range(draws.top_k):
        # Without rounding both bounds would hold by themselves: chances are at most 1, and sum to top_k.
        i = max(i + 1, int(guide[int(tooth * per_unit)]))
        while i < last + k and reach[i] <= tooth:
            i += 1
        chosen[k] = order[i]
        tooth += 1.0


@njit(cache=True)
def route_tokens(
    draws: ExpertDraws,
    layer: int,
    key: NDArray[np.uint64],
    rank: NDArray[np.int64],
    adapter: NDArray[np.int64],
    sent: NDArray[np.int64],
    rows: NDArray[np.int64],
    distinct: NDArray[np.int64],
) -> None:
    """Draw the experts of all tokens in one layer, and count what goes where.

    key, rank, adapter   [tokens] each token's key, the rank that holds it, and whose it is (0: the base's)
    sent        [ranks, ranks] out: tokens of a rank with an expert on another (a token counts once per rank)
    rows        [ranks] out: (token, expert) pairs on a rank
    distinct    [ranks] out: its experts among them, with those of adapters, after rerouting
    """
    num_ranks, num_experts = len(rows), draws.order.shape[2]
    per_rank = num_experts // num_ranks
    rank_of_expert = np.arange(num_experts) // per_rank
    is_touched = np.zeros(draws.num_slots, np.bool_)
    slot_of = draws.slot[layer]
    last_token = np.full(num_ranks, -1)
    chosen = np.zeros(draws.top_k, np.int64)
    sent[:] = 0
    rows[:] = 0
    distinct[:] = 0
    for token in range(len(key)):
        choose_experts(draws, layer, key[token], chosen)
        own = slot_of[adapter[token]]
        for expert in chosen:
            target = rank_of_expert[expert]
            rows[target] += 1
            if not is_touched[own[expert]]:
                is_touched[own[expert]] = True
                distinct[target] += 1
            if last_token[target] != token:
                last_token[target] = token
                sent[rank[token], target] += 1
