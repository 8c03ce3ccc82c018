"""Compiled functions that only compiled functions call.

Numba gives every function a wrapper for callers in Python and one for callers in C. Nine in ten of ours are never
called that way, and the two wrappers were a sixth of the compile time. What Python calls is `njit(cache=True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import config
from numba.core.registry import CPUDispatcher


class InnerDispatcher(CPUDispatcher):
    """A compiled function without an entrance from Python: behind it there is no code, so none may pass."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        name = f"{self.py_func.__module__}.{self.py_func.__qualname__}"
        raise TypeError(f"{name} is for compiled callers; to call it from Python, decorate it with njit(cache=True)")


def inner(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: compile and cache, for compiled callers only.

    options  as njit has them: inline="always" (as Python, into every caller), forceinline=True (by LLVM)
    """

    def compiled(function: Callable) -> Any:
        if config.DISABLE_JIT:  # type: ignore[attr-defined]
            return function
        without = {"nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        found = InnerDispatcher(function, targetoptions=without | options)
        found.enable_caching()
        return found

    return compiled if function is None else compiled(function)
