"""What `spindle size` is asked: the candidates of each variant, and what closed forms say of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from models.memory import DoesNotFit
from sim.capacity_probe import serving_workload
from sim.capacity_question import Question, prices_of, target_bounds, workload_name
from sim.results.metrics import number
from sim.scenario import build
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_server import Server
from sim.scenario.errors import Place, Refused, ScenarioError
from sim.scenario.load import LoadedScenario, load_scenario
from sim.scenario.replicas import Degrees
from sim.scenario.schema import Scenario
from sim.serving.load import GROWTH
from sim.size import Candidate
from sim.size_bounds import Floors, floors_of

MOST_CANDIDATES = 2000
REPLICAS = "replicas"

_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclass(frozen=True, slots=True)
class Axis:
    """Values of one key: a degree of parallelism, replicas, or any key of the scenario, dotted."""

    key: str
    values: tuple[str, ...]

    def setting(self, workload: str, value: str) -> str:
        """As --set takes it."""
        if "." in self.key:
            return f"{self.key}={value}"
        return f"workloads.{workload}.{'' if self.key == REPLICAS else 'parallelism.'}{self.key}={value}"


@dataclass(frozen=True, slots=True)
class Ruling:
    """A candidate that need not be simulated, and why. short: a word for the figure."""

    short: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sized:
    """One candidate: replicas of a shape, in one variant.

    scenario, loaded   None where the scenario cannot be so; then ruling says why
    floors             of the latencies, in ms, what closed forms know
    """

    candidate: Candidate
    shape: str
    num_accelerators: int | None
    dollars_per_hour: float | None
    loaded: LoadedScenario | None
    ruling: Ruling | None
    floors: dict[str, float]


@dataclass(frozen=True, slots=True)
class SizeQuestion:
    """What is searched; candidates by variant, those of a shape by rising replicas."""

    loaded: LoadedScenario
    workload: str
    targets: dict[str, float]
    candidates: dict[str, list[Sized]]

    def of_candidate(self, sized: Sized) -> Question:
        """The question whose judgement is that of a rate in a capacity search."""
        assert sized.loaded is not None
        prices = {}
        if sized.dollars_per_hour is not None and sized.num_accelerators:
            prices = {label: sized.dollars_per_hour / sized.num_accelerators for label, _ in sized.loaded.variants}
        return Question(sized.loaded, self.workload, self.targets, 1.0, prices, {})


def size_question(
    path: Path,
    overs: Sequence[str],
    targets: Sequence[str],
    workload: str | None,
    price: str | None,
    by_cost: bool,
    settings: Sequence[str] = (),
    small: bool = False,
    seed: int | None = None,
    seeds: int | None = None,
) -> SizeQuestion:
    """Reads and checks everything. Raises Refused for what cannot be searched, ScenarioError where a run would, and
    where no candidate can be built at all."""
    loaded = load_scenario(path, settings, small, seed, seeds)
    name = workload_name(loaded, workload)
    bounds = target_bounds(loaded, name, targets) or _promised(loaded, name)
    if not bounds:
        raise Refused(
            f"nothing to hold: give --target p99_itl_ms=50, or the workload '{name}' targets: {{p99_itl_ms: 50}}"
        )
    if by_cost and price is None:
        raise Refused("--by cost needs --price, such as --price 2.5 or --price h200=2.5,h100=2")
    for label, scenario in loaded.variants:
        if scenario.fidelity == "auto":
            raise Refused(f"variant '{label}' has fidelity: auto; a search keeps no tables: write packet, or fluid")
        w = serving_workload(scenario, name)
        if w.client.timeout_s is not None:
            sentence = f"requests of '{name}' may be given up, and what is given up has no latency to hold"
            raise Refused(f"{sentence}; leave client.timeout out")
        if w.autoscale is not None:
            raise Refused(f"autoscale says how many replicas '{name}' has; leave it out to have them searched")
    axes = [_axis(over) for over in overs]
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ScenarioError.at(Place(f"--over {twice}"), "is given twice; give each key once")
    shapes = [axis for axis in axes if axis.key != REPLICAS] or _usual_shapes(loaded, name)
    replicas = next((axis for axis in axes if axis.key == REPLICAS), None)
    num_accelerators = max(scenario.cluster.num_accelerators for _, scenario in loaded.variants)
    counts = [int(v) for v in replicas.values] if replicas is not None else list(range(1, num_accelerators + 1))
    num = len(counts)
    for axis in shapes:
        num *= len(axis.values)
    if num > MOST_CANDIDATES:
        raise Refused(f"--over names {num} candidates, more than {MOST_CANDIDATES}; leave values out")
    candidates: dict[str, list[Sized]] = {label: [] for label, _ in loaded.variants}
    refusals: list[ScenarioError] = []
    for shape, values in enumerate(product(*(axis.values for axis in shapes))):
        chosen = [axis.setting(name, value) for axis, value in zip(shapes, values, strict=True)]
        words = ", ".join(f"{axis.key.rpartition('.')[2]} {value}" for axis, value in zip(shapes, values, strict=True))
        known: dict[str, tuple[Floors, Ruling | None]] = {}
        most = num_accelerators if replicas is None else math.inf
        for count in sorted(set(counts)):
            if count > most:
                break
            try:
                own = load_scenario(
                    path, [*settings, *chosen, f"workloads.{name}.{REPLICAS}={count}"], small, seed, seeds
                )
            except ScenarioError as error:
                if replicas is None and known:
                    continue  # a count that nobody asked for
                refusals.append(error)
                for each in candidates.values():
                    candidate = Candidate(shape, count, ())
                    refused = Ruling("refused", error.problems[0].sentence)
                    each.append(Sized(candidate, words, None, None, None, refused, {}))
                continue
            if not known:
                known = _known(own, name, bounds)
                each_needs = min(serving_workload(s, name).parallelism.num_accelerators for _, s in own.variants)
                most = min(most, num_accelerators // each_needs) if replicas is None else most
            prices = {} if price is None else prices_of(own, name, price)
            for label, scenario in own.variants:
                w = serving_workload(scenario, name)
                if w.replicas != count:
                    raise Refused(f"variant '{label}' sets its own replicas; leave them out to have them searched")
                dollars = None if price is None else prices[label] * w.num_accelerators
                order = (float(w.num_accelerators), dollars or 0.0)
                floors, ruling = known[label]
                candidates[label].append(Sized(
                    Candidate(shape, count, order[::-1] if by_cost else order), words, w.num_accelerators, dollars, own,
                    ruling or _too_slow(floors, bounds) or _too_few(floors, count), floors.latencies_ms,
                ))  # fmt: skip
    if refusals and all(sized.loaded is None for each in candidates.values() for sized in each):
        raise refusals[0]
    return SizeQuestion(loaded, name, bounds, candidates)


def _known(loaded: LoadedScenario, workload: str, targets: dict[str, float]) -> dict[str, tuple[Floors, Ruling | None]]:
    """What is known of a shape whatever its replicas, by variant. ScenarioError for what is no matter of size."""
    found: dict[str, tuple[Floors, Ruling | None]] = {}
    for label, scenario in loaded.variants:
        server = _server(scenario, workload)
        try:
            server.memory_plan()
        except DoesNotFit as error:
            found[label] = Floors({}, 0.0), Ruling("memory", str(error).partition(";")[0])
        except ValueError as error:  # a degree that does not divide, ranks of two kinds
            found[label] = Floors({}, 0.0), Ruling("refused", str(error))
    if len(found) < len(loaded.variants):
        if not found:
            build.check(loaded)
        for label, scenario in loaded.variants:
            if label not in found:
                found[label] = floors_of(_server(scenario, workload), loaded.seeds, targets), None
    return found


def _too_slow(floors: Floors, targets: dict[str, float]) -> Ruling | None:
    for name, least_ms in floors.latencies_ms.items():
        if least_ms > targets[name] * (1 + 1e-9):
            return Ruling("too slow", f"{name} is at least {least_ms:.4g} alone on the accelerator, above "
                                      f"{targets[name]:g}")  # fmt: skip
    return None


def _too_few(floors: Floors, replicas: int) -> Ruling | None:
    """More work than time; as much beyond as the judgement of a queue lets pass."""
    if floors.busy <= replicas * (1 + GROWTH):
        return None
    return Ruling("load", f"the load keeps at least {number(floors.busy, 2)} replicas busy, and there "
                          f"{'is' if replicas == 1 else 'are'} {replicas}")  # fmt: skip


def _promised(loaded: LoadedScenario, workload: str) -> dict[str, float]:
    """The targets of the first variant's workload and of its tenants."""
    w = serving_workload(loaded.variants[0][1], workload)
    if not w.tenants:
        return dict(w.targets)
    return {f"{t.name}.{name}": bound for t in w.tenants for name, bound in (w.targets | t.targets).items()}


def _server(scenario: Scenario, workload: str) -> Server:
    return Server(scenario, serving_workload(scenario, workload), build_topology(scenario.cluster))


def _axis(over: str) -> Axis:
    """`tensor=1,2,4`, `replicas=1..8`, or a dotted key of the scenario."""
    key, _, text = over.partition("=")
    key, place = key.strip(), Place(f"--over {over}")
    known = [*Degrees.model_fields, REPLICAS]
    if "." not in key and key not in known:
        raise ScenarioError.at(place, f"'{key}' is none of {', '.join(known)}, and no dotted key of the scenario, such "
                                      "as cluster.host.accelerator")  # fmt: skip
    values: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        span = _RANGE.fullmatch(part)
        if span is not None and int(span[1]) <= int(span[2]) < int(span[1]) + MOST_CANDIDATES:
            values += [str(v) for v in range(int(span[1]), int(span[2]) + 1)]
        else:
            values.append(part)
    is_count = key == REPLICAS or (key in known and isinstance(Degrees.model_fields[key].default, int))
    if not all(values) or (is_count and not all(re.fullmatch("[1-9][0-9]*", v) for v in values)):
        raise ScenarioError.at(place, "write for example --over tensor=1,2,4, or --over replicas=1..8")
    return Axis(key, tuple(dict.fromkeys(values)))


def _usual_shapes(loaded: LoadedScenario, workload: str) -> list[Axis]:
    """Tensor degrees 1, 2, 4 … of a host, with the other degrees as the scenario has them."""
    most = max(_server(scenario, workload).host.accelerators for _, scenario in loaded.variants)
    return [Axis("tensor", tuple(str(2**i) for i in range(most.bit_length())))]
