"""What all figures share: the style, the colours of the variants, the key beside a plot, and saving."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from sim.results.main_metric import main_metric
from sim.results.metrics import meaning_of, number, unit_for
from sim.results.run_results import RunResults
from sim.results.statistics import mean_interval

STYLE = Path(__file__).with_name("spindle.mplstyle")
WIDTH_IN = 8.6
INK, QUIET, FAINT = "#1a1a1a", "#5f5f5f", "#b9b9b9"
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#AA3377", "#B8860B", "#3C9DD0", "#5B4A9E", "#6B6B00")
"""Okabe and Ito's colours for colour-blind readers (https://jfly.uni-koeln.de/color/), those too pale for
lines and text on white replaced by darker ones."""
IDEAL_COLOUR = "#7a7a7a"
BACKGROUND = "#b4b4b4"


@dataclass(frozen=True, slots=True)
class VariantStyle:
    """How a variant is drawn; one in the background, among too many to tell apart, as a thin grey line."""

    colour: Any
    line: Any = "-"
    is_background: bool = False

    @property
    def text_colour(self) -> Any:
        return QUIET if self.is_background else self.colour

    def line_of(self, width: float) -> dict[str, Any]:
        """What `Axes.plot` takes, for a line of this width where it is in the foreground."""
        if self.is_background:
            return {"color": self.colour, "linestyle": self.line, "lw": 0.8, "zorder": 1.5}
        return {"color": self.colour, "linestyle": self.line, "lw": width, "zorder": 2}


@dataclass(frozen=True, slots=True)
class DrawnFigure:
    """A figure and its words.

    key     its file name; section: its heading in the report
    title   the point, as it stands in the figure; caption: one sentence computed from the data
    alt     what the picture shows, for those who do not see it
    """

    key: str
    section: str
    title: str
    caption: str
    alt: str
    figure: Figure
    fidelity: str = ""
    percentiles: Sequence[Mapping[str, str]] = field(default_factory=tuple)


def style() -> AbstractContextManager[None]:
    """The context in which figures are made and saved: defaults plus Spindle's style, no user's."""
    return matplotlib.style.context(["default", STYLE])


def variant_styles(run: RunResults) -> dict[str, VariantStyle]:
    """A colour per variant, the same in every figure; grey dashes for an ideal fabric.

    Hue tells eight variants apart; of more, eight have one and the others are grey.
    """
    colours = iter(PALETTE)
    shown = _told_apart(run)
    styles = {name: VariantStyle(next(colours)) for name in run.variants if name in shown}
    if run.ideal_variant is not None:
        styles[run.ideal_variant] = VariantStyle(IDEAL_COLOUR, (0, (3, 2)))
    return {name: styles.get(name, VariantStyle(BACKGROUND, is_background=True)) for name in run.variants}


def _told_apart(run: RunResults) -> set[str]:
    """As many variants as there are hues: the first, the best, the worst, and some of every rank between.

    The rank is by the metric that answers the question. An ideal fabric has its own style.
    """
    real = [name for name in run.variants if name != run.ideal_variant]
    if len(real) <= len(PALETTE):
        return set(real)
    whole = run.comparable()
    key = main_metric(whole)
    mean = {name: mean_interval(whole.values(name, key)).mean if key else None for name in real}
    ranked = sorted((name for name in real if mean[name] is not None), key=lambda name: mean[name] or 0.0) or real
    spread = np.linspace(0, len(ranked) - 1, len(PALETTE)).round().astype(int)
    chosen = dict.fromkeys([real[0], ranked[0], ranked[-1], *(ranked[i] for i in spread)])
    return set(list(chosen)[: len(PALETTE)])


def new_figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), layout="constrained")


def put_title(figure: Figure, title: str, width_in: float, size: float = 12.0) -> None:
    """The figure's point, left aligned, wrapped to its width."""
    characters = max(20, int(width_in * 72 / (size * 0.6)))
    text = "\n".join(textwrap.wrap(literal(title), characters, break_on_hyphens=False))
    figure.suptitle(text, x=0.01, ha="left", fontsize=size, fontweight="bold", color=INK)


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign starts no formula."""
    return text.replace("$", r"\$")


def shortened(name: str, length: int = 26) -> str:
    """A name cut in its middle: sweeps differ at the ends."""
    if len(name) <= length:
        return literal(name)
    head = (length - 1) // 3
    return literal(f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}")


def panel_title(name: str) -> str:
    """A name over a narrow panel, on two lines where it needs them."""
    return "\n".join(textwrap.wrap(literal(name), 22)[:2]) if len(name) <= 44 else shortened(name, 22)


SECONDS = meaning_of("any.completion_time_s")


def seconds_unit(largest_s: float) -> tuple[float, str]:
    """The unit for an axis that reaches so far: (seconds per unit, symbol)."""
    return unit_for(SECONDS, largest_s if math.isfinite(largest_s) else None)


def plain_log_ticks(axis: Any, span: float) -> None:
    """Numbers rather than powers of ten on a logarithmic axis: at 1, 2 and 5 of each decade, at 1 of many.

    span: the largest value over the smallest
    """
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 1000 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if 1e-3 <= v < 1e5 else f"{v:,.0f}"))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def spans_decades(smallest: float, largest: float) -> bool:
    """Whether a logarithmic axis serves better: more than a factor of 30."""
    return smallest > 0 and largest / smallest > 30


def draw_key(
    axes: Axes,
    styles: Mapping[str, VariantStyle],
    rows: Mapping[str, Sequence[str]],
    heads: Sequence[str],
    note: str = "",
) -> None:
    """A small table in place of a legend: per variant its line, its name and its numbers; a note below.

    Variants in the background are counted in the note.
    """
    num_grey = sum(styles[name].is_background for name in rows)
    rows = {name: values for name, values in rows.items() if not styles[name].is_background}
    grey = f"thin grey lines: {num_grey} more variant{'s' * (num_grey > 1)}" if num_grey else ""
    notes = [line for line in (note, grey) if line]
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    step = min(0.115, 0.95 / (len(rows) + 1 + len(notes)))
    columns = [1.0 - 0.245 * (len(heads) - 1 - i) for i in range(len(heads))]
    size = 8.5 if len(rows) <= 7 else 7.5
    inside: dict[str, Any] = {"va": "center", "in_layout": False}  # the layout need not measure what fits
    for x, head in zip(columns, heads, strict=True):
        axes.text(x, 0.97, head, ha="right", fontsize=size, color=QUIET, **inside)
    room = 18 if len(rows) <= 7 else 20
    for i, (name, values) in enumerate(rows.items()):
        y = 0.97 - step * (i + 1)
        axes.plot([0, 0.07], [y, y], **styles[name].line_of(2.6))
        axes.text(0.1, y, shortened(name, room), fontsize=size, color=INK, **inside)
        for x, value in zip(columns, values, strict=True):
            axes.text(x, y, value, ha="right", fontsize=size, color=INK, **inside)
    for i, line in enumerate(notes):
        y = 0.97 - step * (len(rows) + 1 + i)
        axes.text(1.0, y, line, ha="right", fontsize=size - 0.5, color=QUIET, **inside)


def line_widths(lines: Sequence[NDArray[np.float64]]) -> list[float]:
    """Widths for lines drawn in this order: one that a later, equal one would hide is drawn wider.

    Not in a sweep, where many lines nearly coincide.
    """
    if len(lines) > 5:
        return [1.5] * len(lines)
    top = max((float(np.nanmax(line)) for line in lines if len(line)), default=1.0)

    def same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        return len(a) == len(b) and bool(np.nanmax(np.abs(a - b)) < 0.012 * top)

    hidden_by = [sum(same(line, other) for other in lines[i + 1 :]) for i, line in enumerate(lines)]
    return [1.8 + 1.7 * min(count, 4) for count in hidden_by]


def ranked_by(values: Mapping[str, float]) -> tuple[str, str, float]:
    """(name of the smallest, name of the largest, their ratio)."""
    low, high = min(values, key=lambda n: values[n]), max(values, key=lambda n: values[n])
    return low, high, values[high] / values[low] if values[low] > 0 else math.inf


def scaled(value: float | None, unit_s: float) -> str:
    """A number for the key, in the axis' unit, three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    size = value / unit_s
    return number(size, 0 if abs(size) >= 100 else 1 if abs(size) >= 10 else 2 if abs(size) >= 1 else 3)


def image_bytes(figure: Figure, form: str, run: RunResults) -> bytes:
    """The figure as "png" or "svg": the same figure gives the same bytes (no dates, fonts as paths)."""
    about = f"{run.scenario_name}; seed {run.seeds[0]}; version {run.version}; calibration {run.calibration}"
    metadata: dict[str, Any]
    options: dict[str, Any] = {}
    if form == "svg":
        metadata = {"Date": None, "Creator": "spindle", "Description": about}
    else:
        metadata = {
            "Software": "spindle",
            "Description": about.encode("latin-1", "replace").decode("latin-1"),
        }
        options["pil_kwargs"] = {"compress_level": 3}
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the page's own text has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        engine = figure.get_layout_engine()
        if engine is not None:
            # Laid out once, for all formats: the solver costs as much as the drawing. With any engine left
            # in place, "none" included, savefig would draw everything twice.
            for axes in figure.axes:
                for spine in axes.spines.values():
                    spine.set_in_layout(False)  # they lie on the edge of what is measured anyway
            engine.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(buffer, format=form, metadata=metadata, **options)
    return buffer.getvalue()


def sentence_of(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def few(run: RunResults, values: Mapping[str, float]) -> list[str]:
    """The variants a caption names: all up to four, else those with the smallest and the largest value."""
    known = [name for name in run.variants if name in values]
    if len(known) <= 4:
        return known
    extremes = ranked_by(values)[:2]
    return [name for name in known if name in extremes]


def of_one_seed(run: RunResults, seeds: Iterable[int]) -> str:
    """` (seed 1)`, for a figure that shows one seed of several; they differ where first ones are missing."""
    shown = set(seeds)
    if len(run.seeds) == 1:
        return ""
    return f" (seed {shown.pop()})" if len(shown) == 1 else " (one seed of each variant)"


def under(variant: str) -> str:
    """` under spray`; nothing for the only variant of a scenario without `compare`."""
    return "" if variant == "run" else f" under {variant}"
