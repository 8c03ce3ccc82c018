"""Whose time is it? The accelerator time of a serving workload by operator and by where each time came from."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.cost.shares import ROOFLINE
from sim.results.drawing import (
    INK,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    literal,
    new_figure,
    of_one_seed,
    panel_title,
    put_title,
    shortened,
)
from sim.results.latency_figures import WORKLOADS_AT_MOST
from sim.results.run_results import RunResults
from sim.results.samples import table, workloads_in

SOURCES = {
    "measured": ("#0072B2", "measured"),
    "imported": ("#3C9DD0", "imported, as measured"),
    "interpolated": ("#009E73", "between measured points"),
    "extrapolated": ("#D55E00", "beyond what was measured"),
    "roofline": ("#7a7a7a", "roofline"),
}
OPERATORS_AT_MOST = 12
VARIANTS_AT_MOST = 4


def draw_cost_sources(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """Share of each operator in the accelerator time, split by source; a column per variant (first seed)."""
    out: list[DrawnFigure] = []
    for workload in workloads_in(run, "cost_sources")[:WORKLOADS_AT_MOST]:
        shares, seeds = {}, []
        for variant in run.variants:
            for result in run.of_variant(variant)[:1]:
                frame = table(result, "cost_sources", ["workload", "operator", "source", "seconds"])
                if frame is None:
                    continue
                own = frame[(frame["workload"] == workload).to_numpy()]
                if len(own) and set(own["source"]) != {"roofline"}:
                    by = own.pivot_table("seconds", "operator", "source", "sum", fill_value=0.0, observed=True)
                    shares[variant] = by / by.to_numpy().sum()
                    seeds.append(result.seed)
        shown = dict(list(shares.items())[:VARIANTS_AT_MOST])
        if shown:
            out.append(_drawn(run, workload, shown, len(shares), seeds, styles, len(out) + 1))
    return out


def _drawn(
    run: RunResults, workload: str, shares: dict[str, pd.DataFrame], num_variants: int, seeds: list[int],
    styles: dict[str, VariantStyle], number: int,
) -> DrawnFigure:  # fmt: skip
    means = _means(shares)
    operators = list(means.index[:OPERATORS_AT_MOST])
    figure = new_figure(WIDTH_IN, 1.5 + 0.27 * (len(operators) + 1))
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    reach = max(by.sum(axis=1).max() for by in shares.values())
    for axes, (variant, by) in zip(panels, shares.items(), strict=True):
        left = np.zeros(len(operators))
        for source, (colour, _) in SOURCES.items():
            width = by[source].reindex(operators, fill_value=0.0).to_numpy() if source in by else left * 0
            axes.barh(range(len(operators)), 100 * width, left=100 * left, color=colour, height=0.66, lw=0)
            left = left + width
        axes.set(xlim=(0, 106 * reach), ylim=(len(operators) - 0.4, -0.6), xlabel="share of time (%)")
        axes.set_title(panel_title(variant), color=styles[variant].text_colour)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(operators)), [literal(shortened(name, 26)) for name in operators], fontsize=8.5)
    used = [s for s in SOURCES if any(s in by and by[s].sum() > 0 for by in shares.values())]
    handles = [panels[0].barh(-9, 0, color=SOURCES[s][0], label=SOURCES[s][1]) for s in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used), frameon=False, fontsize=8.5,
                  labelcolor=INK)  # fmt: skip
    known = {name: _share_of(by, "measured", "imported", "interpolated") for name, by in shares.items()}
    low, high = min(known.values()), max(known.values())
    span = f"{100 * low:.0f} %" if round(low, 2) == round(high, 2) else f"{100 * low:.0f} to {100 * high:.0f} %"
    largest = next((name for name in operators if name != ROOFLINE), operators[0])
    title = f"{span} of the accelerator time of {workload} rests on measured rows; the largest of these is {largest}"
    put_title(figure, title + of_one_seed(run, seeds), WIDTH_IN)
    extrapolated = max(_share_of(by, "extrapolated") for by in shares.values())
    roofline = max(_share_of(by, "roofline") for by in shares.values())
    caption = (
        f"Accelerator time of {workload} by operator and by where its times come from. Beyond what was measured: up to "
        f"{100 * extrapolated:.1f} %; roofline: up to {100 * roofline:.1f} %."
    )
    if num_variants > len(shares):
        caption += f" The first {len(shares)} of {num_variants} variants; table cost_sources has all."
    return DrawnFigure(
        f"cost-sources-{number}", "Whose time is it?", title, caption,
        f"Stacked bars, one per operator, coloured by source, a column per variant. {caption}", figure,
    )  # fmt: skip


def _means(shares: dict[str, pd.DataFrame]) -> pd.Series:
    """Mean share of each operator over the variants, the largest first."""
    each = pd.DataFrame({name: by.sum(axis=1) for name, by in shares.items()}).fillna(0.0)
    return each.mean(axis=1).sort_values(ascending=False, kind="stable")


def _share_of(by: pd.DataFrame, *sources: str) -> float:
    return float(sum(by[source].sum() for source in sources if source in by))

