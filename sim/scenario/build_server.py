"""From a serving workload of a scenario to its model, memory, requests and replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from models.cost.build import operator_scale, query_shares, stage_tables, step_table
from models.cost.priced import measured_step
from models.cost.provenance import Source
from models.features import ACTIVATION_BYTES
from models.kv_transfer import kv_shards
from models.memory import copies_per_block
from models.operators import operators
from models.pipeline import stage_shares
from sim.devices.kv_cache import Contents
from sim.devices.kv_tiers import TierLimits
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.message_fabric import MessageFabric
from sim.scenario.build_clients import build_front, outages_of
from sim.scenario.build_model import ServedModel, memory_metrics
from sim.serving.disaggregated_workload import DisaggregatedWorkload, Pool
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.fleet import Outage
from sim.serving.pipeline_replica import Stages
from sim.serving.replica import EngineLimits
from sim.serving.speculation import Speculation
from sim.serving.tensor_across_hosts import TensorIteration
from sim.serving.workload import ServingWorkload

SWAP_SPACE_BYTES = 4 * 2**30
"""Of each accelerator, unless told otherwise: the default of vLLM 0.6's --swap-space."""


@dataclass(frozen=True)
class Server(ServedModel):
    """What a serving workload is made of, found once and used for checks and for the run."""

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
