"""The serving workload: requests arrive, are routed to replicas, and are accounted for at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.priced import PricedStep
from models.cost.provenance import Source
from models.cost.shares import ROOFLINE, StepTally, time_by_source
from models.cost.step import StepTable
from sim.devices.kv_cache import Contents, new_holdings
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.transfer import Fabric
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.metrics import as_of, serving_metrics
from sim.serving.replica import Engine, EngineLimits, FabricReplica, LocalReplica, Replica, refusals
from sim.serving.request import COMPLETED, FAILED, NOT_ARRIVED, OUTCOMES, new_requests, new_token_times
from sim.serving.router import ROUTERS, Routed

ARRIVALS_PER_CATCH_UP = 1024
"""Replicas that nobody looks at are brought up to the clock this often, to spread their work over the run."""


class ConservationError(RuntimeError):
    """Requests or tokens do not add up; the text gives the law and both sides."""


FROM_TABLES = (Source.MEASURED, Source.IMPORTED, Source.INTERPOLATED)
"""Times that are measured, or lie between measured ones."""


class ServingWorkload:
    """An open loop of requests on replicas of one model.

    arrival_s, num_prompt_tokens, num_output_tokens   [requests]; arrivals count from `start`
    num_replicas, limits, router     replicas are alike; router is a name in ROUTERS, which draws from rng
    adapter      [requests] of each: 0 the base model, i the i-th adapter
    model        [requests] which of num_models serves it, each on an equal part of the replicas; None: there is one
    table        the cost of a step that stays inside one host …
    iterations   … or, one per replica, the builders of iterations that go through `fabric` (None: transfers
                 take no time)
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
        self.router = ROUTERS[router]
        self._rng = np.random.default_rng(0) if rng is None else rng
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
        self.replicas: Sequence[Replica] = self._new_replicas(
            limits, num_replicas, table, iterations, fabric, contents
        )
        self.entrances: Sequence[Replica] = self.replicas
        """Those that a request may come to first."""

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
            return Engine(replica, copy, self.requests, self.token_time_s, holdings, limits, refused, contents)

        if table is not None:
            return [LocalReplica(self.clock, engine(i), table) for i in range(num_replicas)]
        copies = [[engine(i, copy) for copy in range(iterations[i].num_copies)] for i in range(num_replicas)]
        return [FabricReplica(self.clock, copies[i], iterations[i], fabric) for i in range(num_replicas)]

    def start(self) -> Event:
        """Let requests arrive from now on; the event triggers when all have ended."""
        self.requests["arrival_s"] += self.clock.now
        return self.clock.process(self._run())

    def _run(self) -> Generator[Event, None, None]:
        draws = self._rng.random((len(self.requests), 2))
        for request, arrival_s in enumerate(self.requests["arrival_s"].tolist()):
            arrival = self.clock.event()
            self.clock.succeed_at(arrival, arrival_s)
            yield arrival
            if self.router.sees_replicas or request % ARRIVALS_PER_CATCH_UP == 0:
                self._catch_up()
            reason = self._replica_for(request, draws[request]).submit(request)
            if reason is not None:
                self.failures[reason] += 1
            self._num_arrived += 1
        yield from self._drain()
        self.check()

    def _drain(self) -> Generator[Event, None, None]:
        """Wait until every request has ended."""
        for replica in self.replicas:
            yield from replica.drain()

    def _replica_for(self, request: int, draws: NDArray[np.float64]) -> Replica:
        """Where the router sends it, of the replicas of its model."""
        model = int(self._model[request])
        each = len(self.entrances) // len(self._num_routed)
        replicas = self.entrances[model * each : (model + 1) * each]
        routed = Routed(request, self._num_routed[model], (draws[0], draws[1]))
        self._num_routed[model] += 1
        return replicas[self.router.choose(replicas, routed)]

    @property
    def engines(self) -> list[Engine]:
        """Of all replicas, one for each copy of the attention."""
        return [engine for replica in self.replicas for engine in replica.engines]

    @property
    def progress(self) -> tuple[int, int]:
        """(requests that have ended, all requests)."""
        ended = self.failures.total() + sum(engine.count("num_completed") for engine in self.engines)
        return ended, len(self.requests)

    @property
    def num_steps(self) -> int:
        """Engine steps simulated so far, of each copy of the attention."""
        return sum(engine.count("num_steps") for engine in self.engines)

    def notes(self) -> list[str]:
        """What a reader of the results has to know: refused requests, and steps that were not recorded."""
        notes = [f"{count} requests refused: {reason}" for reason, count in sorted(self.failures.items())]
        missing = self.num_steps - sum(len(engine.steps) for engine in self.engines)
        if self.record_batches and missing:
            notes.append(f"{missing} of {self.num_steps} steps are not in the batches table, which is full")
        return notes

    def metrics(self) -> dict[str, float | None]:
        self._catch_up()
        metrics = serving_metrics(*as_of(self.requests, self.token_time_s, self.clock.now))
        shares = self.time_by_source()
        total_s = sum(shares.values())
        measured_s = sum(seconds for (_, source), seconds in shares.items() if source in FROM_TABLES)
        metrics["measured_share"] = measured_s / total_s if total_s > 0 else None
        return metrics | {"num_steps": self.num_steps} | self.memory

    def time_by_source(self) -> dict[tuple[str, Source], float]:
        """Accelerator time of all steps by (operator, source)."""
        found: dict[tuple[str, Source], float] = defaultdict(float)
        owners = [replica for replica in self.replicas for _ in replica.engines]
        for replica, engine in zip(owners, self.engines, strict=True):
            state, counts, priced = engine.state, engine.state.counts[0], self._priced_of(replica)
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
        """Rows of `requests`, and unless told otherwise of `batches` and `token_times`, up to now."""
        self._catch_up()
        now_s = self.clock.now
        requests, token_time_s = as_of(self.requests, self.token_time_s, now_s)
        ids = np.flatnonzero(requests["outcome"] != NOT_ARRIVED)
        rows = requests[ids]
        recorder.append(
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
        )
        if self.record_batches:
            for engine in self.engines:
                self._record_batches(recorder, engine, now_s)
        for (operator, source), seconds in self.time_by_source().items():
            recorder.append(
                "cost_sources", workload=self.name, operator=operator, source=source.label, seconds=seconds
            )
        if self.record_token_times:
            known = ~np.isnan(token_time_s)
            owner = np.repeat(np.arange(len(requests)), requests["num_output_tokens"])
            recorder.append(
                "token_times", workload=self.name, request=owner[known], time_s=token_time_s[known]
            )

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
        if completed + failed + outstanding != self._num_arrived:
            raise ConservationError(
                f"{self.name}: {completed} completed + {failed} failed + {outstanding} unfinished requests, "
                f"but {self._num_arrived} arrived"
            )
        done = self.requests[outcome == COMPLETED]
        if (done["num_generated"] != done["num_output_tokens"]).any():
            raise ConservationError(f"{self.name}: a completed request lacks output tokens")
        expected = int(self.requests["num_generated"].sum())
        timed = int((~np.isnan(self.token_time_s)).sum())
        if timed != expected:
            raise ConservationError(f"{self.name}: {expected} tokens generated, {timed} have a time")
        for engine in self.engines:
            engine.check()
