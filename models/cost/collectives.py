"""Collectives inside a host between ranks that were measured: the alpha-beta form, through the measured times."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from models.cost.fit import Fit, fit_of
from models.cost.provenance import Source

__all__ = ["alpha_beta", "other_ranks"]

Float64 = NDArray[np.float64]


def alpha_beta(ranks: Float64, size_bytes: Float64, seconds: Float64) -> Float64:
    """(launch, alpha, beta) of  seconds = launch + alpha (n - 1) + beta (n - 1) / n size,  none of them negative.

    n - 1 steps of a ring, or as many peers of a direct exchange, and the share of the bytes that is not a rank's own;
    of an all-reduce beta counts both ways. Least squares of the relative error over [m] measured times, in s and bytes.
    """
    terms = _terms(ranks, size_bytes) / seconds[:, None]
    return np.asarray(nnls(terms, np.ones(len(seconds)))[0])


def _terms(ranks: Float64 | float, size_bytes: Float64) -> Float64:
    n = np.broadcast_to(np.asarray(ranks, dtype=np.float64), size_bytes.shape)
    return np.stack([np.ones(len(size_bytes)), n - 1, (n - 1) / n * size_bytes], axis=1)


def other_ranks(rows: pd.DataFrame, ranks: int) -> tuple[Fit, Source] | None:
    """Times over size_bytes on a number of ranks of which `rows`, of one collective and library, have none.

    At each size that was measured on the nearest fewer and more ranks: the alpha-beta form, times what it is off there
    (the ratio's logarithm, straight in (n - 1) / n), never beyond the two measured times: interpolated. Beyond the
    fewest and most ranks what it is off at the edge goes on: extrapolated. None where one number of ranks was measured.
    """
    measured = np.unique(rows["ranks"].to_numpy(float))
    if len(measured) < 2:
        return None
    of = {float(n): rows[rows["ranks"] == n].set_index("size_bytes")["seconds"] for n in measured}
    form = alpha_beta(*(rows[c].to_numpy(float) for c in ("ranks", "size_bytes", "seconds")))
    fewer, more = measured[measured < ranks], measured[measured > ranks]
    beside = [*fewer[-1:], *more[:1]]
    sizes = np.array(sorted(set.intersection(*(set(of[n].index) for n in beside))), dtype=np.float64)
    if not len(sizes):
        return None
    times = np.stack([of[n].loc[sizes].to_numpy(float) for n in beside])
    off = np.stack([np.log(t / (_terms(n, sizes) @ form)) for n, t in zip(beside, times, strict=True)])
    seconds = _terms(ranks, sizes) @ form
    whole = fit_of(rows, ["size_bytes"])
    assert whole is not None, "rows"
    if len(beside) == 2:
        low, high, here = ((n - 1) / n for n in (*beside, float(ranks)))
        share = (here - low) / (high - low)
        seconds = np.clip(seconds * np.exp((1 - share) * off[0] + share * off[1]), times.min(axis=0), times.max(axis=0))
    else:
        seconds = seconds * np.exp(off[0])
    source = Source.INTERPOLATED if len(beside) == 2 else Source.EXTRAPOLATED
    return Fit(sizes[:, None], seconds, whole.scales), source
