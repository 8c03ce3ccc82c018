"""How a time between measured points is found: on which scales lines are straight, and how a gap in a grid is filled.

A table says it in its column `method`: a word for each axis, one for the time, one for gaps: "linear log root steps".
`calibration.methods` chooses it by held-out error; where it is empty, DEFAULTS hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILLS", "FLAT", "LINEAR", "LINES", "LOG", "ROOT", "SCALES", "STEPS", "TRIANGLES", "Method",
           "default_method", "method_of", "read_method", "scaled", "time_scaled", "unscaled"]  # fmt: skip

LINEAR, LOG, ROOT = "linear", "log", "root"
SCALES = (LINEAR, LOG, ROOT)
"""root: of times only. What grows with the square of its axis, as prefill does, is nearly straight there."""
LINES, STEPS, TRIANGLES, FLAT = "lines", "steps", "triangles", "flat"
FILLS = (LINES, STEPS, TRIANGLES, FLAT)
"""lines and steps: as `models.cost.grid.complete`; triangles and flat: as `models.cost.fit.ExpertTimes`."""


@dataclass(frozen=True, slots=True)
class Method:
    """scales: of each axis and, last, of the time; fill: one of FILLS."""

    scales: tuple[str, ...]
    fill: str = STEPS

    @property
    def text(self) -> str:
        """As a table carries it."""
        return " ".join((*self.scales, self.fill))


def read_method(text: str) -> Method:
    """A method from a table's words. Raises ValueError for other words."""
    *scales, fill = text.split(" ")
    if len(scales) < 2 or fill not in FILLS or not set(scales) <= set(SCALES) or ROOT in scales[:-1]:
        raise ValueError(f"must be {LINEAR} or {LOG} for each axis, {', '.join(SCALES)} for the time, and "
                         f"one of {', '.join(FILLS)} for gaps")  # fmt: skip
    return Method(tuple(scales), fill)


def default_method(part: str, num_axes: int) -> Method:
    """Of an operator's part ("prefill") over so many axes: straight lines, but for prefill, which is quadratic."""
    scales = (LINEAR,) * num_axes
    if part == "prefill":
        return Method((*scales, ROOT))
    return Method((*scales, LINEAR), FLAT if part == "experts" else STEPS)


def method_of(texts: Iterable[str], default: Method) -> Method:
    """What the rows of a fit say: the first method over as many axes; the default where none does."""
    for text in dict.fromkeys(texts):
        if text:
            method = read_method(text)
            if len(method.scales) == len(default.scales):
                return method
    return default


def scaled(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    """Places on an axis, which may be 0, on a scale."""
    return np.log2(values + 1) if scale == LOG else values


def time_scaled(seconds: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    """Times on a scale."""
    return np.log(seconds) if scale == LOG else np.sqrt(seconds) if scale == ROOT else seconds


def unscaled(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    """The inverse of `time_scaled`."""
    return np.exp(values) if scale == LOG else np.square(values) if scale == ROOT else values
