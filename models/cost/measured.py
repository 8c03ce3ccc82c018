"""Times of operators of a model from a table: which rows price which operator, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from models.cost.collectives import other_ranks
from models.cost.fit import ExpertTimes, Fit, Roof, Times, fit_of
from models.cost.provenance import Source
from models.cost.table import FAMILIES, CostTable
from models.cost.uneven import Tail, no_tail, tail_of
from models.features import ACTIVATION_BYTES, Feature, Operator
from models.operators import routed_experts

__all__ = ["AttentionTimes", "Measured"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class AttentionTimes:
    """Attention of one layer: prefill over (chunk, prefix), decode over (decodes, context), and both in one call.

    together: over (chunk, prefix, decodes, context), None where only the two alone were measured
    tail: of decodes with uneven contexts
    has_prefix: whether chunks after a prefix were measured
    """

    prefill: Fit
    decode: Fit
    together: Fit | None
    has_prefix: bool
    tail: Tail


class Measured:
    """What a table says about operators of a model."""

    def __init__(self, table: CostTable) -> None:
        self.table = table

    @cached_property
    def _by_family(self) -> dict[str, pd.DataFrame]:
        return {str(name): rows for name, rows in self.table.rows.groupby("operator", sort=False)}

    def _rows(self, family: str, **equal: object) -> pd.DataFrame:
        found = self._by_family.get(family)
        if found is None:
            return self.table.rows[:0]
        for column, value in equal.items():
            found = found[found[column] == value]
        return found

    def by_rows(self, operator: Operator, counts: ArrayLike, roof: Roof) -> Times | None:
        """Times of one call with `counts` rows (tokens, or sequences), None where the table says nothing of it.

        roof: seconds of [n, 1] counts by the roofline
        """
        counts = np.asarray(counts, dtype=np.float64)
        if operator.kind == "linear":
            inputs, outputs = operator.shape
            return self._linear(operator.name, inputs, outputs, operator.precision, counts, roof)
        if operator.kind == "feed_forward":
            return self._feed_forward(operator, counts, roof)
        if operator.kind == "elementwise" and operator.shape:
            return self._elementwise(operator.name, operator.shape[0], counts, roof)
        if operator.kind in ("all_reduce", "all_gather", "reduce_scatter"):
            ranks, row_bytes = operator.shape
            return self._collective(operator.kind, ranks, row_bytes, counts, roof)
        if operator.kind.startswith("reroute_"):
            return self._rerouting(operator, counts, roof)
        return None

    def _linear(
        self, name: str, inputs: int, outputs: int, precision: str, counts: Float64, roof: Roof
    ) -> Times | None:
        same = self._rows("linear", precision=precision, inputs=inputs, outputs=outputs)
        named = same[same["name"] == name]
        shapes = self._linear_shapes.get(precision)
        if shapes is not None and (same["name"] == "").all():  # gaps are filled from other shapes as well
            fit = shapes.along(inputs, outputs)
        else:
            fit = fit_of(named if len(named) else same, ["rows"])
        if fit is not None:
            return fit.at(counts[:, None], roof)
        if shapes is None:
            return None
        widest = shapes.points[:, 1].max()
        if outputs > widest:  # such as the head of a large vocabulary: as several products side by side
            parts = int(np.ceil(outputs / widest))
            part = self._linear(name, inputs, round(outputs / parts), precision, counts, roof)
            return None if part is None else Times(parts * part.seconds, np.maximum(part.source, Source.INTERPOLATED))
        narrowest = shapes.points[:, 1].min()
        if outputs < narrowest:  # such as a router's: reading its input and launching it decide
            least = self._linear(name, inputs, int(narrowest), precision, counts, roof)
            return None if least is None else least._replace(source=np.full(len(counts), Source.EXTRAPOLATED, np.int8))
        # Between shapes at the measured numbers of rows; between these along the line, as for a shape of its own.
        nodes = np.unique(shapes.points[:, 2])
        at = np.column_stack([np.full(len(nodes), inputs), np.full(len(nodes), outputs), nodes])
        seconds = shapes.inside(at)
        inside = ~np.isnan(seconds)
        if not inside.any():
            return None
        scales = (shapes.scales[2], shapes.scales[3])
        found = Fit(nodes[inside][:, None], seconds[inside], scales).at(counts[:, None], roof)
        is_node = found.source == Source.IMPORTED
        return Times(found.seconds, np.where(is_node, Source.INTERPOLATED, found.source).astype(np.int8))

    @cached_property
    def _linear_shapes(self) -> dict[str, Fit]:
        """Of each precision all shapes together, where enough were measured to lie between them."""
        fits = {}
        for precision in ("bf16", "fp8"):
            rows = self._rows("linear", precision=precision)
            if rows["inputs"].nunique() > 2 and rows["outputs"].nunique() > 2:
                fit = fit_of(rows, ["inputs", "outputs", "rows"])
                if fit is not None:
                    fits[precision] = fit
        return fits

    def _elementwise(self, name: str, numbers: int, counts: Float64, roof: Roof) -> Times | None:
        fit = fit_of(self._rows("elementwise", name=name, numbers=numbers), ["rows"])
        if fit is not None:
            return fit.at(counts[:, None], roof)
        fit = fit_of(self._rows("memory_pass"), ["size_bytes"])
        if fit is None:
            return None
        found = fit.at(counts[:, None] * numbers * ACTIVATION_BYTES, lambda size_bytes: size_bytes[:, 0])
        # A small pass takes what the smallest measured one takes: launching it.
        least = fit.points[:, 0].argmin()
        is_small = counts * numbers * ACTIVATION_BYTES < fit.points[least, 0]
        seconds = np.where(is_small, fit.seconds[least], found.seconds)
        is_there = found.source != Source.EXTRAPOLATED
        source = np.where(is_small | is_there, Source.INTERPOLATED, Source.EXTRAPOLATED).astype(np.int8)
        return Times(seconds, source)

    def _feed_forward(self, operator: Operator, counts: Float64, roof: Roof) -> Times | None:
        """A whole feed-forward, as its two products and what lies between."""
        hidden, inner, matrices = operator.shape
        wide = (matrices - 1) * inner
        parts = [
            self._linear("gate_up_proj", hidden, wide, operator.precision, counts, roof),
            self._elementwise("act_fn", wide + inner, counts, roof),
            self._linear("down_proj", inner, hidden, operator.precision, counts, roof),
        ]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return Times(
            np.sum([part.seconds for part in found], axis=0), np.max([part.source for part in found], axis=0)
        )

    def _collective(self, family: str, ranks: int, row_bytes: int, counts: Float64, roof: Roof) -> Times | None:
        rows = self._rows(family)
        custom = rows[rows["name"] == "custom"]
        rows = custom if len(custom) else rows
        fit, source = fit_of(rows[rows["ranks"] == ranks], ["size_bytes"]), None
        if fit is None:
            found = other_ranks(rows, ranks)
            if found is None:
                return None
            fit, source = found
        times = fit.at(counts[:, None] * row_bytes, lambda size_bytes: roof(size_bytes / row_bytes))
        if source is None:
            return times
        is_inside = times.source != Source.EXTRAPOLATED
        return times._replace(source=np.where(is_inside, source, Source.EXTRAPOLATED).astype(np.int8))

    def _rerouting(self, operator: Operator, counts: Float64, roof: Roof) -> Times | None:
        """Of as many experts and the nearest number of adapters that was measured, the smaller of two as near. It
        matters little: from 1 to 32 adapters an H200 takes a tenth longer by separate operators, by one kernel as long
        for a few tokens and 1.4 times as long for 65,536, which is a microsecond.

        Beside the alignment, which the experts' rows include, rerouting on its way takes the difference to a plain one.
        """
        top_k, num_experts, adapters = operator.shape
        family, way = {"reroute_eager": ("reroute", "eager"), "reroute_fused": ("reroute", "kernel"),
                       "reroute_aligned": ("align", "reroute")}[operator.kind]  # fmt: skip
        same = self._rows(family, top_k=top_k, num_experts=num_experts)
        rows = same[same["name"] == way]
        if family == "align":
            place = ["adapters", "slots", "rows"]
            rows = rows.merge(same.loc[same["name"] == "plain", [*place, "seconds"]], on=place, suffixes=("", "_plain"))
            rows["seconds"] = (rows["seconds"] - rows["seconds_plain"]).clip(lower=0.0)
        if not len(rows):
            return None
        nearest = min(sorted(rows["adapters"].unique()), key=lambda count: abs(np.log(count / adapters)))
        rows = rows[rows["adapters"] == nearest]
        if family == "align":
            rows = rows[rows["slots"] == rows["slots"].min()]
        fit = fit_of(rows, ["rows"])
        assert fit is not None, "there are rows"
        found = fit.at(counts[:, None], roof)
        if nearest == adapters:
            return found
        return found._replace(source=np.maximum(found.source, Source.INTERPOLATED))

    def experts(
        self, operator: Operator, roof_of: Callable[[Operator], Roof] | None = None
    ) -> tuple[ExpertTimes, str] | None:
        """Over (rows, experts touched) on one rank, and the name of the kernel: "moe" includes the router.

        All rows are of one kernel: the first of EXPERT_KERNELS that was measured for the shape, else of any other.

        roof_of: the roofline of an operator; with it, experts of a width that was not measured are found from those of
        the nearest width that was, as when they are cut over devices: what every call takes beside its work stays, the
        rest goes as the rooflines. That is called extrapolated.
        """
        found = self._experts_as_wide(operator)
        if found is not None or roof_of is None:
            return found
        hidden, inner, top_k, num_experts = operator.shape
        widths = self._rows("experts", hidden=hidden, top_k=top_k, precision=operator.precision)["inner"].unique()
        if not len(widths):
            return None
        nearest = int(min(widths, key=lambda width: abs(np.log(width / inner))))
        matrices = round(operator.flops[Feature.EXPERT_ROWS] / 2 / hidden / inner)
        wide = routed_experts(hidden, nearest, top_k, num_experts, matrices, operator.precision)
        found = self._experts_as_wide(wide)
        assert found is not None, "there are rows of this width"
        fit, name = found[0].fit, found[1]
        there = roof_of(wide)(fit.points)
        launch_s = max(float((fit.seconds - there).min()), 0.0)
        seconds = launch_s + (fit.seconds - launch_s) * roof_of(operator)(fit.points) / there
        return ExpertTimes(replace(fit, seconds=seconds), is_scaled=True), name

    def _experts_as_wide(self, operator: Operator) -> tuple[ExpertTimes, str] | None:
        hidden, inner, top_k, num_experts = operator.shape
        rows = self._rows("experts", hidden=hidden, inner=inner, top_k=top_k, precision=operator.precision)
        names = sorted(rows["name"].unique(), key=lambda name: [*EXPERT_KERNELS, name].index(name))
        rows = rows[rows["name"].isin(names[:1])]
        # Ranks with fewer experts, and with more: what counts is how many are touched. Its own rows go first.
        is_own = rows["num_experts"] == num_experts
        rows = pd.concat([rows[is_own], rows[~is_own]]).drop_duplicates(["rows", "experts"])
        fit = fit_of(rows, FAMILIES["experts"].axes, "experts")
        return None if fit is None else (ExpertTimes(fit), str(rows["name"].iloc[0]))

    def attention(self, operator: Operator, kv: str) -> AttentionTimes | None:
        """Of one layer with these heads and this cache; None unless prefill and decode were both measured."""
        heads, kv_heads, head_dim = operator.shape
        # Gaps are filled from other numbers of heads as well, which see the same steps of the kernels.
        pooled = self._rows("attention", kv_heads=kv_heads, head_dim=head_dim, precision=kv)
        has_prefill, has_decode = pooled["chunk"] > 0, pooled["decodes"] > 0
        prefill = _of_heads(pooled[has_prefill & ~has_decode], heads, ("chunk", "prefix"), "prefill")
        decode = _of_heads(pooled[has_decode & ~has_prefill], heads, ("decodes", "context"), "decode")
        if prefill is None or decode is None:
            return None
        both = pooled[has_prefill & has_decode & (pooled["heads"] == heads)]
        together = fit_of(both, FAMILIES["attention"].axes, "together")
        uneven = self._rows("uneven_attention", heads=heads, kv_heads=kv_heads, head_dim=head_dim, precision=kv)
        tail = tail_of(uneven) if len(uneven) else no_tail()
        return AttentionTimes(prefill, decode, together, bool((prefill.points[:, 1] > 0).any()), tail)


EXPERT_KERNELS = ("moe", "fused_moe", "pool", "padded", "grouped")
"""Whose rows price a model's experts, where several kernels were measured: an engine's, then our own over the pool."""


def _of_heads(rows: pd.DataFrame, heads: int, axes: tuple[str, str], part: str) -> Fit | None:
    fit = fit_of(rows, ("heads", *axes), part)
    return None if fit is None else fit.along(heads)
