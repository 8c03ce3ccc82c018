from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from sim.workload import patterns
from sim.workload.flow_file import MatrixFlows
from sim.workload.patterns import PatternError


def rng(seed=1):
    return np.random.default_rng(seed)


def is_permutation(graph, ranks):
    return sorted(graph.source) == sorted(ranks) and sorted(graph.destination) == sorted(ranks)


@pytest.mark.parametrize(
    "leaf_sizes", [(8,) * 8, (1, 1), (3, 3), (5, 3, 2), (1, 1, 1), (64, 32, 32), (100, 100), (16,) * 64]
)
def test_every_pair_of_a_permutation_crosses_leaves(leaf_sizes):
    leaf = np.repeat(np.arange(len(leaf_sizes)), leaf_sizes)
    ranks = np.arange(len(leaf))
    for seed in range(5):
        graph = patterns.permutation(ranks, 1000, rng=rng(seed), leaf_of_accelerator=leaf)
        assert is_permutation(graph, ranks)
        assert np.all(leaf[graph.source] != leaf[graph.destination])


def test_permutation_across_leaves_is_even():
    """3 leaves of 2 ranks: all permutations that cross leaves, listed here, come alike often."""
    leaf = np.array([0, 0, 1, 1, 2, 2])
    allowed = [p for p in permutations(range(6)) if all(leaf[i] != leaf[p[i]] for i in range(6))]
    generator, counts = rng(), dict.fromkeys(allowed, 0)
    for _ in range(40 * len(allowed)):
        destination = patterns._permutation_out_of_groups(leaf, generator)
        counts[tuple(int(d) for d in destination)] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_larger_permutations_are_even_too():
    """From the worst start, everyone to itself, repair and random exchanges come out even."""
    leaf = np.repeat(np.arange(4), 2)
    generator, counts = rng(), np.zeros((8, 8))
    lucky = [d for d in permutations(range(8)) if not np.any(leaf == leaf[list(d)])]
    start = np.arange(8)
    num_draws = 2000
    for _ in range(num_draws):
        destination = patterns._exchanged(start.copy(), leaf, generator)
        assert not np.any(leaf == leaf[destination])
        counts[np.arange(8), destination] += 1
    expected = np.array([[sum(d[i] == j for d in lucky) for j in range(8)] for i in range(8)]) / len(lucky)
    assert np.all(np.abs(counts / num_draws - expected) < 5 * np.sqrt(expected / num_draws) + 1e-12)


def test_permutation_within_a_leaf_when_allowed():
    ranks = np.array([3, 5, 7, 9, 11])
    for seed in range(20):
        graph = patterns.permutation(ranks, 1, rng=rng(seed), cross_leaf=False)
        assert is_permutation(graph, ranks)
        assert np.all(graph.source != graph.destination)


def test_permutation_is_the_same_for_the_same_stream():
    leaf = np.repeat(np.arange(8), 8)
    a, b = (patterns.permutation(np.arange(64), 1, rng=rng(7), leaf_of_accelerator=leaf) for _ in range(2))
    assert np.array_equal(a.destination, b.destination)


def test_shift_sends_to_the_twin():
    """Ranks 4 … 7 sit on leaf 1; the twin of rank 5 is the second rank of leaf 2, and of the last leaf the
    first's.
    """
    leaf = np.repeat(np.arange(3), 4)
    graph = patterns.shift(np.arange(12), 500, leaf_of_accelerator=leaf)
    assert dict(zip(graph.source.tolist(), graph.destination.tolist(), strict=True)) == {
        rank: (rank + 4) % 12 for rank in range(12)
    }
    by_two = patterns.shift(np.arange(12), 500, leaf_of_accelerator=leaf, leaves_by=2)
    assert by_two.destination[by_two.source == 5].tolist() == [1]


RAIL_HOST = np.repeat(np.arange(6), 2)
RAIL_LEAF = np.array([0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5])
"""6 hosts of 2 accelerators on rails: hosts 0 and 1 are on leaves 0 and 1, hosts 2 and 3 on 2 and 3, …"""


def test_home_leaf_is_the_first_leaf_of_the_host():
    assert patterns.home_leaf(RAIL_HOST, RAIL_LEAF).tolist() == [0] * 4 + [2] * 4 + [4] * 4
    per_host = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert patterns.home_leaf(np.repeat(np.arange(4), 2), per_host).tolist() == per_host.tolist()


def test_shift_on_rails_goes_to_another_host_on_the_same_rail():
    """Accelerator i of host h goes to accelerator i of host h + 2: the same place, one group on."""
    home = patterns.home_leaf(RAIL_HOST, RAIL_LEAF)
    graph = patterns.shift(np.arange(12), 1, leaf_of_accelerator=home)
    assert np.array_equal(RAIL_HOST[graph.destination], (RAIL_HOST[graph.source] + 2) % 6)
    assert np.array_equal(graph.destination % 2, graph.source % 2)


def test_permutation_on_rails_leaves_the_host_and_its_leaves():
    home = patterns.home_leaf(RAIL_HOST, RAIL_LEAF)
    for seed in range(50):
        graph = patterns.permutation(np.arange(12), 1, rng=rng(seed), leaf_of_accelerator=home)
        assert is_permutation(graph, np.arange(12))
        assert np.all(RAIL_HOST[graph.source] != RAIL_HOST[graph.destination])
        assert np.all(RAIL_LEAF[graph.source] != RAIL_LEAF[graph.destination])


def test_shift_among_chosen_ranks_uses_their_leaves_only():
    leaf = np.repeat(np.arange(4), 2)
    graph = patterns.shift(np.array([0, 1, 6, 7]), 1, leaf_of_accelerator=leaf)
    assert graph.source.tolist() == [0, 1, 6, 7]
    assert graph.destination.tolist() == [6, 7, 0, 1]


def test_incast():
    graph = patterns.incast(np.array([10, 11, 12, 13]), 7)
    assert graph.source.tolist() == [11, 12, 13]
    assert graph.destination.tolist() == [10] * 3
    wrapped = patterns.incast(np.array([10, 11, 12, 13]), 7, receiver=2, fan_in=2, queue_pairs=3)
    assert wrapped.source.tolist() == [13, 10]
    assert wrapped.queue_pairs.tolist() == [3, 3]


def test_all_to_all_has_every_ordered_pair_once():
    ranks = np.array([2, 4, 8, 16])
    graph = patterns.all_to_all(ranks, 5)
    pairs = set(zip(graph.source.tolist(), graph.destination.tolist(), strict=True))
    assert len(pairs) == graph.num_messages == 12
    assert all(a != b for a, b in pairs)
    assert graph.destination[graph.source == 4].tolist() == [8, 16, 2]


def test_matrix_maps_ranks_and_keeps_edges():
    flows = MatrixFlows(
        3,
        np.array([0, 2]),
        np.array([1, 0]),
        np.array([9, 8]),
        np.array([0.0, 1.5]),
        np.array([0]),
        np.array([1]),
    )
    graph = patterns.matrix(np.array([20, 30, 40]), flows)
    assert (graph.source.tolist(), graph.destination.tolist()) == ([20, 40], [30, 20])
    assert graph.earliest_s.tolist() == [0.0, 1.5]
    assert graph.num_inputs.tolist() == [0, 1]
    with pytest.raises(PatternError, match="for 3 ranks, but the workload has 2"):
        patterns.matrix(np.arange(2), flows)


LEAF = np.array([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: patterns.permutation(range(4), 1, rng=rng(), leaf_of_accelerator=LEAF),
            "leaf 0 has 3 of 4",
        ),
        (lambda: patterns.permutation(range(3), 1, rng=rng(), leaf_of_accelerator=LEAF), "cross_leaf: false"),
        (lambda: patterns.permutation(range(3), 1, rng=rng()), "needs leaf_of_accelerator"),
        (lambda: patterns.permutation([5], 1, rng=rng(), cross_leaf=False), "at least two"),
        (lambda: patterns.shift(range(4), 1, leaf_of_accelerator=LEAF), "leaf 1 has 1 and leaf 0 has 3"),
        (lambda: patterns.shift(range(3), 1, leaf_of_accelerator=LEAF), "back to the own leaf"),
        (lambda: patterns.shift([0, 3], 1, leaf_of_accelerator=LEAF, leaves_by=2), "back to the own leaf"),
        (lambda: patterns.incast(range(4), 1, receiver=4), "ranks are 0 … 3"),
        (lambda: patterns.incast(range(4), 1, fan_in=4), "give 1 … 3"),
        (lambda: patterns.all_to_all([1], 1), "at least two"),
        (lambda: patterns.all_to_all([1, 2, 1], 1), "accelerator 1 is listed twice"),
        (lambda: patterns.incast([], 1), "empty"),
    ],
)
def test_impossible_patterns_are_refused_with_a_remedy(call, message):
    with pytest.raises(PatternError, match=message):
        call()
