"""Faults in time: a SimPy process per fault tells the fabric when links change, and later, when routing knows it.

Routing sees the network as it was `convergence_s` ago: a link that dies at t is withdrawn at t + convergence, one
that is back at u is used again from u + convergence on. Rates are no matter of routing.

What is left out: routing that learns switch by switch, and weights paths by their rate.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from simpy import Event

from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.message_fabric import MessageFabric


@dataclass(frozen=True, slots=True)
class Fault:
    """Directed links that carry `rate_bytes_per_s` from at_s to until_s (None: for good).

    Without a rate they are down, unless `loss` is given: then they lose each packet with that probability.
    """

    what: str
    links: tuple[int, ...]
    rate_bytes_per_s: float | None
    at_s: float
    until_s: float | None
    loss: float | None = None

    @property
    def is_down(self) -> bool:
        return self.rate_bytes_per_s is None and self.loss is None


@dataclass(slots=True)
class _Story:
    """What a fault did: None before it began; the bytes moved away from its links before it began, and after it."""

    flows_affected: int | None = None
    moved_before: float = 0.0
    moved_after: float | None = None


class Faults:
    """The faults of one run. Where they overlap on a link, the lowest rate wins, and down wins over any rate; of
    losses the highest."""

    def __init__(self, clock: Clock, fabric: MessageFabric, faults: Sequence[Fault], convergence_s: float) -> None:
        self.clock, self.fabric, self.faults, self.convergence_s = clock, fabric, tuple(faults), convergence_s
        self._stories = [_Story() for _ in faults]
        self._active: list[Fault] = []
        self._known: list[Fault] = []

    def start(self) -> None:
        """Before the workloads start: a fault at 0 s is there before their first message."""
        for fault, story in zip(self.faults, self._stories, strict=True):
            self.clock.process(self._happen(fault, story))
            if fault.is_down:
                self.clock.process(self._become_known(fault, story))

    def _at(self, time_s: float) -> Event:
        event = self.clock.event()
        self.clock.succeed_at(event, max(time_s, self.clock.now))
        return event

    def _happen(self, fault: Fault, story: _Story) -> Generator[Event, Any, None]:
        yield self._at(fault.at_s)
        self._active.append(fault)
        story.moved_before = self._moved(fault)
        story.flows_affected = self._apply(fault)
        if fault.until_s is None:
            return
        yield self._at(fault.until_s)
        self._active.remove(fault)
        self._apply(fault)
        if not fault.is_down:
            story.moved_after = self._moved(fault)

    def _apply(self, fault: Fault) -> int:
        """Give its links what they have now; returns the messages under way across them."""
        links = np.array(fault.links, np.int64)
        if fault.loss is None:
            return self.fabric.set_links(links, self._rates()[links])
        losses = np.zeros(len(self.fabric.topology.link_rate))
        for other in self._active:
            of_other = list(other.links)
            losses[of_other] = np.maximum(losses[of_other], other.loss or 0.0)
        return self.fabric.set_losses(links, losses[links])

    def _become_known(self, fault: Fault, story: _Story) -> Generator[Event, Any, None]:
        yield self._at(fault.at_s + self.convergence_s)
        self._known.append(fault)
        self.fabric.set_routing(*self._withdrawn(fault))
        if fault.until_s is None:
            return
        yield self._at(fault.until_s + self.convergence_s)
        self._known.remove(fault)
        self.fabric.set_routing(*self._withdrawn(fault))
        story.moved_after = self._moved(fault)

    def _rates(self) -> np.ndarray:
        """[links]"""
        rates = self.fabric.topology.link_rate.copy()
        for other in self._active:
            if other.loss is None:
                links = list(other.links)
                rates[links] = np.minimum(rates[links], other.rate_bytes_per_s or 0.0)
        return rates

    def _withdrawn(self, fault: Fault) -> tuple[np.ndarray, np.ndarray]:
        known = [link for other in self._known for link in other.links]
        links = np.array(fault.links, np.int64)
        return links, np.isin(links, known)

    def _moved(self, fault: Fault) -> float:
        return float(self.fabric.moved_bytes[list(fault.links)].sum())

    def rows(self) -> list[dict[str, Any]]:
        """A row per fault that has begun, in the scenario's order.

        flows_affected  messages under way across its links when it began
        moved_bytes     payload that left them for another path while they were down, or known to be; of a sprayed flow
                        the share of what it had left that the dead paths would have carried
        """
        found = []
        for fault, story in zip(self.faults, self._stories, strict=True):
            if story.flows_affected is not None:
                moved = self._moved(fault) if story.moved_after is None else story.moved_after
                found.append({
                    "at_s": fault.at_s, "until_s": fault.until_s, "what": fault.what,
                    "flows_affected": story.flows_affected, "moved_bytes": moved - story.moved_before,
                })  # fmt: skip
        return found

    def notes(self) -> list[str]:
        """Faults that the run was too short for."""
        pairs = zip(self.faults, self._stories, strict=True)
        return [f"{fault.what}: begins at {fault.at_s:g} s, but the run ended before"
                for fault, story in pairs if story.flows_affected is None]  # fmt: skip

    def record(self, recorder: Recorder) -> None:
        """Table `faults`."""
        for row in self.rows():
            recorder.append("faults", **row)


