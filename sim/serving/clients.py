"""Clients: who sends requests, when the next one follows the end of another, and how long they wait for an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Send = tuple[float, int]
"""(when, which request)."""

ThinkTime = Callable[[int], float]
"""Seconds to think after the request of this number has ended: the same whatever came before it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What a client does about an answer that does not come.

    timeout_s        an attempt is given up so long after it was sent; None: never
    is_for_first     the first token ends the wait, else the last one
    num_retries      attempts after the first
    backoff_s        from giving up to the next attempt; doubled with each
    resends_lost     what was lost with a replica is sent to another at once; else it has failed
    """

    timeout_s: float | None = None
    is_for_first: bool = False
    num_retries: int = 0
    backoff_s: float = 0.0
    resends_lost: bool = True


class Clients(Protocol):
    """Who sends what."""

    def first(self, start_s: float) -> list[Send]:
        """What is sent whatever happens, of a workload that starts at start_s, in order of time."""

    def after(self, request: int, ended_s: float, is_completed: bool) -> Send | None:
        """What follows the end of a request."""

    @property
    def num_at_once(self) -> int:
        """Clients that begin at one instant, where that is the tool's doing and not the load's."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests come at their times, whatever became of those before.

    arrival_s   [requests] rising, from the start of the workload on
    """

    arrival_s: NDArray[np.float64]

    def first(self, start_s: float) -> list[Send]:
        return list(zip((self.arrival_s + start_s).tolist(), range(len(self.arrival_s)), strict=True))

    def after(self, request: int, ended_s: float, is_completed: bool) -> Send | None:
        return None

    @property
    def num_at_once(self) -> int:
        return 1


class ClosedLoop:
    """A fixed number of clients; each sends its next request a think time after the end of its last one.

    Client i of n begins at i ramp / n, as in JMeter's ramp-up period; without a ramp all begin at once, as
    `vllm bench serve --max-concurrency` does. Clients' first requests have the first numbers, all others follow in the
    order in which clients take them, at the end of the one before. With R the mean time to answer and Z the mean think
    time, throughput is num_clients / (R + Z) (Little's law).

    num_requests   in all, failed ones included
    duration_s     nothing is sent from then on; None: no such end
    """

    def __init__(
        self, num_clients: int, num_requests: int, think: ThinkTime | None = None, duration_s: float | None = None,
        ramp_s: float = 0.0,
    ) -> None:  # fmt: skip
        if num_clients < 1 or num_requests < 1:
            raise ValueError(f"a closed loop needs clients and requests, got {num_clients} and {num_requests}")
        self.num_clients, self.num_requests, self.duration_s = num_clients, num_requests, duration_s
        self.ramp_s = ramp_s
        self._think = think
        self._num_taken = self._num_taken_first = min(num_clients, num_requests)
        self._end_s = np.inf

    def first(self, start_s: float) -> list[Send]:
        if self.duration_s is not None:
            self._end_s = start_s + self.duration_s
        begin_s = [start_s + self.ramp_s * client / self.num_clients for client in range(self._num_taken)]
        return [(send_s, client) for client, send_s in enumerate(begin_s) if send_s < self._end_s]

    @property
    def num_at_once(self) -> int:
        return self._num_taken_first if self.ramp_s == 0 else 1

    def after(self, request: int, ended_s: float, is_completed: bool) -> Send | None:
        send_s = ended_s if self._think is None else ended_s + self._think(request)
        if self._num_taken == self.num_requests or send_s >= self._end_s:
            return None
        self._num_taken += 1
        return send_s, self._num_taken - 1


class Sessions:
    """Conversations: a turn follows a think time after the answer to the one before.

    clients      who begins sessions, numbered from 0: an open or a closed loop of them
    num_turns    [sessions] whose requests are numbered session after session
    think        from an answer to the next turn; None: at once

    A session ends with its last turn, or with one that is not answered: failed or given up.
    """

    def __init__(self, clients: Clients, num_turns: NDArray[np.int64], think: ThinkTime | None = None) -> None:
        self._clients, self._think = clients, think
        self._first = np.append(0, np.cumsum(num_turns)).tolist()
        self._session = np.repeat(np.arange(len(num_turns)), num_turns).tolist()

    def first(self, start_s: float) -> list[Send]:
        return [(send_s, self._first[session]) for send_s, session in self._clients.first(start_s)]

    def after(self, request: int, ended_s: float, is_completed: bool) -> Send | None:
        session = self._session[request]
        if is_completed and request + 1 < self._first[session + 1]:
            return (ended_s if self._think is None else ended_s + self._think(request)), request + 1
        follower = self._clients.after(session, ended_s, is_completed)
        return None if follower is None else (follower[0], self._first[follower[1]])

    @property
    def num_at_once(self) -> int:
        return self._clients.num_at_once
