"""Routers: which replica takes a request.

To add one: a function here and a line in ROUTERS, an entry in `sim/scenario/serving.py`, a test.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Routed:
    """A request to be routed: its number, how many were routed to these replicas before, and two draws from [0, 1)."""

    request: int
    num_before: int
    draws: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Router:
    """`choose(replicas, routed)` returns an index.

    sees_replicas: whether it looks at them, so that they have to be brought up to the moment first.
    """

    choose: Callable[[Sequence[Routable], Routed], int]
    sees_replicas: bool


def round_robin(replicas: Sequence[Routable], routed: Routed) -> int:
    """Each in turn."""
    return routed.num_before % len(replicas)


def least_outstanding(replicas: Sequence[Routable], routed: Routed) -> int:
    """The one with the fewest requests queued plus running, at this very moment; ties to the lowest index.

    Leaves out: the delay after which a real router learns of a completion.
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


ROUTERS: dict[str, Router] = {
    "round_robin": Router(round_robin, sees_replicas=False),
    "least_outstanding": Router(least_outstanding, sees_replicas=True),
    "power_of_two": Router(power_of_two, sees_replicas=True),
    "least_kv": Router(least_kv, sees_replicas=True),
    "prefix_affinity": Router(prefix_affinity, sees_replicas=True),
}
