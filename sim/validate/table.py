"""One row of the validation table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was expected, what the simulator gave, and whether that is close enough.

    error None where the check is a statistical test: `simulated` is its statistic, `expected` that one's mean, and
    the tolerance its largest value allowed.
    """

    name: str
    expected: float
    simulated: float
    error: float | None
    tolerance: str
    source: str
    passed: bool

    @classmethod
    def relative(cls, name: str, expected: float, simulated: float, tolerance: float, source: str) -> CheckResult:
        error = abs(simulated - expected) / abs(expected)
        return cls(name, expected, simulated, error, f"{tolerance:g}", source, error <= tolerance)
