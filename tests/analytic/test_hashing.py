"""ECMP's hashes: uniform, and independent from seed to seed, switch to switch and tier to tier."""

import numpy as np
import pytest
from numba import njit
from scipy import stats

from sim.engine.clock import Clock
from sim.fabric import policies
from sim.fabric.fluid import FluidFabric
from sim.fabric.messages import message_graph
from sim.fabric.topology import FAR, HostKind, Link, fat_tree, leaf_spine

LINK = Link(1e9, 0.0)
SMALLEST_P = 1e-4
"""About 60 tests of this file have a p value: a correct hash fails one of them in 170 choices of constants."""


@njit
def paths_of(batch, network, queue_pair):
    out = np.empty((len(batch), 2), np.int64)
    for i in range(len(batch)):
        out[i] = policies.hashed_path(batch, network, i, queue_pair)
    return out


def entries(topology, source, destination):
    """Messages between leaves, as the policy would see them."""
    scope = topology.scopes[FAR]
    batch = np.zeros(len(source), policies.ENTRY)
    batch["source"], batch["destination"] = source, destination
    batch["source_leaf"] = topology.leaf_of_accelerator[source]
    batch["destination_leaf"] = topology.leaf_of_accelerator[destination]
    batch["scope"], batch["num_paths"], batch["down_lanes"] = FAR, scope.num_paths, scope.down_lanes
    batch["leaf_choices"], batch["next_choices"] = scope.radix
    return batch


def network(topology, seed):
    return policies.path_network(topology, [4.0, 0.0, 0.0, seed], seed)


def far_pairs(topology, group_of_leaf=None):
    group = np.arange(topology.num_leaves) if group_of_leaf is None else group_of_leaf
    n = topology.num_accelerators
    source, destination = np.divmod(np.arange(n * n), n)
    leaf = topology.leaf_of_accelerator
    is_far = group[leaf[source]] != group[leaf[destination]]
    return source[is_far], destination[is_far]


def uniform_p(values, choices):
    return stats.chisquare(np.bincount(values, minlength=choices)).pvalue


def independence_p(a, b, choices_a, choices_b):
    table = np.bincount(a * choices_b + b, minlength=choices_a * choices_b).reshape(choices_a, choices_b)
    return stats.chi2_contingency(table).pvalue


@pytest.fixture(scope="module")
def spine_fabric():
    return leaf_spine(
        leaves=8, spines=8, hosts_per_leaf=16, host_link=LINK, spine_link=LINK, hosts=[HostKind(128)], lanes=2
    )


@pytest.fixture(scope="module")
def tree():
    return fat_tree(
        pods=4, edges_per_pod=4, aggregations_per_pod=4, cores=16, hosts_per_edge=8, host_link=LINK,
        edge_link=LINK, core_link=LINK, hosts=[HostKind(128)],
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 1000, 2**40])
def test_paths_are_uniform_up_and_down(spine_fabric, seed):
    paths = paths_of(entries(spine_fabric, *far_pairs(spine_fabric)), network(spine_fabric, seed), 0)
    assert uniform_p(paths[:, 0], 16) > SMALLEST_P
    assert uniform_p(paths[:, 1], 16) > SMALLEST_P
    assert np.array_equal(paths[:, 0] // 2, paths[:, 1] // 2)  # down from the spine that was picked on the way up


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_lane_down_knows_nothing_of_the_path_up(spine_fabric, seed):
    batch = entries(spine_fabric, *far_pairs(spine_fabric))
    for leaf in range(8):
        paths = paths_of(batch[batch["source_leaf"] == leaf], network(spine_fabric, seed), 0)
        assert independence_p(paths[:, 0], paths[:, 1] % 2, 16, 2) > SMALLEST_P


@pytest.mark.parametrize("other", [2, 5, 9, 1 + 4 * 8])
def test_seeds_are_independent(spine_fabric, other):
    batch = entries(spine_fabric, *far_pairs(spine_fabric))
    a, b = (paths_of(batch, network(spine_fabric, seed), 0)[:, 0] for seed in (1, other))
    assert independence_p(a, b, 16, 16) > SMALLEST_P


def test_queue_pairs_are_independent(spine_fabric):
    batch = entries(spine_fabric, *far_pairs(spine_fabric))
    a, b = (paths_of(batch, network(spine_fabric, 1), q)[:, 0] for q in (0, 1))
    assert independence_p(a, b, 16, 16) > SMALLEST_P


def test_leaves_hash_the_same_header_independently(spine_fabric):
    """The same headers, as if they came in at two leaves, with seeds a leaf's distance apart too."""
    batch = entries(spine_fabric, *far_pairs(spine_fabric))
    at_another = batch.copy()
    at_another["source_leaf"] = (batch["source_leaf"] + 1) % 8
    for seed in range(1, 9):
        a = paths_of(batch, network(spine_fabric, 1), 0)[:, 0]
        b = paths_of(at_another, network(spine_fabric, seed), 0)[:, 0]
        assert independence_p(a, b, 16, 16) > SMALLEST_P


@pytest.mark.parametrize("seed", range(1, 9))
def test_no_leaf_polarises_in_a_fat_tree(tree, seed):
    """What the aggregation picks must not follow from what the leaf picked: for each leaf, all 16 cores alike.

    112 x 8 flows leave each leaf for other pods, 48 a core. Where one seed served both tiers, 12 cores are empty.
    """
    batch = entries(tree, *far_pairs(tree, tree.pod_of_leaf))
    paths = paths_of(batch, network(tree, seed), 0)
    for leaf in range(tree.num_leaves):
        mine = paths[batch["source_leaf"] == leaf, 0]
        assert uniform_p(mine, 16) > SMALLEST_P / 16
        assert independence_p(mine // 4, mine % 4, 4, 4) > SMALLEST_P / 16
    assert np.array_equal(paths[:, 0], paths[:, 1])


def recorded_uplinks(topology, graphs, seed=1, policy="ecmp"):
    """Payload of every link between switches after each graph has run."""
    fabric = FluidFabric(Clock(), topology, policy, seed=seed)
    between = np.array(topology.link_tier) != "host"
    seen = []
    for graph in graphs:
        fabric.clock.run(until=fabric.start(graph).done)
        seen.append(fabric.link_bytes()[0][between])
    return np.diff(seen, axis=0, prepend=0)


def test_successive_messages_keep_their_path(tree):
    """Three rounds of the same pairs put the same bytes on the same links, other traffic in between or not."""
    pairs = np.arange(128), (np.arange(128) + 32) % 128
    between = message_graph((np.arange(100) + 7) % 128, (np.arange(100) + 70) % 128, 5000)
    first, _, second, third = recorded_uplinks(
        tree, [message_graph(*pairs, 9000), between, message_graph(*pairs, 9000), message_graph(*pairs, 9000)]
    )
    assert first == pytest.approx(second, abs=1e-3)
    assert first == pytest.approx(third, abs=1e-3)


def test_the_fabric_takes_the_paths_that_the_hash_says(tree):
    """Recorded core links of single messages, against the function."""
    source, destination = np.array([0, 5, 17, 40, 99]), np.array([40, 77, 127, 3, 20])
    paths = paths_of(entries(tree, source, destination), network(tree, 3), 0)[:, 0]
    for a, b, path in zip(source, destination, paths, strict=True):
        fabric = FluidFabric(Clock(), tree, "ecmp", seed=3)
        fabric.clock.run(until=fabric.start(message_graph([a], [b], 4032)).done)
        used = [name for name, load in zip(tree.link_name, fabric.link_bytes()[0], strict=True) if load > 0]
        assert [name.split("->")[1] for name in used if name.startswith("aggregation") and "core" in name] == [
            f"core{path}"
        ]


def test_queue_pairs_of_one_message_take_paths_of_their_own(spine_fabric):
    """64 queue pairs on 16 uplinks of 8 spines: the bytes are split evenly, and most links see some."""
    (loads,) = recorded_uplinks(spine_fabric, [message_graph([0], [127], 64 * 4032, queue_pairs=64)])
    assert loads.sum() == pytest.approx(2 * 64 * 4032)
    assert np.allclose(loads / 4032, np.round(loads / 4032))
    assert 20 <= np.count_nonzero(loads) <= 32
