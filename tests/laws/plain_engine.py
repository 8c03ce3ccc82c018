"""A slow serving engine in plain Python: the oracle for the compiled one.

One step at a time, objects and lists; written from the description of the policies, of vLLM's block pool and of
its asynchronous loop, sharing nothing with the compiled engine but the price of a step.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from plain_tiers import PlainTiers

from models.cost.step import step_parts

PLAIN_PARTS = ("queue", "prefill", "decode", "recompute", "waiting_again", "host", "communication", "kv_transfer",
               "adapter_load")  # fmt: skip


@dataclass(eq=False)
class PlainRequest:
    number: int
    arrival_s: float
    prompt: int
    output: int
    contents: tuple[int, ...] = ()
    """Numbers of the leading full blocks that others may share."""
    precedence: int = 0
    first_token_s: float | None = None
    """When another engine generated the first token; the request then comes with its prompt's blocks filled."""
    computed: int = 0
    expected: int = 0
    """Output tokens in flight."""
    blocks: list[int] = field(default_factory=list)
    noted: int = 0
    preemptions: int = 0
    swaps: int = 0
    drafts: int = 0
    on_host: int = 0
    """Blocks in host memory."""
    cached: int = 0
    fetched: tuple[int, int] = (0, 0)
    """Tokens from the host and from a disk, beside those that the device had when it was first scheduled."""
    coming: int = 0
    """Blocks it has and will have, while some are being fetched."""
    offered: int = 0
    fetch_since_s: float | None = None
    scheduled_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    lost: int = 0
    """Most tokens computed when it was preempted."""
    adapter: int = 0
    recovered: int = 0
    """Tokens computed by steps that have finished since it was last admitted."""
    ends_unforeseen: bool = False
    """Its end comes by a token that nobody knows beforehand."""
    parts_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PLAIN_PARTS, 0.0))

    @property
    def known(self) -> int:
        return self.prompt + len(self.token_times_s)

    @property
    def missing(self) -> int:
        if self.coming:
            return 0
        if len(self.token_times_s) + self.expected == self.output and not self.ends_unforeseen:
            return 0
        return self.known + self.expected + self.drafts - self.computed

    def content(self, i: int):
        return self.contents[i] if i < len(self.contents) else (self.number, i)


@dataclass
class Part:
    """A request's part of a batch."""

    request: PlainRequest
    num: int
    prefix: int
    samples: int
    """Tokens of which the next is wanted: of a decode with drafts all."""

    @property
    def is_decode(self) -> bool:
        return self.num == 1 or self.samples > 1


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

    def forget(self, block: int) -> None:
        content = self.content.pop(block)
        if self.block_of.get(content) == block:
            del self.block_of[content]


class PlainEngine:
    def __init__(
        self, requests, table, *, policy, num_blocks, block_size, max_num_seqs, budget, host_s, is_async=False,
        is_caching=False, max_graph_tokens=0, host_blocks=0, block_copy_s=0.0,
        speculation=None, accepts=None, cancelled=(), ends_unforeseen=False, tiers=(), adapters=None,
    ):  # fmt: skip
        """cancelled: (when, which request), in order of time; adapters: a PlainAdapters, where they come and go"""
        self.adapters = adapters
        self.flight_end_s = self.load_s = 0.0
        self.to_come = deque(requests)
        self.discarded = 0
        self.ends_unforeseen = ends_unforeseen
        for request in requests:
            request.ends_unforeseen = ends_unforeseen
        self.cancelled = deque(cancelled)
        self.waiting: deque[PlainRequest] = deque()
        self.running: list[PlainRequest] = []
        self.table = table
        self.policy, self.form = policy, getattr(self, policy)
        self.pool, self.num_blocks, self.block_size = Pool(num_blocks), num_blocks, block_size
        self.max_num_seqs, self.budget, self.host_s = max_num_seqs, budget, host_s
        self.is_async, self.is_caching, self.max_graph_tokens = is_async, is_caching, max_graph_tokens
        self.free_on_host, self.block_copy_s, self.to_copy = host_blocks, block_copy_s, 0
        self.speculation, self.accepts = speculation, accepts
        self.lookahead = speculation.num_lookahead if speculation else 0
        self.verified = self.drafted = self.accepted = 0
        self.tiers = PlainTiers(tiers) if tiers else None
        self.flight_until_s: float | None = None
        self.had_begun: list[PlainRequest] = []
        self.num_preempted = 0
        self.now_s = 0.0
        self.steps: list[tuple[float, float, int, int, int]] = []
        self.admitted: list[int] = []

    def run(self) -> None:
        flight = None  # batch, start, end, tokens of prompts, decodes
        had_begun = self.had_begun
        while True:
            batch: list[Part] = []
            is_idle = flight is None
            self.flight_until_s = None if is_idle else flight[2]
            num_preempted = self.num_preempted
            if is_idle or self.is_async:
                self.cancel(self.now_s, [])
                while self.to_come and self.to_come[0].arrival_s <= self.now_s:
                    self.waiting.append(self.to_come.popleft())
                    if self.waiting[-1].first_token_s is not None:
                        self.fill(self.waiting[-1])
                for request in self.tiers.come(self.now_s) if self.tiers else []:
                    request.computed = request.recovered = request.coming * self.block_size
                    request.coming = 0
                    self.note_full(request)
                batch = self.form_batch(is_idle)
                load_s, self.load_s = self.load_s, 0.0
            formed = self.sums(batch) if batch else None
            running = set(map(id, self.running))
            if flight is not None:
                self.cancel(math.nextafter(flight[2], 0), [*flight[0], *batch])
                self.finish(*flight)
                flight = None
                for part in batch:  # formed when it was not known yet who would end
                    if len(part.request.token_times_s) == part.request.output:
                        part.samples = 0
                        self.discarded += part.num
            if formed is not None:
                (compute_s, communication_s), prefill_tokens, decodes = formed
                busy_s = max(compute_s + communication_s, self.host_s)
                step_s = load_s + busy_s
                self.flight_end_s = self.now_s + load_s + busy_s
                flight = (batch, self.now_s, self.flight_end_s, prefill_tokens, decodes)
                for part in batch:
                    if all(part.request is not request for request in had_begun):
                        had_begun.append(part.request)
                        waited_s = part.request.parts_s["adapter_load"]
                        part.request.parts_s["queue"] = self.now_s - part.request.arrival_s - waited_s
                for request in had_begun:
                    if len(request.token_times_s) < request.output:
                        self.split(request, id(request) in running, step_s, compute_s, communication_s, load_s)
            elif not batch and not self.waiting and not self.running:
                if not self.to_come:
                    return
                self.now_s = max(self.now_s, self.to_come[0].arrival_s)
            elif self.tiers and self.flight_until_s is None and self.num_preempted == num_preempted:
                self.wait_for_blocks()
            elif is_idle and not batch and self.adapters is not None:
                arrivals = [self.to_come[0].arrival_s] if self.to_come else []
                before_s = self.now_s
                self.now_s = min([*arrivals, *(at_s for at_s in self.adapters.there.values() if at_s > before_s)])
                for request in had_begun:
                    if len(request.token_times_s) < request.output:
                        request.parts_s["waiting_again"] += self.now_s - before_s

    def wait_for_blocks(self) -> None:
        """Nothing can run until some have been fetched, or somebody arrives."""
        until_s = min([self.tiers.next_s(), *(request.arrival_s for request in self.to_come)])
        for request in self.had_begun:
            if request in self.waiting:
                request.parts_s["waiting_again"] += until_s - self.now_s
        self.now_s = until_s

    def form_batch(self, is_idle: bool) -> list[Part]:
        """Whoever is first may have given way to those behind; where nothing runs these are asked."""
        while True:
            before = self.num_preempted
            batch = self.form()
            if batch or not is_idle or self.num_preempted == before:
                break
        if self.adapters is not None:
            self.adapters.start(self)
        return batch

    def cancel(self, until_s: float, scheduled: list[Part]) -> None:
        """Forget who has not ended when cancelled by then; what is scheduled of them is computed for nobody."""
        while self.cancelled and self.cancelled[0][0] <= until_s:
            request = self.cancelled.popleft()[1]
            if self.adapters is not None and request in self.running:
                self.adapters.leave(self, request)
            for line in (self.to_come, self.waiting, self.running):
                if request in line:
                    line.remove(request)
                    self.give_back(request)
                    if self.tiers:
                        self.tiers.drop(request)
                    self.free_on_host += request.on_host
                    request.on_host = 0
                    request.token_times_s = []
                    request.scheduled_s = None
            for part in scheduled:
                part.samples = 0 if part.request is request else part.samples

    def split(
        self, request: PlainRequest, is_running: bool, step_s: float, compute_s: float, communication_s: float,
        load_s: float = 0.0,
    ) -> None:  # fmt: skip
        """What a step that starts now is to a request that has begun and not ended."""
        parts_s = request.parts_s
        if request.fetch_since_s is not None and (not is_running or not request.coming):
            parts_s["kv_transfer"] += self.now_s - request.fetch_since_s
            request.fetch_since_s = None
        if request.fetch_since_s is not None:
            return
        if not is_running:
            parts_s["waiting_again"] += step_s
            return
        stage = "decode" if request.token_times_s else "prefill"
        parts_s["recompute" if request.recovered < request.lost else stage] += compute_s
        parts_s["communication"] += communication_s
        parts_s["adapter_load"] += load_s
        parts_s["host"] += step_s - compute_s - communication_s - load_s

    def sums(self, batch: list[Part]) -> tuple[tuple[float, float], int, int]:
        """((compute, communication) seconds, prompt tokens, decodes) of a batch."""
        contexts = [part.prefix + part.num for part in batch if part.is_decode]
        chunks = [(part.num, part.prefix) for part in batch if not part.is_decode]
        drafts = sum(part.samples - 1 for part in batch if part.samples > 1)
        compute_s, communication_s = self.price(contexts, chunks, drafts) if drafts else self.price(contexts, chunks)
        if self.speculation:
            compute_s += self.draft_s(compute_s + communication_s, contexts, sum(part.samples > 0 for part in batch))
        communication_s += self.to_copy * self.block_copy_s
        self.to_copy = 0
        prompt = sum(part.num for part in batch if not part.is_decode or part.prefix < part.request.prompt)
        return (compute_s, communication_s), prompt, sum(part.num for part in batch) - prompt

    def draft_s(self, step_s: float, contexts: list[int], sequences: int) -> float:
        """The drafter's first pass over the step's tokens, the others over one token a sequence."""
        s = self.speculation
        seconds = s.draft_cost * step_s + (s.draft_s if sequences else 0)
        if sequences and s.num_tokens > 1:
            one_s = sum(step_parts(self.table, self.padded(sequences), len(contexts), sequences, 0, 0, sum(contexts)))
            seconds += (s.num_tokens - 1) * s.draft_cost * one_s
        return seconds

    def finish(self, batch: list[Part], started_s: float, finish_s: float, prefill_tokens: int, decodes: int) -> None:
        held = self.num_blocks - len(self.pool.line)
        self.steps.append((started_s, finish_s, prefill_tokens, decodes, held))
        self.now_s = finish_s
        for part in batch:
            request = part.request
            request.recovered = part.prefix + part.num
            if not part.samples:
                self.store_filled(part)
                continue
            request.expected -= 1
            held = 0
            while held < part.samples - 1 and self.accepts(request.number, len(request.token_times_s) + held):
                held += 1
            if part.samples > 1:
                self.verified += 1
                self.drafted += part.samples - 1
                self.accepted += held
            request.computed -= part.samples - 1 - held
            new = min(1 + held, request.output - len(request.token_times_s))
            request.token_times_s += [finish_s] * new
            request.drafts = self.speculation.num_tokens if self.speculation else 0
            self.store_filled(part)
            if len(request.token_times_s) == request.output:
                (self.running if request in self.running else self.waiting).remove(request)
                self.give_back(request)
                self.free_on_host += request.on_host
                request.on_host = 0
                if self.adapters is not None:
                    self.adapters.leave(self, request)

    def store_filled(self, part: Part) -> None:
        """Blocks that are computed, and whose content is known, go to the host."""
        request = part.request
        done = min(part.prefix + part.num, request.known - 1) // self.block_size
        while self.tiers and request.offered < min(done, request.noted, len(request.blocks)):
            self.tiers.store(request.content(request.offered), self.now_s)
            request.offered += 1

    def padded(self, tokens: int) -> int:
        """Up to the next size of a recorded graph."""
        sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
        fitting = [min(size, self.max_graph_tokens) for size in sizes if size >= tokens]
        return fitting[0] if tokens <= self.max_graph_tokens else tokens

    def price(self, contexts: list[int], chunks: list[tuple[int, int]], drafts: int = 0) -> tuple[float, float]:
        """(compute, communication) seconds of a step, from the contexts of its decodes, (tokens, prefix) of its
        chunks, and drafts beside the decodes."""
        pairs = sum(prefix + i for num, prefix in chunks for i in range(1, num + 1))
        tokens = len(contexts) + drafts + sum(num for num, _ in chunks)
        prefill_context = sum(num + prefix for num, prefix in chunks)
        sequences = len(contexts) + drafts + len(chunks)
        tokens = self.padded(tokens)
        return step_parts(self.table, tokens, len(contexts), sequences, pairs, prefill_context, sum(contexts))

    def prefill_first(self) -> list[Part]:
        batch: list[Part] = []
        left = self.budget
        while self.waiting and len(self.running) < self.max_num_seqs and not self.waiting[0].on_host:
            request = self.waiting[0]
            if not self.fits_whole(request) or (request.missing > left and batch):
                break
            self.admit()
            left -= request.missing
            batch.append(self.take(request, request.missing))
        if batch:
            return batch
        everybody = list(self.running)
        for request in everybody:
            if request in self.running and request.missing and self.make_room(request, 1):
                batch.append(self.take(request, 1))
        if any(request not in self.running for request in everybody):
            return batch
        while self.waiting and len(self.running) < self.max_num_seqs and self.waiting[0].on_host:
            request = self.waiting[0]
            if not self.fits_whole(request):
                break
            self.admit()
            batch.append(self.take(request, request.missing))
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
            request = self.next_in_line()
            if request is None:
                break
            self.admit()
            num = min(request.missing, left)
            if num:
                batch.append(self.take(request, num))
            left -= num
        return batch

    shortest_first = chunked_prefill

    def priority(self) -> list[Part]:
        def place(request: PlainRequest):
            return request.precedence, request.arrival_s, request.number

        self.waiting = deque(sorted(self.waiting, key=place))
        batch: list[Part] = []
        everybody = list(self.running)
        for request in everybody:
            left = self.budget - sum(part.num for part in batch)
            if left == 0:
                break
            if request not in self.running:
                continue
            num = min(request.missing, left)
            while num and self.blocks_needed(request, num) > len(self.pool.line):
                victim = max(self.running, key=place)
                self.running.remove(victim)
                for part in [part for part in batch if part.request is victim]:
                    batch.remove(part)
                    self.undo(part)
                self.preempt(victim)
                if victim is request:
                    break
            if request not in self.running:
                break
            if num:
                batch.append(self.take(request, num))
        self.waiting = deque(sorted(self.waiting, key=place))
        if any(request not in self.running for request in everybody):
            return batch
        return batch + self.admitted_in_line(self.budget - sum(part.num for part in batch))

    def undo(self, part: Part) -> None:
        """As if it had not been scheduled."""
        request = part.request
        request.computed = part.prefix
        request.expected -= part.samples > 0
        while request.noted > part.prefix // self.block_size:
            request.noted -= 1
            self.pool.forget(request.blocks[request.noted])

    def admitted_in_line(self, left: int) -> list[Part]:
        """Of the waiting line as it stands, while the first has blocks for all that he lacks."""
        batch: list[Part] = []
        while self.waiting and len(self.running) < self.max_num_seqs and left > 0:
            request = self.next_in_line()
            if request is None:
                break
            self.admit()
            num = min(request.missing, left)
            if num:
                batch.append(self.take(request, num))
            left -= num
        return batch

    def next_in_line(self) -> PlainRequest | None:
        """Brought to the head: the first whose adapter can be had, if there are blocks for all of it."""
        for request in self.waiting:
            if self.adapters is None or self.adapters.serves(self, request):
                if not self.fits_whole(request):
                    return None
                self.waiting.remove(request)
                self.waiting.appendleft(request)
                return request
        return None

    def batchllm(self) -> list[Part]:
        self.waiting = deque(sorted(self.waiting, key=lambda r: (r.precedence, r.arrival_s, r.number)))
        left, batch = self.budget, []
        for request in self.running:
            num = min(request.missing, left)
            if num:
                batch.append(self.take(request, num))
                left -= num
        while self.waiting and len(self.running) < self.max_num_seqs and left > 0:
            request = self.waiting[0]
            in_use = sum(self.pool.users[block] > 0 for block in self.cached(request))
            if self.blocks_to_end(request) - in_use + self.blocks_to_come() > len(self.pool.line):
                break
            self.admit()
            num = min(request.missing, left)
            if num:
                batch.append(self.take(request, num))
            left -= num
        return batch

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
            too_large = self.blocks_to_end(request) + self.blocks_to_come() > len(self.pool.line)
            if too_large or (request.missing > left and batch):
                break
            self.admit()
            left -= request.missing
            batch.append(self.take(request, request.missing))
        return batch

    def blocks_to_come(self) -> int:
        """Blocks that those who run will take."""
        return sum(max(self.blocks_to_end(r) - len(r.blocks), 0) for r in self.running)

    def blocks_to_end(self, request: PlainRequest) -> int:
        one_more = self.is_async and self.ends_unforeseen
        return -(-(request.prompt + request.output - 1 + one_more) // self.block_size)

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
        self.note_full(request)

    def fits_whole(self, request: PlainRequest) -> bool:
        if request.on_host or request.blocks:
            return self.blocks_needed(request, request.missing) <= len(self.pool.line)
        in_use = sum(self.pool.users[block] > 0 for block in self.cached(request))
        return -(-request.missing // self.block_size) - in_use <= len(self.pool.line)

    def admit(self) -> None:
        request = self.waiting.popleft()
        self.admitted.append(request.number)
        if self.adapters is not None:
            self.load_s += self.adapters.join(self, request)
        self.running.append(request)
        if request.on_host:
            self.free_on_host += request.on_host
            self.to_copy += request.on_host
            request.on_host = 0
            request.blocks = [self.pool.take() for _ in range(self.blocks_needed(request, 0))]
            self.note_full(request)
            return
        if request.blocks:
            return
        request.blocks = self.cached(request)
        for block in request.blocks:
            self.pool.share(block)
        request.noted = len(request.blocks)
        request.computed = request.recovered = request.noted * self.block_size
        num_fetched = self.fetch(request) if self.tiers else 0
        if request.scheduled_s is None:
            request.cached = (request.noted + num_fetched) * self.block_size
        if num_fetched and not self.tiers.come(self.now_s):
            self.begin_waiting(request, request.noted + num_fetched)
        elif num_fetched:
            request.computed = request.recovered = (request.noted + num_fetched) * self.block_size
            self.note_full(request)

    def fetch(self, request: PlainRequest) -> int:
        """Of its leading blocks those that tiers have and the device has not, into blocks of its own; how many."""
        most = (request.missing + request.computed - 1) // self.block_size if self.is_caching else 0
        contents = [request.content(i) for i in range(most)]
        where = self.tiers.found(contents[request.noted :], self.now_s)
        contents = contents[: request.noted + len(where)]
        self.tiers.touch(contents)
        request.offered = 0
        if request.scheduled_s is None:
            request.fetched = (where.count(0) * self.block_size, where.count(1) * self.block_size)
        if where:
            request.blocks += [self.pool.take() for _ in where]
            self.tiers.fetch(request, contents[request.noted :], where, self.now_s)
        return len(where)

    def begin_waiting(self, request: PlainRequest, num_blocks: int) -> None:
        request.coming = num_blocks
        if request not in self.had_begun:
            self.had_begun.append(request)
            request.parts_s["queue"] = self.now_s - request.arrival_s
        elif request.fetch_since_s is not None:
            request.parts_s["kv_transfer"] += self.now_s - request.fetch_since_s
        elif self.flight_until_s is not None:
            request.parts_s["waiting_again"] -= self.flight_until_s - self.now_s
        request.fetch_since_s = self.now_s

    def blocks_needed(self, request: PlainRequest, num: int) -> int:
        slots = request.computed + num + (self.lookahead if request.drafts else 0)
        return max(-(-slots // self.block_size) - len(request.blocks), 0)

    def take(self, request: PlainRequest, num: int) -> Part:
        if request.scheduled_s is None:
            request.scheduled_s = self.now_s
        for _ in range(self.blocks_needed(request, num)):
            request.blocks.append(self.pool.take())
        samples = max(request.computed + num - request.known - request.expected + 1, 0)
        part = Part(request, num, request.computed, samples)
        request.computed += num
        self.note_full(request)
        request.expected += samples > 0
        return part

    def note_full(self, request: PlainRequest) -> None:
        while self.is_caching and (request.noted + 1) * self.block_size <= min(request.computed, request.known):
            self.pool.note(request.blocks[request.noted], request.content(request.noted))
            request.noted += 1

    def make_room(self, request: PlainRequest, num: int) -> bool:
        while self.blocks_needed(request, num) > len(self.pool.line):
            victim = self.running.pop()
            self.preempt(victim)
            if victim is request:
                return False
        return True

    def preempt(self, victim: PlainRequest) -> None:
        """To the host where its blocks have room there, else to be computed again."""
        if self.adapters is not None:
            self.adapters.leave(self, victim)
        self.give_back(victim)
        self.num_preempted += 1
        if self.tiers and self.tiers.drop(victim):
            victim.coming = 0
            victim.computed = 0
        victim.drafts = 0
        num_blocks = self.blocks_needed(victim, 0)
        if 0 < num_blocks <= self.free_on_host:
            self.free_on_host -= num_blocks
            self.to_copy += num_blocks
            victim.on_host = num_blocks
            victim.swaps += 1
        else:
            victim.lost = max(victim.lost, victim.computed)
            victim.computed = 0
        victim.preemptions += 1
        self.waiting.appendleft(victim)

    def give_back(self, request: PlainRequest) -> None:
        self.pool.give_back(request.blocks)
        request.blocks = []
        request.noted = 0
