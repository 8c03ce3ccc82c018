"""Traffic patterns: who sends how much to whom, as message graphs.

`ranks` are accelerator ids; rank i is the i-th of them. Start times count from the workload's start.
"""

from __future__ import annotations

import numpy as np

from sim.collectives.direct import rotated_pairs
from sim.fabric.messages import Int64, MessageGraph, message_graph
from sim.workload.flow_file import MatrixFlows

DRAWS = 64
"""Permutations drawn whole before the last is exchanged into shape."""

SWEEPS = 64
"""Times that every rank is offered a random exchange, before and again after the repair."""


class PatternError(ValueError):
    """The pattern does not exist among these ranks; the text says why and what to change."""


def home_leaf(host_of_accelerator: Int64, leaf_of_accelerator: Int64) -> Int64:
    """[accelerators] The leaf of its host; where a host is on several leaves (rails), the first of them.

    Hosts with one home leaf share all their leaves, and what they send each other need not cross leaves.
    """
    host = np.asarray(host_of_accelerator)
    first = np.full(int(host.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, host, leaf_of_accelerator)
    return first[host]


def permutation(
    ranks: Int64,
    size_bytes: int,
    *,
    rng: np.random.Generator,
    leaf_of_accelerator: Int64 | None = None,
    cross_leaf: bool = True,
    queue_pairs: int = 1,
    owner: str = "",
) -> MessageGraph:
    """Every rank sends to one other and receives from one, drawn at random.

    cross_leaf            every pair crosses leaves: sender and receiver are hosts on different leaves;
                          otherwise any rank but oneself
    leaf_of_accelerator   [accelerators] leaf of its host, as `home_leaf` gives it: on rails, no pair then lies
                          in one host, nor in one group of hosts that share their leaves
    Raises PatternError when no such permutation exists: one rank, or a leaf with more than half of the ranks.
    """
    ranks = _distinct(ranks)
    if cross_leaf:
        if leaf_of_accelerator is None:
            raise PatternError("a permutation across leaves needs leaf_of_accelerator")
        group = np.asarray(leaf_of_accelerator)[ranks]
        leaves, counts = np.unique(group, return_counts=True)
        if 2 * counts.max() > len(ranks):
            leaf = leaves[np.argmax(counts)]
            raise PatternError(
                f"leaf {leaf} has {counts.max()} of {len(ranks)} ranks, not every pair can cross: "
                "choose ranks on more leaves, or cross_leaf: false"
            )
    else:
        if len(ranks) < 2:
            raise PatternError("a permutation needs at least two ranks")
        group = np.arange(len(ranks))
    destination = _permutation_out_of_groups(group, rng)
    return message_graph(ranks, ranks[destination], size_bytes, queue_pairs=queue_pairs, owner=owner)


def _permutation_out_of_groups(group: Int64, rng: np.random.Generator) -> Int64:
    """A random permutation that sends nobody into the own group, which must hold at most half of all.

    Drawn until one fits, which is exactly uniform; failing that, the last draw is exchanged into shape.
    """
    for _ in range(DRAWS):
        destination = rng.permutation(len(group))
        if not np.any(group == group[destination]):
            return destination
    return _exchanged(destination, group, rng)


def _exchanged(destination: Int64, group: Int64, rng: np.random.Generator) -> Int64:
    """Random pairs swap destinations wherever both are then out of their groups.

    That is a symmetric walk, whose limit is uniform. What SWEEPS of it leave inside a group gets a partner by
    hand, one by one, and the walk goes on.
    """
    for _ in range(SWEEPS):
        _exchange_pairs(destination, group, rng)
    for i in np.flatnonzero(group == group[destination]):
        if group[i] == group[destination[i]]:
            partners = np.flatnonzero((group != group[i]) & (group[destination] != group[i]))
            j = partners[rng.integers(len(partners))]
            destination[i], destination[j] = destination[j], destination[i]
    for _ in range(SWEEPS):
        _exchange_pairs(destination, group, rng)
    return destination


def _exchange_pairs(destination: Int64, group: Int64, rng: np.random.Generator) -> None:
    """Pair all at random; each pair swaps destinations where both are then out of their groups."""
    pairs = rng.permutation(len(group))[: len(group) // 2 * 2].reshape(-1, 2)
    a, b = pairs[:, 0], pairs[:, 1]
    allowed = (group[a] != group[destination[b]]) & (group[b] != group[destination[a]])
    a, b = a[allowed], b[allowed]
    destination[a], destination[b] = destination[b], destination[a]


def shift(
    ranks: Int64,
    size_bytes: int,
    *,
    leaf_of_accelerator: Int64,
    leaves_by: int = 1,
    queue_pairs: int = 1,
    owner: str = "",
) -> MessageGraph:
    """Every rank on leaf L sends to its twin on leaf L + leaves_by: the rank in the same place there.

    Leaves are those that hold ranks, in order, the last followed by the first. On rails, where the NICs of a
    host are on several leaves, the hosts that share their leaves are one step: the twin is the accelerator of
    the same place, and so of the same rail, in the host of the same place of another group.

    leaf_of_accelerator   [accelerators] leaf of its host, as `home_leaf` gives it
    Raises PatternError when leaves hold unequal numbers of ranks or the shift leads back to the own leaf.
    """
    ranks = _distinct(ranks)
    leaf = np.asarray(leaf_of_accelerator)[ranks]
    leaves, counts = np.unique(leaf, return_counts=True)
    if counts.min() != counts.max():
        few, many = int(np.argmin(counts)), int(np.argmax(counts))
        raise PatternError(
            f"a shift needs equally many ranks on every leaf, but leaf {leaves[few]} has {counts[few]} "
            f"and leaf {leaves[many]} has {counts[many]}: choose other ranks"
        )
    if leaves_by % len(leaves) == 0:
        raise PatternError(
            f"a shift by {leaves_by} among {len(leaves)} leaves leads back to the own leaf: "
            "choose another leaves_by, or ranks on more leaves"
        )
    by_leaf = ranks[np.argsort(leaf, kind="stable")].reshape(len(leaves), -1)
    return message_graph(
        by_leaf.ravel(),
        np.roll(by_leaf, -leaves_by, axis=0).ravel(),
        size_bytes,
        queue_pairs=queue_pairs,
        owner=owner,
    )


def incast(
    ranks: Int64,
    size_bytes: int,
    *,
    receiver: int = 0,
    fan_in: int | None = None,
    queue_pairs: int = 1,
    owner: str = "",
) -> MessageGraph:
    """The `fan_in` ranks that follow rank `receiver` (None: all others) send to it at once."""
    ranks = _distinct(ranks)
    n = len(ranks)
    if not 0 <= receiver < n:
        raise PatternError(f"incast receiver is rank {receiver}; ranks are 0 … {n - 1}")
    fan_in = n - 1 if fan_in is None else fan_in
    if not 1 <= fan_in < n:
        raise PatternError(f"incast fan_in is {fan_in}; among {n} ranks give 1 … {n - 1}")
    senders = ranks[(receiver + np.arange(1, fan_in + 1)) % n]
    return message_graph(
        senders, np.full(fan_in, ranks[receiver]), size_bytes, queue_pairs=queue_pairs, owner=owner
    )


def all_to_all(ranks: Int64, size_bytes: int, *, queue_pairs: int = 1, owner: str = "") -> MessageGraph:
    """Every rank sends `size_bytes` to every other at once; rank r's peers come in the order r + 1, r + 2,
    …
    """
    ranks = _distinct(ranks)
    if len(ranks) < 2:
        raise PatternError("an all-to-all needs at least two ranks")
    source, destination = rotated_pairs(len(ranks))
    return message_graph(ranks[source], ranks[destination], size_bytes, queue_pairs=queue_pairs, owner=owner)


def matrix(ranks: Int64, flows: MatrixFlows, *, queue_pairs: int = 1, owner: str = "") -> MessageGraph:
    """The flows of a file (sim.workload.matrix.read_matrix), its rank i being the i-th of `ranks`.

    Raises PatternError when the file has more ranks than there are.
    """
    ranks = _distinct(ranks)
    if flows.num_ranks > len(ranks):
        raise PatternError(f"the matrix is for {flows.num_ranks} ranks, but the workload has {len(ranks)}")
    return message_graph(
        ranks[flows.source],
        ranks[flows.destination],
        flows.size_bytes,
        edges=(flows.edge_from, flows.edge_to),
        earliest_s=flows.start_s,
        queue_pairs=queue_pairs,
        owner=owner,
    )


def _distinct(ranks: Int64) -> Int64:
    ranks = np.asarray(ranks, dtype=np.int64)
    if len(ranks) == 0:
        raise PatternError("a pattern needs ranks; the list is empty")
    values, counts = np.unique(ranks, return_counts=True)
    if len(values) < len(ranks):
        raise PatternError(f"accelerator {values[np.argmax(counts)]} is listed twice among the ranks")
    return ranks
