"""Figures of the fabric: load of each link over its fair share, and utilisation over time."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from sim.results.drawing import (
    INK,
    QUIET,
    WIDTH_IN,
    DrawnFigure,
    VariantStyle,
    few,
    new_figure,
    of_one_seed,
    panel_title,
    put_title,
    ranked_by,
    seconds_unit,
    sentence_of,
    shortened,
    under,
)
from sim.results.run_results import RunResults, VariantResult
from sim.results.samples import (
    LoadMap,
    UtilisationOverTime,
    load_maps,
    tier_loads,
    utilisation_over_time,
)

COLUMNS = 4
ENDS = {"host", "nvlink"}
"""Tiers that are not between switches."""
CELLS_WITH_NUMBERS = 10
AXES = {"edge-aggregation": ("edge", "aggregation"), "aggregation-core": ("pod", "core")}
"""What the rows and columns of a tier's map count, where they are not leaves and spines."""
EVEN, NEARLY_EVEN = 0.01, 1.05
LOAD_COLOURS = LinearSegmentedColormap.from_list(
    "load", [(0.0, "#9DC3E0"), (0.5, "#F8F8F6"), (0.66, "#F6B48F"), (0.83, "#D6604D"), (1.0, "#7F0F1E")]
)
"""Idle links pale blue, even ones white, hot ones red: the eye goes to the hot spots. Safe for red-green
blindness."""


def first_results(run: RunResults) -> dict[str, VariantResult]:
    """The first finished seed of each variant: hot spots move between seeds, so they are not averaged."""
    found = {name: run.of_variant(name) for name in run.variants}
    return {name: results[0] for name, results in found.items() if results}


def draw_load_maps(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """One heat map figure per tier of switch pairs."""
    results = first_results(run)
    found = {name: load_maps(result) for name, result in results.items()}
    of_seed = of_one_seed(run, (result.seed for result in results.values()))
    tiers = dict.fromkeys(tier for maps in found.values() for tier in maps)
    drawn = [
        _draw_load_map(run, styles, tier, {name: maps[tier] for name, maps in found.items() if tier in maps}, of_seed)
        for tier in tiers
    ]
    return [figure for figure in drawn if figure is not None]


def _draw_load_map(
    run: RunResults, styles: dict[str, VariantStyle], tier: str, maps: dict[str, LoadMap], of_seed: str
) -> DrawnFigure | None:
    """Leaf × spine heat map of payload over the fair share, up and down, one column per variant.

    With more than four variants there is one map each: the more loaded direction of every pair.
    """
    maps = {name: found for name, found in maps.items() if np.isfinite(found.largest)}
    if not maps:
        return None
    lower, upper = AXES.get(tier, ("leaf", "spine"))
    columns = min(COLUMNS, len(maps))
    blocks = -(-len(maps) // columns)
    num_leaves, num_spines = next(m.shape for f in maps.values() for m in (f.up, f.down) if m is not None)
    directions = ("up", "down") if blocks == 1 else ("up or down",)
    side = min(2.6, 7.6 / columns)
    tall = min(max(side * num_leaves / num_spines, 0.9), 3.2 if blocks == 1 else 2.2)
    figure = new_figure(WIDTH_IN, len(directions) * blocks * (tall + 0.42) + 0.9)
    grid = figure.subplots(len(directions) * blocks, columns, squeeze=False)
    norm = TwoSlopeNorm(1.0, 0.0, max(2.0, max(found.largest for found in maps.values())))
    image = None
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (variant, found) in enumerate(maps.items()):
        for row, direction in enumerate(directions):
            matrix = found.of(direction)
            axes = grid[len(directions) * (i // columns) + row, i % columns]
            if matrix is None:
                continue
            axes.set_axis_on()
            image = _draw_matrix(
                axes, matrix, norm, with_numbers=columns * num_spines <= 4 * CELLS_WITH_NUMBERS
            )
            most = f"{float(np.nanmax(matrix)):.2f}×" if np.isfinite(matrix).any() else "no link"
            if row == 0:
                axes.set_title(panel_title(variant), color=styles[variant].text_colour)
            axes.set_xlabel(f"{upper}  (hottest {most})", fontsize=8, color=QUIET)
            if row < len(directions) - 1:
                axes.set_xticks([])
            if i % columns > 0:
                axes.set_yticks([])
            else:
                axes.set_ylabel(f"{lower}  ({direction})")
    most_links = max(found.links_per_pair for found in maps.values())
    if image is not None:
        bar = figure.colorbar(image, ax=grid, shrink=0.6, aspect=30, pad=0.02)
        of_cell = f"\na cell: the most loaded of {most_links} parallel links" if most_links > 1 else ""
        bar.set_label(f"payload over the fair share (1 = even){of_cell}", color=INK)
        bar.outline.set_visible(False)  # type: ignore[operator]
    title, caption = _load_words(run, tier, maps)
    title += of_seed
    put_title(figure, title, WIDTH_IN)
    alt = (
        f"Heat map of the load of every {tier} link over its fair share, per variant, up and down. {caption}"
    )
    return DrawnFigure(f"link-load-{tier}", "Link load", title, caption, alt, figure)


def _draw_matrix(axes: Axes, matrix, norm: TwoSlopeNorm, with_numbers: bool):
    image = axes.imshow(
        matrix, cmap=LOAD_COLOURS, norm=norm, aspect="auto", interpolation="nearest", origin="upper"
    )
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    for set_ticks, count in ((axes.set_xticks, matrix.shape[1]), (axes.set_yticks, matrix.shape[0])):
        step = 1 if count <= 8 else 2 ** int(np.ceil(np.log2(count / 8)))
        set_ticks(range(0, count, step))
    axes.tick_params(length=0, labelsize=7.5)
    if np.isfinite(matrix).any() and np.nanmax(np.abs(matrix - 1)) < NEARLY_EVEN - 1:
        middle = (matrix.shape[1] - 1) / 2, (matrix.shape[0] - 1) / 2
        axes.text(*middle, "even", ha="center", va="center", fontsize=10, color=QUIET)
    elif with_numbers and matrix.shape[0] <= 16 and matrix.shape[1] <= 16:
        for (leaf, spine), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                ink = "white" if norm(value) > 0.78 else "#333333"
                axes.text(
                    spine, leaf, f"{value:.1f}", ha="center", va="center", fontsize=6.3, color=ink,
                    in_layout=False,
                )  # fmt: skip
    return image


def _load_words(run: RunResults, tier: str, maps: dict[str, LoadMap]) -> tuple[str, str]:
    known = {name: found.largest for name, found in maps.items()}
    if len(known) > 1:
        known.pop(run.ideal_variant or "", None)
    worst, best = max(known, key=lambda n: known[n]), min(known, key=lambda n: known[n])
    if known[worst] < NEARLY_EVEN:
        title = f"No {tier} link carries more than {known[worst]:.2f} times its fair share"
    elif known[worst] - known[best] <= EVEN:
        title = f"The hottest {tier} link carries {known[worst]:.1f} times its fair share"
    else:
        title = f"The hottest {tier} link carries {known[worst]:.1f} times its fair share under {worst}"
        title += f", {known[best]:.1f} under {best}"
    parts = [f"{known[name]:.2f}{under(name)}" for name in few(run, known)]
    caption = f"The hottest {tier} link over its fair share: {sentence_of(parts)}."
    if known[worst] >= NEARLY_EVEN:
        caption += f" The hottest of all is {maps[worst].hottest}{under(worst)}."
    most_links = max(found.links_per_pair for found in maps.values())
    if most_links > 1:
        caption += f" A cell shows the most loaded of the {most_links} parallel links of its pair (lanes and planes)."
    return title, caption


def draw_tier_balance(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """Spread of load over links of the tiers that the heat map does not show (hosts, fat-tree tiers).

    A tier whose links are all evenly loaded under every variant is left out.
    """
    results = first_results(run)
    loads = {name: tier_loads(result) for name, result in results.items()}
    mapped = {tier for result in results.values() for tier in load_maps(result)}
    tiers = list(dict.fromkeys(key for found in loads.values() for key in found))
    uneven = [
        key
        for key in tiers
        if any(np.abs(found[key] - 1).max() > EVEN for found in loads.values() if key in found)
    ]
    shown = [key for key in uneven if key[0] not in mapped][:8]
    if not shown:
        return []
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(WIDTH_IN, rows * (0.75 + 0.26 * len(loads)) + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    names = list(loads)
    largest = max(float(found[key].max()) for key in shown for found in loads.values() if key in found)
    for axes, key in zip(grid.flat, shown, strict=False):
        for y, name in enumerate(names):
            if key in loads[name]:
                load = loads[name][key]
                colour = styles[name].colour
                axes.plot([load.min(), load.max()], [y, y], color=colour, lw=2, alpha=0.45)
                axes.plot(np.percentile(load, [50]), [y], "|", color=colour, ms=10, mew=2)
                axes.plot([load.max()], [y], "o", color=colour, ms=6)
        axes.axvline(1.0, color=QUIET, lw=0.8, linestyle=(0, (3, 2)))
        axes.set(xlim=(0, 1.08 * max(largest, 1.0)), ylim=(len(names) - 0.4, -0.6))
        axes.set_yticks(range(len(names)), [shortened(name) for name in names])
        axes.set_title(f"{key[0]} links, {key[1]}")
        axes.set_xlabel("payload over the fair share (line: least to most; tick: median)", fontsize=8)
    tier, direction = max(shown, key=lambda k: max(float(f[k].max()) for f in loads.values() if k in f))
    hottest = {n: float(loads[n][tier, direction].max()) for n in names if (tier, direction) in loads[n]}
    parts = [f"{hottest[name]:.2f}{under(name)}" for name in few(run, hottest)]
    title = f"Balance within each tier{of_one_seed(run, (result.seed for result in results.values()))}"
    put_title(figure, title, WIDTH_IN)
    caption = f"The hottest {tier} link ({direction}) over its fair share: {sentence_of(parts)}."
    alt = f"Least, median and largest load over the fair share per tier and variant. {caption}"
    return [DrawnFigure("tier-balance", "Link load", title, caption, alt, figure)]


def draw_utilisation(run: RunResults, styles: dict[str, VariantStyle]) -> list[DrawnFigure]:
    """Median, 90th percentile and largest utilisation over the links of each tier against time."""
    results = first_results(run)
    found = {name: utilisation_over_time(result) for name, result in results.items()}
    found = {name: tiers for name, tiers in found.items() if tiers}
    if not found:
        return []
    between = {name for name, tiers in found.items() if set(tiers) - ENDS}
    absent = [name for name in found if between and name not in between]
    found = {name: tiers for name, tiers in found.items() if name not in absent}
    tiers = list(dict.fromkeys(tier for series in found.values() for tier in series))[-3:]
    if len(found) > COLUMNS and len(tiers) > 1:
        tiers = [tier for tier in tiers if tier not in ENDS] or tiers
    columns = min(COLUMNS, len(found))
    blocks = -(-len(found) // columns)
    figure = new_figure(WIDTH_IN, blocks * len(tiers) * 1.55 + 0.75)
    grid = figure.subplots(blocks * len(tiers), columns, squeeze=False, sharey=True, sharex=True)
    end_s = max(float(series.time_s[-1]) for tiers_of in found.values() for series in tiers_of.values())
    unit_s, unit = seconds_unit(end_s)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (variant, series) in enumerate(found.items()):
        for row, tier in enumerate(tiers):
            axes = grid[len(tiers) * (i // columns) + row, i % columns]
            if tier not in series:
                continue
            axes.set_axis_on()
            _draw_bands(axes, series[tier], unit_s, styles[variant])
            if row == 0:
                axes.set_title(panel_title(variant), color=styles[variant].text_colour)
            if i % columns == 0:
                axes.set_ylabel(f"{tier}\nlinks")
            if row == len(tiers) - 1:
                axes.set_xlabel(f"time ({unit})")
                axes.tick_params(labelbottom=True)
    grid[0, 0].set(ylim=(0, 1.03), xlim=(0, 1.02 * end_s / unit_s))
    grid[0, 0].set_yticks([0, 0.5, 1.0], ["0", "50 %", "100 %"])
    title, caption = _utilisation_words(run, found, tiers)
    title += of_one_seed(run, (results[name].seed for name in found))
    if absent:
        caption += f" Not shown: {sentence_of(absent)}, without traffic on links between switches."
    put_title(figure, title, WIDTH_IN)
    _explain_bands(figure)
    alt = f"Utilisation of the links of each tier against time, one column per variant. {caption}"
    return [DrawnFigure("utilisation", "Utilisation over time", title, caption, alt, figure)]


def _draw_bands(axes: Axes, series: UtilisationOverTime, unit_s: float, look: VariantStyle) -> None:
    time = series.time_s / unit_s

    def stepped(values):
        return np.append(values, values[-1])

    axes.fill_between(time, stepped(series.p90), step="post", color=look.colour, alpha=0.22, lw=0)
    axes.fill_between(time, stepped(series.p50), step="post", color=look.colour, alpha=0.45, lw=0)
    axes.step(time, stepped(series.largest), where="post", color=look.colour, lw=1.0)


def _explain_bands(figure: Figure) -> None:
    figure.supxlabel(
        "over the links of a tier: dark area median, light area 90th percentile, line largest",
        fontsize=8.5, color=QUIET, x=0.01, ha="left",
    )  # fmt: skip


def _utilisation_words(
    run: RunResults, found: dict[str, dict[str, UtilisationOverTime]], tiers: list[str]
) -> tuple[str, str]:
    """The tier whose busiest link is busiest, of equal ones the one farthest from the hosts."""
    mean = {t: {n: series[t].busiest_mean for n, series in found.items() if t in series} for t in tiers}
    tier = max(tiers, key=lambda t: (round(max(mean[t].values(), default=0.0), 2), tiers.index(t)))
    busiest = mean[tier]
    low, high, _ = ranked_by(busiest)
    typical = {name: found[name][tier].p50_mean for name in busiest}
    parts = [f"{_percent(busiest[n])} (the median one {_percent(typical[n])}){under(n)}" for n in few(run, busiest)]
    caption = (
        f"Mean utilisation of the busiest {tier} link over a variant's own run: "
        f"{sentence_of(parts)}. The busiest of all is {found[high][tier].busiest}{under(high)}."
    )
    title = f"The busiest {tier} link is {_percent(busiest[high])} busy on average"
    if len(busiest) == 1:
        return title, caption
    if busiest[high] - busiest[low] < 0.02:
        return f"{title} under every variant", caption
    return f"{title}{under(high)}, {_percent(busiest[low])}{under(low)}", caption


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
