"""Independent oracles for collectives: run a plan on data, measure its chains, time it on ideal links."""

from __future__ import annotations

from collections import defaultdict
from heapq import heapify, heappop, heappush

import numpy as np

from sim.collectives.plan import COPY, JOIN, REDUCE, Plan


def execute(plan: Plan, buffers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Run a plan on buffers [rank, byte, contribution], in a random order that respects its edges.

    A message reads its bytes at the source when it starts and acts at the destination when it arrives. Every
    start and every arrival has a random place in time, some destinations being slow as a whole: what comes
    first of what may happen, happens. Raises when messages remain that can never start.
    """
    buffers = buffers.copy()
    slow = rng.random(len(buffers)) * rng.choice([0, 1, 5])
    start_order = rng.random(plan.num_messages)
    arrival_order = rng.random(plan.num_messages) + slow[plan.destination]
    waiting_for = np.bincount(plan.edge_to, minlength=plan.num_messages)
    successors = defaultdict(list)
    for a, b in zip(plan.edge_from, plan.edge_to, strict=True):
        successors[a].append(b)
    in_flight: dict[int, np.ndarray] = {}
    events = [(start_order[m], int(m)) for m in np.flatnonzero(waiting_for == 0)]
    heapify(events)
    num_arrived = 0
    while events:
        _, m = heappop(events)
        if m not in in_flight:
            in_flight[m] = buffers[plan.source[m], _bytes(plan, m)].copy()
            heappush(events, (arrival_order[m], m))
            continue
        if plan.action[m] == REDUCE:
            buffers[plan.destination[m], _bytes(plan, m)] += in_flight[m]
        elif plan.action[m] == COPY:
            buffers[plan.destination[m], _bytes(plan, m)] = in_flight[m]
        else:
            assert plan.action[m] == JOIN
            assert plan.source[m] == plan.destination[m] and plan.size_bytes[m] == 0
        num_arrived += 1
        for s in successors[m]:
            waiting_for[s] -= 1
            if waiting_for[s] == 0:
                heappush(events, (start_order[s], int(s)))
    assert num_arrived == plan.num_messages, "some messages wait for each other in a circle"
    return buffers


def _bytes(plan: Plan, m: int) -> slice:
    return slice(plan.first_byte[m], plan.first_byte[m] + plan.size_bytes[m])


def longest_chain(plan: Plan) -> int:
    """Messages on the longest path, joins not counted."""
    return round(finish_times(plan, lambda m: float(plan.action[m] != JOIN)).max(initial=0))


def alpha_beta_s(plan: Plan, alpha_s: float, bytes_per_s: float) -> float:
    """Time when every message takes alpha + bytes / rate and links are private to (source, destination)."""

    def lasts(m: int) -> float:
        return 0.0 if plan.action[m] == JOIN else alpha_s + plan.size_bytes[m] / bytes_per_s

    return float(finish_times(plan, lasts).max(initial=0.0))


def finish_times(plan: Plan, lasts) -> np.ndarray:
    """When each message arrives if it starts as its last input arrives and takes `lasts(message)`."""
    waiting_for = np.bincount(plan.edge_to, minlength=plan.num_messages)
    successors = defaultdict(list)
    for a, b in zip(plan.edge_from, plan.edge_to, strict=True):
        successors[a].append(b)
    starts, ends = np.zeros(plan.num_messages), np.full(plan.num_messages, np.nan)
    ready = list(np.flatnonzero(waiting_for == 0))
    while ready:
        m = ready.pop()
        ends[m] = starts[m] + lasts(m)
        for s in successors[m]:
            starts[s] = max(starts[s], ends[m])
            waiting_for[s] -= 1
            if waiting_for[s] == 0:
                ready.append(s)
    assert not np.isnan(ends).any(), "some messages wait for each other in a circle"
    return ends


def bytes_sent(plan: Plan, num_ranks: int) -> np.ndarray:
    return np.bincount(plan.source, weights=plan.size_bytes, minlength=num_ranks).astype(np.int64)


def bytes_received(plan: Plan, num_ranks: int) -> np.ndarray:
    return np.bincount(plan.destination, weights=plan.size_bytes, minlength=num_ranks).astype(np.int64)


def own_contributions(num_ranks: int, size_bytes: int) -> np.ndarray:
    """Every rank holds the whole vector, contributed by itself: [rank, byte, contribution]."""
    eye = np.eye(num_ranks, dtype=np.int64)[:, None, :]
    return np.broadcast_to(eye, (num_ranks, size_bytes, num_ranks)).copy()


def own_blocks(num_ranks: int, offsets: np.ndarray) -> np.ndarray:
    """Rank r holds only block r of the vector, and nothing elsewhere."""
    buffers = np.zeros((num_ranks, int(offsets[-1]), num_ranks), np.int64)
    for r in range(num_ranks):
        buffers[r, offsets[r] : offsets[r + 1], r] = 1
    return buffers
