"""The report of a check as one HTML file: measured against found times, errors, lines through points, and drops."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from calibration.check import HeldOut, drops, peaks, place, summary
from calibration.figures import draw_errors, draw_lines, draw_scatter
from calibration.methods import TARGET_MEDIAN, TARGET_P90
from models.cost.table import CostTable

__all__ = ["write_report"]

LISTED = 25
"""Drops in the report's table."""
CSS = """
body { margin: 0; color: #1a1a1a; background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 1.3rem; font-weight: 500; color: #3a3a3a; } h2 { margin: 44px 0 8px; font-size: 1.2rem; }
.answer { padding-left: 16px; border-left: 5px solid #0072b2; font-size: 1.35rem; line-height: 1.35; font-weight: 650; }
figure { margin: 14px 0; } img { width: 100%; height: auto; } figcaption, .small { color: #5a5a5a; font-size: .9rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid #dcdcdc; text-align: left; }
.above { color: #a33a00; font-weight: 600; } .ok { color: #0a6b3d; }
"""


def write_report(table: CostTable, found: Mapping[str, HeldOut], to: Path) -> None:
    """Write the report, with its figures inside, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.name}.partial")
    beside.write_text("\n".join(_page(table, found)), encoding="utf-8")
    beside.replace(to)


def _page(table: CostTable, found: Mapping[str, HeldOut]) -> Iterator[str]:
    rows = summary(found).to_dict("records")
    above = [str(row["operator"]) for row in rows if row["verdict"] != "ok"]
    verdict = f"{len(rows) - len(above)} of {len(rows)} operators are found to a median of {TARGET_MEDIAN:.0%} and a " \
              f"p90 of {TARGET_P90:.0%}" + (f"; above that: {', '.join(above)}" if above else "")  # fmt: skip
    yield f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Check of {_e(table.gpu)}</title>'
    yield f"<style>{CSS}</style></head><body><main>"
    yield f"<h1>How far interpolated times of {_e(table.gpu)} are off</h1><p class=answer>{_e(verdict)}.</p>"
    yield (f"<p class=small>{_e(Path(table.origin).name)}: {len(table.rows):,} rows. Every fifth point was held out "
           "and found from the others, by methods chosen without it.</p>")  # fmt: skip
    yield _table(
        ("operator", "held out", "outside", "median", "p90", "p95", "method"),
        [(row["operator"], row["points"], row["outside"], f"{row['median']:.1%}", f"{row['p90']:.1%}",
          f"{row['p95']:.1%}", "; ".join(sorted(set(found[row["operator"]].methods.values())))) for row in rows],
        [str(row["verdict"]) for row in rows],
    )  # fmt: skip
    yield ("<p class=small>outside: no other points surround it, so that the simulator would extrapolate. Method: a "
           "scale for each axis, one for the time, and what fills gaps.</p>")  # fmt: skip
    for title, figure, caption in (
        ("Measured against found", draw_scatter(found), "Each dot is a held-out point; the band is ±10 %."),
        ("Errors by operator", draw_errors(found), "Dots left of their own line meet their target."),
        ("Lines through measured points", draw_lines(found),
         "One typical shape an operator: dots were kept, rings were held out, the line is what the simulator uses."),
    ):  # fmt: skip
        yield f"<h2>{title}</h2><figure>{_image(figure, title)}<figcaption>{caption}</figcaption></figure>"
    yield from _irregular(table)
    yield "</main></body></html>"


def _irregular(table: CostTable) -> Iterator[str]:
    fallen = drops(table)
    yield f"<h2>More work in less time</h2><p>{len(fallen):,} rows are faster than less work, by more than 5 %."
    yield f"They are kept. The {min(LISTED, len(fallen))} largest drops:</p>"
    yield _table(("operator", "name", "at", "fell by", "time"), [
        (row["operator"], row["name"], place(row), f"{row['fell_by']:.0%}", f"{row['seconds'] * 1e6:.1f} us")
        for row in fallen.head(LISTED).to_dict("records")
    ])  # fmt: skip
    yield "<h2>Rows that stand alone</h2><p>Over 1.3 times as slow as both neighbours; no neighbour tells of them.</p>"
    yield _table(("operator", "precision", "rows", "of"), [(*key, *counts) for key, counts in peaks(table).items()])


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]], classes: Iterable[str] | None = None) -> str:
    def line(tag: str, cells: Iterable[object], name: str = "") -> str:
        return f'<tr class="{name}">' + "".join(f"<{tag}>{_e(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    rows = list(rows)
    named = list(classes) if classes is not None else [""] * len(rows)
    return f"<table>{line('th', heads)}{''.join(line('td', r, c) for r, c in zip(rows, named, strict=True))}</table>"


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return f'<img alt="{_e(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _e(text: str) -> str:
    return html.escape(text)
