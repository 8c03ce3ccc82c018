"""Progress as a watcher sees it, on a wall clock that the test moves."""

import io

import pytest
from rich.console import Console

from sim.engine.progress import Progress


class WallClock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def progress_on(terminal, total_runs=2, quiet=False):
    text, clock = io.StringIO(), WallClock()
    console = Console(file=text, force_terminal=terminal, width=120)
    return Progress(total_runs, quiet=quiet, console=console, wall_clock=clock), text, clock


def test_a_terminal_shows_time_events_and_what_is_left():
    """Two runs; the first reaches 2 of 8 ms after 10 s: an eighth of all is done, so 70 s are left."""
    progress, text, clock = progress_on(terminal=True)
    with progress:
        clock.now_s = 10.0
        progress.update("spray, seed 1", 2e-3, 8e-3, 5_000_000, 1 / 4)
        assert progress.share_done == pytest.approx(1 / 8)
        assert progress.time_left_s() == pytest.approx(70.0)
        assert progress.events_per_s == pytest.approx(500_000)
    shown = text.getvalue()
    for words in ("0 of 2 runs", "spray, seed 1", "2 ms of 8 ms simulated", "500 k events/s", "1:10 left"):
        assert words in shown


def test_a_share_alone_says_what_is_left():
    """Of the only run, whose end nobody knows, a fifth is done after 3 s: 12 s are left."""
    progress, text, clock = progress_on(terminal=True, total_runs=1)
    with progress:
        clock.now_s = 3.0
        progress.update("run, seed 1", 2e-3, None, 10, 1 / 5)
        assert progress.time_left_s() == pytest.approx(12.0)
    assert "2 ms simulated" in text.getvalue() and "0:12 left" in text.getvalue()


def test_finished_runs_count_whole():
    progress, text, clock = progress_on(terminal=True)
    with progress:
        clock.now_s = 1.0
        progress.update("a", 1e-3, None, 100, None)
        assert progress.time_left_s() is None
        progress.finish_run("a")
        assert progress.share_done == 0.5
        assert progress.time_left_s() == pytest.approx(1.0)
    assert "1 of 2 runs" in text.getvalue()


def test_it_draws_at_most_ten_times_a_second():
    progress, text, clock = progress_on(terminal=True)
    with progress:
        clock.now_s = 1.0
        progress.update("a", 1e-3, 1.0, 1, None)
        length = len(text.getvalue())
        for i in range(1000):
            progress.update("a", 1e-3, 1.0, i, None)
        assert len(text.getvalue()) == length


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_silence(terminal, quiet):
    """No terminal, or --quiet: not one character."""
    progress, text, clock = progress_on(terminal, quiet=quiet)
    with progress:
        clock.now_s = 5.0
        progress.update("a", 1e-3, 1.0, 10, None)
        progress.finish_run("a")
    assert text.getvalue() == ""
    assert progress.num_finished == 1
