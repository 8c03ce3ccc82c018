"""The serving workload on two pools: one computes prompts, the other generates, and keys and values move in between."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.priced import PricedStep
from models.cost.step import StepTable
from models.kv_transfer import KVShards
from sim.devices.kv_cache import Contents, new_holdings
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.transfer import Fabric
from sim.serving.accounts import ConservationError
from sim.serving.disaggregation import DecodeReplica, FabricDecodeReplica, PrefillReplica, TableIteration
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.fabric_replica import Replica
from sim.serving.kv_transfer import Handover, KVSender
from sim.serving.metrics import summary
from sim.serving.pools_front import PoolsFront
from sim.serving.replica import Engine, EngineLimits, refusals
from sim.serving.request import COMPLETED, FAILED, NOT_ARRIVED, UNFINISHED, new_requests, new_token_times
from sim.serving.router import ROUTERS, Routed
from sim.serving.time_split import PARTS, new_splits, parts_s
from sim.serving.workload import ServingWorkload

TRANSFER_FAILED = "its keys and values did not arrive"

TIMES = ("asked_s", "reserved_s", "started_s", "received_s")


def _column(handovers: Sequence[Handover], field: str, dtype: type = np.float64) -> NDArray[Any]:
    return np.array([getattr(handover, field) for handover in handovers], dtype)


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas that are alike.

    ranks             accelerators of each replica: [copies of the attention, tensor ranks]
    table, iterations, fabric, priced, contents, router    as in `ServingWorkload`
    num_kv_tokens, weight_bytes                    of each replica's copy of the attention, and of an accelerator
    """

    limits: EngineLimits
    ranks: Sequence[NDArray[np.int64]]
    router: str = "round_robin"
    table: StepTable | None = None
    iterations: Sequence[ExpertParallelIteration] = ()
    fabric: Fabric | None = None
    priced: PricedStep | None = None
    contents: Contents | None = None
    num_kv_tokens: int = 0
    weight_bytes: int = 0

    def iteration_of(self, index: int) -> TableIteration | ExpertParallelIteration:
        return self.iterations[index] if self.table is None else TableIteration(self.table)

    @property
    def num_seconds_at_once(self) -> int:
        """Accelerator seconds, as engines count them, in one second of the busy pool."""
        return len(self.ranks) if self.table is not None else sum(ranks.size for ranks in self.ranks)


class DisaggregatedWorkload(ServingWorkload):
    """Requests that one pool prefills and another decodes: an open loop, unless `front` says what clients do.

    A request's first token comes from its prompt, in the prefill pool; the second waits for the keys and values, which
    move over the fabric as `shards` says. prefill.router chooses at arrival; decode.router when the prompt is done, or,
    where layers are sent as they are computed (is_layered), when its first step is formed. A request whose
    keys and values do not arrive has failed.

    Leaves out: the proxy between the pools and its hops; computing the first token again in the decode pool, for which
    vLLM's example proxies wait, so that their TTFT contains the transfer.

    Source: Splitwise (Patel et al., ISCA 2024), DistServe (Zhong et al., OSDI 2024), vLLM's KV connectors.
    Raises ValueError where the pools' blocks differ in size.
    """

    def __init__(
        self, name: str, clock: Clock, *, prefill: Pool, decode: Pool, shards: KVShards, fabric: Fabric | None = None,
        is_layered: bool = False, queue_pairs: int = 1, front: PoolsFront | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if prefill.limits.block_size != decode.limits.block_size:
            raise ValueError(f"blocks of {prefill.limits.block_size} and of {decode.limits.block_size} tokens")
        self.prefill, self.decode = prefill, decode
        self.handovers: dict[int, Handover] = {}
        self._num_single = 0
        self._num_moved = 0
        self._left: Event | None = None
        """Triggers when no request is in the prefill pool or on its way any more."""
        self.sender = KVSender(
            clock, fabric, shards, prefill.limits.block_size, prefill.ranks, decode.ranks, self._transferred,
            is_layered=is_layered, queue_pairs=queue_pairs, owner=name,
        )  # fmt: skip
        pools = {"prefill": prefill, "decode": decode}
        memory = {f"{which}_kv_tokens": pool.num_kv_tokens for which, pool in pools.items()}
        memory |= {f"{which}_weight_bytes": pool.weight_bytes for which, pool in pools.items()}
        super().__init__(
            name, clock, limits=prefill.limits, num_replicas=len(prefill.ranks), router=prefill.router,
            table=prefill.table, iterations=prefill.iterations, memory=memory, **options,
        )  # fmt: skip
        self.entrances = self.prefills
        self.front = self.pools_front = front
        if front is not None:
            front.attach(clock, self.requests, list(self.prefills), self.router, self._rng, self.failures)
            front.attach_pools(self.prompts, self.answers, self.decodes)
        self._decode_router = ROUTERS[decode.router]

    def _new_replicas(self, limits: EngineLimits, *_: Any) -> Sequence[Replica]:
        requests, prefill, decode = self.requests, self.prefill, self.decode
        prompt, output = requests["num_prompt_tokens"], requests["num_output_tokens"]
        self.prompts = new_requests(requests["arrival_s"], prompt, np.ones_like(output), requests["adapter"])
        """The requests as the prefill pool sees them: one token each."""
        self.prompts["precedence"] = requests["precedence"]
        self.answers = requests.copy()
        """As the decode pool sees them: they come with their first token, when their keys and values have."""
        refused = [
            p or (None if n == 1 else d)
            for p, d, n in zip(refusals(self.prompts, prefill.limits), refusals(requests, decode.limits),
                               output.tolist(), strict=True)
        ]  # fmt: skip
        first_time_s = new_token_times(self.prompts)
        prompt_holdings, answer_holdings = new_holdings(len(requests)), new_holdings(len(requests))
        self.prompt_splits, self.answer_splits = new_splits(len(requests)), new_splits(len(requests))
        self.prefills: list[PrefillReplica] = []
        for i, ranks in enumerate(prefill.ranks):
            engines = [
                Engine(i, copy, self.prompts, first_time_s, prompt_holdings, self._limits(prefill), refused,
                       prefill.contents, self.prompt_splits) for copy in range(len(ranks))
            ]  # fmt: skip
            self.prefills.append(PrefillReplica(self.clock, engines, prefill.iteration_of(i), prefill.fabric, self))
        self.decodes: list[DecodeReplica | FabricDecodeReplica] = []
        for i, ranks in enumerate(decode.ranks):
            engines = [
                Engine(i + len(prefill.ranks), copy, self.answers, self.token_time_s, answer_holdings,
                       self._limits(decode), [None] * len(requests), decode.contents, self.answer_splits)
                for copy in range(len(ranks))
            ]  # fmt: skip
            self.decodes.append(
                FabricDecodeReplica(self.clock, engines, decode.iterations[i], decode.fabric, self._granted)
                if decode.table is None else DecodeReplica(self.clock, engines[0], decode.table, self._granted)
            )  # fmt: skip
        return [*self.prefills, *self.decodes]

    def _limits(self, pool: Pool) -> EngineLimits:
        limits = pool.limits if self.record_batches else replace(pool.limits, max_step_rows=0)
        return limits if pool.priced is None else replace(limits, tally_tokens=pool.priced.table.curves.shape[1] - 1)

    def _priced_of(self, replica: Replica) -> PricedStep | None:
        return (self.prefill if isinstance(replica, PrefillReplica) else self.decode).priced

    # --- a request's way ----------------------------------------------------------------------------------------------

    def start(self) -> Event:
        self.prompts["arrival_s"] += self.clock.now
        self.prompts["submitted_s"] = self.prompts["arrival_s"]
        return super().start()

    def computing(self, replica: PrefillReplica, start_s: float, step_s: float) -> None:
        """A prefill step was formed: where layers go as they come, ask for room, and send what the step adds."""
        if not self.sender.is_layered:
            return
        state, block_size = replica.engines[0].state, self.prefill.limits.block_size
        for part in state.batch[: state.counts["batch_size"][0]]:
            request, before = int(part["request"]), int(part["prefix"])
            if self.requests["num_output_tokens"][request] == 1:
                continue
            handover = self.handovers.get(request) or self._ask(replica, request, 0)
            if handover.reserved_s is None:
                continue
            context = before + int(part["num_tokens"])
            is_last = context >= self.requests["num_prompt_tokens"][request]
            num_blocks = handover.num_blocks if is_last else context // block_size
            self.sender.send_layers(handover, before // block_size, num_blocks, start_s, step_s)

    def first_token(self, replica: PrefillReplica, request: int, copy: int) -> None:
        """A prompt is done: its keys and values go on as soon as there is room for them."""
        row = self.requests[request]
        self.token_time_s[row["first_token"]] = self.prompts["first_token_s"][request]
        if row["num_output_tokens"] == 1:
            self._num_single += 1
            replica.let_go(request, copy)
            if self.pools_front is not None:
                self.pools_front.ended_before_decoding(request, COMPLETED)
            self._check_left()
            return
        handover = self.handovers.get(request) or self._ask(replica, request, copy)
        handover.is_computed = True
        if handover.reserved_s is not None:
            self.sender.send_rest(handover)

    def _ask(self, replica: PrefillReplica, request: int, copy: int) -> Handover:
        """Choose who decodes a request, and ask for room there."""
        if self._decode_router.sees_replicas:
            for each in self.decodes:
                each.catch_up()
        draws = self._decode_draws[request]
        adapter = int(self.requests["adapter"][request])
        routed = Routed(request, len(self.handovers), (draws[0], draws[1]), adapter)
        decode = self._decode_router.choose(self.decodes, routed)
        num_blocks = -(-int(self.requests["num_prompt_tokens"][request]) // self.prefill.limits.block_size)
        handover = Handover(request, replica.index, decode, num_blocks, self.clock.now, copy)
        self.handovers[request] = handover
        self.decodes[decode].ask(handover)
        if self.pools_front is not None:
            self.pools_front.changed(decode)
        return handover

    def _granted(self, handover: Handover) -> None:
        if self.pools_front is not None:
            self.pools_front.changed(handover.decode)
        if handover.is_computed:
            self.sender.send_rest(handover)

    def _transferred(self, handover: Handover) -> None:
        request, decode = handover.request, self.decodes[handover.decode]
        self.prefills[handover.prefill].let_go(request, handover.prefill_copy)
        if handover.has_failed:
            self.failures[TRANSFER_FAILED] += 1
            self.answers["outcome"][request] = FAILED
            decode.lose(handover)
            if self.pools_front is not None:
                self.pools_front.ended_before_decoding(request, FAILED)
                self.pools_front.changed(handover.decode)
        else:
            self._num_moved += 1
            self.answers["first_token_s"][request] = self.prompts["first_token_s"][request]
            decode.receive(handover)
            if self.pools_front is not None:
                self.pools_front.is_decoding(request, handover.decode)
        self._check_left()

    def _run(self) -> Generator[Event, None, None]:
        self._decode_draws = self._rng.random((len(self.requests), 2))
        yield from super()._run()

    def _drain(self) -> Generator[Event, None, None]:
        self._left = self.clock.event()
        self._check_left()
        yield self._left
        for replica in self.decodes:
            yield from replica.drain()

    def _check_left(self) -> None:
        num_left = self.failures.total() + self._num_single + self._num_moved
        if self._left is not None and not self._left.triggered and num_left == len(self.requests):
            self._left.succeed()

    @property
    def progress(self) -> tuple[int, int]:
        return self._num_ended, len(self.requests)

    @property
    def _num_ended(self) -> int:
        decoded = sum(engine.count("num_completed") for replica in self.decodes for engine in replica.engines)
        return self.failures.total() + self._num_single + decoded

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _merge(self) -> None:
        """Put together what both pools know of the requests by now."""
        self._catch_up()
        rows, prompts, answers = self.requests, self.prompts, self.answers
        for field in ("scheduled_s", "first_token_s", "num_cached", "replica", "copy"):
            rows[field] = prompts[field]
        is_single = rows["num_output_tokens"] == 1
        is_decoding = answers["num_generated"] > 0
        rows["num_preemptions"] = prompts["num_preemptions"] + answers["num_preemptions"]
        rows["num_generated"] = np.where(is_decoding, answers["num_generated"], prompts["num_generated"])
        rows["finished_s"] = np.where(is_single, prompts["finished_s"], answers["finished_s"])
        outcome = np.where(prompts["outcome"] == COMPLETED, UNFINISHED, prompts["outcome"])
        outcome = np.where(is_single, prompts["outcome"], outcome)
        rows["outcome"] = np.where(answers["outcome"] >= COMPLETED, answers["outcome"], outcome)

    def metrics(self) -> dict[str, float | None]:
        """Those of `ServingWorkload`, and of requests whose keys and values have arrived:

        kv_transit = last byte there - first byte let go         kv_wait = room reserved - asked for
        kv_exposed = last byte there - first token: what the second token waits for beside its own step
        kv_transfer_bytes: handed to the fabric, whole blocks. prefill_utilization, decode_utilization: accelerator time
        of all steps by all accelerators' in duration_s.
        """
        self._merge()
        metrics = super().metrics()
        done = [h for h in self.handovers.values() if h.received_s is not None]
        asked_s, reserved_s, started_s, received_s = (_column(done, field) for field in TIMES)
        samples_s = {
            "kv_transit": np.where(np.isnan(started_s), 0.0, received_s - started_s),
            "kv_wait": reserved_s - asked_s,
            "kv_exposed": received_s - self.prompts["first_token_s"][_column(done, "request", np.int64)],
        }
        for name, values_s in samples_s.items():
            metrics |= summary(name, values_s)
        metrics["kv_transfer_bytes"] = sum(h.size_bytes for h in self.handovers.values())
        for which, pool, replicas in (("prefill", self.prefill, self.prefills), ("decode", self.decode, self.decodes)):
            total_s = sum(float(e.state.counts["total_s"][0]) for replica in replicas for e in replica.engines)
            span_s = (metrics["duration_s"] or 0.0) * pool.num_seconds_at_once
            metrics[f"{which}_utilization"] = total_s / span_s if span_s else None
        return metrics

    def time_split(self) -> dict[str, NDArray[np.float64]]:
        """As of `ServingWorkload`: what a request lived through in either pool, and its keys and values in between."""
        self._merge()
        done = (self.requests["outcome"] == COMPLETED) & (self.requests["finished_s"] <= self.clock.now)
        rows, is_single = self.requests[done], self.requests["num_output_tokens"][done] == 1
        prompts, answers = (
            parts_s(splits[done], pool.fabric is not None, False)
            for splits, pool in ((self.prompt_splits, self.prefill), (self.answer_splits, self.decode))
        )
        parts = {f"{part}_s": prompts[part] + answers[part] for part in PARTS}
        moved_s = self.answers["arrival_s"][done] - self.prompts["first_token_s"][done]
        parts["kv_transfer_s"] = np.where(is_single, 0.0, moved_s)
        return {"request": np.flatnonzero(done), "e2e_s": rows["finished_s"] - rows["arrival_s"], **parts}

    def record(self, recorder: Recorder) -> None:
        """Also rows of `kv_transfers`; decode replicas are numbered behind those that prefill."""
        self._merge()
        super().record(recorder)
        handovers = list(self.handovers.values())
        recorder.append(
            "kv_transfers",
            workload=self.name,
            request=_column(handovers, "request", np.int64),
            prefill_replica=_column(handovers, "prefill", np.int64),
            decode_replica=_column(handovers, "decode", np.int64) + len(self.prefills),
            size_bytes=_column(handovers, "size_bytes", np.int64),
            num_shared_blocks=_column(handovers, "num_shared", np.int64),
            **{field: _column(handovers, field) for field in TIMES},
        )

    def check(self) -> None:
        """Raises ConservationError unless every request, token, and byte moved is accounted for."""
        self._merge()
        rows = self.requests
        num_ended = int((rows["outcome"] >= COMPLETED).sum())
        num_known = int((rows["outcome"] != NOT_ARRIVED).sum())
        num_arrived = self._num_arrived if self.front is None else self.front.num_arrived
        if num_known != num_arrived or num_ended != self._num_ended:
            raise ConservationError(
                f"{self.name}: {num_known} requests have come and {num_ended} have ended, but {num_arrived} "
                f"arrived and {self._num_ended} were counted at their ends"
            )
        if self.front is not None:
            self._check_places(self.front)
        if (rows["num_generated"] != rows["num_output_tokens"])[rows["outcome"] == COMPLETED].any():
            raise ConservationError(f"{self.name}: a completed request lacks output tokens")
        timed = int((~np.isnan(self.token_time_s)).sum())
        if timed != rows["num_generated"].sum():
            raise ConservationError(f"{self.name}: {rows['num_generated'].sum()} tokens generated, {timed} have a time")
        for handover in self.handovers.values():
            expected = (handover.num_sent - handover.num_shared) * self.sender.block_bytes
            if handover.size_bytes != expected:
                raise ConservationError(
                    f"{self.name}: request {handover.request} moved {handover.size_bytes} bytes of {expected}"
                )
        for engine in self.engines:
            engine.check()
