"""What a batch of decodes with uneven contexts takes beyond one with even contexts, from measured batches of both.

A decode's keys and values are read by one block of the kernel for each head. When all others have finished, that of the
longest context reads on alone, so what a batch takes beyond its like of equal contexts grows with

    longest context - mean context        times a time per token

which depends on how many decodes there are (with few, a context is split among blocks), on whether a prefill chunk is
in the same call (a kernel that does not split), and on the evenness, mean / longest: with many long ones nobody is
alone. Each batch measured gives the time per token at its place; the median over its contexts and prefixes is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Tail", "no_tail", "tail_of"]


class Tail(NamedTuple):
    """seconds[chunk, decodes, evenness] for each token that the longest context has beyond the mean."""

    chunk: NDArray[np.float64]
    decodes: NDArray[np.float64]
    evenness: NDArray[np.float64]
    seconds: NDArray[np.float64]


def no_tail() -> Tail:
    none = np.zeros(0)
    return Tail(none, none, none, np.zeros((0, 0, 0)))


def tail_of(rows: pd.DataFrame) -> Tail:
    """From rows of "uneven_attention": num_long decodes at `longest`, the others at `context`; an even batch has
    num_long 0. Uneven ones without an even one of the same mean context are left out.

    Never negative. Where so many decodes were not measured in a call with such a chunk, the next smaller number stands.
    """
    place = ["chunk", "prefix", "decodes"]
    even = rows[rows["num_long"] == 0].rename(columns={"context": "mean", "seconds": "even_s"})
    uneven = rows[rows["num_long"] > 0].copy()
    long, others = uneven["num_long"] * uneven["longest"], (uneven["decodes"] - uneven["num_long"]) * uneven["context"]
    uneven["mean"] = (long + others) // uneven["decodes"]
    uneven = uneven.merge(even[[*place, "mean", "even_s"]], on=[*place, "mean"])
    if not len(uneven):
        return no_tail()
    for column in (*place, "mean", "longest"):
        uneven[column] = uneven[column].astype(float)
    uneven["per_token_s"] = (uneven["seconds"] - uneven["even_s"]) / (uneven["longest"] - uneven["mean"])
    uneven["evenness"] = (uneven["mean"] / uneven["longest"]).round(3)
    chunk, decodes = np.unique(uneven["chunk"]), np.unique(uneven["decodes"])
    evenness = np.append(np.unique(uneven["evenness"]), 1.0)
    seconds = np.zeros((len(chunk), len(decodes), len(evenness)))
    for i, c in enumerate(chunk):
        for j, d in enumerate(decodes):
            at = uneven[(uneven["chunk"] == c) & (uneven["decodes"] == d)]
            if not len(at):
                seconds[i, j] = seconds[i, max(j - 1, 0)]
                continue
            found = at.groupby("evenness")["per_token_s"].median()
            seconds[i, j] = np.interp(evenness, [*found.index, 1.0], [*found, 0.0])
    return Tail(chunk, decodes, evenness, np.maximum(seconds, 0.0))
