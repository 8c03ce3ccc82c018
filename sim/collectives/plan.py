"""Plans: what a collective moves, between which ranks, and in which order.

A plan is a message graph among ranks 0 … n − 1 that also says which bytes of the operation's vector each
message carries and what the receiver does with them. That is what lets a test execute it on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.fabric.messages import Int64, MessageGraph, message_graph

COPY, REDUCE, JOIN = 0, 1, 2
"""What the receiver does with a message: overwrite its bytes, add to them, or nothing (a local join)."""

DEFAULT_CHUNK_BYTES = 512 * 1024
"""Pipelining unit where none is given: NCCL's 4 MiB channel buffer (NCCL_BUFFSIZE) in its 8 steps."""


class CollectiveError(ValueError):
    """The collective cannot be built as asked; the text says what is wrong and what to use instead."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Messages of one collective among ranks 0 … n − 1.

    source, destination  [m] ranks; equal for a join, which takes no time and carries nothing
    size_bytes           [m] payload
    first_byte           [m] the message carries bytes first_byte … first_byte + size_bytes − 1 of the vector
    action               [m] COPY, REDUCE or JOIN
    edge_from, edge_to   [e] message edge_from[i] is received before edge_to[i] starts
    """

    source: Int64
    destination: Int64
    size_bytes: Int64
    first_byte: Int64
    action: NDArray[np.int8]
    edge_from: Int64
    edge_to: Int64

    @property
    def num_messages(self) -> int:
        return len(self.source)

    def graph(
        self, ranks: Int64, *, queue_pairs: int = 1, traffic_class: int = 0, owner: str = ""
    ) -> MessageGraph:
        """The message graph with rank i on accelerator ranks[i]."""
        return message_graph(
            ranks[self.source],
            ranks[self.destination],
            self.size_bytes,
            edges=(self.edge_from, self.edge_to),
            queue_pairs=queue_pairs,
            traffic_class=traffic_class,
            owner=owner,
        )


def plan(source, destination, size_bytes, first_byte, action, edges=None) -> Plan:
    """A plan from arrays of any shape, flattened in C order; `action` may be a scalar."""
    source = np.ascontiguousarray(source, dtype=np.int64).ravel()
    none = np.zeros(0, np.int64)
    edge_from, edge_to = (none, none) if edges is None else edges
    return Plan(
        source,
        np.ascontiguousarray(destination, dtype=np.int64).ravel(),
        np.ascontiguousarray(size_bytes, dtype=np.int64).ravel(),
        np.ascontiguousarray(first_byte, dtype=np.int64).ravel(),
        np.broadcast_to(np.asarray(action, dtype=np.int8).ravel(), source.shape),
        np.asarray(edge_from, dtype=np.int64),
        np.asarray(edge_to, dtype=np.int64),
    )


def empty_plan() -> Plan:
    """The plan of a collective among one rank: nothing to send."""
    none = np.zeros(0, np.int64)
    return plan(none, none, none, none, COPY)


def block_offsets(size_bytes: int, num_blocks: int) -> Int64:
    """First byte of each block, and the end: [num_blocks + 1].

    Blocks have equal sizes, but for the first  size mod num_blocks,  which are one byte longer.
    """
    base, longer = divmod(size_bytes, num_blocks)
    block = np.arange(num_blocks + 1, dtype=np.int64)
    return base * block + np.minimum(block, longer)


def chunk_offsets(size_bytes: int, chunk_bytes: int) -> Int64:
    """Offsets of equal chunks of at most `chunk_bytes`; one empty chunk when there are no bytes."""
    return block_offsets(size_bytes, max(1, -(-size_bytes // chunk_bytes)))


def concatenate(plans: Sequence[Plan]) -> Plan:
    """Plans side by side, without edges between them."""
    starts = np.cumsum([0] + [p.num_messages for p in plans])
    return Plan(
        np.concatenate([p.source for p in plans]),
        np.concatenate([p.destination for p in plans]),
        np.concatenate([p.size_bytes for p in plans]),
        np.concatenate([p.first_byte for p in plans]),
        np.concatenate([p.action for p in plans]),
        np.concatenate([p.edge_from + start for p, start in zip(plans, starts, strict=False)]),
        np.concatenate([p.edge_to + start for p, start in zip(plans, starts, strict=False)]),
    )


def place(inner: Plan, ranks: Int64, first_byte: int) -> Plan:
    """The same plan among other ranks (inner rank i is ranks[i]), on the bytes from `first_byte` on."""
    return Plan(
        ranks[inner.source],
        ranks[inner.destination],
        inner.size_bytes,
        inner.first_byte + first_byte,
        inner.action,
        inner.edge_from,
        inner.edge_to,
    )


def tile(inner: Plan, rows: Int64) -> Plan:
    """The same plan once per row of ranks, side by side: rows[i, j] is inner rank j of copy i."""
    num_rows, m = len(rows), inner.num_messages
    shift = (np.arange(num_rows, dtype=np.int64) * m)[:, None]
    return plan(
        rows[:, inner.source],
        rows[:, inner.destination],
        np.tile(inner.size_bytes, num_rows),
        np.tile(inner.first_byte, num_rows),
        np.tile(inner.action, num_rows),
        ((inner.edge_from + shift).ravel(), (inner.edge_to + shift).ravel()),
    )


def in_sequence(phases: Sequence[Plan], num_ranks: int) -> Plan:
    """Phases one after another, rank by rank: a rank goes on when its own inputs have arrived.

    Between two phases each rank has a join that waits for everything sent to it. The messages of the next
    phase that follow no other send of their own rank wait for that rank's join. Not a global barrier.
    """
    phases = [p for p in phases if p.num_messages]
    if not phases:
        return empty_plan()
    parts: list[Plan] = []
    rank = np.arange(num_ranks, dtype=np.int64)
    nothing = np.zeros(num_ranks, np.int64)
    edge_from, edge_to, start, previous_join = [], [], 0, None
    for i, phase in enumerate(phases):
        if previous_join is not None:
            same_rank = phase.source[phase.edge_from] == phase.source[phase.edge_to]
            follows_own_send = np.zeros(phase.num_messages, bool)
            follows_own_send[phase.edge_to[same_rank]] = True
            first = np.flatnonzero(~follows_own_send)
            edge_from.append(previous_join + phase.source[first])
            edge_to.append(start + first)
        parts.append(phase)
        if i + 1 < len(phases):
            join = start + phase.num_messages
            edge_from.append(np.arange(start, join, dtype=np.int64))
            edge_to.append(join + phase.destination)
            if previous_join is not None:
                edge_from.append(previous_join + rank)
                edge_to.append(join + rank)
            parts.append(plan(rank, rank, nothing, nothing, JOIN))
            start, previous_join = join + num_ranks, join
    whole = concatenate(parts)
    return Plan(
        whole.source,
        whole.destination,
        whole.size_bytes,
        whole.first_byte,
        whole.action,
        np.concatenate([whole.edge_from, *edge_from]),
        np.concatenate([whole.edge_to, *edge_to]),
    )
