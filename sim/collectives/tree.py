"""Pipelined trees: the double binary tree and the chain.

Two binary trees over the same ranks each carry half of the bytes, cut into chunks. A rank that has children
in one tree is a leaf of the other (but for rank 0 when n is odd), so that every rank sends about as much as
it receives.
Source: Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan",
2009; the tree shape is the one that NCCL builds (src/graph/trees.cc), which alternates leaves and inner
ranks.
"""

from __future__ import annotations

import numpy as np

from sim.collectives.plan import (
    COPY,
    DEFAULT_CHUNK_BYTES,
    REDUCE,
    Plan,
    block_offsets,
    chunk_offsets,
    concatenate,
    empty_plan,
    place,
    plan,
)
from sim.fabric.messages import Int64

ROOT = -1


def double_binary_trees(num_ranks: int) -> tuple[Int64, Int64]:
    """Parents of every rank in two complementary binary trees; ROOT for the root.

    In the first, rank r ≠ 0 with lowest set bit b has parent (r − b) | 2b, or r − b where that is no rank:
    odd ranks are leaves. The second is the first mirrored (n even) or moved by one rank (n odd).
    """
    rank = np.arange(num_ranks, dtype=np.int64)
    lowest = rank & -rank
    parent = (rank - lowest) | (lowest << 1)
    parent = np.where(parent < num_ranks, parent, rank - lowest)
    parent[0] = ROOT
    if num_ranks % 2 == 0:
        other = num_ranks - 1 - parent[::-1]
        other[parent[::-1] == ROOT] = ROOT
    else:
        other = np.roll(np.where(parent == ROOT, ROOT, (parent + 1) % num_ranks), 1)
    return parent, other


def all_reduce(num_ranks: int, size_bytes: int, chunk_bytes: int | None = None) -> Plan:
    """Double binary tree: chunks are reduced up each tree and broadcast down it, pipelined.

    The longest chain has 2 · height + chunks − 1 messages. A rank sends chunk c to its parent when that
    chunk of all its children is there and its own chunk c − 1 has left; likewise downwards, per child.
    """
    if num_ranks == 1:
        return empty_plan()
    chunk_bytes = chunk_bytes or DEFAULT_CHUNK_BYTES
    halves = block_offsets(size_bytes, 2)
    plans: list[Plan] = []
    for parent, first, end in zip(double_binary_trees(num_ranks), halves[:-1], halves[1:], strict=True):
        if end > first or not plans:
            plans.append(_up_and_down(parent, int(first), chunk_offsets(int(end - first), chunk_bytes)))
    return concatenate(plans)


def broadcast(num_ranks: int, size_bytes: int, chunk_bytes: int | None = None, root: int = 0) -> Plan:
    """Broadcast from `root` down two trees over the other ranks, half of the bytes through each."""
    if num_ranks == 1:
        return empty_plan()
    chunk_bytes = chunk_bytes or DEFAULT_CHUNK_BYTES
    halves = block_offsets(size_bytes, 2)
    plans: list[Plan] = []
    for tree, first, end in zip(double_binary_trees(num_ranks - 1), halves[:-1], halves[1:], strict=True):
        # ROOT is -1, so adding one hangs the tree's root below rank 0, the source.
        parent = np.concatenate(([ROOT], tree + 1))
        if end > first or not plans:
            plans.append(_down(parent, int(first), chunk_offsets(int(end - first), chunk_bytes)))
    return place(concatenate(plans), _root_first(num_ranks, root), 0)


def chain_broadcast(num_ranks: int, size_bytes: int, chunk_bytes: int | None = None, root: int = 0) -> Plan:
    """Broadcast along the chain root, root + 1, …, pipelined: n − 2 + chunks steps."""
    if num_ranks == 1:
        return empty_plan()
    parent = np.arange(-1, num_ranks - 1, dtype=np.int64)
    down = _down(parent, 0, chunk_offsets(size_bytes, chunk_bytes or DEFAULT_CHUNK_BYTES))
    return place(down, _root_first(num_ranks, root), 0)


def _root_first(num_ranks: int, root: int) -> Int64:
    return (np.arange(num_ranks, dtype=np.int64) + root) % num_ranks


def _down(parent: Int64, first_byte: int, chunks: Int64) -> Plan:
    """Broadcast from the root: message (chunk c, i-th rank below the root) has index c (n − 1) + i."""
    below = np.flatnonzero(parent != ROOT)
    index = np.full(len(parent), -1, dtype=np.int64)
    index[below] = np.arange(len(below))
    forwarders = below[index[parent[below]] >= 0]
    edges = _over_chunks(index[parent[forwarders]], index[forwarders], len(below), len(chunks) - 1)
    return _messages(parent[below], below, first_byte, chunks, COPY, edges)


def _up_and_down(parent: Int64, first_byte: int, chunks: Int64) -> Plan:
    """Reduction to the root, then broadcast from it: index c 2(n − 1) + i upwards, + n − 1 downwards."""
    below = np.flatnonzero(parent != ROOT)
    width = len(below)
    index = np.full(len(parent), -1, dtype=np.int64)
    index[below] = np.arange(width)
    inner = below[index[parent[below]] >= 0]
    top = below[index[parent[below]] < 0]
    edge_from = np.concatenate((index[inner], np.repeat(index[top], len(top)), width + index[parent[inner]]))
    edge_to = np.concatenate(
        (index[parent[inner]], width + np.tile(index[top], len(top)), width + index[inner])
    )
    source = np.concatenate((below, parent[below]))
    destination = np.concatenate((parent[below], below))
    action = np.repeat([REDUCE, COPY], width)
    edges = _over_chunks(edge_from, edge_to, 2 * width, len(chunks) - 1)
    return _messages(source, destination, first_byte, chunks, action, edges)


def _over_chunks(edge_from: Int64, edge_to: Int64, width: int, num_chunks: int) -> tuple[Int64, Int64]:
    """Edges within every chunk, and from each message to the same one of the next chunk."""
    shift = (np.arange(num_chunks, dtype=np.int64) * width)[:, None]
    earlier = np.arange((num_chunks - 1) * width, dtype=np.int64)
    return (
        np.concatenate(((edge_from + shift).ravel(), earlier)),
        np.concatenate(((edge_to + shift).ravel(), earlier + width)),
    )


def _messages(source, destination, first_byte: int, chunks: Int64, action, edges) -> Plan:
    num_chunks, width = len(chunks) - 1, len(source)
    return plan(
        np.tile(source, num_chunks),
        np.tile(destination, num_chunks),
        np.repeat(np.diff(chunks), width),
        np.repeat(first_byte + chunks[:-1], width),
        np.tile(np.broadcast_to(np.asarray(action, np.int8), (width,)), num_chunks),
        edges,
    )
