"""Routers: which replica takes a request.

To add one: a function here and a line in ROUTERS, an entry in `sim/scenario/serving.py`, a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Routable(Protocol):
    """What a router may look at."""

    @property
    def num_outstanding(self) -> int:
        """Requests queued plus running."""

    @property
    def num_held_blocks(self) -> int:
        """KV blocks that running requests hold."""

    def cached_tokens(self, request: int) -> int:
        """Of the request's prompt, what the replica's KV cache has."""

    def num_of_adapter(self, adapter: int) -> int:
        """Requests of this adapter (0: the base model), queued plus running."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A request to be routed: its number, how many were routed to these replicas before, two draws from [0, 1), and its
    adapter (0: the base model)."""

    request: int
    num_before: int
    draws: tuple[float, float] = (0.0, 0.0)
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class Router:
    """`choose(replicas, routed)` returns an index.

    sees_replicas: whether it looks at them, so that they have to be brought up to the moment first.
    sees_cache: whether it asks for `cached_tokens`
    """

    choose: Callable[[Sequence[Routable], Routed], int]
    sees_replicas: bool
    sees_cache: bool = False


def round_robin(replicas: Sequence[Routable], routed: Routed) -> int:
    """Each in turn."""
    return routed.num_before % len(replicas)


def least_outstanding(replicas: Sequence[Routable], routed: Routed) -> int:
    """The one with the fewest requests queued plus running, ties to the lowest index.

    At this very moment, unless replicas report only now and then (`Fleet`): then all go to the one that was the
    emptiest, until it says otherwise.
    """
    return min(range(len(replicas)), key=lambda i: replicas[i].num_outstanding)


def power_of_two(replicas: Sequence[Routable], routed: Routed) -> int:
    """Of two drawn at random the one with fewer requests queued plus running; ties to the first drawn.

    Source: M. Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 12 (2001).
    """
    n = len(replicas)
    if n == 1:
        return 0
    first = int(routed.draws[0] * n)
    second = (first + 1 + int(routed.draws[1] * (n - 1))) % n
    return second if replicas[second].num_outstanding < replicas[first].num_outstanding else first


def least_kv(replicas: Sequence[Routable], routed: Routed) -> int:
    """The one whose running requests hold the fewest KV blocks; ties to the fewest outstanding, then to the lowest
    index."""
    return min(range(len(replicas)), key=lambda i: (replicas[i].num_held_blocks, replicas[i].num_outstanding))


def prefix_affinity(replicas: Sequence[Routable], routed: Routed) -> int:
    """The one whose cache has most of the prompt; ties to the fewest outstanding, then the lowest index.

    Leaves out: giving up a long prefix for a much shorter queue.
    """
    return min(
        range(len(replicas)), key=lambda i: (-replicas[i].cached_tokens(routed.request), replicas[i].num_outstanding)
    )


BOUNDED_LOAD = 1.25
"""Of the mean: what a replica may have before requests of its adapters go elsewhere."""


def adapter_affinity(replicas: Sequence[Routable], routed: Routed) -> int:
    """The one with most requests of the same adapter, of those that have no more than 1.25 times the mean of requests,
    this one included and rounded up; ties to the fewest outstanding, then the lowest index.

    A step then reads fewer adapters' weights, and popular adapters spread over as many replicas as they need.

    Source: the bound is that of consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, SODA 2018).
    """
    load = [replica.num_outstanding for replica in replicas]
    most = math.ceil(BOUNDED_LOAD * (sum(load) + 1) / len(load))
    within = [i for i in range(len(replicas)) if load[i] < most]
    return min(within, key=lambda i: (-replicas[i].num_of_adapter(routed.adapter), load[i]))


ROUTERS: dict[str, Router] = {
    "round_robin": Router(round_robin, sees_replicas=False),
    "least_outstanding": Router(least_outstanding, sees_replicas=True),
    "power_of_two": Router(power_of_two, sees_replicas=True),
    "least_kv": Router(least_kv, sees_replicas=True),
    "prefix_affinity": Router(prefix_affinity, sees_replicas=True, sees_cache=True),
    "adapter_affinity": Router(adapter_affinity, sees_replicas=True),
}
