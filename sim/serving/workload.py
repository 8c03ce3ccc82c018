"""The serving workload: requests arrive, are routed to replicas, and are accounted for at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.priced import PricedStep
from models.cost.provenance import Source
from models.cost.shares import ROOFLINE, StepTally, time_by_source
from models.cost.step import StepTable
from sim.devices.kv_cache import Contents, new_holdings
from sim.devices.kv_tiers import new_asked
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.transfer import Fabric
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.fabric_replica import FabricReplica, Replica
from sim.serving.front import Front
from sim.serving.load import WARM_UP, herd_of, queue_of
from sim.serving.metrics import as_of, serving_metrics
from sim.serving.pipeline_replica import (
    FabricPipelineReplica,
    PipelineEngine,
    PipelineReplica,
    Stages,
    pipeline_metrics,
)
from sim.serving.replica import Engine, EngineLimits, LocalReplica, refusals
from sim.serving.request import (
    COMPLETED,
    FAILED,
    NOT_ARRIVED,
    OUTCOMES,
    TIMED_OUT,
    UNFINISHED,
    new_requests,
    new_token_times,
)
from sim.serving.router import ROUTERS, Routed
from sim.serving.tenants import Tenants
from sim.serving.tier_metrics import tier_metrics, tier_rows
from sim.serving.time_split import ADAPTER_LOAD, PARTS, new_splits, parts_s

ARRIVALS_PER_CATCH_UP = 1024
"""Replicas that nobody looks at are brought up to the clock this often, to spread their work over the run."""


class ConservationError(RuntimeError):
    """Requests or tokens do not add up; the text gives the law and both sides."""


COPIES = "copies of KV blocks"
DRAFTS = "drafting"
LOADS = "loading and evicting adapters"

FROM_TABLES = (Source.MEASURED, Source.IMPORTED, Source.INTERPOLATED)
"""Times that are measured, or lie between measured ones."""


class ServingWorkload:
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
        iterations: Sequence[ExpertParallelIteration] = (),
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
        iterations: Sequence[ExpertParallelIteration],
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
    def engines(self) -> list[Engine]:
        """Of all replicas, one for each copy of the attention."""
        return [engine for replica in self.replicas for engine in replica.engines]

    @property
    def progress(self) -> tuple[int, int]:
        """(requests that have ended, all requests)."""
        if self.front is not None:
            return self.front.num_ended, len(self.requests)
        ended = self.failures.total() + sum(engine.count("num_completed") for engine in self.engines)
        return ended, len(self.requests)

    @property
    def num_steps(self) -> int:
        """Engine steps simulated so far, of each copy of the attention."""
        return sum(engine.count("num_steps") for engine in self.engines)

    def notes(self) -> list[str]:
        """What a reader of the results has to know: refused requests, and steps that were not recorded."""
        notes = [*self.remarks]
        notes += [f"{count} requests refused: {reason}" for reason, count in sorted(self.failures.items())]
        missing = self.num_steps - sum(len(engine.steps) for engine in self.engines)
        if self.record_batches and missing:
            notes.append(f"{missing} of {self.num_steps} steps are not in the batches table, which is full")
        return notes + (self.front.notes() if self.front is not None else [])

    def metrics(self) -> dict[str, float | None]:
        self._catch_up()
        known = as_of(self.requests, self.token_time_s, self.clock.now)
        metrics = serving_metrics(*known)
        if self._is_swapping:
            metrics["num_swapped"] = int(self.requests["num_swaps"].sum())
        if self._is_discarding:
            metrics["discarded_tokens"] = sum(engine.count("num_discarded") for engine in self.engines)
        if self._is_drafting:
            metrics |= self._draft_metrics()
        if len(self._asked):
            metrics |= tier_metrics(known[0], self._asked, self.engines)
        if self._residency is not None:
            metrics |= self._load_metrics()
        shares = self.time_by_source()
        total_s = sum(shares.values())
        measured_s = sum(seconds for (_, source), seconds in shares.items() if source in FROM_TABLES)
        metrics["measured_share"] = measured_s / total_s if total_s > 0 else None
        split = self.time_split()
        for part in PARTS if self._residency is None else (*PARTS, ADAPTER_LOAD):
            part_s = split[f"{part}_s"]
            mean_s = float(part_s.mean()) if len(part_s) else np.nan
            metrics[f"mean_{part}_ms"] = None if np.isnan(mean_s) else 1e3 * mean_s
        if self.front is not None:
            metrics |= self.front.metrics()
        if self.stages is not None:
            metrics |= pipeline_metrics(self.engines)
        counts = None if self.front is None else self.front.counts
        of_tenants = {} if self.tenants is None else self.tenants.metrics(*known, counts)
        return metrics | {"num_steps": self.num_steps} | self.memory | of_tenants

    def _draft_metrics(self) -> dict[str, float | None]:
        """With the names of `vllm bench serve`; the length is 1 + accepted / drafts, where all of a sequence's in one
        step are one draft."""
        drafts, tokens, accepted = (
            sum(engine.count(name) for engine in self.engines)
            for name in ("num_verified", "num_drafted", "num_accepted")
        )
        return {
            "spec_decode_num_drafts": drafts,
            "spec_decode_draft_tokens": tokens,
            "spec_decode_accepted_tokens": accepted,
            "spec_decode_acceptance_length": 1 + accepted / drafts if drafts else None,
        }

    def _load_metrics(self) -> dict[str, float | None]:
        """Loads and evictions so far, and the share of those who joined a batch that waited for neither."""
        loads, evictions, joined, at_once = (
            sum(engine.count(name) for engine in self.engines)
            for name in ("num_loads", "num_evictions", "num_joined", "num_joined_at_once")
        )
        load_s, evict_s = (
            sum(float(engine.state.counts[name][0]) for engine in self.engines)
            for name in ("adapter_load_s", "evict_s")
        )
        return {
            "adapter_loads": loads, "adapter_evictions": evictions, "adapter_load_s": load_s,
            "adapter_evict_s": evict_s, "adapter_hit_rate": at_once / joined if joined else None,
        }  # fmt: skip

    def time_split(self) -> dict[str, NDArray[np.float64]]:
        """Columns of table `time_split`: of each request completed by now its number, e2e_s and the parts of it."""
        done = (self.requests["outcome"] == COMPLETED) & (self.requests["finished_s"] <= self.clock.now)
        rows = self.requests[done]
        parts = parts_s(
            self.splits[done], self._crosses_fabric, self._alone is not None, self.stages is not None,
            self._residency is not None,
        )  # fmt: skip
        return {
            "request": np.flatnonzero(done), "e2e_s": rows["finished_s"] - rows["arrival_s"],
            **{f"{part}_s": part_s for part, part_s in parts.items()},
        }  # fmt: skip

    def held_up(self) -> dict[tuple[str, str], float]:
        """Of the time that its messages were under way, the share that each link held them up in, by whose messages
        were there as well (empty: nobody's). Seen once a step, so within chance; in fluid, where contention is asked
        for."""
        replicas = [replica for replica in self.replicas if isinstance(replica, FabricReplica)]
        held_s = sum((replica.held_s for replica in replicas), Counter())
        looked_s = sum(replica.looked_s for replica in replicas)
        return {key: held_s[key] / looked_s for key in sorted(held_s)}

    def queue(self) -> dict[str, float | None]:
        """What `sim.serving.load` judges the load by, without the warm-up, and the mean latency of what completed; and
        the herd, where clients begin at one instant."""
        self._catch_up()
        now_s = self.clock.now
        requests, _ = as_of(self.requests, self.token_time_s, now_s)
        served = requests[requests["outcome"] == COMPLETED]
        is_at_once = self.front is not None and self.front.clients.num_at_once > 1
        herd = herd_of(served["arrival_s"], served["first_token_s"]) if is_at_once else None
        counted = requests[requests["outcome"] != NOT_ARRIVED]
        counted = counted[np.argsort(counted["arrival_s"], kind="stable")]  # turns are numbered by session
        counted = counted[int(WARM_UP * len(counted)) :]
        counted = counted[~np.isin(counted["outcome"], (FAILED, TIMED_OUT))]
        done = counted[counted["outcome"] == COMPLETED]
        latency_s = float((done["finished_s"] - done["arrival_s"]).mean()) if len(done) else None
        queue = asdict(queue_of(counted["arrival_s"], counted["scheduled_s"], now_s)) | {"mean_latency_s": latency_s}
        return queue if herd is None else queue | asdict(herd)

    def time_by_source(self) -> dict[tuple[str, Source], float]:
        """Accelerator time of all steps by (operator, source)."""
        found: dict[tuple[str, Source], float] = defaultdict(float)
        owners = [replica for replica in self.replicas for _ in replica.engines]
        for replica, engine in zip(owners, self.engines, strict=True):
            state, counts, priced = engine.state, engine.state.counts[0], self._priced_of(replica)
            for what, name in ((COPIES, "total_copy_s"), (DRAFTS, "total_draft_s")):
                if counts[name] > 0:
                    found[what, Source.ROOFLINE] += float(counts[name])
            if self._residency is not None and not self._residency.is_overlapped and counts["num_loads"] > 0:
                found[LOADS, self._load_source] += float(counts["adapter_load_s"] + counts["evict_s"])
            if priced is None:
                found[ROOFLINE, Source.ROOFLINE] += float(counts["total_s"])
                continue
            tally = StepTally(
                state.steps_with_tokens, state.steps_with_sequences, float(counts["total_s"]),
                float(counts["total_prefill_s"]), float(counts["total_decode_s"]), float(counts["outside_s"]),
                float(counts["total_expert_s"]), float(counts["outside_expert_s"]),
            )  # fmt: skip
            for key, seconds in time_by_source(priced, tally).items():
                found[key] += seconds
        return dict(found)

    def _priced_of(self, replica: Replica) -> PricedStep | None:
        return self.priced

    def record(self, recorder: Recorder) -> None:
        """Rows of `requests`, `tenants`, and unless told otherwise of `batches` and `token_times`, up to now."""
        self._catch_up()
        now_s = self.clock.now
        requests, token_time_s = as_of(self.requests, self.token_time_s, now_s)
        ids = np.flatnonzero(requests["outcome"] != NOT_ARRIVED)
        rows = requests[ids]
        more: dict[str, Any] = {"num_swaps": rows["num_swaps"]} if self._is_swapping else {}
        if len(self._asked):
            is_known = ~np.isnan(rows["scheduled_s"])
            more |= {f"{tier}_tokens": self._asked[f"from_{tier}"][ids] * is_known for tier in ("host", "disk")}
        recorder.append_some(
            "requests",
            workload=self.name,
            request=ids,
            replica=rows["replica"],
            copy=rows["copy"],
            adapter=rows["adapter"],
            arrival_s=rows["arrival_s"],
            scheduled_s=rows["scheduled_s"],
            first_token_s=rows["first_token_s"],
            finished_s=rows["finished_s"],
            input_tokens=rows["num_prompt_tokens"],
            cached_tokens=rows["num_cached"],
            output_tokens=rows["num_generated"],
            num_preemptions=rows["num_preemptions"],
            outcome=np.array(OUTCOMES)[rows["outcome"]],
            **more,
            **(self.front.columns(ids) if self.front is not None else {}),
        )
        if self.tenants is not None and self.tenants.names:
            of_each = np.array(self.tenants.names)[self.tenants.of[ids]]
            recorder.append("tenants", workload=self.name, request=ids, tenant=of_each)
        recorder.append_some("time_split", workload=self.name, **self.time_split())
        for (link, other), share in self.held_up().items():
            recorder.append("contention", workload=self.name, link=link, with_workload=other, share=share)
        for engine in self.engines:
            for row in tier_rows(engine):
                recorder.append("kv_tiers", workload=self.name, **row)
        if self.record_batches:
            for engine in self.engines:
                self._record_batches(recorder, engine, now_s)
        for (operator, source), seconds in self.time_by_source().items():
            recorder.append(
                "cost_sources", workload=self.name, operator=operator, source=source.label, seconds=seconds
            )
        if self.record_token_times:
            recorder.stream("token_times", partial(_token_rows, self.name, requests, token_time_s))

    def _record_batches(self, recorder: Recorder, engine: Engine, now_s: float) -> None:
        steps = engine.steps
        steps = steps[: np.searchsorted(steps["finished_s"], now_s, side="right")]
        recorder.append(
            "batches",
            workload=self.name,
            replica=engine.index,
            copy=engine.copy,
            step=np.arange(len(steps)),
            **{field: steps[field] for field in ("started_s", "finished_s")},
            **{f: steps[f] for f in ("num_prefill_tokens", "num_decodes", "num_kv_blocks")},
            **{field: steps[field] for field in ("compute_s", "communication_s")},
        )

    def _catch_up(self) -> None:
        for replica in self.replicas:
            replica.catch_up()

    def check(self) -> None:
        """Raises ConservationError unless every request, and every token generated, is accounted for."""
        outcome = self.requests["outcome"]
        outstanding = sum(replica.num_outstanding for replica in self.replicas)
        completed, failed = int((outcome == COMPLETED).sum()), int((outcome == FAILED).sum())
        arrived, timed_out = self._num_arrived, int((outcome == TIMED_OUT).sum())
        if self.front is not None:
            arrived = self.front.num_arrived
            outstanding += self.front.num_between
        if completed + failed + timed_out + outstanding != arrived:
            given_up = f" + {timed_out} timed out" if timed_out else ""
            raise ConservationError(
                f"{self.name}: {completed} completed + {failed} failed{given_up} + {outstanding} unfinished requests, "
                f"but {arrived} arrived"
            )
        if self.front is not None:
            self._check_places(self.front)
        done = self.requests[outcome == COMPLETED]
        if (done["num_generated"] != done["num_output_tokens"]).any():
            raise ConservationError(f"{self.name}: a completed request lacks output tokens")
        expected = int(self.requests["num_generated"].sum())
        timed = int((~np.isnan(self.token_time_s)).sum())
        if timed != expected:
            raise ConservationError(f"{self.name}: {expected} tokens generated, {timed} have a time")
        for engine in self.engines:
            engine.check()

    def _check_places(self, front: Front) -> None:
        """Raises ConservationError unless each request that was sent has ended or is in one place: then what was sent
        is completed, failed, timed out or unfinished for each tenant as well."""
        outcome, is_sent = self.requests["outcome"], front.num_attempts > 0
        if ((outcome != NOT_ARRIVED) != is_sent).any():
            raise ConservationError(f"{self.name}: {int(is_sent.sum())} requests were sent, others have an outcome")
        unended = front.unended
        unended = np.sort(unended[outcome[unended] == UNFINISHED])
        unfinished = np.flatnonzero(outcome == UNFINISHED)
        if not np.array_equal(unended, unfinished):
            raise ConservationError(
                f"{self.name}: requests {unfinished.tolist()} are unfinished, but those with a replica or waiting for "
                f"one are {unended.tolist()}"
            )


TOKENS_PER_CHUNK = 1 << 20


def _token_rows(
    workload: str, requests: NDArray[Any], token_time_s: NDArray[np.float64]
) -> Iterator[dict[str, Any]]:
    """Rows of `token_times`, some at a time: they may take more memory than all the rest."""
    for first in range(0, max(len(token_time_s), 1), TOKENS_PER_CHUNK):
        time_s = token_time_s[first : first + TOKENS_PER_CHUNK]
        known = ~np.isnan(time_s)
        # A request has at least one output token, so that no two begin at the same place.
        owner = np.searchsorted(requests["first_token"], first + np.flatnonzero(known), side="right") - 1
        yield {"workload": workload, "request": owner, "time_s": time_s[known]}
