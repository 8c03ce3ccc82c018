"""Every kernel compiles for an A100 and an H100, neither of which need be there, into what their tiles promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
"""What one block may use (CUDA C++ programming guide, table of compute capabilities)."""
SPILLED_BYTES = {"sm_80 _gate_up 128 any from 256": 160}
"""The tiles are for an H100; on an A100 two products of 128 x 128 leave no room for addresses."""


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_there():
    script = Path(__file__).with_name("compile_kernels.py")
    root = script.parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    kernels = json.loads(done.stdout)
    assert {name.split()[1] for name in kernels} >= {
        "_reroute", "_count", "_scan", "_start", "_place", "_align_few", "_gate_up", "_down", "_sum"
    }  # fmt: skip
    for name, found in kernels.items():
        architecture, kernel, *more = name.split()
        is_product = kernel in ("_gate_up", "_down")
        assert found["spilled_bytes"] <= SPILLED_BYTES.get(name, 0), name
        assert found["shared_bytes"] <= SHARED_BYTES[architecture], name
        assert found["has_tensor_cores"] == found["has_async_copies"] == is_product, name
        is_tall = is_product and int(more[0]) >= 64
        assert found["has_warp_group_products"] == (is_tall and architecture == "sm_90"), name
