"""The report: one self-contained HTML page that answers the scenario's question, then shows why.

It opens with the question and its computed answer, then the figure of that answer, the variants side by
side, the details and where every number comes from. Nothing is loaded from elsewhere and nothing runs in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex

from sim.results.disagreement import fidelity_table
from sim.results.drawing import DrawnFigure, VariantStyle, image_bytes, style, variant_styles
from sim.results.fault_lines import fault_lines
from sim.results.figures import NARROW_IN, draw_all, draw_headline
from sim.results.headline import Headline, headline_of
from sim.results.load_lines import herds, load_lines, overloads
from sim.results.main_metric import is_arrival_window, keys_with_values, main_metric, network_tax_key
from sim.results.metrics import (
    MetricMeaning,
    common_unit,
    format_interval,
    format_percent,
    format_value,
    meaning_of,
)
from sim.results.report_parts import collected_warnings, data_uri, fidelities, page_of, shown
from sim.results.run_results import RunResults, VariantResult
from sim.results.statistics import Estimate, mean_interval, paired_difference
from sim.results.store import read_run, write_atomically
from sim.results.study_report import write_study

TEMPLATE = "report.html.jinja"
MAIN_METRICS_AT_MOST = 6
MAIN_ENDINGS = (
    ".completion_time_s", ".slowdown.p99", ".network_tax", ".p99_itl_ms", ".p99_ttft_ms", ".request_throughput",
    ".bus_bytes_per_s", ".step_s.mean", "links.max_load_over_fair", ".fct_s.p99",
    ".output_throughput",
)  # fmt: skip
"""The metrics of the side-by-side table, by their ending, the most telling first."""
PACKET_ENDINGS = (
    ".reorder.max_displacement", ".reorder.max_held_bytes", ".retransmitted_share", ".spurious_retransmissions",
    ".jain_index", "links.queue_wait_p50_s", "links.queue_wait_p99_s", "links.longest_queue_bytes",
    "links.marked_share", "links.dropped_share", "links.trimmed_share", "links.lost_share",
    "links.max_paused_share",
)  # fmt: skip
"""What the variants' packets went through: the price of a gain stands next to it."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a part of the report comes from: one run folder."""

    label: str
    run: RunResults


@dataclass(frozen=True, slots=True)
class Combined:
    """Several runs as one comparison: variants renamed where they clash, and what a reader must know."""

    run: RunResults
    sources: tuple[Source, ...]
    warnings: list[str] = field(default_factory=list)


def write_report(out_dirs: Sequence[Path], target: Path) -> Path:
    """Write the report of one or several run folders, and its figures as PNG beside it; returns its path.

    target: the HTML file, or a folder in which it becomes report.html. Several folders are compared: their
    variants stand side by side, named after the folder where their names clash.
    Raises RunFolderError when a folder holds no run, ValueError when there is no folder.
    """
    if not out_dirs:
        raise ValueError("a report needs at least one run folder")
    target = Path(target)
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        target = target / "report.html"
    labelled = [(Path(path).resolve().name, read_run(path)) for path in out_dirs]
    if all(run.axes for _, run in labelled):
        return write_study([run for _, run in labelled], target)
    combined = combine(labelled)
    figures = draw_all(combined.run)
    folder = target.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for drawn in figures:
        write_atomically(folder / f"{drawn.key}.png", image_bytes(drawn.figure, "png", combined.run))
    write_atomically(target, render(combined, figures).encode())
    return target


def combine(labelled: Sequence[tuple[str, RunResults]]) -> Combined:
    """Put runs side by side.

    Seeds: those that all runs share, so that differences stay paired; without a common one, runs are
    compared in the order of their seeds, and a warning says so.
    """
    if len(labelled) == 1:
        label, run = labelled[0]
        return Combined(run, (Source(label, run),))
    labels = _unique([label for label, _ in labelled])
    runs = [run for _, run in labelled]
    warnings = []
    common = [seed for seed in runs[0].seeds if all(seed in run.seeds for run in runs)]
    count = len(common) or min(len(run.seeds) for run in runs)
    if not common:
        warnings.append("The runs share no seed: differences between them are not paired.")
    names = [name for run in runs for name in run.variants]
    results: dict[tuple[str, int], VariantResult] = {}
    variants: list[str] = []
    ideals = []
    for label, run in zip(labels, runs, strict=True):
        for name in run.variants:
            own = name if names.count(name) == 1 else (label if name == "run" else f"{name} ({label})")
            variants.append(own)
            if name == run.ideal_variant:
                ideals.append(own)
            for seed, as_seed in zip(
                common or run.seeds[:count], common or runs[0].seeds[:count], strict=True
            ):
                if (name, seed) in run.results:
                    results[own, as_seed] = replace(run.results[name, seed], name=own, seed=as_seed)
    questions = {run.question for run in runs}
    scenarios = list(dict.fromkeys(run.scenario_name for run in runs))
    merged = RunResults(
        scenario_name=" and ".join(scenarios),
        question=questions.pop() if len(questions) == 1 else None,
        seeds=tuple(common or runs[0].seeds[:count]),
        variants=tuple(_unique(variants)),
        version=", ".join(dict.fromkeys(run.version for run in runs)),
        calibration=", ".join(dict.fromkeys(run.calibration or "none" for run in runs)),
        results=results,
        partial=any(run.partial for run in runs),
        answer=next((run.answer for run in runs if run.answer), None),
        ideal_variant=ideals[0] if len(ideals) == 1 else None,
    )
    return Combined(merged, tuple(Source(*pair) for pair in zip(labels, runs, strict=True)), warnings)


def _unique(names: Sequence[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in out:
            count += 1
            candidate = f"{name} {count}"
        out.append(candidate)
    return out


def render(combined: Combined, figures: Sequence[DrawnFigure]) -> str:
    """The page as text. Every value is escaped where it is put in."""
    run = combined.run
    headline = headline_of(run)
    with style():
        styles = variant_styles(run)
        narrow = draw_headline(run, headline, styles, NARROW_IN)
    lead = next((drawn for drawn in figures if drawn.key == "headline"), None)
    return page_of(
        TEMPLATE,
        run=run,
        question=run.question or f"How do the variants of {run.scenario_name} compare?",
        headline=headline,
        num_expected=run.num_expected,
        lead=lead and shown(lead, run),
        lead_narrow=data_uri(narrow[0], run) if narrow else "",
        table=side_by_side(run, styles, main_metrics(run)),
        packets=side_by_side(run, styles, packet_metrics(run)),
        everything=side_by_side(run, styles, run.metric_keys()),
        sections=_sections(figures, run),
        escalation=fidelity_table(run),
        fidelities_of="",
        disagreement=next((shown(drawn, run) for drawn in figures if drawn.key == "disagreement"), None),
        sources=combined.sources,
        fidelity=fidelities(run),
        faults=fault_lines(run),
        loads=load_lines(run),
        cost_sources=cost_shares(run),
        warnings=combined.warnings + collected_warnings(run) + overloads(run) + herds(run),
    )


def _sections(figures: Sequence[DrawnFigure], run: RunResults) -> list[dict[str, Any]]:
    sections: dict[str, list[dict[str, Any]]] = {}
    for drawn in figures:
        if drawn.key not in ("headline", "disagreement"):
            sections.setdefault(drawn.section, []).append(shown(drawn, run))
    return [{"name": name, "figures": drawn} for name, drawn in sections.items()]


def main_metrics(run: RunResults) -> list[str]:
    """The metrics of the side-by-side table: the one that answers first, then the most telling ones."""
    keys = keys_with_values(run)
    keys = [key for key in keys if not is_arrival_window(key, keys)]
    chosen = [key for key in [main_metric(run)] if key is not None]
    for ending in MAIN_ENDINGS:
        chosen += [key for key in keys if key.endswith(ending) and key not in chosen]
    return (chosen or keys)[:MAIN_METRICS_AT_MOST]


def packet_metrics(run: RunResults) -> list[str]:
    """Metrics of the table about packets; none in fluid. What is 0 everywhere (no pause, no drop) is left out."""
    keys = [key for key in keys_with_values(run) if any(any(run.values(name, key)) for name in run.variants)]
    if not any(key.startswith("links.queue_wait") for key in keys_with_values(run)):
        return []
    return [key for ending in PACKET_ENDINGS for key in keys if key.endswith(ending)]


def side_by_side(run: RunResults, styles: Mapping[str, VariantStyle], keys: Sequence[str]) -> dict[str, Any]:
    """Rows are variants, columns metrics; a cell has the mean, its interval, its difference, its rank."""
    columns, cells, whole = [], [], run.comparable()
    is_mixed = run.mixes_fidelities(run.variants)
    for key in keys:
        meaning = meaning_of(key)
        estimates = {name: mean_interval(run.values(name, key)) for name in run.variants}
        scale = common_unit(meaning, [estimate.mean for estimate in estimates.values()])
        found = headline_of(replace(run, answer=key)) if meaning.better else Headline("", "", None)
        leaders = {found.best, *found.ties} if found.key == key and found.best else set()
        columns.append(
            {"label": meaning.label, "workload": meaning.workload or "fabric", "better": meaning.better}
        )
        cells.append(
            [_cell(whole, key, meaning, estimates, name, scale, name in leaders) for name in run.variants]
        )
    rows = [
        {
            "name": name,
            "colour": to_hex(styles[name].colour),
            "is_ideal": name == run.ideal_variant,
            "fidelity": run.fidelity_of(name) if is_mixed else "",
            "cells": [column[i] for column in cells],
        }
        for i, name in enumerate(run.variants)
    ]
    return {"columns": columns, "rows": rows, "first": run.variants[0] if run.variants else ""}


def _cell(
    run: RunResults,
    key: str,
    meaning: MetricMeaning,
    estimates: Mapping[str, Estimate],
    name: str,
    scale: tuple[float, str],
    is_best: bool,
) -> dict[str, Any]:
    estimate, first = estimates[name], run.variants[0]
    cell = {
        "value": format_value(estimate.mean, meaning, scale),
        "interval": format_interval(estimate, meaning, scale) if estimate.low != estimate.high else "",
        "difference": "",
        "verdict": "",
        "is_best": is_best,
    }
    is_tax = first == run.ideal_variant and network_tax_key(run, key) is not None  # a column of its own
    if name != first and estimate.mean is not None and not is_tax:
        found = paired_difference(
            *run.paired(name, first, key), meaning.better, meaning.is_share
        )
        shown = found.difference if meaning.is_share else found.relative
        if found.verdict == "no difference" or (found.verdict is None and found.difference.mean == 0):
            cell["difference"], cell["verdict"] = "no difference", "same"
        elif shown.mean is not None:
            unit = "points" if meaning.is_share else "%"
            cell["difference"] = format_percent(shown).replace("%", unit, 1)
            cell["verdict"] = found.verdict or ""
        if cell["difference"] and run.compares_in_fluid(name, first):
            cell["difference"] = f"{cell['difference']} in fluid"
    return cell


def cost_shares(run: RunResults) -> list[dict[str, str]]:
    """Share of the simulated time by the source of its cost figures: mean over results, and the range."""
    shares: dict[str, list[float]] = {}
    noted = [r.notes["cost_sources"] for r in run.results.values() if r.notes.get("cost_sources")]
    for found in noted:
        for name in found:
            shares.setdefault(str(name), [])
    for name, values in shares.items():
        values.extend(float(found.get(name, 0.0)) for found in noted)
    rows = []
    for name, values in sorted(shares.items(), key=lambda item: -sum(item[1])):
        mean, low, high = sum(values) / len(values), min(values), max(values)
        text = format_percent(Estimate(mean, None, None, len(values)), signed=False)
        if high - low > 5e-4:
            text = format_percent(Estimate(mean, low, high, len(values)), signed=False)
        rows.append({"name": name, "share": text})
    return rows
