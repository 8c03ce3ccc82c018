"""A slow serving engine in plain Python: the oracle for the compiled one.

One step at a time, objects and lists; written from the description of the policies, of vLLM's block pool and of
its asynchronous loop, sharing nothing with the compiled engine but the price of a step.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from models.cost.step import step_parts


@dataclass
class PlainRequest:
    number: int
    arrival_s: float
    prompt: int
    output: int
    contents: tuple[int, ...] = ()
    """Numbers of the leading full blocks that others may share."""
    first_token_s: float | None = None
    """When another engine generated the first token; the request then comes with its prompt's blocks filled."""
    computed: int = 0
    expected: int = 0
    """Output tokens in flight."""
    blocks: list[int] = field(default_factory=list)
    noted: int = 0
    preemptions: int = 0
    cached: int | None = None
    scheduled_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)

    @property
    def known(self) -> int:
        return self.prompt + len(self.token_times_s)

    @property
    def missing(self) -> int:
        if len(self.token_times_s) + self.expected == self.output:
            return 0
        return self.known + self.expected - self.computed

    def content(self, i: int):
        return self.contents[i] if i < len(self.contents) else (self.number, i)


@dataclass
class Part:
    """A request's part of a batch."""

    request: PlainRequest
    num: int
    prefix: int
    samples: bool


class Pool:
    """Free blocks in line, with what is in them."""

    def __init__(self, num_blocks: int):
        self.line = OrderedDict.fromkeys(range(num_blocks))
        self.users = [0] * num_blocks
        self.content: dict[int, object] = {}
        self.block_of: dict[object, int] = {}

    def take(self) -> int:
        block, _ = self.line.popitem(last=False)
        content = self.content.pop(block, None)
        if self.block_of.get(content) == block:
            del self.block_of[content]
        self.users[block] = 1
        return block

    def share(self, block: int) -> None:
        self.line.pop(block, None)
        self.users[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.line[block] = None

    def note(self, block: int, content) -> None:
        self.content[block] = content
        self.block_of[content] = block


class PlainEngine:
    def __init__(
        self, requests, table, *, policy, num_blocks, block_size, max_num_seqs, budget, host_s, is_async=False,
        is_caching=False, max_graph_tokens=0,
    ):  # fmt: skip
        self.to_come = deque(requests)
        self.waiting: deque[PlainRequest] = deque()
        self.running: list[PlainRequest] = []
        self.table = table
        self.policy, self.form = policy, getattr(self, policy)
        self.pool, self.num_blocks, self.block_size = Pool(num_blocks), num_blocks, block_size
        self.max_num_seqs, self.budget, self.host_s = max_num_seqs, budget, host_s
        self.is_async, self.is_caching, self.max_graph_tokens = is_async, is_caching, max_graph_tokens
        self.now_s = 0.0
        self.steps: list[tuple[float, float, int, int, int]] = []
        self.admitted: list[int] = []

    def run(self) -> None:
        flight = None  # batch, start, end, tokens of prompts, decodes
        while True:
            batch: list[Part] = []
            if flight is None or self.is_async:
                while self.to_come and self.to_come[0].arrival_s <= self.now_s:
                    self.waiting.append(self.to_come.popleft())
                    if self.waiting[-1].first_token_s is not None:
                        self.fill(self.waiting[-1])
                batch = self.form()
            formed = self.sums(batch) if batch else None
            if flight is not None:
                self.finish(*flight)
                flight = None
            if formed is not None:
                cost_s, prefill_tokens, decodes = formed
                flight = (batch, self.now_s, self.now_s + max(cost_s, self.host_s), prefill_tokens, decodes)
            elif not batch and not self.waiting and not self.running:
                if not self.to_come:
                    return
                self.now_s = max(self.now_s, self.to_come[0].arrival_s)

    def sums(self, batch: list[Part]) -> tuple[float, int, int]:
        """(seconds, prompt tokens, decodes) of a batch."""
        contexts = [part.prefix + 1 for part in batch if part.num == 1]
        chunks = [(part.num, part.prefix) for part in batch if part.num > 1]
        compute_s, communication_s = self.price(contexts, chunks)
        prompt = sum(part.num for part in batch if part.num > 1 or part.prefix < part.request.prompt)
        return compute_s + communication_s, prompt, sum(part.num for part in batch) - prompt

    def finish(self, batch: list[Part], started_s: float, finish_s: float, prefill_tokens: int, decodes: int) -> None:
        held = self.num_blocks - len(self.pool.line)
        self.steps.append((started_s, finish_s, prefill_tokens, decodes, held))
        self.now_s = finish_s
        for part in batch:
            request = part.request
            if not part.samples:
                continue
            request.expected -= 1
            request.token_times_s.append(finish_s)
            if len(request.token_times_s) == request.output:
                (self.running if request in self.running else self.waiting).remove(request)
                self.give_back(request)

    def padded(self, tokens: int) -> int:
        """Up to the next size of a recorded graph."""
        sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
        fitting = [min(size, self.max_graph_tokens) for size in sizes if size >= tokens]
        return fitting[0] if tokens <= self.max_graph_tokens else tokens

    def price(self, contexts: list[int], chunks: list[tuple[int, int]]) -> tuple[float, float]:
        """(compute, communication) seconds of a step, from the contexts of its decodes and (tokens, prefix) of its
        chunks."""
        pairs = sum(prefix + i for num, prefix in chunks for i in range(1, num + 1))
        tokens = len(contexts) + sum(num for num, _ in chunks)
        prefill_context = sum(num + prefix for num, prefix in chunks)
        sequences = len(contexts) + len(chunks)
        tokens = self.padded(tokens)
        return step_parts(self.table, tokens, len(contexts), sequences, pairs, prefill_context, sum(contexts))

    def prefill_first(self) -> list[Part]:
        batch: list[Part] = []
        left = self.budget
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if not self.fits_whole(request) or (request.missing > left and batch):
                break
            self.admit()
            left -= request.missing
            batch.append(self.take(request, request.missing))
        if batch:
            return batch
        for request in list(self.running):
            if request in self.running and request.missing and self.make_room(request, 1):
                batch.append(self.take(request, 1))
        return batch

    def chunked_prefill(self) -> list[Part]:
        batch: list[Part] = []
        left = self.budget
        before = sum(r.preemptions for r in self.running)
        everybody = list(self.running)
        for request in everybody:
            if left == 0 or request not in self.running:
                break
            num = min(request.missing, left)
            if num and self.make_room(request, num):
                batch.append(self.take(request, num))
                left -= num
        if sum(r.preemptions for r in everybody) > before:
            return batch
        while self.waiting and len(self.running) < self.max_num_seqs and left > 0:
            if self.policy == "shortest_first" and self.waiting[0].preemptions == 0:
                shortest = min(self.waiting, key=lambda r: r.missing)
                self.waiting.remove(shortest)
                self.waiting.appendleft(shortest)
            request = self.waiting[0]
            if not self.fits_whole(request):
                break
            self.admit()
            num = min(request.missing, left)
            batch.append(self.take(request, num))
            left -= num
        return batch

    shortest_first = chunked_prefill

    def orca(self) -> list[Part]:
        batch = [self.take(request, 1) for request in self.running if request.missing]
        return batch + self.whole_prompts(self.budget - len(batch))

    def static(self) -> list[Part]:
        if self.running:
            return [self.take(request, 1) for request in self.running if request.missing]
        return self.whole_prompts(self.budget)

    def whole_prompts(self, left: int) -> list[Part]:
        """Of those who, with all who run, have blocks to the end of their output."""
        batch: list[Part] = []
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            to_come = sum(max(self.blocks_to_end(r) - len(r.blocks), 0) for r in self.running)
            if self.blocks_to_end(request) + to_come > len(self.pool.line) or (request.missing > left and batch):
                break
            self.admit()
            left -= request.missing
            batch.append(self.take(request, request.missing))
        return batch

    def blocks_to_end(self, request: PlainRequest) -> int:
        return -(-(request.prompt + request.output - 1) // self.block_size)

    def cached(self, request: PlainRequest) -> list[int]:
        """Blocks with the content of the request's leading ones; its last token is always computed."""
        found: list[int] = []
        most = (request.missing - 1) // self.block_size if self.is_caching else 0
        while len(found) < most and request.content(len(found)) in self.pool.block_of:
            found.append(self.pool.block_of[request.content(len(found))])
        return found

    def fill(self, request: PlainRequest) -> None:
        """What another engine has computed comes into blocks of its own, with room for the first token."""
        request.token_times_s = [request.first_token_s]
        request.blocks = self.cached(request)
        for block in request.blocks:
            self.pool.share(block)
        request.noted = len(request.blocks)
        for _ in range(self.blocks_needed(request, request.prompt + 1)):
            request.blocks.append(self.pool.take())
        request.computed = request.prompt
        self.note(request)

    def fits_whole(self, request: PlainRequest) -> bool:
        if request.blocks:
            return self.blocks_needed(request, request.missing) <= len(self.pool.line)
        in_use = sum(self.pool.users[block] > 0 for block in self.cached(request))
        return -(-request.missing // self.block_size) - in_use <= len(self.pool.line)

    def admit(self) -> None:
        request = self.waiting.popleft()
        self.admitted.append(request.number)
        self.running.append(request)
        if request.blocks:
            return
        request.blocks = self.cached(request)
        for block in request.blocks:
            self.pool.share(block)
        request.noted = len(request.blocks)
        request.computed = request.noted * self.block_size
        if request.cached is None:
            request.cached = request.computed

    def blocks_needed(self, request: PlainRequest, num: int) -> int:
        return -(-(request.computed + num) // self.block_size) - len(request.blocks)

    def take(self, request: PlainRequest, num: int) -> Part:
        if request.scheduled_s is None:
            request.scheduled_s = self.now_s
        for _ in range(self.blocks_needed(request, num)):
            request.blocks.append(self.pool.take())
        part = Part(request, num, request.computed, request.computed + num == request.known + request.expected)
        request.computed += num
        self.note(request)
        request.expected += part.samples
        return part

    def note(self, request: PlainRequest) -> None:
        while self.is_caching and (request.noted + 1) * self.block_size <= min(request.computed, request.known):
            self.pool.note(request.blocks[request.noted], request.content(request.noted))
            request.noted += 1

    def make_room(self, request: PlainRequest, num: int) -> bool:
        while self.blocks_needed(request, num) > len(self.pool.line):
            victim = self.running.pop()
            self.give_back(victim)
            victim.computed = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        return True

    def give_back(self, request: PlainRequest) -> None:
        self.pool.give_back(request.blocks)
        request.blocks = []
        request.noted = 0
