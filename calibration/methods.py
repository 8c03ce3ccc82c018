"""Which method finds the times between measured points: chosen for each operator, part and precision by held-out error.

Starting from the best of the default, straight lines, roots and logarithms, one choice after the other - how gaps are
filled, the scale of each axis, of the time - is changed where that makes the error smaller: that of every fifth of the
points given, found from the others. Where a table is checked, its held-out points are not among those given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibration.groups import EVERY, Group, Key, groups
from models.cost.method import FLAT, LINEAR, LINES, LOG, ROOT, STEPS, TRIANGLES, Method
from models.cost.table import CostTable

__all__ = ["TARGET_MEDIAN", "TARGET_P90", "choose", "score", "with_methods"]

TARGET_MEDIAN, TARGET_P90 = 0.03, 0.10
WORTH = 0.95
"""Another method than the default is taken where its score is smaller than so many times the default's."""
FEWEST, MANY = 200, 1000
"""Below FEWEST held-out points the default stays: they say too little. Below MANY each fifth is held out in turn."""
NO_SCALES = {("attention", "together"): (), ("attention", "decode"): (1,), ("experts", "experts"): ()}
"""Scales (positions) that may be chosen, where not all may: the serving loop draws straight lines along the context,
and over a chunk and decodes in one call; experts are not interpolated on axes where they fill no grid."""


def score(errors: NDArray[np.float64]) -> float:
    """The median error and the p90 error, as multiples of their targets, the larger of the two."""
    median, p90 = np.quantile(errors, [0.5, 0.9])
    return float(max(median / TARGET_MEDIAN, p90 / TARGET_P90))


def choose(given: Iterable[Group]) -> dict[Key, Method]:
    """By key the method for its groups."""
    same: dict[Key, list[Group]] = defaultdict(list)
    for group in given:
        if len(group.rows):
            same[group.key].append(group)
    return {key: _chosen(key, each) for key, each in same.items()}


def _chosen(key: Key, same: Sequence[Group]) -> Method:
    default = same[0].default
    splits = [group.split() for group in same]
    if sum(len(out) for _, out in splits) < MANY:
        splits = [group.split(first) for first in range(EVERY) for group in same]

    def scored(method: Method) -> float:
        each = [np.abs(rest.found(out, method) / out["seconds"].to_numpy(float) - 1)
                for rest, out in splits if len(rest.rows) and len(out)]  # fmt: skip
        errors = np.concatenate([np.zeros(0), *each])
        errors = errors[~np.isnan(errors)]
        return score(errors) if len(errors) >= FEWEST else np.inf

    free = NO_SCALES.get((key[0].removeprefix("latent_"), key[1]), tuple(range(len(default.scales))))
    free = tuple(i for i in free if i == len(default.scales) - 1 or same[0].axes[i] != "heads")
    starts = [default]
    if len(default.scales) - 1 in free:
        for axes, time in ((LINEAR, LINEAR), (LINEAR, ROOT), (LOG, LOG)):
            scales = (*(axes if i in free else scale for i, scale in enumerate(default.scales[:-1])), time)
            starts.append(replace(default, scales=scales))
    scores = {method: scored(method) for method in starts}
    best = min(scores, key=scores.__getitem__)
    for i in (-1, *free):
        for other in _others(best, i, free):
            if other not in scores:
                scores[other] = scored(other)
            if scores[other] < scores[best]:
                best = other
    return best if scores[best] < WORTH * scores[default] else default


def _others(method: Method, i: int, free: tuple[int, ...]) -> Iterator[Method]:
    """The method with another fill (i = -1), or with the scale of one axis or of the time changed."""
    if i == -1:
        for fill in (TRIANGLES, FLAT) if method.fill in (TRIANGLES, FLAT) else (LINES, STEPS):
            yield replace(method, fill=fill)
        return
    for scale in (LINEAR, LOG, ROOT) if i == len(method.scales) - 1 else (LINEAR, LOG):
        yield replace(method, scales=(*method.scales[:i], scale, *method.scales[i + 1 :]))


def with_methods(table: CostTable) -> CostTable:
    """The table with its methods in the column `method`, so that reading it chooses nothing."""
    parts = list(groups(table))
    chosen = choose(parts)
    rows = table.rows.copy()
    for group in parts:
        rows.loc[group.rows.index, "method"] = chosen[group.key].text
    return CostTable(rows, table.origin)
