"""`spindle tax`: what the fabric costs a serving workload under each path policy, against an unlimited one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.fabric.policies import PATH_POLICIES
from sim.results.run_results import RunResults
from sim.results.statistics import mean_interval
from sim.scenario.checks import crosses_fabric
from sim.scenario.errors import Place, Refused, ScenarioError, suggestion
from sim.scenario.load import LoadedScenario, load_scenario
from sim.scenario.serving import Serving

SAME_AS_SPRAY = ("spray_switch",)
"""In fluid these are `spray` itself, so that they are left out unless asked for."""


@dataclass(frozen=True, slots=True)
class TaxQuestion:
    """A scenario whose variants are path policies, the ideal one first, and the workload that pays."""

    loaded: LoadedScenario
    workload: str


def tax_question(
    scenario: Path,
    policies: str | None,
    workload: str | None,
    settings: Sequence[str] = (),
    small: bool = False,
    seed: int | None = None,
    seeds: int | None = None,
) -> TaxQuestion:
    """The scenario under `ideal` and each policy, in place of its own `compare`.

    policies   names between commas; None: each that the scenario's fidelity can express
    workload   the serving workload; None: the only one that crosses the fabric
    A policy that the scenario itself has keeps its parameters. The workload's contention is told apart.
    Raises Refused where nothing crosses the fabric or it is not clear whose tax is asked for, ScenarioError for what
    is wrong with the scenario or a policy.
    """

    def load(names: Sequence[str]) -> LoadedScenario:
        entries = ", ".join(f"{{name: {name}, paths: {{policy: {name}}}}}" for name in names)
        return load_scenario(scenario, [*settings, f"compare=[{entries}]"], small, seed, seeds)

    if policies is None:
        base = load(["ideal"])
        is_fluid = base.variants[0][1].first_fidelity == "fluid"
        names = [
            name for name in PATH_POLICIES
            if name != "ideal" and not (is_fluid and name in SAME_AS_SPRAY) and _is_expressible(load, name)
        ]  # fmt: skip
    else:
        names = [name.strip() for name in policies.split(",") if name.strip()]
        for name in names:
            if name not in PATH_POLICIES or name == "ideal":
                why = "is what the others are compared with" if name == "ideal" else "is no path policy"
                others = [other for other in PATH_POLICIES if other != "ideal"]
                raise ScenarioError.at(Place(f"--policies {policies}"), f"'{name}' {why}; {suggestion(name, others)}")
        if not names or len(set(names)) < len(names):
            raise ScenarioError.at(Place(f"--policies {policies}"), "names no policy, or one twice; give each once")
    loaded = load(["ideal", *names])
    name = _payer(loaded, workload)
    variants = []
    for label, each in loaded.variants:
        workloads = tuple(
            w.model_copy(update={"contention": True}) if w.name == name else w for w in each.workloads
        )
        variants.append((label, each.model_copy(update={"workloads": workloads})))
    question = f"What does the fabric cost {name}, and which path policy costs it least?"
    return TaxQuestion(
        replace(loaded, variants=variants, answer=f"serving.{name}.network_tax", question=question,
                axes={}, sides={}),
        name,
    )  # fmt: skip


def _is_expressible(load: Any, name: str) -> bool:
    try:
        load([name])
    except ScenarioError:
        return False
    return True


def _payer(loaded: LoadedScenario, workload: str | None) -> str:
    scenario = loaded.variants[0][1]
    served = [w for w in scenario.workloads if isinstance(w, Serving)]
    crossing = [w.name for w in served if crosses_fabric(scenario.cluster, w, list(scenario.ranks_of(w)))]
    if workload is not None:
        if workload not in crossing:
            sentence = f"'{workload}' is no serving workload that crosses the fabric"
            raise ScenarioError.at(Place(f"--workload {workload}"), f"{sentence}; {suggestion(workload, crossing)}")
        return workload
    if not crossing:
        raise Refused(
            f"{loaded.path}: no serving workload crosses the fabric, so that none pays for it; spread a mixture's "
            "experts with parallelism: {expert: N}, or stages of layers over hosts with {pipeline: N}"
        )
    if len(crossing) > 1:
        names = ", ".join(crossing)
        raise Refused(f"{loaded.path}: several serving workloads cross the fabric, {names}; give one, --workload NAME")
    return crossing[0]


def tax_rows(run: RunResults, workload: str) -> list[dict[str, Any]]:
    """A row per policy: means over the seeds, and the 95 % interval of the tax where there are several.

        network_tax = p99_itl_ms / (p99_itl_ms under ideal, same seed) - 1

    contention_share: of the mean end-to-end latency.
    """
    rows = []
    for variant in run.variants:
        p99_itl, tax, e2el, contention = (
            mean_interval(run.values(variant, f"serving.{workload}.{metric}"))
            for metric in ("p99_itl_ms", "network_tax", "mean_e2el_ms", "mean_fabric_contention_ms")
        )
        row: dict[str, Any] = {"policy": variant, "p99_itl_ms": p99_itl.mean, "network_tax": tax.mean}
        if len(run.seeds) > 1:
            row["ci95"] = None if tax.low is None else [tax.low, tax.high]
        share = None if contention.mean is None or not e2el.mean else contention.mean / e2el.mean
        rows.append(row | {"mean_e2el_ms": e2el.mean, "contention_share": share})
    return rows


def shown_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for people."""
    shown = []
    for row in rows:
        interval = row.get("ci95")
        around = "" if not interval else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        tax, share = row["network_tax"], row["contention_share"]
        shown.append({
            "policy": row["policy"],
            "p99 time between tokens (ms)": row["p99_itl_ms"],
            "network tax (%)": None if tax is None else f"{100 * tax:.1f}{around}",
            "mean end-to-end latency (ms)": row["mean_e2el_ms"],
            "of which contention (%)": None if share is None else f"{100 * share:.1f}",
        })  # fmt: skip
    return shown
