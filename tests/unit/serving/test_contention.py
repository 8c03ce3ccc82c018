"""What of a step's communication is contention: against the same messages alone on an ideal fabric."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import workload
from test_expert_parallel import iteration

from sim.engine.clock import Clock
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import message_graph
from sim.fabric.packet import PacketFabric
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.serving.time_split import PARTS


def two_racks(spine_bytes_per_s=1e10):
    return leaf_spine(
        leaves=2, spines=1, hosts_per_leaf=10, host_link=Link(1e10, 1e-6), spine_link=Link(spine_bytes_per_s, 1e-6),
        hosts=[HostKind(20)],
    )  # fmt: skip


def test_messages_that_share_a_nic_take_turns_and_a_fabric_has_no_limits():
    """Wire bytes are 4096 per 4032 of payload. Two messages out of one NIC take twice as long as one; two from two NICs
    to two others as long as one, though the spine link carries a tenth. Whatever came before does not matter."""
    alone = AloneOnIdeal(two_racks(spine_bytes_per_s=1e9), 4096, 64, tolerance=0.0)
    size, latency_s = 4032 * 1000, 4e-6
    one_s = 4096 * 1000 / 1e10

    for source, destination, expected_s in (
        ([0], [10], one_s), ([0, 0], [10, 11], 2 * one_s), ([0, 1], [10, 11], one_s), ([0], [10], one_s),
    ):  # fmt: skip
        graph = message_graph(source, destination, size, earliest_s=alone.now_s)
        assert alone.seconds(graph) == pytest.approx(expected_s + latency_s, rel=1e-9)


def served_on(policy, topology, neighbour=None):
    """One request of 300 tokens in, 5 out, on two accelerators of each rack."""
    clock = Clock()
    fabric = FluidFabric(clock, topology, policy, settings=FluidSettings(tolerance=0.0))
    made_of = iteration()
    made_of.accelerators = np.array([0, 1, 10, 11])
    made = workload(
        [0.0], [300], [5], clock=clock, block_size=16, num_blocks=1000, iterations=[made_of], fabric=fabric,
        alone=AloneOnIdeal(topology, 4096, 64, tolerance=0.0),
    )  # fmt: skip
    if neighbour is not None:
        fabric.start(neighbour)
    clock.run(until=made.start())
    split = made.time_split()
    assert sum(split[f"{part}_s"] for part in PARTS) == pytest.approx(split["e2e_s"], rel=1e-9)
    return {part: float(split[f"{part}_s"][0]) for part in PARTS}


def test_an_ideal_fabric_without_others_has_no_contention():
    split = served_on("ideal", two_racks())

    assert split["fabric"] > 0
    assert split["fabric_contention"] == pytest.approx(0.0, abs=1e-9 * split["fabric"])
    assert split["in_host_communication"] == 0.0


@pytest.mark.parametrize("cause", ["a slow spine link", "a neighbour at its NIC"])
def test_whatever_makes_it_slower_than_that_is_contention(cause):
    """The steps are the same ones, so what is not contention stays as it was. The tokens lie on accelerator 0,
    which sends to three others: three messages of a neighbour out of the same NIC double the time of a dispatch."""
    ideal = served_on("ideal", two_racks())
    if cause == "a slow spine link":
        found = served_on("ecmp", two_racks(spine_bytes_per_s=2e9))
    else:
        found = served_on("ideal", two_racks(), message_graph([0] * 3, [15, 16, 17], 10**12, owner="neighbour"))

    for part in ("prefill", "decode", "fabric"):
        assert found[part] == pytest.approx(ideal[part], rel=1e-9)
    assert found["fabric_contention"] > 0.2 * found["fabric"]


@pytest.mark.parametrize("kind", [FluidFabric, PacketFabric])
def test_what_held_up_the_messages_is_seen(kind):
    """Three messages of a neighbour out of the same NIC: nothing else is full, and only dispatches pass there.
    Thirty prompts, one a step."""
    clock = Clock()
    topology = two_racks(spine_bytes_per_s=1e11)
    fabric = kind(clock, topology, "ecmp")
    made_of = iteration(owner="chat")
    made_of.accelerators = np.array([0, 1, 10, 11])
    made = workload(
        0.02 * np.arange(30), [300] * 30, [1] * 30, clock=clock, block_size=16, num_blocks=1000,
        iterations=[made_of], fabric=fabric, alone=AloneOnIdeal(topology, 4096, 64, tolerance=0.0),
    )  # fmt: skip
    fabric.start(message_graph([0] * 3, [15, 16, 17], 10**12, owner="neighbour"))
    clock.run(until=made.start())

    held = made.held_up()
    assert {other for _, other in held} == {"neighbour"}
    assert 0.1 < sum(held.values()) < 1.0


def test_parts_of_copies_that_step_together_add_up():
    """Requests of several copies, which are preempted: a copy may idle while others step."""
    rng = np.random.default_rng(4)
    load = (np.cumsum(rng.exponential(0.002, 60)), rng.integers(1, 200, 60), rng.integers(1, 20, 60))
    made = workload(*load, block_size=16, num_blocks=16, host_s=0.004, iterations=[iteration()])
    made.clock.run(until=made.start())

    split = made.time_split()
    assert made.requests["num_preemptions"].sum() > 0
    total_s = np.sum([split[f"{part}_s"] for part in PARTS], axis=0)
    np.testing.assert_allclose(total_s, split["e2e_s"], rtol=1e-9)
    assert split["waiting_again_s"].sum() > 0
    assert split["recompute_s"].sum() > 0
    assert all((split[f"{part}_s"] >= -1e-9).all() for part in PARTS)


def test_without_the_comparison_all_of_it_is_the_fabric_s():
    clock = Clock()
    fabric = FluidFabric(clock, two_racks(), "ecmp")
    made_of = iteration()
    made_of.accelerators = np.array([0, 1, 10, 11])
    made = workload([0.0], [300], [5], clock=clock, block_size=16, num_blocks=1000, iterations=[made_of], fabric=fabric)
    clock.run(until=made.start())

    split = made.time_split()
    assert np.isnan(split["fabric_contention_s"]).all()
    assert made.metrics()["mean_fabric_contention_ms"] is None
    total_s = np.nansum([split[f"{part}_s"][0] for part in PARTS])
    assert total_s == pytest.approx(split["e2e_s"][0], rel=1e-9)
