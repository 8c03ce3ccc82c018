"""Popularity laws against enumeration, simulation and recorded routing."""

from itertools import permutations

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.experts import (
    Popularity,
    expected_distinct,
    inclusion_probabilities,
)


def test_inclusion_by_hand():
    """Two of weights 3, 2, 1: the first is in with 1/2 + 1/3 · 3/4 + 1/6 · 3/5 = 0.85."""
    q = inclusion_probabilities(np.array([3.0, 2.0, 1.0]), 2)
    assert q == pytest.approx([0.85, 11 / 15, 5 / 12], abs=1e-9)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_inclusion_by_enumeration(top_k):
    """Every order of draws, each with the product of its conditional chances."""
    weights = np.array([5.0, 2.0, 2.0, 0.3, 0.01])
    expected = np.zeros(weights.size)
    for order in permutations(range(weights.size), top_k):
        chance, left = 1.0, weights.sum()
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        expected[list(order)] += chance
    assert inclusion_probabilities(weights, top_k) == pytest.approx(expected, abs=1e-9)


def test_inclusion_sums_to_k_under_steep_laws():
    for alpha in (0.0, 0.8, 3.0):
        q = Popularity.zipf(256, 8, alpha).inclusion[0]
        assert q.sum() == pytest.approx(8, abs=1e-9)
        assert np.all(np.diff(q) <= 1e-12)
        assert q.max() <= 1


def test_zipf_of_zero_is_uniform():
    assert Popularity.zipf(64, 6, 0.0).inclusion == pytest.approx(Popularity.uniform(64, 6).inclusion)


def test_all_experts_chosen():
    assert inclusion_probabilities(np.array([1.0, 9.0]), 2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("weights", "top_k"), [([1.0, 1.0], 3), ([1.0], 0), ([1.0, 0.0], 1), ([1.0, np.inf], 1)])
def test_bad_weights(weights, top_k):
    with pytest.raises(ValueError, match=r"top_k|weights"):
        inclusion_probabilities(np.array(weights), top_k)


def test_distinct_experts_of_uniform_routing():
    """64 · (1 - (58/64)^n): 0, 6, then 64 (1 - (1 - 6/64)^8) = 34.9 …"""
    distinct = expected_distinct(Popularity.uniform(64, 6), np.array([0, 1, 8]))[0]
    assert distinct == pytest.approx([0, 6, 64 * (1 - (58 / 64) ** 8)])


def test_an_expert_that_is_always_chosen():
    popularity = Popularity(np.array([[1.0, 0.5, 0.5]]), 2)
    assert expected_distinct(popularity, np.array([0, 1, 2]))[0] == pytest.approx([0, 2, 2.5])


def test_distinct_experts_of_simulated_batches():
    """1,000 batches of 16 tokens drawn by the same law: their mean within 4 of its standard errors."""
    rng = np.random.default_rng(7)
    weights = np.arange(1, 33) ** -1.0
    arrivals = rng.exponential(size=(1000, 16, 32)) / weights
    chosen = np.argsort(arrivals, axis=2)[:, :, :4].reshape(1000, -1)
    counts = np.array([np.unique(batch).size for batch in chosen])
    expected = expected_distinct(Popularity.zipf(32, 4, 1.0), np.array([16]))[0, 0]
    assert counts.mean() == pytest.approx(expected, abs=4 * counts.std() / 1000**0.5)


def test_recorded_routing_touches_as_many_as_drawn_tokens(shared_data):
    """Mixed batches of three tasks: independent draws explain 8, 32 and 256 tokens to 2 %."""
    ids = [
        np.load(shared_data / "esft" / f"routing_{task}.npz")["expert_ids"] for task in ("intent", "law", "translation")
    ]
    mixed = np.concatenate(ids, axis=1)
    frequency = np.stack([np.bincount(layer.ravel(), minlength=64) for layer in mixed]) / mixed.shape[1]
    expected = expected_distinct(Popularity(frequency, 6), np.array([8, 32, 256])).mean(axis=0)
    rng = np.random.default_rng(3)
    for size, mean in zip((8, 32, 256), expected, strict=True):
        batches = [mixed[:, rng.choice(mixed.shape[1], size, replace=False)] for _ in range(20)]
        touched = np.mean([np.unique(layer).size for batch in batches for layer in batch])
        assert touched == pytest.approx(mean, rel=0.02)


def test_recorded_popularity_is_skewed_as_published(shared_data):
    popularity = Popularity.from_routing(shared_data / "esft" / "routing_law.npz", 64)
    popularity.check(ARCHITECTURES["deepseek-v2-lite"].experts)
    hottest = np.median(popularity.inclusion.max(axis=1) / popularity.inclusion.mean(axis=1))
    assert 3.2 <= hottest <= 5.6


def test_routing_files_that_cannot_be(tmp_path):
    path = tmp_path / "routing.npz"
    np.savez(path, other=np.zeros(1))
    with pytest.raises(ValueError, match="expert_ids"):
        Popularity.from_routing(path, 64)
    np.savez(path, expert_ids=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="integers"):
        Popularity.from_routing(path, 64)
    np.savez(path, expert_ids=np.full((2, 3, 1), 64))
    with pytest.raises(ValueError, match="64 experts"):
        Popularity.from_routing(path, 64)


def test_popularity_of_another_model():
    experts = ARCHITECTURES["deepseek-v2-lite"].experts
    with pytest.raises(ValueError, match="top-2 of 8"):
        Popularity.uniform(8, 2).check(experts)
    with pytest.raises(ValueError, match="3 layers"):
        Popularity(np.full((3, 64), 6 / 64), 6).check(experts)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "token_scores"), ('{"token_scores": {"1": {"0": 0.5}}}', "2 experts in each layer"),
     ('{"token_scores": {"1": {"0": 0.5, "1": 0.4}}}', "shares of layer 1 sum to 0.900"),
     ('{"token_scores": {"1": {"0": NaN, "1": 0.4}}}', "a share of layer 1 is nan"),
     ('{"token_scores": {"1": {"0": 1.5, "1": -0.5}}}', "a share of layer 1 is -0.5"),
     ('{"token_scores": {}}', "no layer")],
)  # fmt: skip
def test_scores_that_are_none(tmp_path, text, message):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Popularity.from_scores(tmp_path / "scores.json", 2, 1)


def test_scores_are_shares_of_pairs(tmp_path):
    (tmp_path / "scores.json").write_text('{"token_scores": {"2": {"0": 0.5, "1": 0.3, "2": 0.2}}}')
    found = Popularity.from_scores(tmp_path / "scores.json", 3, 2)
    assert found.inclusion == pytest.approx(np.array([[1.0, 0.6, 0.4]]))


def test_no_expert_has_more_than_a_token_gives_one(tmp_path):
    (tmp_path / "scores.json").write_text('{"token_scores": {"1": {"0": 0.7, "1": 0.2, "2": 0.1}}}')
    with pytest.raises(ValueError, match="a token that goes to 2 experts gives none more than 1/2"):
        Popularity.from_scores(tmp_path / "scores.json", 3, 2)
