"""Pools in a scenario: what is built from them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scenario_texts import CLUSTER, SERVING, changed, loaded, refusal

from sim.capacity_question import prices_of
from sim.scenario import build
from sim.scenario.errors import ScenarioError
from sim.simulate import simulate

CHAT = "workloads.chat."
APART = CHAT + "disaggregation={prefill: {replicas: 4}, decode: {replicas: 1, parallelism: {tensor: 4}}}"
TWO_KINDS = changed(
    CLUSTER,
    "host: {accelerators: 4, nics: 1}",
    "hosts: [{name: fast, count: 2, accelerators: 4, accelerator: h100}, "
    "{name: large, count: 6, accelerators: 4, accelerator: h200}]",
)
PLACED = (
    CHAT + "disaggregation={prefill: {parallelism: {tensor: 2}, ranks: '0-1'}, "
    "decode: {replicas: 2, ranks: '8-9'}}"
)


def servers_of(tmp_path, text, *settings):
    scenario = loaded(tmp_path, text, *settings).variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    return [pool for _, pool in server.pools]


def test_the_pools_are_servers_of_their_own(tmp_path):
    prefill, decode = servers_of(
        tmp_path, TWO_KINDS + SERVING, PLACED, CHAT + "disaggregation.prefill.batching={max_num_seqs: 16}",
        CHAT + "batching={max_num_batched_tokens: 4096}", CHAT + "disaggregation.decode.router.policy=least_kv",
    )  # fmt: skip

    assert (prefill.accelerator.name, decode.accelerator.name) == ("h100", "h200")
    assert (prefill.parallelism.tensor, decode.parallelism.tensor) == (2, 1)
    assert (prefill.w.batching.max_num_seqs, prefill.w.batching.max_num_batched_tokens) == (16, 2048)
    assert (decode.w.batching.max_num_seqs, decode.w.batching.max_num_batched_tokens) == (256, 4096)
    assert (prefill.w.router.policy, decode.w.router.policy) == ("round_robin", "least_kv")
    assert decode.memory_plan().num_kv_blocks > prefill.memory_plan().num_kv_blocks / 2


def test_pools_lie_one_behind_the_other_unless_told(tmp_path):
    prefill, decode = servers_of(tmp_path, CLUSTER + SERVING, APART)
    assert (prefill.w.own_ranks, decode.w.own_ranks) == ((0, 1, 2, 3), (4, 5, 6, 7))

    prefill, decode = servers_of(tmp_path, CLUSTER + SERVING, APART, CHAT + "ranks='24-31'")
    assert (prefill.w.own_ranks, decode.w.own_ranks) == (tuple(range(24, 28)), tuple(range(28, 32)))


def test_two_kinds_of_accelerators_serve_together(tmp_path):
    """A prompt of 512 tokens is 32 blocks; of each 131,072 B a token move, whatever the degrees."""
    scenario = loaded(tmp_path, TWO_KINDS + SERVING, PLACED).variants[0][1]
    result = simulate(scenario, 1, "run")

    metrics = {key.removeprefix("serving.chat."): value for key, value in result.metrics.items()}
    assert metrics["completed"] == 10
    assert metrics["kv_transfer_bytes"] == 10 * 512 * 131_072
    moved = result.tables["kv_transfers"]
    assert (moved["received_s"] > moved["started_s"]).all()
    # 67 MB through one NIC of 50 GB/s, whose headers take 64 of every 4,096 B.
    least_s = 512 * 131_072 * 4096 / 4032 / 50e9
    assert metrics["mean_kv_transit_ms"] == pytest.approx(1e3 * least_s, rel=0.05)
    links = result.tables["links"].set_index("link")
    assert links["payload_bytes"]["host0->leaf0"] == pytest.approx(metrics["kv_transfer_bytes"])
    assert links["payload_bytes"]["leaf1->host2"] == pytest.approx(metrics["kv_transfer_bytes"])


def test_within_a_host_they_move_over_its_own_links(tmp_path):
    """On an H100's host NVLink has 450 GB/s one way; nothing goes through the fabric."""
    near = changed(PLACED, "'8-9'", "'2-3'")
    scenario = loaded(tmp_path, TWO_KINDS + SERVING, near).variants[0][1]
    result = simulate(scenario, 1, "run")

    assert result.metrics["serving.chat.completed"] == 10
    links = result.tables["links"]
    assert links[links["link"].str.contains("->leaf")]["payload_bytes"].sum() == 0
    assert links["payload_bytes"].sum() == pytest.approx(2 * result.metrics["serving.chat.kv_transfer_bytes"])
    assert 0.1 < result.metrics["serving.chat.mean_kv_transit_ms"] < 0.2  # 67 MB into one accelerator, 0.15 ms


def test_a_mixture_hands_over_between_ranks_of_experts(tmp_path):
    """Prefill and decode of experts on several ranks: steps are message graphs, beside those of keys and values."""
    wide = changed(CLUSTER, "accelerators: 4", "accelerators: 4, accelerator: b200") + SERVING
    split = "disaggregation={prefill: {parallelism: {expert: 8}}, decode: {parallelism: {expert: 16, tensor: 2}}}"
    scenario = loaded(
        tmp_path, wide, CHAT + "model=deepseek-v3", CHAT + split, CHAT + "num_requests=3",
        CHAT + "lengths={input: {law: fixed, tokens: 100}, output: {law: fixed, tokens: 4}}",
    ).variants[0][1]  # fmt: skip
    result = simulate(scenario, 1, "run")

    assert result.metrics["serving.chat.completed"] == 3
    # The latent, 576 numbers of 2 bytes in 61 layers, goes to both ranks of a copy, in whole blocks.
    assert result.metrics["serving.chat.kv_transfer_bytes"] == 3 * 112 * 576 * 2 * 61 * 2
    assert (result.tables["requests"]["output_tokens"] == 4).all()


def test_copies_of_the_attention_wait_for_room_and_preempt(tmp_path):
    """Four copies with 40 blocks each decode what eight prefill: all ends, though some wait and some are preempted."""
    wide = changed(CLUSTER, "accelerators: 4", "accelerators: 4, accelerator: b200") + SERVING
    split = (
        "disaggregation={prefill: {parallelism: {expert: 8}}, decode: {parallelism: {expert: 16, tensor: 4}, "
        "batching: {max_num_seqs: 8, max_num_batched_tokens: 64}}}"
    )
    lengths = "lengths={input: {law: uniform, low: 20, high: 300}, output: {law: uniform, low: 1, high: 120}}"
    scenario = loaded(
        tmp_path, wide, CHAT + "model=deepseek-v3", CHAT + split, CHAT + "num_requests=60", CHAT + "kv.num_blocks=40",
        CHAT + "arrivals.rate=400 /s", CHAT + lengths,
    ).variants[0][1]  # fmt: skip
    result = simulate(scenario, 1, "run")

    metrics = {key.removeprefix("serving.chat."): value for key, value in result.metrics.items()}
    assert metrics["completed"] == 60
    assert metrics["num_preemptions"] > 0
    assert metrics["mean_kv_wait_ms"] > 0
    assert result.tables["kv_transfers"]["size_bytes"].sum() == metrics["kv_transfer_bytes"]


def test_same_scenario_and_seed_give_the_same_tables(tmp_path):
    scenario = loaded(tmp_path, CLUSTER + SERVING, APART, CHAT + "disaggregation.transfer.layers=layer_by_layer")
    runs = [simulate(scenario.variants[0][1], 1, "run") for _ in range(2)]

    assert runs[0].metrics == runs[1].metrics
    for name, frame in runs[0].tables.items():
        assert frame.equals(runs[1].tables[name]), name


def test_a_dead_host_link_keeps_them_waiting_and_counts_them(tmp_path):
    """Nothing is lost with the link: who decodes there waits, holding blocks, until it is back."""
    text = CLUSTER + SERVING + "faults:\n  - {at: 0 s, link: host1-leaf0, state: down, until: 3 s}\nmax_time: 60 s\n"
    scenario = loaded(tmp_path, text, CHAT + "disaggregation={prefill: {ranks: [0]}, decode: {ranks: [4]}}")
    result = simulate(scenario.variants[0][1], 1, "run")

    metrics = result.metrics
    assert metrics["serving.chat.completed"] == 10
    moved = result.tables["kv_transfers"]
    assert moved["started_s"].min() < 3.0 < moved["received_s"].min()
    assert np.isfinite(metrics["serving.chat.p99_kv_exposed_ms"])


def test_a_price_of_two_kinds_is_their_mean(tmp_path):
    scenario = loaded(tmp_path, TWO_KINDS + SERVING, PLACED)

    assert prices_of(scenario, "chat", "h100=2,h200=3") == {"run": 2.5}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["replicas=2"], "workloads.chat.replicas: replicas is said of each pool; move it into disaggregation"),
        (["parallelism.tensor=2"], "workloads.chat.parallelism: parallelism is said of each pool"),
        (["disaggregation.prefill.ranks=[0,1]"], "prefill has ranks and decode has none; give both pools theirs"),
        (["disaggregation.prefill.ranks=[0,1]", "disaggregation.decode.ranks='1-4'"], "accelerator 1 is in both pools"),
        (["disaggregation.prefill.ranks=[0]", "disaggregation.decode.ranks='4-7'"], "but ranks are 1"),
        (["disaggregation.prefill.ranks=[0,99]", "disaggregation.decode.ranks='4-7'"], "rank 99 is not in the cluster"),
        (["ranks='0-6'"], "need 8, but ranks are 7"),
        (["disaggregation.prefill.replicas=40"], "workloads.chat.disaggregation: 40 replicas of 1 accelerator "),
        (["disaggregation.decode.batching={policy: orca}"], "the decode pool cannot batch by orca"),
        (["batching={policy: static}"], "the decode pool cannot batch by static"),
        (["disaggregation.prefill.parallelism.expert=2", "disaggregation.transfer.layers=layer_by_layer"],
         "layer_by_layer needs steps whose time is known beforehand"),
        (["disaggregation.transfer.layers=both"], "unknown layers 'both'"),
        (["disaggregation.decode.batching={max_num_batched_tokens: 8}"],
         "disaggregation.decode.batching.max_num_batched_tokens: max_num_batched_tokens is 8, below"),
    ],
)  # fmt: skip
def test_pools_that_are_refused(tmp_path, settings, words):
    assert words in refusal(tmp_path, CLUSTER + SERVING, APART, *[CHAT + setting for setting in settings])


def test_a_tensor_group_on_two_hosts_is_refused(tmp_path):
    found = refusal(tmp_path, CLUSTER + SERVING, changed(APART, "replicas: 4", "replicas: 3"))
    assert "workloads.chat.disaggregation.decode.parallelism.tensor: tensor degree 4: ranks 3 … 6" in found


def test_a_pool_without_room_for_the_model_is_refused(tmp_path):
    large = loaded(tmp_path, CLUSTER + SERVING, APART, CHAT + "model=llama-3.1-70b")
    with pytest.raises(ScenarioError, match=r"workloads\.chat\.disaggregation\.prefill: llama-3.1-70b does not fit"):
        build.check(large)


def test_a_closed_loop_of_pools(tmp_path):
    """Three clients that think for 100 ms: each request but the first three is sent so long after an end."""
    closed = "arrivals={kind: closed_loop, concurrency: 3, think_time: 100 ms}"
    scenario = loaded(tmp_path, CLUSTER + SERVING, APART, CHAT + closed).variants[0][1]
    results = [simulate(scenario, 1, "run") for _ in range(2)]

    frame = results[0].tables["requests"]
    assert frame.equals(results[1].tables["requests"]) and (frame["outcome"] == "completed").all()
    sent_s, ended_s = np.sort(frame["arrival_s"].to_numpy()), np.sort(frame["finished_s"].to_numpy())
    assert (sent_s[:3] == 0).all() and (sent_s[3:] == ended_s[:7] + 0.1).all()
    assert (frame["num_attempts"] == 1).all()


def test_a_conversation_over_pools_finds_what_was_said(tmp_path):
    """The decode pool has prompt and answer, so that of the next turn only what is new moves; the prefill pool has the
    prompt, and computes the answer again with what is new."""
    sessions = "sessions={turns: {law: fixed, tokens: 3}, think_time: 100 ms}"
    one = "disaggregation={prefill: {}, decode: {}}"
    known = "batching={async_scheduling: false}"  # else a block that the last step fills is never noted
    scenario = loaded(tmp_path, CLUSTER + SERVING, CHAT + one, CHAT + sessions, CHAT + known).variants[0][1]
    result = simulate(scenario, 1, "run")

    frame = result.tables["requests"]
    assert len(frame) == 30 and (frame["outcome"] == "completed").all()
    first = (frame["request"] % 3 == 0).to_numpy()
    before = frame["input_tokens"].shift(1)[~first]
    assert (frame["cached_tokens"][~first] == before // 16 * 16).all()
    moved = result.tables["kv_transfers"].sort_values("request")
    said = (frame["input_tokens"] + frame["output_tokens"]).shift(1)[~first].to_numpy()
    assert (moved["num_shared_blocks"].to_numpy()[~first] == (said - 1) // 16).all()


def test_priorities_with_pools_apart(tmp_path):
    """The same requests on a prefill pool that is far too small: whose class goes first hardly waits."""
    tenants = "tenants=[{name: people, priority: 0, share: 1}, {name: batch, priority: 1, share: 3}]"
    load = ["num_requests=120", "arrivals.rate=200 /s", "disaggregation={prefill: {}, decode: {}}"]
    found = {}
    for policy in ("chunked_prefill", "priority"):
        settings = [CHAT + s for s in (*load, tenants, f"batching={{policy: {policy}}}")]
        metrics = simulate(loaded(tmp_path, CLUSTER + SERVING, *settings).variants[0][1], 1, "run").metrics
        assert metrics["serving.chat.completed"] == 120
        found[policy] = [metrics[f"serving.chat.{name}.mean_ttft_ms"] for name in ("people", "batch")]
    assert found["priority"][0] < 0.5 * found["chunked_prefill"][0]
    assert found["priority"][1] > found["chunked_prefill"][1]
