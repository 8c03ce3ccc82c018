"""From a scenario's laws of lengths and of rates to what draws from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.scenario.requests import BurstShape, DiurnalShape, Lengths
from sim.workload.lengths import Fixed, Lognormal, Uniform
from sim.workload.rate_shape import Burst, Diurnal, RateShape


def length_law(law: Any) -> Any:
    """What draws lengths by a law."""
    match law.law:
        case "fixed":
            return Fixed(law.tokens)
        case "uniform":
            return Uniform(law.low, law.high)
        case "lognormal":
            return Lognormal(law.mean, law.sigma, law.max)
    raise TypeError(f"no length law {law.law!r}")


def drawn_lengths(lengths: Lengths, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    return length_law(lengths.input).draw(rng, num), length_law(lengths.output).draw(rng, num)


def rate_shape(shape: Any) -> RateShape | None:
    match shape:
        case None:
            return None
        case DiurnalShape():
            return Diurnal(shape.period_s, shape.amplitude)
        case BurstShape():
            return Burst(shape.period_s, shape.length_s, shape.factor)
    raise TypeError(f"no shape of a rate {shape!r}")


def fewest_tokens(law: Any) -> tuple[int, str]:
    """The shortest length that a law draws, and the key that says so."""
    match law.law:
        case "fixed":
            return law.tokens, "tokens"
        case "uniform":
            return law.low, "low"
    return 1, "mean"


def longer_length(lengths: Lengths) -> tuple[str, str]:
    """Where the longer one of the shortest lengths stands, such as ("input", "tokens")."""
    (prompt, of_prompt), (output, of_output) = map(fewest_tokens, (lengths.input, lengths.output))
    return ("input", of_prompt) if prompt >= output else ("output", of_output)
