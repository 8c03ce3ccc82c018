"""Routers: which replica takes a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Routable(Protocol):
    """What a router may look at."""

    @property
    def num_outstanding(self) -> int:
        """Requests queued plus running."""


@dataclass(frozen=True, slots=True)
class Router:
    """`choose(replicas, num_routed)` returns an index; num_routed counts the requests routed before.

    sees_replicas: whether it looks at them, so that they have to be brought up to the moment first.
    """

    choose: Callable[[Sequence[Routable], int], int]
    sees_replicas: bool


def round_robin(replicas: Sequence[Routable], num_routed: int) -> int:
    """Each in turn."""
    return num_routed % len(replicas)


def least_outstanding(replicas: Sequence[Routable], num_routed: int) -> int:
    """The one with the fewest requests queued plus running, at this very moment; ties to the lowest index.

    Leaves out: the delay after which a real router learns of a completion.
    """
    return min(range(len(replicas)), key=lambda i: replicas[i].num_outstanding)


ROUTERS: dict[str, Router] = {
    "round_robin": Router(round_robin, sees_replicas=False),
    "least_outstanding": Router(least_outstanding, sees_replicas=True),
}
