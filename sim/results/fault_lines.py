"""The faults of a run in sentences: what broke, when, and what it did to each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.units import format_bytes, format_count, format_seconds
from sim.results.drawing import sentence_of
from sim.results.run_results import RunResults

Row = Mapping[str, Any]


def fault_lines(run: RunResults) -> list[str]:
    """A sentence per fault; numbers are means over the seeds in which it began."""
    rows: dict[tuple[float, float | None, str], dict[str, list[Row]]] = {}
    for variant in run.variants:
        for result in run.of_variant(variant):
            for row in result.notes.get("faults", ()):
                by_variant = rows.setdefault((row["at_s"], row["until_s"], row["what"]), {})
                by_variant.setdefault(variant, []).append(row)
    lines = []
    for (at_s, until_s, what), by_variant in rows.items():
        end = "for good" if until_s is None else f"until {format_seconds(until_s)}"
        if what.startswith("replica "):  # no link: what became of its requests is among the metrics
            lines.append(f"{what} from {format_seconds(at_s)} {end}, under {sentence_of(list(by_variant))}.")
            continue
        effects = "; ".join(f"{variant}: {_effect(found)}" for variant, found in by_variant.items())
        lines.append(f"{what} from {format_seconds(at_s)} {end}. {effects}.")
    return lines


def _effect(rows: Sequence[Row]) -> str:
    flows = sum(row["flows_affected"] for row in rows) / len(rows)
    moved = sum(row["moved_bytes"] for row in rows) / len(rows)
    return f"{format_count(flows)} flows under way across it, {format_bytes(moved)} moved to another path"
