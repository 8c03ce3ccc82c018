"""Laws of the fluid fabric while links fail and come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric.faults import Fault, Faults
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.link_sets import links_named, links_of_host, links_of_switch
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, fat_tree, leaf_spine

POLICIES = ("ideal", "ecmp", "spray", "ethereal", "wrap_around", "least_loaded", "multipath")
LINK = Link(12.5e9, 500e-9)


@st.composite
def cases(draw):
    faults = st.tuples(
        st.integers(0, 10**6),  # which link, switch or host
        st.floats(0, 1e-3),
        st.floats(1e-6, 4e-3),
        st.sampled_from([None, None, 1e9]),
        st.none(),  # no packets to lose
    )
    return {
        "is_tree": draw(st.booleans()), "leaves": draw(st.integers(1, 3)), "hosts": draw(st.integers(2, 3)),
        "spines": draw(st.integers(1, 3)), "lanes": draw(st.integers(1, 2)), "planes": draw(st.integers(1, 2)),
        "policy": draw(st.sampled_from(POLICIES)), "seed": draw(st.integers(0, 1000)), "num": draw(st.integers(1, 40)),
        "faults": draw(st.lists(faults, min_size=1, max_size=4)), "tolerance": draw(st.sampled_from([0.0, 1e-3])),
        "convergence_s": draw(st.sampled_from([0.0, 0.3e-3, 3e-3])),
    }  # fmt: skip


def topology_of(case):
    if case["is_tree"]:
        return fat_tree(pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=2 * case["lanes"],
                        hosts_per_edge=case["hosts"], host_link=LINK, edge_link=LINK, core_link=LINK,
                        hosts=[HostKind(4 * case["hosts"])])  # fmt: skip
    return leaf_spine(leaves=case["leaves"], spines=case["spines"], hosts_per_leaf=case["hosts"], host_link=LINK,
                      spine_link=LINK, hosts=[HostKind(case["leaves"] * case["hosts"])], lanes=case["lanes"],
                      planes=case["planes"])  # fmt: skip


def things(topology):
    """Every set of links that a fault can be about."""
    ends = [name.rpartition("/")[2].partition(".lane")[0].replace("->", "-") for name in topology.link_name]
    switches = {end for name in ends for end in name.split("-") if not end.startswith("host")}
    found = [links_named(topology, name) for name in sorted(set(ends))]
    found += [links_of_switch(topology, name) for name in sorted(switches)]
    found += [links_of_host(topology, host) for host in range(topology.num_hosts)]
    return [links for links in found if links]


def begin(case, fabric, most_bytes, within_s):
    """(the faults, the transfer) of a case, whose faults are (which, at_s, lasts_s, rate, loss); some messages wait for
    others."""
    known = things(fabric.topology)
    faults = [
        Fault(f"fault {i}", known[which % len(known)], rate, at_s, at_s + lasts_s, loss)
        for i, (which, at_s, lasts_s, rate, loss) in enumerate(case["faults"])
    ]
    Faults(fabric.clock, fabric, faults, case["convergence_s"]).start()
    rng = np.random.default_rng(case["seed"])
    n = fabric.topology.num_accelerators
    source = rng.integers(0, n, case["num"])
    destination = (source + 1 + rng.integers(0, n - 1, case["num"])) % n
    tail = np.arange(0, case["num"] - 1, 3)
    graph = message_graph(
        source, destination, rng.integers(0, most_bytes, case["num"]), edges=(tail, tail + 1),
        earliest_s=rng.random(case["num"]) * within_s, queue_pairs=rng.integers(1, 3, case["num"]),
    )  # fmt: skip
    return faults, fabric.start(graph)


def run(case):
    settings = FluidSettings(tolerance=case["tolerance"])
    fabric = FluidFabric(Clock(), topology_of(case), case["policy"], settings=settings, seed=case["seed"])
    return fabric, *begin(case, fabric, 3_000_000, 1e-3)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_every_byte_arrives_once_all_is_repaired_and_nothing_crosses_a_dead_link(case):
    fabric, faults, transfer = run(case)
    over_dead = []

    def watch(fault):
        yield fabric.clock.timeout(fault.at_s)
        yield fabric.clock.timeout(0)  # after what else happens at that instant
        before = fabric.link_bytes()[1][list(fault.links)]
        yield fabric.clock.timeout((fault.until_s - fabric.clock.now) * (1 - 1e-9))
        over_dead.append(np.abs(fabric.link_bytes()[1][list(fault.links)] - before).max())

    for fault in faults:
        if fault.rate_bytes_per_s is None:
            fabric.clock.process(watch(fault))
    fabric.clock.run(until=transfer.done)
    fabric.check_conservation()
    results = transfer.results
    assert np.array_equal(results.delivered_bytes, transfer.graph.size_bytes)
    assert (results.started_s < results.received_s).all()
    if case["tolerance"] == 0:
        assert max(over_dead, default=0) == pytest.approx(0, abs=1e-3)
    _, utilisation = fabric.link_series()
    assert utilisation.max() <= 1 + 1e-6 + case["tolerance"]


@settings(max_examples=20, deadline=None)
@given(cases())
def test_the_same_seed_gives_the_same_bits(case):
    results = []
    for _ in range(2):
        fabric, _, transfer = run(case)
        fabric.clock.run(until=transfer.done)
        results.append((transfer.results.received_s.tobytes(), fabric.moved_bytes.tobytes()))
    assert results[0] == results[1]
