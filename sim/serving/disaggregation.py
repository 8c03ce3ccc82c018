"""Replicas that only prefill, and replicas that only decode.

Each waits for the other: a prompt that is done keeps its blocks until its keys and values have arrived where it will
decode, and there its blocks are reserved before they leave. So prefill replicas live at the clock's time, step by step;
those that decode are looked at when somebody asks for room, and at every step while somebody waits for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from simpy import Event

from models.cost.step import StepTable
from sim.devices.kv_cache import blocks_for, hold, note_contents, num_shared, release, share
from sim.engine.clock import Clock
from sim.fabric.transfer import Fabric
from sim.serving.expert_parallel import ExpertParallelIteration
from sim.serving.fabric_replica import FabricReplica, Step
from sim.serving.kv_transfer import Handover
from sim.serving.replica import Engine, LocalReplica
from sim.serving.request import COMPLETED
from sim.serving.state import EngineState
from sim.serving.step import price_batch
from sim.serving.verbs import can_admit, num_waiting, waiting_head


@dataclass(frozen=True, slots=True)
class TableStep:
    """A step whose time is known when it is formed."""

    compute_s: float
    exchange_s: float = 0.0


class TableIteration:
    """Prices a step that stays inside one host, for a replica that lives at the clock's time."""

    def __init__(self, table: StepTable) -> None:
        self.table = table

    def draw(self, states: Sequence[EngineState]) -> TableStep:
        """The time of the batch that the only engine holds; the replica is given no fabric."""
        (state,) = states
        price_batch(state, self.table)
        return TableStep(float(state.flight["compute_s"][1] + state.flight["communication_s"][1]))


class Prompts(Protocol):
    """What a prefill replica tells of its prompts."""

    def computing(self, replica: PrefillReplica, start_s: float, step_s: float) -> None:
        """A step was formed, and will compute the batch that the replica's engine holds."""

    def first_token(self, replica: PrefillReplica, request: int, copy: int) -> None:
        """A prompt is done; its blocks are kept until `let_go`."""


class PrefillReplica(FabricReplica):
    """Computes prompts and their first tokens, and keeps their blocks until they have been moved.

    Its engine sees requests of one output token, and `keeps_blocks`.
    """

    def __init__(
        self, clock: Clock, engines: Sequence[Engine], iteration: TableIteration | ExpertParallelIteration,
        fabric: Fabric | None, prompts: Prompts,
    ) -> None:  # fmt: skip
        for engine in engines:
            engine.state.counts["keeps_blocks"] = 1
            engine.state.counts["ends_unforeseen"] = 0  # it is asked for one token
        self.prompts = prompts
        self.num_kept = 0
        """Prompts that are done and still have their blocks."""
        super().__init__(clock, engines, iteration, fabric)  # type: ignore[arg-type]

    @property
    def index(self) -> int:
        return self.engines[0].index

    def let_go(self, request: int, copy: int) -> None:
        """Free the blocks of a prompt that is done."""
        release(self.engines[copy].state.kv, request)
        self.num_kept -= 1
        self._wake()

    def _form(self) -> Step | None:
        for engine in self.engines:
            engine.make_slots()
        step = super()._form()
        if step is not None:
            flight = self.engines[0].state.flight[0]
            start_s = float(flight["finish_s"]) if flight["batch_size"] else self.clock.now
            self.prompts.computing(self, start_s, step.compute_s)
        return step

    def _finish(self, engine: Engine, step: Step, accelerator_s: float, alone_s: float) -> None:
        state = engine.state
        in_flight = state.in_flight["request"][: state.flight["batch_size"][0]].copy()
        super()._finish(engine, step, accelerator_s, alone_s)
        for request in in_flight[state.requests["outcome"][in_flight] == COMPLETED].tolist():
            self.num_kept += 1
            self.prompts.first_token(self, request, engine.copy)

    def _next_arrival(self) -> Event:
        if self.num_outstanding > 0 and self.num_kept > 0:
            self._idle = self.clock.event()
            return self._idle
        return super()._next_arrival()


class _Reserving:
    """What both kinds of decode replicas do: reserve room, and take requests whose keys and values have come.

    Who wants to come waits in line for room, in order of arrival or by service class as the policy has it: a slot, and
    blocks for the prompt and the first token, less what the cache has. None is given while the first of those who
    wait to run is preempted and waits for blocks itself. A preempted one is computed anew here.
    Of several copies of the attention the first with room among those that have least to do.
    """

    clock: Clock
    engines: tuple[Engine, ...]

    def __init__(self, num_copies: int, on_granted: Callable[[Handover], None]) -> None:
        self.on_granted = on_granted
        """Called with a handover when its room is reserved."""
        self.line: deque[Handover] = deque()
        """Those who wait for room."""
        self.num_coming = [0] * num_copies
        """Requests that have room in each copy and have not arrived."""

    @abstractmethod
    def catch_up(self) -> None:
        """Bring the engines to the clock's time."""

    @abstractmethod
    def _wake(self) -> None:
        """An engine may have something to do that it did not know of."""

    @property
    def num_outstanding(self) -> int:
        return sum(engine.num_outstanding for engine in self.engines) + sum(self.num_coming) + len(self.line)

    def ask(self, handover: Handover) -> None:
        """Join the line for room."""
        self.catch_up()
        self.line.append(handover)
        self._grant()

    def receive(self, handover: Handover) -> None:
        """All blocks have arrived: the request joins the waiting line, with all but its first token computed."""
        self.catch_up()
        engine, request = self.engines[handover.decode_copy], handover.request
        row = engine.state.requests[request : request + 1]
        row["arrival_s"] = row["submitted_s"] = self.clock.now
        row["num_computed"] = row["num_prompt_tokens"]
        row["num_generated"] = 1
        note_contents(engine.state.kv, request, int(row["num_prompt_tokens"][0]))
        self.num_coming[engine.copy] -= 1
        engine.submit(request)
        self._wake()

    def lose(self, handover: Handover) -> None:
        """Its blocks will not come: free the room."""
        self.catch_up()
        release(self.engines[handover.decode_copy].state.kv, handover.request)
        self.num_coming[handover.decode_copy] -= 1
        self._grant()
        self._wake()

    def _grant(self) -> None:
        while self.line:
            place = self._first_in_line()
            handover = self.line[place]
            engine = next((e for e in sorted(self.engines, key=self._load) if self._has_room(e, handover)), None)
            if engine is None:
                return
            del self.line[place]
            self._reserve(engine, handover)

    def _first_in_line(self) -> int:
        """Whoever came first, under the priority policy of those whose service class goes first."""
        if self.engines[0].limits.policy != "priority":
            return 0
        precedence = self.engines[0].state.requests["precedence"]
        return min(range(len(self.line)), key=lambda place: int(precedence[self.line[place].request]))

    def _load(self, engine: Engine) -> int:
        return engine.num_outstanding + self.num_coming[engine.copy]

    def _has_room(self, engine: Engine, handover: Handover) -> bool:
        state = engine.state
        if self._load(engine) >= engine.limits.max_num_seqs:
            return False
        if num_waiting(state) and state.requests["num_preemptions"][waiting_head(state)]:
            return False
        num_tokens = int(state.requests["num_prompt_tokens"][handover.request]) + 1
        shared, num_idle = num_shared(state.kv, handover.request, num_tokens)
        return bool(blocks_for(state.kv, num_tokens) - shared + num_idle <= state.kv.counts["num_free"][0])

    def _reserve(self, engine: Engine, handover: Handover) -> None:
        state, request = engine.state, handover.request
        num_tokens = int(state.requests["num_prompt_tokens"][request]) + 1
        handover.num_shared = handover.num_sent = int(num_shared(state.kv, request, num_tokens)[0])
        share(state.kv, request, handover.num_shared)
        hold(state.kv, request, num_tokens)
        state.requests["replica"][request], state.requests["copy"][request] = engine.index, engine.copy
        handover.decode_copy = engine.copy
        self.num_coming[engine.copy] += 1
        handover.reserved_s = self.clock.now
        self.on_granted(handover)

    def _let_pass(self, engine: Engine) -> bool:
        """Nobody runs, and the first in line, preempted, finds too few blocks: the first who holds its own goes ahead,
        because those are what it waits for. False where none is there."""
        state = engine.state
        counts, mask = state.counts[0], len(state.waiting) - 1
        places = np.arange(int(counts["head"]), int(counts["arrived"])) & mask
        holds = np.flatnonzero(state.kv.holdings["num_blocks"][state.waiting[places]] > 0)
        if len(holds) and holds[0] > 0:
            ahead = places[: holds[0] + 1]
            state.waiting[ahead] = np.roll(state.waiting[ahead], 1)
            return True
        return False

    def _let_pass_or_wait(self, engine: Engine) -> bool:
        """The same; raises ReplicaError where none will come."""
        is_going_on = self._let_pass(engine)
        if not is_going_on and self.num_coming[engine.copy] == 0:
            raise engine.stalled()
        return is_going_on


class DecodeReplica(_Reserving, LocalReplica):
    """Generates the tokens after the first, of requests whose keys and values come to it.

    Advanced in compiled code when somebody asks or comes; step by step only while somebody waits for its room.
    """

    def __init__(
        self, clock: Clock, engine: Engine, table: StepTable, on_granted: Callable[[Handover], None]
    ) -> None:
        _Reserving.__init__(self, 1, on_granted)
        LocalReplica.__init__(self, clock, engine, table)
        self._is_watched = False
        self._is_blocked = False
        """Nothing can run until somebody comes who has room here."""

    def catch_up(self) -> None:
        LocalReplica.catch_up(self)

    def ask(self, handover: Handover) -> None:
        super().ask(handover)
        self._watch()

    def _unblock(self) -> bool:
        is_going_on = self._let_pass_or_wait(self.engine)
        self._is_blocked = not is_going_on
        return is_going_on

    @property
    def next_s(self) -> float:
        return np.inf if self._is_blocked else super().next_s

    def _wake(self) -> None:
        """An engine without a step in flight stands where it last had something to do."""
        self._is_blocked = False
        counts = self.engine.state.counts
        if self.engine.state.flight["batch_size"][0] == 0:
            counts["now_s"] = max(float(counts["now_s"][0]), self.clock.now)
        self._watch()

    def _watch(self) -> None:
        if self.line and not self._is_watched:
            self._is_watched = True
            self.clock.process(self._until_there_is_room())

    def _until_there_is_room(self) -> Generator[Event, None, None]:
        """Look for room after each step, until nobody waits for it or no step runs."""
        while self.line:
            yield self.clock.timeout(0.0)  # after all else of this moment, the next batch is formed
            self._advance(np.nextafter(self.clock.now, np.inf))
            flight = self.engine.state.flight[0]
            if flight["batch_size"] == 0:
                break
            finished = self.clock.event()
            self.clock.succeed_at(finished, float(flight["finish_s"]))
            yield finished
            self.catch_up()
            self._grant()
        self._is_watched = False


class FabricDecodeReplica(_Reserving, FabricReplica):
    """The same, with experts on several accelerators: at the clock's time, step by step."""

    def __init__(
        self, clock: Clock, engines: Sequence[Engine], iteration: ExpertParallelIteration, fabric: Fabric | None,
        on_granted: Callable[[Handover], None],
    ) -> None:  # fmt: skip
        _Reserving.__init__(self, len(engines), on_granted)
        FabricReplica.__init__(self, clock, engines, iteration, fabric)

    def catch_up(self) -> None:
        FabricReplica.catch_up(self)

    def _wake(self) -> None:
        FabricReplica._wake(self)

    def _form(self) -> Step | None:
        """A copy that is blocked by what is reserved in it goes on while others work."""
        self._grant()
        for engine in self.engines:
            state = engine.state
            is_idle = engine.count("num_running") == 0 and state.flight["batch_size"][0] == 0
            if is_idle and num_waiting(state) and not can_admit(state):
                self._let_pass(engine)
        return super()._form()

    def _next_arrival(self) -> Event:
        blocked = [engine for engine in self.engines if engine.num_outstanding > 0]
        goes_on = [self._let_pass_or_wait(engine) for engine in blocked]
        if any(goes_on):
            return self.clock.timeout(0.0)
        if blocked:
            self._idle = self.clock.event()
            return self._idle
        return super()._next_arrival()
