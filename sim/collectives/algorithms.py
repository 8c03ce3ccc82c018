"""Collective operations and their algorithms, by name.

`size_bytes` is what nccl-tests prints: the larger of a rank's send and receive buffer. That is the vector for
all_reduce and broadcast, the gathered vector for all_gather, the vector sent for reduce_scatter, everything
a rank sends (n equal blocks, its own included) for all_to_all, and the message for send_recv.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import numpy as np

from sim.collectives import direct, halving_doubling, ring, tree
from sim.collectives.hierarchical import HIERARCHICAL, host_grid
from sim.collectives.plan import CollectiveError, Plan
from sim.fabric.messages import Int64, MessageGraph


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to run one operation; calling it gives the message graph."""

    operation: str
    name: str
    build: Callable[..., Plan]
    takes_chunk: bool = False

    def plan(
        self,
        ranks: Int64,
        size_bytes: int,
        *,
        chunk_bytes: int | None = None,
        hierarchical: bool = False,
        host_of_accelerator: Int64 | None = None,
    ) -> Plan:
        """The plan among ranks 0 … len(ranks) − 1; the arguments are those of `__call__`."""
        ranks = np.asarray(ranks, dtype=np.int64)
        if len(ranks) == 0 or len(np.unique(ranks)) < len(ranks):
            raise CollectiveError(f"{self.operation}: give at least one rank and each accelerator once")
        if size_bytes < 0:
            raise CollectiveError(f"{self.operation}: size is {size_bytes} bytes; it cannot be negative")
        build = self.build
        if chunk_bytes is not None:
            if not self.takes_chunk:
                raise CollectiveError(
                    f"{self.operation} with {self.name} takes no chunk size; "
                    f"{' and '.join(f'{o} with {a}' for o, a in _with_chunks())} do"
                )
            if chunk_bytes < 1:
                raise CollectiveError(f"{self.operation}: chunk is {chunk_bytes} bytes; give at least one")
            build = partial(build, chunk_bytes=chunk_bytes)
        if not hierarchical:
            return build(len(ranks), size_bytes)
        if self.operation not in HIERARCHICAL:
            raise CollectiveError(
                f"{self.operation} has no hierarchical form ({', '.join(HIERARCHICAL)} have): leave it off"
            )
        if host_of_accelerator is None:
            raise CollectiveError("a hierarchical collective needs host_of_accelerator")
        return HIERARCHICAL[self.operation](host_grid(ranks, host_of_accelerator), size_bytes, build)

    def __call__(
        self,
        ranks: Int64,
        size_bytes: int,
        *,
        chunk_bytes: int | None = None,
        hierarchical: bool = False,
        host_of_accelerator: Int64 | None = None,
        queue_pairs: int = 1,
        traffic_class: int = 0,
        owner: str = "",
    ) -> MessageGraph:
        """The message graph of the operation among the accelerators `ranks`; empty for a single rank.

        size_bytes           as nccl-tests prints it (see the module); any size, the remainder is spread
        chunk_bytes          pipelining unit of the trees and the chain; None for NCCL's 512 KiB
        hierarchical         through the hosts' NVLink domains; needs host_of_accelerator [all accelerators]

        Leaves out: the time of the reductions, and of copies inside an accelerator.
        Raises CollectiveError when ranks repeat or do not suit the algorithm, or an option does not apply.
        """
        whole = self.plan(
            ranks,
            size_bytes,
            chunk_bytes=chunk_bytes,
            hierarchical=hierarchical,
            host_of_accelerator=host_of_accelerator,
        )
        ranks = np.asarray(ranks, dtype=np.int64)
        return whole.graph(ranks, queue_pairs=queue_pairs, traffic_class=traffic_class, owner=owner)


ALGORITHMS: dict[tuple[str, str], Algorithm] = {
    (algorithm.operation, algorithm.name): algorithm
    for algorithm in (
        Algorithm("all_reduce", "ring", ring.all_reduce),
        Algorithm("all_reduce", "halving_doubling", halving_doubling.all_reduce),
        Algorithm("all_reduce", "double_binary_tree", tree.all_reduce, takes_chunk=True),
        Algorithm("all_reduce", "direct", direct.all_reduce),
        Algorithm("all_gather", "ring", ring.all_gather),
        Algorithm("all_gather", "halving_doubling", halving_doubling.all_gather),
        Algorithm("all_gather", "direct", direct.all_gather),
        Algorithm("reduce_scatter", "ring", ring.reduce_scatter),
        Algorithm("reduce_scatter", "halving_doubling", halving_doubling.reduce_scatter),
        Algorithm("reduce_scatter", "direct", direct.reduce_scatter),
        Algorithm("all_to_all", "direct", direct.all_to_all),
        Algorithm("broadcast", "ring", tree.chain_broadcast, takes_chunk=True),
        Algorithm("broadcast", "double_binary_tree", tree.broadcast, takes_chunk=True),
        Algorithm("send_recv", "direct", direct.send_recv),
    )
}


def algorithm(operation: str, name: str) -> Algorithm:
    """Look an algorithm up; raises CollectiveError that lists what there is."""
    found = ALGORITHMS.get((operation, name))
    if found is not None:
        return found
    operations = sorted({o for o, _ in ALGORITHMS})
    if operation not in operations:
        raise CollectiveError(f"unknown operation '{operation}'{_suggestion(operation, operations)}")
    names = [a for o, a in ALGORITHMS if o == operation]
    raise CollectiveError(f"{operation} has no algorithm '{name}'{_suggestion(name, names)}")


def _suggestion(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; choose one of {', '.join(known)}"


def _with_chunks() -> list[tuple[str, str]]:
    return [key for key, algorithm in ALGORITHMS.items() if algorithm.takes_chunk]
