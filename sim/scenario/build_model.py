"""From a serving workload of a scenario to its model: how it is cut, the memory it takes, its adapters and experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from models.adapters import Adapter, most_added, read_esft, spread
from models.cost.build import operator_names
from models.cost.loading import LoadTimes
from models.cost.measured import Measured
from models.cost.provenance import Source
from models.experts import Popularity
from models.hardware import Accelerator, Precision
from models.memory import MemoryPlan, plan_memory
from models.parallelism import Parallelism
from models.rerouting import Rerouting
from models.touched import AdapterMix, adapter_mix
from sim.engine.random import RandomStreams
from sim.scenario.build_adapters import pool_room_bytes, residency_of
from sim.scenario.build_cluster import accelerator_of
from sim.scenario.build_requests import ServedRequests
from sim.scenario.cluster import Host
from sim.scenario.cost_table import measured
from sim.serving.residency import Residency


def memory_metrics(plan: MemoryPlan) -> dict[str, float]:
    """Of one accelerator; of several pipeline stages the one on which the fewest tokens fit, and each."""
    found: dict[str, float] = {"weight_bytes": plan.weight_bytes + plan.adapter_bytes, "kv_tokens": plan.num_kv_tokens}
    for i, stage in enumerate(plan.stages):
        found |= {f"stage_{i}_weight_bytes": stage.weight_bytes, f"stage_{i}_kv_tokens": stage.num_kv_tokens}
    return found


@dataclass(frozen=True)
class ServedModel(ServedRequests):
    """What a replica is a copy of, and what it lies on."""

    @property
    def weights(self) -> Precision:
        """As the scenario says, else as the model is published."""
        return self.w.precision.weights or self.architecture.checkpoint_precision

    @property
    def parallelism(self) -> Parallelism:
        degrees = self.w.parallelism
        exchange = degrees.exchange if self._is_in_hosts else "dispatch"
        return Parallelism(degrees.tensor, degrees.expert, exchange, degrees.pipeline, self._hosts_of_group)

    @property
    def _hosts_of_group(self) -> int:
        """Hosts over which tensor-parallel ranks lie; each group over as many (`sim.scenario.checks`)."""
        ranks, tensor = list(self.scenario.ranks_of(self.w)), self.w.parallelism.tensor
        return len({int(self.topology.host_of_accelerator[rank]) for rank in ranks[:tensor]})

    @property
    def _is_in_hosts(self) -> bool:
        """Whether no replica spans several hosts: then what its ranks gather passes no fabric."""
        hosts = self.topology.host_of_accelerator
        n = self.w.parallelism.num_accelerators
        ranks = list(self.scenario.ranks_of(self.w))
        return all(len({int(hosts[r]) for r in ranks[i : i + n]}) == 1 for i in range(0, len(ranks), n))

    @property
    def accelerator(self) -> Accelerator:
        return accelerator_of(self.host)

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
            self._adapter_bytes,
        )

    @cached_property
    def adapters(self) -> list[Adapter]:
        """The same in every replication."""
        rng = RandomStreams(self.scenario.seed).stream(f"workload.{self.w.name}.adapters")
        return [
            read_esft(a.file, a.name, self.architecture)
            if a.file is not None
            else spread(a.name, a.max or 0, a.mean or 0.0, self.architecture, rng)
            for a in (self.w.adapters.fine_tuned if self.w.adapters is not None else ())
        ]

    @property
    def has_pool(self) -> bool:
        """Whether adapters lie over one base."""
        return self.w.adapters is not None and not self.w.adapters.is_merged

    def _adapter_bytes(self, parallelism: Parallelism, weights: Precision) -> int:
        if self.w.adapters is None or self.w.adapters.deployment == "merged":
            return 0
        return pool_room_bytes(self.w.adapters, self.adapters, self.architecture, weights, parallelism)

    @property
    def _num_added(self) -> int:
        """Experts that adapters add to a rank's in one layer, at most."""
        if self.w.adapters is None or not self.has_pool or self.architecture.experts is None:
            return 0
        return most_added(self.adapters, self.architecture.experts.num_routed, self.parallelism.expert)

    @cached_property
    def residency(self) -> tuple[Residency, Source] | None:
        """Adapters that come and go, and where their times are from; None: all are there."""
        if self.w.adapters is None or not self.w.adapters.is_on_demand:
            return None
        known = self.measured()
        times = LoadTimes.of(self.accelerator, None if known is None else known.table)
        return residency_of(
            self.w.adapters, self.adapters, self.architecture, times, self.weights, self.parallelism.tensor
        )

    @property
    def rerouting(self) -> Rerouting | None:
        adapters = self.w.adapters
        return Rerouting(adapters.rerouting, len(adapters.fine_tuned)) if adapters and self.has_pool else None

    def operator_names(self) -> tuple[str, ...]:
        return operator_names(self.architecture, self.parallelism, rerouting=self.rerouting)

    def check_experts(self) -> None:
        """Raises ValueError for experts of a model that has none, and for recorded routing of another model."""
        experts = self.architecture.experts
        if experts is None and "experts" in self.w.model_fields_set:
            raise ValueError(f"{self.architecture.name} is dense, it has no experts; leave `experts` out")
        if experts is not None and self.w.experts.file is not None:
            Popularity.read(self.w.experts.file, experts)

    def measured(self) -> Measured | None:
        """The scenario's measured times. Raises ValueError where it has a table that cannot be used for this."""
        name = self.scenario.cost.table
        if name is None:
            return None
        return measured(name, self.host.accelerator)

    def check_adapters(self) -> None:
        """Raises ValueError for adapters that are not of this model, or that have no room."""
        if self.w.adapters is not None:
            for one in self.adapters:
                one.check(self.architecture)
            self._adapter_bytes(self.parallelism, self.weights)
            for adapter in self.w.adapters.fine_tuned:
                if adapter.routing is not None and self.architecture.experts is not None:
                    Popularity.read(adapter.routing, self.architecture.experts)

    def popularity(self) -> Popularity | None:
        experts = self.architecture.experts
        if experts is None:
            return None
        law = self.w.experts
        if law.file is not None:
            popularity = Popularity.read(law.file, experts)
        elif law.alpha is not None:
            popularity = Popularity.zipf(experts.num_routed, experts.top_k, law.alpha)
        else:
            popularity = Popularity.uniform(experts.num_routed, experts.top_k)
        return popularity

    def mix(self, max_tokens: int) -> AdapterMix | None:
        """What experts its adapters' tokens touch; None where each has a model of its own, or there are none."""
        experts, adapters, popularity = self.architecture.experts, self.w.adapters, self.popularity()
        if experts is None or popularity is None or adapters is None or adapters.is_merged:
            return None
        own = [None if a.routing is None else Popularity.read(a.routing, experts) for a in adapters.fine_tuned]
        return adapter_mix(popularity, self.adapters, max_tokens, own)
