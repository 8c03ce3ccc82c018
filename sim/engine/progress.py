"""Progress of a run on stderr: simulated time, events per second, time left. Silent unless it is watched."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from models.units import format_count, format_seconds

SECONDS_BETWEEN_DRAWINGS = 0.1
SECONDS_OF_RATE = 2.0
"""The event rate is that of about the last two seconds."""


class Progress:
    """How far `total_runs` runs are, several of them at once if need be.

    `update` may be called often: it draws at most ten times a second. Nothing is drawn when
    quiet, or when stderr is no terminal.
    """

    def __init__(
        self,
        total_runs: int,
        quiet: bool = False,
        console: Console | None = None,
        wall_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_runs = total_runs
        self.num_finished = 0
        self._wall_clock = wall_clock
        self._console = console if console is not None else Console(file=sys.stderr)
        self._is_shown = not quiet and self._console.is_terminal
        self._started_s = wall_clock()
        self._drawn_s = float("-inf")
        self._shares: dict[str, float | None] = {}
        self._events: dict[str, int] = {}
        self._events_finished = 0
        self._rate_from: tuple[float, int] = (self._started_s, 0)
        self._events_per_s = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self._is_shown:
            self._bar = Bar(
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                f"0 of {self.total_runs} runs", total=float(max(self.total_runs, 1))
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def announce(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._is_shown:
            self._console.print(text, markup=False, highlight=False)

    def update(
        self, run_label: str, simulated_s: float, end_s: float | None, num_events: int, share: float | None
    ) -> None:
        """A run has come to `simulated_s` of `end_s` (None: not known) after `num_events` events.

        share: of the whole run that is done; None where nobody knows
        """
        if not self._is_shown:
            return
        self._shares[run_label] = None if share is None else min(share, 1.0)
        self._events[run_label] = num_events
        now_s = self._wall_clock()
        if now_s - self._drawn_s >= SECONDS_BETWEEN_DRAWINGS:
            until = f" of {format_seconds(end_s)}" if end_s else ""
            self._draw(now_s, f"{run_label} · {format_seconds(simulated_s)}{until} simulated")

    def finish_run(self, label: str) -> None:
        """A run is complete."""
        self.num_finished += 1
        self._shares.pop(label, None)
        self._events_finished += self._events.pop(label, 0)
        if self._is_shown:
            self._draw(self._wall_clock(), label)

    @property
    def share_done(self) -> float:
        """Share of all runs that is simulated; a run without a known end counts once it is finished."""
        running = sum(share for share in self._shares.values() if share is not None)
        return min((self.num_finished + running) / max(self.total_runs, 1), 1.0)

    def time_left_s(self) -> float | None:
        """Wall time left at the speed so far; None while nothing is known."""
        done = self.share_done
        if done <= 0:
            return None
        return (self._wall_clock() - self._started_s) * (1 - done) / done

    @property
    def events_per_s(self) -> float:
        return self._events_per_s

    def _draw(self, now_s: float, what: str) -> None:
        self._drawn_s = now_s
        self._measure_rate(now_s)
        left_s = self.time_left_s()
        parts = [f"{self.num_finished} of {self.total_runs} runs", what]
        if self._events_per_s:
            parts.append(f"{format_count(self._events_per_s)} events/s")
        if left_s is not None:
            parts.append(f"{_clock(left_s)} left")
        if self._bar is not None:
            done = self.share_done * max(self.total_runs, 1)
            self._bar.update(self._task, completed=done, description=" · ".join(parts), refresh=True)

    def _measure_rate(self, now_s: float) -> None:
        total = self._events_finished + sum(self._events.values())
        from_s, from_events = self._rate_from
        if now_s > from_s:
            self._events_per_s = (total - from_events) / (now_s - from_s)
        if now_s - from_s > SECONDS_OF_RATE:
            self._rate_from = (now_s, total)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
