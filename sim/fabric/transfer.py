"""A transfer: one message graph on its way, as the workload that started it sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from simpy import Event

from sim.fabric.messages import MessageGraph, MessageResults


class Fabric(Protocol):
    """What both fidelities offer. A workload needs no more than this.

    has_packets: results tell of packets
    """

    has_packets: bool

    def start(self, graph: MessageGraph) -> Transfer: ...

    def new_gate(self) -> int: ...

    def open_gate(self, gate: int) -> None: ...


class TransferOwner(Protocol):
    def watch(self, transfer: Transfer, indices: np.ndarray) -> Event: ...

    def cancel(self, transfer: Transfer, indices: np.ndarray) -> None: ...

    def results_of(self, transfer: Transfer) -> MessageResults: ...

    def num_ended(self, transfer: Transfer) -> int: ...


class Transfer:
    """Handle of a started message graph.

    done      SimPy event: every message is delivered, cancelled or failed; it triggers when the last byte arrives
    """

    def __init__(self, fabric: TransferOwner, graph: MessageGraph, done: Event, key: int) -> None:
        self.graph = graph
        self.done = done
        self.key = key
        self._fabric = fabric
        self._final: MessageResults | None = None

    def watch(self, indices: int | Iterable[int]) -> Event:
        """An event that triggers when all of these messages have ended."""
        return self._fabric.watch(self, np.atleast_1d(np.asarray(indices, dtype=np.int64)))

    def cancel(self, indices: Iterable[int] | None = None) -> None:
        """Senders of these messages (None: of all) stop; what is on its way already counts as delivered."""
        everything = np.arange(self.graph.num_messages)
        self._fabric.cancel(self, everything if indices is None else np.asarray(indices, dtype=np.int64))

    @property
    def num_ended(self) -> int:
        """How many messages have been delivered, cancelled or failed."""
        return self._fabric.num_ended(self)

    @property
    def is_final(self) -> bool:
        """Whether the results are final: every message has ended, and every acknowledgement is there."""
        return self._final is not None

    @property
    def results(self) -> MessageResults:
        """Per message; final once `done` has triggered, the state so far before that."""
        return self._final if self._final is not None else self._fabric.results_of(self)

    def close(self, final: MessageResults) -> None:
        """The fabric hands over the final results and forgets the transfer."""
        self._final = final
