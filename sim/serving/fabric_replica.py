"""A replica whose steps cross the fabric, or whose copies of the attention step together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np
from simpy import Event, Interrupt

from sim.engine.clock import Clock
from sim.fabric.alone import AloneOnIdeal
from sim.fabric.fluid import FluidFabric
from sim.fabric.held_up import held_up
from sim.fabric.messages import MessageGraph
from sim.fabric.packet import PacketFabric
from sim.fabric.transfer import Fabric, Transfer
from sim.serving.engine import complete_step, form_batch, launch_batch
from sim.serving.offload import wait_for_blocks
from sim.serving.replica import Engine, LocalReplica, num_of_adapter
from sim.serving.state import EngineState

GOLDEN_RATIO = (5**0.5 - 1) / 2


class Step(Protocol):
    """One iteration: what it computes, waiting for the slowest rank included, and what moves inside hosts beside."""

    @property
    def compute_s(self) -> float: ...

    @property
    def exchange_s(self) -> float: ...


class Iteration(Protocol):
    """Turns the batches of a replica's engines into the message graph of one iteration."""

    num_copies: int
    owner: str

    def draw(self, states: Sequence[EngineState]) -> Any:
        """The Step of the batches that the engines hold."""

    def graph(self, step: Any, started_s: float) -> MessageGraph: ...


class FabricReplica:
    """A replica whose experts, or whose tensor-parallel ranks, lie on several accelerators of several hosts: each step
    is one message graph on the fabric.

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
        iteration: Iteration,
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
                self._idle = None
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
        if not isinstance(self.fabric, FluidFabric | PacketFabric):
            return  # that of a fabric which escalates is either
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

    def _form(self) -> Step | None:
        """The next batches as of now, None where there is nothing to do."""
        for engine in self.engines:
            engine.state.counts["now_s"] = self.clock.now
            form_batch(engine.state, engine.policy)
        if not any(engine.count("batch_size") for engine in self.engines):
            return None
        return self.iteration.draw([engine.state for engine in self.engines])

    def _finish(self, engine: Engine, step: Step, accelerator_s: float, alone_s: float) -> None:
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
        """When there may be something to do again: somebody comes, or blocks that are fetched do."""
        fetched_s = min(wait_for_blocks(engine.state) for engine in self.engines)
        if fetched_s < np.inf:
            fetched = self.clock.event()
            self.clock.succeed_at(fetched, fetched_s)
            self._idle = self.clock.event()
            return self._idle | fetched
        for engine in self.engines:
            if engine.num_outstanding > 0:
                raise engine.stalled()
        if self._drained is not None:
            self._drained.succeed()
            self._drained = None
        self._idle = self.clock.event()
        return self._idle


Replica = LocalReplica | FabricReplica
