"""Distinct experts of a batch whose tokens belong to adapters: each has slots of its own beside the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.adapters import Adapter
from models.compiled import counting
from models.experts import Popularity

__all__ = ["AdapterMix", "adapter_mix", "expected_touched", "most_touched", "no_mix"]

NEARLY_ONE = 1.0 - 1e-12
"""A greater chance to choose an expert counts as this, so that its logarithm is finite."""


class AdapterMix(NamedTuple):
    """What the distinct experts of a batch follow from; empty where there are no adapters. Row 0 is the base.

    own         [adapters + 1, max_tokens + 1] expected slots of its own that so many tokens touch, mean over the layers
    log_miss    [adapters + 1, layers · experts] logarithm of the chance that a token leaves the base's slot alone; 0
                where the adapter has one of its own
    num_layers  of those with experts
    """

    own: NDArray[np.float64]
    log_miss: NDArray[np.float64]
    num_layers: int


def no_mix() -> AdapterMix:
    return AdapterMix(np.zeros((0, 0)), np.zeros((0, 0)), 1)


def adapter_mix(
    popularity: Popularity, adapters: Sequence[Adapter], max_tokens: int,
    own: Sequence[Popularity | None] | None = None,
) -> AdapterMix:
    """Of adapters over a base whose tokens choose as `popularity` says.

    own: of each adapter how its tokens choose, None: as the base's do
    max_tokens: the most tokens of a batch
    """
    num_layers, num_experts = len(adapters[0].tuned), popularity.inclusion.shape[1]
    own_slots = np.zeros((len(adapters) + 1, max_tokens + 1))
    log_miss = np.zeros((len(adapters) + 1, num_layers, num_experts))
    tokens = np.arange(max_tokens + 1)
    for i, choices in enumerate([popularity, *(one or popularity for one in own or [None] * len(adapters))]):
        chances = np.minimum(np.broadcast_to(choices.inclusion, (num_layers, num_experts)), NEARLY_ONE)
        log_miss[i] = np.log1p(-chances)
        if i == 0:
            continue
        for layer, tuned in enumerate(adapters[i - 1].tuned):
            for expert in tuned:
                own_slots[i] -= np.expm1(tokens * log_miss[i, layer, expert])
                log_miss[i, layer, expert] = 0.0
    return AdapterMix(own_slots / num_layers, log_miss.reshape(len(log_miss), -1), num_layers)


def most_touched(mix: AdapterMix) -> int:
    """Experts of the base and of all adapters that a batch may touch, mean over the layers, rounded up."""
    return mix.log_miss.shape[1] // mix.num_layers + int(np.ceil(mix.own[:, -1].sum()))


@counting
def expected_touched(mix: AdapterMix, tokens: NDArray[np.int64]) -> float:
    """Expected distinct experts per layer, after rerouting, of a batch with so many tokens of the base and of each
    adapter:  sum_i own_i(n_i) + sum_j 1 - prod_i (1 - q_ij)^(n_i where adapter i leaves expert j as it is)

    tokens: [adapters + 1]
    Leaves out: tokens of one request that choose alike; every token draws on its own.
    """
    own, log_miss = mix.own, mix.log_miss
    total = 0.0
    miss = np.zeros(log_miss.shape[1])
    for i in range(tokens.size):
        if tokens[i] > 0:
            total += own[i, tokens[i]]
            for j in range(miss.size):
                miss[j] += tokens[i] * log_miss[i, j]
    shared = 0.0
    for j in range(miss.size):
        shared -= np.expm1(miss[j])
    return total + shared / mix.num_layers
