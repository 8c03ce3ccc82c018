"""Measured attention as the compiled table that the serving loop reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cost.measured import AttentionTimes
from models.cost.provenance import Source
from models.cost.roofline import Roofline
from models.cost.step import AttentionTable, decode_lines
from models.features import Feature, Operator

__all__ = ["attention_table"]

STEPS_BETWEEN = 4
"""Nodes laid between two measured ones, where the fit's lines are not straight on a linear scale."""
STEP_BEYOND = 1.1
"""Ratio of the nodes beyond what was measured."""


def attention_table(
    known: AttentionTimes,
    roofline: Roofline,
    prefill: Operator,
    decode: Operator,
    max_chunk: int,
    max_seqs: int,
    max_context: int,
) -> AttentionTable:
    """Times on nodes up to the largest chunk, number of decodes and context that can occur.

    A chunk after a prefix, where only whole prompts were measured: the whole prompt's time times the share of its
    query-key pairs, (c p + c (c + 1) / 2) / (n (n + 1) / 2) with n = p + c.
    """
    max_context = max(max_context, max_chunk)
    chunk = _nodes(known.prefill.points[:, 0], max_chunk, STEPS_BETWEEN)
    measured_prefix = known.prefill.points[:, 1] if known.has_prefix else known.prefill.points[:, 0]
    prefix = np.unique(np.append(0, _nodes(measured_prefix, max_context, STEPS_BETWEEN)))
    pairs = np.array([(c, p) for c in chunk for p in prefix])
    prefill_s = _chunks(known, pairs, roofline, prefill).reshape(len(chunk), len(prefix))
    context = _nodes(known.decode.points[:, 1], max_context, 1)
    counts = np.arange(1, max_seqs + 1)
    decode_s = np.zeros((max_seqs + 1, len(context)))
    at = np.array([(n, k) for n in counts for k in context])
    times = known.decode.at(at, lambda points: _decode_roof(roofline, decode, points))
    decode_s[1:] = times.seconds.reshape(max_seqs, len(context))
    is_inside = (times.source != Source.EXTRAPOLATED).reshape(max_seqs, len(context))
    decode_limit = np.append(0, np.where(is_inside, context, 0).max(axis=1))
    longest_chunk, longest_prefix = known.prefill.points.max(axis=0)
    limits = np.array([longest_chunk, longest_prefix, longest_chunk + longest_prefix])
    if not known.has_prefix:  # then what counts is the whole prompt
        limits[1] = limits[2] = longest_chunk
    axes, extra = _extra(known)
    at_0, slope, segment = decode_lines(context, decode_s)
    return AttentionTable(
        chunk, prefix, prefill_s, context, at_0, slope, segment, axes[0], axes[1], axes[2], axes[3], extra,
        limits, decode_limit, *known.tail,
    )  # fmt: skip


def _nodes(measured: NDArray[np.float64], largest: float, between: int) -> NDArray[np.float64]:
    """The measured places, `between` - 1 more in each gap, and geometric steps up to `largest`."""
    nodes = np.unique(measured)
    if between > 1:
        steps = nodes[:-1, None] + np.diff(nodes)[:, None] * np.arange(between) / between
        nodes = np.unique(np.append(np.round(steps), nodes))
    beyond = [nodes[-1]]
    while beyond[-1] < largest or len(nodes) + len(beyond) < 3:
        beyond.append(np.ceil(beyond[-1] * STEP_BEYOND + 1))
    return np.unique(np.append(nodes, beyond))


def _chunks(
    known: AttentionTimes, at: NDArray[np.float64], roofline: Roofline, operator: Operator
) -> NDArray[np.float64]:
    def roof(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return _chunk_roof(roofline, operator, points)

    if known.has_prefix:
        return known.prefill.at(at, roof).seconds
    length = at.sum(axis=1)
    seconds = known.prefill.at(np.column_stack([length, np.zeros(len(length))]), roof).seconds
    chunk, prefix = at.T
    share = (chunk * prefix + chunk * (chunk + 1) / 2) / np.maximum(length * (length + 1) / 2, 1)
    return np.maximum(seconds * share, known.prefill.seconds.min())  # launching it


def _chunk_roof(roofline: Roofline, operator: Operator, points: NDArray[np.float64]) -> NDArray[np.float64]:
    chunk, prefix = points.T
    x = np.zeros((len(points), len(Feature)))
    x[:, Feature.TOKENS] = chunk
    x[:, Feature.PREFILL_PAIRS] = chunk * prefix + chunk * (chunk + 1) / 2
    x[:, Feature.PREFILL_CONTEXT] = chunk + prefix
    return roofline.seconds(operator, x)


def _decode_roof(roofline: Roofline, operator: Operator, points: NDArray[np.float64]) -> NDArray[np.float64]:
    decodes, context = points.T
    x = np.zeros((len(points), len(Feature)))
    x[:, Feature.DECODES] = decodes
    x[:, Feature.DECODE_CONTEXT] = decodes * context
    return roofline.seconds(operator, x)


def _extra(known: AttentionTimes) -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.float64]]:
    """Axes and values of what a chunk and decodes in one call take beyond the two alone.

    Beyond the measured corners, where a node cannot be completed, the excess of the nearest node along an axis stands.
    """
    if known.together is None:
        return (np.zeros(0),) * 4, np.zeros((0, 0, 0, 0))
    axes = tuple(np.unique(axis) for axis in known.together.points.T)
    places = np.array(np.meshgrid(*axes, indexing="ij")).reshape(4, -1).T
    alone = known.prefill.inside(places[:, :2]) + known.decode.inside(places[:, 2:])
    excess = (known.together.inside(places) - alone).reshape([len(axis) for axis in axes])
    for axis in range(4):
        excess = _carried(excess, axis)
    return axes, excess


def _carried(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """NaN at the ends of an axis replaced by the nearest value along it."""
    moved = np.moveaxis(values, axis, -1).copy()
    n = moved.shape[-1]
    index = np.broadcast_to(np.arange(n), moved.shape)
    known = ~np.isnan(moved)
    before = np.maximum.accumulate(np.where(known, index, -1), axis=-1)
    after = np.minimum.accumulate(np.where(known, index, n)[..., ::-1], axis=-1)[..., ::-1]
    nearest = np.where(before >= 0, before, np.where(after < n, after, 0))
    found = np.take_along_axis(moved, nearest, -1)
    return np.moveaxis(np.where(known, moved, found), -1, axis)
