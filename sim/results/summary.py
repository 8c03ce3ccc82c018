"""summary.json: every variant's metrics with their intervals, and the differences to the first variant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sim.results.disagreement import disagreement
from sim.results.headline import headline_of
from sim.results.load_lines import loads
from sim.results.metrics import meaning_of
from sim.results.run_results import RunResults
from sim.results.statistics import Estimate, mean_interval, paired_difference


def summary_of(run: RunResults) -> dict[str, Any]:
    """The content of summary.json.

    With one seed a metric is a number; with several it is {mean, ci95, values}, values in the order of the
    seeds, and `differences` compares every later variant with the first, seed by seed; with axes, with the first
    contender under the same circumstances.
    """
    keys, whole = run.metric_keys(), run.comparable()
    is_replicated = len(run.seeds) > 1
    summary: dict[str, Any] = {
        "scenario": run.scenario_name,
        "seed": run.seeds[0],
        "version": run.version,
        "calibration": run.calibration,
        "partial": run.partial,
        "question": run.question,
        "headline": headline_of(run).sentence,
    }
    if is_replicated:
        summary["seeds"] = list(run.seeds)
    for name in ("answer", "ideal_variant"):
        if getattr(run, name) is not None:
            summary[name] = getattr(run, name)
    for name in ("axes", "sides"):
        if getattr(run, name):
            summary[name] = getattr(run, name)
    variants: dict[str, Any] = {}
    load = loads(run)
    for variant in run.variants:
        results = run.of_variant(variant)
        own = [key for key in keys if any(key in result.metrics for result in results)]
        metrics: dict[str, Any] = (
            {key: _replicated(run.values(variant, key)) for key in own}
            if is_replicated
            else {key: results[0].metrics[key] for key in own}
        )
        variants[variant] = {**_fidelity(run, variant, own), "metrics": metrics}
        if variant in load:
            variants[variant]["load"] = {workload: asdict(found) for workload, found in load[variant].items()}
    summary["variants"] = variants
    if is_replicated:
        first_of = run.in_place_of(run.contenders[0])
        summary["differences"] = {
            variant: _differences(whole, variant, first_of[variant], keys)
            for variant in run.variants
            if variant != first_of[variant]
        }
    return plain_json(summary)


def _fidelity(run: RunResults, variant: str, keys: Sequence[str]) -> dict[str, Any]:
    """Where the figures come from; under `fidelity: auto` also why, and fluid against packet."""
    found: dict[str, Any] = {}
    if (fidelity := run.fidelity_of(variant)) is not None:
        found["fidelity"] = fidelity
    if (escalation := run.escalation_of(variant)) is None:
        return found
    found["escalated_because"] = escalation["because"]
    if escalation["stays"] is not None:
        found["stays_fluid_because"] = escalation["stays"]
    if escalation["fluid"] is not None:
        found["disagreement"] = {
            key: {"fluid": gap.fluid.mean, "packet": gap.packet.mean, "relative": gap.relative.mean}
            for key in keys
            if meaning_of(key).better is not None and (gap := disagreement(run, variant, key)) is not None
        }
    return found


def _replicated(values: list[float | None]) -> dict[str, Any]:
    estimate = mean_interval(values)
    return {"mean": estimate.mean, "ci95": _bounds(estimate), "values": values}


def _bounds(estimate: Estimate) -> list[float | None]:
    return [estimate.low, estimate.high]


def _differences(run: RunResults, variant: str, first: str, keys: Sequence[str]) -> dict[str, Any]:
    out = {}
    for key in keys:
        meaning = meaning_of(key)
        found = paired_difference(
            *run.paired(variant, first, key), meaning.better, meaning.is_share
        )
        if found.difference.mean is not None:
            out[key] = {
                "mean": found.difference.mean,
                "ci95": _bounds(found.difference),
                "relative": found.relative.mean,
                "relative_ci95": _bounds(found.relative),
                "verdict": found.verdict,
                **({"fidelity": "fluid"} if run.compares_in_fluid(variant, first) else {}),
            }
    return out


def plain_json(value: Any) -> Any:
    """JSON's own types; NaN and infinities are absent (null)."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
