"""What one part of a serving workload means for another: tenants, sessions, clients, pools, faults, searches."""

import numpy as np
import pytest
from scenario_texts import CLUSTER, SERVING, changed, loaded, refusal

from sim.engine.random import RandomStreams
from sim.scenario import build
from sim.scenario.errors import Refused
from sim.serving.router import ROUTERS
from sim.simulate import simulate
from sim.size_question import size_question

CHAT = "workloads.chat."
TENANTS = CHAT + "tenants=[{name: a, targets: {p99_ttft_ms: 30}}, {name: b, share: 2}]"
SESSIONS = CHAT + "sessions={turns: {law: uniform, low: 1, high: 5}, think_time: 1 s}"
APART = CHAT + "disaggregation={prefill: {}, decode: {replicas: 3}}"


def run(tmp_path, *settings):
    """(metrics of the workload, the whole result)."""
    result = simulate(loaded(tmp_path, CLUSTER + SERVING, *settings).variants[0][1], 1, "run")
    return {key.removeprefix("serving.chat."): value for key, value in result.metrics.items()}, result


def test_a_conversation_is_one_tenants(tmp_path):
    scenario = loaded(tmp_path, CLUSTER + SERVING, SESSIONS, TENANTS, CHAT + "num_requests=200").variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    streams = RandomStreams(1)
    num_turns, of = server.num_turns(streams), server.tenants(streams, len(server.arrivals(streams))).of

    each = np.split(of, np.cumsum(num_turns)[:-1])
    assert all(len(set(turns.tolist())) == 1 for turns in each)
    assert np.mean([turns[0] for turns in each]) == pytest.approx(2 / 3, abs=0.1)


def test_what_was_never_sent_does_not_blur_tenants(tmp_path):
    metrics, _ = run(
        tmp_path, TENANTS, CHAT + "arrivals={kind: closed_loop, concurrency: 3}", CHAT + "num_requests=500",
        CHAT + "duration=2 s",
    )  # fmt: skip
    assert 3 < metrics["arrived"] < 500
    assert 0 < metrics["request_goodput"] <= metrics["request_throughput"]
    assert metrics["a.request_throughput"] + metrics["b.request_throughput"] == pytest.approx(
        metrics["request_throughput"]
    )


def test_who_is_given_up_is_not_within_targets(tmp_path):
    metrics, _ = run(tmp_path, CHAT + "targets={p99_ttft_ms: 10000}", CHAT + "client={timeout: 1 s}")
    assert 0 < metrics["timed_out"] < 10
    assert metrics["slo_attainment"] == pytest.approx(metrics["completed"] / 10)


def test_turns_wait_in_the_order_in_which_they_come(tmp_path):
    """Requests are numbered session after session; the last of them is not the last to arrive."""
    _, result = run(tmp_path, SESSIONS)
    arrival_s = np.sort(result.tables["requests"]["arrival_s"])
    counted = arrival_s[int(0.1 * len(arrival_s)) :]
    assert result.notes["queues"]["chat"]["span_s"] == pytest.approx(counted[-1] - counted[0])


def test_pools_cut_short_split_no_time_that_has_not_passed(tmp_path):
    metrics, result = run(tmp_path, APART, "max_time=3 s")
    assert 0 < metrics["completed"] < metrics["arrived"]
    assert len(result.tables["time_split"]) == metrics["completed"]


DEEPSEEK = CLUSTER + changed(SERVING, "llama-3.1-8b", "deepseek-v2-lite")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (CLUSTER + SERVING, CHAT + "stop=eos"), (CLUSTER + SERVING, APART), (CLUSTER + SERVING, SESSIONS),
        (CLUSTER + SERVING, CHAT + "arrivals={kind: closed_loop, concurrency: 3}"),
        (DEEPSEEK, CHAT + "parallelism={expert: 4}"), (DEEPSEEK, CHAT + "parallelism={expert: 8}"),
    ],
)  # fmt: skip
def test_whoever_serves_computes_one_token_more_where_nobody_foresees_the_end(tmp_path, text, setting):
    """Once for each request, there being room for all; nothing where the scheduler waits for the step's tokens."""
    def ended_and_discarded(*settings):
        result = simulate(loaded(tmp_path, text, setting, CHAT + "stop=eos", *settings).variants[0][1], 1, "run")
        return [result.metrics[f"serving.chat.{name}"] for name in ("completed", "discarded_tokens")]

    num_ended, num_discarded = ended_and_discarded()
    assert num_ended == num_discarded >= 10
    assert ended_and_discarded(CHAT + "batching.async_scheduling=false") == [num_ended, 0]


def test_the_decode_pools_router_knows_the_adapter(tmp_path, monkeypatch):
    scenario = loaded(
        tmp_path, CLUSTER + changed(SERVING, "llama-3.1-8b", "deepseek-v2-lite"), APART,
        CHAT + "adapters={fine_tuned: [{name: x, max: 4, mean: 2}, {name: y, max: 4, mean: 2}]}",
    ).variants[0][1]  # fmt: skip
    simulation = build.build(scenario, 1)
    workload, seen = simulation.workloads[0], {}

    class Watched:
        sees_replicas = False

        def choose(self, replicas, routed):
            seen[routed.request] = routed.adapter
            return ROUTERS["round_robin"].choose(replicas, routed)

    monkeypatch.setattr(workload, "_decode_router", Watched())
    simulation.clock.run(until=workload.start())
    assert len(seen) > 5 and set(seen.values()) == {1, 2}
    assert all(workload.requests["adapter"][request] == adapter for request, adapter in seen.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([CHAT + "batching.policy=batchllm"], "swapping, drafts and batchllm are not there"),
        ([CHAT + "disaggregation.decode.batching={policy: batchllm}"], "drafts and batchllm are not there"),
        ([CHAT + "disaggregation.decode.batching={policy: priority}"], "priority orders requests by their tenants"),
        ([CHAT + "client={timeout: 5 s}"], "timeouts, late reports and scaling are not there with prefill and decode"),
        ([CHAT + "disaggregation.prefill.router={policy: adapter_affinity}"],
         "disaggregation.prefill.router.policy: adapter_affinity brings an adapter's requests together"),
        ([CHAT + "contention=true"], "contention is not told apart with prefill and decode apart"),
        (["faults=[{at: 1 s, replica: chat/0, state: down}]"], "replicas of 'chat', prefill and decode apart, cannot"),
        (["faults=[{at: 1 s, host: 0, state: down}]"], "cannot go down; name links"),
    ],
)
def test_what_pools_leave_out(tmp_path, settings, words):
    assert words in refusal(tmp_path, CLUSTER + SERVING, APART, *settings)


def test_faults_of_hosts_beside_pools(tmp_path):
    metrics, _ = run(tmp_path, APART, "faults=[{at: 1 s, host: 7, state: down}]")
    assert metrics["completed"] == 10


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("client={timeout: 5 s}", "leave client.timeout out"),
        ("autoscale={max: 4, target_outstanding: 8}", "autoscale says how many replicas 'chat' has"),
    ],
)
def test_what_has_no_size(tmp_path, setting, words):
    path = tmp_path / "scenario.yaml"
    path.write_text(CLUSTER + SERVING, encoding="utf-8")
    with pytest.raises(Refused, match=words):
        size_question(path, [], ["p99_itl_ms=50"], None, None, False, [CHAT + setting])


def test_workloads_of_different_columns_share_a_table(tmp_path):
    """One swaps, the clients of another give up, the third has pools."""
    one = SERVING.removeprefix("workloads:\n")
    others = changed(one, "chat", "patient") + changed(one, "chat", "apart")
    settings = [
        CHAT + "client={timeout: 1 s}", "workloads.patient.batching={preemption: swap}", "workloads.patient.ranks='8'",
        "workloads.apart.disaggregation={prefill: {}, decode: {}}", "workloads.apart.ranks='16-17'",
    ]  # fmt: skip
    for more in ([], ["max_time=2 s"]):
        scenario = loaded(tmp_path, CLUSTER + SERVING + others, *settings, *more).variants[0][1]
        tables = simulate(scenario, 1, "run").tables
        requests, tokens = tables["requests"], tables["token_times"]
        of = requests.set_index("workload")
        assert of["num_swaps"].isna().groupby("workload", observed=True).all().to_dict() == {
            "chat": True, "patient": False, "apart": True
        }  # fmt: skip
        assert (of["num_attempts"].loc["chat"] == 1).all() and of["num_attempts"].loc["apart"].isna().all()
        counted = tokens.groupby(["workload", "request"], observed=True).size()
        generated = requests[requests["output_tokens"] > 0].set_index(["workload", "request"])["output_tokens"]
        assert counted.to_dict() == generated.to_dict()


def test_who_loads_adapters_shares_the_tables_with_who_does_not(tmp_path):
    """In either order; the parts of both add up, and only one of them has a wait for loads."""
    one = SERVING.removeprefix("workloads:\n")
    adapters = "{fine_tuned: [{name: x, max: 4, mean: 2}, {name: y, max: 4, mean: 2}], resident: 1}"
    for loads, plain in (("chat", "other"), ("other", "chat")):
        settings = [f"workloads.{loads}.model=deepseek-v2-lite", f"workloads.{loads}.adapters={adapters}"]
        scenario = loaded(
            tmp_path, CLUSTER + SERVING + changed(one, "chat", "other"), *settings, "workloads.other.ranks='1'"
        ).variants[0][1]  # fmt: skip
        result = simulate(scenario, 1, "run")
        split = result.tables["time_split"].set_index("workload")
        parts = split.drop(columns=["request", "e2e_s"]).sum(axis=1).to_numpy()
        assert parts == pytest.approx(split["e2e_s"].to_numpy())
        assert (split["adapter_load_s"].loc[loads] > 0).any()
        assert split["adapter_load_s"].loc[plain].isna().all()
        assert len(split) == result.metrics["serving.chat.completed"] + result.metrics["serving.other.completed"] == 20


@pytest.mark.parametrize(("tensor", "crosses"), [(2, False), (8, True)])
def test_contention_is_told_apart_where_something_crosses_hosts(tmp_path, tensor, crosses):
    """Hosts of four: of eight tensor-parallel ranks four lie on each of two."""
    settings = [CHAT + "contention=true", CHAT + f"parallelism.tensor={tensor}"]
    scenario = loaded(tmp_path, CLUSTER + SERVING, *settings).variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    assert server.parallelism.hosts == (2 if crosses else 1)
    if crosses:
        server.check_contention()
        return
    with pytest.raises(ValueError, match="nothing of a replica inside one host crosses the fabric"):
        server.check_contention()
