"""What a test may need of the machine. A test that does without is skipped, for one of these reasons and no other.

Imports nothing but pytest: machines with a GPU run tests/gpu without the simulator's packages.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

NEEDS_SHARED_DATA = "needs ../shared/data (public recordings)"
NEEDS_CUDA = "needs a CUDA device"
"""`.ci/run` fails on a test that was skipped with other words."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public recordings: $SPINDLE_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPINDLE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(NEEDS_SHARED_DATA)
    return folder


@pytest.fixture(scope="session")
def cuda() -> str:
    """The device that tests of kernels run on."""
    torch = pytest.importorskip("torch", reason=NEEDS_CUDA)
    if not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA)
    return "cuda"


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: every later collection of garbage need not look at it.

    Simulations and Hypothesis collect often, each time for a quarter of a second among a million objects.
    """
    gc.collect()
    gc.freeze()
