"""Functions that only compiled functions call."""

from __future__ import annotations

import pytest
from numba import njit

from models import compile_cache
from models.compiled import inner


@inner
def twice(x):
    return 2 * x


@inner(inline="always")
def thrice(x):
    return 3 * x


@njit
def six_times(x):
    return thrice(twice(x))


def test_compiled_functions_call_them():
    assert six_times(7) == 42


def test_python_may_not():
    """Not even after a compiled caller has had it compiled: there is no code behind the call."""
    six_times(7)
    with pytest.raises(TypeError, match=r"test_compiled\.twice is for compiled callers; .* njit\(cache=True\)"):
        twice(7)


def test_a_file_that_imports_nothing_else_of_numba_counts_for_the_cache(tmp_path, monkeypatch):
    """A change of an inner function is another state of the source."""
    source = tmp_path / "models" / "wheel.py"
    source.parent.mkdir()
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "models" / "compile_cache.py"))
    digests = []
    for factor in (2, 3):
        source.write_text(f"from models.compiled import inner\n\n\n@inner\ndef turn(x):\n    return {factor} * x\n")
        digests.append(compile_cache.source_digest())
    assert digests[0] != digests[1]
