"""The simulator's own speed against its promises: `spindle bench`."""

from __future__ import annotations

from typing import Any

from sim.bench import fabric, serving


def run_benchmarks() -> list[dict[str, Any]]:
    """Rows {name, value, unit, target, ok, wall_s}. Machines differ and are shared: compare within one run."""
    return [*fabric.run(), *serving.run()]
