"""Kernels on a CPU: under Triton's interpreter, chosen before any of them is decorated."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

SENTINEL = -77
MARGIN = 64


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def fenced(device):
    """Puts sentinels round tensors: the interpreter does not notice what is written out of bounds."""
    fences = []

    def make(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.full((tensor.numel() + 2 * MARGIN,), SENTINEL, dtype=tensor.dtype, device=device)
        inside = whole[MARGIN:-MARGIN].view(tensor.shape)
        inside.copy_(tensor)
        fences.append(whole)
        return inside

    yield make
    for whole in fences:
        assert (whole[:MARGIN] == SENTINEL).all()
        assert (whole[-MARGIN:] == SENTINEL).all()
