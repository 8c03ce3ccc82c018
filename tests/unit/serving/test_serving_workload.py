from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of, workload

from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.serving import policies
from sim.serving.accounts import ConservationError
from sim.serving.replica import ReplicaError
from sim.serving.request import UNFINISHED


def tables(made):
    recorder = Recorder()
    made.record(recorder)
    return recorder.frames()


def test_arrivals_count_from_the_start_of_the_workload():
    clock = Clock()
    made = workload([0.5], [4], [2], clock=clock)

    def later():
        yield clock.timeout(10.0)
        yield made.start()

    clock.run(until=clock.process(later()))

    assert tokens_of(made, 0) == [11.5, 12.5]
    assert made.metrics()["mean_ttft_ms"] == 1000.0


def test_an_engine_nobody_looks_at_takes_the_same_steps_as_one_watched_at_every_arrival():
    rng = np.random.default_rng(2)
    load = (np.cumsum(rng.exponential(0.7, 300)), rng.integers(1, 50, 300), rng.integers(1, 30, 300))
    table = linear_table(0.1, tokens=0.01, decode_context=1e-4)

    lazy = served(*load, table=table, num_blocks=60)
    watched = served(*load, table=table, num_blocks=60, router="least_outstanding")

    assert (lazy.token_time_s == watched.token_time_s).all()
    assert (lazy.replicas[0].engines[0].steps == watched.replicas[0].engines[0].steps).all()
    assert lazy.requests["num_preemptions"].sum() > 0


def test_the_tables_hold_every_request_step_and_token():
    made = served([0.0, 2.5, 3.0], [4, 4, 999], [3, 2, 1], num_replicas=2)
    frames = tables(made)

    requests = frames["requests"]
    assert requests["outcome"].tolist() == ["completed", "completed", "failed"]
    assert requests["replica"].tolist() == [0, 1, 0]
    assert requests["finished_s"][:2].tolist() == [3.0, 4.5]
    assert requests["finished_s"].isna().tolist() == [False, False, True]
    assert requests["output_tokens"].tolist() == [3, 2, 0]
    batches = frames["batches"]
    assert batches["started_s"].tolist() == [0.0, 1.0, 2.0, 2.5, 3.5]
    assert batches["num_prefill_tokens"].tolist() == [4, 0, 0, 4, 0]
    # 4 tokens fill a block of 4; the first generated one opens the second.
    assert batches["num_kv_blocks"].tolist() == [1, 2, 2, 1, 2]
    assert frames["token_times"]["time_s"].tolist() == [1.0, 2.0, 3.0, 3.5, 4.5]


def test_a_run_cut_short_records_what_there_was():
    clock = Clock()
    made = workload([0.0, 0.0, 5.0], [4, 4, 4], [100, 3, 2], clock=clock)
    made.start()
    clock.run(until=4.5)

    frames = tables(made)
    assert frames["requests"]["outcome"].tolist() == ["unfinished", "completed"]
    assert frames["requests"]["output_tokens"].tolist() == [4, 3]
    assert frames["batches"]["finished_s"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert made.metrics()["unfinished"] == 1


def test_a_run_cut_short_after_the_last_arrival_does_not_show_the_future():
    """All have arrived, so the engine has run ahead to the end; at 7.5 s nobody may see that."""
    clock = Clock()
    made = workload([0.0, 1.0], [4, 4], [100, 3], clock=clock)
    made.start()
    clock.run(until=7.5)

    assert made.requests["finished_s"][0] == 100.0
    frames = tables(made)
    assert frames["requests"]["outcome"].tolist() == ["unfinished", "completed"]
    assert frames["token_times"]["time_s"].max() == 7.0
    assert len(frames["batches"]) == 7


def test_requests_that_can_never_fit_are_refused_with_a_reason():
    made = served([0.0] * 4, [16, 17, 10, 1], [1, 1, 8, 16], num_blocks=4, max_context_tokens=16)

    assert made.requests["outcome"].tolist() == [3, 3, 3, 3]
    assert made.failures == {"longer than the model's context": 4}
    made = served([0.0] * 4, [16, 17, 10, 1], [1, 1, 8, 16], num_blocks=4)
    # Keys and values of all tokens but the last: 16, 17, 17 and 16 of them, in 4 blocks of 4.
    assert made.metrics()["completed"] == 2
    assert made.notes() == ["2 requests refused: larger than the KV cache"]
    assert made.progress == (4, 4)


def test_step_rows_stop_at_their_limit_and_say_so():
    limited = served([0.0], [1], [40_000], num_blocks=20_000, max_step_rows=20_000)
    everything = served([0.0], [1], [40_000], num_blocks=20_000)

    assert len(tables(limited)["batches"]) == 20_000
    assert limited.notes() == ["20000 of 40000 steps are not in the batches table, which is full"]
    assert len(tables(everything)["batches"]) == 40_000
    assert limited.metrics() == everything.metrics()
    none = served([0.0], [1], [4], record_batches=False, record_token_times=False)
    assert tables(none).keys() == {"requests", "time_split", "cost_sources"}
    assert none.notes() == []


def test_thousands_may_wait():
    num = 100_000
    made = served([0.0] * num, [1] * num, [1] * num, max_num_seqs=4)

    assert made.metrics()["completed"] == num
    assert made.clock.now == num / 4


def test_a_policy_that_schedules_nothing_is_an_error_and_not_an_endless_loop(monkeypatch):
    def lazy(state):
        return state.counts[0].num_running > 0

    monkeypatch.setitem(policies.BATCHING_POLICIES, "lazy", lazy)
    with pytest.raises(
        ReplicaError, match=r"'lazy' schedules nothing, with 1 waiting, 0 running and 100 free"
    ):
        served([0.0], [1], [1], policy="lazy")


def test_a_lost_request_breaks_the_law_of_conservation():
    made = served([0.0, 1.0], [1, 1], [2, 2])
    made.check()
    made.requests["outcome"][1] = UNFINISHED
    with pytest.raises(
        ConservationError, match="1 completed \\+ 0 failed \\+ 0 unfinished requests, but 2 arrived"
    ):
        made.check()


def test_same_input_same_bytes():
    runs = [served([0.0, 0.3, 0.9], [5, 6, 7], [9, 8, 7], num_blocks=6) for _ in range(2)]

    assert runs[0].token_time_s.tobytes() == runs[1].token_time_s.tobytes()
    assert runs[0].requests.tobytes() == runs[1].requests.tobytes()


def test_a_workload_has_one_way_to_price_its_steps():
    with pytest.raises(ValueError, match="one table, or an iteration each"):
        workload([0.0], [1], [1], iterations=[])


def test_merged_models_take_their_own_requests():
    """Two models with two replicas each, in turn among the model's own; the third model gets none and is idle."""
    model = np.array([0, 1, 1, 0, 0, 1])
    made = served(np.arange(6.0), [4] * 6, [2] * 6, num_replicas=6, model=model, adapter=model + 1, num_models=3)
    assert made.requests["replica"].tolist() == [0, 2, 3, 1, 0, 2]
    assert tables(made)["requests"]["adapter"].tolist() == [1, 2, 2, 1, 1, 2]
