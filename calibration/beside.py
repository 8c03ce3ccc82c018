"""One table beside another of the same accelerator: how long each one's kernels take where both say something.

Rows of the first over times of the second at their places, found as the simulator finds them; places beyond what the
second has measured are left out. Of experts, those with as many touched as can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.cost.fit import Times
from models.cost.measured import Measured
from models.cost.provenance import Source
from models.cost.table import CostTable
from models.features import Operator, affine, linear

__all__ = ["beside"]

Float64 = NDArray[np.float64]
SMALL_ROWS, SMALL_CHUNK, SMALL_KEYS = 128, 2048, 2**16
"""Up to so many rows a product is bound by its weights; short chunks, and decodes with few keys, by their launch."""


def beside(own: CostTable, other: CostTable) -> pd.DataFrame:
    """One row for each kind of work: points compared, p10, median and p90 of own seconds over the other's."""
    found: dict[str, list[Float64]] = {}
    for part, ratios in _ratios(own.rows, Measured(other)):
        found.setdefault(part, []).append(ratios[~np.isnan(ratios)])
    rows = []
    for part, each in found.items():
        ratios = np.concatenate(each)
        if len(ratios):
            rows.append((part, len(ratios), *np.quantile(ratios, [0.1, 0.5, 0.9])))
    return pd.DataFrame(rows, columns=["work", "points", "p10", "median", "p90"])


def _ratios(rows: pd.DataFrame, other: Measured) -> Iterator[tuple[str, Float64]]:
    for (precision, inputs, outputs), same in _groups(rows, "linear", ["precision", "inputs", "outputs"]):
        operator = linear("product", "", inputs, outputs, precision)
        times = other.by_rows(operator, same["rows"].to_numpy(float), _unknown)
        is_small = (same["rows"] <= SMALL_ROWS).to_numpy(bool)
        yield from _parts(same, _seconds(times), is_small, f"{precision} products, up to {SMALL_ROWS} rows",
                          f"{precision} products, more rows")  # fmt: skip
    for (heads, kv_heads, head_dim), same in _groups(rows, "attention", ["heads", "kv_heads", "head_dim"]):
        operator = Operator("attention", "", affine(), affine(), kind="attention", shape=(heads, kv_heads, head_dim))
        known = other.attention(operator, "bf16")
        if known is None:
            continue
        whole = same[(same["chunk"] > 0) & (same["prefix"] == 0)]
        prefill_s = known.prefill.inside(whole[["chunk", "prefix"]].to_numpy(float))
        yield from _parts(whole, prefill_s, (whole["chunk"] < SMALL_CHUNK).to_numpy(bool),
                          f"attention of prompts below {SMALL_CHUNK}", "attention of longer prompts")  # fmt: skip
        decodes = same[same["decodes"] > 0]
        decode_s = known.decode.inside(decodes[["decodes", "context"]].to_numpy(float))
        keys = decodes["decodes"] * decodes["context"]
        yield from _parts(decodes, decode_s, (keys < SMALL_KEYS).to_numpy(bool),
                          f"attention of decodes, below {SMALL_KEYS} keys",
                          "attention of decodes, more keys")  # fmt: skip
    shape = ["precision", "hidden", "inner", "top_k", "num_experts"]
    for (precision, *sizes), same in _groups(rows[rows["name"] == "pool"], "experts", shape):
        operator = Operator("experts", "", affine(), affine(), kind="experts", shape=tuple(sizes), precision=precision)
        found = other.experts(operator)
        if found is None:
            continue
        experts, name = found
        most = same[same["experts"] == same.groupby("rows")["experts"].transform("max")]
        times = experts.at(most[["rows", "experts"]].to_numpy(float), _unknown)
        yield f"experts, all touched, over {name}", most["seconds"].to_numpy(float) / _seconds(times)


def _groups(rows: pd.DataFrame, operator: str, columns: list[str]) -> Iterator[tuple[tuple, pd.DataFrame]]:
    for key, same in rows[rows["operator"] == operator].groupby(columns):
        names: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        yield tuple(each if isinstance(each, str) else int(each) for each in names), same


def _parts(
    rows: pd.DataFrame, seconds: Float64, is_small: NDArray[np.bool_], small: str, large: str
) -> Iterator[tuple[str, Float64]]:
    ratios = rows["seconds"].to_numpy(float) / seconds
    yield small, ratios[is_small]
    yield large, ratios[~is_small]


def _seconds(times: Times | None) -> Float64:
    """NaN for what is extrapolated."""
    if times is None:
        return np.full(1, np.nan)
    return np.where(times.source == Source.EXTRAPOLATED, np.nan, times.seconds)


def _unknown(points: Float64) -> Float64:
    return np.ones(len(points))
