"""How long prompts and outputs are, in tokens: length laws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `num_tokens`."""

    num_tokens: int

    def __post_init__(self) -> None:
        _at_least_one("num_tokens", self.num_tokens)

    def draw(self, rng: np.random.Generator, num: int) -> Int64:
        return np.full(num, self.num_tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number from `low` to `high`, both included, with equal chance."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _at_least_one("low", self.low)
        if self.high < self.low:
            raise ValueError(f"uniform lengths need low <= high, got {self.low} and {self.high}")

    def draw(self, rng: np.random.Generator, num: int) -> Int64:
        return rng.integers(self.low, self.high, num, endpoint=True)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal law, rounded to whole tokens.

    mean    mean length in tokens, of the law itself and not of its logarithm
    sigma   standard deviation of the natural logarithm; the median is mean · exp(-sigma² / 2)
    most    longer draws are cut to this; None: never

    Rounding up to 1 and cutting at `most` move the mean a little; it is not corrected.
    """

    mean: float
    sigma: float
    most: int | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.mean < np.inf and 0 <= self.sigma < np.inf):
            raise ValueError(
                f"lognormal lengths need mean >= 1 and sigma >= 0, got {self.mean} and {self.sigma}"
            )
        if self.most is not None:
            _at_least_one("most", self.most)

    def draw(self, rng: np.random.Generator, num: int) -> Int64:
        drawn = rng.lognormal(np.log(self.mean) - self.sigma**2 / 2, self.sigma, num)
        longest = 2**30 - 1 if self.most is None else self.most
        return np.clip(np.rint(drawn), 1, longest).astype(np.int64)


Lengths = Fixed | Uniform | Lognormal

LENGTHS: dict[str, type[Fixed] | type[Uniform] | type[Lognormal]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "lognormal": Lognormal,
}


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1 token, got {value}")
