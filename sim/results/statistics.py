"""Statistics of replications and of samples: means, paired differences, ratios, percentiles, intervals.

Replications are independent runs (one per seed) paired across variants by common random numbers. None and
NaN are missing: a seed that is missing on one side drops out of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

CONFIDENCE = 0.95
NO_DIFFERENCE = 0.01
"""A relative interval within ± this share counts as no difference."""

Better = Literal["lower", "higher"] | None
Verdict = Literal["no difference", "better", "worse", "lower", "higher", "unclear"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over replications and its 95 % interval; low and high are None below two values."""

    mean: float | None
    low: float | None
    high: float | None
    num_values: int

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of a monotonic function of the quantity; a decreasing one swaps the bounds."""
        mean, low, high = (None if v is None else function(v) for v in (self.mean, self.low, self.high))
        if low is not None and high is not None and low > high:
            low, high = high, low
        return Estimate(mean, low, high, self.num_values)


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant minus its reference, paired by seed.

    difference  in the metric's own unit
    relative    (ratio of the means) - 1; None where the reference's mean is 0 or cannot be told from 0
    judged      what must lie within ±1 % to be no difference: the difference over the reference's mean, that
                mean taken as exact (of a share, such as the network tax: the difference itself)
    verdict     None with fewer than two pairs: one run shows no spread
    """

    difference: Estimate
    relative: Estimate
    judged: Estimate
    verdict: Verdict | None

    @property
    def is_none(self) -> bool:
        """No difference; of a single pair: the values are equal within 1 %."""
        return self.difference.mean == 0 or is_within(self.judged, NO_DIFFERENCE)


def is_missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def present(values: Sequence[float | None]) -> NDArray[np.float64]:
    """The values that are there, as an array."""
    return np.array([v for v in values if v is not None and math.isfinite(v)], dtype=np.float64)


def mean_interval(values: Sequence[float | None], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and Student-t interval:  mean ± t(n - 1) s / sqrt(n),  s the sample standard deviation.

    Assumes independent, roughly normal values; of n = 0 all is None, of n = 1 the interval is.
    """
    a = present(values)
    n = len(a)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = float(a.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    if np.all(a == a[0]):
        return Estimate(float(a[0]), float(a[0]), float(a[0]), n)
    half = float(_t(n, confidence) * a.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


@cache
def _t(n: int, confidence: float) -> float:
    return float(special.stdtrit(n - 1, 0.5 + confidence / 2))


def _pairs(values: Sequence[float | None], reference: Sequence[float | None]) -> NDArray[np.float64]:
    if len(values) != len(reference):
        raise ValueError(f"paired values of unequal length: {len(values)} and {len(reference)}")
    kept = [(v, r) for v, r in zip(values, reference, strict=True) if not (is_missing(v) or is_missing(r))]
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def ratio_of_means(
    numerator: Sequence[float | None], denominator: Sequence[float | None], confidence: float = CONFIDENCE
) -> Estimate:
    """Ratio of two paired means with Fieller's interval.

    The interval is { r : (y - r x)² <= t² var(y - r x) } of the means x, y: the roots of
        (x² - t² vx) r² - 2 (x y - t² cxy) r + (y² - t² vy)
    with vx, vy, cxy the variances and the covariance of the means. Exact for jointly normal pairs; with a
    constant denominator it is the t-interval. The interval is None when x cannot be told from 0 (the set is
    then unbounded), all is None when x = 0.
    Source: E. C. Fieller, J. R. Stat. Soc. B 16 (1954) 175.
    """
    pairs = _pairs(numerator, denominator)
    n = len(pairs)
    if n == 0:
        return Estimate(None, None, None, 0)
    y, x = pairs.mean(axis=0)
    if x == 0:
        return Estimate(None, None, None, n)
    ratio = float(y / x)
    if n == 1:
        return Estimate(ratio, None, None, 1)
    deviation = pairs - pairs.mean(axis=0)
    vy, vx = (deviation**2).sum(axis=0) / (n - 1) / n
    cxy = float((deviation[:, 0] * deviation[:, 1]).sum() / (n - 1) / n)
    t2 = _t(n, confidence) ** 2
    a = x * x - t2 * vx
    if a <= 0:
        return Estimate(ratio, None, None, n)
    b = x * y - t2 * cxy
    discriminant = t2 * (x * x * vy + y * y * vx - 2 * x * y * cxy) - t2 * t2 * (vx * vy - cxy * cxy)
    root = math.sqrt(max(discriminant, 0.0))
    return Estimate(ratio, min(float((b - root) / a), ratio), max(float((b + root) / a), ratio), n)


def paired_difference(
    values: Sequence[float | None],
    reference: Sequence[float | None],
    better: Better = None,
    is_share: bool = False,
) -> Difference:
    """Compare a variant with its reference over the seeds that both have.

    verdict: "no difference" when `judged` lies within ±1 %; else, when the interval of the difference
    excludes 0, "better" or "worse" ("lower" or "higher" for a metric without a preferred direction);
    else "unclear".
    """
    pairs = _pairs(values, reference)
    difference = mean_interval([float(v) for v in pairs[:, 0] - pairs[:, 1]])
    ratio = ratio_of_means([float(v) for v in pairs[:, 0]], [float(v) for v in pairs[:, 1]])
    relative = ratio.mapped(lambda r: r - 1)
    size = abs(float(pairs[:, 1].mean())) if len(pairs) else 0.0
    judged = Estimate(None, None, None, len(pairs))
    if is_share:
        judged = difference
    elif size > 0:
        judged = difference.mapped(lambda d: d / size)
    return Difference(difference, relative, judged, _verdict(difference, judged, better))


def _verdict(difference: Estimate, judged: Estimate, better: Better) -> Verdict | None:
    if difference.low is None or difference.high is None:
        return None
    if difference.low == difference.high == 0 or is_within(judged, NO_DIFFERENCE):
        return "no difference"
    if difference.low <= 0 <= difference.high:
        return "unclear"
    is_lower = difference.high < 0
    if better is None:
        return "lower" if is_lower else "higher"
    return "better" if is_lower == (better == "lower") else "worse"


def is_within(estimate: Estimate, margin: float) -> bool:
    """Whether the whole interval (of a single value: the value) lies within ± margin."""
    if estimate.mean is None:
        return False
    if estimate.low is None or estimate.high is None:
        return estimate.num_values == 1 and abs(estimate.mean) <= margin
    return -margin <= estimate.low and estimate.high <= margin


def percentile_interval(
    samples: NDArray[np.float64], percent: float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None, float | None]:
    """A percentile of one run's samples and its distribution-free interval: (value, low, high).

    The number of samples below the true percentile is binomial(n, percent / 100), so the order statistics
    at its 2.5 % and 97.5 % points bracket it. A bound is None where no order statistic reaches that far.
    The value interpolates linearly, as numpy and `vllm bench serve` do.

    samples: finite and sorted; sorting a hundred million of them again for each percentile would take minutes
    Leaves out: dependence between samples of one run, which makes the true interval wider.
    """
    n = len(samples)
    if n == 0:
        return None, None, None
    share = percent / 100
    tail = (1 - confidence) / 2
    below = _binomial_quantile(tail, n, share)
    above = _binomial_quantile(1 - tail, n, share) + 1
    low = float(samples[below - 1]) if below >= 1 else None
    high = float(samples[above - 1]) if above <= n else None
    return float(percentiles_of_sorted(samples, percent)), low, high


def percentiles_of_sorted(samples: NDArray[np.float64], percent: ArrayLike) -> NDArray[np.float64]:
    """`np.percentile` of sorted samples, without the copy that it makes."""
    place = np.asarray(percent, dtype=np.float64) / 100 * (len(samples) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(samples) - 1)
    return samples[low] + (samples[high] - samples[low]) * (place - low)


def _binomial_quantile(q: float, n: int, p: float) -> int:
    """The smallest k with P(X <= k) >= q, for 0 < p < 1. scipy.stats has it too, but takes a second to import."""
    place = float(special.bdtrik(q, n, p))
    if math.isnan(place):  # q lies below P(X = 0)
        return 0
    k = math.ceil(place)
    return k - 1 if k > 0 and special.bdtr(k - 1, n, p) >= q else k
