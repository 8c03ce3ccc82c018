"""The ideal time of a flow: by hand, and as what a lone flow really takes on the fluid fabric."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, fat_tree, leaf_spine
from sim.workload.open_load import ideal_fct_s

R, L = 50e9, 500e-9
LINK = Link(R, L)
FULL, WIRE = 4032 * 100, 4096 * 100


def leaves(host=None, **shape):
    shape = {"leaves": 2, "spines": 2, "hosts_per_leaf": 2, "host_link": LINK, "spine_link": LINK} | shape
    return leaf_spine(hosts=[host or HostKind(4)], **shape)


def ideal_s(topology, source, destination, size_bytes=FULL):
    return float(ideal_fct_s(message_graph([source], [destination], size_bytes), topology)[0])


def alone_s(topology, source, destination, size_bytes=FULL, policy="ecmp", seed=1):
    """What one flow takes with the fabric to itself."""
    fabric = FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=0.0), seed=seed)
    transfer = fabric.start(message_graph([source], [destination], size_bytes))
    fabric.clock.run(until=transfer.done)
    return float(transfer.results.received_s[0])


NIC = {"count": 4, "injection_bytes_per_s": 6.25e9}
SEGMENTED = {"count": 4, "message_overhead_s": 1e-6, "segment_bytes": 4096}
NVLINK = Link(450e9, 300e-9)


@pytest.mark.parametrize(
    ("topology", "ends", "expected_s"),
    [
        (leaves(), (0, 1), 2 * L + WIRE / R),
        (leaves(), (0, 2), 4 * L + WIRE / R),
        # 10 Gbit/s between leaves is the bottleneck, but not on one leaf.
        (leaves(spine_link=Link(1.25e9, L)), (0, 2), 4 * L + WIRE / 1.25e9),
        (leaves(spine_link=Link(1.25e9, L)), (0, 1), 2 * L + WIRE / R),
        # One flow uses one of the four planes.
        (leaves(planes=4), (0, 2), 4 * L + WIRE / R),
        (leaves(planes=4), (0, 1), 2 * L + WIRE / R),
        # The NIC reads 50 Gbit/s from memory.
        (leaves(HostKind(**NIC)), (0, 2), 4 * L + WIRE / 6.25e9),
        (leaves(HostKind(**NIC), planes=4), (0, 2), 4 * L + WIRE / 6.25e9),
        # 4,096 B a microsecond, after the first microsecond.
        (leaves(HostKind(**SEGMENTED)), (0, 2), 1e-6 + 4 * L + WIRE / 4.096e9),
        (leaves(HostKind(4, 2, 1, NVLINK)), (0, 1), 300e-9 + WIRE / 450e9),
    ],
)
def test_ideal_time(topology, ends, expected_s):
    assert ideal_s(topology, *ends) == pytest.approx(expected_s, rel=1e-12)
    assert alone_s(topology, *ends) == pytest.approx(expected_s, rel=1e-12)


def test_the_best_single_path_depends_on_the_size():
    """Spine 0 is ten times slower and 900 ns nearer: better below 900 ns · R / 9 = 5,000 B on the wire."""
    near = LinkOverride(R / 10, 50e-9)
    topology = leaves(overrides={"leaf0-spine0": near, "leaf1-spine0": near})
    assert ideal_s(topology, 0, 2, 1000) == pytest.approx(2 * L + 100e-9 + 1064 / (R / 10), rel=1e-12)
    assert ideal_s(topology, 0, 2) == pytest.approx(4 * L + WIRE / R, rel=1e-12)
    # Hashing takes either of the two paths, and is never faster than the better one.
    taken_s = {alone_s(topology, 0, 2, seed=seed) for seed in range(20)}
    assert min(taken_s) == pytest.approx(4 * L + WIRE / R) and max(taken_s) > 5 * min(taken_s)


def test_spraying_over_narrow_paths_beats_the_best_single_one():
    """Two spines at R / 2 carry R together: the sprayed flow has the slowdown 1/2, latency aside."""
    topology = leaves(spine_link=Link(R / 2, 0.0), host_link=Link(R, 0.0))
    assert alone_s(topology, 0, 2, policy="spray") / ideal_s(topology, 0, 2) == pytest.approx(0.5, rel=1e-9)


def test_fat_tree_inside_a_pod_and_across():
    topology = fat_tree(
        pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=4, hosts_per_edge=1, host_link=LINK,
        edge_link=Link(R / 2, L), core_link=Link(R / 5, L), hosts=[HostKind(4)],
    )  # fmt: skip
    for destination, expected_s in ((1, 4 * L + WIRE / (R / 2)), (2, 6 * L + WIRE / (R / 5))):
        assert ideal_s(topology, 0, destination) == pytest.approx(expected_s, rel=1e-12)
        assert alone_s(topology, 0, destination) == pytest.approx(expected_s, rel=1e-12)


def test_flows_of_every_kind_at_once():
    """As an array, each flow gets what it gets alone."""
    topology = leaves(HostKind(4, 2, 2, NVLINK), planes=2, spine_link=Link(R / 4, L))
    n = topology.num_accelerators
    source, destination = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(n)))
    together = ideal_fct_s(message_graph(source, destination, 10_000), topology)
    alone = [ideal_s(topology, a, b, 10_000) for a, b in zip(source, destination, strict=True)]
    assert together == pytest.approx(alone)
    assert np.all((together == 0) == (source == destination))
