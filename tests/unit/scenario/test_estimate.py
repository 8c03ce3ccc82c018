"""What a run is said to cost is what it then costs."""

from pathlib import Path

import pytest

from sim.scenario import build
from sim.scenario.errors import Refused
from sim.scenario.estimate import Estimate, check_cost, estimate
from sim.scenario.load import load_scenario
from sim.simulate import simulate

LEAF_SPINE = """
    kind: leaf_spine
    leaves: 2
    hosts_per_leaf: 2
    spines: 2
    host_link: {rate: 100 Gbit/s, latency: 500 ns}
    spine_link: {rate: 100 Gbit/s, latency: 500 ns}
"""
FAT_TREE = """
    kind: fat_tree
    pods: 2
    edges_per_pod: 2
    aggregations_per_pod: 2
    cores: 2
    hosts_per_edge: 1
    host_link: {rate: 100 Gbit/s, latency: 500 ns}
    edge_link: {rate: 100 Gbit/s, latency: 500 ns}
    core_link: {rate: 100 Gbit/s, latency: 500 ns}
"""


def loaded(tmp_path: Path, fabric: str, host: str, fidelity: str = "packet"):
    path = tmp_path / "scenario.yaml"
    path.write_text(
        f"name: x\nfidelity: {fidelity}\nseeds: 3\ncluster:\n  fabric:{fabric}  host: {host}\nworkloads:\n"
        "  - {kind: traffic, name: a, pattern: all_to_all, size_per_flow: 50 kB, repeat: 2}\n"
        "  - {kind: collective, name: b, operation: all_reduce, algorithm: ring, size: 100 kB}\n"
    )
    return load_scenario(path, [], False, None, None)


@pytest.mark.parametrize("fabric", [LEAF_SPINE, FAT_TREE], ids=["leaf-spine", "fat tree"])
@pytest.mark.parametrize("host", ["{accelerators: 1}", "{accelerators: 2}"])
def test_packet_hops_are_counted_beforehand(tmp_path, fabric, host, monkeypatch):
    scenario = loaded(tmp_path, fabric, host)
    found = estimate(scenario)
    assert not found.is_least
    built = []
    real = build.build
    monkeypatch.setattr(build, "build", lambda *a: built.append(real(*a)) or built[-1])
    result = simulate(scenario.variants[0][1], 1, "x")
    assert 3 * built[0].fabric.num_packet_hops == found.packet_hops
    assert result.metrics["traffic.a.reorder.max_displacement"] == 0


def test_fluid_has_no_packets_and_background_no_end(tmp_path):
    fluid = loaded(tmp_path, LEAF_SPINE, "{accelerators: 1}", "fluid")
    found = estimate(fluid)
    assert found == Estimate(3 * (2 * 12 + 24), 0, False)
    assert str(found) == "144 messages"


def test_what_costs_too_much_is_refused_with_what_would_fit():
    check_cost(Estimate(1, 10**9, False), None)
    check_cost(Estimate(1, 10**12, False), 1e12)
    with pytest.raises(Refused, match=r"4e\+09 packet-hops \(17 minutes .* 50% of its bytes or seeds would fit"):
        check_cost(Estimate(1, 4 * 10**9, False), None)


def test_auto_counts_what_may_follow_apart_from_what_is_certain(tmp_path):
    """Three seeds of fluid that may all run again; where only packets can express a variant, that is certain."""
    in_packets = estimate(loaded(tmp_path, LEAF_SPINE, "{accelerators: 1}")).packet_hops
    scenario = loaded(tmp_path, LEAF_SPINE, "{accelerators: 1}", "auto")
    found = estimate(scenario)
    assert (found.packet_hops, found.escalation_hops) == (0, in_packets)
    assert "; where fluid is not enough, up to " in str(found)
    check_cost(found, most_packet_hops=1)
    path = tmp_path / "scenario.yaml"
    certain = estimate(load_scenario(path, ["paths.policy=spray_random"], False, None, None))
    assert (certain.packet_hops, certain.escalation_hops) == (in_packets, 0)
    with pytest.raises(Refused):
        check_cost(certain, most_packet_hops=1)
