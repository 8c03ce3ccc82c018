"""Faults of a scenario: what is read, what is refused, and what comes out at the other end."""

import pytest
from scenario_texts import CLUSTER, changed, loaded, refusal

from sim.scenario import build
from sim.scenario.errors import ScenarioError
from sim.simulate import StalledError, simulate

TRAFFIC = "workloads:\n  - {kind: traffic, name: a, pattern: all_to_all, size_per_flow: 1 MB}\n"
TREE = ("kind: leaf_spine, leaves: 4, spines: 2, hosts_per_leaf: 2",
        "kind: fat_tree, pods: 2, edges_per_pod: 2, aggregations_per_pod: 2, cores: 4, hosts_per_edge: 2",
        "spine_link: {rate: 400 Gbit/s, latency: 500 ns}",
        "edge_link: {rate: 400 Gbit/s, latency: 500 ns}, core_link: {rate: 400 Gbit/s, latency: 500 ns}")  # fmt: skip
PLANES = ("spines: 2", "spines: 2, planes: 2, lanes: 2")


def with_faults(*faults, cluster=CLUSTER, extra=""):
    return cluster + TRAFFIC + "faults:\n" + "".join(f"  - {{{fault}}}\n" for fault in faults) + extra


def built(folder, *faults, **options):
    """The built faults of a scenario that is in order."""
    found = loaded(folder, with_faults(*faults, **options))
    build.check(found)
    return build.build(found.variants[0][1], 1).faults


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("at: 0 s, link: leaf0-spine9, state: down", "faults[0].link: 'leaf0-spine9': there is no spine9, spines are"),
        ("at: 0 s, link: leaf0, state: down", "no link is named 'leaf0'; names are like 'host0-leaf0' and"),
        ("at: 0 s, switch: spine2, state: down", "there is no spine2; there are leaf0 … leaf3 and spine0 … spine1"),
        ("at: 0 s, switch: core0, state: down", "no switch is named 'core0'; there are leaf0 … leaf3 and spine0"),
        ("at: 0 s, switch: plane0/spine0, state: down", "there is one plane only; leave plane0/ out"),
        ("at: 0 s, host: 8, rate: 1 Gbit/s", "faults[0].host: there is no host 8; hosts are 0 … 7"),
        ("at: 0 s, host: -1, rate: 1 Gbit/s", "'-1' must be at least 0"),
        ("at: 0 s, state: down", "a fault is about one link, one switch, one host or one replica, here none"),
        ("at: 0 s, link: leaf0-spine0, host: 0, state: down", "here link and host; make it one entry each"),
        ("at: 0 s, link: leaf0-spine0", "a fault changes one thing, here nothing; give a rate, or state: down"),
        ("at: 0 s, link: leaf0-spine0, state: down, rate: 1 Gbit/s", "here rate and state"),
        ("at: 0 s, link: leaf0-spine0, state: up", "unknown state 'up'"),
        ("at: 0 s, switch: leaf0, rate: 1 Gbit/s", "a switch can only be down; write state: down, or name its links"),
        ("at: 0 s, host: 0, loss: 0.1", "loss is a property of a link"),
        ("at: 0 s, link: leaf0-spine0, loss: 0.001", "fluid has no packets to lose; give the link a lower rate"),
        ("at: 0 s, link: leaf0-spine0, rate: 0 Gbit/s", "must be above 0"),
        ("at: 2 ms, link: leaf0-spine0, state: down, until: 1 ms", "faults[0].until: it ends before it begins"),
        ("at: 2, link: leaf0-spine0, state: down", "'2' has no unit"),
        ("link: leaf0-spine0, state: down", "faults[0].at: "),
    ],
)
def test_what_is_refused(tmp_path, fault, words):
    assert words in refusal(tmp_path, with_faults(fault))


def test_lean_ports_have_no_faults(tmp_path):
    fault = "at: 0 s, link: leaf0-spine0, loss: 0.001"
    found = refusal(tmp_path, with_faults(fault, extra="fidelity: packet\npacket: {ports: lean}\n"))
    assert "packet.ports: lean ports lose nothing, but links fail in this run; write ports: auto" in found


def test_packets_have_faults_on_full_ports(tmp_path):
    fault = "at: 0 s, link: leaf0-spine0, loss: 0.001"
    found = loaded(tmp_path, with_faults(fault, extra="fidelity: packet\n"))
    simulation = build.build(found.variants[0][1], 1)
    assert simulation.fabric.is_full
    (lossy,) = simulation.faults.faults
    assert lossy.loss == 0.001 and not lossy.is_down and lossy.what == "leaf0-spine0 loses 0.1 %"


def test_a_rate_that_is_no_lower_is_refused(tmp_path):
    found = loaded(tmp_path, with_faults("at: 0 s, host: 3, rate: 400 Gbit/s"))
    with pytest.raises(ScenarioError, match=r"scenario.yaml:9: faults\[0\].rate: host3 carries .* give a lower rate"):
        build.check(found)


def test_names_mean_links_in_both_directions(tmp_path):
    faults = built(tmp_path, "at: 1 ms, link: leaf0-spine1, rate: 100 Gbit/s, until: 50 ms",
                   "at: 0 s, switch: spine0, state: down", "at: 0 s, host: 1, rate: 100 Gbit/s")  # fmt: skip
    slow, spine, host = faults.faults
    names = faults.fabric.topology.link_name
    assert [names[i] for i in slow.links] == ["leaf0->spine1", "spine1->leaf0"]
    assert (slow.at_s, slow.until_s, slow.rate_bytes_per_s) == (1e-3, 50e-3, 12.5e9)
    assert len(spine.links) == 8 and spine.rate_bytes_per_s is None and spine.until_s is None
    assert [names[i] for i in host.links] == ["host1->leaf0", "leaf0->host1"]
    assert faults.convergence_s == 10e-3


def test_names_in_planes_and_in_trees(tmp_path):
    cluster = changed(CLUSTER, *PLANES)
    faults = built(tmp_path, "at: 0 s, switch: plane1/spine0, state: down", "at: 0 s, switch: leaf0, state: down",
                   "at: 0 s, link: plane0/leaf0-spine0.lane1, state: down", cluster=cluster)  # fmt: skip
    assert [len(fault.links) for fault in faults.faults] == [4 * 2 * 2, 2 * (2 * 2 * 2 + 2 * 2), 2]
    assert "there is no plane2, planes are 0 … 1" in refusal(
        tmp_path, with_faults("at: 0 s, switch: plane2/spine0, state: down", cluster=cluster)
    )
    tree = changed(CLUSTER, *TREE)
    faults = built(tmp_path, "at: 0 s, switch: edge1, state: down", "at: 0 s, switch: aggregation3, state: down",
                   "at: 0 s, switch: core0, state: down", cluster=tree)  # fmt: skip
    assert [len(fault.links) for fault in faults.faults] == [2 * (2 + 2), 2 * (2 + 2), 2 * 2]
    sentence = "there are edge0 … edge3 and aggregation0 … aggregation3 and core0 … core3"
    assert sentence in refusal(tmp_path, with_faults("at: 0 s, switch: leaf0, state: down", cluster=tree))


def test_convergence_belongs_to_the_paths(tmp_path):
    text = with_faults("at: 0 s, switch: spine0, state: down", extra="paths: {policy: spray, convergence: 50 ms}\n")
    assert build.build(loaded(tmp_path, text).variants[0][1], 1).faults.convergence_s == 50e-3


def test_a_partition_without_repair_stops_by_itself_and_names_the_flow_and_the_link(tmp_path):
    text = with_faults("at: 10 us, host: 7, state: down")
    with pytest.raises(StalledError, match=r"nothing moves at .*a: message \d+ \(.*cannot move, leaf3->host7 is down"):
        simulate(loaded(tmp_path, text).variants[0][1], 1, "run")
    # Cut while others are still moving: what is held up comes first.
    result = simulate(loaded(tmp_path, text + "max_time: 1 ms\n").variants[0][1], 1, "run")
    assert any("cannot move" in warning for warning in result.notes["warnings"])


def test_the_dead_link_is_named_before_all_who_wait_behind(tmp_path):
    """The last host of a ring dies: most messages wait for inputs, and come first in the graph."""
    ring = "workloads:\n  - {kind: collective, name: a, operation: all_reduce, algorithm: ring, size: 64 MB}\n"
    text = CLUSTER + ring + "faults:\n  - {at: 10 us, host: 7, state: down}\n"
    first = r"nothing moves at [^:]*: a: message \d+ \([^)]*\) cannot move, \S*host7\S* is down"
    with pytest.raises(StalledError, match=first):
        simulate(loaded(tmp_path, text).variants[0][1], 1, "run")


def test_a_run_has_a_table_of_its_faults(tmp_path):
    text = with_faults("at: 10 us, link: leaf0-spine0, state: down, until: 20 ms", "at: 9 s, host: 0, state: down")
    for policy in ("ecmp", "ethereal", "spray"):
        scenario = loaded(tmp_path, text, f"paths={{policy: {policy}}}").variants[0][1]
        results = [simulate(scenario, 1, "run") for _ in range(2)]
        tables = [{name: frame.to_json() for name, frame in result.tables.items()} for result in results]
        assert tables[0] == tables[1] and results[0].metrics == results[1].metrics
        (row,) = results[0].tables["faults"].to_dict("records")
        assert row["what"] == "leaf0-spine0 down" and row["flows_affected"] > 0 and row["moved_bytes"] > 0
        assert "host0 down: begins at 9 s, but the run ended before" in results[0].notes["warnings"]
        assert results[0].notes["faults"] == [row]
