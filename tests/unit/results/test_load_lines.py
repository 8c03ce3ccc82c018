"""Is the service stable? Labels and sentences from what queues say."""

from __future__ import annotations

import numpy as np
import pytest

from sim.results.load_lines import load_lines, loads, overloads
from sim.results.run_results import RunResults, VariantResult
from sim.serving.load import Queue, queue_of


def queue(growth=0.0, num_late=1000, span_s=100.0, halfway=0, at_last=0, latency_s=1.0):
    return {"growth": growth, "num_late": num_late, "span_s": span_s, "waiting_halfway": halfway,
            "waiting_at_last": at_last, "mean_latency_s": latency_s}  # fmt: skip


def run_of(**by_variant):
    """One workload, `chat`; a list of queues per variant, one per seed."""
    num = max(len(queues) for queues in by_variant.values())
    run = RunResults("s", None, tuple(range(num)), tuple(by_variant), "1", None)
    for variant, queues in by_variant.items():
        for seed, each in enumerate(queues):
            run.results[variant, seed] = VariantResult(variant, seed, {}, {}, {"queues": {"chat": each}})
    return run


@pytest.mark.parametrize(
    ("queues", "label"),
    [
        ([queue(0.0)], "stable"),
        ([queue(0.5)], "overloaded"),
        ([queue(0.05, num_late=100)], "backlogged"),
        ([queue(0.05, num_late=1000)] * 10, "overloaded"),  # ten seeds leave less to chance: 2 sqrt(2 / 10000) = 0.03
        ([queue(0.0, span_s=2.0)], "too short"),
        ([queue(0.0, latency_s=None)], "too short"),  # nothing completed
    ],
)
def test_labels_are_those_of_a_capacity_search(queues, label):
    assert loads(run_of(run=queues))["run"]["chat"].label == label


def test_an_overload_is_said_with_its_evidence():
    run = run_of(ideal=[queue()], ecmp=[queue(0.31, halfway=12, at_last=80)])

    assert overloads(run) == [
        "chat under ecmp is overloaded: waits grow by 0.31 s with each second of arrivals (requests waiting: 12 half "
        "way through the arrivals, 80 at the last one): more arrive than are served, so that latencies depend on how "
        "long the run is."
    ]
    assert len(load_lines(run)) == 2
    assert len(load_lines(run_of(ideal=[queue()], ecmp=[queue()]))) == 1


def test_a_run_that_was_cut_short_says_nothing():
    run = run_of(run=[queue(0.5)])
    run.results["run", 0].notes["partial"] = True

    assert loads(run) == {}


def test_who_waits_when():
    """Arrivals 0 … 8, served from 4 on: half way, at 4, requests 0 … 3 are served and 4 … wait; request 8 never is."""
    arrival_s = np.arange(9.0)
    scheduled_s = np.array([4.0, 4.0, 4.0, 4.0, 5.0, 9.0, 9.0, 9.0, np.nan])

    found = queue_of(arrival_s, scheduled_s, end_s=20.0)

    # The last quarter of nine is two: waits 2 and 12, before it 3 and 4 (requests 5 and 6 wait 4 and 3).
    assert found == Queue((7.0 - 3.5) / 2.0, 2, 8.0, 1, 4)
    assert queue_of(np.zeros(0), np.zeros(0), 1.0) == Queue(0.0, 0.0, 0.0, 0, 0)
