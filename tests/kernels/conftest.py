"""Kernels on a CPU: under Triton's interpreter, chosen before any of them is decorated."""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

MARGIN = 64


class Fences:
    """Tensors with a margin of poison on both sides: NaN, or a number that no result is. The interpreter notices
    neither what is read nor what is written out of bounds."""

    SENTINEL = -77

    def __init__(self, device: str) -> None:
        self.device = device
        self._whole: list[torch.Tensor] = []

    def poison(self, dtype: torch.dtype) -> float:
        return float("nan") if dtype.is_floating_point else self.SENTINEL

    def empty(self, shape, dtype: torch.dtype) -> torch.Tensor:
        """As torch.empty, poisoned."""
        size = torch.Size(shape)
        whole = torch.full((size.numel() + 2 * MARGIN,), self.poison(dtype), dtype=dtype, device=self.device)
        self._whole.append(whole)
        return whole[MARGIN : MARGIN + size.numel()].view(size)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor."""
        inside = self.empty(tensor.shape, tensor.dtype)
        return inside.copy_(tensor)

    def check(self) -> None:
        for whole in self._whole:
            for margin in (whole[:MARGIN], whole[-MARGIN:]):
                assert (margin.isnan() if whole.dtype.is_floating_point else margin == self.SENTINEL).all()


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def fenced(device, monkeypatch):
    """Puts margins of poison round tensors, and round all that kernels allocate while the test runs."""
    fences = Fences(device)
    plain_new_empty, plain_empty_like = torch.Tensor.new_empty, torch.empty_like

    def is_ours():
        return sys._getframe(2).f_globals["__name__"].startswith("kernels.")  # Triton's interpreter allocates as well

    def new_empty(self, *shape, dtype=None, **more):
        if not is_ours():
            return plain_new_empty(self, *shape, dtype=dtype, **more)
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return fences.empty(sizes, dtype or self.dtype)

    def empty_like(tensor, dtype=None, **more):
        if not is_ours():
            return plain_empty_like(tensor, dtype=dtype, **more)
        return fences.empty(tensor.shape, dtype or tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    yield fences
    fences.check()
