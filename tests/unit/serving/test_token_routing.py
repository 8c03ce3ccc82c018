"""Which experts tokens choose: the chances, and that a token chooses alike wherever it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.adapters import Adapter
from models.experts import Popularity
from models.touched import adapter_mix, expected_touched
from sim.serving.token_routing import NUM_ORDERS, choose_experts, expert_draws, route_tokens, token_key

UNEVEN = Popularity(np.array([[0.9, 0.6, 0.4, 0.1]]), 2)


def keys(num, request=0, seed=7):
    return np.array([token_key(np.uint64(seed), request, position) for position in range(num)], dtype=np.uint64)


def chosen(draws, layer, key):
    experts = np.full(draws.top_k, -1)
    choose_experts(draws, layer, key, experts)
    return experts


def routed(popularity, num_tokens, seed=0, adapters=(), adapter=0):
    """(sent, rows, distinct) of one layer with so many tokens on each rank, of one adapter, or of each token's own."""
    num_ranks = len(num_tokens)
    sent = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    rows, distinct = np.zeros(num_ranks, dtype=np.int64), np.zeros(num_ranks, dtype=np.int64)
    rank = np.repeat(np.arange(num_ranks), num_tokens)
    draws = expert_draws(popularity, 1, np.random.default_rng(seed), adapters)
    adapter = np.zeros(len(rank), np.int64) + adapter
    route_tokens(draws, 0, keys(len(rank)), rank, adapter, sent, rows, distinct)
    return draws, sent, rows, distinct


def chances_of(draws, layer, num_experts):
    """[experts] chance of each, in the first order; all orders of the layer agree, as a permutation must."""
    chances = np.empty((NUM_ORDERS, num_experts))
    for which in range(NUM_ORDERS):
        chances[which, draws.order[layer, which]] = np.diff(draws.reach[layer, which], prepend=0.0)
    assert chances == pytest.approx(np.broadcast_to(chances[0], chances.shape), abs=1e-12)
    return chances[0]


@pytest.mark.parametrize(
    "popularity", [UNEVEN, Popularity.uniform(64, 6), Popularity.zipf(64, 6, 1.2), Popularity.uniform(3, 3)]
)
def test_each_expert_is_chosen_with_its_own_chance(popularity):
    """20,000 tokens: each count is binomial, so 4.5 standard deviations bound it (1 in 150,000 per expert)."""
    num, num_experts = 20_000, popularity.inclusion.shape[1]
    draws = expert_draws(popularity, 2, np.random.default_rng(0))
    for layer in range(2):
        q = chances_of(draws, layer, num_experts)
        assert np.sort(q) == pytest.approx(np.sort(popularity.inclusion[0]), abs=1e-12)
        choices = np.array([chosen(draws, layer, key) for key in keys(num)])
        assert all(len(set(c)) == popularity.top_k for c in choices.tolist())
        counts = np.bincount(choices.ravel(), minlength=num_experts)
        assert (np.abs(counts - num * q) <= 4.5 * np.sqrt(num * q * (1 - q)) + 1e-6).all()


def test_pairs_of_experts_are_as_likely_as_in_a_fresh_order_per_token():
    """Top-2 of 8, each with chance 1/4: all 28 pairs alike by symmetry, 1/28 each in a fresh order.

    In one order a pair is chosen with a chance of 0 or more, so the chance over NUM_ORDERS orders is a mean of as many
    independent ones; with X the chance of a pair in one order, E[X] = 1/28 and 0 <= X <= 1/4, hence a standard
    deviation of at most sqrt(E[X] / 4) = 0.095. 4.5 of those over sqrt(NUM_ORDERS), and 4.5 of the count itself.
    """
    num = 20_000
    draws = expert_draws(Popularity.uniform(8, 2), 1, np.random.default_rng(1))
    pairs = np.zeros((8, 8))
    for key in keys(num):
        a, b = sorted(chosen(draws, 0, key))
        pairs[a, b] += 1 / num
    share = pairs[np.triu_indices(8, 1)]
    assert share.sum() == pytest.approx(1.0)
    allowed = 4.5 * (0.095 / np.sqrt(NUM_ORDERS) + np.sqrt(1 / 28 / num))
    assert (np.abs(share - 1 / 28) < allowed).all()


def test_layers_requests_and_positions_choose_independently():
    """Overlap of two draws of top-6 of 64: the mean is 6 · 6 / 64 = 0.5625, and its variance is below that.

    (Each choice of the second draw hits with chance 6/64; choices without replacement repel.)
    """
    num = 4000
    draws = expert_draws(Popularity.uniform(64, 6), 2, np.random.default_rng(2))
    base = [set(chosen(draws, 0, key)) for key in keys(num)]
    others = {
        "layer": [set(chosen(draws, 1, key)) for key in keys(num)],
        "request": [set(chosen(draws, 0, key)) for key in keys(num, request=1)],
        "position": base[1:],
    }
    for other in others.values():
        overlap = np.mean([len(a & b) for a, b in zip(base, other, strict=False)])
        assert abs(overlap - 0.5625) < 4.5 * math.sqrt(0.5625 / num)


def test_a_token_chooses_the_same_experts_in_any_batch():
    draws = expert_draws(Popularity.zipf(64, 6, 0.5), 3, np.random.default_rng(3))
    alone, crowd = keys(5, request=9), np.concatenate([keys(400, request=1), keys(5, request=9)])
    for layer in range(3):
        first = [chosen(draws, layer, key).tolist() for key in alone]
        for key in crowd[:400]:
            chosen(draws, layer, key)
        assert [chosen(draws, layer, key).tolist() for key in crowd[400:]] == first


def test_a_popular_expert_is_another_one_in_each_layer():
    draws = expert_draws(Popularity.zipf(64, 6, 1.5), 8, np.random.default_rng(4))
    most_popular = [int(np.argmax(chances_of(draws, layer, 64))) for layer in range(8)]
    assert len(set(most_popular)) > 4


def test_recorded_layers_keep_their_order():
    recorded = np.array([[0.9, 0.6, 0.4, 0.1], [0.1, 0.4, 0.6, 0.9]])
    draws = expert_draws(Popularity(recorded, 2), 2, np.random.default_rng(5))
    for layer in range(2):
        assert chances_of(draws, layer, 4) == pytest.approx(recorded[layer], abs=1e-12)


def test_counts_are_those_of_the_choices_one_by_one():
    draws, sent, rows, distinct = routed(Popularity.zipf(64, 6, 0.7), [10, 0, 7, 1])
    rank = np.repeat(np.arange(4), [10, 0, 7, 1])
    expected = np.zeros((4, 4), dtype=np.int64)
    every = []
    for source, key in zip(rank, keys(18), strict=True):
        choice = chosen(draws, 0, key)
        every += choice.tolist()
        for target in set((choice // 16).tolist()):
            expected[source, target] += 1

    assert sent.tolist() == expected.tolist()
    assert rows.tolist() == np.bincount(np.array(every) // 16, minlength=4).tolist()
    assert distinct.tolist() == np.bincount(np.unique(every) // 16, minlength=4).tolist()


def test_a_token_goes_once_to_a_rank_that_holds_several_of_its_experts():
    """Top-3 of 4 experts on 2 ranks: every token has experts on both, so each rank gets it exactly once."""
    _, sent, rows, _ = routed(Popularity.uniform(4, 3), [10, 7])

    assert sent.tolist() == [[10, 10], [7, 7]]
    assert rows.sum() == 3 * 17


def test_uniform_draws_reach_as_many_ranks_as_independent_ones_would():
    """Top-6 of 64 on 8 ranks: a rank is missed with chance C(56, 6) / C(64, 6) = 0.4330.

    The number of ranks reached differs by order; its standard deviation over single tokens, 6 · 0.25 at most (from 1
    to 6 ranks, clustered near 4.5, so well below 2.5), bounds that over orders, of which there are NUM_ORDERS.
    """
    num = 40_000
    missed = math.comb(56, 6) / math.comb(64, 6)
    _, sent, _, _ = routed(Popularity.uniform(64, 6), [num] + [0] * 7)

    assert sent[0].sum() / num == pytest.approx(8 * (1 - missed), abs=4 * 1.5 / np.sqrt(NUM_ORDERS))


TUNED = [Adapter("one", ((1, 9, 40),)), Adapter("two", ((9, 63),))]


def test_tokens_of_adapters_touch_slots_of_their_own_on_the_ranks_of_the_experts():
    """Counted one by one: an expert that an adapter has tuned is another one for its tokens. What is sent, and how many
    pairs a rank has, does not change."""
    uniform, adapter = Popularity.uniform(64, 6), np.arange(24) % 3
    draws, sent, rows, distinct = routed(uniform, [8, 8, 8, 0], adapters=TUNED, adapter=adapter)
    _, sent_of_base, rows_of_base, distinct_of_base = routed(uniform, [8, 8, 8, 0])
    slots = {
        (int(expert), whose if whose and expert in TUNED[whose - 1].tuned[0] else 0)
        for key, whose in zip(keys(24), adapter.tolist(), strict=True)
        for expert in chosen(draws, 0, key)
    }
    assert distinct.tolist() == [sum(expert // 16 == rank for expert, _ in slots) for rank in range(4)]
    assert distinct.sum() > distinct_of_base.sum()
    assert (sent == sent_of_base).all() and (rows == rows_of_base).all()


def test_distinct_slots_on_all_ranks_are_those_of_one_rank_in_the_mean():
    """The expected slots of 5 tokens of the base, 20 and 7 of the adapters, by the closed form that prices a replica on
    one rank (`expected_touched`), against 2,000 drawn batches: within 4.5 standard errors."""
    uniform = Popularity.uniform(64, 6)
    adapter = np.repeat([0, 1, 2], [5, 20, 7])
    draws = expert_draws(uniform, 1, np.random.default_rng(4), TUNED)
    found = []
    for batch in range(2000):
        sent, rows, distinct = np.zeros((4, 4), np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
        rank = np.arange(32) % 4
        route_tokens(draws, 0, keys(32, request=batch), rank, adapter, sent, rows, distinct)
        found.append(distinct.sum())
    expected = expected_touched(adapter_mix(uniform, TUNED, 40), np.array([5, 20, 7]))
    assert abs(np.mean(found) - expected) < 4.5 * np.std(found) / np.sqrt(len(found))
