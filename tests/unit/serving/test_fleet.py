"""Replicas that die, that report late, that come and go. Steps take one second unless told otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of, workload

from sim.devices.kv_cache import Contents
from sim.serving.clients import ClosedLoop, OpenLoop, Patience
from sim.serving.fleet import Fleet, Outage, Scaling
from sim.serving.front import Front
from sim.serving.request import OUTCOMES


def run(arrivals, prompts, outputs, fleet, patience=None, **options):
    front = Front(OpenLoop(np.asarray(arrivals, float)), patience, fleet)
    return served(arrivals, prompts, outputs, front=front, **options)


def outcomes(made) -> list[str]:
    return [OUTCOMES[o] for o in made.requests["outcome"]]


# --- death ------------------------------------------------------------------------------------------------------------


def test_what_a_dead_replica_had_is_served_by_another_from_the_beginning():
    """Replica 0 dies in the middle of its fifth step: four tokens are lost, and ten come from replica 1."""
    made = run([0.0, 20.0], [4, 4], [10, 2], Fleet([Outage((0,), 4.5)]), num_replicas=2)

    assert tokens_of(made, 0) == [4.5 + i for i in range(1, 11)]
    assert made.requests["replica"].tolist() == [1, 1]
    metrics = made.metrics()
    assert (metrics["completed"], metrics["num_retries"], metrics["lost_output_tokens"]) == (2, 1, 4)
    assert made.replicas[0].engine.steps["finished_s"].tolist() == [1, 2, 3, 4]


def test_or_it_has_failed():
    patience = Patience(resends_lost=False)
    made = run([0.0, 0.0, 5.0], [4] * 3, [10] * 3, Fleet([Outage((0,), 4.5)]), patience, num_replicas=2)
    assert outcomes(made) == ["failed", "completed", "completed"]
    assert made.failures == {"lost with its replica": 1}


def test_where_all_are_down_requests_are_held_until_one_is_back():
    made = run([0.0, 5.0], [4, 4], [10, 1], Fleet([Outage((0,), 4.5, 8.0)]))
    assert tokens_of(made, 0) == [8.0 + i for i in range(1, 11)] and tokens_of(made, 1) == [9.0]
    assert made.requests["arrival_s"].tolist() == [0.0, 5.0]


def test_where_none_comes_back_they_have_failed():
    made = run([0.0, 5.0], [4, 4], [10, 1], Fleet([Outage((0,), 4.5)]))
    assert outcomes(made) == ["failed", "failed"]
    assert made.failures == {"no replica was up any more": 2}


def test_a_client_may_give_up_on_what_is_held():
    made = run([0.0], [4], [10], Fleet([Outage((0,), 4.5, 30.0)]), Patience(12.0))
    assert outcomes(made) == ["timed out"]


def test_overlapping_outages_end_with_the_last():
    made = run([5.0], [4], [1], Fleet([Outage((0,), 1.0, 9.0), Outage((0,), 2.0, 6.0)]))
    assert tokens_of(made, 0) == [10.0]


@pytest.mark.parametrize(("outage", "cached"), [((), 8), ((Outage((0,), 5.0, 6.0),), 0)])
def test_the_cache_is_lost(outage, cached):
    """Two equal prompts of two blocks and one token: the second finds the blocks, unless the replica died between."""
    contents = Contents(np.array([0, 2, 4]), np.array([0, 1, 0, 1]))
    made = run([0.0, 10.0], [9, 9], [2, 2], Fleet(outage), is_caching=True, contents=contents)
    assert made.requests["num_cached"].tolist() == [0, cached]


def test_requests_of_a_merged_model_wait_for_its_own_replicas():
    """Replica 0 has model 0 and is down from 1 to 7 s; replica 1 has model 1, and takes nothing of the other."""
    fleet = Fleet([Outage((0,), 1.0, 7.0)])
    made = run([0.0, 2.0, 2.0], [4] * 3, [3] * 3, fleet, num_replicas=2, model=np.array([0, 1, 0]), num_models=2)
    assert made.requests["replica"].tolist() == [0, 1, 0]
    assert made.requests["finished_s"].tolist() == [10.0, 5.0, 10.0]


# --- reports ----------------------------------------------------------------------------------------------------------


def test_between_two_reports_all_go_where_it_was_emptiest():
    """Reports at 0, 10, 20 s. Replica 0 seems empty until 10 s; then it has three requests, replica 1 none."""
    arrivals = [1.0, 2.0, 3.0, 11.0, 12.0, 21.0]
    load = arrivals, [4] * 6, [100] * 6
    stale = run(*load, Fleet(report_interval_s=10.0), num_replicas=2, router="least_outstanding")
    fresh = run(*load, Fleet(), num_replicas=2, router="least_outstanding")
    assert stale.requests["replica"].tolist() == [0, 0, 0, 1, 1, 1]
    assert fresh.requests["replica"].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_reported_cache_is_what_it_was():
    """Both families of prompts in one cache of two: what came after the report is not known."""
    families = [0, 1, 0, 0]
    contents = Contents(np.arange(5) * 2, np.array([n for f in families for n in (2 * f, 2 * f + 1)]))
    load = [0.0, 0.0, 5.0, 15.0], [9] * 4, [2, 40, 2, 2]
    options = {"num_replicas": 2, "router": "prefix_affinity", "is_caching": True, "contents": contents}
    made = run(*load, Fleet(report_interval_s=10.0), **options)
    # At 5 s nobody has reported anything: all go to replica 0. At 15 s it is known to have family 0.
    assert made.requests["replica"].tolist() == [0, 0, 0, 0]
    assert made.requests["num_cached"].tolist() == [0, 0, 8, 8]


def mean_wait_s(router: str, interval_s: float) -> float:
    """8 replicas of one slot and geometric service of 1 s in the mean, 90 % loaded."""
    rng = np.random.default_rng(2)
    num = 6000
    arrivals = np.cumsum(rng.exponential(1 / (0.9 * 8), num))
    made = run(arrivals, [1] * num, rng.geometric(0.25, num), Fleet(report_interval_s=interval_s), num_replicas=8,
               router=router, max_num_seqs=1, rng=np.random.default_rng(9), table=linear_table(0.25))  # fmt: skip
    return float((made.requests["scheduled_s"] - made.requests["arrival_s"]).mean())


def test_old_reports_make_the_least_loaded_replica_a_trap():
    """M. Mitzenmacher, How useful is old information? (IEEE TPDS 11, 2000), periodic updates: with fresh information
    the shortest queue is best. With information some services old it is worse than two choices, and than turns, which
    look at nothing."""
    fresh = {router: mean_wait_s(router, 0.0) for router in ("least_outstanding", "power_of_two")}
    old = {router: mean_wait_s(router, 8.0) for router in ("least_outstanding", "power_of_two")}
    in_turn = mean_wait_s("round_robin", 0.0)
    assert fresh["least_outstanding"] < fresh["power_of_two"] < in_turn
    assert old["least_outstanding"] > 2 * old["power_of_two"] > 4 * fresh["power_of_two"]
    assert old["least_outstanding"] > in_turn


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_a_replica_comes_and_goes_with_the_load():
    """Looked at every 10 s, one replica per 2 requests, 5 s to start one.

    4 requests of 41 s at 0. At 10 s two replicas are wanted: the second is there at 15 s. Four more of 3 s at 16 s:
    two go to replica 1 and two to replica 0, in turn. At 20 s there are 4, so two stay; at 50 s, when all is over but
    one request that came at 45 s, one is wanted, and replica 1, which is empty, is let go.
    """
    arrivals, outputs = [0.0] * 4 + [16.0] * 4 + [45.0], [41] * 4 + [3] * 4 + [20]
    fleet = Fleet(scaling=Scaling(1, 2, 2.0, 10.0, 5.0), num_first=1, num_accelerators=4)
    made = run(arrivals, [4] * 9, outputs, fleet, num_replicas=2, num_blocks=1000)

    assert made.requests["replica"].tolist() == [0] * 4 + [0, 1, 0, 1] + [0]
    # Paid: replica 0 from 0 to the end, at 65 s; replica 1 from the decision at 10 s to 50 s.
    assert made.clock.now == 65.0
    assert made.metrics()["accelerator_seconds"] == 4 * (65 + 40)


def test_who_leaves_serves_to_the_end_and_takes_nothing_new():
    """At 10 s one replica is wanted. Both have a request; replica 1 leaves, serves its own until 30 s, and is paid."""
    fleet = Fleet(scaling=Scaling(1, 2, 2.0, 10.0), num_first=2)
    made = run([0.0, 0.0, 15.0, 15.0], [4] * 4, [30, 30, 5, 5], fleet, num_replicas=2)
    assert made.requests["replica"].tolist() == [0, 1, 0, 0]
    assert tokens_of(made, 1)[-1] == 30.0
    # Four requests at 20 s: replica 1 is wanted again, and has not left yet.
    assert made.metrics()["accelerator_seconds"] == 30 + 30


def test_a_cooldown_keeps_replicas():
    arrivals, outputs = [0.0] * 4 + [95.0], [5] * 4 + [1]
    paid = {}
    for cooldown_s in (0.0, 50.0):
        fleet = Fleet(scaling=Scaling(1, 2, 2.0, 2.0, 0.0, cooldown_s), num_first=1)
        paid[cooldown_s] = run(arrivals, [4] * 5, outputs, fleet, num_replicas=2).metrics()["accelerator_seconds"]
    # Started at 2 s; let go at 6 s, or at the first look from 52 s on. The last request ends at 96 s.
    assert paid == {0.0: 96 + 4, 50.0: 96 + 50}


def test_a_replica_that_dies_for_good_is_replaced():
    fleet = Fleet([Outage((0,), 5.5)], scaling=Scaling(1, 2, 4.0, 2.0, 3.0), num_first=1)
    made = run([0.0], [4], [10], fleet, num_replicas=2)
    # Seen at 6 s, replaced at 9 s.
    assert tokens_of(made, 0)[-1] == 19.0 and made.requests["replica"].tolist() == [1]


def test_no_replica_is_started_where_an_outage_has_its_place_down():
    """Two are wanted at 2 s, and the place of replica 1 is down until 100 s: replica 2 is there at 5 s, and takes the
    request that comes at 6."""
    fleet = Fleet([Outage((1,), 1.0, 100.0)], scaling=Scaling(1, 3, 1.0, 2.0, 3.0), num_first=1)
    made = run([0.0, 0.0, 6.0], [4] * 3, [20, 20, 5], fleet, num_replicas=3, router="least_outstanding")
    assert made.requests["replica"].tolist() == [0, 0, 2]


def test_a_leaving_replica_that_has_died_is_not_kept_in_place_of_a_new_one():
    """Replica 1 leaves when it dies: of one that is wanted the place of replica 2 has to be taken."""
    fleet = Fleet(scaling=Scaling(1, 3, 1.0, 2.0, 3.0), num_first=2)
    made = workload([0.0], [4], [5], front=Front(OpenLoop(np.zeros(1)), None, fleet), num_replicas=3)
    fleet._standing[1].is_leaving, fleet._standing[1].num_outages = True, 1
    fleet._add(1)
    assert fleet._standing[1].is_leaving and fleet._standing[2].paid_from_s == made.clock.now


def test_looks_at_regular_times_end_with_the_work():
    """Neither reports nor scaling keep a run alive, and none is needed where all have died."""
    fleet = Fleet([Outage((0, 1), 5.5)], 1.0, Scaling(1, 2, 1.0, 2.0), 2)
    made = run([0.0, 7.0], [4, 4], [10, 10], fleet, num_replicas=2, router="least_outstanding")
    assert outcomes(made) == ["failed", "failed"] and made.clock.now < 12


def test_a_closed_loop_goes_on_while_replicas_die_and_come():
    rng = np.random.default_rng(8)
    num = 500
    outages = [Outage((int(i % 3),), 2.0 * i, 2.0 * i + 1.5) for i in range(1, 40)]
    front = Front(ClosedLoop(12, num, lambda _: 0.1), Patience(3.0, False, 2, 0.1), Fleet(outages, 0.25))
    made = served([0.0] * num, rng.integers(1, 20, num), rng.integers(1, 40, num), front=front, num_replicas=3,
                  router="power_of_two", table=linear_table(0.05, tokens=1e-3))  # fmt: skip
    metrics = made.metrics()
    assert metrics["completed"] + metrics["timed_out"] == num and metrics["completed"] > 400
    assert metrics["lost_output_tokens"] > 0
    outstanding = sum((made.requests["arrival_s"] <= t) & (made.requests["finished_s"] > t) for t in [5.0, 20.0])
    assert outstanding.max() <= 12
