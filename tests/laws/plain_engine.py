"""A slow serving engine in plain Python: the oracle for the compiled one.

One step at a time, objects and lists, blocks only counted; written from the description of the two policies,
sharing nothing with the compiled engine but the price of a step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from models.cost.step import step_parts


@dataclass
class PlainRequest:
    number: int
    arrival_s: float
    prompt: int
    output: int
    computed: int = 0
    blocks: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.prompt + len(self.token_times_s) - self.computed


class PlainEngine:
    def __init__(self, requests, table, *, policy, num_blocks, block_size, max_num_seqs, budget, host_s):
        self.to_come = deque(requests)
        self.waiting: deque[PlainRequest] = deque()
        self.running: list[PlainRequest] = []
        self.table = table
        self.form = {"prefill_first": self.prefill_first, "chunked_prefill": self.chunked_prefill}[policy]
        self.num_blocks, self.free, self.block_size = num_blocks, num_blocks, block_size
        self.max_num_seqs, self.budget, self.host_s = max_num_seqs, budget, host_s
        self.now_s = 0.0
        self.steps: list[tuple[float, float, int, int, int]] = []
        self.admitted: list[int] = []

    def run(self) -> None:
        while self.to_come or self.waiting or self.running:
            while self.to_come and self.to_come[0].arrival_s <= self.now_s:
                self.waiting.append(self.to_come.popleft())
            batch = self.form()
            if not batch:
                self.now_s = self.to_come[0].arrival_s
                continue
            self.step(batch)

    def step(self, batch: list[tuple[PlainRequest, int]]) -> None:
        contexts: list[int] = []
        chunks: list[tuple[int, int]] = []
        for request, num in batch:
            if request.scheduled_s is None:
                request.scheduled_s = self.now_s
            if request.token_times_s and request.computed and num == 1 and request.missing == 1:
                contexts.append(request.computed + 1)
            else:
                chunks.append((num, request.computed))
        cost = self.price(contexts, chunks)
        prefill_tokens, decodes = sum(num for num, _ in chunks), len(contexts)
        finish_s = self.now_s + max(cost[0] + cost[1], self.host_s)
        self.steps.append((self.now_s, finish_s, prefill_tokens, decodes, self.num_blocks - self.free))
        self.now_s = finish_s
        for request, num in batch:
            missing = request.missing
            request.computed += num
            if num == missing:
                request.token_times_s.append(finish_s)
                if len(request.token_times_s) == request.output:
                    self.running.remove(request)
                    self.give_back(request)

    def price(self, contexts: list[int], chunks: list[tuple[int, int]]) -> tuple[float, float]:
        """(compute, communication) seconds of a step, from the contexts of its decodes and (tokens, prefix) of its
        chunks."""
        pairs = sum(prefix + i for num, prefix in chunks for i in range(1, num + 1))
        tokens = len(contexts) + sum(num for num, _ in chunks)
        prefill_context = sum(num + prefix for num, prefix in chunks)
        sequences = len(contexts) + len(chunks)
        return step_parts(self.table, tokens, len(contexts), sequences, pairs, prefill_context, sum(contexts))

    def prefill_first(self):
        batch: list[tuple[PlainRequest, int]] = []
        left = self.budget
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self.blocks_needed(request, request.missing) > self.free:
                break
            if request.missing > left and batch:
                break
            self.admit()
            self.take(request, request.missing)
            batch.append((request, request.missing))
            left -= request.missing
        if batch:
            return batch
        for request in list(self.running):
            if request in self.running and self.take_or_preempt(request, 1):
                batch.append((request, 1))
        return batch

    def chunked_prefill(self):
        batch: list[tuple[PlainRequest, int]] = []
        left = self.budget
        before = sum(r.preemptions for r in self.running)
        everybody = list(self.running)
        for request in everybody:
            if left == 0 or request not in self.running:
                break
            num = min(request.missing, left)
            if self.take_or_preempt(request, num):
                batch.append((request, num))
                left -= num
        if sum(r.preemptions for r in everybody) > before:
            return batch
        while self.waiting and len(self.running) < self.max_num_seqs and left > 0:
            request = self.waiting[0]
            if self.blocks_needed(request, request.missing) > self.free:
                break
            num = min(request.missing, left)
            self.admit()
            self.take(request, num)
            batch.append((request, num))
            left -= num
        return batch

    def admit(self) -> None:
        request = self.waiting.popleft()
        self.admitted.append(request.number)
        self.running.append(request)

    def blocks_needed(self, request: PlainRequest, num: int) -> int:
        return -(-(request.computed + num) // self.block_size) - request.blocks

    def take(self, request: PlainRequest, num: int) -> None:
        more = max(self.blocks_needed(request, num), 0)
        request.blocks += more
        self.free -= more
        assert self.free >= 0

    def take_or_preempt(self, request: PlainRequest, num: int) -> bool:
        while self.blocks_needed(request, num) > self.free:
            victim = self.running.pop()
            self.give_back(victim)
            victim.computed = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        self.take(request, num)
        return True

    def give_back(self, request: PlainRequest) -> None:
        self.free += request.blocks
        request.blocks = 0
