"""Where a time came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Estimate", "Source"]


class Source(IntEnum):
    """Origin of an operator's time; compiled tables carry the number, reports the lower-case name."""

    ROOFLINE = 0
    MEASURED = 1
    IMPORTED = 2
    INTERPOLATED = 3
    EXTRAPOLATED = 4

    @property
    def label(self) -> str:
        """Name as reports print it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A time and where it came from."""

    seconds: float
    source: Source
