"""Arrival rates that vary in time: the clock of an arrival process runs faster where the rate is high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

HALVINGS = 64
"""Of the span in which a time is sought: down to a float's last digit."""


class RateShape(Protocol):
    """rate(t) = mean rate · g(t), with a mean of g of 1 over a period.

    With G(t) the integral of g from 0 to t, the i-th arrival of a process of constant rate at time s becomes one at
    G⁻¹(s): of a Poisson process this makes, exactly, the Poisson process of rate(t) (time change), and the same draws
    give the same requests. Source: Çınlar, Introduction to Stochastic Processes (1975), 4.7.
    """

    def integral(self, time_s: Float64) -> Float64:
        """G(t), in seconds of a process of constant rate."""

    def time_at(self, integral_s: Float64) -> Float64:
        """t with G(t) = integral_s."""


@dataclass(frozen=True, slots=True)
class Diurnal:
    """g(t) = 1 + amplitude · sin(2 π t / period): from the mean up to its peak in a quarter of a period.

    G(t) = t + amplitude · period / 2 π · (1 - cos(2 π t / period)), inverted by halving
    """

    period_s: float
    amplitude: float

    def integral(self, time_s: Float64) -> Float64:
        turn = 2 * np.pi / self.period_s
        return time_s + self.amplitude / turn * (1 - np.cos(turn * time_s))

    def time_at(self, integral_s: Float64) -> Float64:
        low, high = integral_s - self.amplitude * self.period_s / np.pi, integral_s.copy()  # 0 <= G(t) - t <= this
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            is_early = self.integral(middle) < integral_s
            low, high = np.where(is_early, middle, low), np.where(is_early, high, middle)
        return np.maximum(high, 0.0)


@dataclass(frozen=True, slots=True)
class Burst:
    """The last `length` of each period has `factor` times the rate of the rest.

    g = period / (period - length + factor · length) outside of bursts, `factor` times that within
    """

    period_s: float
    length_s: float
    factor: float

    def _corners(self) -> tuple[float, float]:
        """G is a straight line from 0 to this point, and from there to (period, period)."""
        calm_s = self.period_s - self.length_s
        return calm_s, calm_s * self.period_s / (calm_s + self.factor * self.length_s)

    def integral(self, time_s: Float64) -> Float64:
        calm_s, calm_integral_s = self._corners()
        return self._mapped(time_s, calm_s, calm_integral_s)

    def time_at(self, integral_s: Float64) -> Float64:
        calm_s, calm_integral_s = self._corners()
        return self._mapped(integral_s, calm_integral_s, calm_s)

    def _mapped(self, x: Float64, corner_x: float, corner_y: float) -> Float64:
        whole, rest = np.divmod(x, self.period_s)
        nodes = [0.0, corner_x, self.period_s], [0.0, corner_y, self.period_s]
        return whole * self.period_s + np.interp(rest, *nodes)
