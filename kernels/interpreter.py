"""Triton's interpreter, which runs kernels on a CPU, and what it cannot do.

Its bf16 arithmetic is garbage without a warning, so kernels take `WIDEN` as a constexpr and cast what they load to
fp32 at once where it is set. What it stores as bf16 it cuts off instead of rounding: results are
fp32 there, and PyTorch rounds them.
"""

from __future__ import annotations

import os

WIDEN = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Whether kernels of this process are interpreted: Triton asks when it decorates them."""
