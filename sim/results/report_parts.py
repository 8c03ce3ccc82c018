"""What every report says: its figures inline, the fidelity of its results, and what a reader must be warned of."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sim.results.drawing import DrawnFigure, image_bytes
from sim.results.run_results import RunResults


def page_of(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of these values. Every value is escaped where it is put in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def shown(drawn: DrawnFigure, run: RunResults) -> dict[str, Any]:
    """A figure as templates take it: the picture, its words and the fidelity of what it shows."""
    return {
        "uri": data_uri(drawn, run), "alt": drawn.alt, "caption": drawn.caption, "title": drawn.title,
        "fidelity": fidelities(run), "percentiles": drawn.percentiles, "key": drawn.key,
    }  # fmt: skip


def data_uri(drawn: DrawnFigure, run: RunResults) -> str:
    """The figure as an SVG that a page carries in itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(image_bytes(drawn.figure, "svg", run)).decode()


def fidelities(run: RunResults) -> str:
    """The fidelity of the results, by variant where they differ."""
    by_variant = {
        name: str(results[0].notes["fidelity"])
        for name in run.variants
        if (results := run.of_variant(name)) and "fidelity" in results[0].notes
    }
    kinds = list(dict.fromkeys(by_variant.values()))
    if len(kinds) <= 1:
        return kinds[0] if kinds else ""
    return "; ".join(f"{kind}: {', '.join(n for n, k in by_variant.items() if k == kind)}" for kind in kinds)


def collected_warnings(run: RunResults) -> list[str]:
    """Each warning once, with the variants it concerns, and what is missing from a partial run."""
    concerned: dict[str, dict[str, None]] = {}
    for (variant, _), result in run.results.items():
        for warning in result.notes.get("warnings", ()):
            concerned.setdefault(str(warning), {})[variant] = None
        if result.notes.get("partial"):
            concerned.setdefault("This run was interrupted: its tables end early", {})[variant] = None
    out = []
    if run.partial:
        out.append(f"Partial: {run.num_finished} of {run.num_expected} runs finished.")
    for warning, variants in concerned.items():
        is_everywhere = len(variants) == len(run.variants)
        out.append(warning if is_everywhere else f"{warning} ({', '.join(variants)})")
    return out
