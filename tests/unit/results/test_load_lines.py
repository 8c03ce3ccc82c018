"""Is the service stable? Labels and sentences from what queues say."""

from __future__ import annotations

import numpy as np
import pytest

from sim.results.load_lines import herds, load_lines, loads, overloads
from sim.results.run_results import RunResults, VariantResult
from sim.serving.load import Herd, Queue, herd_of, queue_of


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


def test_what_several_variants_have_in_common_is_said_once():
    """Two overloaded of three: their names, and the range of each number."""
    run = run_of(a=[queue(0.31, halfway=12, at_last=80)], b=[queue()], c=[queue(0.5, halfway=20, at_last=80)])

    (line,) = overloads(run)
    assert line.startswith(
        "chat under a and c is overloaded: waits grow by 0.31 to 0.50 s with each second of arrivals (requests "
        "waiting: 12 to 20 half way through the arrivals, 80 at the last one): more arrive"
    )
    assert len(load_lines(run)) == 2
    everywhere = overloads(run_of(a=[queue(0.3)], c=[queue(0.3)]))
    assert len(everywhere) == 1
    assert everywhere[0].startswith("chat under every variant is overloaded: waits grow by 0.30 s")
    assert overloads(run_of(run=[queue(0.3)]))[0].startswith("chat is overloaded")


def test_a_herd_is_told_from_the_load():
    """Of 100 requests two come at once, at 0, and wait for 10 s, the others for 1 s: percentile 99, of rank 98.01 from
    0 on, lies among the tens; without those two it is 1 s."""
    arrival_s = np.array([0.0, 0.0, *np.arange(1.0, 99.0)])
    found = herd_of(arrival_s, arrival_s + np.where(arrival_s == 0, 10.0, 1.0))

    assert found == Herd(2, 10.0, 1.0)
    assert herd_of(arrival_s[1:], arrival_s[1:]) is None
    assert herd_of(np.zeros(3), np.ones(3)) == Herd(3, 1.0, None)


def test_a_herd_that_makes_the_tail_is_said_in_the_report():
    few, many = (queue() | {"num_at_once": 16, "p99_ttft_s": p99, "p99_ttft_later_s": 0.2} for p99 in (0.21, 3.0))
    (line,) = herds(run_of(few=[few], many=[many, many | {"p99_ttft_s": 5.0}]))

    said = line.replace("\u00a0", " ")
    assert "p99 time to first token is 4.000 s with and 200.0 ms without their first requests under many;" in said
    assert line in load_lines(run_of(few=[few, few], many=[many, many | {"p99_ttft_s": 5.0}]))
    assert herds(run_of(run=[queue()])) == []


def test_of_many_herds_the_worst_is_named_and_the_others_counted():
    a, b, c = (queue() | {"num_at_once": 16, "p99_ttft_s": p99, "p99_ttft_later_s": 0.2} for p99 in (0.5, 3.0, 1.0))
    (line,) = herds(run_of(a=[a], b=[b], c=[c]))

    said = line.replace("\u00a0", " ")
    assert "is 3.000 s with and 200.0 ms without their first requests under b (and by more than a tenth longer" in said
    assert "under 2 more);" in said
