"""Compile a core as a whole run of the tests will need it: `python tests/compile_cores.py fluid`.

conftest.py does so before the tests' processes start. Each of them would compile the same cores at the same time
otherwise, for Numba shares what is finished and not what is under way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numba
import numpy as np

from models.cost.step import roofline_table
from models.features import Feature
from sim.bench.fabric import COMPILATIONS, compile_for
from sim.devices.kv_cache import new_holdings
from sim.fabric.policies import PATH_POLICIES, compiled
from sim.serving.engine import REACHED, advance
from sim.serving.policies import BATCHING_POLICIES, compiled_policy
from sim.serving.request import new_requests, new_token_times
from sim.serving.state import new_engine_state
from sim.serving.verbs import submit


def compile_fluid() -> None:
    compile_for(COMPILATIONS["compilation, fluid"])
    for policy in PATH_POLICIES.values():
        compiled(policy)


def compile_engine() -> None:
    """One request in an engine of one slot."""
    one = np.ones(1)
    table = roofline_table(
        np.zeros((1, 2, len(Feature))), np.ones((1, 2)), one, one, np.array([[Feature.TOKENS, 0, 0]]), np.zeros(1), 0.0
    )
    for policy in BATCHING_POLICIES:
        requests = new_requests(np.zeros(1), np.array([16]), np.array([2]))
        state = new_engine_state(
            requests, new_token_times(requests), new_holdings(1), num_blocks=8, block_size=16, max_num_seqs=1,
            max_num_batched_tokens=64, num_step_rows=0,
        )  # fmt: skip
        assert advance(submit(state, 0), compiled_policy(policy), table, np.inf, 100, 0) == REACHED


CORES = {
    "full ports": ("full_core._advance", lambda: compile_for(COMPILATIONS["packets: compilation, full ports"])),
    "fluid": ("fluid_core._advance", compile_fluid),
    "engine": ("engine.advance", compile_engine),
    "lean ports": ("packet_core._advance", lambda: compile_for(COMPILATIONS["packets: compilation, lean ports"])),
}
"""The longest first: the loop at the top of a core, whose file is there once the core is compiled, and what does it."""


def not_compiled() -> list[str]:
    folder = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    return [name for name, (loop, _) in CORES.items() if folder and not any(Path(folder).rglob(f"{loop}-*.nbi"))]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        CORES[sys.argv[1]][1]()
    else:
        sys.stdout.writelines(f"{name}\n" for name in not_compiled())
