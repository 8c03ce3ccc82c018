"""Between clients and replicas: sends requests, sees them end, gives up on them, and keeps count of both sides.

An open loop without any of this needs no front: replicas then run ahead of the clock. Here nothing passes an end that
somebody may react to: the front goes from moment to moment, the next of its own events or the earliest `next_s` of a
replica, whichever comes first. At one instant ends come first, then events in the order in which they were planned.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from sim.engine.clock import Clock
from sim.serving.clients import Clients, Patience
from sim.serving.fabric_replica import FabricReplica, Replica
from sim.serving.fleet import Fleet
from sim.serving.replica import ReplicaError
from sim.serving.request import COMPLETED, FAILED, TIMED_OUT, UNFINISHED
from sim.serving.router import Routed, Router


class Front:
    """Clients on one side, a router and replicas on the other.

    num_arrived, num_ended    requests that were sent at least once; that are completed, failed or timed out
    num_sent [requests]       times that each came to the router
    num_lost [requests]       output tokens generated for nobody: the attempt was given up, or its replica died
    """

    def __init__(self, clients: Clients, patience: Patience | None = None, fleet: Fleet | None = None) -> None:
        self.clients = clients
        self.patience = patience or Patience()
        self.fleet = fleet or Fleet()
        self.num_arrived = 0
        self.num_ended = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_planned = 0
        self._num_to_send = 0
        self._waiting: dict[int, None] = {}
        """Requests whose next attempt is planned."""
        self._held: dict[int, None] = {}
        """Requests that no replica is there to take."""

    def attach(
        self,
        clock: Clock,
        requests: NDArray[Any],
        replicas: list[Replica],
        router: Router,
        rng: np.random.Generator,
        failures: Counter[str],
    ) -> None:
        """The workload says whom this is between; failures, by reason, are counted there."""
        self.clock, self.requests, self.replicas, self.router = clock, requests, replicas, router
        self._rng, self.failures = rng, failures
        requests["arrival_s"] = requests["submitted_s"] = np.nan
        self.num_sent = np.zeros(len(requests), np.int64)
        self.num_lost = np.zeros(len(requests), np.int64)
        self.num_attempts = np.zeros(len(requests), np.int64)
        """Of each request's client; what is sent again because its replica died is the same attempt."""
        self._wait = np.zeros(len(requests), np.int64)
        """Which of its waits for an answer is on."""
        self._on: list[dict[int, None]] = [{} for _ in replicas]
        self._next_s = [np.inf for _ in replicas]
        self._num_completed = [0 for _ in replicas]
        self._nudge: Event | None = None
        for replica in replicas:
            if isinstance(replica, FabricReplica):
                replica.on_end = self._wake
        self.fleet.attach(self, replicas)
        self.divide(np.zeros(len(requests), np.int64), 1)

    def divide(self, model: NDArray[np.int64], num_models: int) -> None:
        """Each of several models has an equal part of the replicas; model [requests] says whose a request is."""
        self._model = model
        self._num_routed = [0] * num_models

    @property
    def num_between(self) -> int:
        """Requests that have arrived, have not ended, and are with no replica: they wait for their next attempt, or
        for a replica."""
        return len(self._waiting) + len(self._held)

    @property
    def unended(self) -> NDArray[np.int64]:
        """Requests that have arrived and have not ended, by where they are."""
        return np.array([*self._waiting, *self._held, *(request for on in self._on for request in on)], np.int64)

    @property
    def num_unended(self) -> int:
        """Requests that are with a replica, or wait for one."""
        return len(self._held) + sum(map(len, self._on))

    @property
    def is_alive(self) -> bool:
        """Whether anything is still to come, but for what happens again and again."""
        if self._num_to_send > 0 or self.num_arrived == 0 or (self._held and self.fleet.may_change):
            return True
        return any(self._on) and not (min(self._next_s) == np.inf and self.clock.is_idle)

    # --- time ---------------------------------------------------------------------------------------------------------

    def run(self) -> Generator[Event, None, None]:
        """Serve until every request that is sent has ended; a process."""
        self.fleet.start()
        for send_s, request in self.clients.first(self.clock.now):
            self._plan_send(send_s, request)
        while True:
            self._settle()
            if self._num_to_send == 0 and self.num_ended == self.num_arrived:
                return
            yield self._next_moment()

    def _next_moment(self) -> Event:
        """The next of the events, or the next look at a replica."""
        next_s = min(self._next_s)
        if self._events:
            next_s = min(next_s, self._events[0][0])
        self._nudge = self.clock.event()
        if next_s == np.inf:
            if self._held and not any(self._on):
                self._fail_held()
                self._nudge.succeed()
            return self._nudge
        timer = self.clock.event()
        self.clock.succeed_at(timer, next_s)
        return timer | self._nudge if any(isinstance(r, FabricReplica) for r in self.replicas) else timer

    def _wake(self) -> None:
        if self._nudge is not None and not self._nudge.triggered:
            self._nudge.succeed()

    def _settle(self) -> None:
        """Everything that happens now."""
        now_s = self.clock.now
        while True:
            for i, replica in enumerate(self.replicas):
                if self._next_s[i] <= now_s or isinstance(replica, FabricReplica):
                    self.look_at(i)
            self.fleet.let_go()
            if not self._run_event(now_s):
                return

    def _run_event(self, now_s: float) -> bool:
        """Do the next thing that was planned for now; False where none is."""
        if not self._events or self._events[0][0] > now_s:
            return False
        heapq.heappop(self._events)[2]()
        return True

    def plan(self, time_s: float, action: Callable[[], None]) -> None:
        """Something to be done at a time."""
        heapq.heappush(self._events, (time_s, self._num_planned, action))
        self._num_planned += 1

    def _plan_send(self, time_s: float, request: int) -> None:
        self._num_to_send += 1
        self.plan(time_s, partial(self._send, request))

    def look_at(self, i: int) -> None:
        """Bring a replica to this moment, and tell the clients what has ended there."""
        replica = self.replicas[i]
        replica.catch_up()
        num_completed = sum(engine.count("num_completed") for engine in replica.engines)
        if num_completed > self._num_completed[i]:
            on = np.fromiter(self._on[i], np.int64, len(self._on[i]))
            ended = on[self.requests["outcome"][on] == COMPLETED]
            finished_s = self.requests["finished_s"][ended]
            if len(ended) != num_completed - self._num_completed[i] or (finished_s != self.clock.now).any():
                raise ReplicaError(
                    f"replica {i} completed {num_completed - self._num_completed[i]} requests by {self.clock.now!r} s, "
                    f"unseen until then: {dict(zip(ended.tolist(), finished_s.tolist(), strict=True))}"
                )
            self._num_completed[i] = num_completed
            for request in ended.tolist():
                del self._on[i][request]
                self._end(request)
        self._next_s[i] = replica.next_s

    # --- requests -----------------------------------------------------------------------------------------------------

    def _send(self, request: int) -> None:
        """One attempt of a client."""
        row, now_s = self.requests[request], self.clock.now
        self._num_to_send -= 1
        if self.num_attempts[request] == 0:
            self.num_arrived += 1
            row["arrival_s"] = now_s
            row["outcome"] = UNFINISHED
        else:
            del self._waiting[request]
        self.num_attempts[request] += 1
        self._await(request)
        self._route(request)

    def _await(self, request: int) -> None:
        """From now on its client waits for an answer; an earlier wait is over."""
        self._wait[request] += 1
        if self.patience.timeout_s is not None:
            wait = int(self._wait[request])
            self.plan(self.clock.now + self.patience.timeout_s, partial(self._give_up, request, wait))

    def _route(self, request: int) -> None:
        """Hand it to a replica; where none takes requests it is held until one does."""
        model = int(self._model[request])
        each = len(self.replicas) // len(self._num_routed)
        indices = [i for i in self.fleet.open if i // each == model]
        if not indices:
            self._held[request] = None
            return
        if self.router.sees_replicas and self.fleet.report_interval_s == 0:
            for i in indices:
                self.look_at(i)
        first, second = self._rng.random(2)
        seen = [self.fleet.seen(i) for i in indices]
        adapter = int(self.requests["adapter"][request])
        i = indices[self.router.choose(seen, Routed(request, self._num_routed[model], (first, second), adapter))]
        self._num_routed[model] += 1
        self.num_sent[request] += 1
        self.requests["submitted_s"][request] = self.clock.now
        reason = self.replicas[i].submit(request)
        if reason is not None:
            self.failures[reason] += 1
            self._end(request)
            return
        self._on[i][request] = None
        self._next_s[i] = self.replicas[i].next_s

    def route_held(self) -> None:
        """A replica has come: hand over who waits for one, in order."""
        held, self._held = self._held, {}
        for request in held:
            self._route(request)

    def _give_up(self, request: int, wait: int) -> None:
        """A wait has taken too long, unless it ends at this very moment, or has ended."""
        row = self.requests[request]
        if self._wait[request] != wait or row["outcome"] != UNFINISHED:
            return
        if request in self._held:
            del self._held[request]
        else:
            i = int(row["replica"])
            self.look_at(i)
            if row["outcome"] != UNFINISHED or (self.patience.is_for_first and row["num_generated"] > 0):
                return
            self._take_away(i, request)
        attempt = int(self.num_attempts[request])
        if attempt > self.patience.num_retries:
            row["outcome"] = TIMED_OUT
            self._end(request)
            return
        self._waiting[request] = None
        self._plan_send(self.clock.now + self.patience.backoff_s * 2.0 ** (attempt - 1), request)

    def lose(self, i: int) -> None:
        """A replica dies, and its requests with it: they are sent to another one, or have failed. Who waited for the
        first token and had it waits for it anew, from now on; all other waits go on."""
        self.look_at(i)
        lost = list(self._on[i])
        for request in lost:
            if self.patience.is_for_first and self.requests["num_generated"][request] > 0:
                self._await(request)
            self._take_away(i, request)
        self.replicas[i].die()
        self._next_s[i] = self.replicas[i].next_s
        for request in lost:
            if self.patience.resends_lost:
                self._route(request)
            else:
                self._fail(request, "lost with its replica")

    def _fail_held(self) -> None:
        held, self._held = self._held, {}
        for request in held:
            self._fail(request, "no replica was up any more")

    def _fail(self, request: int, reason: str) -> None:
        self.requests["outcome"][request] = FAILED
        self.failures[reason] += 1
        self._end(request)

    def _take_away(self, i: int, request: int) -> None:
        engine = self.replicas[i].engines[self.requests["copy"][request]]
        self.num_lost[request] += engine.take_away(request)
        del self._on[i][request]
        self._next_s[i] = self.replicas[i].next_s

    def _end(self, request: int) -> None:
        self.num_ended += 1
        is_completed = bool(self.requests["outcome"][request] == COMPLETED)
        follower = self.clients.after(request, self.clock.now, is_completed)
        if follower is not None:
            self._plan_send(*follower)

    # --- results ------------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float | None]:
        """timed_out: requests given up after their last attempt; num_retries: times that requests were sent again;
        lost_output_tokens: generated for attempts that were given up, or lost with a replica; accelerator_seconds:
        paid, from the decision to start a replica until it has left."""
        metrics = self.counts(np.ones(len(self.requests), bool))
        if self.fleet.scaling is not None:
            metrics["accelerator_seconds"] = self.fleet.accelerator_s
        return metrics

    def counts(self, which: NDArray[np.bool_]) -> dict[str, float | None]:
        """Those of `metrics` that add up, of some of the requests."""
        num_sent = self.num_sent[which]
        return {
            "timed_out": int((self.requests["outcome"][which] == TIMED_OUT).sum()),
            "num_retries": int(num_sent.sum() - (num_sent > 0).sum()),
            "lost_output_tokens": int(self.num_lost[which].sum()),
        }

    def columns(self, ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Of the table of requests."""
        return {"num_attempts": self.num_sent[ids], "lost_output_tokens": self.num_lost[ids]}

    def notes(self) -> list[str]:
        """What a reader of the results has to know."""
        timed_out = int((self.requests["outcome"] == TIMED_OUT).sum())
        return [f"{timed_out} requests timed out"] if timed_out else []
