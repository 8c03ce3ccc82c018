"""From a scenario to the objects that simulate it: the only place that maps names to classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from models.architecture import ARCHITECTURES, Architecture
from models.cost.build import check_scale, operator_names, operator_scale, stage_tables, step_table
from models.experts import Popularity
from models.hardware import ACCELERATORS, Accelerator, Precision
from models.hugging_face import from_hugging_face
from models.memory import MemoryPlan, plan_memory
from models.parallelism import Parallelism
from models.units import format_bytes
from sim.collectives.workload import CollectiveWorkload
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.message_fabric import MessageFabric
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, LinkOverride, Topology, TopologyError, fat_tree, leaf_spine
from sim.results.links import link_metrics
from sim.scenario import traffic as schema
from sim.scenario.cluster import Cluster, FatTree, Host
from sim.scenario.cluster import Link as LinkSchema
from sim.scenario.errors import ScenarioError, suggestion
from sim.scenario.explain import problem_at
from sim.scenario.load import LoadedScenario
from sim.scenario.message_counts import MOST_BYTES
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.replica import EngineLimits
from sim.serving.workload import ServingWorkload
from sim.training.workload import TrainingWorkload
from sim.workload import matrix, open_load, patterns, sizes
from sim.workload.arrivals import arrival_times_s
from sim.workload.lengths import Fixed, Lognormal, Uniform
from sim.workload.traces import read_azure_trace
from sim.workload.traffic import TrafficWorkload


@dataclass(frozen=True, slots=True)
class Simulation:
    """One variant with one seed, ready to start."""

    scenario: Scenario
    clock: Clock
    topology: Topology
    fabric: MessageFabric
    workloads: tuple[Any, ...]


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
    servers: list[_Server] = []
    for i, w in enumerate(scenario.workloads):
        at = ("workloads", i)
        if isinstance(w, Serving):
            server = _Server(scenario, w, topology)
            servers.append(server)
            yield (*at, "model"), server.memory_plan
            yield (*at, "experts"), server.check_experts
            source = "trace" if w.trace is not None else "num_requests" if w.duration_s is None else "duration"
            yield (*at, source), partial(_draw_all, server.arrivals, seeds)
        elif isinstance(w, schema.Poisson):
            yield (*at, "sizes", "file" if w.sizes.law == "file" else "law"), partial(_size_law, w.sizes)
            yield (*at, "duration"), partial(_draw_all, partial(_sources, scenario, w, topology), seeds)
        elif not isinstance(w, schema.Collective | schema.Training):
            field = "file" if isinstance(w, schema.Matrix) else "pattern"
            yield (*at, field), partial(_sources, scenario, w, topology, RandomStreams(seeds[0]))
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


def _check_scale(scenario: Scenario, servers: Sequence[_Server]) -> None:
    """Raises ValueError for a scaled operator that no model has."""
    if not servers:
        raise ValueError("no workload serves a model, so there is no operator to scale; leave it out")
    check_scale(scenario.cost.scale, [name for server in servers for name in server.operator_names()])


def _check_answer(loaded: LoadedScenario, answer: str) -> None:
    """Refuses a metric that no run of the scenario can have: the workloads know their metrics before they run."""
    known: dict[str, None] = {}
    for _, scenario in loaded.variants:
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
    return Simulation(scenario, clock, topology, fabric, workloads)


def _fabric(scenario: Scenario, topology: Topology, clock: Clock, seed: int) -> MessageFabric:
    paths, packet = scenario.paths, scenario.packet
    options: dict[str, Any] = {
        "seed": seed,
        "subflows": getattr(paths, "subflows", 1),
        "window_s": getattr(paths, "window_s", None),
        "jitter_s": getattr(paths, "jitter_s", None),
    }
    if scenario.fidelity == "packet":
        size, unit = packet.transport.window
        settings = PacketSettings(
            packet.mtu_bytes,
            packet.header_bytes,
            window_bdp=size,
            window_packets=int(size) if unit == "packets" else None,
            ack_every=packet.transport.ack_every,
        )
        return PacketFabric(clock, topology, paths.policy, settings=settings, **options)
    fluid = FluidSettings(packet.mtu_bytes, packet.header_bytes, scenario.fluid.tolerance, paths.fairness)
    return FluidFabric(clock, topology, paths.policy, settings=fluid, **options)


# --- cluster ----------------------------------------------------------------------------------------------------------


def build_topology(cluster: Cluster) -> Topology:
    f = cluster.fabric
    hosts = [_host_kind(kind, count) for kind, count in cluster.host_groups]
    overrides = {o.link: LinkOverride(o.rate_bytes_per_s, o.latency_s) for o in f.links}
    if isinstance(f, FatTree):
        return fat_tree(
            pods=f.pods, edges_per_pod=f.edges_per_pod, aggregations_per_pod=f.aggregations_per_pod, cores=f.cores,
            hosts_per_edge=f.hosts_per_edge, host_link=_link(f.host_link), edge_link=_link(f.edge_link),
            core_link=_link(f.core_link), hosts=hosts, overrides=overrides,
        )  # fmt: skip
    return leaf_spine(
        leaves=f.leaves, spines=f.spines, hosts_per_leaf=f.hosts_per_leaf, host_link=_link(f.host_link),
        spine_link=_link(f.spine_link), hosts=hosts, lanes=f.lanes, planes=f.planes, attach=f.attach,
        overrides=overrides,
    )  # fmt: skip


def _link(link: LinkSchema) -> Link:
    return Link(link.rate_bytes_per_s, link.latency_s)


def _accelerator(host: Host) -> Accelerator:
    """The preset, with the host's own NVLink figures where the scenario gives them."""
    preset = ACCELERATORS[host.accelerator]
    rate, latency = host.nvlink.rate_bytes_per_s, host.nvlink.latency_s
    return replace(
        preset,
        nvlink_bytes_per_s=preset.nvlink_bytes_per_s if rate is None else rate,
        nvlink_latency_s=preset.nvlink_latency_s if latency is None else latency,
    )


def _host_kind(host: Host, count: int) -> HostKind:
    accelerator = _accelerator(host)
    return HostKind(
        count,
        host.accelerators,
        host.nics,
        Link(accelerator.nvlink_bytes_per_s, accelerator.nvlink_latency_s),
        host.nic.injection_rate_bytes_per_s,
        host.nic.message_overhead_s,
        host.nic.segment_bytes,
        getattr(host, "name", "host"),
        host.accelerator,
    )


# --- workloads --------------------------------------------------------------------------------------------------------


def _workload(
    scenario: Scenario, w: Any, topology: Topology, clock: Clock, fabric: MessageFabric, streams: RandomStreams
) -> Any:
    rng = streams.stream(f"workload.{w.name}")
    if isinstance(w, Serving):
        return _Server(scenario, w, topology).workload(clock, fabric, streams)
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


def _length_law(law: Any) -> Any:
    match law.law:
        case "fixed":
            return Fixed(law.tokens)
        case "uniform":
            return Uniform(law.low, law.high)
        case "lognormal":
            return Lognormal(law.mean, law.sigma, law.max)
    raise TypeError(f"no length law {law.law!r}")


MOST_OUTPUT_TOKENS = 1 << 27
"""Of one serving workload: a run keeps the time of each, 8 bytes."""


@dataclass(frozen=True, slots=True)
class _Server:
    """What a serving workload is made of, found once and used for checks and for the run."""

    scenario: Scenario
    w: Serving
    topology: Topology

    @property
    def architecture(self) -> Architecture:
        name = self.w.model
        return ARCHITECTURES[name] if name in ARCHITECTURES else from_hugging_face(name)

    @property
    def weights(self) -> Precision:
        """As the scenario says, else as the model is published."""
        return self.w.precision.weights or self.architecture.checkpoint_precision

    @property
    def parallelism(self) -> Parallelism:
        return Parallelism(self.w.parallelism.tensor, self.w.parallelism.expert)

    @property
    def accelerator(self) -> Accelerator:
        return _accelerator(self.host)

    @property
    def host(self) -> Host:
        """The first of its hosts. Raises ValueError where its ranks are different accelerators."""
        hosts = {int(self.topology.host_of_accelerator[r]) for r in self.scenario.ranks_of(self.w)}
        groups = [kind for kind, count in self.scenario.cluster.host_groups for _ in range(count)]
        kinds = {groups[h].accelerator: groups[h] for h in sorted(hosts)}
        if len(kinds) > 1:
            raise ValueError(f"its ranks lie on different accelerators ({', '.join(kinds)}); choose ranks of one kind")
        return next(iter(kinds.values()))

    def memory_plan(self) -> MemoryPlan:
        self.parallelism.check(self.architecture)
        return plan_memory(
            self.architecture,
            self.accelerator,
            self.parallelism,
            self.weights,
            self.w.precision.kv,
            self.w.kv.memory_fraction,
            self.w.kv.block_size,
            self.w.batching.max_num_batched_tokens,
            self.w.batching.max_num_seqs,
            self.w.kv.num_blocks,
            self.host.accelerators,
        )

    def operator_names(self) -> tuple[str, ...]:
        return operator_names(self.architecture, self.parallelism)

    def check_experts(self) -> None:
        """Raises ValueError for experts of a model that has none."""
        if self.architecture.experts is None and "experts" in self.w.model_fields_set:
            raise ValueError(f"{self.architecture.name} is dense, it has no experts; leave `experts` out")

    def requests(self, streams: RandomStreams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(arrival times, prompt tokens, output tokens) of all requests.

        Raises ValueError where there are none, or more output tokens than memory has room for.
        """
        arrival_s, prompt, output = self._requests(streams)
        if len(arrival_s) == 0:
            raise ValueError("no request arrives; raise the duration or the rate")
        if output.sum() > MOST_OUTPUT_TOKENS:
            raise ValueError(
                f"{output.sum()} output tokens are more than the {MOST_OUTPUT_TOKENS} whose times a run can hold; "
                "serve fewer requests, or shorter outputs"
            )
        return arrival_s, prompt, output

    def arrivals(self, streams: RandomStreams) -> np.ndarray:
        return self.requests(streams)[0]

    def _requests(self, streams: RandomStreams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w = self.w
        trace = None
        if w.trace is not None:
            scale = w.arrivals.scale if w.arrivals.kind == "trace" else 1.0
            trace = read_azure_trace(w.trace.file, from_s=w.trace.from_s, until_s=w.trace.until_s, scale=scale)
        if trace is not None and w.arrivals.kind == "trace":
            arrival_s = trace.arrival_s
            if w.duration_s is not None:
                arrival_s = arrival_s[arrival_s < w.duration_s]
            arrival_s = arrival_s[: w.num_requests]
        else:
            assert w.arrivals.kind != "trace", "the schema asks for a trace"
            most = w.num_requests if trace is None else min(w.num_requests or trace.num_requests, trace.num_requests)
            arrival_s = arrival_times_s(
                w.arrivals.kind,
                w.arrivals.rate_per_s,
                streams.stream(f"workload.{w.name}.arrivals"),
                num_requests=most,
                duration_s=w.duration_s,
                burstiness=getattr(w.arrivals, "burstiness", 1.0),
            )
        n = len(arrival_s)
        if w.lengths is None:
            assert trace is not None
            return arrival_s, trace.num_prompt_tokens[:n], trace.num_output_tokens[:n]
        draw = streams.stream(f"workload.{w.name}.lengths")
        return arrival_s, _length_law(w.lengths.input).draw(draw, n), _length_law(w.lengths.output).draw(draw, n)

    def popularity(self) -> Popularity | None:
        experts = self.architecture.experts
        if experts is None:
            return None
        if self.w.experts.popularity == "zipf":
            return Popularity.zipf(experts.num_routed, experts.top_k, self.w.experts.alpha or 0.0)
        return Popularity.uniform(experts.num_routed, experts.top_k)

    def workload(self, clock: Clock, fabric: MessageFabric, streams: RandomStreams) -> ServingWorkload:
        w, architecture, parallelism = self.w, self.architecture, self.parallelism
        arrival_s, prompt, output = self.requests(streams)
        # An attention copy keeps its own cache; the engine schedules over all copies together.
        num_blocks = self.memory_plan().num_kv_blocks * parallelism.data
        popularity = self.popularity()
        cost = self.scenario.cost
        costs: dict[str, Any] = {
            "weights": self.weights,
            "kv": w.precision.kv,
            "compute_efficiency": cost.efficiency.compute,
            "memory_efficiency": cost.efficiency.memory,
            "scale": operator_scale(cost.scale, self.operator_names()),
            "popularity": popularity,
            # Under prefill_first a prompt longer than the budget is a step of its own.
            "max_tokens": max(w.batching.max_num_batched_tokens, int(prompt.max() + output.max())),
        }
        limits = EngineLimits(
            w.batching.policy, num_blocks, w.kv.block_size, w.batching.max_num_seqs,
            w.batching.max_num_batched_tokens, w.host_time_s, architecture.max_positions,
        )  # fmt: skip
        common: dict[str, Any] = {
            "arrival_s": arrival_s, "num_prompt_tokens": prompt, "num_output_tokens": output, "limits": limits,
            "num_replicas": w.replicas, "router": w.router.policy,
        }  # fmt: skip
        if parallelism.expert == 1:
            table = step_table(architecture, self.accelerator, parallelism, **costs)
            return ServingWorkload(w.name, clock, table=table, **common)
        tables = stage_tables(architecture, self.accelerator, parallelism, **costs)
        assert popularity is not None
        iterations = [
            ExpertParallelIteration(
                architecture, parallelism, tables, ranks, popularity,
                streams.stream(f"workload.{w.name}.experts"), owner=w.name,
            )
            for ranks in self._ranks_of_replicas()
        ]  # fmt: skip
        return ServingWorkload(w.name, clock, iterations=iterations, fabric=fabric, **common)

    def _ranks_of_replicas(self) -> list[Sequence[int]]:
        ranks = list(self.scenario.ranks_of(self.w))
        n = self.parallelism.num_accelerators
        return [ranks[i * n : (i + 1) * n] for i in range(self.w.replicas)]
