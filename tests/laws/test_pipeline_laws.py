"""Laws of the pipelined engine, on random small engines that preempt a lot, against a plain one."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import PlainEngine
from plain_pipeline import PlainPipeline, PlainPipelineRequest
from test_serving_laws import compiled_engine, contents_of, cost_table, options_of, plain_requests, small_engines

from sim.devices.kv_cache import check_kv_cache
from sim.engine.clock import Clock
from sim.serving.engine import PAUSED
from sim.serving.pipeline import advance_pipeline, forget_parts, new_pipeline_state, next_pipeline_end_s
from sim.serving.pipeline_replica import FabricPipelineReplica, PipelineEngine, Stages
from sim.serving.policies import compiled_policy
from sim.serving.removal import take_away
from sim.serving.replica import EngineLimits, refusals
from sim.serving.workload import ServingWorkload


@st.composite
def pipelines(draw):
    """An engine, and how its six operators are shared among 2 to 4 stages and the ways between."""
    engine = draw(small_engines()) | {"speculation": None, "host_blocks": 0, "is_async": False}
    p = draw(st.integers(2, 4))
    weights = np.array(draw(st.lists(st.integers(0, 5), min_size=6 * p, max_size=6 * p))).reshape(p, 6) + 0.1
    engine["of_stages"] = weights / weights.sum(axis=0)
    engine["of_sends"] = np.full((p - 1, 6), draw(st.sampled_from([0.0, 0.03, 0.4])))
    return engine


def run_compiled(engine, cuts=(), cancelled=()):
    """The compiled engine, stopped on its way, its books checked there. cancelled: (when, request)."""
    state, requests, token_time_s, fits = compiled_engine(engine)
    pipeline = new_pipeline_state(engine["of_stages"], engine["of_sends"], engine["max_num_seqs"])
    policy, table, to_cancel = compiled_policy(engine["policy"]), cost_table(), deque(cancelled)
    for until_s in sorted({*cuts, *(at_s for at_s, _ in cancelled), np.inf}):
        least_end_s = next_pipeline_end_s(state, pipeline)
        num_completed = state.counts["num_completed"][0]
        while advance_pipeline(state, pipeline, policy, table, until_s, 3, 0) == PAUSED:
            check_kv_cache(state.kv)
        check_kv_cache(state.kv)
        assert not (token_time_s > until_s).any()
        if state.counts["num_completed"][0] > num_completed:
            assert least_end_s <= until_s
        while to_cancel and to_cancel[0][0] == until_s:
            request = to_cancel.popleft()[1]
            if fits[request] and np.isnan(requests["finished_s"][request]):
                forget_parts(pipeline, request)
                take_away(state, request)
    return state, pipeline, requests, token_time_s, fits


def run_plain(engine, fits, cancelled=()):
    given = contents_of(engine)
    requests = [
        PlainPipelineRequest(int(i), float(engine["arrival_s"][i]), int(engine["prompt"][i]), int(engine["output"][i]),
                             given[i], int(engine["precedence"][i]))
        for i in np.flatnonzero(fits)
    ]  # fmt: skip
    of = {request.number: request for request in requests}
    plain = PlainPipeline(
        requests, cost_table(), engine["of_stages"], engine["of_sends"], **options_of(engine),
        cancelled=[(at_s, of[i]) for at_s, i in cancelled if i in of],
    )  # fmt: skip
    plain.run()
    return plain, requests


def assert_alike(engine, cuts, cancelled=()):
    state, pipeline, requests, token_time_s, fits = run_compiled(engine, cuts, cancelled)
    plain, everybody = run_plain(engine, fits, cancelled)

    rows = state.steps[: state.counts["num_recorded"][0]]
    fields = ["started_s", "finished_s", "num_prefill_tokens", "num_decodes", "num_kv_blocks"]
    assert [tuple(row[f].item() for f in fields) for row in rows] == plain.steps
    assert pipeline.stages["busy_s"].tolist() == plain.busy_s
    for request in everybody:
        row = requests[request.number]
        first = row["first_token"]
        times = token_time_s[first : first + request.output]
        assert times[~np.isnan(times)].tolist() == request.token_times_s
        if len(request.token_times_s) == request.output:
            assert row["num_preemptions"] == request.preemptions
            assert row["num_cached"] == request.cached
            assert row["scheduled_s"] == request.scheduled_s
    return state, requests, fits


@settings(max_examples=300, deadline=None)
@given(pipelines())
def test_compiled_and_plain_pipelines_take_the_same_steps_at_the_same_times(engine):
    state, requests, fits = assert_alike(engine, engine["cuts"])

    done = requests[fits]
    assert (done["num_generated"] == done["num_output_tokens"]).all()
    assert int(state.counts["num_completed"][0]) == fits.sum()
    assert state.kv.counts["num_free"][0] == state.kv.counts["num_blocks"][0]


@settings(max_examples=150, deadline=None)
@given(pipelines(), st.lists(st.tuples(st.floats(0.0, 0.4), st.integers(0, 13)), max_size=5))
def test_who_is_taken_away_leaves_nothing_behind(engine, cancelled):
    num = len(engine["prompt"])
    once = {i % num: at_s + 1e-7 * j for j, (at_s, i) in enumerate(cancelled)}
    known = [(at_s, i) for i, at_s in once.items() if at_s > engine["arrival_s"][i]]
    state, *_ = assert_alike(engine, (), sorted(known))

    assert state.kv.counts["num_free"][0] == state.kv.counts["num_blocks"][0]


@settings(max_examples=100, deadline=None)
@given(pipelines())
def test_first_come_first_scheduled(engine):
    _, _, requests, _, fits = run_compiled(engine | {"policy": "chunked_prefill"})

    rows = requests[fits]
    assert (np.diff(rows["scheduled_s"]) >= 0).all()
    assert (np.diff(rows["first_token_s"]) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(pipelines(), st.booleans())
def test_parts_of_the_latency_add_up_and_a_workload_accounts_for_every_request(engine, goes_by_events):
    """Also where the batches' ways are events of the clock instead of compiled: the two are one machine."""
    made = served(engine, goes_by_events)

    split = made.time_split()
    parts = sum(split[name] for name in split if name not in ("request", "e2e_s", "fabric_contention_s"))
    np.testing.assert_allclose(parts, split["e2e_s"], rtol=1e-9, atol=1e-12)
    for name in split:
        if name not in ("request", "fabric_contention_s"):
            assert (split[name] >= -1e-9).all(), name
    other = served(engine, not goes_by_events)
    np.testing.assert_allclose(made.token_time_s, other.token_time_s, rtol=1e-9)
    for name, seconds in other.time_split().items():
        np.testing.assert_allclose(split[name], seconds, rtol=1e-7, atol=1e-9, err_msg=name)
    about = {name: value if value is None else pytest.approx(value, rel=1e-7, abs=1e-7)
             for name, value in made.metrics().items()}  # fmt: skip
    assert about == other.metrics()


class Eventful(ServingWorkload):
    """Batches go by events, although no stage crosses hosts."""

    def _staged(self, limits, num_replicas, table, fabric, holdings, refused, contents):
        engines = [
            PipelineEngine(i, 0, self.requests, self.token_time_s, holdings, limits, refused, contents, self.splits)
            for i in range(num_replicas)
        ]
        return [FabricPipelineReplica(self.clock, e.cut(self.stages), table, self.stages, None) for e in engines]


def served(engine, goes_by_events):
    p = len(engine["of_stages"])
    limits = EngineLimits(engine["policy"], engine["num_blocks"], engine["block_size"], engine["max_num_seqs"],
                          engine["budget"], engine["host_s"])  # fmt: skip
    stages = Stages(engine["of_stages"], engine["of_sends"], np.arange(p).reshape(1, p, 1),
                    np.zeros((1, p - 1), np.bool_), 0)  # fmt: skip
    clock = Clock()
    # No two things at one moment: who comes as a batch ends is seen before or after it by rounding.
    arrival_s = engine["arrival_s"] + 1.2345e-5 * np.arange(len(engine["arrival_s"]))
    made = (Eventful if goes_by_events else ServingWorkload)(
        "chat", clock, arrival_s=arrival_s, num_prompt_tokens=engine["prompt"], num_output_tokens=engine["output"],
        limits=limits, table=cost_table(), stages=stages,
    )  # fmt: skip
    clock.run(until=made.start())
    refused = [reason is not None for reason in refusals(made.requests, limits)]
    assert made.metrics()["completed"] == len(refused) - sum(refused)
    return made


@settings(max_examples=60, deadline=None)
@given(small_engines())
def test_a_pipeline_of_one_stage_is_the_synchronous_engine(engine):
    """One stage that has all of every operator: its steps are those of the plain engine without stages."""
    engine |= {"speculation": None, "host_blocks": 0, "is_async": False, "of_stages": np.ones((1, 6)),
               "of_sends": np.zeros((0, 6))}  # fmt: skip
    state, _, _, _, fits = run_compiled(engine, engine["cuts"])
    plain = PlainEngine(plain_requests(engine, fits), cost_table(), **options_of(engine))
    plain.run()

    rows = state.steps[: state.counts["num_recorded"][0]]
    fields = ["num_prefill_tokens", "num_decodes", "num_kv_blocks"]
    assert [tuple(row[f].item() for f in fields) for row in rows] == [step[2:] for step in plain.steps]
    np.testing.assert_allclose(rows["finished_s"], [step[1] for step in plain.steps], rtol=1e-9)
