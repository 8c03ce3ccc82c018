"""Which routed experts tokens choose, and what follows: distinct experts of a batch, load of the ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.architecture import Experts

__all__ = ["Popularity", "expected_distinct", "inclusion_probabilities"]


@dataclass(frozen=True, slots=True)
class Popularity:
    """Chance that a token's top-k includes each expert.

    inclusion: [layers, experts], each row sums to top_k; one row where all layers are alike.
    Leaves out: tokens of one sequence that choose alike; every token draws on its own.
    """

    inclusion: NDArray[np.float64]
    top_k: int

    @classmethod
    def uniform(cls, num_experts: int, top_k: int) -> Popularity:
        """Every expert with the chance top_k / num_experts."""
        return cls(np.full((1, num_experts), top_k / num_experts), top_k)

    @classmethod
    def zipf(cls, num_experts: int, top_k: int, alpha: float) -> Popularity:
        """Experts drawn one after another without replacement, the j-th most popular with weight j^-alpha.

        alpha 0 is uniform. Raises ValueError for a negative or infinite alpha.
        """
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
        weights = np.arange(1, num_experts + 1, dtype=np.float64) ** -alpha
        return cls(inclusion_probabilities(weights, top_k)[None, :], top_k)

    @classmethod
    def from_routing(cls, path: str | Path, num_experts: int) -> Popularity:
        """Frequencies in recorded router decisions.

        path: an .npz with `expert_ids`, integers [layers, tokens, top_k].
        Raises ValueError where the array is missing, has another shape or names an expert out of range.
        """
        if not is_zipfile(path):
            raise ValueError(f"{path}: is no .npz file; save it by numpy.savez(path, expert_ids=…)")
        with np.load(path) as recorded:
            if "expert_ids" not in recorded:
                raise ValueError(f"{path}: no array 'expert_ids'; it holds {', '.join(recorded)}")
            ids = recorded["expert_ids"]
        if ids.ndim != 3 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"{path}: expert_ids must be integers [layers, tokens, top_k], got {ids.dtype} {ids.shape}"
            )
        if ids.min() < 0 or ids.max() >= num_experts:
            raise ValueError(
                f"{path}: expert_ids from {ids.min()} to {ids.max()}, the model has {num_experts} experts"
            )
        num_layers, num_tokens, top_k = ids.shape
        counts = np.stack(
            [np.bincount(ids[layer].ravel(), minlength=num_experts) for layer in range(num_layers)]
        )
        return cls(counts / num_tokens, top_k)

    @classmethod
    def from_scores(cls, path: str | Path, num_experts: int, top_k: int) -> Popularity:
        """Frequencies as ESFT's scripts sum them up (arXiv 2407.01906).

        path: JSON {"token_scores": {"layer": {"expert": share of the (token, expert) pairs}}}, of layers with experts.
        Raises ValueError for another form, or for shares that do not sum to 1 (to rounding, 1 %).
        """
        try:
            scores = json.loads(Path(path).read_text(encoding="utf-8"))["token_scores"]
            layers = sorted(map(int, scores))
            if not layers:
                raise KeyError("no layer")
            shares = np.array([[float(scores[str(layer)][str(j)]) for j in range(num_experts)] for layer in layers])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}: is not of the form {{"token_scores": {{"1": {{"0": 0.01, …}}}}}} with {num_experts} experts '
                f"in each layer: {error!r}"
            ) from error
        sums = shares.sum(axis=1)
        for layer, of_layer, total in zip(layers, shares, sums, strict=True):
            if not (of_layer >= 0).all():
                raise ValueError(f"{path}: a share of layer {layer} is {of_layer.min():g}; shares are from 0 to 1")
            if abs(total - 1) > 0.01:
                raise ValueError(f"{path}: shares of layer {layer} sum to {total:.3f}, they must sum to 1")
            if of_layer.max() * top_k > 1.01:
                raise ValueError(
                    f"{path}: a share of layer {layer} is {of_layer.max():g}; a token that goes to {top_k} experts "
                    f"gives none more than 1/{top_k} of its pairs"
                )
        return cls(np.minimum(top_k * shares / sums[:, None], 1.0), top_k)

    @classmethod
    def read(cls, path: str | Path, experts: Experts) -> Popularity:
        """Of a model's experts, from recorded decisions (.npz) or ESFT's scores (.json). Raises ValueError."""
        if Path(path).suffix == ".json":
            found = cls.from_scores(path, experts.num_routed, experts.top_k)
        else:
            try:
                found = cls.from_routing(path, experts.num_routed)
            except (BadZipFile, OSError, EOFError) as error:
                raise ValueError(f"{path}: cannot be read as .npz: {error}") from error
        found.check(experts)
        return found

    def check(self, experts: Experts) -> None:
        """Raises ValueError where the popularity is that of another model's layers."""
        num_layers, num_experts = self.inclusion.shape
        if num_experts != experts.num_routed or self.top_k != experts.top_k:
            raise ValueError(
                f"popularity of top-{self.top_k} of {num_experts} experts, "
                f"the model routes to top-{experts.top_k} of {experts.num_routed}"
            )
        if num_layers not in (1, len(experts.layers)):
            raise ValueError(
                f"popularity of {num_layers} layers, the model has {len(experts.layers)} layers with experts"
            )


def expected_distinct(popularity: Popularity, num_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Expected number of different experts that independent tokens touch, [layers, len(num_tokens)].

    sum_j 1 - (1 - q_j)^tokens, with q_j the chance that one token's top-k includes j.
    """
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.minimum(popularity.inclusion, 1.0))
    tokens = np.asarray(num_tokens, dtype=np.float64)
    distinct = np.empty((popularity.inclusion.shape[0], tokens.size))
    for layer, log_q in enumerate(log_miss):
        with np.errstate(invalid="ignore"):
            exponents = np.where(tokens[:, None] > 0, tokens[:, None] * log_q[None, :], 0.0)
        distinct[layer] = -np.expm1(exponents).sum(axis=1)
    return distinct


@njit(cache=True)
def _chances(weights, top_k, times, log_step):
    """Sum over the times t of weight_j t exp(-weight_j t) P(fewer than top_k others came before t)."""
    num_experts = weights.size
    inclusion = np.zeros(num_experts)
    count = np.empty(top_k)
    for t in times:
        came = -np.expm1(-weights * t)
        for j in range(num_experts):
            density = weights[j] * t * np.exp(-weights[j] * t)
            if density < 1e-20:
                continue
            count[:] = 0.0
            count[0] = 1.0
            for i in range(num_experts):
                if i == j:
                    continue
                for m in range(top_k - 1, 0, -1):
                    count[m] += came[i] * (count[m - 1] - count[m])
                count[0] -= came[i] * count[0]
            inclusion[j] += log_step * density * count.sum()
    return inclusion


def inclusion_probabilities(weights: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Chance that each item is among top_k drawn one after another without replacement by weight.

    The draw equals a race: item j arrives after an exponential time of rate w_j, the first top_k win. So
        q_j = integral over t of w_j exp(-w_j t) P(fewer than top_k of the others arrived before t) dt,
    a Poisson-binomial sum, integrated by the trapezoid rule in log t, which converges exponentially.

    Raises ValueError unless 1 <= top_k <= len(weights) and all weights are positive and finite.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not 1 <= top_k <= weights.size:
        raise ValueError(f"top_k must be from 1 to {weights.size}, got {top_k}")
    if not (np.all(weights > 0) and np.all(np.isfinite(weights))):
        raise ValueError("weights must be positive and finite")
    if top_k == weights.size:
        return np.ones(weights.size)
    weights = weights / weights.sum()
    log_step = 0.2
    # Below the first time nothing has come yet, to 1e-18; after the last everything has.
    times = np.exp(np.arange(np.log(1e-18), np.log(45.0 / weights.min()), log_step))
    inclusion = _chances(weights, top_k, times, log_step)
    return np.minimum(inclusion * (top_k / inclusion.sum()), 1.0)
