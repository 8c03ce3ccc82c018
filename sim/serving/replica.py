"""A replica: one engine, and the process that moves it through simulated time.

`LocalReplica` knows the time of each step beforehand, so its engine is advanced in compiled code, and only
when somebody wants to see it. `FabricReplica` learns the time of a step from the fabric, one iteration after
the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event, Interrupt

from models.cost.step import StepTable
from sim.devices.kv_cache import Contents, check_kv_cache, num_shared
from sim.engine.clock import Clock
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.fluid import FluidFabric
from sim.fabric.held_up import held_up
from sim.fabric.transfer import Fabric, Transfer
from sim.serving.engine import PAUSED, ROWS_FULL, STALLED, advance, complete_step, form_batch, launch_batch
from sim.serving.expert_parallel import ExpertParallelIteration, IterationStep
from sim.serving.lookahead import next_end_s
from sim.serving.policies import compiled_policy
from sim.serving.removal import lose_memory, take_away
from sim.serving.request import FAILED, UNFINISHED
from sim.serving.speculation import Speculation
from sim.serving.state import EngineState, new_engine_state, num_waiting, submit

STEPS_PER_ADVANCE = 1 << 16
"""Steps in one compiled call, about 0.1 s: how long Ctrl-C may have to wait."""

MAX_STEP_ROWS = 2_000_000
"""Recorded steps of one replica unless told otherwise; 48 bytes each."""


GOLDEN_RATIO = (5**0.5 - 1) / 2


class ReplicaError(RuntimeError):
    """The engine cannot go on, or a law of it does not hold; the text names the replica and the law."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What bounds a replica's batches.

    policy                   a name in BATCHING_POLICIES
    num_blocks, block_size   KV cache: blocks, and tokens per block
    host_s                   host time per step; a step takes max(accelerator, host)
    max_context_tokens       longest prompt plus output, as the model has it; None: only the KV cache limits
    it
    max_step_rows            recorded steps; later ones are counted only. 0 records none
    tally_tokens             the most tokens of a step where steps are counted by tokens; -1: they are not
    is_async                 a step is scheduled while the one before runs
    is_caching               full blocks are found again by their content
    max_graph_tokens         batches up to here run as recorded graphs, padded to their sizes
    num_host_blocks          room in host memory for blocks of preempted requests; 0: they are computed again
    block_copy_s             time of a block's copy to the host or back
    speculation              drafts of each sequence's next tokens, under a policy whose steps share one budget; the
                             engine is then synchronous
    """

    policy: str
    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    host_s: float = 0.0
    max_context_tokens: int | None = None
    max_step_rows: int = MAX_STEP_ROWS
    tally_tokens: int = -1
    is_async: bool = False
    is_caching: bool = False
    max_graph_tokens: int = 0
    num_host_blocks: int = 0
    block_copy_s: float = 0.0
    speculation: Speculation | None = None


def refusals(requests: NDArray[Any], limits: EngineLimits) -> list[str | None]:
    """For each request why an engine with these limits refuses it, or None.

    Refused is what could never finish: keys and values of prompt and output, all but the last token, and of drafts do
    not fit into an empty cache, or the context is longer than the model's. A real server that is told no output
    limit would notice the former only after having generated most of it.
    """
    context = requests["num_prompt_tokens"].astype(np.int64) + requests["num_output_tokens"]
    more = 0 if limits.speculation is None else limits.speculation.num_slots
    is_large = context - 1 + more > limits.num_blocks * limits.block_size
    most = np.inf if limits.max_context_tokens is None else limits.max_context_tokens
    reasons = np.full(len(requests), None, dtype=object)
    reasons[is_large] = "larger than the KV cache"
    reasons[context > most] = "longer than the model's context"
    return reasons.tolist()


class Engine:
    """The Python side of an engine: its arrays, its policy, and what it refuses.

    index, copy    of the replica, and of the engine in it
    """

    def __init__(
        self,
        index: int,
        copy: int,
        requests: NDArray[Any],
        token_time_s: NDArray[np.float64],
        holdings: NDArray[Any],
        limits: EngineLimits,
        refusals: list[str | None],
        contents: Contents | None = None,
        splits: NDArray[Any] | None = None,
    ) -> None:
        self.index, self.copy = index, copy
        self.refusals = refusals
        self._replica, self._copy, self._outcome = requests["replica"], requests["copy"], requests["outcome"]
        self.limits = limits
        self.policy = compiled_policy(limits.policy)
        self.num_failed = 0
        self.state: EngineState = new_engine_state(
            requests,
            token_time_s,
            holdings,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            host_s=limits.host_s,
            num_step_rows=min(1 << 14, limits.max_step_rows),
            max_tokens=limits.tally_tokens,
            is_async=limits.is_async,
            contents=contents,
            is_caching=limits.is_caching,
            max_graph_tokens=limits.max_graph_tokens,
            num_host_blocks=limits.num_host_blocks,
            block_copy_s=limits.block_copy_s,
            speculation=limits.speculation,
            splits=splits,
        )

    def submit(self, request: int) -> str | None:
        """Take a request at its arrival time; returns why, where it is refused."""
        reason = self.refusals[request]
        self._replica[request], self._copy[request] = self.index, self.copy
        if reason is not None:
            self._outcome[request] = FAILED
            self.num_failed += 1
            return reason
        self.state = submit(self.state, request)
        self._outcome[request] = UNFINISHED
        return None

    def take_away(self, request: int) -> int:
        """Forget a request that has not ended, as of now; returns the output tokens that are lost with it."""
        return int(take_away(self.state, request))

    def lose_memory(self) -> None:
        """The replica dies: nothing is left of its step in flight or its cache. It must serve nobody any more."""
        if self.num_outstanding > 0:
            raise ReplicaError(f"replica {self.index} is to lose its memory with {self.num_outstanding} outstanding")
        lose_memory(self.state)

    @property
    def num_held_blocks(self) -> int:
        """KV blocks that requests hold."""
        counts = self.state.kv.counts[0]
        return int(counts["num_blocks"] - counts["num_free"])

    def num_by_adapter(self) -> NDArray[np.int64]:
        """Requests submitted and not ended, by adapter, up to the last that has any."""
        state, counts = self.state, self.state.counts[0]
        places = np.arange(counts["head"], counts["submitted"]) & (len(state.waiting) - 1)
        here = np.concatenate([state.waiting[places], state.running[: counts["num_running"]]])
        return np.bincount(state.requests["adapter"][here])

    def cached_tokens(self, request: int) -> int:
        """Of the prompt of a request that nobody serves yet, what the cache has."""
        num_tokens = int(self.state.requests["num_prompt_tokens"][request])
        return int(num_shared(self.state.kv, request, num_tokens)[0] * self.limits.block_size)

    @property
    def num_outstanding(self) -> int:
        """Requests submitted and not completed."""
        counts = self.state.counts[0]
        return int(counts["submitted"] - counts["head"] + counts["num_running"])

    def grow_steps(self) -> None:
        """Double the room for recorded steps, up to the limit."""
        steps = self.state.steps
        grown = np.zeros(min(2 * len(steps) + (1 << 14), self.limits.max_step_rows), dtype=steps.dtype)
        grown[: len(steps)] = steps
        self.state = self.state._replace(steps=grown)

    def make_slots(self) -> None:
        """Room in the cache's tables for a batch more, where requests that have ended still hold blocks."""
        kv = self.state.kv
        num_free, num_slots = int(kv.counts["num_free_slots"][0]), len(kv.slots)
        if num_free >= num_slots // 2:
            return
        tables = np.full((2 * num_slots, kv.tables.shape[1]), kv.tables.dtype.type(-1))
        tables[:num_slots] = kv.tables
        slots = np.zeros(2 * num_slots, dtype=kv.slots.dtype)
        slots[:num_free] = kv.slots[:num_free]
        slots[num_free : num_free + num_slots] = np.arange(2 * num_slots - 1, num_slots - 1, -1)
        kv.counts["num_free_slots"] += num_slots
        self.state = self.state._replace(kv=kv._replace(tables=tables, slots=slots))

    @property
    def steps(self) -> NDArray[Any]:
        """The recorded steps so far."""
        return self.state.steps[: self.state.counts["num_recorded"][0]]

    def count(self, name: str) -> int:
        """One of the integer COUNTS."""
        return int(self.state.counts[name][0])

    def stalled(self) -> ReplicaError:
        """The error for requests that nothing will ever schedule."""
        return ReplicaError(
            f"replica {self.index} stands still at {float(self.state.counts['now_s'][0])!r} s: policy "
            f"{self.limits.policy!r} schedules nothing, with {num_waiting(self.state)} waiting, "
            f"{self.count('num_running')} running and {int(self.state.kv.counts['num_free'][0])} free blocks"
        )

    def check(self) -> None:
        """Raises ReplicaError or KVCacheError unless the cache's books are right, and empty when idle."""
        check_kv_cache(self.state.kv, (self._replica == self.index) & (self._copy == self.copy))
        kv = self.state.kv.counts[0]
        if self.num_outstanding == 0 and kv["num_free"] != kv["num_blocks"]:
            raise ReplicaError(
                f"replica {self.index} is idle with {kv['num_blocks'] - kv['num_free']} KV blocks in use"
            )
        if self.num_outstanding == 0 and kv["num_free_host"] != kv["num_host_blocks"]:
            raise ReplicaError(
                f"replica {self.index} is idle with {kv['num_host_blocks'] - kv['num_free_host']} KV blocks in host "
                "memory"
            )


def num_of_adapter(engines: Sequence[Engine], adapter: int) -> int:
    """Requests of this adapter, submitted and not ended."""
    return sum(int(engine.num_by_adapter()[adapter : adapter + 1].sum()) for engine in engines)


class LocalReplica:
    """A replica whose step times follow from its own batch; communication inside the host is in the table.

    Requests are submitted as they arrive; the engine then catches up when it is asked to.
    """

    def __init__(self, clock: Clock, engine: Engine, table: StepTable) -> None:
        self.clock = clock
        self.engine = engine
        self.table = table

    @property
    def engines(self) -> tuple[Engine, ...]:
        return (self.engine,)

    @property
    def next_engine(self) -> Engine:
        return self.engine

    @property
    def num_outstanding(self) -> int:
        return self.engine.num_outstanding

    @property
    def num_held_blocks(self) -> int:
        return self.engine.num_held_blocks

    def cached_tokens(self, request: int) -> int:
        return self.engine.cached_tokens(request)

    def num_of_adapter(self, adapter: int) -> int:
        return num_of_adapter(self.engines, adapter)

    def submit(self, request: int) -> str | None:
        return self.engine.submit(request)

    def catch_up(self) -> None:
        """Bring the engine to the clock's time."""
        while self._advance(self.clock.now) == PAUSED:
            pass

    @property
    def next_s(self) -> float:
        """When to look at it again: no request ends here before (`next_end_s`)."""
        return float(next_end_s(self.engine.state, self.table))

    def die(self) -> None:
        """Stop at once; everything must have been taken away."""
        self.engine.lose_memory()

    def drain(self) -> Generator[Event, None, None]:
        """Run until everything submitted has ended; a process.

        The engine runs ahead of the clock by at most STEPS_PER_ADVANCE steps, so whoever records at an
        earlier time leaves out what lies after it.
        """
        while self.engine.num_outstanding > 0:
            self._advance(np.inf)
            reached = self.clock.event()
            self.clock.succeed_at(reached, max(self.clock.now, float(self.engine.state.counts["now_s"][0])))
            yield reached

    def _advance(self, until_s: float) -> int:
        engine = self.engine
        while True:
            reason = advance(
                engine.state,
                engine.policy,
                self.table,
                until_s,
                STEPS_PER_ADVANCE,
                engine.limits.max_step_rows,
            )
            if reason == STALLED:
                if not self._unblock():
                    return reason
            elif reason != ROWS_FULL:
                return reason
            else:
                engine.grow_steps()

    def _unblock(self) -> bool:
        """Requests wait, and nothing is scheduled: whether something was done about it. False: it has to be waited for.

        Raises ReplicaError where nothing will ever change.
        """
        raise self.engine.stalled()


class FabricReplica:
    """A replica whose experts lie on several accelerators: each step is one message graph on the fabric.

    Each copy of the attention is an engine with its own requests, cache and limits. All step together, for the experts
    are everybody's: a copy without work computes a dummy batch. A request goes to the copy with the smallest
    4 waiting + running, as vLLM's does (vllm/v1/engine/core_client.py), ties to the first.
    Without a fabric (None) transfers between hosts take no time. `alone`, where given, tells of each step how much of
    its communication it would also take with an ideal fabric to itself.

    Leaves out: what the balancer learns late (vLLM publishes its counts every 100 ms); dummy batches that go on until
    all have noticed that all are done.
    """

    def __init__(
        self,
        clock: Clock,
        engines: Sequence[Engine],
        iteration: ExpertParallelIteration,
        fabric: Fabric | None,
        alone: AloneOnIdeal | None = None,
    ) -> None:
        self.clock = clock
        self.engines = tuple(engines)
        self.iteration = iteration
        self.fabric = fabric
        self.alone = alone
        self.held_s: Counter[tuple[str, str]] = Counter()
        self.looked_s = 0.0
        """Where steps were looked at: for how long flows were held up, by (link, whose flows share it), of how long."""
        self._num_looks = 0
        self.on_end: Callable[[], None] | None = None
        """Called when requests have ended; what it starts at this instant comes before the next batch."""
        self._idle: Event | None = None
        self._drained: Event | None = None
        self._transfer: Transfer | None = None
        self._process = clock.process(self._serve())

    @property
    def num_outstanding(self) -> int:
        return sum(engine.num_outstanding for engine in self.engines)

    @property
    def num_held_blocks(self) -> int:
        return sum(engine.num_held_blocks for engine in self.engines)

    def cached_tokens(self, request: int) -> int:
        return self.next_engine.cached_tokens(request)

    def num_of_adapter(self, adapter: int) -> int:
        return num_of_adapter(self.engines, adapter)

    def submit(self, request: int) -> str | None:
        reason = self.next_engine.submit(request)
        if reason is None:
            self._wake()
        return reason

    def _wake(self) -> None:
        """There is something to do."""
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    @property
    def next_engine(self) -> Engine:
        """The copy that takes the next request."""
        return min(self.engines, key=lambda engine: 4 * engine.num_outstanding - 3 * engine.count("num_running"))

    def catch_up(self) -> None:
        """Nothing to do: these engines live at the clock's time."""

    @property
    def next_s(self) -> float:
        """Infinity: it says by itself when requests end (`on_end`)."""
        return np.inf

    def drain(self) -> Generator[Event, None, None]:
        """Wait until everything submitted has ended; a process."""
        if self.num_outstanding > 0:
            self._drained = self.clock.event()
            yield self._drained

    def die(self) -> None:
        """Stop at once, the messages of the step in flight too; what has been taken away stays so."""
        for engine in self.engines:
            engine.lose_memory()
        self._idle = None
        if self._transfer is not None:
            self._transfer.cancel()
        self._process.interrupt()

    def _serve(self) -> Generator[Event, None, None]:
        """Serve; after a death begin anew."""
        while True:
            try:
                yield from self._serve_steps()
            except Interrupt:
                self._transfer = None

    def _serve_steps(self) -> Generator[Event, None, None]:
        """The serving loop: form the batches, run their operators and their messages, finish them."""
        clock, limits = self.clock, self.engines[0].limits
        step = None
        while True:
            step = step or self._form()
            if step is None:
                yield self._next_arrival()
                continue
            for engine in self.engines:
                launch_batch(engine.state)
            started_s, running = clock.now, step
            if self.fabric is None:
                done: Event = clock.timeout(step.compute_s + step.exchange_s)
            else:
                self._transfer = self.fabric.start(self.iteration.graph(step, started_s))
                done = self._transfer.done
            step = self._form() if limits.is_async else None
            yield done
            self._transfer = None
            accelerator_s = clock.now - started_s
            if accelerator_s < limits.host_s:
                yield clock.timeout(limits.host_s - accelerator_s)
            alone_s = 0.0
            if self.alone is not None:
                self._look_later(accelerator_s)
                alone_s = self.alone.seconds(self.iteration.graph(running, self.alone.now_s))
            num_completed = sum(engine.count("num_completed") for engine in self.engines)
            for engine in self.engines:
                self._finish(engine, running, accelerator_s, alone_s)
            if self.on_end is not None and sum(e.count("num_completed") for e in self.engines) > num_completed:
                self.on_end()
                yield clock.timeout(0.0)

    def _look_later(self, step_s: float) -> None:
        """Look once during the next step, if it takes about as long as the one that has just ended, at a moment of it
        that goes through all of them evenly (multiples of the golden ratio); it stands for so many seconds."""
        if not isinstance(self.fabric, FluidFabric):
            return
        fabric, self._num_looks = self.fabric, self._num_looks + 1

        def look(_: Event) -> None:
            found = held_up(fabric, self.iteration.owner)
            if found is not None:
                self.looked_s += step_s
                self.held_s.update({key: step_s * share for key, share in found.items()})

        moment = self.clock.event()
        assert moment.callbacks is not None
        moment.callbacks.append(look)
        self.clock.succeed_at(moment, self.clock.now + step_s * (self._num_looks * GOLDEN_RATIO % 1.0))

    def _form(self) -> IterationStep | None:
        """The next batches as of now, None where there is nothing to do."""
        for engine in self.engines:
            engine.state.counts["now_s"] = self.clock.now
            form_batch(engine.state, engine.policy)
        if not any(engine.count("batch_size") for engine in self.engines):
            return None
        return self.iteration.draw([engine.state for engine in self.engines])

    def _finish(self, engine: Engine, step: IterationStep, accelerator_s: float, alone_s: float) -> None:
        """End the engine's part of a step, now; a dummy batch leaves nothing behind.

        alone_s    the whole step with an ideal fabric to itself; 0: nobody asks
        """
        flight = engine.state.flight[0]
        engine.state.counts["now_s"] = self.clock.now
        if flight["batch_size"] == 0:
            return
        flight["finish_s"] = self.clock.now
        flight["compute_s"] = step.compute_s
        flight["communication_s"] = max(accelerator_s - step.compute_s, 0.0)
        flight["uncontended_s"] = min(max(alone_s - step.compute_s, 0.0), flight["communication_s"])
        if len(engine.steps) == len(engine.state.steps) < engine.limits.max_step_rows:
            engine.grow_steps()
        complete_step(engine.state)

    def _next_arrival(self) -> Event:
        for engine in self.engines:
            if engine.num_outstanding > 0:
                raise engine.stalled()
        if self._drained is not None:
            self._drained.succeed()
            self._drained = None
        self._idle = self.clock.event()
        return self._idle


Replica = LocalReplica | FabricReplica
