"""The clock: SimPy's environment, plus one compiled core that runs in between its events.

SimPy drives what decides (workloads, schedulers, faults); a fabric core drives what only moves. Before
SimPy takes its next event, the core runs up to that time. What the core finishes that somebody watches
enters SimPy's queue at its own absolute time, before SimPy's other events of that instant.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Protocol

from simpy import Environment, Event

BEFORE_ALL = -1
"""SimPy's priorities are 0 (urgent) and 1 (normal); completions of the core come before both."""

STEPS_PER_PAUSE = 1024
"""SimPy events between two looks at the progress when the core has nothing to do."""


class Core(Protocol):
    """Something compiled that lives on the same time axis."""

    @property
    def now_s(self) -> float:
        """Time of the core's latest event."""

    @property
    def next_s(self) -> float:
        """Time of the core's next event; infinity when it has none."""

    def advance(self, until_s: float) -> None:
        """Run events up to and including `until_s`; may return early, after which it is called again."""


class Clock(Environment):
    """A SimPy environment that lets one core run up to each of its events.

    A core may return early (when something watched finished, or to keep the run interruptible); the clock then
    stands where the core does, and `on_pause`, if set, is called, as now and then in between: that is where progress
    is shown and where a run may be interrupted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._core: Core | None = None
        self._num_steps = 0
        self.on_pause: Callable[[], None] | None = None
        self.cut_s = float("inf")
        """When the run ends at the latest, if that is known: who runs ahead of the clock waits for it there."""

    def attach(self, core: Core) -> None:
        if self._core is not None:
            raise RuntimeError("the clock has a core already; one fabric per simulation")
        self._core = core

    @property
    def is_idle(self) -> bool:
        """Whether nothing is planned, neither here nor in the core."""
        return not self._queue and (self._core is None or self._core.next_s == float("inf"))

    def succeed_at(self, event: Event, time_s: float, value: object = None) -> None:
        """Trigger `event` at the absolute time, without the rounding of now + (time - now)."""
        if time_s < self._now:
            raise RuntimeError(f"event at {time_s!r} s lies before now, {self._now!r} s")
        event._ok = True
        event._value = value
        heappush(self._queue, (time_s, BEFORE_ALL, next(self._eid), event))  # type: ignore[misc]

    def step(self) -> None:
        core = self._core
        if core is not None:
            while True:
                until_s = self.peek()
                if core.next_s > until_s or core.next_s == float("inf"):
                    break
                core.advance(until_s)
                self._now = max(self._now, min(core.now_s, self.peek()))
                if self.on_pause is not None:
                    self.on_pause()
        self._num_steps += 1
        if self._num_steps % STEPS_PER_PAUSE == 0 and self.on_pause is not None:
            self.on_pause()
        super().step()
