"""All checks: `spindle validate`, or `python -m sim.validate.main FILE` to write them as a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from sim.validate import fabric_checks, packet_checks, serving_checks
from sim.validate.table import CheckResult

CHECKS: tuple[Callable[[], Iterator[CheckResult]], ...] = (
    fabric_checks.single_flow_and_incast,
    fabric_checks.collectives,
    fabric_checks.max_min,
    fabric_checks.shift_law,
    fabric_checks.hashed_loads,
    fabric_checks.assigned_loads,
    packet_checks.one_packet_flow,
    packet_checks.packet_references,
    packet_checks.packet_shift_is_a_multiple,
    serving_checks.md1,
)


def run_checks(selected: Collection[str] | None = None) -> list[CheckResult]:
    """Run the checks, in order; `selected` names functions of CHECKS, None for all.

    Raises ValueError for a name that is not there.
    """
    names = [check.__name__ for check in CHECKS]
    unknown = sorted(set(selected or ()) - set(names))
    if unknown:
        raise ValueError(f"no check is named {unknown[0]!r}; there are {', '.join(names)}")
    return [result for check in CHECKS if selected is None or check.__name__ in selected for result in check()]


def as_page(results: list[CheckResult]) -> str:
    """The results as Markdown."""
    lines = [
        "# Validation",
        "",
        "Written by `python -m sim.validate.main docs/validation.md`; `spindle validate` prints the same.",
        "",
        "| check | expected | simulated | error | tolerance | source | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        error = "–" if r.error is None else f"{r.error:.2g}"
        verdict = "ok" if r.passed else "**FAILED**"
        lines.append(
            f"| {r.name} | {r.expected:.6g} | {r.simulated:.6g} | {error} | {r.tolerance} | {r.source} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_page(run_checks()), encoding="utf-8")
