"""What a run found, in memory: one result per variant and seed, and what the whole run was about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pandas as pd

from sim.results.statistics import is_missing

Metrics = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One variant, simulated once.

    metrics  `<kind>.<workload>.<metric>` → number, None where there is none
    tables   name → data frame; read from disk on demand once the result is stored
    notes    plain JSON values that belong to the result and to no clock: `fidelity` (str), `cost_sources`
             (source of cost figures → share of the simulated time), `warnings` (list of sentences),
             `faults` (rows of the table of that name), `partial` (True when this very run was interrupted),
             `escalation` (under `fidelity: auto`: `because`, sentences; `stays`, why it is fluid all the same, or
             None; `fluid`, the metrics of the fluid run that it replaces, or None), `awaits_packets` (True while the
             run that replaces it is to come)
    """

    name: str
    seed: int
    metrics: Metrics
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One set of circumstances of a run with axes: (axis, entry) of each, and the variant of each contender."""

    circumstances: tuple[tuple[str, str], ...]
    variants: dict[str, str]


@dataclass(slots=True)
class RunResults:
    """A run: its variants in the scenario's order, its seeds, and the results there are so far.

    partial       the run was interrupted: some (variant, seed) may be missing
    answer        the metric that answers the question, where the scenario names it
    ideal_variant the variant whose path policy is `ideal`, against which the network tax is taken; with axes the
                  contender
    axes          names of each axis' entries: variants are their product, the last axis fastest; its entries are the
                  contenders, the others the circumstances. Empty where variants are a plain list
    sides         side of each contender that is on one
    """

    scenario_name: str
    question: str | None
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    version: str
    calibration: str | None
    results: dict[tuple[str, int], VariantResult] = field(default_factory=dict)
    partial: bool = False
    answer: str | None = None
    ideal_variant: str | None = None
    scenario_text: str = ""
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)

    @property
    def contenders(self) -> tuple[str, ...]:
        """What is compared: the entries of the last axis, or the variants."""
        return list(self.axes.values())[-1] if self.axes else self.variants

    def cases(self) -> list[Case]:
        """Every set of circumstances, in the order of the variants; a plain list of variants is one case."""
        names = list(self.axes)[:-1]
        each = len(self.contenders)
        combinations = product(*(self.axes[name] for name in names))
        return [
            Case(
                tuple(zip(names, combination, strict=True)),
                dict(zip(self.contenders, self.variants[i * each : (i + 1) * each], strict=True)),
            )
            for i, combination in enumerate(combinations)
        ]

    def in_place_of(self, contender: str | None) -> dict[str, str]:
        """For each variant, the one under the same circumstances of that contender; empty where there is none."""
        return {
            variant: case.variants[contender]
            for case in self.cases()
            for variant in case.variants.values()
            if contender in case.variants
        }

    def metric_keys(self) -> list[str]:
        """All metric keys, in the order in which the results first name them."""
        keys: dict[str, None] = {}
        for variant in self.variants:
            for seed in self.seeds:
                result = self.results.get((variant, seed))
                if result is not None:
                    keys.update(dict.fromkeys(result.metrics))
        return list(keys)

    def values(self, variant: str, key: str) -> list[float | None]:
        """A metric over the seeds, in the order of the seeds; None where it is missing."""
        out: list[float | None] = []
        for seed in self.seeds:
            result = self.results.get((variant, seed))
            value = result.metrics.get(key) if result is not None else None
            out.append(None if is_missing(value) else value)
        return out

    def of_variant(self, variant: str) -> list[VariantResult]:
        """The finished results of a variant, in the order of the seeds."""
        return [self.results[variant, seed] for seed in self.seeds if (variant, seed) in self.results]

    def fidelity_of(self, variant: str) -> str | None:
        """What its figures come from."""
        results = self.of_variant(variant)
        return str(results[0].notes["fidelity"]) if results and "fidelity" in results[0].notes else None

    def escalation_of(self, variant: str) -> dict[str, Any] | None:
        """Why `fidelity: auto` ran it in packets, or not; None where the scenario said the fidelity."""
        results = self.of_variant(variant)
        return results[0].notes.get("escalation") if results else None

    def fluid_values(self, variant: str, key: str) -> list[float | None]:
        """A metric over the seeds as fluid had it, under `fidelity: auto`; None where there is no fluid run."""
        out: list[float | None] = []
        for seed in self.seeds:
            result = self.results.get((variant, seed))
            value = None if result is None else _fluid_metrics(result).get(key)
            out.append(None if is_missing(value) else value)
        return out

    def compares_in_fluid(self, a: str, b: str) -> bool:
        """Whether `fidelity: auto` left the two at different fidelities, so that what both have is fluid."""
        is_auto = self.escalation_of(a) is not None and self.escalation_of(b) is not None
        return is_auto and self.fidelity_of(a) != self.fidelity_of(b)

    def mixes_fidelities(self, variants: Sequence[str]) -> bool:
        """Whether any two of these compare in fluid."""
        return len({self.fidelity_of(name) for name in variants if self.escalation_of(name) is not None}) > 1

    def paired(self, a: str, b: str, key: str) -> tuple[list[float | None], list[float | None]]:
        """A metric of two variants, to be compared: of one fidelity, packets where both have them."""
        if self.compares_in_fluid(a, b):
            return self.fluid_values(a, key), self.fluid_values(b, key)
        return self.values(a, key), self.values(b, key)

    def comparable(self) -> RunResults:
        """The run without results that were cut short: two variants cut at different times do not compare.

        A run of a single variant compares nothing and stays as it is.
        """
        if len(self.variants) == 1:
            return self
        whole = {key: result for key, result in self.results.items() if _is_whole(result)}
        return replace(self, results=whole)

    @property
    def num_expected(self) -> int:
        return len(self.variants) * len(self.seeds)

    @property
    def num_finished(self) -> int:
        """Results that ran to their end; one that was interrupted is there but does not count."""
        return sum(map(_is_whole, self.results.values()))


def _is_whole(result: VariantResult) -> bool:
    return not (result.notes.get("partial") or result.notes.get("awaits_packets"))


def _fluid_metrics(result: VariantResult) -> Metrics:
    if result.notes.get("fidelity") == "fluid":
        return result.metrics
    return (result.notes.get("escalation") or {}).get("fluid") or {}


def add_network_tax(run: RunResults) -> None:
    """Set `serving.<name>.network_tax` on every result that has an ideal twin of the same seed.

        network_tax = p99_itl_ms / (p99_itl_ms of the ideal variant, same seed) - 1

    None where either is missing or the ideal one is 0. Does nothing without an ideal variant.
    """
    if run.ideal_variant is None:
        return
    ending = ".p99_itl_ms"
    ideal_of = run.in_place_of(run.ideal_variant)
    for (variant, seed), result in run.results.items():
        ideal = run.results.get((ideal_of.get(variant, ""), seed))
        for key in [k for k in result.metrics if k.startswith("serving.") and k.endswith(ending)]:
            own = result.metrics[key]
            best = ideal.metrics.get(key) if ideal is not None else None
            if ideal is not None and run.compares_in_fluid(result.name, ideal.name):
                best = None
            tax = None if own is None or best is None or not best > 0 else own / best - 1
            result.metrics[key.removesuffix(ending) + ".network_tax"] = tax
