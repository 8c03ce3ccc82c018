"""What is refused after loading and before running: what only building a scenario shows."""

import json

import numpy as np
import pytest
from scenario_texts import CLUSTER, SERVING, changed, loaded

from sim.engine.random import RandomStreams
from sim.scenario import build
from sim.scenario.errors import ScenarioError


def workload(**fields):
    """One workload on 8 hosts of 4 accelerators, on 4 leaves."""
    fields = {"kind": "traffic", "name": "a", **fields}
    written = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"{CLUSTER}workloads:\n  - {{{written}}}\n"


def refusal(folder, text, *overrides):
    """What `check` refuses a scenario with that loads, without the folder's name."""
    found = loaded(folder, text, *overrides)
    with pytest.raises(ScenarioError) as caught:
        build.check(found)
    return str(caught.value).replace(f"{folder}/", "")


def graph_of(folder, text):
    """The messages of the only workload of a scenario."""
    scenario = loaded(folder, text).variants[0][1]
    topology = build.build_topology(scenario.cluster)
    rng = np.random.default_rng(1)
    return topology, build._traffic_graph(scenario, scenario.workloads[0], topology, rng)


@pytest.mark.parametrize("pattern", ["shift", "permutation"])
def test_patterns_on_rails_leave_the_host(tmp_path, pattern):
    """8 leaves for 4 rails: two groups of two hosts."""
    rails = ("leaves: 4", "leaves: 8, attach: rail", "nics: 1", "nics: 4")
    topology, graph = graph_of(tmp_path, changed(workload(pattern=pattern, size_per_flow="1 MB"), *rails))
    host, leaf = topology.host_of_accelerator, topology.leaf_of_accelerator
    assert np.all(host[graph.source] // 2 != host[graph.destination] // 2)
    if pattern == "shift":
        assert np.array_equal(leaf[graph.destination], (leaf[graph.source] + 4) % 8)


POISSON = {"pattern": "poisson", "load": 0.5, "duration": "1 ms", "sizes": "{law: fixed, size: 1 MB}"}


def test_poisson_that_draws_no_flow_says_what_to_raise(tmp_path):
    """1 ns of half of 8 links of 50 GB/s are 200 B: 0.0002 flows of a megabyte."""
    found = refusal(tmp_path, workload(**{**POISSON, "duration": "1 ns"}))
    assert "scenario.yaml:7: workloads.a.duration: no flow arrives: 0.000197 are expected in 1e-09 s" in found
    assert "raise the duration or the load" in found


def test_every_seed_is_tried_where_chance_may_draw_nothing(tmp_path):
    """About one flow is expected, so of 20 seeds some draw none (each with probability 0.37)."""
    text = workload(**{**POISSON, "duration": "5 us"})
    build.check(loaded(tmp_path, text, seed=1))
    with pytest.raises(ScenarioError, match=r"no flow arrives: 0\.984 are expected"):
        build.check(loaded(tmp_path, text, seed=1, seeds=20))


@pytest.mark.parametrize(
    ("name", "content", "fields", "words"),
    [
        ("m.csv", "0,0\n0,0\n", {"pattern": "matrix", "file": "m.csv"}, "workloads.a.file: m.csv: sends nothing"),
        ("m.csv", "0;1\n", {"pattern": "matrix", "file": "m.csv"}, "workloads.a.file: m.csv, line 1: '0;1' has no"),
        (
            "m.csv", "\n".join(["0," + ",".join(["9e15"] * 31), *[",".join(["0"] * 32)] * 31]),
            {"pattern": "matrix", "file": "m.csv", "repeat": 5}, "more than the 1153000 TB that the counters hold",
        ),
        (
            "s.txt", "100 0.5\nbig 1\n", {**POISSON, "sizes": "{law: file, file: s.txt}"},
            "workloads.a.sizes.file: s.txt, line 2: 'big 1' is not",
        ),
    ],
)  # fmt: skip
def test_broken_files_are_reported_where_they_are_named(tmp_path, name, content, fields, words):
    (tmp_path / name).write_text(content)
    assert words in refusal(tmp_path, workload(**fields))


def serving(folder, *settings, text=CLUSTER + SERVING):
    return refusal(folder, text, *[f"workloads.chat.{setting}" for setting in settings])


def test_serving_that_cannot_be_held(tmp_path):
    assert "workloads.chat.duration: no request arrives; raise" in serving(
        tmp_path, "num_requests=", "duration=1 ns"
    )
    assert "about 9e+12 requests in 9e+06 s are more than 16777216" in serving(
        tmp_path, "num_requests=", "duration=9e6 s", "arrivals.rate=1000000 /s"
    )
    assert "workloads.chat.num_requests: 140000000 output tokens are more than the 134217728" in serving(
        tmp_path, "num_requests=1400", "lengths.output={law: fixed, tokens: 100000}"
    )


def test_requests_that_no_context_holds_are_refused_before_they_are_drawn(tmp_path):
    """llama-3.1-8b holds 131072 tokens."""
    found = serving(tmp_path, "lengths.input.tokens=200000")
    assert found == (
        "--set workloads.chat.lengths.input.tokens: prompts of 200000 tokens or more and outputs of 1 or more are "
        "longer than the context of llama-3.1-8b, 131072 tokens, so that every request would be "
        "refused; make them shorter"
    )
    text = changed(CLUSTER + SERVING, "tokens: 512", "tokens: 131000")
    build.check(loaded(tmp_path, text, "workloads.chat.lengths.output={law: fixed, tokens: 72}"))
    found = serving(tmp_path, "lengths.output={law: uniform, low: 73, high: 400}", text=text)
    assert found.startswith("scenario.yaml:11: workloads.chat.lengths.input.tokens: prompts of 131000 tokens or more")
    found = serving(tmp_path, "lengths.output={law: uniform, low: 140000, high: 150000}")
    assert "workloads.chat.lengths.output.low: prompts of 512 tokens or more and outputs of 140000 or more" in found


def test_experts_of_a_dense_model_are_refused(tmp_path):
    found = serving(tmp_path, "experts={popularity: uniform}")
    assert "workloads.chat.experts: llama-3.1-8b is dense, it has no experts; leave `experts` out" in found
    build.check(loaded(tmp_path, CLUSTER + SERVING, "workloads.chat.model=qwen3-30b-a3b",
                       "workloads.chat.experts={popularity: zipf, alpha: 0.5}"))  # fmt: skip


def test_adapters_are_of_the_model_and_have_room(tmp_path):
    one = "{fine_tuned: [{name: math, max: 12, mean: 7.04}]}"
    found = serving(tmp_path, f"adapters={one}")
    assert "workloads.chat.adapters: llama-3.1-8b is dense, adapters tune experts; leave `adapters` out" in found
    lite = "workloads.chat.model=deepseek-v2-lite"
    build.check(loaded(tmp_path, CLUSTER + SERVING, lite, f"workloads.chat.adapters={one}"))
    found = refusal(tmp_path, CLUSTER + SERVING, lite, f"workloads.chat.adapters={one}",
                    "workloads.chat.adapters.most_tuned=8")  # fmt: skip
    assert "workloads.chat.adapters: an adapter tunes 12 experts in one layer, above most_tuned, 8" in found
    found = refusal(tmp_path, CLUSTER + SERVING, lite, f"workloads.chat.adapters={one}",
                    "workloads.chat.adapters.most_tuned=8", "workloads.chat.parallelism={expert: 4}")  # fmt: skip
    assert "workloads.chat.adapters: an adapter tunes 12 experts in one layer, above most_tuned, 8" in found
    with pytest.raises(ScenarioError, match=r"fine_tuned\.math\.file: give either file, or max and mean"):
        loaded(tmp_path, CLUSTER + SERVING, lite, "workloads.chat.adapters={fine_tuned: [{name: math, max: 12}]}")


def test_weights_are_as_published_unless_the_scenario_says(tmp_path):
    """DeepSeek-V3 is published in fp8: on 16 devices its experts take 41 GB each, in bf16 twice that."""
    def weight_bytes(*settings):
        wide = changed(CLUSTER, "accelerators: 4", "accelerators: 4, accelerator: b200") + SERVING
        settings = ("model=deepseek-v3", "parallelism={expert: 16}", *settings)
        found = loaded(tmp_path, wide, *[f"workloads.chat.{s}" for s in settings])
        scenario = found.variants[0][1]
        server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
        return server.memory_plan().weight_bytes

    assert weight_bytes() == weight_bytes("precision.weights=fp8")
    assert 1.8 * weight_bytes() < weight_bytes("precision.weights=bf16")


def test_a_block_is_copied_layer_by_layer_keys_and_values_apart(tmp_path):
    """Of Llama-3.1-8B 16 tokens are 2 MiB: 32 layers · 2 · 8 heads · 128 · 2 B a token. Two accelerators halve that."""
    def swap(*settings):
        found = loaded(tmp_path, CLUSTER + SERVING, "workloads.chat.batching.preemption=swap", *settings)
        build.check(found)
        scenario = found.variants[0][1]
        return build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster)).swap()

    pcie = "cluster.host.pcie={rate: 64 GB/s, copy_time: 1 us}"
    blocks, copy_s = swap(pcie)
    assert blocks == 2048 and copy_s == pytest.approx(64e-6 + 2**21 / 64e9)
    blocks, copy_s = swap(pcie, "workloads.chat.parallelism.tensor=2", "workloads.chat.kv.swap_space=1 GiB")
    assert blocks == 1024 and copy_s == pytest.approx(64e-6 + 2**20 / 64e9)
    words = refusal(tmp_path, CLUSTER + SERVING, "workloads.chat.batching.preemption=swap",
                    "workloads.chat.kv.swap_space=1 MiB")  # fmt: skip
    assert "workloads.chat.kv.swap_space" in words
    assert "1048576 B of swap space hold no block, which takes 2097152 B" in words


def test_a_batch_that_is_planned_is_all_there(tmp_path):
    words = refusal(tmp_path, CLUSTER + SERVING, "workloads.chat.batching.policy=batchllm")
    assert "batchllm plans a batch whose requests are all there, but these arrive one after the other" in words


def test_queries_over_one_context_share_its_bytes(tmp_path):
    """Llama-3.1-8B on an H200: 4 · 4096 flops at 989.4 Tflop/s take 1.9 % of 2 · 8 · 128 · 2 B at 4.8 TB/s, so that
    four queries take what one takes. A draft model fills as many slots as are drafted."""
    drafts = "workloads.chat.batching.speculative={num_tokens: 3, acceptance: 0.7, draft: {kind: model, cost: 0.1}}"
    found = loaded(tmp_path, CLUSTER + SERVING, drafts)
    build.check(found)
    scenario = found.variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    drafted = server.speculation(build.RandomStreams(1))
    assert drafted.byte_share == 1.0
    assert drafted.flop_share == pytest.approx((4 * 4096 / 989.4e12) / (4096 / 4.8e12))
    assert (drafted.num_tokens, drafted.num_lookahead, drafted.draft_cost, drafted.draft_s) == (3, 3, 0.1, 0.0)
    assert not scenario.workloads[0].batching.is_async


def test_a_tenant_s_priority_is_its_requests(tmp_path):
    found = loaded(tmp_path, CLUSTER + SERVING, "workloads.chat.tenants=[{name: a}, {name: b, priority: 2}]")
    scenario = found.variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    tenants, ones = server.tenants(build.RandomStreams(1), 100), np.ones(100, np.int64)
    assert server.precedence(ones, ones, None, tenants).tolist() == [2 * int(who) for who in tenants.of]


def test_scales_of_operators(tmp_path):
    """The schema's example is true; a name that covers nothing is refused with the nearest."""
    text = CLUSTER + SERVING
    build.check(loaded(tmp_path, text, "cost.scale={attention: 0.8}"))
    found = refusal(tmp_path, text, "cost.scale={atention: 0.8}")
    assert found.endswith("cost.scale: unknown operator 'atention' in scale; did you mean 'attention'?")
    assert "no workload serves a model" in refusal(tmp_path, workload(**POISSON), "cost.scale={attention: 0.8}")


def test_a_scale_may_be_of_one_model_among_several(tmp_path):
    two = CLUSTER + SERVING + SERVING.partition("\n")[2].replace("name: chat", "name: moe\n    ranks: [1]").replace(
        "llama-3.1-8b", "qwen3-30b-a3b"
    )
    found = loaded(tmp_path, two, "cost.scale={routed_experts: 0.5}")
    build.check(found)
    build.build(found.variants[0][1], 1)


@pytest.mark.parametrize("key", ["completion_time_s", "fct_s.p99", "slowdown.p50"])
def test_an_answer_that_a_workload_has(tmp_path, key):
    build.check(loaded(tmp_path, workload(**POISSON) + f"answer: traffic.a.{key}\n"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("traffic.a.fct_s.p98", "answer: no run has the metric 'traffic.a.fct_s.p98'; did you mean"),
        ("traffic.b.fct_s.p99", "did you mean 'traffic.a.fct_s.p99'?"),
        ("links.max_load", "did you mean 'links.max_load_over_fair'?"),
    ],
)
def test_an_answer_that_no_workload_has_is_refused(tmp_path, answer, words):
    assert words in refusal(tmp_path, workload(**POISSON) + f"answer: {answer}\n")


def test_answers_about_serving(tmp_path):
    def text(metric, policy):
        variants = f"compare: [{{name: a}}, {{name: b, paths: {{policy: {policy}}}}}]\n"
        return CLUSTER + SERVING + f"answer: serving.chat.{metric}\n" + variants

    build.check(loaded(tmp_path, text("p99_itl_ms", "spray")))
    build.check(loaded(tmp_path, text("network_tax", "ideal")))
    found = refusal(tmp_path, text("network_tax", "spray"))
    assert "answer: no run has the metric" in found and "variant" not in found


def test_every_kind_of_workload_knows_its_metrics_before_it_runs(tmp_path):
    fields = {"operation": "all_reduce", "size": "1 MB"}
    build.check(loaded(tmp_path, workload(kind="collective", **fields) + "answer: collective.a.bus_bytes_per_s\n"))
    training = workload(kind="training", compute="1 ms", steps=2, **fields)
    build.check(loaded(tmp_path, training + "answer: training.a.step_s.mean\n"))


def test_recorded_routing_is_of_the_model(tmp_path):
    lite = "workloads.chat.model=deepseek-v2-lite"
    (tmp_path / "scores.json").write_text('{"token_scores": {"1": {"0": 1.0}}}')
    scores = f"workloads.chat.experts={{popularity: recorded, file: {tmp_path / 'scores.json'}}}"
    assert "workloads.chat.experts" in (found := refusal(tmp_path, CLUSTER + SERVING, lite, scores))
    assert "with 64 experts in each layer" in found
    adapters = f"{{fine_tuned: [{{name: a, max: 1, mean: 1, routing: {tmp_path / 'scores.json'}}}]}}"
    found = refusal(tmp_path, CLUSTER + SERVING, lite, f"workloads.chat.adapters={adapters}")
    assert "workloads.chat.adapters" in found and "with 64 experts in each layer" in found
    with pytest.raises(ScenarioError, match="file goes with popularity: recorded, and only with it"):
        loaded(tmp_path, CLUSTER + SERVING, lite, "workloads.chat.experts={popularity: recorded}")


def test_recorded_decisions_as_numpy_saves_them(tmp_path):
    """DeepSeek-V2-Lite has 26 layers with 64 experts, of which a token goes to 6."""
    lite, rng = "workloads.chat.model=deepseek-v2-lite", np.random.default_rng(1)
    ids = np.stack([rng.permutation(64)[:6] for _ in range(26 * 50)]).reshape(26, 50, 6)
    np.savez_compressed(tmp_path / "routing.npz", expert_ids=ids)
    routing = f"{{popularity: recorded, file: {tmp_path / 'routing.npz'}}}"
    scenario = loaded(tmp_path, CLUSTER + SERVING, lite, f"workloads.chat.experts={routing}")
    build.check(scenario)
    server = build.Server(scenario.variants[0][1], scenario.variants[0][1].workloads[0],
                          build.build_topology(scenario.variants[0][1].cluster))  # fmt: skip
    assert server.popularity().inclusion[3, 7] == (ids[3] == 7).sum() / 50
    (tmp_path / "text.npz").write_text("no zip file")
    found = refusal(tmp_path, CLUSTER + SERVING, lite,
                    f"workloads.chat.experts={{popularity: recorded, file: {tmp_path / 'text.npz'}}}")  # fmt: skip
    assert "text.npz: is no .npz file" in found


def adapters_of(folder, adapters, *more):
    lite = "workloads.chat.model=deepseek-v2-lite"
    found = loaded(folder, CLUSTER + SERVING, lite, f"workloads.chat.adapters={adapters}", *more)
    build.check(found)
    scenario = found.variants[0][1]
    return build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))


def test_adapters_have_their_share_of_the_requests(tmp_path):
    """Of 4 adapters at alpha 0.5: sqrt(i / 4) - sqrt((i - 1) / 4); a base share of 1 is as much as all together."""
    four = ", ".join(f"{{name: a{i}, max: 1, mean: 1}}" for i in range(4))
    server = adapters_of(tmp_path, f"{{alpha: 0.5, base_share: 1, fine_tuned: [{four}]}}")
    expected = np.array([1, *np.diff(np.sqrt(np.arange(5) / 4))]) / 2
    assert server.w.adapters.shares == pytest.approx(expected)
    adapter = server.adapter_of(20_000, RandomStreams(1))
    assert np.bincount(adapter) / 20_000 == pytest.approx(expected, abs=0.01)
    with pytest.raises(ScenarioError, match="alpha says each adapter's share"):
        adapters_of(tmp_path, "{alpha: 0.5, fine_tuned: [{name: a, max: 1, mean: 1, share: 2}]}")


def test_merged_models_have_replicas_and_no_pool(tmp_path):
    two = "fine_tuned: [{name: a, max: 1, mean: 1}, {name: b, max: 1, mean: 1}]"
    merged = adapters_of(tmp_path, f"{{deployment: merged, {two}}}", "workloads.chat.replicas=2")
    pool = adapters_of(tmp_path, f"{{{two}}}", "workloads.chat.replicas=2")
    assert merged.memory_plan().adapter_bytes == 0 < pool.memory_plan().adapter_bytes
    assert (merged.mix(8), merged.rerouting) == (None, None) != (pool.mix(8), pool.rerouting)
    assert merged.model_of(np.array([1, 2])).tolist() == [0, 1]
    with pytest.raises(ScenarioError, match="2 replicas for 3 merged models"):
        adapters_of(tmp_path, f"{{deployment: merged, base_share: 1, {two}}}", "workloads.chat.replicas=2")


TWENTY = "fine_tuned: [{name: a, max: 2, mean: 2}, {name: b, max: 4, mean: 4}, {name: c, max: 3, mean: 3}]"


def test_adapters_on_demand_have_memory_set_aside_for_those_that_may_be_there(tmp_path):
    """Of 2, 4 and 3 experts in each of 26 layers: pages of the two largest, by hand as in test_loading."""
    two = adapters_of(tmp_path, f"{{resident: 2, {TWENTY}}}")
    # 44 + 22 MiB of four experts, 33 + 16.5 of three: 22 + 11 and 17 + 9 pages, more where they begin within one.
    pages = two.memory_plan().adapter_bytes / (26 * 2**21)
    assert 22 + 11 + 17 + 9 <= pages <= 22 + 11 + 17 + 9 + 4
    holds, _ = two.residency
    assert (holds.capacity, holds.size, holds.is_overlapped) == (2, (1, 1, 1), False)
    assert two.limits.residency is holds
    padded = adapters_of(tmp_path, f"{{resident: 2, deployment: padded, {TWENTY}}}")
    assert padded.memory_plan().adapter_bytes == 26 * 2 * 4 * 33 * 2**20 // 2
    pool = adapters_of(tmp_path, f"{{pool: 4 GiB, loading: overlapped, {TWENTY}}}")
    assert pool.memory_plan().adapter_bytes == 4 * 2**30
    assert pool.residency[0].capacity == 2048 and pool.residency[0].is_overlapped
    for all_of_them in (f"{{resident: 3, {TWENTY}}}", f"{{{TWENTY}}}"):
        server = adapters_of(tmp_path, all_of_them)
        assert server.residency is None
        assert server.memory_plan().adapter_bytes == adapters_of(tmp_path, f"{{{TWENTY}}}").memory_plan().adapter_bytes


@pytest.mark.parametrize(("more", "sentence"), [
    ("resident: 2, pool: 4 GiB", r"adapters\.pool: resident and pool both say"),
    ("pool: 4 GiB, deployment: padded", r"adapters\.pool: a padded pool has places, not pages; write resident"),
    ("pool: 1 GiB", r"chat\.adapters: a pool of 1073741824 B has no room for b, which takes \d+ pages of 2 MiB; give"),
    ("loading: overlapped", r"adapters\.loading: all adapters are there from the beginning; give resident"),
    ("resident: 2, deployment: merged", r"adapters\.resident: merged models are all there"),
])  # fmt: skip
def test_adapters_on_demand_that_cannot_be(tmp_path, more, sentence):
    with pytest.raises(ScenarioError, match=sentence):
        adapters_of(tmp_path, f"{{{more}, {TWENTY}}}", "workloads.chat.replicas=3")


def test_adapters_over_ranks_of_experts(tmp_path):
    """Tuned are experts 0, 5 and 20 in each layer: of four ranks the first has two of them, on 22 + 11 MiB, the second
    one. All have as many blocks as the first. Padded, two slots are kept on each, four where so many are asked for."""
    (tmp_path / "one.json").write_text(json.dumps({"experts": {str(layer): [0, 5, 20] for layer in range(1, 27)}}))
    one = f"fine_tuned: [{{name: one, file: {tmp_path / 'one.json'}}}]"
    spread = "workloads.chat.parallelism={expert: 4}"
    server = adapters_of(tmp_path, f"{{{one}}}", spread)
    # 16 experts end after 88 and 44 pages, and two more take 11 and 5.5 of them.
    assert server.memory_plan().adapter_bytes == 26 * (11 + 6) * 2**21
    for most, slots in (("", 2), ("most_tuned: 4, ", 4), ("most_tuned: 40, ", 16)):
        padded = adapters_of(tmp_path, f"{{deployment: padded, {most}{one}}}", spread)
        assert padded.memory_plan().adapter_bytes == 26 * slots * 33 * 2**20 // 2
    with pytest.raises(ScenarioError, match="adapters come and go where experts lie on one rank; leave resident out"):
        adapters_of(tmp_path, f"{{resident: 1, {TWENTY}}}", spread)


def test_adapters_come_and_go_under_policies_whose_line_may_be_passed(tmp_path):
    for key, value, sentence in (
        ("batching", "{policy: orca}", r"passed by others, which orca does not do; use chunked_prefill or priority"),
        ("disaggregation", "{}", r"adapters come and go on replicas that prefill and decode"),
    ):
        with pytest.raises(ScenarioError, match=sentence):
            adapters_of(tmp_path, f"{{resident: 2, {TWENTY}}}", f"workloads.chat.{key}={value}")
