"""What a serving workload tells of itself: metrics, tables, and that nothing has vanished."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cost.priced import PricedStep
from models.cost.provenance import Source
from models.cost.shares import ROOFLINE, StepTally, time_by_source
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.alone import AloneOnIdeal
from sim.serving.fabric_replica import FabricReplica, Replica
from sim.serving.front import Front
from sim.serving.load import WARM_UP, herd_of, queue_of
from sim.serving.metrics import as_of, serving_metrics
from sim.serving.pipeline_replica import Stages, pipeline_metrics
from sim.serving.replica import Engine
from sim.serving.request import COMPLETED, FAILED, NOT_ARRIVED, OUTCOMES, TIMED_OUT, UNFINISHED
from sim.serving.residency import Residency
from sim.serving.tenants import Tenants
from sim.serving.tier_metrics import tier_metrics, tier_rows
from sim.serving.time_split import ADAPTER_LOAD, PARTS, parts_s

LOADS = "loading and evicting adapters"
COPIES = "copies of KV blocks"
DRAFTS = "drafting"

FROM_TABLES = (Source.MEASURED, Source.IMPORTED, Source.INTERPOLATED)
"""Times that are measured, or lie between measured ones."""


class ConservationError(RuntimeError):
    """Requests or tokens do not add up; the text gives the law and both sides."""


class Accounts:
    """Of the requests, tokens and steps of a ServingWorkload, whose attributes these are."""

    name: str
    clock: Clock
    requests: NDArray[Any]
    token_time_s: NDArray[np.float64]
    splits: NDArray[Any]
    replicas: Sequence[Replica]
    priced: PricedStep | None
    front: Front | None
    tenants: Tenants | None
    stages: Stages | None
    memory: dict[str, float]
    remarks: Sequence[str]
    failures: Counter[str]
    record_batches: bool
    record_token_times: bool
    _num_arrived: int
    _asked: NDArray[Any]
    _alone: AloneOnIdeal | None
    _residency: Residency | None
    _load_source: Source
    _crosses_fabric: bool
    _is_drafting: bool
    _is_swapping: bool
    _is_discarding: bool

    @property
    def engines(self) -> list[Engine]:
        """Of all replicas, one for each copy of the attention."""
        return [engine for replica in self.replicas for engine in replica.engines]

    @property
    def num_steps(self) -> int:
        """Engine steps simulated so far, of each copy of the attention."""
        return sum(engine.count("num_steps") for engine in self.engines)

    def _catch_up(self) -> None:
        for replica in self.replicas:
            replica.catch_up()

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
