"""The report of a study: question and answer, the map, flip points, then each run's winners and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sim.results.disagreement import fidelity_table
from sim.results.drawing import image_bytes, style
from sim.results.metrics import MetricMeaning, common_unit, format_interval, format_value, meaning_of
from sim.results.report_parts import collected_warnings, page_of, shown
from sim.results.run_results import RunResults
from sim.results.statistics import mean_interval
from sim.results.store import write_atomically
from sim.results.study import Finding, Verdict, answer_of, courses_of, findings_of, format_change
from sim.results.study_figures import colours_of, draw_course, draw_map

TEMPLATE = "study.html.jinja"
WINNERS, PAIRS, MARKDOWN = "winners.csv", "pairs.csv", "study.md"
COSTS = (
    "links.queue_wait_p99_s", "links.longest_queue_bytes", ".reorder.max_displacement", ".reorder.max_held_bytes",
    ".retransmitted_share", "links.max_paused_share", "links.dropped_share", "links.trimmed_share",
    "links.max_load_over_fair", ".extra_pieces",
)  # fmt: skip
"""Metrics, by their ending, of the price at which a gain comes. What is 0 for everyone is left out."""


def write_study(runs: Sequence[RunResults], target: Path) -> Path:
    """Write the report, and beside it its figures as PNG, its tables as CSV and a page to quote from; returns the
    report's path.

    winners.csv   a row per circumstances and contender: mean, interval, relative difference to the best
    pairs.csv     a row per circumstances and ordered pair: relative difference of the first to the second
    study.md      the answer, the flip points and how far from the best each contender is, as Markdown

    Of a share the difference itself stands in place of the relative one.
    """
    folder = target.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    found = [(run, findings_of(run)) for run in runs]
    for name, frame in ((WINNERS, winners_table(found)), (PAIRS, pairs_table(found))):
        write_atomically(target.parent / name, frame.to_csv(index=False).encode())
    write_atomically(target.parent / MARKDOWN, markdown(found).encode())
    colours = colours_of(runs)
    with style():
        lead = draw_map([(short_name(run, runs), run, findings) for run, findings in found], colours)
        figures = [draw_course(run, colours) for run in runs]
    pictures: list[dict[str, Any] | None] = []
    for i, (run, drawn) in enumerate(zip([runs[0], *runs], [lead, *figures], strict=True)):
        if drawn is not None:
            key = drawn.key if i == 0 else f"{i:02}-{drawn.key}"
            write_atomically(folder / f"{key}.png", image_bytes(drawn.figure, "png", run))
        pictures.append(None if drawn is None else shown(drawn, run))
    page = page_of(
        TEMPLATE,
        title=title_of(runs),
        question=runs[0].question or f"How do the variants of {runs[0].scenario_name} compare?",
        answer=answer_of([finding for _, findings in found for finding in findings]),
        lead=pictures[0],
        courses=[row for run, findings in found for row in _course_rows(run, findings, runs)],
        parts=[_part(run, findings, figure) for (run, findings), figure in zip(found, pictures[1:], strict=True)],
        warnings=list(dict.fromkeys(warning for run in runs for warning in collected_warnings(run))),
    )  # fmt: skip
    write_atomically(target, page.encode())
    return target


def title_of(runs: Sequence[RunResults]) -> str:
    """What the names of the runs have in common, up to a comma or colon; of a single run its name."""
    if len(runs) == 1:
        return runs[0].scenario_name
    heads = {run.scenario_name.replace(":", ",").split(",")[0] for run in runs}
    return heads.pop() if len(heads) == 1 else "study"


def short_name(run: RunResults, runs: Sequence[RunResults]) -> str:
    """The run's name without what all names begin with."""
    rest = run.scenario_name.removeprefix(title_of(runs)).lstrip(",: ")
    return rest or run.scenario_name


def _course_rows(run: RunResults, findings: Sequence[Finding], runs: Sequence[RunResults]) -> list[dict[str, str]]:
    rows = []
    for course in courses_of(run, findings):
        stretches = [f"{a if a == b else f'{a} … {b}'}: {decision}" for a, b, decision in course.stretches]
        flips = [f"{x} → {y} between {a} and {b}" for a, x, b, y in course.flips]
        rows.append({
            "scenario": short_name(run, runs), "axis": course.axis.replace("_", " "), "others": course.others,
            "course": "; ".join(stretches), "flips": "; ".join(flips) or "none",
        })  # fmt: skip
    return rows


def _part(run: RunResults, findings: Sequence[Finding], figure: dict[str, Any] | None) -> dict[str, Any]:
    contenders = [name for name in run.contenders if name != run.ideal_variant]
    return {
        "name": run.scenario_name, "question": run.question, "answer": answer_of(findings), "figure": figure,
        "run": run,
        "contenders": contenders, "has_sides": any(finding.has_sides for finding in findings),
        "rows": [_row(finding, contenders) for finding in findings], "costs": _costs(run),
        "with_ideal": list(run.contenders),
        "fidelities": fidelity_table(run) if run.mixes_fidelities(run.variants) else None,
    }  # fmt: skip


def _lead(verdict: Verdict | None) -> str:
    """`−3.4 % [−4.0, −2.9] against adaptive`."""
    if verdict is None:
        return ""
    words = "" if verdict.state == "clear" else f", {verdict.state}"
    return f"{change_of(verdict)} against {verdict.other}{words}"


def change_of(verdict: Verdict) -> str:
    """`−3.4 % [−4.0, −2.9]`, from the other to the best; in the metric's unit where the other one is 0."""
    if verdict.change.mean is None:
        gap = verdict.difference.difference
        return _signed(gap.mapped(lambda value: -value).mean, verdict.meaning)
    return format_change(verdict.change, verdict.meaning)


def _signed(value: float | None, meaning: MetricMeaning) -> str:
    return f"{'+' if value is not None and value > 0 else ''}{format_value(value, meaning)}"


def _row(finding: Finding, contenders: Sequence[str]) -> dict[str, Any]:
    verdict = finding.verdict
    scale = common_unit(finding.meaning, [mean_interval(values).mean for values in finding.values.values()])
    cells = []
    for name in contenders:
        mean = mean_interval(finding.values[name])
        cell = {"value": "–", "difference": "", "verdict": "", "is_leader": name in finding.leaders}
        if mean.mean is not None:
            cell["value"] = format_value(mean.mean, finding.meaning, scale)
        if mean.mean is not None and name != finding.ranked[0]:
            cell["difference"] = _from_best(finding, name)
            cell["verdict"] = "" if name in finding.leaders else "worse"
        elif mean.mean is not None:
            cell["difference"] = format_interval(mean, finding.meaning, scale)
        cells.append(cell)
    return {
        "label": finding.label or "the only case", "best": finding.ranked[0] if finding.ranked else "–",
        "lead": _lead(verdict),
        "is_decided": verdict is not None and verdict.is_decided, "decision": finding.decision,
        "side_lead": _lead(finding.side_verdict), "cells": cells,
    }  # fmt: skip


def _costs(run: RunResults) -> list[dict[str, Any]]:
    """Per metric the largest of its means over the circumstances, of each contender."""
    out = []
    for key in (key for ending in COSTS for key in run.metric_keys() if key.endswith(ending)):
        largest: dict[str, float] = {}
        for case in run.cases():
            for name, variant in case.variants.items():
                mean = mean_interval(run.values(variant, key)).mean
                if mean is not None:
                    largest[name] = max(mean, largest.get(name, 0.0))
        if any(largest.values()):
            meaning = meaning_of(key)
            scale = common_unit(meaning, list(largest.values()))
            label = meaning.label if meaning.workload is None else f"{meaning.label} ({meaning.workload})"
            out.append({
                "label": label,
                "of": {name: format_value(largest.get(name), meaning, scale) for name in run.contenders},
            })  # fmt: skip
    return out


# --- tables -----------------------------------------------------------------------------------------------------------

Found = Sequence[tuple[RunResults, Sequence[Finding]]]


def winners_table(found: Found) -> pd.DataFrame:
    rows = []
    for run, finding in _each(found):
        for name, values in finding.values.items():
            mean = mean_interval(values)
            relative = finding.change(name, finding.ranked[0]) if finding.ranked else mean_interval([])
            rows.append({
                **_where(run, finding), "contender": name, "side": finding.sides.get(name, ""), "mean": mean.mean,
                "low": mean.low, "high": mean.high, "over_best": relative.mean, "over_best_low": relative.low,
                "over_best_high": relative.high, "best": finding.ranked[0] if finding.ranked else "",
                "decision": finding.decision,
            })  # fmt: skip
    return pd.DataFrame(rows)


def pairs_table(found: Found) -> pd.DataFrame:
    rows = []
    for run, finding in _each(found):
        for name in finding.ranked:
            for reference in finding.ranked:
                if name != reference:
                    verdict = finding.against(reference, name)
                    relative = finding.change(name, reference)
                    rows.append({
                        **_where(run, finding), "contender": name, "reference": reference, "relative": relative.mean,
                        "low": relative.low, "high": relative.high, "state": verdict.state,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def markdown(found: Found) -> str:
    """Question, answer and flip points, and a table per run: each contender over the best, its interval in brackets."""
    runs = [run for run, _ in found]
    lines = [f"# {title_of(runs)}", "", str(runs[0].question or ""), "", answer_of([f for _, f in _each(found)])]
    if table := _map_lines(found):
        lines += ["", *table]
    flips = [row for run, findings in found for row in _course_rows(run, findings, runs) if row["flips"] != "none"]
    if flips:
        lines += ["", "| scenario | along | with | flips |", "|---|---|---|---|"]
        lines += [f"| {row['scenario']} | {row['axis']} | {row['others']} | {row['flips']} |" for row in flips]
    for run, findings in found:
        contenders = [name for name in run.contenders if name != run.ideal_variant]
        lines += ["", f"## {short_name(run, runs)}", "", answer_of(findings), ""]
        lines += [f"| case | {' | '.join(contenders)} | decision |", f"|---|{'---|' * len(contenders)}---|"]
        for finding in findings:
            cells = ["–" if name not in finding.ranked else _best_or_from_it(finding, name) for name in contenders]
            lines.append(f"| {finding.label or 'the only case'} | {' | '.join(cells)} | {finding.decision} |")
    return "\n".join(lines) + "\n"


def _map_lines(found: Found) -> list[str]:
    """The map as a table: a column per entry of the first axis; a cell has the best and its gain on the other side."""
    runs = [run for run, _ in found]
    columns = list(dict.fromkeys(entry for run in runs if len(run.axes) > 1 for entry in next(iter(run.axes.values()))))
    if not columns:
        return []
    rows: dict[str, dict[str, str]] = {}
    for run, finding in _each(found):
        if not finding.circumstances:
            continue
        (_, first), *others = finding.circumstances
        row = ", ".join([short_name(run, runs), *(entry for _, entry in others)])
        rows.setdefault(row, {})[first] = _short_lead(finding)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row, cells in rows.items():
        lines.append(f"| {row} | {' | '.join(cells.get(column, '') for column in columns)} |")
    return lines


def _short_lead(finding: Finding) -> str:
    """`adaptive −2.9 % [−4.3, −1.6]`; = within 1 %, ? contested, * one seed."""
    verdict = finding.deciding
    if verdict is None:
        return finding.decision
    if verdict.state == "no difference":
        return f"{verdict.best} = {verdict.other}"
    mark = {"clear": "", "contested": " ?", "one seed": " *"}[verdict.state]
    return f"{verdict.best} {change_of(verdict)}{mark}"


def _best_or_from_it(finding: Finding, name: str) -> str:
    if name == finding.ranked[0]:
        return f"**{format_value(mean_interval(finding.values[name]).mean, finding.meaning)}**"
    return _from_best(finding, name)


def _from_best(finding: Finding, name: str) -> str:
    """`+3.4 % [2.9, 4.0]`: how far a contender is from the best; in the metric's unit where the best is 0."""
    change = finding.change(name, finding.ranked[0])
    if change.mean is None:
        return _signed(finding.difference(name, finding.ranked[0]).difference.mean, finding.meaning)
    return format_change(change, finding.meaning)


def _each(found: Found) -> list[tuple[RunResults, Finding]]:
    return [(run, finding) for run, findings in found for finding in findings]


def _where(run: RunResults, finding: Finding) -> dict[str, Any]:
    return {
        "scenario": run.scenario_name, "circumstances": finding.label, "metric": finding.meaning.key,
        "num_seeds": finding.num_seeds,
    }  # fmt: skip
