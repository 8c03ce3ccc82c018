"""From a serving workload of a scenario to its model, memory, requests and replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from models.adapters import Adapter, most_added, read_esft, spread
from models.cost.build import operator_names, operator_scale, query_shares, stage_tables, step_table
from models.cost.loading import LoadTimes
from models.cost.measured import Measured
from models.cost.priced import measured_step
from models.cost.provenance import Source
from models.experts import Popularity
from models.features import ACTIVATION_BYTES
from models.hardware import Accelerator, Precision
from models.kv_transfer import kv_shards
from models.memory import MemoryPlan, copies_per_block, plan_memory
from models.operators import operators
from models.parallelism import Parallelism
from models.pipeline import stage_shares
from models.rerouting import Rerouting
from models.touched import AdapterMix, adapter_mix
from sim.devices.kv_cache import Contents
from sim.devices.kv_tiers import TierLimits
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.message_fabric import MessageFabric
from sim.scenario.build_adapters import pool_room_bytes, residency_of
from sim.scenario.build_clients import build_front, outages_of
from sim.scenario.build_cluster import accelerator_of
from sim.scenario.build_requests import ServedRequests
from sim.scenario.cluster import Host
from sim.scenario.cost_table import measured
from sim.serving.disaggregated_workload import DisaggregatedWorkload, Pool
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.fleet import Outage
from sim.serving.pipeline_replica import Stages
from sim.serving.replica import EngineLimits
from sim.serving.residency import Residency
from sim.serving.speculation import Speculation
from sim.serving.tensor_across_hosts import TensorIteration
from sim.serving.workload import ServingWorkload

SWAP_SPACE_BYTES = 4 * 2**30
"""Of each accelerator, unless told otherwise: the default of vLLM 0.6's --swap-space."""


def memory_metrics(plan: MemoryPlan) -> dict[str, float]:
    """Of one accelerator; of several pipeline stages the one on which the fewest tokens fit, and each."""
    found: dict[str, float] = {"weight_bytes": plan.weight_bytes + plan.adapter_bytes, "kv_tokens": plan.num_kv_tokens}
    for i, stage in enumerate(plan.stages):
        found |= {f"stage_{i}_weight_bytes": stage.weight_bytes, f"stage_{i}_kv_tokens": stage.num_kv_tokens}
    return found


@dataclass(frozen=True)
class Server(ServedRequests):
    """What a serving workload is made of, found once and used for checks and for the run."""

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

    def check_contention(self) -> None:
        """Raises ValueError where contention is to be told apart and nothing crosses the fabric."""
        if not self.w.contention:
            return
        if self.parallelism.exchange == "all_gather":
            raise ValueError("each replica gathers inside one host, so that nothing crosses the fabric; leave it out")
        if self.parallelism.expert == self.parallelism.hosts == 1:
            raise ValueError(
                "nothing of a replica inside one host crosses the fabric; leave contention out, or spread its experts "
                "with parallelism: {expert: N}"
            )

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

    def swap(self) -> tuple[int, float]:
        """(room in host memory, in blocks of each accelerator, time to copy one), (0, 0) without swapping.

        A copy of each layer's keys and of its values: copies · time of a copy + bytes / rate.
        Raises ValueError where there is no room for a block.
        """
        if self.w.batching.preemption != "swap":
            return 0, 0.0
        plan, device = self.memory_plan(), self.accelerator
        space_bytes = self.w.kv.swap_space_bytes or SWAP_SPACE_BYTES
        if space_bytes < plan.kv_bytes_per_block:
            raise ValueError(
                f"{space_bytes} B of swap space hold no block, which takes {plan.kv_bytes_per_block} B; give it more"
            )
        copy_s = copies_per_block(self.architecture) * device.pcie_copy_s
        return space_bytes // plan.kv_bytes_per_block, copy_s + plan.kv_bytes_per_block / device.pcie_bytes_per_s

    def tier(self, number: int) -> TierLimits:
        """One of the tiers behind its cache. A block is one copy over the host's link, all layers together (vLLM's
        cross-layer blocks), cut over the tensor ranks, each with memory and a link of its own.

        Raises ValueError where there is no room for a block.
        """
        tier, device, block_bytes = self.w.kv.tiers[number], self.accelerator, self.memory_plan().kv_bytes_per_block
        if tier.capacity_bytes < block_bytes:
            raise ValueError(f"{tier.capacity_bytes} B hold no block, which takes {block_bytes} B; give it more")
        copy_s = device.pcie_copy_s if tier.kind == "host" else 0.0
        rate = tier.bandwidth_bytes_per_s or device.pcie_bytes_per_s
        return TierLimits(
            tier.kind, tier.capacity_bytes // block_bytes, copy_s + block_bytes / rate, tier.latency_s,
            block_bytes * self.parallelism.tensor,
        )  # fmt: skip

    def speculation(self, streams: RandomStreams) -> Speculation | None:
        """What is drafted; a draft model fills as many slots again, as vLLM holds them for it."""
        speculative = self.w.batching.speculative
        if speculative is None:
            return None
        draft, cost = speculative.draft, self.scenario.cost
        flop_share, byte_share = query_shares(
            self.architecture, self.accelerator, self.parallelism, self.w.precision.kv, cost.efficiency.compute,
            cost.efficiency.memory,
        )  # fmt: skip
        return Speculation(
            speculative.num_tokens,
            speculative.acceptance,
            num_lookahead=speculative.num_tokens if draft.kind == "model" else 0,
            draft_s=draft.time_s if draft.kind == "ngram" else 0.0,
            draft_cost=draft.cost if draft.kind == "model" else 0.0,
            flop_share=flop_share,
            byte_share=byte_share,
            seed=streams.integer(f"workload.{self.w.name}.acceptance"),
        )

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

    def costs(self, prompt: np.ndarray, output: np.ndarray) -> dict[str, Any]:
        """What prices its steps, for requests of these lengths."""
        cost, batching = self.scenario.cost, self.w.batching
        longest = int(prompt.max() + output.max())
        # Of whole prompts one that is longer than the budget is a step of its own, under orca beside all decodes.
        max_tokens = max(batching.max_num_batched_tokens, batching.max_num_seqs,
                         longest + (batching.max_num_seqs if batching.policy == "orca" else 0))  # fmt: skip
        costs = {
            "weights": self.weights,
            "kv": self.w.precision.kv,
            "compute_efficiency": cost.efficiency.compute,
            "memory_efficiency": cost.efficiency.memory,
            "scale": operator_scale(cost.scale, self.operator_names()),
            "popularity": self.popularity(),
            "max_tokens": max_tokens,
            "rerouting": self.rerouting,
        }
        return costs if self.parallelism.expert > 1 else costs | {"mix": self.mix(max_tokens)}

    @cached_property
    def limits(self) -> EngineLimits:
        """Of a replica's batches."""
        w, (num_host_blocks, block_copy_s), residency = self.w, self.swap(), self.residency
        return EngineLimits(
            w.batching.policy, self.memory_plan().num_kv_blocks, w.kv.block_size, w.batching.max_num_seqs,
            w.batching.max_num_batched_tokens, w.host_time_s, self.architecture.max_positions,
            is_async=w.batching.is_async and w.parallelism.pipeline == 1, is_caching=w.kv.prefix_caching,
            max_graph_tokens=w.batching.max_graph_tokens, num_host_blocks=num_host_blocks, block_copy_s=block_copy_s,
            ends_unforeseen=w.stop == "eos", tiers=tuple(self.tier(number) for number in range(len(w.kv.tiers))),
            residency=residency[0] if residency else None,
        )  # fmt: skip

    @property
    def pools(self) -> tuple[tuple[tuple[str, ...], Server], ...]:
        """(where it stands below the workload, the server of each pool): itself, where it is not split."""
        return tuple((where, replace(self, w=pool)) for where, pool in self.w.pools)

    def workload(self, clock: Clock, fabric: MessageFabric, streams: RandomStreams) -> ServingWorkload:
        w = self.w
        arrival_s, prompt, output = self.requests(streams)
        num_turns = self.num_turns(streams)
        if num_turns is None:
            adapter = self.adapter_of(len(prompt), streams)
        else:  # a conversation is with one of them
            adapter = np.repeat(self.adapter_of(len(num_turns), streams), num_turns)
        contents = self.contents(prompt, adapter, output, num_turns)
        tenants = self.tenants(streams, len(prompt))
        common: dict[str, Any] = {
            "arrival_s": arrival_s, "num_prompt_tokens": prompt, "num_output_tokens": output, "adapter": adapter,
            "rng": streams.stream(f"workload.{w.name}.router"), "remarks": self.remarks(),
            "tenants": tenants if w.tenants or w.targets else None,
            "precedence": self.precedence(prompt, output, contents, tenants),
            "front": build_front(w, self._arrival_s(streams), num_turns, streams, self._outages()),
        }  # fmt: skip
        if w.disaggregation is not None:
            (_, prefill), (_, decode) = self.pools
            transfer = w.disaggregation.transfer
            return DisaggregatedWorkload(
                w.name, clock, prefill=prefill.pool(prompt, output, contents, fabric, streams),
                decode=decode.pool(prompt, output, contents, fabric, streams),
                is_layered=transfer.layers == "layer_by_layer", queue_pairs=transfer.queue_pairs, fabric=fabric,
                shards=kv_shards(self.architecture, prefill.w.parallelism.tensor, decode.w.parallelism.tensor,
                                 w.precision.kv), **common,
            )  # fmt: skip
        parts = self.parts(prompt, output, contents, fabric, streams)
        plan, residency = self.memory_plan(), self.residency
        return ServingWorkload(
            w.name, clock, num_replicas=w.most_replicas, router=w.router.policy,
            memory=memory_metrics(plan), model=self.model_of(adapter),
            num_models=w.adapters.num_models if w.adapters else 1, alone=self.alone(),
            load_source=residency[1] if residency else Source.ROOFLINE, **common, **parts,
        )  # fmt: skip

    def _outages(self) -> list[Outage]:
        """Of its replicas; pools have none, which the schema sees to."""
        return [] if self.w.disaggregation else outages_of(self.scenario, self.w, self.topology.host_of_accelerator)

    def alone(self) -> AloneOnIdeal | None:
        """What tells contention in the fabric, where that is asked for."""
        if not self.w.contention:
            return None
        packet, tolerance = self.scenario.packet, self.scenario.fluid.tolerance
        return AloneOnIdeal(self.topology, packet.mtu_bytes, packet.header_bytes, tolerance)

    def pool(
        self, prompt: np.ndarray, output: np.ndarray, contents: Contents | None, fabric: MessageFabric,
        streams: RandomStreams,
    ) -> Pool:  # fmt: skip
        """Its replicas, as a part of another server."""
        shape = (self.parallelism.data, self.parallelism.tensor)
        plan = self.memory_plan()
        return Pool(
            ranks=[np.array(ranks, np.int64).reshape(shape) for ranks in self._ranks_of_replicas()],
            router=self.w.router.policy, num_kv_tokens=plan.num_kv_tokens,
            weight_bytes=plan.weight_bytes + plan.adapter_bytes,
            **self.parts(prompt, output, contents, fabric, streams),
        )  # fmt: skip

    def parts(
        self, prompt: np.ndarray, output: np.ndarray, contents: Contents | None, fabric: MessageFabric,
        streams: RandomStreams,
    ) -> dict[str, Any]:  # fmt: skip
        """What its replicas are made of: limits, contents, table or iterations, prices, the fabric of its steps."""
        w, architecture, parallelism = self.w, self.architecture, self.parallelism
        popularity = self.popularity()
        costs = self.costs(prompt, output)
        speculation = self.speculation(streams)
        parts: dict[str, Any] = {"limits": replace(self.limits, speculation=speculation), "contents": contents}
        known, priced = self.measured(), None
        if known is not None:
            longest, most = int(prompt.max() + output.max()), w.batching.max_num_seqs
            longest += 0 if speculation is None else speculation.num_tokens
            priced = measured_step(
                known, architecture, self.accelerator, parallelism, **costs, max_seqs=most, max_context=longest,
                num_added=self._num_added,
            )
            parts["priced"] = priced
        if parallelism.expert == 1:
            table = step_table(architecture, self.accelerator, parallelism, **costs) if priced is None else priced.table
            if parallelism.hosts > 1:
                del costs["mix"]
                stages = (stage_tables(architecture, self.accelerator, parallelism, **costs) if priced is None
                          else priced.stages)  # fmt: skip
                return parts | {"fabric": fabric, "iterations": [
                    TensorIteration(architecture, parallelism, table, stages, ranks, w.name)
                    for ranks in self._ranks_of_replicas()
                ]}  # fmt: skip
            return parts | {"table": table} | self._stages(fabric)
        tables = (
            stage_tables(architecture, self.accelerator, parallelism, **costs) if priced is None else priced.stages
        )
        assert popularity is not None
        iterations = [
            ExpertParallelIteration(
                architecture, parallelism, tables, ranks, popularity,
                streams.stream(f"workload.{w.name}.experts"), owner=w.name, exchange=w.parallelism.exchange,
                adapters=self.adapters if self.has_pool else (),
            )
            for ranks in self._ranks_of_replicas()
        ]  # fmt: skip
        is_local = parallelism.exchange == "all_gather"
        return parts | {"iterations": iterations, "fabric": None if is_local else fabric}

    def _stages(self, fabric: MessageFabric) -> dict[str, Any]:
        """Of replicas cut into pipeline stages: their shares of the table's operators, and where they lie."""
        parallelism, architecture = self.parallelism, self.architecture
        if parallelism.pipeline == 1:
            return {}
        ranks = np.array(self._ranks_of_replicas(), np.int64).reshape(-1, parallelism.pipeline, parallelism.tensor)
        crosses = self._crosses(ranks)
        built = operators(architecture, parallelism, self.weights, self.w.precision.kv)
        shares = stage_shares(built, architecture, parallelism.pipeline)
        stages = Stages(*shares, ranks, crosses, architecture.hidden_size * ACTIVATION_BYTES)
        return {"stages": stages, "fabric": fabric if crosses.any() else None}

    def _crosses(self, ranks: np.ndarray) -> np.ndarray:
        """[replicas, stages - 1] whether a stage and the next lie on different hosts."""
        hosts = self.topology.host_of_accelerator[ranks[:, :, 0]]
        return np.asarray(hosts[:, 1:] != hosts[:, :-1])

    def _ranks_of_replicas(self) -> list[Sequence[int]]:
        ranks = list(self.scenario.ranks_of(self.w))
        n = self.parallelism.num_accelerators
        return [ranks[i * n : (i + 1) * n] for i in range(self.w.most_replicas)]
