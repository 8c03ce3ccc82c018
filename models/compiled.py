"""Compiled functions: those that only compiled functions call, and those that count no references.

Numba gives every function a wrapper for callers in Python and one for callers in C. Nine in ten of ours are never
called that way, and the two wrappers were a sixth of the compile time. What Python calls is `njit(cache=True)`.

Numba counts the users of an array, with an atomic operation for each array that is taken out of a tuple or handed to a
function, and another when it is let go: two thirds of the serving engine's time. A function that borrows its arrays
counts nothing. Whoever calls it keeps them alive, as callers do anyway. It can make no array, which Numba refuses to
compile, and return none, which is refused here: a caller that counts would let go of what nobody has taken, and the
array be freed under those who use it. What it calls is compiled to borrow as well, unless it is `counting`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import cfunc, njit
from numba.core import config
from numba.core.registry import CPUDispatcher


class CheckedDispatcher(CPUDispatcher):
    """A compiled function that returns no array if it borrows those that it is given."""

    def add_overload(self, cres: Any) -> None:
        returned = cres.signature.return_type
        is_counted = cres.target_context.data_model_manager[returned].contains_nrt_meminfo()
        if is_counted and self.targetoptions.get("_nrt") is False:
            name = f"{self.py_func.__module__}.{self.py_func.__qualname__}"
            raise TypeError(f"{name} borrows its arrays and returns {returned}; write into one that it is given")
        super().add_overload(cres)


class InnerDispatcher(CheckedDispatcher):
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


counting: Any = partial(njit, cache=True, _nrt=True)  # type: ignore[call-arg]
"""Decorator: compile and cache; may make arrays, also for callers that borrow theirs."""


def borrowing(function: Callable | None = None, **options: Any) -> Any:
    """Decorator, also with options as njit has them: compile and cache; arrays are borrowed."""

    def compiled(function: Callable) -> Any:
        if config.DISABLE_JIT:  # type: ignore[attr-defined]
            return function
        found = CheckedDispatcher(function, targetoptions={"nopython": True, "_nrt": False} | options)
        found.enable_caching()
        return found

    return compiled if function is None else compiled(function)



inner_borrowing: Any = partial(inner, _nrt=False)
"""Decorator: as `inner`; arrays are borrowed."""

borrowing_cfunc: Any = partial(cfunc, cache=True, _nrt=False)  # type: ignore[call-arg]
"""A C function of that signature, cached; arrays are borrowed."""
