"""From a scenario to the objects that simulate it.

Here, in `build_cluster` and in `build_server`, and nowhere else, names become classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.cost.build import check_scale
from models.units import format_bytes
from sim.collectives.workload import CollectiveWorkload
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.fabric.faults import Faults
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.message_fabric import MessageFabric
from sim.fabric.packet import PacketFabric
from sim.fabric.topology import Topology, TopologyError
from sim.results.links import link_metrics
from sim.scenario import traffic as schema
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_faults import build_fault
from sim.scenario.build_laws import longer_length
from sim.scenario.build_packets import packet_settings
from sim.scenario.build_server import Server
from sim.scenario.errors import ScenarioError, suggestion
from sim.scenario.explain import problem_at
from sim.scenario.fabrics import Htsim
from sim.scenario.load import LoadedScenario
from sim.scenario.message_counts import MOST_BYTES
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving
from sim.training.workload import TrainingWorkload
from sim.workload import matrix, open_load, patterns, sizes
from sim.workload.traffic import TrafficWorkload


@dataclass(frozen=True, slots=True)
class Simulation:
    """One variant with one seed, ready to start. notes: what of the scenario's files has no effect."""

    scenario: Scenario
    clock: Clock
    topology: Topology
    fabric: MessageFabric
    workloads: tuple[Any, ...]
    faults: Faults
    notes: tuple[str, ...] = ()


def check(loaded: LoadedScenario) -> None:
    """Find before anything runs what only building shows: a model that does not fit, a broken row of a trace.

    Raises ScenarioError with file, line, field and remedy.
    """
    for label, scenario in loaded.variants:
        try:
            topology = build_topology(scenario.cluster)
        except TopologyError as error:
            raise loaded.error(label, ("cluster", "fabric"), str(error)) from error
        for path, trial in _trials(scenario, topology, loaded.seeds):
            try:
                trial()
            except ValueError as error:
                raise loaded.error(label, path, str(error)) from error
    if loaded.answer is not None:
        _check_answer(loaded, loaded.answer)


Trial = tuple[tuple[str | int, ...], Callable[[], object]]
"""The path of what is wrong if the call raises a ValueError."""


def _trials(scenario: Scenario, topology: Topology, seeds: Sequence[int]) -> Iterator[Trial]:
    """Everything that building may refuse."""
    servers: list[Server] = []
    for i, w in enumerate(scenario.workloads):
        at = ("workloads", i)
        if isinstance(w, Serving):
            server = Server(scenario, w, topology)
            for where, pool in server.pools:
                servers.append(pool)
                yield (*at, "adapters"), pool.check_adapters
                yield (*at, *(where or ("model",))), pool.memory_plan
                yield ("cost", "table"), pool.measured
                yield (*at, "kv", "block_size"), pool.check_contents
            yield (*at, "experts"), server.check_experts
            yield (*at, "contention"), server.check_contention
            for place, lengths in server.length_laws():
                yield (*at, *place, *longer_length(lengths)), partial(server.check_lengths, lengths)
            source = "trace" if w.trace is not None else "num_requests" if w.duration_s is None else "duration"
            yield (*at, source), partial(_draw_all, server.arrivals, seeds)
            yield (*at, "kv", "swap_space"), server.swap
            for number in range(len(w.kv.tiers)):
                yield (*at, "kv", "tiers", number, "capacity"), partial(server.tier, number)
            yield (*at, "batching", "policy"), partial(server.check_batch, RandomStreams(seeds[0]))
        elif isinstance(w, schema.Poisson):
            yield (*at, "sizes", "file" if w.sizes.law == "file" else "law"), partial(_size_law, w.sizes)
            yield (*at, "duration"), partial(_draw_all, partial(_sources, scenario, w, topology), seeds)
        elif not isinstance(w, schema.Collective | schema.Training):
            field = "file" if isinstance(w, schema.Matrix) else "pattern"
            yield (*at, field), partial(_sources, scenario, w, topology, RandomStreams(seeds[0]))
    if scenario.fidelity != "fluid":
        yield ("packet", "buffer", "shared"), partial(packet_settings, scenario, topology)
    for i, fault in enumerate(scenario.faults):
        yield ("faults", i, "rate"), partial(build_fault, fault, topology)
    if scenario.cost.scale:
        yield ("cost", "scale"), partial(_check_scale, scenario, servers)


FEW = 1000
"""Where this many were drawn, chance leaves none with a probability of about e^-1000, whatever the seed."""


def _draw_all(draw: Callable[[RandomStreams], np.ndarray], seeds: Sequence[int]) -> None:
    """Draw with the first seed, and with all of them where another might draw nothing."""
    first, *others = seeds
    if len(draw(RandomStreams(first))) < FEW:
        for seed in others:
            draw(RandomStreams(seed))


def _sources(scenario: Scenario, w: Any, topology: Topology, streams: RandomStreams) -> np.ndarray:
    """Who sends each message of a traffic workload. Raises ValueError where there are too many bytes to count."""
    graph = _traffic_graph(scenario, w, topology, streams.stream(f"workload.{w.name}"))
    num_bytes = float(graph.size_bytes.sum(dtype=np.float64)) * getattr(w, "repeat", 1)
    if num_bytes > MOST_BYTES:
        raise ValueError(
            f"it moves {format_bytes(num_bytes)} in all, more than the {format_bytes(MOST_BYTES)} that the counters "
            "hold; make its flows smaller, or repeat it less"
        )
    return graph.source


def _check_scale(scenario: Scenario, servers: Sequence[Server]) -> None:
    """Raises ValueError for a scaled operator that no model has."""
    if not servers:
        raise ValueError("no workload serves a model, so there is no operator to scale; leave it out")
    check_scale(scenario.cost.scale, [name for server in servers for name in server.operator_names()])


def _check_answer(loaded: LoadedScenario, answer: str) -> None:
    """Refuses a metric that no run of the scenario can have: the workloads know their metrics before they run."""
    known: dict[str, None] = {}
    scenarios = [scenario for _, scenario in loaded.variants]
    autos = [s for s in scenarios if s.fidelity == "auto" and not any(s.why_not("packet"))]
    for scenario in [*scenarios, *(s.in_fidelity("packet") for s in autos)]:
        simulation = build(scenario, loaded.seeds[0])
        for w in simulation.workloads:
            known |= dict.fromkeys(f"{w.kind}.{w.name}.{metric}" for metric in w.metrics())
        known |= dict.fromkeys(link_metrics(simulation.topology, simulation.fabric, 0.0))
        if any(other.paths.policy == "ideal" for _, other in loaded.variants):
            known |= {f"serving.{w.name}.network_tax": None for w in simulation.workloads if w.kind == "serving"}
        if answer in known:
            return
    sentence = f"no run has the metric '{answer}'; {suggestion(answer, known)}"
    raise ScenarioError([problem_at(loaded.trees[loaded.variants[0][0]], ("answer",), sentence)])


def build(scenario: Scenario, seed: int) -> Simulation:
    """All objects of a run. The same seed gives every variant the same random numbers by name."""
    clock = Clock()
    streams = RandomStreams(seed)
    topology = build_topology(scenario.cluster)
    fabric = _fabric(scenario, topology, clock, streams.integer("paths"))
    workloads = tuple(_workload(scenario, w, topology, clock, fabric, streams) for w in scenario.workloads)
    faults = [build_fault(fault, topology) for fault in scenario.faults]
    cluster_fabric = scenario.cluster.fabric
    notes: list[str] = []
    if isinstance(cluster_fabric, Htsim):
        has_own = scenario.packet.buffer is not None or scenario.packet.is_lossless
        notes = cluster_fabric.notes(scenario.first_fidelity == "packet", has_own)
    return Simulation(
        scenario, clock, topology, fabric, workloads, Faults(clock, fabric, faults, scenario.paths.convergence_s),
        tuple(notes),
    )  # fmt: skip


def _fabric(scenario: Scenario, topology: Topology, clock: Clock, seed: int) -> MessageFabric:
    paths, packet = scenario.paths, scenario.packet
    options: dict[str, Any] = {
        "seed": seed,
        "subflows": getattr(paths, "subflows", 1),
        "window_s": getattr(paths, "window_s", None),
        "jitter_s": getattr(paths, "jitter_s", None),
    }
    if scenario.first_fidelity == "packet":
        return PacketFabric(clock, topology, paths.policy, settings=packet_settings(scenario, topology), **options)
    fluid = FluidSettings(packet.mtu_bytes, packet.header_bytes, scenario.fluid.tolerance, paths.fairness)
    return FluidFabric(clock, topology, paths.policy, settings=fluid, **options)


# --- workloads ------------------------------------------------------------------------------------------------------


def _workload(
    scenario: Scenario, w: Any, topology: Topology, clock: Clock, fabric: MessageFabric, streams: RandomStreams
) -> Any:
    rng = streams.stream(f"workload.{w.name}")
    if isinstance(w, Serving):
        return Server(scenario, w, topology).workload(clock, fabric, streams)
    ranks = np.array(scenario.ranks_of(w), dtype=np.int64)
    common = {"clock": clock, "fabric": fabric, "rng": rng, "start_s": w.start_s, "jitter_s": w.jitter_s}
    if isinstance(w, schema.Collective | schema.Training):
        common |= {
            "chunk_bytes": w.chunk_bytes, "hierarchical": w.hierarchical, "queue_pairs": w.queue_pairs,
            "host_of_accelerator": topology.host_of_accelerator,
        }  # fmt: skip
    if isinstance(w, schema.Collective):
        return CollectiveWorkload(
            w.name, w.operation, w.algorithm, ranks, w.size_bytes, repeat=w.repeat, gap_s=w.gap_s, **common
        )
    if isinstance(w, schema.Training):
        return TrainingWorkload(
            w.name, ranks, w.compute_s, w.operation, w.algorithm, w.size_bytes, steps=w.steps, **common
        )
    graph = _traffic_graph(scenario, w, topology, rng)
    if isinstance(w, schema.Poisson):
        packet = scenario.packet
        ideal_s = open_load.ideal_fct_s(
            graph, topology, mtu_bytes=packet.mtu_bytes, header_bytes=packet.header_bytes
        )
        return TrafficWorkload(w.name, graph, ideal_fct_s=ideal_s, **common)
    return TrafficWorkload(w.name, graph, repeat=w.repeat, gap_s=w.gap_s, **common)


def _traffic_graph(scenario: Scenario, w: Any, topology: Topology, rng: np.random.Generator) -> Any:
    ranks = np.array(scenario.ranks_of(w), dtype=np.int64)
    common = {"queue_pairs": w.queue_pairs, "owner": w.name}
    leaves = patterns.home_leaf(topology.host_of_accelerator, topology.leaf_of_accelerator)
    match w:
        case schema.Permutation():
            return patterns.permutation(
                ranks, w.size_per_flow_bytes, rng=rng, leaf_of_accelerator=leaves, cross_leaf=w.cross_leaf, **common
            )
        case schema.Shift():
            return patterns.shift(
                ranks, w.size_per_flow_bytes, leaf_of_accelerator=leaves, leaves_by=w.leaves_by, **common
            )
        case schema.Incast():
            return patterns.incast(ranks, w.size_per_flow_bytes, receiver=w.receiver, fan_in=w.fan_in, **common)
        case schema.AllToAll():
            return patterns.all_to_all(ranks, w.size_per_flow_bytes, **common)
        case schema.Matrix():
            return patterns.matrix(ranks, matrix.read_matrix(w.file), **common)
        case schema.Poisson():
            nics = np.unique(topology.nic_of_accelerator[ranks])
            return open_load.poisson(
                ranks,
                _size_law(w.sizes),
                load=w.load,
                duration_s=w.duration_s,
                total_host_link_bytes_per_s=float(topology.nic_rate[nics].sum()),
                host_of_accelerator=topology.host_of_accelerator,
                rng=rng,
                mtu_bytes=scenario.packet.mtu_bytes,
                header_bytes=scenario.packet.header_bytes,
                **common,
            )
    raise TypeError(f"no traffic pattern for {type(w).__name__}")


def _size_law(law: Any) -> sizes.SizeLaw:
    match law:
        case schema.FixedSizes():
            return sizes.fixed(law.size_bytes)
        case schema.UniformSizes():
            return sizes.uniform(law.low_bytes, law.high_bytes)
        case schema.LognormalSizes():
            return sizes.lognormal(law.mean_bytes, law.sigma)
        case schema.ParetoSizes():
            return sizes.pareto(law.mean_bytes, law.shape)
        case schema.FileSizes():
            return sizes.from_file(law.file)
    raise TypeError(f"no size law for {type(law).__name__}")
