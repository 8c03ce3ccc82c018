"""What a batch of decodes with uneven contexts takes beyond one with even contexts, from measured batches of both.

A decode's keys and values are read by one block of the kernel for each head. When all others have finished, that of the
longest context reads on alone, so what a batch takes beyond its like of equal contexts grows with

    longest context - mean context        times a time per token

which depends on how many decodes there are (with few, a context is split among blocks), on whether a prefill chunk is
in the same call (a kernel that does not split), on how long the longest is, and on the evenness, mean / longest: with
many long ones nobody is alone. Each batch measured gives the time per token at its place; the median over the chunk's
prefixes is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Tail", "no_tail", "tail_of", "tail_of_batches", "uneven_batches"]


class Tail(NamedTuple):
    """seconds[chunk, decodes, longest, evenness] for each token that the longest context has beyond the mean."""

    chunk: NDArray[np.float64]
    decodes: NDArray[np.float64]
    longest: NDArray[np.float64]
    evenness: NDArray[np.float64]
    seconds: NDArray[np.float64]


def no_tail() -> Tail:
    none = np.zeros(0)
    return Tail(none, none, none, none, np.zeros((0, 0, 0, 0)))


def tail_of(rows: pd.DataFrame) -> Tail:
    """From rows of "uneven_attention": num_long decodes at `longest`, the others at `context`; an even batch has
    num_long 0. Uneven ones without an even one of the same mean context are left out.

    Never negative. Where so many decodes were not measured with such a chunk and longest context, what stands there for
    the next smaller ones, else for the next larger.
    """
    uneven = uneven_batches(rows)
    return tail_of_batches(uneven) if len(uneven) else no_tail()


def uneven_batches(rows: pd.DataFrame) -> pd.DataFrame:
    """The uneven ones with what they have in common with their even like: `mean` context, `even_s`, and `evenness`."""
    place = ["chunk", "prefix", "decodes"]
    even = rows[rows["num_long"] == 0].rename(columns={"context": "mean", "seconds": "even_s"})
    uneven = rows[rows["num_long"] > 0].copy()
    long, others = uneven["num_long"] * uneven["longest"], (uneven["decodes"] - uneven["num_long"]) * uneven["context"]
    uneven["mean"] = (long + others) // uneven["decodes"]
    uneven = uneven.merge(even[[*place, "mean", "even_s"]], on=[*place, "mean"])
    for column in (*place, "mean", "longest"):
        uneven[column] = uneven[column].astype(float)
    return uneven.assign(evenness=(uneven["mean"] / uneven["longest"]).round(3))


def tail_of_batches(uneven: pd.DataFrame) -> Tail:
    """From `uneven_batches`."""
    uneven = uneven.copy()
    uneven["per_token_s"] = (uneven["seconds"] - uneven["even_s"]) / (uneven["longest"] - uneven["mean"])
    axes = ("chunk", "decodes", "longest")
    nodes = [np.unique(uneven[axis]) for axis in axes]
    evenness = np.append(np.unique(uneven["evenness"]), 1.0)
    seconds = np.full([*map(len, nodes), len(evenness)], np.nan)
    places = [np.searchsorted(node, uneven[axis]) for node, axis in zip(nodes, axes, strict=True)]
    uneven["place"] = np.ravel_multi_index(places, seconds.shape[:3])
    for _, same in uneven.groupby("place"):
        found = same.groupby("evenness")["per_token_s"].median()
        at = np.unravel_index(same["place"].iloc[0], seconds.shape[:3])
        seconds[at] = np.interp(evenness, [*found.index, 1.0], [*found, 0.0])
    for axis in (2, 1, 0):
        seconds = np.moveaxis(_filled(np.moveaxis(seconds, axis, 0)), 0, axis)
    return Tail(nodes[0], nodes[1], nodes[2], evenness, np.maximum(seconds, 0.0))


def _filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN along the first axis replaced by what is before it, at the beginning by what comes next."""
    return pd.DataFrame(values.reshape(len(values), -1)).ffill().bfill().to_numpy().reshape(values.shape)
