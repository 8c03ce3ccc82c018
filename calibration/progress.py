"""A progress bar of its own for a terminal, or a line now and then: a GPU box has no package for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress"]

WIDTH, LINES = 24, 10


class Progress:
    """How many of `total` are done, what is next, and about how long the rest takes at this rate."""

    def __init__(self, total: int, to: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._to, self._clock = total, to, clock
        self._begin, self._first = clock(), -1
        self._said = -1
        self._is_open = False

    def show(self, done: int, text: str) -> None:
        """Before each point."""
        if self._first < 0:
            self._first = done
        if self._to.isatty():
            full = WIDTH * done // max(self.total, 1)
            line = f"[{'#' * full}{'.' * (WIDTH - full)}] {done}/{self.total}{self._left(done)}  {text}"
            self._to.write(f"\r\033[K{line[:110]}")
            self._to.flush()
            self._is_open = True
        elif LINES * done // max(self.total, 1) > self._said:
            self._said = LINES * done // max(self.total, 1)
            self._to.write(f"{done}/{self.total}{self._left(done)}  {text}\n")

    def _left(self, done: int) -> str:
        if done == self._first:
            return ""
        seconds = (self._clock() - self._begin) / (done - self._first) * (self.total - done)
        return f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def end(self) -> None:
        """Leave the line."""
        if self._is_open:
            self._to.write("\n")
