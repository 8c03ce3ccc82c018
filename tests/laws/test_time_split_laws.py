"""Laws of where a request's time goes, on random small engines that preempt a lot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from test_serving_laws import cost_table, run_compiled, run_plain, small_engines

from sim.engine.clock import Clock
from sim.serving.replica import EngineLimits
from sim.serving.time_split import PARTS
from sim.serving.workload import ServingWorkload

OF_PLAIN = ("queue", "prefill", "decode", "recompute", "waiting_again", "host", "communication")


@settings(max_examples=300, deadline=None)
@given(small_engines())
def test_parts_are_what_the_plain_engine_sums_step_by_step(engine):
    """Readings at a few moments, through leaps and cuts, against every step of every request."""
    state, requests, _, fits = run_compiled(engine, engine["cuts"])
    _, plain_requests = run_plain(engine, fits)

    for request in plain_requests:
        row, split = requests[request.number], state.splits[request.number]
        e2e_s = row["finished_s"] - row["arrival_s"]
        assert [split[f"{part}_s"] for part in OF_PLAIN] == pytest.approx(
            [request.parts_s[part] for part in OF_PLAIN], rel=1e-9, abs=1e-9 * e2e_s
        )


@settings(max_examples=150, deadline=None)
@given(small_engines())
def test_parts_add_up_to_the_end_to_end_latency(engine):
    state, requests, _, fits = run_compiled(engine, engine["cuts"])
    splits = state.splits[fits]
    done = requests[fits]
    total_s = sum(splits[f"{part}_s"] for part in (*OF_PLAIN, "kv_transfer"))

    assert total_s == pytest.approx((done["finished_s"] - done["arrival_s"]).tolist(), rel=1e-9)
    for part in (*OF_PLAIN, "kv_transfer"):
        assert (splits[f"{part}_s"] >= -1e-12 * total_s).all()
    was_preempted = done["num_preemptions"] > 0
    assert (splits["recompute_s"][~was_preempted] == 0).all()
    assert (splits["waiting_again_s"][~was_preempted] == 0).all()
    assert state.counts["num_recomputing"][0] == 0
    # Who gave way to make room for its own token in vain has ended before a batch could start.
    assert state.counts["first_mark"][0] == 0 or engine["ends_unforeseen"]


@settings(max_examples=60, deadline=None)
@given(small_engines())
def test_parts_do_not_depend_on_recorded_steps(engine):
    """The same workload with every step recorded, and with none: the same rows, which add up."""
    tables = []
    for record_batches in (True, False):
        clock = Clock()
        limits = EngineLimits(
            engine["policy"], engine["num_blocks"], engine["block_size"], engine["max_num_seqs"], engine["budget"],
            engine["host_s"], is_async=engine["is_async"], is_caching=engine["is_caching"],
        )  # fmt: skip
        workload = ServingWorkload(
            "chat", clock, arrival_s=engine["arrival_s"], num_prompt_tokens=engine["prompt"],
            num_output_tokens=engine["output"], limits=limits, num_replicas=2, table=cost_table(),
            record_batches=record_batches,
        )  # fmt: skip
        clock.run(until=workload.start())
        tables.append(workload.time_split())
    with_rows, without = tables

    assert with_rows.keys() == without.keys()
    for column in with_rows:
        np.testing.assert_array_equal(with_rows[column], without[column])
    total_s = sum(without[f"{part}_s"] for part in PARTS)
    np.testing.assert_allclose(total_s, without["e2e_s"], rtol=1e-9)
