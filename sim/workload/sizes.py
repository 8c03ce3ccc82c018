"""Message sizes: laws to draw them from, and what they cost on the wire.

Every law gives its mean number of bytes and of packets exactly, so that a stated load is the load offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from sim.fabric.messages import Int64
from sim.workload.flow_file import TrafficFileError, numbered_lines

SUMMED_TERMS = 1 << 20
"""Terms of a mean's tail sum that are added one by one; the rest is an integral (error far below 1e-9)."""


class SizeLawError(ValueError):
    """Parameters that make no distribution of sizes; the text names the parameter and its value."""


class SizeLaw(Protocol):
    """A distribution of message sizes in whole bytes, at least 1."""

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        """`count` independent sizes."""
        ...

    def mean_bytes(self) -> float: ...

    def mean_packets(self, payload_bytes: int) -> float:
        """Mean of ceil(size / payload_bytes)."""
        ...


def num_packets(size_bytes: ArrayLike, payload_bytes: int) -> Int64:
    """Packets per message: ceil(size / payload); an empty message is one packet of header alone."""
    return np.maximum(1, -(-np.asarray(size_bytes, dtype=np.int64) // payload_bytes))


def wire_bytes(size_bytes: ArrayLike, mtu_bytes: int, header_bytes: int) -> Int64:
    """Bytes on the wire: size + header · ceil(size / (mtu − header)); the last packet is short."""
    return np.asarray(size_bytes, dtype=np.int64) + header_bytes * num_packets(
        size_bytes, mtu_bytes - header_bytes
    )


def mean_wire_bytes(law: SizeLaw, mtu_bytes: int, header_bytes: int) -> float:
    """Expected bytes on the wire of one message of the law."""
    return law.mean_bytes() + header_bytes * law.mean_packets(mtu_bytes - header_bytes)


@dataclass(frozen=True, slots=True)
class Pieces:
    """With probability mass[i], a whole number of bytes drawn evenly from low[i] … high[i].

    One piece of one value is a fixed size, one longer piece a uniform one, many are a file's distribution.
    """

    low: Int64
    high: Int64
    mass: NDArray[np.float64]

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        if len(self.low) == 1:
            return rng.integers(self.low[0], self.high[0], size=count, endpoint=True)
        piece = np.searchsorted(np.cumsum(self.mass)[:-1], rng.random(count), side="right")
        return rng.integers(self.low[piece], self.high[piece], endpoint=True)

    def mean_bytes(self) -> float:
        return float(self.mass @ ((self.low + self.high) / 2))

    def mean_packets(self, payload_bytes: int) -> float:
        total = _packets_up_to(self.high, payload_bytes) - _packets_up_to(self.low - 1, payload_bytes)
        return float(self.mass @ (total / (self.high - self.low + 1)))


def _packets_up_to(size_bytes: Int64, payload_bytes: int) -> Int64:
    """Sum of ceil(x / payload) over x = 1 … size, exactly."""
    full, rest = np.divmod(size_bytes, payload_bytes)
    return payload_bytes * (full * (full + 1) // 2) + rest * (full + 1)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp(N(mu, sigma²)), rounded up to whole bytes; mu such that the mean before rounding is
    `scale_bytes`.
    """

    scale_bytes: float
    sigma: float

    @property
    def mu(self) -> float:
        return math.log(self.scale_bytes) - self.sigma**2 / 2

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        return _rounded_up(rng.lognormal(self.mu, self.sigma, count))

    def mean_bytes(self) -> float:
        return _mean_of_ceil(self._exceeding, self._excess, 1)

    def mean_packets(self, payload_bytes: int) -> float:
        return _mean_of_ceil(self._exceeding, self._excess, payload_bytes)

    def _exceeding(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(size > x)."""
        with np.errstate(divide="ignore"):
            return special.ndtr((self.mu - np.log(x)) / self.sigma)

    def _excess(self, x: float) -> float:
        """E[(size − x)+], the integral of P(size > ·) from x on (the Black-Scholes form)."""
        d = (self.mu - math.log(x)) / self.sigma
        return float(self.scale_bytes * special.ndtr(d + self.sigma) - x * special.ndtr(d))


@dataclass(frozen=True, slots=True)
class Pareto:
    """P(size > x) = (minimum / x)^shape, rounded up to whole bytes; the mean before rounding is
    `scale_bytes`.

    The tail is not cut off: with a shape below 2 the variance is infinite, and a short run may see a load
    far from its mean.
    """

    scale_bytes: float
    shape: float

    @property
    def minimum_bytes(self) -> float:
        return self.scale_bytes * (self.shape - 1) / self.shape

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        return _rounded_up(self.minimum_bytes * (1 + rng.pareto(self.shape, count)))

    def mean_bytes(self) -> float:
        return _mean_of_ceil(self._exceeding, self._excess, 1)

    def mean_packets(self, payload_bytes: int) -> float:
        return _mean_of_ceil(self._exceeding, self._excess, payload_bytes)

    def _exceeding(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (self.minimum_bytes / np.maximum(x, self.minimum_bytes)) ** self.shape

    def _excess(self, x: float) -> float:
        beyond = max(x, self.minimum_bytes)
        tail = beyond / (self.shape - 1) * (self.minimum_bytes / beyond) ** self.shape
        return tail + (beyond - x)


def _rounded_up(values: NDArray[np.float64]) -> Int64:
    return np.maximum(1, np.ceil(np.minimum(values, 2.0**62))).astype(np.int64)


def _mean_of_ceil(exceeding: Callable, excess: Callable[[float], float], unit: int) -> float:
    """E[ceil(Y / unit)] = Σ over k ≥ 0 of P(Y > k unit): the first terms added, the rest integrated.

    The rest is ∫ + half of its first term (Euler-Maclaurin), which is exact to far below 1e-9 here.
    """
    steps = np.arange(SUMMED_TERMS, dtype=np.float64) * unit
    beyond = float(SUMMED_TERMS) * unit
    rest = excess(beyond) / unit + float(exceeding(np.array([beyond]))[0]) / 2
    return float(exceeding(steps).sum()) + rest


def fixed(size_bytes: int) -> Pieces:
    return uniform(size_bytes, size_bytes)


def uniform(low_bytes: int, high_bytes: int) -> Pieces:
    """Every whole number of bytes from low to high, both included, equally likely."""
    if not 1 <= low_bytes <= high_bytes:
        raise SizeLawError(f"sizes from {low_bytes} to {high_bytes} bytes: give 1 byte ≤ low ≤ high")
    return Pieces(np.array([low_bytes], np.int64), np.array([high_bytes], np.int64), np.ones(1))


def lognormal(mean_bytes: float, sigma: float) -> Lognormal:
    """Lognormal sizes of the given mean (before rounding up) and sigma, the spread of the logarithm."""
    _check_positive(mean_bytes, "mean")
    _check_positive(sigma, "sigma")
    return Lognormal(float(mean_bytes), float(sigma))


def pareto(mean_bytes: float, shape: float) -> Pareto:
    """Pareto sizes of the given mean (before rounding up); shape > 1, or the mean would be infinite."""
    _check_positive(mean_bytes, "mean")
    if not (math.isfinite(shape) and shape > 1):
        raise SizeLawError(f"shape of a Pareto law is {shape}; it must be above 1, or the mean is infinite")
    return Pareto(float(mean_bytes), float(shape))


def _check_positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SizeLawError(f"{name} is {value}; it must be finite and above 0")


def from_file(path: str | Path) -> Pieces:
    """A distribution from lines `bytes probability`, the probability that a message is at most so long.

    Between two lines, whole byte counts are equally likely; a first probability above 0 is the chance of
    exactly the first size. Probabilities end at 1, or at 100 (then they are percent). `#` starts a comment.
    This is the form of the web-search and data-mining files that come with pFabric-like and HPCC
    experiments.
    Raises TrafficFileError with file, line and value.
    """
    path = Path(path)
    rows: list[tuple[int, int, float]] = []
    for number, line in numbered_lines(path):
        words = line.replace(",", " ").split()
        try:
            if len(words) != 2:
                raise ValueError
            size, probability = float(words[0]), float(words[1])
        except ValueError:
            raise TrafficFileError(
                path, number, f"'{line}' is not `bytes probability`, two numbers"
            ) from None
        if not (math.isfinite(size) and size >= 0 and size == int(size)):
            raise TrafficFileError(path, number, f"size {words[0]} is not a whole number of bytes")
        if not (math.isfinite(probability) and 0 <= probability <= 100):
            raise TrafficFileError(
                path, number, f"probability {words[1]} is outside 0 … 1 (or 0 … 100 percent)"
            )
        if rows and (size < rows[-1][1] or probability < rows[-1][2]):
            raise TrafficFileError(
                path, number, f"'{line}' falls below the line before; sort by size, sums rise"
            )
        rows.append((number, int(size), probability))
    if not rows:
        raise TrafficFileError(path, None, "holds no lines `bytes probability`")
    last_line, _, total = rows[-1]
    if total not in (1.0, 100.0):
        raise TrafficFileError(
            path, last_line, f"the last probability is {total:g}; it must be 1 (or 100 percent)"
        )
    low, high, mass = [], [], []
    before_bytes, before = rows[0][1], 0.0
    for i, (number, size, probability) in enumerate(rows):
        if probability > before:
            at_once = i == 0 or size == before_bytes
            low.append(size if at_once else before_bytes + 1)
            high.append(size)
            mass.append((probability - before) / total)
            if low[-1] < 1:
                raise TrafficFileError(path, number, "gives messages of 0 bytes a chance; start at 1 byte")
        before_bytes, before = size, probability
    return Pieces(np.array(low, np.int64), np.array(high, np.int64), np.array(mass))


SIZE_LAWS: dict[str, Callable[..., SizeLaw]] = {
    "fixed": fixed,
    "uniform": uniform,
    "lognormal": lognormal,
    "pareto": pareto,
    "file": from_file,
}
