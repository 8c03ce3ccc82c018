"""Named random streams: one seed, as many independent generators as there are names."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RandomStreams:
    """Generators keyed by (seed, name) alone.

    Adding a stream, or drawing more from one, never moves another: variants of a scenario see common
    random numbers wherever they ask by the same name.
    """

    seed: int

    def stream(self, name: str) -> np.random.Generator:
        """A fresh generator for the name; asking twice gives the same numbers twice."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=tuple(name.encode())))

    def integer(self, name: str) -> int:
        """A 62-bit seed for compiled code, keyed like a stream."""
        return int(self.stream(name).integers(0, 2**62)) ^ zlib.crc32(name.encode())
