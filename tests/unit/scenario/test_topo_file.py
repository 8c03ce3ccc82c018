"""htsim's topology files: what they become, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scenario_texts import loaded, refusal

from sim.fabric.topology import link_ends
from sim.scenario.build import build
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_packets import packet_settings
from sim.simulate import simulate

TWO_TIERS = """\
# 12 hosts on three leaves; four uplinks a leaf, in pairs to two spines
nodes 12
TIERS 2
Podsize 12   # one pod

Tier 0
Downlink_speed_Gbps 100
Radix_Down 4
Radix_Up 4
Downlink_Latency_ns 500
Switch_Latency_ns 300
Oversubscribed 2

Tier 1
Downlink_speed_Gbps 50
Radix_Down 6
Bundle 2
Downlink_Latency_ns 1000
Switch_Latency_ns 701
"""
THREE_TIERS = """\
Nodes 36
Tiers 3
Podsize 12
Tier 0
Downlink_speed_Gbps 200
Radix_Down 2
Radix_Up 4
Downlink_Latency_ns 100
Switch_Latency_ns 40
Tier 1
Downlink_speed_Gbps 100
Radix_Down 12
Radix_Up 6
Bundle 2
Downlink_Latency_ns 200
Switch_Latency_ns 60
Oversubscribed 2
Tier 2
Downlink_speed_Gbps 100
Radix_Down 9
Bundle 3
Downlink_Latency_ns 1000
Switch_Latency_ns 80
"""
SCENARIO = """\
name: x
cluster:
  fabric: {kind: htsim, file: x.topo}
  host: {}
workloads:
  - {kind: traffic, name: one, pattern: matrix, file: one.csv}
"""


def folder_of(folder: Path, topo: str, flow: str = "0,4,1000000") -> Path:
    (folder / "x.topo").write_text(topo)
    (folder / "one.csv").write_text(f"source,destination,bytes\n{flow}\n")
    return folder


def scenario_of(folder: Path, topo: str, *overrides: str, flow: str = "0,4,1000000"):
    return loaded(folder_of(folder, topo, flow), SCENARIO, *overrides).variants[0][1]


def topology_of(folder: Path, topo: str, *overrides: str):
    return build_topology(scenario_of(folder, topo, *overrides).cluster)


def test_two_tiers_are_a_leaf_spine(tmp_path):
    t = topology_of(tmp_path, TWO_TIERS)
    assert (t.kind, t.num_accelerators, t.num_leaves, t.num_spines) == ("leaf_spine", 12, 3, 2)
    up = [i for i, direction in enumerate(t.link_direction) if direction == "up"]
    assert Counter(t.link_tier[i] for i in up) == {"host": 12, "leaf-spine": 3 * 2 * 2}
    assert {(t.link_tier[i], t.link_rate[i]) for i in up} == {("host", 12.5e9), ("leaf-spine", 6.25e9)}
    assert "leaf2->spine1.lane1" in t.link_name


def test_routes_keep_the_latencies_of_links_and_switches(tmp_path):
    """In a leaf 2 · 500 + 300; across 2 · 500 + 300 + 1000 + 701 + 1000 + 300 ns."""
    t = topology_of(tmp_path, TWO_TIERS)
    assert t.latency_s(np.array([0, 0]), np.array([3, 4])) == pytest.approx([1300e-9, 4301e-9], rel=1e-12)


def test_three_tiers_are_a_fat_tree(tmp_path):
    """3 pods of 6 leaves and 2 aggregations (4 uplinks in pairs); 6 uplinks in threes to 2 cores each: 4 cores."""
    t = topology_of(tmp_path, THREE_TIERS)
    up = [i for i, direction in enumerate(t.link_direction) if direction == "up"]
    assert Counter(t.link_tier[i] for i in up) == {"host": 36, "edge-aggregation": 18 * 4, "aggregation-core": 6 * 6}
    rates = {(t.link_tier[i], t.link_rate[i]) for i in up}
    assert rates == {("host", 25e9), ("edge-aggregation", 12.5e9), ("aggregation-core", 12.5e9)}
    assert "aggregation5->core3.lane2" in t.link_name and "edge17->aggregation5.lane1" in t.link_name
    assert [scope.num_paths for scope in t.scopes] == [1, 4, 4 * 6]


def test_three_tiers_keep_their_latencies(tmp_path):
    """In a leaf 2 · 100 + 40; in a pod 2 · 200 + 40 + 60 more; between pods 2 · 1000 + 60 + 80 more."""
    t = topology_of(tmp_path, THREE_TIERS)
    found = t.latency_s(np.zeros(3, np.int64), np.array([1, 2, 12]))
    assert found == pytest.approx([240e-9, 740e-9, 2880e-9], rel=1e-12)


def test_every_path_is_another_pair_of_links_and_spreads_evenly(tmp_path):
    """Between pods each of the 24 paths goes up by its own two links; a spread flow loads 4 and 12 of them evenly."""
    t = topology_of(tmp_path, THREE_TIERS)
    first = int(t.leaf_up[0, 2])
    links = [tuple(t.segment_link[t.segment_start[first + p] : t.segment_start[first + p + 1]]) for p in range(24)]
    assert len(set(links)) == 24
    for low, high in links:
        assert t.link_name[low].partition("->")[2].partition(".")[0] == t.link_name[high].partition("->")[0]
    spread = slice(t.segment_start[first + 24], t.segment_start[first + 25])
    shares = Counter(zip((t.link_tier[i] for i in t.segment_link[spread]), t.segment_share[spread], strict=True))
    assert shares == {("edge-aggregation", 1 / 4): 4, ("aggregation-core", 1 / 12): 12}


def test_each_link_of_a_way_begins_where_the_one_before_ended(tmp_path):
    t = topology_of(tmp_path, THREE_TIERS)

    def ends(segment):
        links = t.segment_link[t.segment_start[segment] : t.segment_start[segment + 1]]
        return [link_ends(t.link_name[i]) for i in links]

    for scope, there in ((1, 1), (2, 6)):
        for path in range(t.scopes[scope].num_paths):
            way = ends(t.leaf_up[0, scope] + path) + ends(t.leaf_down[there, scope] + path)
            assert [end[1] for end in way[:-1]] == [end[0] for end in way[1:]]
            assert (way[0][0], way[-1][1]) == ("edge0", f"edge{there}")


@pytest.mark.parametrize("fidelity", ["fluid", "packet"])
@pytest.mark.parametrize("policy", ["ecmp", "spray"])
def test_one_flow_takes_its_slowest_link_and_its_latency(tmp_path, fidelity, policy):
    """1 MB in 248 full packets and a short one, 1,000,000 + 249 · 64 B on the wire, from pod to pod.

    A single path has one uplink of 100 Gbit/s; a spread flow has several and is held up by its host's 200 Gbit/s.
    Packets also pass four switches one by one, each within a packet's time at 100 Gbit/s.
    """
    settings = (f"fidelity={fidelity}", f"paths.policy={policy}", "fluid.tolerance=0")
    result = simulate(scenario_of(tmp_path, THREE_TIERS, *settings, flow="0,12,1000000"), 1, "x")
    rate = 12.5e9 if policy == "ecmp" else 25e9
    least = (1_000_000 + 249 * 64) / rate + 2880e-9
    late = result.metrics["traffic.one.completion_time_s"] - least
    assert -1e-12 <= late <= (6 * 4096 / 12.5e9 if fidelity == "packet" else 1e-12)


@pytest.mark.parametrize("policy", ["ecmp", "multipath", "ethereal", "least_loaded"])
def test_both_fidelities_load_the_same_lanes(tmp_path, policy):
    (tmp_path / "x.topo").write_text(THREE_TIERS)
    shift = SCENARIO.partition("workloads")[0] + "workloads:\n"
    shift += "  - {kind: traffic, name: a, pattern: shift, size_per_flow: 100 kB, leaves_by: 7}\n"
    loads = []
    for fidelity in ("fluid", "packet"):
        scenario = loaded(tmp_path, shift, f"fidelity={fidelity}", f"paths.policy={policy}").variants[0][1]
        links = simulate(scenario, 1, "x").tables["links"]
        loads.append(links.sort_values("link").payload_bytes.to_numpy())
    assert loads[1] == pytest.approx(loads[0], abs=1)
    assert loads[0].sum() == pytest.approx(6 * 36 * 100_000)


def test_queue_sizes_that_are_all_the_same_are_the_buffers_of_packets(tmp_path):
    sizes = TWO_TIERS.replace("Radix_Up 4", "Radix_Up 4\nQueue_Up 90000\nqueue_down 90000")
    alike = sizes.replace("Bundle 2", "Bundle 2\nQueue_Down 90000")
    scenario = scenario_of(tmp_path, alike, "fidelity=packet")
    found = packet_settings(scenario, build_topology(scenario.cluster))
    assert (found.port_buffer_bytes, found.switch_buffer_bytes) == (90_000, None)
    assert build(scenario, 1).notes == ()
    own = scenario_of(tmp_path, alike, "fidelity=packet", "packet.buffer={per_port: 50 kB}")
    assert packet_settings(own, build_topology(own.cluster)).port_buffer_bytes == 50_000
    lossless = scenario_of(tmp_path, alike, "fidelity=packet", "packet.transport={kind: dcqcn}")
    assert packet_settings(lossless, build_topology(lossless.cluster)).port_buffer_bytes is None
    for has_own in (own, lossless):
        (note,) = build(has_own, 1).notes
        assert note == "x.topo: Queue_Up and Queue_Down are not used: packet.buffer or lossless links decide"
    (note,) = build(scenario_of(tmp_path, sizes, "fidelity=packet"), 1).notes
    assert note.startswith("x.topo: Queue_Up and Queue_Down are not used: they differ, or some are missing")
    assert build(scenario_of(tmp_path, sizes), 1).notes == ()


def test_queues_too_small_for_a_packet_are_refused(tmp_path):
    sizes = TWO_TIERS.replace("Radix_Up 4", "Radix_Up 4\nQueue_Up 4000\nqueue_down 4000").replace(
        "Bundle 2", "Bundle 2\nQueue_Down 4000"
    )
    folder = folder_of(tmp_path, sizes)
    assert "queues of 4000 B hold no packet of 4096 B" in refusal(folder, SCENARIO, "fidelity=packet")
    assert scenario_of(tmp_path, sizes, "fidelity=packet", "packet.pfc=true").imported_buffer_bytes is None


def test_lean_ports_do_not_pass_over_queues(tmp_path):
    sizes = TWO_TIERS.replace("Radix_Up 4", "Radix_Up 4\nQueue_Up 90000\nqueue_down 90000").replace(
        "Bundle 2", "Bundle 2\nQueue_Down 90000"
    )
    folder = folder_of(tmp_path, sizes)
    words = "lean ports have no limits, but the topology file gives queues; write ports: auto"
    assert words in refusal(folder, SCENARIO, "fidelity=packet", "packet.ports=lean")


def test_what_the_highest_tier_says_of_links_up_is_noted(tmp_path):
    extra = TWO_TIERS + "Radix_Up 8\nOversubscribed 3\nTier 2\nRadix_Down 5\n"
    assert build(scenario_of(tmp_path, extra), 1).notes == (
        "x.topo: Radix_Up and Oversubscribed of Tier 1 is not used: nothing is above it",
        "x.topo: Tier 2 is not used: there are 2",
    )


def test_single_links_of_it_may_differ_and_fail(tmp_path):
    one_is_slow = "cluster.fabric.links=[{link: leaf1-spine0.lane1, rate: 1 Gbit/s}]"
    t = topology_of(tmp_path, TWO_TIERS, one_is_slow, "faults=[{at: 1 us, link: leaf0-spine1, state: down}]")
    assert sorted(np.array(t.link_name)[t.link_rate == 0.125e9]) == ["leaf1->spine0.lane1", "spine0->leaf1.lane1"]
    folder = folder_of(tmp_path, TWO_TIERS)
    text = refusal(folder, SCENARIO, "cluster.fabric.links=[{link: leaf0-spine2, rate: 1 Gbit/s}]")
    assert "'leaf0-spine2': there is no spine2" in text


@pytest.mark.parametrize(
    ("topo", "old", "new", "words"),
    [
        (TWO_TIERS, "nodes 12\n", "", "has no line `Nodes N` before the first `Tier`"),
        (TWO_TIERS, "TIERS 2", "Tiers 4", "line 3: Tiers 4: a fat tree has 2 or 3"),
        (TWO_TIERS, "Podsize 12", "Podsize 6", "line 4: Podsize 6, but on two tiers every leaf reaches every spine"),
        (TWO_TIERS, "Podsize 12", "Podsize 5", "line 4: Nodes 12 is no multiple of Podsize 5"),
        (TWO_TIERS, "Podsize 12", "Podsize twelve", "line 4: 'twelve' is not a number for Podsize"),
        (TWO_TIERS, "Podsize 12", "Podsize 12 13", "line 4: 'Podsize 12 13': write `Podsize N`"),
        (TWO_TIERS, "Podsize 12", "Podsize 0", "line 4: Podsize 0: give at least 1"),
        (TWO_TIERS, "Tier 0", "Tier 3", "line 6: Tier 3: tiers are 0, 1 and 2"),
        (TWO_TIERS, "Tier 0", "", "line 7: Downlink_speed_Gbps stands before the first `Tier`; move it below"),
        (TWO_TIERS, "Radix_Down 4", "Nodes 12", "line 8: Nodes belongs before the first `Tier`"),
        (TWO_TIERS, "Radix_Down 4", "Radix_Dwn 4", "line 8: unknown key 'Radix_Dwn'; did you mean 'Radix_Down'?"),
        (TWO_TIERS, "Radix_Down 4\n", "", "Tier 0 has no Radix_Down; add a line `Radix_Down N` to it"),
        (TWO_TIERS, "Radix_Up 4\n", "", "Tier 0 has no Radix_Up"),
        (TWO_TIERS, "Downlink_Latency_ns 1000\n", "", "Tier 1 has no Downlink_Latency_ns"),
        (TWO_TIERS, "Radix_Up 4", "Radix_Up 4\nRadix_Up 2", "line 10: Radix_Up is given twice (line 9); keep one"),
        (TWO_TIERS, "Radix_Up 4", "Radix_Up 4\nBundle 2", "line 10: Bundle 2: a host has one link to its leaf"),
        (TWO_TIERS, "Radix_Down 4", "Radix_Down 5", "line 8: Radix_Down 5: Podsize 12 is no multiple of it"),
        (TWO_TIERS, "Bundle 2", "Bundle 3", "line 9: Radix_Up 4 is no multiple of Tier 1's Bundle 3"),
        (TWO_TIERS, "Bundle 2", "Bundle 1", "line 16: Radix_Down 6, but it reaches 3 leaves of a pod; write"),
        (
            TWO_TIERS, "Downlink_speed_Gbps 50", "Downlink_speed_Gbps 25",
            "line 12: Oversubscribed 2, but 4 links down at 100 Gbit/s and 4 up at 25 Gbit/s make 4; write Over",
        ),
        (
            TWO_TIERS, "Oversubscribed 2\n", "",
            "line 9: Oversubscribed is left out, which means 1, but 4 links down at 100 Gbit/s and 4 up at 50 "
            "Gbit/s make 2; write Oversubscribed 2",
        ),
        (THREE_TIERS, "Oversubscribed 2", "Oversubscribed 3", "line 17: Oversubscribed 3, but 12 links down"),
        (
            THREE_TIERS, "Radix_Down 9", "Radix_Down 8",
            "line 20: Radix_Down 8, but it reaches 3 pods on 3 links each; write Radix_Down 9",
        ),
        (THREE_TIERS, "Tier 2\n", "Tier 1\n", "line 19: Downlink_speed_Gbps is given twice (line 11)"),
        (TWO_TIERS.replace("TIERS 2", "Tiers 3"), "", "", "has no section `Tier 2`, but Tiers 3; add one"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, topo, old, new, words):
    folder = folder_of(tmp_path, topo.replace(old, new, 1) if old else topo)
    text = refusal(folder, SCENARIO)
    assert text.startswith("scenario.yaml:3: cluster.fabric.file: x.topo") and words in text


def test_a_fabric_that_is_too_large_is_refused(tmp_path):
    """100,000 leaves of one host on 100,000 spines each are more links than fit."""
    n = 100_000
    topo = f"Nodes {n}\nTiers 2\nPodsize {n}\nTier 0\nDownlink_speed_Gbps 1\nRadix_Down 1\nRadix_Up {n}\n"
    topo += f"Downlink_Latency_ns 1\nTier 1\nDownlink_speed_Gbps 1\nRadix_Down {n}\nDownlink_Latency_ns 1\n"
    topo = topo.replace("Gbps 1", f"Gbps {n}", 1)  # one link of a host carries as much as a leaf's uplinks
    assert "leaf-spine links are more than" in refusal(folder_of(tmp_path, topo), SCENARIO)


def test_the_schema_has_it(tmp_path):
    from sim.scenario.load import json_schema

    described = json_schema()["$defs"]["Htsim"]["properties"]
    assert described["kind"]["const"] == "htsim" and set(described) == {"kind", "file", "links"}
