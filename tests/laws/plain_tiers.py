"""Tiers behind the plain engine's block pool: an ordered dictionary each, the least recently used block first."""

from __future__ import annotations

import math
from collections import OrderedDict


class PlainTier:
    def __init__(self, room: int, block_s: float, latency_s: float, is_duplex: bool):
        self.room, self.block_s, self.latency_s, self.is_duplex = room, block_s, latency_s, is_duplex
        self.ready_s: OrderedDict[object, float] = OrderedDict()
        self.fetches_until_s = self.stores_until_s = self.fetch_s = self.store_s = 0.0
        self.fetched = self.stored = self.evicted = 0

    def has(self, content, now_s: float) -> bool:
        return self.ready_s.get(content, math.inf) <= now_s

    def fetch(self, from_s: float, num: int) -> float:
        seconds = self.latency_s + num * self.block_s
        self.fetches_until_s = max(self.fetches_until_s, from_s) + seconds
        if not self.is_duplex:
            self.stores_until_s = self.fetches_until_s
        self.fetch_s += seconds
        self.fetched += num
        return self.fetches_until_s

    def store(self, from_s: float) -> float:
        self.stores_until_s = max(self.stores_until_s, from_s) + self.block_s
        if not self.is_duplex:
            self.fetches_until_s = self.stores_until_s
        self.store_s += self.block_s
        self.stored += 1
        return self.stores_until_s


class PlainTiers:
    """The host, and perhaps a disk."""

    def __init__(self, limits):
        self.all = [PlainTier(t.num_blocks, t.block_s, t.latency_s, t.kind == "host") for t in limits]
        self.coming: list = []
        """[when its present part is over, whether from the disk, blocks, request] of each fetch, the oldest first."""

    def put(self, which: int, content, ready_s: float, now_s: float) -> None:
        tier = self.all[which]
        if tier.room == 0:
            return
        out = None
        if len(tier.ready_s) == tier.room:
            out = tier.ready_s.popitem(last=False)
            tier.evicted += 1
        tier.ready_s[content] = ready_s
        if out is None or which + 1 == len(self.all):
            return
        below = self.all[which + 1]
        if out[0] not in below.ready_s and below.room > 0:
            self.put(which + 1, out[0], below.store(max(now_s, out[1])), now_s)

    def store(self, content, now_s: float) -> None:
        host = self.all[0]
        if host.room > 0 and content not in host.ready_s:
            self.put(0, content, host.store(now_s), now_s)

    def found(self, contents: list, now_s: float) -> list[int]:
        """In which tier each of the leading ones is."""
        where: list[int] = []
        for content in contents:
            tier = next((i for i, tier in enumerate(self.all) if tier.has(content, now_s)), None)
            if tier is None:
                break
            where.append(tier)
        return where

    def touch(self, contents: list) -> None:
        """The first one is the most recent afterwards."""
        for content in reversed(contents):
            for tier in self.all:
                if content in tier.ready_s:
                    tier.ready_s.move_to_end(content)

    def fetch(self, request, contents: list, where: list[int], now_s: float) -> None:
        on_disk = where.count(1)
        if on_disk:
            read_s = self.all[1].fetch(now_s, on_disk)
            for content in contents:
                if content not in self.all[0].ready_s:
                    self.put(0, content, read_s, now_s)
            self.coming.append([read_s, True, len(where), request])
        else:
            self.coming.append([self.all[0].fetch(now_s, len(where)), False, len(where), request])

    def next_s(self) -> float:
        return min((fetch[0] for fetch in self.coming), default=math.inf)

    def come(self, now_s: float) -> list:
        """Requests whose blocks have all come by now."""
        ready = []
        while self.next_s() <= now_s:
            fetch = min(self.coming, key=lambda f: f[0])
            if fetch[1]:
                fetch[:2] = self.all[0].fetch(fetch[0], fetch[2]), False
            else:
                self.coming.remove(fetch)
                ready.append(fetch[3])
        return ready

    def drop(self, request) -> bool:
        num = len(self.coming)
        self.coming = [fetch for fetch in self.coming if fetch[3] is not request]
        return len(self.coming) < num
