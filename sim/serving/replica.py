"""A replica: one engine, and the process that moves it through simulated time.

`LocalReplica` knows the time of each step beforehand, so its engine is advanced in compiled code, and only when
somebody wants to see it. `sim.serving.fabric_replica` learns the time of a step from the fabric, one iteration after
the other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.cost.step import StepTable
from sim.devices.kv_cache import Contents, check_kv_cache, num_shared
from sim.devices.kv_tiers import TierLimits, check_tiers
from sim.engine.clock import Clock
from sim.serving.engine import PAUSED, ROWS_FULL, STALLED, advance
from sim.serving.lookahead import next_end_s
from sim.serving.policies import RESERVING, compiled_policy
from sim.serving.removal import lose_memory, take_away
from sim.serving.request import FAILED, UNFINISHED
from sim.serving.residency import Residency, held
from sim.serving.speculation import Speculation
from sim.serving.state import EngineState, new_engine_state
from sim.serving.verbs import num_waiting, submit

STEPS_PER_ADVANCE = 1 << 16
"""Steps in one compiled call, about 0.1 s: how long Ctrl-C may have to wait."""

MAX_STEP_ROWS = 2_000_000
"""Recorded steps of one replica unless told otherwise; 48 bytes each."""


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
    ends_unforeseen          requests end by a token that ends them, and not by a limit that the scheduler knows
    is_caching               full blocks are found again by their content
    max_graph_tokens         batches up to here run as recorded graphs, padded to their sizes
    num_host_blocks          room in host memory for blocks of preempted requests; 0: they are computed again
    block_copy_s             time of a block's copy to the host or back
    speculation              drafts of each sequence's next tokens, under a policy whose steps share one budget; the
                             engine is then synchronous
    tiers                    behind the cache, under a policy whose steps share one budget: the host, or it and a disk
    residency                adapters that come and go, under a policy whose line others may pass; None: none do
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
    ends_unforeseen: bool = False
    is_caching: bool = False
    max_graph_tokens: int = 0
    num_host_blocks: int = 0
    block_copy_s: float = 0.0
    speculation: Speculation | None = None
    tiers: tuple[TierLimits, ...] = ()
    residency: Residency | None = None


def refusals(requests: NDArray[Any], limits: EngineLimits) -> list[str | None]:
    """For each request why an engine with these limits refuses it, or None.

    Refused is what could never finish: keys and values of prompt and output, all but the last token, and of drafts do
    not fit into an empty cache (of the last token too, where blocks are reserved for one that is computed in vain), or
    the context is longer than the model's. A real server that is told no output limit would notice the former only
    after having generated most of it.
    """
    context = requests["num_prompt_tokens"].astype(np.int64) + requests["num_output_tokens"]
    more = 0 if limits.speculation is None else limits.speculation.num_slots
    if limits.ends_unforeseen and limits.is_async and limits.policy in RESERVING:
        more = 1
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
        asked: NDArray[Any] | None = None,
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
            ends_unforeseen=limits.ends_unforeseen,
            contents=contents,
            is_caching=limits.is_caching,
            max_graph_tokens=limits.max_graph_tokens,
            num_host_blocks=limits.num_host_blocks,
            block_copy_s=limits.block_copy_s,
            speculation=limits.speculation,
            splits=splits,
            tiers=limits.tiers,
            asked=asked,
            residency=limits.residency,
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

    @property
    def now_s(self) -> float:
        """Where the engine stands."""
        return float(self.state.counts["now_s"][0])

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

    def check_adapters(self) -> None:
        """Raises ReplicaError unless those that came are there or went, have room, and are there where used."""
        counts, adapters = self.state.counts[0], self.state.adapters
        num_there, room = held(adapters)
        came = int(counts["num_adapters_given"] + counts["num_loads"])
        went = int(counts["num_evictions"] + counts["num_adapters_lost"])
        if came - went != num_there:
            raise ReplicaError(f"replica {self.index}: {came} adapters came, {went} went, {num_there} are there")
        if room + counts["adapter_room"] != counts["adapter_capacity"] or counts["adapter_room"] < 0:
            raise ReplicaError(
                f"replica {self.index}: adapters take {room} of {counts['adapter_capacity']}, "
                f"{counts['adapter_room']} counted free"
            )
        running = self.state.running[: counts["num_running"]]
        if not adapters["is_there"][self.state.requests["adapter"][running]].all():
            raise ReplicaError(f"replica {self.index}: a request runs whose adapter is not there")

    def check(self) -> None:
        """Raises ReplicaError or KVCacheError unless the cache's books are right, and empty when idle."""
        if self.limits.residency is not None:
            self.check_adapters()
        check_kv_cache(self.state.kv, (self._replica == self.index) & (self._copy == self.copy))
        check_tiers(self.state.tiers)
        if self.num_outstanding == 0 and self.count("first_fetch") > 0:
            raise ReplicaError(f"replica {self.index} is idle and fetches for request {self.count('first_fetch') - 1}")
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

        The engine runs ahead of the clock by at most STEPS_PER_ADVANCE steps, and not beyond the moment at which the
        run is to be cut: what it has counted then is what had happened. Whoever records earlier, because the run was
        interrupted, leaves out what lies after it.
        """
        clock = self.clock
        while self.engine.num_outstanding > 0:
            reached = clock.event()
            # An engine that is stopped by the cut, with something left to do, is never done.
            if self._advance(clock.cut_s) == PAUSED or self.engine.num_outstanding == 0:
                clock.succeed_at(reached, max(clock.now, self.engine.now_s))
            yield reached

    def _advance(self, until_s: float) -> int:
        engine = self.engine
        while True:
            reason = self._step(until_s)
            if reason == STALLED:
                if not self._unblock():
                    return reason
            elif reason != ROWS_FULL:
                return reason
            else:
                engine.grow_steps()

    def _step(self, until_s: float) -> int:
        """One compiled call."""
        engine, most_rows = self.engine, self.engine.limits.max_step_rows
        return int(advance(engine.state, engine.policy, self.table, until_s, STEPS_PER_ADVANCE, most_rows))

    def _unblock(self) -> bool:
        """Requests wait, and nothing is scheduled: whether something was done about it. False: it has to be waited for.

        Raises ReplicaError where nothing will ever change.
        """
        raise self.engine.stalled()
