"""Ctrl-C at a good moment: noted when it comes, acted on where nothing is half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While entered, the first SIGINT or SIGTERM sets `is_requested`; the next raises KeyboardInterrupt at once.

    It changes nothing outside of the main thread, nor where somebody handles these signals in a way of their own:
    a worker process that ignores them, a notebook.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    self._replaced[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def check(self) -> None:
        """Raise KeyboardInterrupt here if one was asked for."""
        if self.is_requested:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        self._put_back()

    def _put_back(self) -> None:
        while self._replaced:
            signal.signal(*self._replaced.popitem())
