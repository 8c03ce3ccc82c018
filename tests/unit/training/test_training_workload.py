import numpy as np
import pytest

from sim.collectives.plan import CollectiveError
from sim.engine.recorder import Recorder
from sim.training.workload import TrainingWorkload


def training(clock, fabric, ranks=(0, 1, 2, 3), compute_s=4.0, **options):
    return TrainingWorkload(
        "job", np.array(ranks), compute_s, "all_gather", "ring", 400,
        clock=clock, fabric=fabric, rng=np.random.default_rng(1), **options,
    )  # fmt: skip


def test_steps_of_compute_and_collective(clock, fixed_time_fabric):
    """4 s of compute, then 3 ring steps of 1 s: 7 s a step, 3/7 of it communication."""
    workload = training(clock, fixed_time_fabric, steps=5, start_s=1.0)
    assert not workload.is_background
    clock.run(workload.start())
    assert clock.now == 1 + 5 * 7
    assert workload.progress == (5, 5)
    metrics = workload.metrics()
    assert metrics["step_s.mean"] == metrics["step_s.p99"] == 7.0
    assert metrics["num_steps"] == 5
    assert metrics["communication_s.mean"] == 3.0
    assert metrics["communication_share"] == pytest.approx(3 / 7)
    recorder = Recorder()
    workload.record(recorder)
    assert recorder.frames()["collectives"].started_s.tolist() == [5, 12, 19, 26, 33]


@pytest.mark.parametrize("stop_s", [0.0, 2.0, 12.5, 15.5, 19.5])
def test_a_background_runs_until_stopped(clock, fixed_time_fabric, stop_s):
    """Stopped in computation or in communication: finished steps count, the one under way does not."""
    workload = training(clock, fixed_time_fabric)
    assert workload.is_background and workload.progress is None
    finished = workload.start()
    clock.run(until=max(stop_s, 1e-9))
    workload.stop()
    clock.run(finished)
    assert clock.now == max(stop_s, 1e-9)
    assert workload.metrics()["num_steps"] == stop_s // 7
    recorder = Recorder()
    workload.record(recorder)
    clock.run()
    if stop_s > 14 + 4:
        assert set(recorder.frames()["flows"].outcome) == {"delivered", "cancelled"}


def test_messages_on_their_way_are_cancelled(clock, fixed_time_fabric):
    """Stopped 1.5 s into the second collective (at 7 + 4): one of three ring steps has arrived."""
    workload = training(clock, fixed_time_fabric)
    workload.start()
    clock.run(until=12.5)
    workload.stop()
    recorder = Recorder()
    workload.record(recorder)
    flows = recorder.frames()["flows"]
    assert flows[flows.repetition == 1].outcome.tolist() == ["delivered"] * 4 + ["cancelled"] * 8
    assert len(recorder.frames()["collectives"]) == 1


def test_stopping_twice_or_after_the_end_does_nothing(clock, fixed_time_fabric):
    workload = training(clock, fixed_time_fabric, steps=1)
    workload.stop()
    clock.run(workload.start())
    workload.stop()
    assert workload.metrics()["num_steps"] == 1


def test_no_steps_is_none_not_zero(clock, fixed_time_fabric):
    metrics = training(clock, fixed_time_fabric).metrics()
    assert metrics["num_steps"] == 0
    assert metrics["step_s.mean"] is metrics["communication_share"] is None


def test_endless_steps_that_take_no_time_are_refused(clock, fixed_time_fabric):
    with pytest.raises(CollectiveError, match="never end"):
        training(clock, fixed_time_fabric, ranks=(0,), compute_s=0.0)
