"""Clients of a scenario: what is read, what is refused, and what comes out at the other end."""

import numpy as np
import pytest
from scenario_texts import CLUSTER, SERVING, changed, loaded, refusal

from sim.scenario import build
from sim.scenario.build_clients import think_times
from sim.scenario.clients import ExponentialTime, FixedTime, LognormalTime
from sim.simulate import simulate

OPEN = "arrivals: {kind: poisson, rate: 4 /s}"
CLOSED = "arrivals: {kind: closed_loop, concurrency: 3, think_time: 100 ms}"


def text(arrivals=CLOSED, extra="") -> str:
    return CLUSTER + changed(SERVING, OPEN, arrivals) + extra


@pytest.mark.parametrize(
    ("arrivals", "extra", "words"),
    [
        ("arrivals: {kind: closed_loop}", "", "chat.arrivals.concurrency: is missing; write for example `concurrency"),
        ("arrivals: {kind: closed_loop, concurrency: 0}", "", "'0' must be at least 1"),
        ("arrivals: {kind: closed_loop, concurrency: 4, think_time: 2}", "", "'2' has no unit"),
        ("arrivals: {kind: closed_loop, concurrency: 4, think_time: {law: normal}}", "", "unknown law 'normal'"),
        ("arrivals: {kind: closed_loop, concurrency: 4, rate: 2 /s}", "", "unknown key 'rate'"),
        ("arrivals: {kind: poisson, rate: 2 /s, ramp: 3 s}", "",
         "unknown key 'ramp'; choose one of kind, rate, shape; 'ramp' is a key of closed_loop"),
        ("arrivals: {kind: closed_loop, concurrency: 4, ramp: 3 s}", "    duration: 2 s\n",
         "chat.arrivals.ramp: ramp is 3 s, above the duration, 2 s"),
        (OPEN, "    client: {retries: 2}\n", "client.retries: retries has no effect without a timeout"),
        (OPEN, "    client: {timeout: 1 s, backoff: 1 s}\n", "backoff has no effect without retries"),
        (OPEN, "    client: {timeout: 0 s}\n", "must be above 0"),
        (OPEN, "    client: {timeout: 1 s, timeout_ends_with: token}\n", "unknown timeout_ends_with 'token'"),
    ],
)
def test_what_is_refused(tmp_path, arrivals, extra, words):
    assert words in refusal(tmp_path, text(arrivals, extra))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("faults: [{at: 1 s, replica: chat/2, state: down}]", "no replica 'chat/2'; there are chat/0 … chat/1"),
        ("faults: [{at: 1 s, replica: 1, state: down}]", "'1' does not say whose replica; write for example 'chat/1'"),
        ("faults: [{at: 1 s, replica: chat, state: down}]", "no replica 'chat'; there are chat/0"),
        ("faults: [{at: 1 s, replica: chat/1, rate: 1 Gbit/s}]", "a replica can only be down; write state: down"),
        ("faults: [{at: 1 s, replica: chat/1, host: 0, state: down}]", "here host and replica; make it one entry each"),
    ],
)
def test_faults_of_replicas_that_are_refused(tmp_path, extra, words):
    assert words in refusal(tmp_path, text(OPEN, "    replicas: 2\n" + extra))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("    autoscale: {max: 4}\n", "autoscale.target_outstanding: is missing"),
        ("    autoscale: {min: 4, max: 2, target_outstanding: 8}\n", "min is 4, above max, 2; swap them"),
        ("    autoscale: {min: 2, max: 4, target_outstanding: 8}\n", "1 at the beginning is not from autoscale.min, 2"),
        ("    autoscale: {max: 40, target_outstanding: 8}\n", "autoscale.max: 40 replicas of 1 accelerator "),
        ("    router: {policy: adapter_affinity}\n", "router.policy: adapter_affinity brings an adapter's requests"),
        ("    router: {report_interval: 1 s}\n", "round_robin looks at no replica"),
    ],
)
def test_deployments_that_are_refused(tmp_path, extra, words):
    assert words in refusal(tmp_path, text(OPEN, extra))


def test_a_dead_host_takes_the_replicas_on_it_down(tmp_path):
    """Hosts of 4 accelerators, replicas of 2: 0 and 1 lie on host 0, 2 on host 1."""
    extra = "    replicas: 3\n    parallelism: {tensor: 2}\nfaults:\n"
    faults = "  - {at: 1 s, host: 0, state: down, until: 2 s}\n  - {at: 1500 ms, replica: chat/2, state: down}\n"
    rest = "  - {at: 1 s, host: 1, rate: 1 Gbit/s}\n"
    scenario = loaded(tmp_path, text(OPEN, extra + faults + rest)).variants[0][1]
    fleet = build.build(scenario, 1).workloads[0].front.fleet
    assert [(o.replicas, o.at_s, o.until_s) for o in fleet.outages] == [((0, 1), 1.0, 2.0), ((2,), 1.5, None)]
    result = simulate(scenario, 1, "run")
    assert result.metrics["serving.chat.completed"] == 10
    assert result.tables["faults"]["what"].tolist() == ["host0 down", "replica chat/2 down", "host1 at 1 Gbit/s"]


def test_a_replica_whose_experts_lie_on_several_hosts_dies_with_one_of_them(tmp_path):
    """Messages of the step in flight are cancelled; the bytes of the fabric add up, and every request is served."""
    extra = "    replicas: 2\n    parallelism: {expert: 8}\n"
    extra += "faults: [{at: 20 ms, host: 1, state: down, until: 3 s}]\n"
    moe = changed(text(CLOSED, extra), "llama-3.1-8b", "deepseek-v2-lite", "mean: 200", "mean: 20")
    scenario = loaded(tmp_path, moe).variants[0][1]
    results = [simulate(scenario, 1, "run") for _ in range(2)]
    metrics = results[0].metrics
    assert metrics["serving.chat.completed"] == 10 and metrics["serving.chat.num_retries"] > 0
    assert metrics == results[1].metrics
    frame = results[0].tables["requests"]
    is_hit = (frame["num_attempts"] > 1).to_numpy()
    assert is_hit.any() and (frame["first_token_s"].to_numpy()[is_hit] > 0.02).all()


def test_a_closed_loop_on_a_fabric(tmp_path):
    moe = changed(text(CLOSED, "    parallelism: {expert: 8}\n"), "llama-3.1-8b", "deepseek-v2-lite",
                  "mean: 200", "mean: 20")  # fmt: skip
    frame = simulate(loaded(tmp_path, moe).variants[0][1], 1, "run").tables["requests"]
    sent, ended = np.sort(frame["arrival_s"].to_numpy()), np.sort(frame["finished_s"].to_numpy())
    assert (sent[:3] == 0).all() and len(sent) == 10
    assert (sent[3:] == ended[:7] + 0.1).all()


def test_a_ramp_of_a_scenario(tmp_path):
    ramped = "arrivals: {kind: closed_loop, concurrency: 3, ramp: 3 s, think_time: 100 ms}"
    frame = simulate(loaded(tmp_path, text(ramped)).variants[0][1], 1, "run").tables["requests"]
    assert frame["arrival_s"].to_numpy()[:3].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("    tenants: [{name: a}, {name: b, priority: 2}]\n", "tenants' priorities have no effect under "),
        ("    tenants: [{name: a}, {name: b, priority: 2}]\n    batching: {policy: priority}\n", None),
        ("    tenants: [{name: a}, {name: b}]\n", None),
        ("    router: {policy: prefix_affinity}\n", "is least_outstanding here: no prompts share a beginning"),
        ("    router: {policy: prefix_affinity}\n    kv: {prefix_caching: false}\n"
         "    sessions: {turns: {law: fixed, tokens: 2}}\n", "is least_outstanding here: kv.prefix_caching is false"),
        ("    router: {policy: prefix_affinity}\n    sessions: {turns: {law: fixed, tokens: 2}}\n", None),
    ],
)  # fmt: skip
def test_keys_without_effect_are_said(tmp_path, extra, words):
    """And prefix_affinity is then what the remark says it is."""
    result = simulate(loaded(tmp_path, text(OPEN, "    replicas: 2\n" + extra)).variants[0][1], 1, "run")
    warnings = result.notes["warnings"]
    assert warnings == [] if words is None else len(warnings) == 1 and words in warnings[0]
    if words is not None and "least_outstanding" in words:
        plain = extra.replace("prefix_affinity", "least_outstanding")
        same = simulate(loaded(tmp_path, text(OPEN, "    replicas: 2\n" + plain)).variants[0][1], 1, "run")
        assert result.tables["requests"].equals(same.tables["requests"])


def test_a_closed_loop_says_how_many_requests_at_most(tmp_path):
    broken = changed(text(), "num_requests: 10", "duration: 5 s")
    assert "give num_requests, the most of them, beside the duration" in refusal(tmp_path, broken)


def test_a_session_of_a_scenario(tmp_path):
    extra = "    sessions: {turns: {law: uniform, low: 1, high: 5}, think_time: {law: exponential, mean: 300 ms}}\n"
    found = loaded(tmp_path, text(OPEN, extra))
    build.check(found)
    results = [simulate(found.variants[0][1], 1, "run") for _ in range(2)]
    frame = results[0].tables["requests"]
    assert frame.equals(results[1].tables["requests"])
    first = frame["input_tokens"] == 512
    assert first.sum() == 10 and len(frame) > 15 and (frame["outcome"] == "completed").all()
    # The cache holds all of it, so that each turn finds what was computed before, in whole blocks of 16.
    said = (frame["input_tokens"] + frame["output_tokens"]).shift(1)[~first]
    assert (frame["input_tokens"][~first] == said + 512).all()
    assert (frame["cached_tokens"][~first] == (said - 1) // 16 * 16).all()
    assert "leave out sessions, or the trace" in refusal(
        tmp_path, text(OPEN, extra + "    trace: {file: scenario.yaml}\n")
    )


def test_laws_have_their_means():
    rng = np.random.default_rng(0)
    assert think_times(FixedTime(law="fixed", time="2 s"), rng, 1)(0) == 2.0
    for law in (ExponentialTime(law="exponential", mean="2 s"), LognormalTime(law="lognormal", mean="2 s", sigma=0.5)):
        drawn = np.array([*map(think_times(law, rng, 20_000), range(20_000))])
        assert drawn.mean() == pytest.approx(2.0, abs=5 * drawn.std() / np.sqrt(len(drawn)))


def test_a_run_of_clients_twice_is_one_run(tmp_path):
    extra = "    client: {timeout: 500 ms, retries: 1, backoff: 100 ms}\n    replicas: 2\n"
    found = loaded(tmp_path, text(CLOSED, extra))
    build.check(found)
    scenario = found.variants[0][1]
    results = [simulate(scenario, 1, "run") for _ in range(2)]
    tables = [{name: frame.to_json() for name, frame in result.tables.items()} for result in results]
    assert tables[0] == tables[1]
    metrics = results[0].metrics
    ended = [metrics[f"serving.chat.{name}"] for name in ("completed", "timed_out", "failed", "unfinished")]
    assert sum(ended) == 10 and ended[0] > 0 and ended[1] > 0
    frame = results[0].tables["requests"]
    assert (frame["outcome"] == "timed out").sum() == ended[1]
    assert frame["num_attempts"].sum() == 10 + metrics["serving.chat.num_retries"]


def test_without_new_keys_the_tables_are_as_before(tmp_path):
    found = loaded(tmp_path, text(OPEN))
    result = simulate(found.variants[0][1], 1, "run")
    assert "num_attempts" not in result.tables["requests"] and "serving.chat.timed_out" not in result.metrics
