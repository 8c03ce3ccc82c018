"""One iteration of an expert-parallel model as a message graph.

Per layer with experts, for R ranks:

    attend[r]       local; its delay is the rank's attention (and the dense layers before it)
    dispatch[r, d]  the tokens of rank r that have an expert on rank d
    expert[d]       local; its delay is the rank's experts, once every dispatch to it has arrived
    combine[d, r]   the same tokens on their way back
and one `end[r]` for what follows the last such layer. The local nodes join: without them each of R dispatches
would feed each of R combines, and edges would grow with the cube of R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.fabric.messages import MessageGraph, message_graph

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IterationShape:
    """The part of an iteration's graph that every step shares.

    attend, expert      [layers, ranks] message index of each join
    dispatch, combine   [layers, ranks, ranks] message index from rank to rank; -1 on the diagonal
    end                 [ranks]
    template            the graph with no bytes and no delays
    """

    attend: Int64
    dispatch: Int64
    expert: Int64
    combine: Int64
    end: Int64
    template: MessageGraph

    def graph(self, size_bytes: Int64, delay_s: Float64, earliest_s: Float64, owner: str) -> MessageGraph:
        """The graph of one step; the three arrays are kept, not copied.

        Who has nothing for another sends nothing: that message becomes local, and only keeps the order.
        """
        t = self.template
        destination = np.where(size_bytes > 0, t.destination, t.source)
        return MessageGraph(
            t.source, destination, size_bytes, earliest_s, delay_s, t.successor_start, t.successors,
            t.num_inputs, t.gate, t.queue_pairs, t.traffic_class, owner,
        )  # fmt: skip


@lru_cache(maxsize=64)
def iteration_shape(accelerators: Sequence[int], num_layers: int) -> IterationShape:
    """Nodes and edges for these ranks (a tuple of accelerator ids) and this many layers with experts.

    Raises ValueError when an accelerator is named twice.
    """
    num_ranks = len(accelerators)
    if len(set(accelerators)) != num_ranks:
        raise ValueError(f"an accelerator serves two expert ranks: {list(accelerators)}")
    num_pairs = num_ranks * (num_ranks - 1)
    per_layer = 2 * num_ranks + 2 * num_pairs
    first = per_layer * np.arange(num_layers)[:, None]
    ranks = np.arange(num_ranks)
    sender, receiver = np.nonzero(ranks[:, None] != ranks[None, :])

    attend = first + ranks
    expert = first + num_ranks + num_pairs + ranks
    end = per_layer * num_layers + ranks
    dispatch = np.full((num_layers, num_ranks, num_ranks), -1, dtype=np.int64)
    dispatch[:, sender, receiver] = first + num_ranks + np.arange(num_pairs)
    combine = np.full_like(dispatch, -1)
    combine[:, sender, receiver] = first + 2 * num_ranks + num_pairs + np.arange(num_pairs)

    source = np.empty(per_layer * num_layers + num_ranks, dtype=np.int64)
    destination = np.empty_like(source)
    for local in (attend, expert, end):
        source[local] = destination[local] = ranks
    for pairs in (dispatch, combine):
        source[pairs[:, sender, receiver]] = sender
        destination[pairs[:, sender, receiver]] = receiver

    following = np.concatenate([attend[1:], end[None, :]])
    tails, heads = [], []
    for starts, pairs, joins in ((attend, dispatch, expert), (expert, combine, following)):
        to_others = pairs[:, sender, receiver]
        tails += [starts[:, sender], to_others, starts]
        heads += [to_others, joins[:, receiver], joins]
    edges = (np.concatenate([t.ravel() for t in tails]), np.concatenate([h.ravel() for h in heads]))
    ids = np.asarray(accelerators, dtype=np.int64)
    template = message_graph(ids[source], ids[destination], np.zeros(len(source), np.int64), edges=edges)
    return IterationShape(attend, dispatch, expert, combine, end, template)
