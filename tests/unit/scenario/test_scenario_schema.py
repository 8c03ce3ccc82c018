"""What a scenario may say, workload by workload, and what is impossible."""

import pytest
from scenario_texts import CLUSTER, SERVING, changed, loaded, refusal

from sim.scenario.cluster import Cluster
from sim.scenario.load import json_schema


def traffic(**fields):
    """One traffic workload on 8 hosts of 4 accelerators, on 4 leaves."""
    fields = {"kind": "traffic", "name": "t", **fields}
    return (
        CLUSTER + "workloads:\n  - {" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}\n"
    )


def collective(**fields):
    return traffic(**{"kind": "collective", "operation": "all_reduce", "size": "1 MB", **fields})


def only(found):
    (workload,) = found.variants[0][1].workloads
    return workload


@pytest.mark.parametrize(
    ("ranks", "ids"),
    [
        ("all", None),
        ("4", (0, 1, 2, 3)),
        ("'0-2'", (0, 1, 2)),
        ("[3, 1]", (3, 1)),
        ("'0-1, 8-9'", (0, 1, 8, 9)),
        ("0-1", (0, 1)),
    ],
)
def test_ranks(tmp_path, ranks, ids):
    found = loaded(tmp_path, traffic(pattern="all_to_all", size_per_flow="1 MB", ranks=ranks))
    assert only(found).ranks == ids
    assert found.variants[0][1].ranks_of(only(found)) == (ids or tuple(range(32)))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ("0", "'0' is no number of ranks"),
        ("-3", "is no number of ranks"),
        ("1.5", "names no ranks"),
        ("true", "names no ranks"),
        ("'3-1'", "the range 3-1 is empty; write 1-3"),
        ("[1, 1]", "rank 1 is given twice"),
        ("[a]", "is no accelerator id"),
        ("'0-1,1'", "rank 1 is given twice"),
        ("[]", "names no ranks"),
        ("some", "names no ranks"),
        ("{a: 1}", "names no ranks"),
        ("40", "rank 32 is not in the cluster, whose accelerators are 0 … 31"),
        ("[5]", "one rank has nobody to talk to"),
        ("'0-999999999'", "more than 1048576 ranks"),
        ("'" + "0-999999," * 50 + "1'", "more than 1048576 ranks"),
    ],
)
def test_ranks_that_are_refused(tmp_path, ranks, words):
    assert words in refusal(tmp_path, traffic(pattern="all_to_all", size_per_flow="1 MB", ranks=ranks))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"pattern": "incast", "fan_in": 32},
            "workloads.t.fan_in: fan_in is 32, but only 31 other ranks can send",
        ),
        ({"pattern": "incast", "receiver": 32}, "receiver 32 is not among the ranks, 0 … 31"),
        ({"pattern": "shift", "leaves_by": 4}, "a shift by 4 among 4 leaves leads back to the own leaf"),
        ({"pattern": "shift", "ranks": 9}, "but leaf 1 has 1 and leaf 0 has 8"),
        (
            {"pattern": "permutation", "ranks": 10},
            "leaf 0 has 8 of 10 ranks, so not every pair can cross leaves",
        ),
        ({"pattern": "all_to_all", "size_per_flow": "0 B"}, "'0 B' must be above 0"),
        ({"pattern": "all_to_all", "jitter": "-1 us"}, "'-1 us' is negative"),
        ({"pattern": "all_to_all", "queue_pairs": 0}, "'0' must be at least 1"),
        ({"pattern": "all_to_all", "cross_leaf": "true"}, "unknown key 'cross_leaf'"),
        ({"pattern": "all_to_all", "fan_inn": 3}, "unknown key 'fan_inn'"),
        ({"pattern": "permutation", "cross_leaf": "maybe"}, "'maybe' is neither true nor false"),
        ({"pattern": "shift", "repeat": "3.0"}, "'3.0' is no whole number"),
        ({"pattern": "shift", "name": "a.b"}, "'a.b' is no name"),
        ({"pattern": "shift", "name": "3"}, "'3' is not text; put it in quotes"),
    ],
)
def test_traffic_that_is_refused(tmp_path, fields, words):
    assert words in refusal(tmp_path, traffic(**{"size_per_flow": "1 MB", **fields}))


@pytest.mark.parametrize(
    "sizes",
    [
        "{law: fixed, size: 1 MB}",
        "{law: uniform, low: 1 kB, high: 1 MB}",
        "{law: lognormal, mean: 1 MB, sigma: 0.5}",
        "{law: pareto, mean: 1 MB, shape: 1.2}",
    ],
)
def test_poisson_sizes(tmp_path, sizes):
    found = only(loaded(tmp_path, traffic(pattern="poisson", load=0.5, duration="1 ms", sizes=sizes)))
    assert found.sizes.law in sizes and found.duration_s == 1e-3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"sizes": "{law: uniform, low: 2 MB, high: 1 MB}"},
            "workloads.t.sizes.low: low is 2000000 B, above high",
        ),
        ({"sizes": "{law: pareto, mean: 1 MB, shape: 1}"}, "'1' must be above 1"),
        ({"sizes": "{law: parreto}"}, "unknown law 'parreto'; did you mean 'pareto'?"),
        ({"sizes": "{law: file, file: absent.txt}"}, "there is no file 'absent.txt'"),
        ({"sizes": "1 MB"}, "workloads.t.sizes: '1 MB' is not a mapping"),
        ({"load": "0"}, "'0' must be above 0"),
        ({"load": "'50'"}, "'50' is no number"),
        ({"duration": "0 s"}, "'0 s' must be above 0"),
        ({"duration": "5"}, "'5' has no unit; write for example '500 ns'"),
        ({"duration": "0"}, "'0' has no unit; write '0 s'"),
    ],
)
def test_poisson_that_is_refused(tmp_path, fields, words):
    fields = {
        "pattern": "poisson",
        "load": 0.5,
        "duration": "1 ms",
        "sizes": "{law: fixed, size: 1 MB}",
        **fields,
    }
    assert words in refusal(tmp_path, traffic(**fields))


def test_an_operation_has_a_usual_algorithm(tmp_path):
    assert only(loaded(tmp_path, collective())).algorithm == "ring"
    assert only(loaded(tmp_path, collective(operation="all_to_all"))).algorithm == "direct"
    assert only(loaded(tmp_path, collective(algorithm="halving_doubling"))).algorithm == "halving_doubling"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"algorithm": "halving_doubling", "ranks": 12},
            "needs a power of two of ranks, got 12; use 8, or algorithm: ring",
        ),
        ({"algorithm": "rng"}, "workloads.t.algorithm: unknown algorithm 'rng'; did you mean 'ring'?"),
        ({"operation": "all_to_all", "algorithm": "ring"}, "all_to_all has no algorithm 'ring'"),
        ({"operation": "allreduce"}, "unknown operation 'allreduce'; did you mean 'all_reduce'?"),
        ({"chunk": "1 MB"}, "all_reduce with ring takes no chunk; all_reduce with double_binary_tree"),
        ({"hierarchical": "true", "ranks": 6}, "host 1 has 2 and host 0 has 4"),
        ({"hierarchical": "true", "operation": "broadcast"}, "broadcast has no hierarchical form"),
        (
            {"hierarchical": "true", "algorithm": "halving_doubling", "ranks": 12},
            "needs a power of two of hosts, got 3",
        ),
        ({"kind": "training", "compute": "1 ms"}, "every workload runs until the others end"),
        ({"kind": "training"}, "workloads.t.compute: is missing; write for example `compute: 500 ns`"),
    ],
)
def test_collectives_that_are_refused(tmp_path, fields, words):
    assert words in refusal(tmp_path, collective(**fields))


def test_training_ends_with_steps_or_with_the_run(tmp_path):
    assert not only(loaded(tmp_path, collective(kind="training", compute="1 ms", steps=3))).is_endless
    endless = collective(kind="training", compute="1 ms")
    assert only(loaded(tmp_path, endless + "max_time: 1 s\n")).is_endless


def test_serving_defaults(tmp_path):
    found = loaded(tmp_path, CLUSTER + SERVING)
    chat = only(found)
    assert chat.batching.policy == "chunked_prefill" and chat.batching.max_num_batched_tokens == 2048
    assert chat.kv.block_size == 16 and chat.precision.weights is None
    assert chat.arrivals.rate_per_s == 4.0 and chat.host_time_s == 0.0
    assert found.variants[0][1].ranks_of(chat) == (0,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model=llama-3.1-8"], "unknown model 'llama-3.1-8'; did you mean 'llama-3.1-8b'?"),
        (
            ["model=./config.json"],
            "there is no file './config.json' neither in",
        ),
        (["model=3"], "'3' is no model"),
        (["arrivals.rate=4"], "'4' has no unit; write for example '5 /s'"),
        (["arrivals.rate=4 ms"], "is a time, but a frequency is needed"),
        (["arrivals.kind=trace"], "arrivals: trace needs a trace"),
        (["arrivals={kind: burst}"], "unknown kind 'burst'; choose one of poisson, gamma, constant, trace"),
        (["lengths="], "lengths are missing, and there is no trace to take them from"),
        (["num_requests="], "arrivals have no end; give num_requests or duration"),
        (
            ["replicas=33"],
            "33 replicas of 1 accelerator (tensor 1, expert 1) need 33, but the cluster has 32; have fewer",
        ),
        (["parallelism={tensor: 8}", "batching.preemption=swap"], "blocks are not swapped with tensor-parallel ranks"),
        (["parallelism={tensor: 8, expert: 16}"], "experts do not lie on ranks of their own with tensor-"),
        (
            ["parallelism={tensor: 4, expert: 6}"],
            "expert degree 6 must be 1 or a multiple of tensor degree 4",
        ),
        (["ranks=3"], "need 1, but ranks are 3"),
        (["ranks=[1, 2, 3, 4]", "parallelism.tensor=4"], "ranks 1 … 4 lie on several hosts, 3 and 1 in turn"),
        (["kv.memory_fraction=0"], "'0' must be above 0"),
        (["kv.memory_fraction=110 %"], "must be at most 1"),
        (["batching.policy=chunked"], "did you mean 'chunked_prefill'?"),
        (["batching.max_num_batched_tokens=100"], "not every running request could decode"),
        (["experts.popularity=zipf"], "alpha goes with popularity: zipf"),
        (["experts.alpha=1"], "alpha goes with popularity: zipf"),
        (["lengths.input={law: uniform, low: 5, high: 4}"], "low is 5, above high"),
        (["trace={file: absent.csv}"], "there is no file 'absent.csv'"),
        (["trace={file: scenario.yaml, from: 2 s, until: 1 s}"], "until is not after from"),
        (["precision.kv=int8"], "unknown kv 'int8'"),
        (["batching.policy=priority"], "priority orders requests by their tenants, and there are none"),
        (["kv.swap_space=1 GiB"], "swap_space goes with batching.preemption: swap"),
        (["batching.preemption=swap", "parallelism.expert=2"], "use preemption: recompute"),
        (["batching.policy=batchllm", "kv.prefix_caching=false"], "batchllm shares prefixes"),
        (["batching.speculative={num_tokens: 3, acceptance: 1.1}"], "must be at most 1"),
        (["batching.speculative={num_tokens: 3, acceptance: 0.7, draft: {kind: model}}"], "cost"),
        (
            ["batching.speculative={num_tokens: 3, acceptance: 0.7}", "batching.policy=orca"],
            "orca computes one token of each running request; with speculative use chunked_prefill",
        ),
        (
            ["batching.speculative={num_tokens: 3, acceptance: 0.7}", "batching.async_scheduling=true"],
            "use async_scheduling: false",
        ),
        (["router.policy=random"], "choose one of round_robin, least_outstanding, power_of_two"),
    ],
)
def test_serving_that_is_refused(tmp_path, settings, words):
    assert words in refusal(
        tmp_path, CLUSTER + SERVING, *[f"workloads.chat.{setting}" for setting in settings]
    )


OTHER = SERVING.partition("\n")[2].replace("name: chat", "name: code")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "workloads.code.ranks: accelerator 0 serves 'chat' too, and each would take all of its memory"),
        ([], "give it its own, for example ranks: [1]"),
        (["chat.parallelism.tensor=4", "code.parallelism.tensor=4"], "for example ranks: '4-7'"),
        (["chat.replicas=32", "chat.ranks=all"], "give each its own ranks, and the cluster room for 1 more"),
        (["chat.replicas=2", "code.ranks=[1]"], "accelerator 1 serves 'chat' too"),
    ],
)
def test_serving_workloads_do_not_share_accelerators(tmp_path, settings, words):
    text = CLUSTER + SERVING + OTHER
    assert words in refusal(tmp_path, text, *[f"workloads.{setting}" for setting in settings])


def test_serving_workloads_side_by_side_and_under_traffic(tmp_path):
    text = CLUSTER + SERVING + OTHER + "  - {kind: traffic, name: t, pattern: all_to_all, size_per_flow: 1 MB}\n"
    found = loaded(tmp_path, text, "workloads.code.ranks=[1]").variants[0][1]
    assert [len(found.ranks_of(w)) for w in found.workloads] == [1, 1, 32]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("spines: 2", "spines: 0", "cluster.fabric.spines: '0' must be at least 1"),
        ("spines: 2", "spines: -1", "'-1' must be at least 1"),
        ("leaves: 4", "leaves: 3, attach: rail", None),
        ("leaves: 4", "leaves: 1000000, lanes: 90", "leaf-spine links are more than"),
        ("kind: leaf_spine", "kind: leafspine", "did you mean 'leaf_spine'?"),
        ("kind: leaf_spine, ", "", "cluster.fabric.kind: is missing; choose one of leaf_spine, fat_tree"),
        ("rate: 400 Gbit/s", "rate: 0 Gbit/s", "'0 Gbit/s' must be above 0"),
        ("rate: 400 Gbit/s", "rate: 400 GB", "is a size, but a rate is needed"),
        ("rate: 400 Gbit/s", "rate: [1]", "a list is no rate"),
        ("  host: {accelerators: 4, nics: 1}\n", "", "cluster: has no hosts; write for example host:"),
        (
            "  host: {accelerators: 4, nics: 1}",
            "  host: {accelerators: 4, nics: 3}\n  hosts: []",
            "are both given",
        ),
        ("  host: {accelerators: 4, nics: 1}", "  host: 3", "cluster.host: '3' is not a mapping"),
        ("accelerators: 4", "accelerators: 200000", "are more than 1048576"),
        ("accelerators: 4", "accelerator: H-200", "unknown accelerator 'H-200'; did you mean 'h200'?"),
    ],
)
def test_clusters_that_are_refused(tmp_path, old, new, words):
    text = changed(traffic(pattern="all_to_all", size_per_flow="1 MB"), old, new)
    if words is None:
        loaded(tmp_path, text)
    else:
        assert words in refusal(tmp_path, text)


LINK = {"rate": "400 Gbit/s", "latency": "500 ns"}


def cluster(hosts, links=(), **fabric):
    fabric = {
        "kind": "leaf_spine",
        "leaves": 4,
        "spines": 2,
        "hosts_per_leaf": 2,
        "host_link": LINK,
        "spine_link": LINK,
        **fabric,
        "links": [{"link": link, "rate": "1 Gbit/s"} for link in links],
    }
    return Cluster.model_validate({"fabric": fabric, **hosts})


def why_not(*args, **fields):
    with pytest.raises(ValueError) as caught:
        cluster(*args, **fields)
    return str(caught.value)


def test_rails():
    """4 leaves, 2 NICs a host: 2 groups of 2 hosts; NIC i of group g on leaf 2 g + i, its home leaf is 2 g."""
    found = cluster({"host": {"accelerators": 4, "nics": 2}}, attach="rail")
    assert found.num_hosts == 4
    hosts, leaves = found.hosts_and_leaves()
    assert hosts == [h for h in range(4) for _ in range(4)]
    assert leaves == [0] * 8 + [2] * 8
    assert "4 leaves are no multiple of the 3 rails" in why_not({"host": {"nics": 3}}, attach="rail")


RAILS = ("kind: leaf_spine, leaves: 4", "kind: leaf_spine, leaves: 4, attach: rail", "nics: 1", "nics: 4")
"""4 leaves for 4 rails: one group of 2 hosts of 4 accelerators."""


@pytest.mark.parametrize("pattern", ["shift", "permutation"])
def test_one_group_of_hosts_on_rails_has_no_other_to_send_to(tmp_path, pattern):
    one = changed(traffic(pattern=pattern, size_per_flow="1 MB"), *RAILS)
    found = refusal(tmp_path, one)
    assert "workloads.t.pattern: attach: rail puts each host on 4 leaves" in found
    assert "give the fabric 8 leaves or more" in found
    assert ("cross_leaf: false" in found) == (pattern == "permutation")
    loaded(tmp_path, changed(one, "leaves: 4", "leaves: 8"))


def test_several_kinds_of_hosts():
    def kinds(*counts, nics=1):
        return {"hosts": [{"name": f"k{i}", "count": c, "nics": 1 + i * nics} for i, c in enumerate(counts)]}

    assert cluster(kinds(3, 5)).num_nics == 3 + 5 * 2
    assert "the counts add up to 3 + 4 = 7 hosts, but the fabric has room for 8" in why_not(kinds(3, 4))
    assert "the same number of nics in every kind" in why_not(kinds(1, 1), attach="rail")
    same = {"hosts": [{"name": "a", "count": 4}, {"name": "a", "count": 4}]}
    assert "two kinds of hosts are named 'a'" in why_not(same)


@pytest.mark.parametrize(
    "name",
    [
        "leaf3-spine1",
        "leaf3-spine1.lane1",
        "plane1/leaf0-spine0",
        "plane1/leaf0-spine0.lane0",
        "host3-leaf1",
        "plane0/host7-leaf3",
    ],
)
def test_link_names(name):
    cluster({"host": {}}, [name], lanes=2, planes=2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("leaf0-spine2", "there is no spine2, spines are 0 … 1"),
        ("leaf4-spine0", "there is no leaf4, leaves are 0 … 3"),
        ("leaf0-spine0.lane1", "there is no lane1, only lane0"),
        ("leaf0-spine0.lane0", "one lane only; leave .lane0 out"),
        ("plane0/leaf0-spine0", "one plane only; leave plane0/ out"),
        ("host3-leaf0", "this NIC is on leaf 1; write 'host3-leaf1'"),
        ("host3.nic0-leaf1", "host 3 has 1 NIC; write 'host3-leaf1'"),
        ("host3-leaf1.lane0", "lanes are between switches"),
        ("spine0-leaf0", "no link is named 'spine0-leaf0'"),
        ("leaf0.nic0-spine0", "only hosts have NICs"),
        ("leaf99999999999-spine0", "no link is named"),
    ],
)
def test_link_names_that_are_refused(name, words):
    assert words in why_not({"host": {}}, [name])


def test_a_link_is_given_once():
    assert "'leaf0-spine0' is given twice" in why_not({"host": {}}, ["leaf0-spine0", "leaf0-spine0"])


def test_fat_tree():
    """Two pods, three aggregations each, cores 2 j and 2 j + 1 on aggregation j."""

    def tree(link, **fields):
        fabric = {
            "kind": "fat_tree",
            "pods": 2,
            "edges_per_pod": 2,
            "aggregations_per_pod": 3,
            "cores": 6,
            "hosts_per_edge": 4,
            "host_link": LINK,
            "edge_link": LINK,
            "core_link": LINK,
            "links": [{"link": link, "latency": "1 us"}],
            **fields,
        }
        return Cluster.model_validate({"fabric": fabric, "host": {}})

    assert tree("edge3-aggregation5").num_hosts == 16
    assert tree("aggregation4-core2").fabric.num_leaves == 4
    for link, words in (
        ("edge0-aggregation3", "edge0 has no link to aggregation3"),
        ("aggregation4-core1", "aggregation4 has no link to core1"),
        ("leaf0-spine0", "names are like 'host0-leaf0' and 'edge0-aggregation0' and 'aggregation0-core0'"),
    ):
        with pytest.raises(ValueError, match=words):
            tree(link)
    with pytest.raises(
        ValueError, match="4 cores are no multiple of 3 aggregations per pod; write for example 6"
    ):
        tree("edge0-aggregation0", cores=4)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("fidelity: auto\npaths: {policy: reps, fairness: message}", "a NIC serves queue pairs in turn"),
        ("paths: {policy: spray_random}", "'spray_random' decides packet by packet, which fluid cannot express"),
        ("fidelity: packet\npaths: {fairness: message}", "a NIC serves queue pairs in turn"),
        ("packet: {transport: {window: 80}}", "'80' is no window; write 1.5 bdp"),
        ("packet: {transport: {window: 1.5 packets}}", "'1.5 packets' is no window"),
        ("packet: {transport: {window: 0 bdp}}", "'0 bdp' is no window"),
        ("fidelity: fluidd", "unknown fidelity 'fluidd'; did you mean 'fluid'?"),
        ("paths: {policy: sprey}", "unknown policy 'sprey'; did you mean 'spray'?"),
        ("paths: {policy: ecmp, subflows: 3}", "unknown key 'subflows'"),
        ("paths: {policy: [ecmp]}", "a list is no policy"),
        ("paths: ecmp", "paths: 'ecmp' is not a mapping"),
        ("paths: {fairness: flow}", "unknown fairness 'flow'"),
        ("packet: {mtu: 64 B}", "a header of 64 B leaves no payload in an mtu of 64 B"),
        ("packet: {mtu: 4096}", "'4096' has no unit"),
        ("fluid: {tolerance: 1.5}", "'1.5' must be at most 1"),
        ("cost: {efficiency: {compute: 0}}", "'0' must be above 0"),
        ("cost: {efficiency: {compute: 1.1}}", "'1.1' must be at most 1"),
        ("cost: {scale: {attention: -1}}", "cost.scale.attention: '-1' must be above 0"),
        ("cost: {table: x}", "there is no file 'x' neither in "),
        ("cost: {table: scenario.yaml}", "'scenario.yaml' is no table; give a .parquet or .csv file"),
        ("max_time: 0 s", "must be above 0"),
        ("seeds: 0", "'0' must be at least 1"),
        ("seed: 1.0", "'1.0' is no whole number"),
        ("seed: 9223372036854775808", "must be below"),
        ("question: ''", "is empty; write some text"),
        ("question: 3", "'3' is not text; put it in quotes"),
    ],
)
def test_the_rest_that_is_refused(tmp_path, extra, words):
    assert words in refusal(tmp_path, traffic(pattern="all_to_all", size_per_flow="1 MB") + extra + "\n")


def test_the_rest_that_is_read(tmp_path):
    text = traffic(pattern="all_to_all", size_per_flow="1 MB")
    extra = (
        "fluid: {tolerance: 0.1 %}\npaths: {fairness: message}\n"
        "cost: {efficiency: {compute: 50 %}, scale: {x: 0.8}}\n"
    )
    scenario = loaded(tmp_path, text + extra + "packet: {transport: {kind: window}}\n").variants[0][1]
    assert scenario.fluid.tolerance == 0.001
    assert (scenario.paths.policy, scenario.paths.fairness) == ("ecmp", "message")
    assert scenario.cost.efficiency.compute == 0.5 and scenario.cost.scale == {"x": 0.8}


def test_two_workloads_of_one_name(tmp_path):
    text = CLUSTER + (
        "workloads:\n"
        "  - {kind: traffic, name: a, pattern: all_to_all, size_per_flow: 1 MB}\n"
        "  - {kind: traffic, name: a, pattern: all_to_all, size_per_flow: 1 MB}\n"
    )
    assert "scenario.yaml:8: workloads.a.name: two workloads are named 'a'" in refusal(tmp_path, text)
    assert "workloads: is empty; give at least one" in refusal(tmp_path, CLUSTER + "workloads: []\n")


def test_scenarios_are_frozen(tmp_path):
    scenario = loaded(tmp_path, CLUSTER + SERVING).variants[0][1]
    with pytest.raises(ValueError, match="frozen"):
        scenario.seed = 3


def test_every_key_has_a_description():
    """Editors show it: of each mapping that a scenario file may hold, every key."""
    schema = json_schema()
    parts = {"the file": schema, **schema["$defs"]}
    assert len(parts) > 60
    bare = [
        f"{name}.{key}" for name, part in parts.items() for key, field in part.get("properties", {}).items()
        if not field.get("description", "").strip()
    ]  # fmt: skip
    assert bare == []
