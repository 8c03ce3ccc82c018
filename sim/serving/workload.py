"""The serving workload: requests arrive, are routed to replicas, and are accounted for at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.priced import PricedStep
from models.cost.provenance import Source
from models.cost.step import StepTable
from sim.devices.kv_cache import Contents, new_holdings
from sim.devices.kv_tiers import new_asked
from sim.engine.clock import Clock
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.transfer import Fabric
from sim.serving.accounts import Accounts
from sim.serving.fabric_replica import FabricReplica, Iteration, Replica
from sim.serving.front import Front
from sim.serving.pipeline_replica import FabricPipelineReplica, PipelineEngine, PipelineReplica, Stages
from sim.serving.replica import Engine, EngineLimits, LocalReplica, refusals
from sim.serving.request import new_requests, new_token_times
from sim.serving.router import ROUTERS, Routed
from sim.serving.tenants import Tenants
from sim.serving.time_split import new_splits

ARRIVALS_PER_CATCH_UP = 1024
"""Replicas that nobody looks at are brought up to the clock this often, to spread their work over the run."""


class ServingWorkload(Accounts):
    """Requests on replicas of one model: an open loop, unless `front` says what clients and replicas do.

    arrival_s, num_prompt_tokens, num_output_tokens   [requests]; arrivals count from `start`
    num_replicas, limits, router     replicas are alike; router is a name in ROUTERS, which draws from rng
    adapter      [requests] of each: 0 the base model, i the i-th adapter
    model        [requests] which of num_models serves it, each on an equal part of the replicas; None: there is one
    table        the cost of a step that stays inside one host …
    iterations   … or, one per replica, the builders of iterations that go through `fabric` (None: transfers
                 take no time)
    stages       of replicas that are cut into pipeline stages; they go through `fabric` where any crosses hosts
    precedence   [requests] lower first, for policies that order the line by it
    alone        tells how long an iteration takes with the fabric to itself; None: contention is not told apart
    load_source  of the times of limits.residency
    Raises ValueError where the lengths differ, or neither or both of table and iterations are given.
    """

    kind = "serving"
    is_background = False

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        arrival_s: NDArray[np.float64],
        num_prompt_tokens: NDArray[np.int64],
        num_output_tokens: NDArray[np.int64],
        limits: EngineLimits,
        num_replicas: int = 1,
        router: str = "round_robin",
        table: StepTable | None = None,
        iterations: Sequence[Iteration] = (),
        fabric: Fabric | None = None,
        record_batches: bool = True,
        record_token_times: bool = True,
        memory: Mapping[str, float] | None = None,
        priced: PricedStep | None = None,
        contents: Contents | None = None,
        rng: np.random.Generator | None = None,
        adapter: NDArray[np.int64] | None = None,
        model: NDArray[np.int64] | None = None,
        num_models: int = 1,
        remarks: Sequence[str] = (),
        tenants: Tenants | None = None,
        precedence: NDArray[np.int64] | None = None,
        alone: AloneOnIdeal | None = None,
        front: Front | None = None,
        stages: Stages | None = None,
        load_source: Source = Source.ROOFLINE,
    ) -> None:
        if (table is None) == (len(iterations) == 0) or len(iterations) not in (0, num_replicas):
            raise ValueError(f"{num_replicas} replicas need one table, or an iteration each, not both")
        self.name = name
        self.clock = clock
        self.requests = new_requests(arrival_s, num_prompt_tokens, num_output_tokens, adapter)
        self._model = np.zeros(len(self.requests), np.int64) if model is None else model
        self._num_routed = [0] * num_models
        """To each model."""
        self.token_time_s = new_token_times(self.requests)
        self.requests["precedence"] = 0 if precedence is None else precedence
        self._is_drafting = limits.speculation is not None
        self._is_swapping = limits.num_host_blocks > 0
        self._is_discarding = limits.ends_unforeseen
        self._asked = new_asked(len(self.requests) if limits.tiers else 0)
        self._residency = limits.residency
        self._load_source = load_source
        self.router = ROUTERS[router]
        self._rng = np.random.default_rng(0) if rng is None else rng
        self.tenants = tenants
        self.remarks = list(remarks)
        """What a reader of the results has to know, and is known before anything runs."""
        self.failures: Counter[str] = Counter()
        """Refused requests by reason."""
        self.record_batches = record_batches
        self.record_token_times = record_token_times
        self.memory = dict(memory or {})
        """Metrics that are known before anything runs: what lies in an accelerator's memory."""
        self._num_arrived = 0
        if not record_batches:
            limits = replace(limits, max_step_rows=0)
        self.priced = priced
        """The step's prices and their sources, where some are measured."""
        if priced is not None:
            limits = replace(limits, tally_tokens=priced.table.curves.shape[1] - 1)
        self.splits = new_splits(len(self.requests))
        self.stages = stages
        self._crosses_fabric, self._alone = fabric is not None, alone
        self.replicas: Sequence[Replica] = self._new_replicas(
            limits, num_replicas, table, iterations, fabric, contents
        )
        self.entrances: Sequence[Replica] = self.replicas
        """Those that a request may come to first."""
        self.front = front
        if front is not None:
            front.attach(clock, self.requests, list(self.replicas), self.router, self._rng, self.failures)
            front.divide(self._model, num_models)

    def _new_replicas(
        self,
        limits: EngineLimits,
        num_replicas: int,
        table: StepTable | None,
        iterations: Sequence[Iteration],
        fabric: Fabric | None,
        contents: Contents | None,
    ) -> Sequence[Replica]:
        holdings = new_holdings(len(self.requests))
        refused = refusals(self.requests, limits)

        def engine(replica: int, copy: int = 0) -> Engine:
            return Engine(
                replica, copy, self.requests, self.token_time_s, holdings, limits, refused, contents, self.splits,
                self._asked,
            )  # fmt: skip

        if table is not None and self.stages is not None:
            return self._staged(limits, num_replicas, table, fabric, holdings, refused, contents)
        if table is not None:
            return [LocalReplica(self.clock, engine(i), table) for i in range(num_replicas)]
        copies = [[engine(i, copy) for copy in range(iterations[i].num_copies)] for i in range(num_replicas)]
        return [
            FabricReplica(self.clock, copies[i], iterations[i], fabric, self._alone) for i in range(num_replicas)
        ]

    def _staged(
        self, limits: EngineLimits, num_replicas: int, table: StepTable, fabric: Fabric | None,
        holdings: NDArray[Any], refused: list[str | None], contents: Contents | None,
    ) -> Sequence[Replica]:  # fmt: skip
        assert self.stages is not None
        stages = self.stages
        engines = [
            PipelineEngine(
                i, 0, self.requests, self.token_time_s, holdings, limits, refused, contents, self.splits
            ).cut(stages)
            for i in range(num_replicas)
        ]
        if not stages.crosses.any():
            return [PipelineReplica(self.clock, engine, table) for engine in engines]
        return [FabricPipelineReplica(self.clock, engine, table, stages, fabric, self.name) for engine in engines]

    def start(self) -> Event:
        """Let requests arrive from now on; the event triggers when all have ended."""
        self.requests["arrival_s"] += self.clock.now
        self.requests["submitted_s"] = self.requests["arrival_s"]
        return self.clock.process(self._run())

    def _run(self) -> Generator[Event, None, None]:
        if self.front is not None:
            yield from self.front.run()
            self.check()
            return
        draws = self._rng.random((len(self.requests), 2))
        for first in range(0, len(self.requests), ARRIVALS_PER_CATCH_UP):
            some = slice(first, first + ARRIVALS_PER_CATCH_UP)
            # As plain numbers, so many at a time: out of arrays one by one they would cost as much as the engine does.
            columns = (self.requests["arrival_s"], self._model, self.requests["adapter"], draws[:, 0], draws[:, 1])
            rows = zip(*(column[some].tolist() for column in columns), strict=True)
            for request, (arrival_s, model, adapter, *both) in enumerate(rows, first):
                arrival = self.clock.event()
                self.clock.succeed_at(arrival, arrival_s)
                yield arrival
                if self.router.sees_replicas or request == first:
                    self._catch_up()
                routed = Routed(request, self._num_routed[model], (both[0], both[1]), adapter)
                reason = self._replica_for(routed, model).submit(request)
                if reason is not None:
                    self.failures[reason] += 1
                self._num_arrived += 1
        yield from self._drain()
        self.check()

    def _drain(self) -> Generator[Event, None, None]:
        """Wait until every request has ended."""
        for replica in self.replicas:
            yield from replica.drain()

    def _replica_for(self, routed: Routed, model: int) -> Replica:
        """Where the router sends it, of the replicas of its model."""
        each = len(self.entrances) // len(self._num_routed)
        replicas = self.entrances[model * each : (model + 1) * each]
        self._num_routed[model] += 1
        return replicas[self.router.choose(replicas, routed)]

    @property
    def progress(self) -> tuple[int, int]:
        """(requests that have ended, all requests)."""
        if self.front is not None:
            return self.front.num_ended, len(self.requests)
        ended = self.failures.total() + sum(engine.count("num_completed") for engine in self.engines)
        return ended, len(self.requests)


