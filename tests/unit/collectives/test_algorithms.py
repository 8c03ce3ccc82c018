import time

import numpy as np
import pytest

from sim.collectives.algorithms import ALGORITHMS, algorithm
from sim.collectives.hierarchical import host_grid
from sim.collectives.plan import JOIN, CollectiveError
from sim.collectives.tree import ROOT, double_binary_trees


def test_graph_names_accelerators_not_ranks():
    graph = ALGORITHMS["all_reduce", "ring"](np.array([9, 4, 6]), 300, queue_pairs=4, owner="gradients")
    assert graph.source[:3].tolist() == [9, 4, 6]
    assert graph.destination[:3].tolist() == [4, 6, 9]
    assert graph.size_bytes.tolist() == [100] * 12
    assert graph.queue_pairs.tolist() == [4] * 12
    assert graph.owner == "gradients"


def test_a_ring_step_waits_for_the_input_and_for_the_own_previous_send():
    """On 3 ranks message (step k, rank r) is 3 k + r; (1, 1) waits for (0, 0), which it forwards, and (0,
    1).
    """
    graph = ALGORITHMS["all_gather", "ring"](np.arange(3), 300)
    waits_for = [
        m for m in range(3) if 4 in graph.successors[graph.successor_start[m] : graph.successor_start[m + 1]]
    ]
    assert waits_for == [0, 1]


def test_peers_come_in_rotated_order():
    graph = ALGORITHMS["all_to_all", "direct"](np.arange(4), 8)
    peers = [graph.destination[graph.source == r].tolist() for r in range(4)]
    assert peers == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]


def test_three_bytes_on_eight_ranks():
    plan = ALGORITHMS["all_reduce", "direct"].plan(np.arange(8), 3)
    assert plan.size_bytes.sum() == 3 * 7 * 2
    assert np.count_nonzero(plan.action == JOIN) == 8


def test_joins_keep_the_number_of_edges_linear():
    """Everything waits for everything, yet 64 ranks need 2 edges per pair, not 63 x 63."""
    graph = ALGORITHMS["all_reduce", "direct"](np.arange(64), 6400)
    assert len(graph.successors) == 2 * 64 * 63


def test_send_recv_is_a_shift_or_the_given_pairs():
    graph = ALGORITHMS["send_recv", "direct"](np.array([5, 6, 7]), 10)
    assert graph.destination.tolist() == [6, 7, 5]
    plan = ALGORITHMS["send_recv", "direct"].build(4, 10, pairs=np.array([[0, 3], [3, 0], [0, 1]]))
    assert plan.destination.tolist() == [3, 0, 1]
    with pytest.raises(CollectiveError, match="2 -> 2"):
        ALGORITHMS["send_recv", "direct"].build(4, 10, pairs=np.array([[2, 2]]))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 13, 64, 100])
def test_the_two_trees_complement_each_other(n):
    """Binary, of logarithmic height, and an inner rank of one is a leaf of the other (rank 0 excepted, n
    odd).
    """
    inner_of = []
    for parent in double_binary_trees(n):
        assert np.count_nonzero(parent == ROOT) == 1
        children = np.bincount(parent[parent != ROOT], minlength=n)
        assert children.max() <= 2
        inner_of.append(set(np.flatnonzero(children)))
        reached, height = set(np.flatnonzero(parent == ROOT)), 0
        while len(reached) < n:
            reached |= {r for r in range(n) if parent[r] in reached}
            height += 1
            assert height <= int(np.ceil(np.log2(n)))
    assert inner_of[0] & inner_of[1] <= ({0} if n % 2 else set())


def test_four_ranks_in_two_trees():
    """By hand: 0 - 2 - {1, 3}, and mirrored 3 - 1 - {2, 0}."""
    first, second = double_binary_trees(4)
    assert first.tolist() == [ROOT, 2, 0, 2]
    assert second.tolist() == [1, 3, 1, ROOT]


def test_host_grid_orders_by_first_rank_and_refuses_uneven_hosts():
    host_of_accelerator = np.array([0, 0, 1, 1, 2, 2])
    assert host_grid(np.array([4, 0, 5, 1]), host_of_accelerator).tolist() == [[0, 2], [1, 3]]
    with pytest.raises(CollectiveError, match="host 1 has 1 and host 0 has 2"):
        host_grid(np.array([0, 1, 2]), host_of_accelerator)


def test_hierarchical_sends_an_nth_of_the_local_share_across():
    """2 hosts x 4: of 800 bytes each NIC carries 2 (1/2) 200 by the ring; inside, 7/4 ... 2 (3/4) 800."""
    host = np.arange(8) // 4
    plan = ALGORITHMS["all_reduce", "ring"].plan(
        np.arange(8), 800, hierarchical=True, host_of_accelerator=host
    )
    crosses = host[plan.source] != host[plan.destination]
    assert np.bincount(plan.source[crosses], plan.size_bytes[crosses]).tolist() == [200] * 8
    assert np.bincount(plan.source[~crosses], plan.size_bytes[~crosses]).tolist() == [1200] * 8
    assert np.all(plan.source[crosses] % 4 == plan.destination[crosses] % 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: algorithm("all_reduce", "rign"), "did you mean 'ring'"),
        (lambda: algorithm("allreduce", "ring"), "did you mean 'all_reduce'"),
        (lambda: algorithm("all_to_all", "ring"), "choose one of direct"),
        (
            lambda: algorithm("all_reduce", "halving_doubling")(np.arange(12), 1),
            "power of two of ranks, not 12",
        ),
        (lambda: algorithm("all_reduce", "ring")(np.array([1, 1]), 1), "each accelerator once"),
        (lambda: algorithm("all_reduce", "ring")(np.arange(0), 1), "at least one rank"),
        (lambda: algorithm("all_reduce", "ring")(np.arange(2), -1), "cannot be negative"),
        (lambda: algorithm("all_reduce", "ring")(np.arange(2), 1, chunk_bytes=5), "takes no chunk size"),
        (lambda: algorithm("broadcast", "ring")(np.arange(2), 1, chunk_bytes=0), "at least one"),
        (lambda: algorithm("broadcast", "ring")(np.arange(2), 1, hierarchical=True), "no hierarchical form"),
        (
            lambda: algorithm("all_reduce", "ring")(np.arange(2), 1, hierarchical=True),
            "needs host_of_accelerator",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(call, message):
    with pytest.raises(CollectiveError, match=message):
        call()


def test_two_million_messages_are_built_in_seconds():
    begin = time.perf_counter()
    graph = ALGORITHMS["all_reduce", "ring"](np.arange(1024), 1 << 30)
    assert graph.num_messages == 2046 * 1024
    assert time.perf_counter() - begin < 10
