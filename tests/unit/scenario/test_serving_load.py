"""What a serving workload is sent: traces, rates that vary, from the file to the requests."""

import numpy as np
import pytest
from scenario_texts import CLUSTER, SERVING, loaded, refusal

from sim.engine.random import RandomStreams
from sim.scenario.build import check
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_server import Server

BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,12,0,12,Conversation log
118,GPT-4,417,276,693,API log
"""


def server_of(found):
    (_, scenario), *_ = found.variants
    return Server(scenario, scenario.workloads[0], build_topology(scenario.cluster))


def with_arrivals(text):
    return CLUSTER + SERVING.replace("{kind: poisson, rate: 4 /s}", text)


@pytest.fixture
def burstgpt(tmp_path):
    (tmp_path / "b.csv").write_text(BURSTGPT)
    lines = [line for line in SERVING.splitlines() if "lengths" not in line and "num_requests" not in line]
    text = "\n".join([*lines, "    trace: {format: burstgpt, file: b.csv}\n"])
    return CLUSTER + text.replace("{kind: poisson, rate: 4 /s}", "{kind: trace}")


def test_a_burstgpt_trace(tmp_path, burstgpt):
    server = server_of(loaded(tmp_path, burstgpt))
    arrival_s, prompt, output = server.requests(RandomStreams(1))
    assert (arrival_s.tolist(), prompt.tolist(), output.tolist()) == ([0, 113], [472, 417], [18, 276])
    assert server.remarks() == ["1 rows of the trace had no response tokens, failures, and are left out"]
    only = server_of(loaded(tmp_path, burstgpt, "workloads.chat.trace.model=ChatGPT"))
    assert len(only.arrivals(RandomStreams(1))) == 1 and only.remarks() == []


def test_only_burstgpt_has_a_column_for_the_model(tmp_path, burstgpt):
    words = refusal(tmp_path, burstgpt.replace("format: burstgpt", "format: azure, model: GPT-4"))
    assert "a trace of format azure has no column for model" in words
    words = "no row with Log Type 'chat'; it has Log Type: Conversation log, API log"
    with pytest.raises(Exception, match=words):
        check(loaded(tmp_path, burstgpt, "workloads.chat.trace.log_type=chat"))


def test_rates_that_vary_have_the_mean_that_is_written(tmp_path):
    """Over whole periods; four standard deviations of a Poisson count of 4,000. In the last tenth of each lie
    1 / 10 + 0.8 (cos(1.8 pi) - 1) / 2 pi of the day's, and 5 / (9 + 5) of the bursts'."""
    for shape, last_tenth in (
        ("{kind: diurnal, period: 10 s, amplitude: 0.8}", 0.1 + 0.8 * (np.cos(1.8 * np.pi) - 1) / (2 * np.pi)),
        ("{kind: burst, period: 10 s, length: 1 s, factor: 5}", 5 / 14),
    ):
        text = with_arrivals(f"{{kind: poisson, rate: 4 /s, shape: {shape}}}").replace(
            "num_requests: 10", "duration: 1000 s")  # fmt: skip
        arrival_s = server_of(loaded(tmp_path, text)).arrivals(RandomStreams(1))
        assert abs(len(arrival_s) - 4000) < 4 * 4000**0.5
        found = float(np.mean(arrival_s % 10 >= 9))
        assert abs(found - last_tenth) < 4 * (last_tenth * (1 - last_tenth) / 4000) ** 0.5


@pytest.mark.parametrize(
    ("arrivals", "words"),
    [
        ("{kind: poisson, rate: 4 /s, shape: {kind: burst, period: 9 s, length: 9 s, factor: 2}}",
         "length is not below period"),
        ("{kind: poisson, rate: 4 /s, shape: {kind: diurnal, period: 1 h, amplitude: 1.5}}", "amplitude"),
        ("{kind: gamma, rate: 4 /s, shape: {kind: diurnl, period: 1 h, amplitude: 0.5}}", "diurnal"),
    ],
)  # fmt: skip
def test_shapes_that_make_no_sense(tmp_path, arrivals, words):
    assert words in refusal(tmp_path, with_arrivals(arrivals))


# --- tenants ----------------------------------------------------------------------------------------------------------

TENANTS = SERVING.replace("num_requests: 10", "num_requests: 4000") + """\
    targets: {p99_itl_ms: 50}
    tenants:
      - {name: people, share: 3, targets: {p99_ttft_ms: 500}}
      - name: batch
        lengths: {input: {law: fixed, tokens: 2000}, output: {law: uniform, low: 5, high: 9}}
        targets: {p99_itl_ms: 500}
"""


def test_tenants_share_the_arrivals(tmp_path):
    server = server_of(loaded(tmp_path, CLUSTER + TENANTS))
    streams = RandomStreams(3)
    _, prompt, output = server.requests(streams)
    tenants = server.tenants(streams, 4000)
    is_batch = tenants.of == 1
    assert abs(is_batch.mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert set(prompt[is_batch]) == {2000} and set(output[is_batch]) == {5, 6, 7, 8, 9}
    # the others' lengths are those of the workload, request by request, as if they were alone
    alone = server_of(loaded(tmp_path, CLUSTER + SERVING.replace("num_requests: 10", "num_requests: 4000")))
    _, _, output_alone = alone.requests(streams)
    assert set(prompt[~is_batch]) == {512} and (output[~is_batch] == output_alone[~is_batch]).all()
    assert tenants.targets == ({"p99_itl_ms": 50, "p99_ttft_ms": 500}, {"p99_itl_ms": 500})


def test_lengths_are_not_needed_where_every_tenant_has_its_own(tmp_path):
    own = "{input: {law: fixed, tokens: 7}, output: {law: fixed, tokens: 3}}"
    lines = [line for line in SERVING.splitlines() if "lengths" not in line]
    text = "\n".join([*lines, f"    tenants: [{{name: a, lengths: {own}}}]\n"])
    _, prompt, output = server_of(loaded(tmp_path, CLUSTER + text)).requests(RandomStreams(1))
    assert set(prompt) == {7} and set(output) == {3}
    assert "lengths are missing" in refusal(tmp_path, CLUSTER + text.replace(f", lengths: {own}", ""))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("p99_ttft_ms: 500", "p99_tfft_ms: 500", "did you mean 'p99_ttft_ms'?"),
        ("p99_ttft_ms: 500", "p99_ttft_ms: 0", "p99_ttft_ms"),
        ("name: batch", "name: people", "two tenants are named 'people'"),
        ("name: batch", "name: v1.5", "'v1.5' has a dot"),
        ("share: 3", "share: 0", "share"),
    ],
)
def test_tenants_that_make_no_sense(tmp_path, old, new, words):
    assert words in refusal(tmp_path, CLUSTER + TENANTS.replace(old, new))


def test_a_tenant_whose_shortest_request_is_too_long_is_refused_where_it_stands(tmp_path):
    text = CLUSTER + TENANTS.replace("tokens: 2000", "tokens: 200000")
    with pytest.raises(Exception, match=r"yaml:\d+: workloads.chat.tenants.batch.lengths.input.tokens: prompts"):
        check(loaded(tmp_path, text))
