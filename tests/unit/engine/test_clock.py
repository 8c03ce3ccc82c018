"""The clock: SimPy's events and a core's, in one order."""

import pytest

from sim.engine.clock import STEPS_PER_PAUSE, Clock


class ScriptedCore:
    """Has something to do at the given times; tells whom it may have to tell."""

    def __init__(self, clock, times, log):
        self.clock, self.times, self.log = clock, sorted(times), log
        self.completions = {}
        self.most_per_call = 1000
        self.now_s = 0.0
        clock.attach(self)

    @property
    def next_s(self):
        return self.times[0] if self.times else float("inf")

    def advance(self, until_s):
        for _ in range(self.most_per_call):
            if not self.times or self.next_s > until_s:
                return
            now = self.now_s = self.times.pop(0)
            self.log.append(("core", now))
            if now in self.completions:
                event, arrives_s = self.completions[now]
                self.clock.succeed_at(event, arrives_s, now)
                return


def waits(clock, event, log):
    value = yield event
    log.append(("told", clock.now, value))


def ticks(clock, period, count, log):
    for _ in range(count):
        yield clock.timeout(period)
        log.append(("tick", clock.now))


def test_without_a_core_it_is_simpy():
    clock, log = Clock(), []
    clock.process(ticks(clock, 1.0, 3, log))
    clock.run()
    assert log == [("tick", 1.0), ("tick", 2.0), ("tick", 3.0)]


def test_the_core_runs_up_to_and_including_each_event():
    clock, log = Clock(), []
    ScriptedCore(clock, [0.5, 1.0, 1.5, 2.5], log)
    clock.process(ticks(clock, 1.0, 2, log))
    clock.run(until=2.0)
    assert log == [("core", 0.5), ("core", 1.0), ("tick", 1.0), ("core", 1.5)]
    clock.run()
    assert log[4:] == [("tick", 2.0), ("core", 2.5)]


def test_what_the_core_completes_comes_before_simpys_events_of_that_instant():
    clock, log = Clock(), []
    core = ScriptedCore(clock, [0.25], log)
    done = clock.event()
    core.completions[0.25] = (done, 1.0)
    clock.process(ticks(clock, 1.0, 1, log))
    clock.process(waits(clock, done, log))
    clock.run()
    assert log == [("core", 0.25), ("told", 1.0, 0.25), ("tick", 1.0)]


def test_a_completion_keeps_its_time_to_the_last_bit():
    """now + (time - now) is not always time."""
    now, time_s = 0.2, 0.9
    assert now + (time_s - now) != time_s
    clock, log = Clock(), []
    core = ScriptedCore(clock, [now], log)
    done = clock.event()
    core.completions[now] = (done, time_s)
    clock.run(until=done)
    assert clock.now == time_s


def test_a_core_that_returns_early_is_called_again():
    clock, log, pauses = Clock(), [], []
    core = ScriptedCore(clock, [0.1 * i for i in range(1, 8)], log)
    core.most_per_call = 2
    clock.on_pause = lambda: pauses.append(len(log))
    clock.process(ticks(clock, 1.0, 1, log))
    clock.run()
    assert [entry[0] for entry in log] == ["core"] * 7 + ["tick"]
    assert pauses == [2, 4, 6, 7]


def test_progress_is_shown_while_only_simpy_works():
    clock, pauses = Clock(), []
    clock.on_pause = lambda: pauses.append(clock.now)
    clock.process(ticks(clock, 1.0, 3 * STEPS_PER_PAUSE, []))
    clock.run()
    assert 2 <= len(pauses) <= 7


def test_the_past_is_refused_and_so_is_a_second_core():
    clock = Clock()
    clock.run(until=1.0)
    with pytest.raises(RuntimeError, match="lies before now"):
        clock.succeed_at(clock.event(), 0.5)
    ScriptedCore(clock, [], [])
    with pytest.raises(RuntimeError, match="one fabric per simulation"):
        ScriptedCore(clock, [], [])


def test_an_event_nobody_triggers_stops_the_run_with_an_error():
    clock = Clock()
    ScriptedCore(clock, [1.0], log := [])
    with pytest.raises(RuntimeError, match="No scheduled events left"):
        clock.run(until=clock.event())
    assert log == [("core", 1.0)]


def test_a_pause_sees_the_core_s_time_and_simpy_never_goes_back():
    """The core works at 0.25, 0.5 and 0.75 s, one instant a call; the only event of SimPy's is at 1 s."""
    clock, log, pauses = Clock(), [], []
    core = ScriptedCore(clock, [0.25, 0.5, 0.75], log)
    core.most_per_call = 1
    clock.on_pause = lambda: pauses.append(clock.now)
    clock.process(ticks(clock, 1.0, 1, log))
    clock.run()
    assert pauses == [0.25, 0.5, 0.75]
    assert log[-1] == ("tick", 1.0)
