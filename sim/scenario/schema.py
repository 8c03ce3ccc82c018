"""The scenario: what a file holds once its variants are told apart. Its parts lie in files beside this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sim.scenario.checks import serving_overlaps, workload_problems
from sim.scenario.cluster import Cluster, Where
from sim.scenario.cost_table import OWN, PRESETS, TableFile
from sim.scenario.fabrics import Htsim
from sim.scenario.faults import Fault, fault_problems
from sim.scenario.packets import Packet
from sim.scenario.paths import FlowletPaths, Fluid, PacketPaths, Paths, PlainPaths
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
from sim.scenario.traffic import Collective, Traffic, Training

AnyWorkload = Annotated[Traffic | Collective | Training | Serving, Field(discriminator="kind")]
MOST_SEEDS = 10_000


class Efficiency(Part):
    """What share of its peak an accelerator reaches."""

    compute: PositiveShare = Field(
        default=1.0, description="of peak flops, for every operator that is priced by a roofline"
    )
    memory: PositiveShare = Field(default=1.0, description="of memory bandwidth, likewise")


class Cost(Part):
    """Changes to the cost model."""

    efficiency: Efficiency = Field(
        default=Efficiency(), description="what share of its peaks an accelerator reaches; by default all"
    )
    scale: dict[str, PositiveNumber] = Field(
        default_factory=dict,
        description="time of an operator times this: {attention: 0.8} is a faster kernel; a name covers the operators "
        "that begin with it, here attention_decode and attention_prefill",
    )
    table: TableFile = Field(
        default=None,
        description="measured times: a table of `spindle calibrate` (.parquet, .csv), or the name of an accelerator "
        f"({', '.join(PRESETS)}) for those that aiconfigurator publishes, or {', '.join(OWN)} for this project's own; "
        "a roofline prices what it has no rows for",
    )


class Scenario(Part):
    """One variant of a scenario: a cluster, the workloads that share it, and the policies in force."""

    name: Label = Field(description="what the run is called; names its output folder")
    question: Text | None = Field(default=None, description="what the report answers, in one sentence")
    answer: Text | None = Field(
        default=None,
        description="key of the metric that answers it; by default chosen from the workloads",
        examples=["serving.chat.p99_itl_ms"],
    )
    seed: Seed = Field(default=1, description="of all random draws; the same seed gives the same tables, byte for byte")
    seeds: Annotated[Count, Field(le=MOST_SEEDS)] | None = Field(
        default=None, description="repeat with this many seeds, from `seed` on, and give intervals"
    )
    fidelity: Literal["fluid", "packet", "auto"] = Field(
        default="fluid",
        description="fluid: rates that share links fairly · packet: every packet · auto: fluid, and packet by packet "
        "again where the two can differ (incast, loss, short flows, contested verdicts)",
    )
    cluster: Cluster = Field(description="fabric and hosts")
    packet: Packet = Field(default=Packet(), description="packets on the wire, transport and switches")
    fluid: Fluid = Field(default=Fluid(), description="how exact the fluid core is")
    paths: Paths = Field(default=PlainPaths(policy="ecmp"), description="which way through the fabric messages take")
    workloads: tuple[AnyWorkload, ...] = Field(min_length=1, description="jobs that share the cluster")
    cost: Cost = Field(default=Cost(), description="changes to the cost model")
    faults: tuple[Fault, ...] = Field(default=(), description="what changes during the run")
    max_time_s: PositiveSeconds | None = Field(
        default=None, description="simulated time at which the run is cut"
    )

    def ranks_of(self, workload: AnyWorkload) -> tuple[int, ...]:
        """Accelerator ids of a workload; those it names, or all (for serving: the first that it needs)."""
        if isinstance(workload, Serving):
            return workload.own_ranks
        if workload.ranks is not None:
            return workload.ranks
        return tuple(range(self.cluster.num_accelerators))

    @property
    def first_fidelity(self) -> Literal["fluid", "packet"]:
        """What its run begins with: under `auto` fluid, unless only packets can express it."""
        if self.fidelity != "auto":
            return self.fidelity
        return "packet" if any(self.why_not("fluid")) else "fluid"

    @property
    def imported_buffer_bytes(self) -> int | None:
        """What a topology file of htsim's gives every port, where nothing else decides. Lossless switches keep a buffer
        of their own: theirs has to hold what is still on its way when they pause a link."""
        fabric = self.cluster.fabric
        if not isinstance(fabric, Htsim) or self.packet.buffer is not None or self.packet.is_lossless:
            return None
        return fabric.queue_bytes

    def in_fidelity(self, fidelity: Literal["fluid", "packet"]) -> Scenario:
        """The same at one fidelity."""
        return self if self.fidelity == fidelity else self.model_copy(update={"fidelity": fidelity})

    def why_not(self, fidelity: Literal["fluid", "packet"]) -> Iterator[tuple[Where, str]]:
        """What this fidelity cannot express, as (path, sentence)."""
        if fidelity == "fluid":
            if isinstance(self.paths, PacketPaths | FlowletPaths):
                sentence = f"'{self.paths.policy}' decides packet by packet, which fluid cannot express"
                yield ("paths", "policy"), f"{sentence}; write fidelity: packet, or policy: spray"
            for i, fault in enumerate(self.faults):
                if fault.loss is not None:
                    sentence = "fluid has no packets to lose"
                    yield ("faults", i, "loss"), f"{sentence}; give the link a lower rate instead, or state: down"
            return
        if self.paths.fairness == "message":
            sentence = "a NIC serves queue pairs in turn, so that fairness by message has no meaning packet by packet"
            yield ("paths", "fairness"), f"{sentence}; leave it out, or write fidelity: fluid"
        if self.packet.ports != "lean":
            return
        if self.faults:
            yield ("packet", "ports"), "lean ports lose nothing, but links fail in this run; write ports: auto"
        if self.imported_buffer_bytes is not None:
            sentence = "lean ports have no limits, but the topology file gives queues"
            yield ("packet", "ports"), f"{sentence}; write ports: auto"
        if self.paths.policy in ("adaptive", "flowlet", "reps"):
            sentence = f"'{self.paths.policy}' looks at queues, gaps or marks, which lean ports do not have"
            yield ("packet", "ports"), f"{sentence}; write ports: auto"

    @model_validator(mode="after")
    def _fits_together(self) -> Scenario:
        problems = list(self._problems())
        if problems:
            raise all_refused(problems)
        return self

    def _problems(self) -> Iterator[tuple[Where, str]]:
        if self.fidelity != "auto":
            yield from self.why_not(self.fidelity)
        elif any(self.why_not("fluid")):
            yield from self.why_not("packet")
        queue_bytes = self.imported_buffer_bytes
        if self.fidelity != "fluid" and queue_bytes is not None and queue_bytes < self.packet.mtu_bytes:
            sentence = f"queues of {queue_bytes} B hold no packet of {self.packet.mtu_bytes} B; nothing would ever pass"
            yield ("cluster", "fabric", "file"), f"{sentence}: give a smaller packet.mtu, or larger queues"
        num_replicas = {w.name: w.most_replicas for w in self.workloads if isinstance(w, Serving)}
        for i, fault in enumerate(self.faults):
            for path, sentence in fault_problems(self.cluster, fault, num_replicas):
                yield ("faults", i, *path), sentence
        host_of, leaf_of = self.cluster.hosts_and_leaves()
        yield from self._faults_of_pools(host_of)
        seen: set[str] = set()
        for i, workload in enumerate(self.workloads):
            if workload.name in seen:
                yield (
                    ("workloads", i, "name"),
                    f"two workloads are named '{workload.name}'; give each its own name",
                )
            seen.add(workload.name)
            for path, sentence in workload_problems(
                self.cluster, workload, self.ranks_of(workload), host_of, leaf_of
            ):
                yield ("workloads", i, *path), sentence
        yield from serving_overlaps(self.cluster, self.workloads, [self.ranks_of(w) for w in self.workloads])
        if self.max_time_s is None and all(workload.is_endless for workload in self.workloads):
            yield (
                ("workloads",),
                "every workload runs until the others end, so the run would not end; give one `steps`, or "
                "the scenario max_time",
            )

    def _faults_of_pools(self, host_of: Sequence[int]) -> Iterator[tuple[Where, str]]:
        """Faults that would take replicas of prefill or decode pools down."""
        for w in self.workloads:
            if not isinstance(w, Serving) or w.disaggregation is None:
                continue
            hosts = {int(host_of[rank]) for rank in self.ranks_of(w) if rank < len(host_of)}
            for i, fault in enumerate(self.faults):
                is_theirs = fault.replica is not None and fault.replica.rpartition("/")[0] == w.name
                if is_theirs or (fault.state == "down" and fault.host in hosts):
                    key = "replica" if is_theirs else "host"
                    yield ("faults", i, key), f"replicas of '{w.name}', prefill and decode apart, cannot go down; " + (
                        "leave it out" if is_theirs else "name links"
                    )


class Variant(Part):
    """An entry of `compare`: any part of the scenario, merged over it, under a name."""

    model_config = ConfigDict(extra="allow")

    name: Label = Field(description="what the report calls it")
    side: Label | None = Field(
        default=None,
        description="of an entry of the last axis: what it stands for, such as `spraying`; the report then also says "
        "which side is better, and where",
    )


class ScenarioFile(Scenario):
    """A scenario file as written: a scenario, its variants, and what `--small` changes."""

    compare: tuple[Variant, ...] | dict[str, tuple[Variant, ...]] | None = Field(
        default=None,
        description="variants, each merged over the scenario; without it there is one, named run. Several lists under "
        "names of their own are axes: a variant for each combination of their entries. The last axis holds what is "
        "compared, the others the circumstances, each in its order",
    )
    small: dict[str, Any] | None = Field(
        default=None, description="merged over the scenario by `run --small`"
    )
