"""The fewest accelerators that hold: the order in which candidates are tried.

It knows candidates and whether they hold, nothing of simulations.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

Key = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Replicas of one shape. key: what is to be least, such as (accelerators, dollars per hour)."""

    shape: int
    replicas: int
    key: Key


def search(shapes: Sequence[Sequence[Candidate]]) -> Generator[Candidate, bool, Candidate | None]:
    """Yields the candidate to try next, is sent whether it holds, and returns the one of least key that did.

    shapes: of each, the candidates that are not ruled out, by rising replicas, so that their keys rise

    Shapes go in the order of their least key. Of each, those below the best found so far are halved, taking that more
    replicas hold what fewer hold: of n candidates at most log2(n) + 1 are tried. What is promised is what was tried:
    of every shape the next fewer replicas did not hold, or were ruled out.
    """
    best: Candidate | None = None
    for candidates in sorted((each for each in shapes if each), key=lambda each: each[0].key):
        left = [each for each in candidates if best is None or each.key < best.key]
        low, high = 0, len(left)
        while low < high:
            middle = (low + high) // 2
            if (yield left[middle]):
                best, high = left[middle], middle
            else:
                low = middle + 1
    return best
