from __future__ import annotations

import numpy as np
import pytest

from sim.serving.metrics import as_of, inter_token_gaps_s, serving_metrics
from sim.serving.request import COMPLETED, FAILED, UNFINISHED, new_requests, new_token_times


@pytest.fixture
def two():
    """Requests of 3 and 1 output tokens that arrived at 0 and 1 s, and one that was refused."""
    requests = new_requests(np.array([0.0, 1.0, 1.5]), np.array([10, 20, 30]), np.array([3, 1, 2]))
    token_time_s = new_token_times(requests)
    token_time_s[:4] = [0.5, 0.6, 0.9, 3.0]
    requests["outcome"] = [COMPLETED, COMPLETED, FAILED]
    requests["num_generated"] = [3, 1, 0]
    requests["scheduled_s"][:2] = [0.0, 2.0]
    requests["first_token_s"][:2] = [0.5, 3.0]
    requests["finished_s"][:2] = [0.9, 3.0]
    return requests, token_time_s


def test_metrics_by_hand(two):
    metrics = serving_metrics(*two)

    assert (metrics["completed"], metrics["failed"], metrics["unfinished"]) == (2, 1, 0)
    assert metrics["duration_s"] == 3.0
    assert metrics["request_throughput"] == pytest.approx(2 / 3)
    assert metrics["output_throughput"] == pytest.approx(4 / 3)
    assert metrics["total_token_throughput"] == pytest.approx(34 / 3)
    assert metrics["mean_ttft_ms"] == pytest.approx(1250.0)
    assert metrics["std_ttft_ms"] == pytest.approx(750.0)
    # A request with a single token has no time per output token.
    assert metrics["mean_tpot_ms"] == pytest.approx(200.0)
    assert metrics["median_itl_ms"] == pytest.approx(200.0)
    assert metrics["mean_e2el_ms"] == pytest.approx(1450.0)
    assert metrics["p90_e2el_ms"] == pytest.approx(900 + 0.9 * 1100)


def test_gaps_stay_within_a_request(two):
    requests, token_time_s = two

    assert inter_token_gaps_s(requests, token_time_s) == pytest.approx([0.1, 0.3])
    assert inter_token_gaps_s(requests[::-1], token_time_s) == pytest.approx([0.1, 0.3])
    assert len(inter_token_gaps_s(requests[1:], token_time_s)) == 0


def test_nothing_served_gives_none():
    requests = new_requests(np.array([0.0]), np.array([1]), np.array([1]))

    metrics = serving_metrics(requests, new_token_times(requests))

    assert metrics["completed"] == 0
    assert metrics["p99_itl_ms"] is None
    assert metrics["request_throughput"] is None


def test_an_engine_ahead_of_the_clock_is_seen_as_of_now(two):
    requests, token_time_s = as_of(*two, now_s=0.7)

    assert requests["num_generated"].tolist() == [2, 0, 0]
    assert np.isnan(requests["finished_s"]).all()
    assert np.isnan(requests["scheduled_s"][1])
    assert requests["outcome"].tolist() == [UNFINISHED, UNFINISHED, FAILED]
    assert np.isnan(token_time_s[2:]).all()
    # The originals stay as they are.
    assert two[0]["outcome"].tolist() == [COMPLETED, COMPLETED, FAILED]
    assert as_of(*two, now_s=3.0)[0] is two[0]


@pytest.mark.parametrize(
    ("arrivals", "prompts", "outputs", "message"),
    [
        ([1.0, 0.0], [1, 1], [1, 1], "never fall"),
        ([0.0, np.nan], [1, 1], [1, 1], "finite"),
        ([0.0], [0], [1], "request 0: 0 prompt tokens"),
        ([0.0, 0.0], [1, 1], [1, 0], "request 1: 0 output tokens"),
        ([0.0], [1, 1], [1], "1 arrivals, 2 prompts"),
    ],
)
def test_requests_are_checked(arrivals, prompts, outputs, message):
    with pytest.raises(ValueError, match=message):
        new_requests(np.array(arrivals), np.array(prompts), np.array(outputs))
