"""Functions that only compiled functions call, and functions that borrow their arrays."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numba import njit

from models import compile_cache
from models.compiled import borrowing, counting, inner, inner_borrowing


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


@pytest.mark.parametrize("decorator", [borrowing, inner_borrowing])
def test_who_borrows_returns_no_array(decorator):
    """A caller that counts would let go of it at the end, though nobody took it, and free what others still use."""
    @decorator
    def first_half(x):
        return x.size // 2, x[: x.size // 2]

    @njit
    def caller(x):
        return first_half(x)[1].sum()

    with pytest.raises(TypeError, match=r"first_half borrows its arrays and returns .*array.*; write into one"):
        caller(np.ones(4))


def test_who_counts_may_make_arrays_for_those_who_borrow():
    """And takes and lets go of nothing of theirs: the number of references is as before."""
    @counting
    def scratch(x):
        doubled = 2.0 * x
        return doubled.sum()

    @borrowing
    def borrower(x):
        return scratch(x) + x[0]

    x = np.arange(4.0)
    before = sys.getrefcount(x)
    assert [borrower(x) for _ in range(10)] == [12.0] * 10
    assert sys.getrefcount(x) == before


def digests_with(monkeypatch, root, path, texts):
    """Of a source tree with an inner function in models/wheel.py, for each text that is put at path."""
    for folder in ("models", "sim"):
        (root / folder).mkdir()
    (root / "models" / "wheel.py").write_text("from models.compiled import inner\n")
    monkeypatch.setattr(compile_cache, "__file__", str(root / "models" / "compile_cache.py"))
    found = []
    for text in texts:
        (root / path).write_text(text)
        found.append(compile_cache.source_digest())
    return found


def test_a_changed_inner_function_is_another_state_of_the_source(tmp_path, monkeypatch):
    texts = [f"from models.compiled import inner\n\n\n@inner\ndef f(x):\n    return {n} * x\n" for n in (2, 3)]
    assert len(set(digests_with(monkeypatch, tmp_path, "models/wheel.py", texts))) == 2


def test_so_is_a_constant_beside_it_but_nothing_in_a_folder_that_compiles_nothing(tmp_path, monkeypatch):
    texts = ["SWIFT, NSCC = 3, 4\n", "SWIFT, NSCC = 4, 3\n"]
    assert len(set(digests_with(monkeypatch, tmp_path, "models/numbers.py", texts))) == 2
    other = tmp_path / "other"
    other.mkdir()
    assert len(set(digests_with(monkeypatch, other, "sim/report.py", texts))) == 1
