import numpy as np
import pytest

from sim.collectives.workload import CollectiveWorkload
from sim.engine.recorder import Recorder

RANKS = np.arange(4)


def collective(clock, fabric, **options):
    seed = np.random.default_rng(1)
    return CollectiveWorkload(
        "sum", "all_reduce", "ring", RANKS, 400, clock=clock, fabric=fabric, rng=seed, **options
    )


def test_a_ring_of_four_takes_six_steps(clock, fixed_time_fabric):
    """6 steps of 1 s; 400 bytes · 2 · 3/4 in 6 s are 100 bytes/s on the bus; the last acknowledgement 0.25
    s more.
    """
    workload = collective(clock, fixed_time_fabric)
    clock.run(workload.start())
    assert workload.metrics() == {
        "completion_time_s": 6.0,
        "acknowledged_s": 6.25,
        "bus_bytes_per_s": 100.0,
        "extra_pieces": 0,
        "jain_index": 1.0,
        "repetition_s.mean": 6.0,
        "repetition_s.p99": 6.0,
    }


def test_repetitions_follow_each_other_with_a_gap(clock, fixed_time_fabric):
    workload = collective(clock, fixed_time_fabric, repeat=3, gap_s=2.0, start_s=10.0)
    clock.run(workload.start())
    assert clock.now == 10 + 3 * 6 + 2 * 2
    recorder = Recorder()
    workload.record(recorder)
    table = recorder.frames()["collectives"]
    assert table.started_s.tolist() == [10, 18, 26]
    assert table.finished_s.tolist() == [16, 24, 32]
    assert table.bus_bytes_per_s.tolist() == [100.0] * 3
    assert len(recorder.frames()["flows"]) == 3 * 24


def test_a_rank_sends_nothing_before_its_own_start(clock, fixed_time_fabric):
    """Every message of a rank waits for that rank's start, up to 5 s late and drawn anew in each
    repetition.
    """
    workload = collective(clock, fixed_time_fabric, jitter_s=5.0, repeat=2, gap_s=100.0)
    clock.run(workload.start())
    late = []
    for graph in fixed_time_fabric.graphs:
        starts = [np.unique(graph.earliest_s[graph.source == r]) for r in RANKS]
        assert [len(s) for s in starts] == [1] * 4
        late.append(np.concatenate(starts))
    assert np.all((late[0] >= 0) & (late[0] < 5))
    finished_s = late[0].max() + 6
    assert np.all((late[1] >= finished_s + 100 - 5) & (late[1] < finished_s + 100 + 5))
    assert len(set(np.concatenate(late))) == 8


def test_joins_are_no_flows(clock, fixed_time_fabric):
    workload = CollectiveWorkload(
        "sum",
        "all_reduce",
        "direct",
        RANKS,
        400,
        clock=clock,
        fabric=fixed_time_fabric,
        rng=np.random.default_rng(1),
    )
    clock.run(workload.start())
    assert workload.num_messages == 2 * 12 + 4
    recorder = Recorder()
    workload.record(recorder)
    flows = recorder.frames()["flows"]
    assert len(flows) == 24
    assert (flows.source != flows.destination).all()
    assert workload.metrics()["completion_time_s"] == 2.0


def test_one_rank_takes_no_time(clock, fixed_time_fabric):
    rng = np.random.default_rng(1)
    workload = CollectiveWorkload(
        "alone", "all_reduce", "ring", [3], 400, clock=clock, fabric=fixed_time_fabric, rng=rng, repeat=2
    )
    clock.run(workload.start())
    assert workload.metrics()["completion_time_s"] == 0.0
    assert workload.metrics()["bus_bytes_per_s"] is None
    workload.record(Recorder())


def test_an_interrupted_run_records_what_there_is(clock, fixed_time_fabric):
    workload = collective(clock, fixed_time_fabric, repeat=2)
    workload.start()
    clock.run(until=7.5)
    assert workload.metrics()["completion_time_s"] == 6.0
    recorder = Recorder()
    workload.record(recorder)
    assert recorder.frames()["flows"].repetition.tolist() == [0] * 24 + [1] * 24
    assert len(recorder.frames()["collectives"]) == 1
    flows = recorder.frames()["flows"]
    assert (flows.outcome == "delivered").sum() == 24 + 4
    assert workload.notes() == ["20 of 48 flows were not delivered"]


def test_nothing_finished_is_none_not_zero(clock, fixed_time_fabric):
    workload = collective(clock, fixed_time_fabric)
    workload.start()
    clock.run(until=0.5)
    metrics = workload.metrics()
    assert metrics.pop("extra_pieces") == 0
    assert set(metrics.values()) == {None}


@pytest.mark.parametrize("hierarchical", [False, True])
def test_completion_counts_from_the_first_ready_message(clock, fixed_time_fabric, hierarchical):
    workload = collective(
        clock, fixed_time_fabric, jitter_s=3.0, hierarchical=hierarchical, host_of_accelerator=RANKS // 2
    )
    clock.run(workload.start())
    graph = fixed_time_fabric.graphs[0]
    first_ready_s = graph.earliest_s[graph.num_inputs == 0].min()
    assert workload.metrics()["completion_time_s"] == pytest.approx(clock.now - first_ready_s)
