"""One expert-parallel iteration in plain Python: the oracle for the message graph.

Written from the description of the two all-to-alls and of fair sharing; no graph, no joins. A rank computes, then
sends each other rank what it has for it, and goes on once it has heard from every rank; one that has nothing for
it is heard at once. Messages share the NICs max-min fairly and arrive one flight after their last byte.
"""

from __future__ import annotations

import heapq
from itertools import count


class Message:
    def __init__(self, source, destination, wire_bytes, arrived):
        self.source, self.destination, self.left, self.arrived = source, destination, wire_bytes, arrived


def fair_rates(messages, rate):
    """Fill all messages alike until a NIC, in one direction, is full; fix those that cross it; go on."""
    room, crossing = {}, {}
    for m in messages:
        for nic in (("out", m.source), ("in", m.destination)):
            room[nic] = rate
            crossing.setdefault(nic, set()).add(m)
    rates = {}
    while len(rates) < len(messages):
        nic = min((n for n in crossing if crossing[n]), key=lambda n: room[n] / len(crossing[n]))
        share = room[nic] / len(crossing[nic])
        for m in list(crossing[nic]):
            rates[m] = share
            for other in (("out", m.source), ("in", m.destination)):
                crossing[other].discard(m)
                room[other] -= share
    return rates


class PlainIteration:
    """own_s [layers + 1][ranks], sent [layers][ranks][ranks], expert_s [layers][ranks] as in `IterationStep`.

    wire_bytes(kind, tokens) of a message, kind "dispatch" or "combine"; rate of a NIC; flight_s[source][destination].
    """

    def __init__(self, own_s, sent, expert_s, *, wire_bytes, rate, flight_s):
        self.own_s, self.sent, self.expert_s = own_s, sent, expert_s
        self.wire_bytes, self.rate, self.flight_s = wire_bytes, rate, flight_s
        self.num_layers, self.num_ranks = len(sent), len(sent[0])
        self.now_s = 0.0
        self.timers, self.number, self.messages = [], count(), []
        self.heard = {}

    def end_s(self) -> float:
        """When the last rank is done."""
        for rank in range(self.num_ranks):
            self.after(self.own_s[0][rank], self.attended, 0, rank)
        while self.timers or self.messages:
            rates = fair_rates(self.messages, self.rate)
            ends_s = [self.now_s + m.left / rates[m] for m in self.messages]
            until_s = min(ends_s + [t[0] for t in self.timers[:1]])
            sent = [m for m, end_s in zip(self.messages, ends_s, strict=True) if end_s <= until_s * (1 + 1e-14)]
            for m in self.messages:
                m.left -= rates[m] * (until_s - self.now_s)
            self.now_s = until_s
            for m in sent:
                self.messages.remove(m)
                self.after(self.flight_s[m.source][m.destination], *m.arrived)
            while self.timers and self.timers[0][0] <= self.now_s:
                _, _, action, arguments = heapq.heappop(self.timers)
                action(*arguments)
        return self.now_s

    def after(self, seconds, action, *arguments):
        heapq.heappush(self.timers, (self.now_s + seconds, next(self.number), action, arguments))

    def attended(self, layer, rank):
        if layer == self.num_layers:
            return
        for other in range(self.num_ranks):
            tokens = self.sent[layer][rank][other]
            self.send("dispatch", tokens, rank, other, self.computes, layer, other)

    def computes(self, layer, rank):
        if self.has_heard_all("dispatch", layer, rank):
            self.after(self.expert_s[layer][rank], self.computed, layer, rank)

    def computed(self, layer, rank):
        for other in range(self.num_ranks):
            tokens = self.sent[layer][other][rank]
            self.send("combine", tokens, rank, other, self.attends, layer, other)

    def attends(self, layer, rank):
        if self.has_heard_all("combine", layer, rank):
            self.after(self.own_s[layer + 1][rank], self.attended, layer + 1, rank)

    def send(self, kind, tokens, source, destination, *arrived):
        if tokens == 0 or source == destination:
            self.after(0.0, *arrived)
        else:
            self.messages.append(Message(source, destination, self.wire_bytes(kind, tokens), arrived))

    def has_heard_all(self, *what):
        self.heard[what] = self.heard.get(what, 0) + 1
        return self.heard[what] == self.num_ranks
