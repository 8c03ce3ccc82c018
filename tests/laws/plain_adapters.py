"""Adapters that come and go, in plain Python: the oracle for `sim.serving.adapter_pool`."""

from __future__ import annotations

from plain_engine import PlainEngine, PlainRequest

from sim.serving.residency import Residency


class PlainAdapters:
    """there: of each adapter that is loaded, or on its way, since when it is there."""

    def __init__(self, residency: Residency):
        self.of = residency
        self.size = dict(enumerate(residency.size, 1))
        self.there: dict[int, float] = {}
        self.began_s: dict[int, float] = {}
        self.left_s: dict[int, float] = dict.fromkeys(self.size, 0.0)
        for adapter in self.size:
            if sum(residency.size[:adapter]) <= residency.capacity:
                self.there[adapter] = self.began_s[adapter] = 0.0
        self.link_free_s = 0.0
        self.num_loads = self.num_evictions = self.joined = self.at_once = 0

    def room(self) -> int:
        return self.of.capacity - sum(self.size[adapter] for adapter in self.there)

    def idle(self, engine: PlainEngine, users: set[int]) -> list[int]:
        """Those that may be evicted, the first to go first."""
        free = [a for a, ready_s in self.there.items() if a not in users and ready_s <= engine.now_s]
        return sorted(free, key=lambda a: (self.left_s[a], -a))

    def has_room(self, engine: PlainEngine, adapter: int, users: set[int]) -> bool:
        return self.size[adapter] <= self.room() + sum(self.size[a] for a in self.idle(engine, users))

    def serves(self, engine: PlainEngine, request: PlainRequest) -> bool:
        if request.adapter == 0:
            return True
        if request.adapter in self.there:
            return self.there[request.adapter] <= engine.now_s
        return not self.of.is_overlapped and self.has_room(engine, request.adapter, self.running(engine))

    def running(self, engine: PlainEngine) -> set[int]:
        return {request.adapter for request in engine.running}

    def make_room(self, engine: PlainEngine, adapter: int, users: set[int]) -> list[int]:
        evicted = []
        while self.room() < self.size[adapter]:
            evicted.append(self.idle(engine, users)[0])
            del self.there[evicted[-1]]
        self.num_evictions += len(evicted)
        self.num_loads += 1
        return evicted

    def join(self, engine: PlainEngine, request: PlainRequest) -> float:
        """What the step has to load first."""
        adapter = request.adapter
        if adapter == 0:
            return 0.0
        self.joined += 1
        if adapter not in self.there:
            evicted = self.make_room(engine, adapter, self.running(engine))
            self.there[adapter] = self.began_s[adapter] = 0.0
            return sum(self.of.evict_s[a - 1] for a in evicted) + self.of.load_s[adapter - 1]
        waited_s = self.there[adapter] - max(self.began_s[adapter], request.arrival_s)
        if waited_s > 0 and request.scheduled_s is None:
            request.parts_s["adapter_load"] = waited_s
        else:
            self.at_once += 1
        return 0.0

    def start(self, engine: PlainEngine) -> None:
        if not self.of.is_overlapped:
            return
        users = self.running(engine)
        for request in engine.waiting:
            adapter = request.adapter
            if adapter and adapter not in self.there:
                if not self.has_room(engine, adapter, users):
                    return
                evicted = self.make_room(engine, adapter, users)
                free_s = max([engine.now_s, self.link_free_s, *(self.left_s[a] for a in evicted)])
                self.began_s[adapter] = free_s
                ready_s = free_s + sum(self.of.evict_s[a - 1] for a in evicted) + self.of.load_s[adapter - 1]
                self.there[adapter] = self.link_free_s = ready_s
            users.add(adapter)

    def leave(self, engine: PlainEngine, request: PlainRequest) -> None:
        if request.adapter:
            self.left_s[request.adapter] = max(
                self.left_s[request.adapter], engine.now_s, engine.flight_end_s
            )
