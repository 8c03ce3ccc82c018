"""Tensor-parallel ranks on several hosts: what crosses, how long it takes, and what a step is without it."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import workload

from models.architecture import ARCHITECTURES
from models.cost.build import stage_tables, step_table
from models.cost.step import step_seconds
from models.hardware import ACCELERATORS
from models.parallelism import Parallelism
from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.serving.tensor_across_hosts import TensorIteration

RATE, LATENCY = 5e10, 1e-6
HIDDEN_BYTES = 4096 * 2


def iteration(hosts, per_host, name="llama-3.1-8b", accelerators=None):
    architecture, parallelism = ARCHITECTURES[name], Parallelism(hosts * per_host, hosts=hosts)
    costs = (architecture, ACCELERATORS["h100"], parallelism)
    ranks = range(hosts * per_host) if accelerators is None else accelerators
    return TensorIteration(architecture, parallelism, step_table(*costs), stage_tables(*costs), ranks, "chat")


def served(made_of, hosts, per_host, prompt, output, spine_rate=10 * RATE, policy="ideal"):
    clock = Clock()
    topology = leaf_spine(
        leaves=hosts, spines=1, hosts_per_leaf=1, host_link=Link(RATE, LATENCY), spine_link=Link(spine_rate, LATENCY),
        hosts=[HostKind(hosts, per_host, per_host, Link(10 * RATE, LATENCY))],
    )  # fmt: skip
    fabric = FluidFabric(clock, topology, policy, settings=FluidSettings(tolerance=0.0))
    made = workload([0.0], [prompt], [output], clock=clock, block_size=16, num_blocks=1000, iterations=[made_of],
                    fabric=fabric)  # fmt: skip
    clock.run(until=made.start())
    return made, fabric


@pytest.mark.parametrize(("hosts", "per_host"), [(2, 1), (2, 4), (4, 2)])
def test_a_step_is_its_operators_and_its_rings(hosts, per_host):
    """A prompt of 512 tokens: 1 + 2 · 32 all-reduces, each 2 (H - 1) turns of size / (k H) on every NIC, and
    the latency of four links a turn. Wire bytes are 4096 per 4032 of payload."""
    made, _ = served(iteration(hosts, per_host), hosts, per_host, 512, 1)

    tensor = hosts * per_host
    costs = (ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h100"], Parallelism(tensor, hosts=hosts))
    alone, _ = served_alone(step_table(*costs), 512)
    shard = 512 * HIDDEN_BYTES // tensor
    wire = shard + 64 * -(-shard // 4032)
    turn_s = wire / RATE + 4 * LATENCY
    expected_s = alone + 65 * 2 * (hosts - 1) * turn_s
    assert made.requests["first_token_s"][0] == pytest.approx(expected_s, rel=1e-6)


def served_alone(table, prompt):
    clock = Clock()
    made = workload([0.0], [prompt], [1], clock=clock, block_size=16, num_blocks=1000, table=table)
    clock.run(until=made.start())
    return float(made.requests["first_token_s"][0]), made


def test_what_crosses_is_the_hierarchical_all_reduce_s():
    """Each rank sends 2 (H - 1) / H of its shard, size / k, in every all-reduce: 2 hosts of 4, 64 tokens."""
    made, fabric = served(iteration(2, 4), 2, 4, 64, 1)

    payload, _ = fabric.link_bytes()
    up = [i for i, name in enumerate(fabric.topology.link_name) if name.startswith("host") and "->leaf" in name]
    assert payload[up].sum() == pytest.approx(65 * 8 * (64 * HIDDEN_BYTES / 4), rel=1e-9)
    assert made.requests["num_generated"][0] == 1


def test_without_hosts_to_cross_stages_sum_to_the_step():
    """A mixture with a dense layer: what lies between the all-reduces adds up to the step's time."""
    made_of = iteration(2, 2, "deepseek-v2-lite")
    features = np.array([64.0, 3.0, 4.0, 900.0, 80.0, 700.0])
    own_s = made_of._own_s(features, 0.0, 0.0)

    assert own_s.sum() == pytest.approx(step_seconds(made_of.table, *features, 0.0, 0.0), rel=1e-12)
    assert len(own_s) == 2 * 27 + 2
    assert (own_s > 0).all()
    assert own_s[4] > own_s[2], "experts take longer than the dense layer"


def test_a_thin_spine_slows_every_all_reduce():
    ideal, _ = served(iteration(2, 4), 2, 4, 2048, 4)
    thin, _ = served(iteration(2, 4), 2, 4, 2048, 4, spine_rate=RATE / 4, policy="ecmp")

    assert thin.requests["first_token_s"][0] > 1.5 * ideal.requests["first_token_s"][0]
    assert thin.requests["num_generated"][0] == 4
