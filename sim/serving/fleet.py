"""A service's replicas over time: which of them die and come back, are started and let go, and what a router knows.

A fleet plans its events with the front (`sim/serving/front.py`), which knows the requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.devices.kv_cache import NONE
from sim.serving.router import Routable

if TYPE_CHECKING:
    from sim.serving.fabric_replica import Replica
    from sim.serving.front import Front


@dataclass(frozen=True, slots=True)
class Outage:
    """These replicas are down from at_s to until_s of the clock (None: for good)."""

    replicas: tuple[int, ...]
    at_s: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas there are to be: ceil(requests queued and running / target), looked at every interval_s.

    fewest, most      replicas
    target            requests per replica
    provisioning_s    from the decision until a new replica serves; it is paid from the decision on
    cooldown_s        after any change until replicas are let go; more are started at any time

    Source: the rule of Kubernetes' horizontal autoscaler for an average value, without its tolerance of 10 %.
    """

    fewest: int
    most: int
    target: float
    interval_s: float
    provisioning_s: float = 0.0
    cooldown_s: float = 0.0


class Report:
    """What a replica said of itself, at the moment when this was made."""

    def __init__(self, replica: Replica, has_cache: bool) -> None:
        self.num_outstanding = replica.num_outstanding
        self.num_held_blocks = replica.num_held_blocks
        self._by_adapter = [engine.num_by_adapter() for engine in replica.engines]
        self._engine = replica.next_engine
        self._block_of: NDArray[np.int32] | None = self._engine.state.kv.block_of.copy() if has_cache else None

    def num_of_adapter(self, adapter: int) -> int:
        """Requests of this adapter, queued plus running."""
        return sum(int(counts[adapter : adapter + 1].sum()) for counts in self._by_adapter)

    def cached_tokens(self, request: int) -> int:
        """Of the request's prompt, what the cache had."""
        if self._block_of is None:
            return 0
        state, block_size = self._engine.state, self._engine.limits.block_size
        most = (int(state.requests["num_prompt_tokens"][request]) - 1) // block_size
        first, end = state.kv.contents.start[request : request + 2].tolist()
        is_there = self._block_of[state.kv.contents.number[first : min(end, first + most)]] != NONE
        return int(np.logical_and.accumulate(is_there).sum()) * block_size


@dataclass(slots=True)
class _Standing:
    """One replica. It serves new requests when it is ready, not leaving, and no outage has it down.

    paid_from_s   since when it has been paid for; None: it is not there
    """

    is_ready: bool
    paid_from_s: float | None
    is_leaving: bool = False
    num_outages: int = 0

    @property
    def is_open(self) -> bool:
        return self.is_ready and not self.is_leaving and self.num_outages == 0


class Fleet:
    """Who serves.

    outages             when replicas die
    report_interval_s   a router sees what replicas reported last, every so often; 0: what they are
    scaling             None: all replicas all the time
    num_first           replicas at the beginning, the first ones; None: all
    num_accelerators    of one replica

    A router knows at once who is down. Left out: the health check that finds it out.
    """

    def __init__(
        self,
        outages: Sequence[Outage] = (),
        report_interval_s: float = 0.0,
        scaling: Scaling | None = None,
        num_first: int | None = None,
        num_accelerators: int = 1,
    ) -> None:
        self.outages, self.report_interval_s, self.scaling = outages, report_interval_s, scaling
        self.num_first, self.num_accelerators = num_first, num_accelerators
        self._paid_s = 0.0
        self._changed_s = -math.inf
        self._num_to_come = 0
        """Events planned that will bring a replica."""

    def attach(self, front: Front, replicas: Sequence[Replica]) -> None:
        self._front, self._replicas = front, replicas
        num_first = len(replicas) if self.num_first is None else self.num_first
        self._standing = [_Standing(i < num_first, 0.0 if i < num_first else None) for i in range(len(replicas))]
        self._reports: list[Routable] = []

    def start(self) -> None:
        """Plan what is known."""
        now_s = self._front.clock.now
        for standing in self._standing:
            if standing.paid_from_s is not None:
                standing.paid_from_s = now_s
        for outage in self.outages:
            if outage.until_s is None or outage.until_s > now_s:
                self._front.plan(max(outage.at_s, now_s), partial(self._begin, outage))
        if self.report_interval_s > 0:
            self._report()
        if self.scaling is not None:
            self._front.plan(now_s + self.scaling.interval_s, self._scale)

    @property
    def open(self) -> list[int]:
        """Replicas that take requests."""
        return [i for i, standing in enumerate(self._standing) if standing.is_open]

    def seen(self, i: int) -> Routable:
        """The replica, as the router sees it."""
        return self._reports[i] if self._reports else self._replicas[i]

    @property
    def may_change(self) -> bool:
        """Whether a replica is still to come."""
        return self._num_to_come > 0

    def _report(self) -> None:
        front = self._front
        if front.router.sees_replicas:
            for i in range(len(self._replicas)):
                front.look_at(i)
            has_cache = front.router.sees_cache
            self._reports = [Report(replica, has_cache) for replica in self._replicas]
        if front.is_alive:
            front.plan(front.clock.now + self.report_interval_s, self._report)

    # --- outages ------------------------------------------------------------------------------------------------------

    def _begin(self, outage: Outage) -> None:
        for i in outage.replicas:
            self._standing[i].num_outages += 1
        if outage.until_s is not None:
            self._num_to_come += 1
            self._front.plan(outage.until_s, partial(self._end, outage))
        for i in outage.replicas:
            if self._standing[i].num_outages == 1:
                self._front.lose(i)

    def _end(self, outage: Outage) -> None:
        self._num_to_come -= 1
        for i in outage.replicas:
            self._standing[i].num_outages -= 1
        self._front.route_held()

    # --- scaling ------------------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Start replicas, or let some go: those that leave already first, then those with the fewest requests."""
        scaling, front, now_s = self.scaling, self._front, self._front.clock.now
        assert scaling is not None
        wanted = min(max(math.ceil(front.num_unended / scaling.target), scaling.fewest), scaling.most)
        starting = sum(s.paid_from_s is not None and not s.is_ready for s in self._standing)
        more = wanted - len(self.open) - starting
        if more > 0:
            self._add(more)
        elif more < 0 and now_s - self._changed_s >= scaling.cooldown_s:
            by_load = sorted(self.open, key=lambda i: (self._replicas[i].num_outstanding, -i))
            for i in by_load[:-more]:
                self._standing[i].is_leaving = True
                self._changed_s = now_s
            self.let_go()
        if front.is_alive:
            front.plan(now_s + scaling.interval_s, self._scale)

    def _add(self, num: int) -> None:
        """Keep some that leave, then start others, as far as there are any; not where an outage has the place down."""
        assert self.scaling is not None
        now_s = self._front.clock.now
        for standing in [s for s in self._standing if s.is_leaving and s.num_outages == 0][:num]:
            standing.is_leaving = False
            self._changed_s = now_s
            num -= 1
        for i, standing in enumerate(self._standing):
            if num > 0 and standing.paid_from_s is None and standing.num_outages == 0:
                standing.paid_from_s = self._changed_s = now_s
                self._num_to_come += 1
                self._front.plan(now_s + self.scaling.provisioning_s, partial(self._ready, i))
                num -= 1
        self._front.route_held()

    def _ready(self, i: int) -> None:
        self._num_to_come -= 1
        self._standing[i].is_ready = True
        self._front.route_held()

    def let_go(self) -> None:
        """End what is paid for replicas that leave and have nothing left to do; their cache is lost."""
        if self.scaling is None:
            return
        for i, standing in enumerate(self._standing):
            if standing.is_leaving and self._replicas[i].num_outstanding == 0:
                assert standing.paid_from_s is not None
                self._paid_s += self._front.clock.now - standing.paid_from_s
                standing.is_leaving = standing.is_ready = False
                standing.paid_from_s = None
                self._replicas[i].die()

    @property
    def accelerator_s(self) -> float:
        """Accelerator-seconds paid so far."""
        now_s = self._front.clock.now
        running_s = sum(now_s - s.paid_from_s for s in self._standing if s.paid_from_s is not None)
        return self.num_accelerators * (self._paid_s + running_s)
