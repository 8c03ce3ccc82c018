"""The scenario: what a file holds once its variants are told apart. Its parts lie in files beside this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sim.scenario.cluster import Cluster, Where
from sim.scenario.paths import Fault, Fluid, Packet, Paths, PlainPaths
from sim.scenario.quantities import (
    Count,
    Label,
    Part,
    PositiveNumber,
    PositiveSeconds,
    PositiveShare,
    Seed,
    Text,
    all_refused,
)
from sim.scenario.serving import Serving
from sim.scenario.traffic import Collective, Incast, Traffic, Training

AnyWorkload = Annotated[Traffic | Collective | Training | Serving, Field(discriminator="kind")]
MOST_SEEDS = 10_000


class Efficiency(Part):
    """What share of its peak an accelerator reaches."""

    compute: PositiveShare = 1.0
    memory: PositiveShare = 1.0


class Cost(Part):
    """Changes to the cost model."""

    efficiency: Efficiency = Efficiency()
    scale: dict[str, PositiveNumber] = Field(
        default_factory=dict,
        description="time of an operator times this: {attention: 0.8} is a faster kernel",
    )
    table: None = Field(default=None, description="kept for measured tables, which arrive later")


class Scenario(Part):
    """One variant of a scenario: a cluster, the workloads that share it, and the policies in force."""

    name: Label = Field(description="what the run is called; names its output folder")
    question: Text | None = Field(default=None, description="what the report answers, in one sentence")
    answer: Text | None = Field(
        default=None,
        description="key of the metric that answers it; by default chosen from the workloads",
        examples=["serving.chat.p99_itl_ms"],
    )
    seed: Seed = 1
    seeds: Annotated[Count, Field(le=MOST_SEEDS)] | None = Field(
        default=None, description="repeat with this many seeds, from `seed` on, and give intervals"
    )
    fidelity: Literal["fluid", "packet", "auto"] = "fluid"
    cluster: Cluster
    packet: Packet = Packet()
    fluid: Fluid = Fluid()
    paths: Paths = PlainPaths(policy="ecmp")
    workloads: tuple[AnyWorkload, ...] = Field(min_length=1, description="jobs that share the cluster")
    cost: Cost = Cost()
    faults: tuple[Fault, ...] = Field(default=(), description="links and hosts that change during the run")
    max_time_s: PositiveSeconds | None = Field(
        default=None, description="simulated time at which the run is cut"
    )

    def ranks_of(self, workload: AnyWorkload) -> tuple[int, ...]:
        """Accelerator ids of a workload; those it names, or all (for serving: the first that it needs)."""
        if workload.ranks is not None:
            return workload.ranks
        if isinstance(workload, Serving):
            return tuple(range(workload.num_accelerators))
        return tuple(range(self.cluster.num_accelerators))

    @model_validator(mode="after")
    def _fits_together(self) -> Scenario:
        problems = list(self._problems())
        if problems:
            raise all_refused(problems)
        return self

    def _problems(self) -> Iterator[tuple[Where, str]]:
        if self.fidelity != "fluid":
            yield ("fidelity",), f"'{self.fidelity}' arrives with the packet core; write fluid until then"
        if self.faults:
            yield ("faults",), "faults arrive with the packet core; leave them out until then"
        seen: set[str] = set()
        for i, workload in enumerate(self.workloads):
            if workload.name in seen:
                yield (
                    ("workloads", i, "name"),
                    f"two workloads are named '{workload.name}'; give each its own name",
                )
            seen.add(workload.name)
            for path, sentence in self._workload_problems(workload):
                yield ("workloads", i, *path), sentence
        if self.max_time_s is None and all(workload.is_endless for workload in self.workloads):
            yield (
                ("workloads",),
                "every workload runs until the others end, so the run would not end; give one `steps`, or "
                "the scenario max_time",
            )

    def _workload_problems(self, workload: AnyWorkload) -> Iterator[tuple[Where, str]]:
        num_accelerators = self.cluster.num_accelerators
        beyond = [rank for rank in workload.ranks or () if rank >= num_accelerators]
        if beyond:
            yield (
                ("ranks",),
                f"rank {beyond[0]} is not in the cluster, whose accelerators are 0 … {num_accelerators - 1}",
            )
            return
        ranks = self.ranks_of(workload)
        if isinstance(workload, Serving):
            yield from self._serving_problems(workload)
        elif len(ranks) < 2:
            yield ("ranks",), f"{len(ranks)} rank has nobody to talk to; give at least 2"
        elif isinstance(workload, Incast):
            yield from _incast_problems(workload, len(ranks))
        elif isinstance(workload, Collective | Training):
            yield from self._collective_problems(workload, ranks)
        elif workload.pattern == "shift":
            yield from self._shift_problems(workload.leaves_by)
        elif workload.pattern == "permutation" and workload.cross_leaf and self.cluster.fabric.num_leaves < 2:
            yield (
                ("cross_leaf",),
                "the fabric has one leaf, so no pair crosses leaves; write cross_leaf: false",
            )

    def _shift_problems(self, leaves_by: int) -> Iterator[tuple[Where, str]]:
        leaves = self.cluster.fabric.num_leaves
        if leaves_by % leaves == 0:
            yield (
                ("leaves_by",),
                f"a shift by {leaves_by} of {leaves} leaves ends where it starts; choose another",
            )

    def _collective_problems(
        self, workload: Collective | Training, ranks: tuple[int, ...]
    ) -> Iterator[tuple[Where, str]]:
        n = len(ranks)
        if workload.algorithm == "halving_doubling" and n & (n - 1):
            below = 1 << (n.bit_length() - 1)
            yield (
                ("algorithm",),
                f"halving_doubling needs a power of two of ranks, got {n}; use {below} ranks, or "
                "algorithm: ring",
            )
        if isinstance(workload, Collective) and workload.hierarchical:
            counts: dict[int, int] = {}
            for rank in ranks:
                host = self.cluster.host_of(rank)
                counts[host] = counts.get(host, 0) + 1
            if len(set(counts.values())) > 1:
                few, many = min(counts, key=lambda h: counts[h]), max(counts, key=lambda h: counts[h])
                yield (
                    ("hierarchical",),
                    f"needs equally many ranks on every host, but host {few} has {counts[few]} and host "
                    f"{many} has {counts[many]}; choose other ranks, or hierarchical: false",
                )

    def _serving_problems(self, workload: Serving) -> Iterator[tuple[Where, str]]:
        needed, degrees = workload.num_accelerators, workload.parallelism
        given = self.cluster.num_accelerators if workload.ranks is None else len(workload.ranks)
        sentence = (
            f"{workload.replicas} replicas of {degrees.num_accelerators} accelerators (tensor "
            f"{degrees.tensor}, expert {degrees.expert}) need {needed}"
        )
        if workload.ranks is None and needed > given:
            yield ("replicas",), f"{sentence}, but the cluster has {given}"
            return
        if workload.ranks is not None and needed != given:
            yield ("ranks",), f"{sentence}, but ranks are {given}; give as many as are needed"
            return
        ranks = self.ranks_of(workload)
        for first in range(0, len(ranks), degrees.tensor):
            group = ranks[first : first + degrees.tensor]
            if len({self.cluster.host_of(rank) for rank in group}) > 1:
                yield (
                    ("parallelism", "tensor"),
                    f"tensor degree {degrees.tensor}: ranks {group[0]} … {group[-1]} lie on several hosts; "
                    "a tensor-parallel group stays inside one",
                )
                return


def _incast_problems(workload: Incast, num_ranks: int) -> Iterator[tuple[Where, str]]:
    if workload.receiver >= num_ranks:
        yield (
            ("receiver",),
            f"receiver {workload.receiver} is not among the {num_ranks} ranks (0 … {num_ranks - 1})",
        )
    if workload.fan_in is not None and workload.fan_in > num_ranks - 1:
        yield ("fan_in",), f"fan_in is {workload.fan_in}, but only {num_ranks - 1} other ranks can send"


class Variant(Part):
    """An entry of `compare`: any part of the scenario, merged over it, under a name."""

    model_config = ConfigDict(extra="allow")

    name: Label


class ScenarioFile(Scenario):
    """A scenario file as written: a scenario, its variants, and what `--small` changes."""

    compare: tuple[Variant, ...] | None = Field(
        default=None,
        description="variants, each merged over the scenario; without it there is one, named run",
    )
    small: dict[str, Any] | None = Field(
        default=None, description="merged over the scenario by `run --small`"
    )
