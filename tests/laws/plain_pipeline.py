"""A slow pipelined engine in plain Python: the oracle for the compiled one, from the description of vLLM's queue of
batches and of a pipeline; policies, pool and prices of a step's operators are the plain engine's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from plain_engine import Part, PlainEngine, PlainRequest

from models.cost.step import operator_seconds


class PlainPipelineRequest(PlainRequest):
    @property
    def missing(self) -> int:
        """Nothing while the next token is on its way."""
        return self.known - self.computed


@dataclass
class PlainFlight:
    batch: list[Part]
    started_s: float
    finish_s: float
    stage_s: list[float]
    prefill_tokens: int
    decodes: int


class PlainPipeline(PlainEngine):
    def __init__(self, requests, table, of_stages, of_sends, **settings):
        super().__init__(requests, table, **settings)
        self.of_stages, self.of_sends = of_stages, of_sends
        self.depth = len(of_stages)
        self.busy_s = [0.0] * self.depth
        self.flights: list[PlainFlight] = []

    def run(self) -> None:
        queue: deque[PlainFlight] = deque()
        free_s = [0.0] * self.depth
        while True:
            while len(queue) < self.depth:
                self.cancel_now(queue)
                while self.to_come and self.to_come[0].arrival_s <= self.now_s:
                    self.waiting.append(self.to_come.popleft())
                batch = self.form_beside(queue)
                if not batch:
                    break
                stage_s, send_s = self.seconds(batch)
                ready_s = self.now_s
                for s in range(self.depth):
                    free_s[s] = max(free_s[s], ready_s) + max(stage_s[s], self.host_s)
                    ready_s = free_s[s] + (send_s[s] if s < self.depth - 1 else 0.0)
                prompt = sum(p.num for p in batch if not p.is_decode or p.prefix < p.request.prompt)
                queue.append(PlainFlight(
                    batch, self.now_s, free_s[-1], stage_s, prompt, sum(p.num for p in batch) - prompt
                ))  # fmt: skip
            if queue:
                self.cancel_now(queue, queue[0].finish_s)
                flight = queue.popleft()
                self.finish(flight.batch, flight.started_s, flight.finish_s, flight.prefill_tokens, flight.decodes)
                self.busy_s = [a + b for a, b in zip(self.busy_s, flight.stage_s, strict=True)]
                self.flights.append(flight)
            elif not self.waiting and not self.running:
                if not self.to_come:
                    return
                self.now_s = max(self.now_s, self.to_come[0].arrival_s)

    def form_beside(self, queue: deque[PlainFlight]) -> list[Part]:
        """Nobody is admitted while a part is on its way of somebody who runs no more."""
        away = any(part.request not in self.running for flight in queue for part in flight.batch)
        most, self.max_num_seqs = self.max_num_seqs, 0 if away else self.max_num_seqs
        batch = self.form()
        self.max_num_seqs = most
        return batch

    def cancel_now(self, queue: deque[PlainFlight], until_s: float | None = None) -> None:
        """What is on its way of whoever is forgotten counts for nobody."""
        until_s = self.now_s if until_s is None else np.nextafter(until_s, 0)
        gone = [request for at_s, request in self.cancelled if at_s <= until_s]
        self.cancel(until_s, [])
        for flight in queue:
            flight.batch = [part for part in flight.batch if part.request not in gone]

    def seconds(self, batch: list[Part]) -> tuple[list[float], list[float]]:
        contexts = [part.prefix + part.num for part in batch if part.is_decode]
        chunks = [(part.num, part.prefix) for part in batch if not part.is_decode]
        pairs = sum(prefix + i for num, prefix in chunks for i in range(1, num + 1))
        tokens = self.padded(len(contexts) + sum(num for num, _ in chunks))
        each = np.zeros(len(self.table.weight))
        operator_seconds(
            self.table, tokens, len(contexts), len(batch), pairs, sum(num + prefix for num, prefix in chunks),
            sum(contexts), each,
        )  # fmt: skip
        return [in_order(share, each) for share in self.of_stages], [in_order(share, each) for share in self.of_sends]


def in_order(share, each) -> float:
    seconds = 0.0
    for a, b in zip(share.tolist(), each.tolist(), strict=True):
        seconds += a * b
    return seconds
