"""Laws of clients that react: cancelled requests against the plain engine, closed loops against open ones."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import PlainEngine
from test_serving_laws import (
    accepts_of,
    compiled_engine,
    cost_table,
    options_of,
    plain_requests,
    shared_contents,
    small_engines,
    tiered_engines,
)

from sim.devices.kv_cache import check_kv_cache
from sim.engine.clock import Clock
from sim.serving.clients import ClosedLoop, OpenLoop, Patience
from sim.serving.engine import PAUSED, advance
from sim.serving.fleet import Fleet, Outage, Scaling
from sim.serving.front import Front
from sim.serving.lookahead import next_end_s
from sim.serving.policies import compiled_policy
from sim.serving.removal import take_away
from sim.serving.replica import EngineLimits
from sim.serving.request import COMPLETED, FAILED, TIMED_OUT
from sim.serving.workload import ServingWorkload

engines = small_engines() | tiered_engines()


def advanced(state, policy, table, until_s) -> None:
    while advance(state, policy, table, until_s, 7, 0) == PAUSED:
        pass


@settings(max_examples=300, deadline=None)
@given(engines, st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(0, 13)), max_size=8))
def test_cancelled_requests_leave_the_engine_as_they_leave_the_plain_one(engine, cancels):
    state, requests, token_time_s, fits = compiled_engine(engine)
    policy, table = compiled_policy(engine["policy"]), cost_table()
    cancels = sorted((when, who) for when, who in {who: (when, who) for when, who in cancels}.values()
                     if who < len(fits) and fits[who])  # fmt: skip
    gone, num_lost = set(), 0
    for when, who in cancels:
        advanced(state, policy, table, when)
        if requests["outcome"][who] != COMPLETED:
            num_lost += take_away(state, who)
            gone.add(who)
        check_kv_cache(state.kv)
    advanced(state, policy, table, np.inf)
    check_kv_cache(state.kv)

    everybody = {request.number: request for request in plain_requests(engine, fits)}
    cancelled = [(when, everybody[who]) for when, who in cancels]
    options = options_of(engine) | {"cancelled": cancelled}
    plain = PlainEngine(everybody.values(), table, **options, accepts=accepts_of(engine))
    plain.run()

    rows = state.steps[: state.counts["num_recorded"][0]]
    fields = ["started_s", "finished_s", "num_prefill_tokens", "num_decodes", "num_kv_blocks"]
    assert [tuple(row[f].item() for f in fields) for row in rows] == plain.steps
    for number, request in everybody.items():
        row = requests[number]
        times = token_time_s[row["first_token"] :][: request.output]
        assert times[~np.isnan(times)].tolist() == request.token_times_s
        assert (row["outcome"] == COMPLETED) == (number not in gone)
    assert state.kv.counts["num_free"][0] == engine["num_blocks"]
    assert num_lost >= 0 and state.counts["num_completed"][0] == fits.sum() - len(gone)


@settings(max_examples=200, deadline=None)
@given(engines)
def test_nobody_ends_before_the_moment_that_is_foreseen(engine):
    """From moment to moment an engine does what it does in one go; each end is at a moment foreseen."""
    state, requests, token_time_s, _ = compiled_engine(engine)
    whole, _, expected_s, _ = compiled_engine(engine)
    policy, table = compiled_policy(engine["policy"]), cost_table()
    advanced(whole, policy, table, np.inf)
    total = state.counts["total_s"][0]
    while (next_s := next_end_s(state, table)) < np.inf:
        assert next_end_s(state, table) == next_s and state.counts["total_s"][0] == total
        before = requests["outcome"] == COMPLETED
        advanced(state, policy, table, next_s)
        ended = requests["finished_s"][(requests["outcome"] == COMPLETED) & ~before]
        assert (ended == next_s).all()
        total = state.counts["total_s"][0]
    assert token_time_s.tobytes() == expected_s.tobytes()
    for name in ("now_s", "total_s", "head", "num_steps", "num_recorded", "num_preemptions", "num_completed"):
        assert state.counts[name][0] == whole.counts[name][0]


def limits_of(engine) -> EngineLimits:
    return EngineLimits(
        engine["policy"], engine["num_blocks"], engine["block_size"], engine["max_num_seqs"], engine["budget"],
        engine["host_s"], is_async=engine["is_async"], is_caching=engine["is_caching"],
        tiers=engine.get("tiers", ()),
    )  # fmt: skip


def run_workload(engine, arrival_s, num_replicas, router, front=None) -> ServingWorkload:
    clock = Clock()
    made = ServingWorkload(
        "chat", clock, arrival_s=arrival_s, num_prompt_tokens=engine["prompt"], num_output_tokens=engine["output"],
        limits=limits_of(engine), num_replicas=num_replicas, router=router, table=cost_table(), front=front,
        contents=shared_contents(engine) if "tiers" in engine else None,
    )  # fmt: skip
    clock.run(until=made.start())
    return made


ROUTERS = st.sampled_from(["round_robin", "least_outstanding", "power_of_two", "least_kv"])


@settings(max_examples=200, deadline=None)
@given(engines, st.integers(1, 3), ROUTERS, st.integers(1, 6), st.sampled_from([0.0, 0.003, 0.1]))
def test_a_closed_loop_is_the_open_loop_of_the_times_at_which_its_clients_sent(
    engine, num_replicas, router, num_clients, think_s
):
    """Two ways through the code: from end to end, and replicas that run ahead. And no client sends while it waits."""
    num = len(engine["prompt"])
    front = Front(ClosedLoop(num_clients, num, lambda _: think_s))
    closed = run_workload(engine, np.zeros(num), num_replicas, router, front)
    requests = closed.requests
    order = np.argsort(requests["arrival_s"], kind="stable")
    again = {**engine, **{name: np.array(engine[name])[order] for name in ("prompt", "output", "families")}}
    opened = run_workload(again, requests["arrival_s"][order], num_replicas, router)

    assert (opened.requests["replica"] == requests["replica"][order]).all()
    for field in ("scheduled_s", "first_token_s", "finished_s", "num_preemptions", "outcome"):
        assert opened.requests[field].tobytes() == requests[field][order].tobytes()
    assert closed.clock.now == np.nanmax([*requests["finished_s"], requests["arrival_s"].max()])

    # Each send but the first of each client is a think time after an end of its own.
    ended_s = np.where(requests["outcome"] == FAILED, requests["arrival_s"], requests["finished_s"])
    sent_s = np.sort(requests["arrival_s"])
    assert (sent_s[:num_clients] == 0.0).all()
    assert sent_s[num_clients:].tolist() == np.sort(ended_s + think_s)[: max(num - num_clients, 0)].tolist()
    for at_s in sent_s:
        assert ((requests["arrival_s"] <= at_s) & (ended_s > at_s)).sum() <= num_clients


@settings(max_examples=200, deadline=None)
@given(
    engines, st.integers(1, 3), ROUTERS, st.integers(0, 2), st.sampled_from([0.0, 0.01]),
    st.sampled_from([0.004, 0.02, 0.1, 0.5]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_with_timeouts_every_request_ends_once_and_none_waits_longer_than_it_may(
    engine, num_replicas, router, num_retries, backoff_s, timeout_s, is_for_first, is_closed
):
    num = len(engine["prompt"])
    clients = ClosedLoop(3, num) if is_closed else OpenLoop(engine["arrival_s"])
    patience = Patience(timeout_s, is_for_first, num_retries, backoff_s)
    front = Front(clients, patience)
    made = run_workload(engine, engine["arrival_s"], num_replicas, router, front)
    requests, metrics = made.requests, made.metrics()

    outcome = requests["outcome"]
    assert np.isin(outcome, [COMPLETED, FAILED, TIMED_OUT]).all()
    assert metrics["completed"] + metrics["failed"] + metrics["timed_out"] == metrics["arrived"] == num
    assert (front.num_sent[outcome == TIMED_OUT] == num_retries + 1).all()
    assert (front.num_sent <= num_retries + 1).all() and (front.num_sent >= 1).all()
    assert metrics["num_retries"] == front.num_sent.sum() - num
    assert (front.num_lost[front.num_sent == 1][outcome[front.num_sent == 1] == COMPLETED] == 0).all()
    done = requests[outcome == COMPLETED]
    waited_s = (done["first_token_s"] if is_for_first else done["finished_s"]) - done["submitted_s"]
    assert (waited_s <= timeout_s + 1e-12).all()
    # Attempts, each as long as it may be, and the waits between them, each twice the one before.
    tries = front.num_sent[outcome == COMPLETED] - 1
    expected_s = done["arrival_s"] + tries * timeout_s + backoff_s * (2.0**tries - 1)
    assert np.allclose(done["submitted_s"], expected_s, rtol=1e-12, atol=1e-12)
    assert (requests["num_generated"][outcome == TIMED_OUT] == 0).all()
    for replica in made.replicas:
        assert replica.engine.num_held_blocks == 0


def test_two_runs_of_clients_are_the_same_to_the_byte():
    rng = np.random.default_rng(3)
    engine = {
        "policy": "chunked_prefill", "block_size": 4, "num_blocks": 30, "max_num_seqs": 8, "budget": 32, "host_s": 0.0,
        "prompt": rng.integers(1, 40, 300), "output": rng.integers(1, 30, 300), "is_async": True, "is_caching": False,
    }  # fmt: skip
    runs = []
    for _ in range(2):
        think_s = np.random.default_rng(7).exponential(0.01, 300).tolist()
        front = Front(ClosedLoop(20, 300, think_s.__getitem__), Patience(0.1, False, 1, 0.01))
        runs.append(run_workload(engine, np.zeros(300), 2, "power_of_two", front))
    assert runs[0].requests.tobytes() == runs[1].requests.tobytes()
    assert runs[0].token_time_s.tobytes() == runs[1].token_time_s.tobytes()
    assert runs[0].front.num_lost.sum() > 0 and (runs[0].requests["outcome"] == TIMED_OUT).any()
    assert all(a <= b for a, b in itertools.pairwise(runs[0].requests["arrival_s"][:20]))


@settings(max_examples=150, deadline=None)
@given(
    engines, st.integers(1, 3), st.sampled_from(["round_robin", "least_outstanding", "least_kv"]),
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 1.0), st.sampled_from([None, 0.01, 0.3])), max_size=4),
    st.booleans(), st.sampled_from([None, 0.05]), st.sampled_from([0.0, 0.02]), st.booleans(),
)  # fmt: skip
def test_whoever_dies_no_request_vanishes(
    engine, num_replicas, router, deaths, resends, timeout_s, interval_s, is_scaled
):
    num = len(engine["prompt"])
    outages = [Outage((i,), at_s, None if length_s is None else at_s + length_s)
               for i, at_s, length_s in deaths if i < num_replicas]  # fmt: skip
    scaling = Scaling(1, num_replicas, 2.0, 0.05, 0.03, 0.1) if is_scaled else None
    front = Front(
        ClosedLoop(4, num), Patience(timeout_s, False, 1, 0.01, resends), Fleet(outages, interval_s, scaling, 1)
    )
    if scaling is None:
        front.fleet.num_first = None
    made = run_workload(engine, np.zeros(num), num_replicas, router, front)

    outcome, metrics = made.requests["outcome"], made.metrics()
    assert np.isin(outcome, [COMPLETED, FAILED, TIMED_OUT]).all()
    assert metrics["completed"] + metrics["failed"] + metrics["timed_out"] == num
    assert metrics["failed"] == made.failures.total()
    assert resends or (front.num_sent <= 2).all()
    for replica in made.replicas:
        assert replica.engine.num_held_blocks == 0 and replica.engine.num_outstanding == 0
        steps = replica.engine.steps
        for outage in outages:
            if replica.engine.index in outage.replicas:
                until_s = np.inf if outage.until_s is None else outage.until_s
                assert not ((steps["started_s"] < until_s) & (steps["finished_s"] > outage.at_s)).any()
    if scaling is not None:
        assert made.clock.now - 1e-9 <= metrics["accelerator_seconds"] <= num_replicas * made.clock.now + 1e-9
