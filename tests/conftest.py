"""What a test may need of the machine. A test that does without is skipped, for one of these reasons and no other.

Imports nothing but pytest: machines with a GPU run tests/gpu without the simulator's packages.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

COMPILE_CORES = Path(__file__).parent / "compile_cores.py"

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


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Before a run of everything, compile the cores that are not on disk, one per processor at a time.

    Whoever names what to run compiles what it needs; so do machines that lack the simulator's packages.
    """
    config = session.config
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if not is_whole or config.option.collectonly or hasattr(config, "workerinput"):
        return
    command = [sys.executable, str(COMPILE_CORES)]
    path = os.pathsep.join(filter(None, (str(config.rootpath), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}

    def compile_core(name: str) -> None:
        code = subprocess.run([*command, name], env=environment, check=False).returncode
        if code != 0:
            sys.stderr.write(f"compiling {name} failed (exit code {code}); the tests try it themselves\n")

    listed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    names = listed.splitlines()
    if names:
        sys.stderr.write(f"compiling, once for this state of the source: {', '.join(names)}\n")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_core, names))


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: every later collection of garbage need not look at it.

    Simulations and Hypothesis collect often, each time for a quarter of a second among a million objects.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Python's own end lets go of everything, and libraries complain of what it leaves."""
    gc.unfreeze()
