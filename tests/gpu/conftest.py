"""These tests are skipped without a GPU, but collected: what they import must be decorated as tests/kernels need it."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
