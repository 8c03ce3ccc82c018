"""One iteration of an expert-parallel model as a message graph.

Per layer with experts, for R ranks:

    attend[r]       local; its delay is the rank's attention (and the dense layers before it)
    attended        local; every rank has attended
    dispatch[r, d]  the tokens of rank r that have an expert on rank d
    expert[d]       local; its delay is the rank's experts, once `attended` and every dispatch to it are there
    computed        local; the experts of every rank are done
    combine[d, r]   the same tokens on their way back; attend[r] of the next layer waits for those to r, and for
                    `computed`
and one end[r] for what follows the last such layer.

The all-to-alls are collective: a rank goes on only when it has heard from every other one. Who has nothing for
another sends nothing, so that it is heard at once: `attended` and `computed` stand for all those empty messages,
which would be R^2 of them. For the same reason a rank without rows has no expert, and a join of one node is that
node. None of it moves a time; `tests/unit/serving/plain_iteration.py`
is the same iteration without a graph.

Leaves out: the latency of hearing from a rank that has nothing to send.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.compiled import inner

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

SOURCE, DESTINATION, SIZE_BYTES, NUM_INPUTS = 0, 1, 2, 3
"""Rows of `Nodes.whole`."""

EARLIEST, DELAY = 0, 1
"""Rows of `Nodes.seconds`."""

NONE = -1


class Nodes(NamedTuple):
    """A graph under construction; each node is added after its inputs.

    whole     [4, nodes] source, destination, size, number of inputs
    seconds   [2, nodes] earliest time and delay
    edges     [2, edges] from, to
    num_added [2] nodes and edges so far
    """

    whole: Int64
    seconds: Float64
    edges: Int64
    num_added: Int64


@inner
def _add(nodes: Nodes, source: int, destination: int, size_bytes: int, delay_s: float) -> int:
    """A node without inputs so far; returns its index."""
    i = nodes.num_added[0]
    nodes.num_added[0] += 1
    nodes.whole[SOURCE, i] = source
    nodes.whole[DESTINATION, i] = destination
    nodes.whole[SIZE_BYTES, i] = size_bytes
    nodes.seconds[DELAY, i] = delay_s
    return i


@inner
def _connect(nodes: Nodes, tail: int, head: int) -> None:
    """Node `head` waits for node `tail`; NONE is nothing to wait for."""
    if tail == NONE:
        return
    e = nodes.num_added[1]
    nodes.num_added[1] += 1
    nodes.edges[0, e] = tail
    nodes.edges[1, e] = head
    nodes.whole[NUM_INPUTS, head] += 1


@inner
def _join(nodes: Nodes, tails: Int64, accelerator: int) -> int:
    """A node that all of `tails` (NONE: not there) lead to: a new one unless they are one."""
    num, last = 0, NONE
    for tail in tails:
        if tail != NONE:
            num += 1
            last = tail
    if num <= 1:
        return last
    joined = _add(nodes, accelerator, accelerator, 0, 0.0)
    for tail in tails:
        _connect(nodes, tail, joined)
    return joined


@inner
def _add_own(nodes: Nodes, accelerators: Int64, own_s: Float64, computed: int, combine: Int64) -> Int64:
    """What each rank computes by itself, after all that came back to it: [ranks]."""
    own = np.full(len(accelerators), NONE)
    for r in range(len(accelerators)):
        own[r] = _add(nodes, accelerators[r], accelerators[r], 0, own_s[r])
        _connect(nodes, computed, own[r])
        for d in range(len(accelerators)):
            _connect(nodes, combine[d, r], own[r])
    return own


@inner
def _add_layer(
    nodes: Nodes,
    accelerators: Int64,
    attend: Int64,
    sent: Int64,
    expert_s: Float64,
    dispatch_row_bytes: int,
    combine_row_bytes: int,
    combine: Int64,
) -> int:
    """Dispatch, experts and combine of one layer; fills `combine` [ranks, ranks] and returns `computed`."""
    num_ranks = len(accelerators)
    attended = _join(nodes, attend, accelerators[0])
    dispatch = np.full((num_ranks, num_ranks), NONE)
    expert = np.full(num_ranks, NONE)
    for r in range(num_ranks):
        for d in range(num_ranks):
            if sent[r, d] > 0 and r != d:
                size_bytes = sent[r, d] * dispatch_row_bytes
                dispatch[r, d] = _add(nodes, accelerators[r], accelerators[d], size_bytes, 0.0)
                _connect(nodes, attend[r], dispatch[r, d])
    for d in range(num_ranks):
        if sent[:, d].any():
            expert[d] = _add(nodes, accelerators[d], accelerators[d], 0, expert_s[d])
            _connect(nodes, attended, expert[d])
            for r in range(num_ranks):
                _connect(nodes, dispatch[r, d], expert[d])
    computed = _join(nodes, expert, accelerators[0])
    combine[:] = NONE
    for d in range(num_ranks):
        for r in range(num_ranks):
            if dispatch[r, d] != NONE:
                size_bytes = sent[r, d] * combine_row_bytes
                combine[d, r] = _add(nodes, accelerators[d], accelerators[r], size_bytes, 0.0)
                _connect(nodes, expert[d], combine[d, r])
    return computed


@njit(cache=True)
def iteration_nodes(
    accelerators: Int64,
    own_s: Float64,
    sent: Int64,
    expert_s: Float64,
    dispatch_row_bytes: int,
    combine_row_bytes: int,
    started_s: float,
) -> Nodes:
    """The nodes of an iteration that starts at started_s, and its edges, inputs of a node together.

    accelerators   [ranks] their ids
    own_s          [layers + 1, ranks] what each computes by itself before each dispatch, and at the end
    sent           [layers, ranks, ranks] tokens of a rank with an expert on another, itself included
    expert_s       [layers, ranks]
    """
    num_layers, num_ranks = expert_s.shape
    num_sent = np.count_nonzero(sent)
    # A layer has up to R attends and R experts, each with one edge to a join and one from the join before, and for each
    # pair a dispatch and a combine, each with one edge in and one out.
    most = num_layers * (2 * num_ranks + 2) + num_ranks + 2 * num_sent
    nodes = Nodes(
        np.zeros((4, most), np.int64),
        np.zeros((2, most)),
        np.zeros((2, num_layers * 4 * num_ranks + 4 * num_sent + num_ranks), np.int64),
        np.zeros(2, np.int64),
    )
    computed = NONE
    combine = np.full((num_ranks, num_ranks), NONE)
    for layer in range(num_layers):
        attend = _add_own(nodes, accelerators, own_s[layer], computed, combine)
        computed = _add_layer(
            nodes, accelerators, attend, sent[layer], expert_s[layer], dispatch_row_bytes, combine_row_bytes, combine
        )
    _add_own(nodes, accelerators, own_s[num_layers], computed, combine)
    for i in range(len(accelerators)):  # the first attends wait for nothing but the start
        nodes.seconds[EARLIEST, i] = started_s + nodes.seconds[DELAY, i]
        nodes.seconds[DELAY, i] = 0.0
    num, num_edges = nodes.num_added
    return Nodes(nodes.whole[:, :num], nodes.seconds[:, :num], nodes.edges[:, :num_edges], nodes.num_added)


@njit(cache=True)
def successor_lists(tails: Int64, heads: Int64, num_nodes: int) -> tuple[Int64, Int64]:
    """(start [nodes + 1], successors [edges]) by tail; the edges of one tail keep their order."""
    start = np.zeros(num_nodes + 1, np.int64)
    for tail in tails:
        start[tail + 1] += 1
    for i in range(num_nodes):
        start[i + 1] += start[i]
    room = start[:-1].copy()
    successors = np.empty(len(heads), np.int64)
    for e in range(len(heads)):
        successors[room[tails[e]]] = heads[e]
        room[tails[e]] += 1
    return start, successors
