"""A point to measure: one operator, kernel and shape, which becomes one row of `models.cost.table`.

What a call of it must move and compute, and what share that is of the ceilings measured on the same device. No torch
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.cost.table import FAMILIES
from models.features import ACTIVATION_BYTES
from models.hardware import PRECISIONS

__all__ = ["CEILINGS", "PAGE_CALLS", "Point", "point", "rates"]

COMPUTING = ("linear", "elementwise", "attention", "experts")
MATRICES = 3
"""Of an expert: gate, up and down."""
PAGE_CALLS = ("reserve", "create", "map", "allow", "unmap", "release", "unreserve")
"""In the order in which one stretch of pages passes them."""


@dataclass(frozen=True, slots=True)
class Point:
    """numbers: in the order of the family's shape and axes."""

    operator: str
    name: str
    precision: str
    numbers: tuple[int, ...]

    @property
    def columns(self) -> dict[str, int]:
        family = FAMILIES[self.operator]
        return dict(zip((*family.shape, *family.axes), self.numbers, strict=True))

    def __str__(self) -> str:
        words = [self.operator, self.name, self.precision, *(f"{name} {n}" for name, n in self.columns.items())]
        return " ".join(word for word in words if word)

    @property
    def num_bytes(self) -> float:
        """That one call must read and write, each operand once; 0 for a call that moves none."""
        of, wide = self.columns, PRECISIONS.get(self.precision, 0)
        match self.operator:
            case "linear":
                each = (of["inputs"] + of["outputs"]) * ACTIVATION_BYTES
                return of["inputs"] * of["outputs"] * wide + of["rows"] * each
            case "elementwise":
                return of["rows"] * of["numbers"] * ACTIVATION_BYTES
            case "memory_pass" | "host_copy":
                return of["size_bytes"]
            case "attention":
                tokens, read = of["chunk"] + of["decodes"], of["chunk"] + of["prefix"] + of["decodes"] * of["context"]
                numbers = 2 * tokens * of["heads"] * ACTIVATION_BYTES + 2 * read * of["kv_heads"] * wide
                return numbers * of["head_dim"]
            case "experts":
                row, expert = 2 * of["hidden"] + 2 * MATRICES * of["inner"], MATRICES * of["hidden"] * of["inner"]
                return of["experts"] * expert * wide + of["rows"] * row * ACTIVATION_BYTES
            case "reroute":  # an expert in, a slot out, and an adapter a token; four bytes each
                return 4 * of["rows"] * (2 * of["top_k"] + 1)
            case "align":
                return 4 * of["rows"] * 2 * of["top_k"]
        return 0.0

    @property
    def num_flops(self) -> float:
        """That one call must compute; 0 where memory decides."""
        of = self.columns
        match self.operator:
            case "linear":
                return 2.0 * of["rows"] * of["inputs"] * of["outputs"]
            case "attention":
                pairs = of["chunk"] * of["prefix"] + of["chunk"] * (of["chunk"] + 1) / 2
                return 4.0 * of["heads"] * of["head_dim"] * (pairs + of["decodes"] * of["context"])
            case "experts":
                return 2.0 * MATRICES * of["rows"] * of["hidden"] * of["inner"]
        return 0.0


def point(operator: str, name: str = "", precision: str | None = None, /, **numbers: int) -> Point:
    """A point by the names of its numbers, in bf16 unless told, where a precision means something.

    Raises KeyError where the family has other numbers.
    """
    if precision is None:
        precision = "bf16" if operator in COMPUTING else ""
    family = FAMILIES[operator]
    columns = (*family.shape, *family.axes)
    if set(columns) != set(numbers):
        raise KeyError(f"{operator} has {', '.join(columns)}, got {', '.join(numbers)}")
    return Point(operator, name, precision, tuple(int(numbers[column]) for column in columns))


COPY = point("memory_pass", "copy", size_bytes=2**31)
PRODUCT = {precision: point("linear", "", precision, inputs=8192, outputs=8192, rows=8192) for precision in PRECISIONS}
HOST_COPY = point("host_copy", size_bytes=2**28)
CEILINGS = (COPY, *PRODUCT.values(), HOST_COPY)
"""Measured before all else: a pass over the device's memory, bytes read and written; a large product; a copy from the
host."""


def rates(of: Point, seconds: float, known: Mapping[Point, float]) -> dict[str, float | None]:
    """bytes/s, flop/s and the larger of their shares of the ceilings; None where nothing is to be said.

    known: seconds of the CEILINGS that could be measured
    """
    bytes_per_s, flop_per_s = of.num_bytes / seconds, of.num_flops / seconds
    # Attention computes in bf16 whatever the cache holds.
    product = PRODUCT["fp8" if of.precision == "fp8" and of.operator != "attention" else "bf16"]
    copy = HOST_COPY if of.operator == "host_copy" else COPY
    shares = [
        bytes_per_s * known[copy] / copy.num_bytes if copy in known else 0.0,
        flop_per_s * known[product] / product.num_flops if product in known else 0.0,
    ]
    return {"bytes_per_s": bytes_per_s or None, "flop_per_s": flop_per_s or None, "of_ceiling": max(shares) or None}
