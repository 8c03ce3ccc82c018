"""Requests within their targets, and what each tenant sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_parts import linear_table, served, workload

from sim.engine.recorder import Recorder
from sim.serving.accounts import ConservationError
from sim.serving.clients import OpenLoop, Patience
from sim.serving.fleet import Fleet, Outage
from sim.serving.front import Front
from sim.serving.metrics import serving_metrics
from sim.serving.request import COMPLETED, FAILED, new_requests, new_token_times
from sim.serving.tenants import TARGETS, Tenants, within_targets


def requests_with(arrival_s, token_s):
    """Completed requests of these tokens' times."""
    requests = new_requests(np.array(arrival_s), np.ones(len(token_s), int), np.array([len(t) for t in token_s]))
    token_time_s = new_token_times(requests)
    token_time_s[:] = np.concatenate(token_s)
    requests["num_generated"], requests["outcome"] = requests["num_output_tokens"], COMPLETED
    requests["scheduled_s"] = arrival_s
    requests["first_token_s"], requests["finished_s"] = [t[0] for t in token_s], [t[-1] for t in token_s]
    return requests, token_time_s


THREE = requests_with([0.0, 1.0, 1.5], [[0.5, 0.6, 0.9], [3.0], [2.0, 2.2, 2.4, 2.6]])
"""Times to the first token of 500, 2000, 500 ms; gaps of 100 and 300, none, and thrice 200 ms."""


@pytest.mark.parametrize(
    ("targets", "within"),
    [
        ({}, [True, True, True]),
        ({"p99_ttft_ms": 501}, [True, False, True]),
        ({"mean_ttft_ms": 499}, [False, False, False]),
        ({"p99_itl_ms": 250}, [False, True, True]),
        ({"mean_itl_ms": 201}, [True, True, True]),
        ({"median_itl_ms": 199}, [False, True, False]),
        ({"p90_itl_ms": 281, "p95_itl_ms": 289}, [False, True, True]),  # of 100 and 300: 280 and 290
        ({"p99_tpot_ms": 201, "p99_e2el_ms": 1000}, [True, False, False]),
        ({"p99_ttft_ms": 501, "p99_itl_ms": 250}, [False, False, True]),
    ],
)
def test_by_hand(targets, within):
    assert within_targets(*THREE, targets).tolist() == within


GAPS = st.lists(st.lists(st.floats(1e-3, 1.0), min_size=0, max_size=9), min_size=1, max_size=6)


@given(GAPS, st.sampled_from(TARGETS))
def test_each_request_is_measured_as_a_workload_of_its_own(gaps, target):
    """A request alone has the same latencies, by the metrics that every run reports."""
    token_s = [np.cumsum([0.25, *own]) for own in gaps]
    requests, token_time_s = requests_with([0.0] * len(gaps), token_s)
    alone = [serving_metrics(requests[i : i + 1], token_time_s)[target] or 0.0 for i in range(len(gaps))]
    for bound in (*(1 + 1e-9) * np.array(alone), *(1 - 1e-9) * np.array(alone)):
        expected = [value <= bound for value in alone]
        if bound > 0 and min(abs(bound - v) for v in alone) > 1e-11:
            assert within_targets(requests, token_time_s, {target: bound}).tolist() == expected


def test_refused_requests_are_not_within_targets():
    requests, token_time_s = requests_with([0.0, 1.0, 1.5], [[0.5, 0.6, 0.9], [3.0], [2.0, 2.2, 2.4, 2.6]])
    requests["outcome"][2], requests["num_generated"][2] = FAILED, 0
    tenants = Tenants((), np.zeros(3, np.int16), ({"p99_ttft_ms": 501},))
    assert tenants.metrics(requests, token_time_s) == {"request_goodput": 1 / 3, "slo_attainment": 1 / 3}


def test_what_tenants_see_adds_up_to_the_workload():
    """Random requests of two tenants on a small server; the second has no targets: all of its requests count."""
    rng = np.random.default_rng(4)
    n = 300
    tenants = Tenants(("chat", "batch"), rng.integers(0, 2, n).astype(np.int16), ({"p99_ttft_ms": 900.0}, {}))
    load = np.cumsum(rng.exponential(0.26, n)), rng.integers(1, 50, n), rng.integers(1, 30, n)
    made = served(*load, table=linear_table(0.05, tokens=0.004), tenants=tenants)
    found = made.metrics()
    for name in ("arrived", "completed", "total_output_tokens", "request_throughput", "output_throughput"):
        assert found[f"chat.{name}"] + found[f"batch.{name}"] == pytest.approx(found[name])
    own = made.requests[tenants.of == 0]
    ttft_s = own["first_token_s"] - own["arrival_s"]
    assert 0.2 < found["chat.slo_attainment"] < 0.97
    assert found["chat.slo_attainment"] == pytest.approx(np.mean(ttft_s <= 0.9))
    assert found["chat.p99_ttft_ms"] == pytest.approx(1e3 * np.percentile(ttft_s, 99))
    good = (ttft_s <= 0.9).sum() + (tenants.of == 1).sum()
    assert found["slo_attainment"] == pytest.approx(good / n)
    assert found["request_goodput"] == pytest.approx(good / found["duration_s"])
    assert "batch.slo_attainment" not in found and found["batch.completed"] == (tenants.of == 1).sum()
    recorder = Recorder()
    made.record(recorder)
    assert recorder.frames()["tenants"]["tenant"].tolist() == [tenants.names[t] for t in tenants.of]


def test_each_tenant_s_requests_are_accounted_for():
    """Replicas die, clients give up and try again, some prompts are too long, and the run is cut in between: what a
    tenant sent is completed, failed, timed out or unfinished, and counts of tenants add up to the workload's."""
    rng = np.random.default_rng(11)
    n = 400
    tenants = Tenants(("chat", "batch"), rng.integers(0, 2, n).astype(np.int16), ({}, {}))
    arrivals, prompts = np.cumsum(rng.exponential(0.2, n)), rng.integers(1, 50, n)
    prompts[::37] = 999
    outages = [Outage((int(i % 2),), 5.0 * i, 5.0 * i + 3.0) for i in range(1, 12)]
    made = workload(
        arrivals, prompts, rng.integers(1, 30, n), table=linear_table(0.05, tokens=0.004), tenants=tenants,
        num_replicas=2, front=Front(OpenLoop(arrivals), Patience(2.0, False, 1, 0.5), Fleet(outages)),
    )  # fmt: skip
    made.start()
    for until_s in (21.3, 60.0, 1000.0):
        made.clock.run(until=until_s)
        made.check()
        found = made.metrics()
        for i, tenant in enumerate(("chat", "batch")):
            ended = [found[f"{tenant}.{name}"] for name in ("completed", "failed", "timed_out", "unfinished")]
            assert sum(ended) == found[f"{tenant}.arrived"] == (made.front.num_attempts[tenants.of == i] > 0).sum()
        for name in ("arrived", "failed", "timed_out", "num_retries", "lost_output_tokens", "unfinished"):
            assert found[f"chat.{name}"] + found[f"batch.{name}"] == found[name]
    assert min(found[f"{t}.{name}"] for t in ("chat", "batch") for name in ("failed", "timed_out", "num_retries")) > 0


def test_a_request_that_is_nowhere_is_found_out():
    made = workload([0.0], [4], [20], front=Front(OpenLoop(np.zeros(1))))
    made.start()
    made.clock.run(until=5.0)
    made.check()
    made.front._on[0].clear()
    with pytest.raises(ConservationError, match=r"requests \[0\] are unfinished"):
        made.check()


def test_without_tenants_nothing_is_added():
    plain = served([0.0], [4], [2])
    assert "slo_attainment" not in plain.metrics()
    recorder = Recorder()
    plain.record(recorder)
    assert "tenants" not in recorder.frames()
