"""What a capacity search is asked, read from its options and checked before anything runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from sim.capacity_probe import LATENCIES, serving_workload, written_rate
from sim.scenario import build
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_server import Server
from sim.scenario.errors import Place, Refused, ScenarioError, suggestion
from sim.scenario.estimate import check_cost, estimate
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched: the workload's name, upper bounds of its latencies in ms, and dollars per accelerator-hour."""

    loaded: LoadedScenario
    workload: str
    targets: dict[str, float]
    tolerance: float
    prices: dict[str, float]
    """By variant; empty where no price is given."""
    rates_per_s: dict[str, float]
    """As the scenario says, by variant: where the search begins."""


def question_of(
    loaded: LoadedScenario, targets: Sequence[str], workload: str | None, tolerance: str, price: str | None
) -> Question:
    """Reads and checks a search. Raises Refused for what cannot be searched, ScenarioError where a run would."""
    percent = tolerance.endswith("%")
    share = _positive(tolerance.removesuffix("%"), f"--tolerance {tolerance}", "write for example --tolerance 2%")
    share = share / 100 if percent else share
    if not 0.001 <= share <= 1:
        raise ScenarioError.at(Place(f"--tolerance {tolerance}"), "is not from 0.1% to 100%; 2% is usual")
    name = workload_name(loaded, workload)
    bounds = target_bounds(loaded, name, targets)
    for label, scenario in loaded.variants:
        if scenario.fidelity == "auto":
            sentence = f"variant '{label}' has fidelity: auto, which decides by the tables of its runs"
            raise Refused(f"{sentence}, and a search keeps none; write fidelity: packet, or fluid")
    build.check(loaded)
    check_cost(estimate(loaded), None)
    rates: dict[str, float] = {}
    for label, scenario in loaded.variants:
        w = serving_workload(scenario, name)
        if w.has_reacting_clients:
            raise Refused(
                f"the clients of '{name}' react to what they get, so that its rate is no given thing to search; give "
                "it arrivals by a law or a trace, and neither client.timeout nor sessions"
            )
        if w.trace is None and w.num_requests is None:
            raise Refused(
                f"'{name}' ends after a duration, in which another rate brings another number of requests; give it "
                f"num_requests, for example by --set workloads.{name}.num_requests=2000"
            )
        rate = written_rate(scenario, name, loaded.seeds[0])
        if rate is None:
            raise Refused(
                f"the trace of '{name}' has all its requests at one instant, so that it has no rate to search; give "
                "it arrivals: {kind: poisson, rate: 1 /s}"
            )
        rates[label] = rate
    return Question(loaded, name, bounds, share, {} if price is None else prices_of(loaded, name, price), rates)


def target_bounds(loaded: LoadedScenario, workload: str, targets: Sequence[str]) -> dict[str, float]:
    """`p99_itl_ms=50`, or of one tenant `<tenant>.p99_itl_ms=50`, as bounds in ms by name."""
    tenants = [
        tenant.name for tenant in serving_workload(loaded.variants[0][1], workload).tenants
        if all(tenant.name in {t.name for t in serving_workload(s, workload).tenants} for _, s in loaded.variants)
    ]  # fmt: skip
    bounds: dict[str, float] = {}
    for target in targets:
        name, _, text = target.partition("=")
        tenant, dot, latency = name.rpartition(".")
        if latency not in LATENCIES:
            raise ScenarioError.at(
                Place(f"--target {target}"), f"'{latency}' is no latency that a serving workload reports; choose one "
                f"of {', '.join(LATENCIES)}",
            )  # fmt: skip
        if dot and tenant not in tenants:
            sentence = f"'{workload}' has no tenant '{tenant}'; {suggestion(tenant, tenants)}"
            raise ScenarioError.at(Place(f"--target {target}"), sentence)
        if name in bounds:
            raise ScenarioError.at(Place(f"--target {target}"), f"bounds {name} twice; give each once")
        bounds[name] = _positive(text, f"--target {target}", f"write for example --target {name}=50, in ms")
    return bounds


def _positive(text: str, option: str, remedy: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ScenarioError.at(Place(option), f"'{text}' is no positive number; {remedy}")
    return value


def workload_name(loaded: LoadedScenario, asked: str | None) -> str:
    """The serving workload of that name, or the only one. Raises Refused where a variant has no such one."""
    common = [
        name for name in dict.fromkeys(w.name for w in loaded.variants[0][1].workloads)
        if all(any(isinstance(w, Serving) and w.name == name for w in s.workloads) for _, s in loaded.variants)
    ]  # fmt: skip
    if not common:
        raise Refused("no workload serves a model in every variant; only a serving workload has a rate to search")
    if asked is not None and asked not in common:
        raise Refused(f"--workload {asked}: no serving workload of that name; {suggestion(asked, common)}")
    if asked is None and len(common) > 1:
        raise Refused(f"several workloads serve a model; say whose rate to search: --workload {' or '.join(common)}")
    return common[0] if asked is None else asked


def prices_of(loaded: LoadedScenario, workload: str, text: str) -> dict[str, float]:
    """`2.5`, or `h200=2.5,h100=2`: dollars per accelerator-hour of each variant, of pools of two kinds the mean."""
    of = {label: _kinds(scenario, workload) for label, scenario in loaded.variants}
    remedy = "write for example --price 2.5, or --price h200=2.5,h100=2"
    if "=" not in text:
        return dict.fromkeys(of, _positive(text, f"--price {text}", remedy))
    known = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        known[name.strip()] = _positive(value, f"--price {text}", remedy)
    if missing := [name for name in dict.fromkeys(chain.from_iterable(of.values())) if name not in known]:
        raise Refused(f"--price {text} says nothing of {', '.join(missing)}; {remedy}")
    return {
        label: sum(known[name] * num for name, num in kinds.items()) / kinds.total() for label, kinds in of.items()
    }


def _kinds(scenario: Scenario, workload: str) -> Counter[str]:
    """How many accelerators of each kind serve the workload."""
    kinds: Counter[str] = Counter()
    for _, pool in _server(scenario, workload).pools:
        kinds[pool.host.accelerator] += pool.w.num_accelerators
    return kinds


def _server(scenario: Scenario, workload: str) -> Server:
    return Server(scenario, serving_workload(scenario, workload), build_topology(scenario.cluster))
