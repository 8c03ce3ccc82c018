"""The fluid fabric: weighted max-min fair rates on wire bytes, behind the message-graph contract.

What it leaves out: queues, loss, reordering, windows, store-and-forward of the last packet (one packet time
per hop), the acknowledgements' own load. An acknowledgement takes the path's latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.engine.clock import Clock
from sim.fabric import fluid_core as core
from sim.fabric import fluid_state as fs
from sim.fabric import maxmin
from sim.fabric.message_fabric import EVENTS_PER_CALL, SMALLEST, ConservationError, MessageFabric, copied
from sim.fabric.messages import DELIVERED
from sim.fabric.policies import PATH_POLICIES, PathPolicy, compiled, path_network
from sim.fabric.topology import Topology


@dataclass(frozen=True, slots=True)
class FluidSettings:
    """tolerance: a flow passes its bandwidth on when it is this close to its end, as a share of its own time.
    fairness: "queue_pair" (each piece counts as its queue pairs) or "message" (all pieces of a message count as one).
    """

    mtu_bytes: int = 4096
    header_bytes: int = 64
    tolerance: float = 1e-3
    fairness: str = "queue_pair"
    num_bins: int = 256


class FluidFabric(MessageFabric):
    """The fabric of one simulation; attach one to a clock."""

    def __init__(
        self,
        clock: Clock,
        topology: Topology,
        policy: str | PathPolicy = "ecmp",
        *,
        settings: FluidSettings | None = None,
        seed: int = 1,
        subflows: int = 4,
        window_s: float | None = None,
        jitter_s: float | None = None,
    ) -> None:
        super().__init__(clock, topology)
        self.settings = settings or FluidSettings()
        self.policy = PATH_POLICIES[policy] if isinstance(policy, str) else policy
        window_s = self.policy.window_s if window_s is None else window_s
        jitter_s = self.policy.jitter_s if jitter_s is None else jitter_s
        self._choose = compiled(self.policy)
        self._state = self._first_state([subflows, jitter_s, window_s, seed], seed)
        self._core = fs.reference(self._state)
        self._run = core.advance_for(self._core)
        self._grow_pieces(SMALLEST)
        clock.attach(self)

    def _first_state(self, parameters: list[float], seed: int) -> fs.State:
        t = self.topology
        c = np.zeros(1, fs.COUNTERS)
        c["free_piece"] = fs.NONE
        c["header_bytes"] = self.settings.header_bytes
        c["payload_per_packet"] = self.settings.mtu_bytes - self.settings.header_bytes
        c["is_fair_by_message"] = self.settings.fairness == "message"
        c["is_live"] = self.policy.is_live
        c["next_s"] = np.inf
        c["tolerance"] = self.settings.tolerance
        c["window_s"] = parameters[2]
        c["bin_s"] = 1e-6
        c["num_planes"] = t.num_planes
        return fs.State(
            c=c,
            successors=np.zeros(SMALLEST, np.int64),
            series=np.zeros((self.settings.num_bins, t.num_segments)),
            transfers=np.zeros(SMALLEST, fs.COUNT),
            watches=np.zeros(SMALLEST, fs.COUNT),
            nodes=np.zeros(SMALLEST, fs.NODE),
            fired=np.zeros(2 * SMALLEST, fs.FIRED),
            network=maxmin.network(t.segment_start, t.segment_link, t.segment_share, t.link_rate),
            work=maxmin.scratch(t.num_segments, t.num_links, 0),
            paths=path_network(t, parameters, seed),
            **fs.static(t),
            **fs.for_messages(SMALLEST, t.num_leaves),
            **fs.for_pieces(0),
        )

    # --- the core -----------------------------------------------------------------------------------------------------

    def _admit(self, first: int, last: int) -> None:
        core.admit(self._core, first, last, self.clock.now)

    def _cancel_message(self, m: int) -> None:
        core.cancel(self._core, m, self.clock.now)

    def _refresh(self) -> None:
        core.refresh_next(self._core)

    def _pointer(self, state: fs.State) -> Any:
        return fs.reference(state)

    def settle(self) -> None:
        """Nothing to wait for: an acknowledgement's time is known with the last byte's."""

    @property
    def num_solves(self) -> int:
        return int(self._state.c["num_solves"][0])

    def advance(self, until_s: float) -> None:
        """Run the compiled loop until then, until something watched is complete, or for 2^18 units of work."""
        status = self._run(self._core, self._choose, until_s, EVENTS_PER_CALL)
        if status == core.GROW:
            have = len(self._state.pieces)
            in_use = have - int(self._state.c["num_free_pieces"][0])
            self._grow_pieces(max(2 * have, in_use + int(self._state.c["needed_pieces"][0])))
            core.refresh_next(self._core)
        elif status == core.FIRED:
            self._deliver_fired()

    # --- what happened ----------------------------------------------------------------------------------------------

    def link_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """(payload, wire) bytes of every link so far; pieces under way count for the part that has been sent."""
        state = self._state
        payload, wire = state.segments["payload_bytes"].copy(), state.segments["wire_bytes"].copy()
        core.add_sent(self._core, payload, wire, self.clock.now)
        return self._to_links(payload), self._to_links(wire)

    def current_rates(self) -> tuple[np.ndarray, np.ndarray]:
        """(bytes/s [pieces], segments [pieces, 4]) of the pieces under way."""
        live = np.nonzero(self._state.pieces["message"] >= 0)[0]
        return self._state.rate[live].copy(), self._state.route[live].copy()

    def link_series(self) -> tuple[np.ndarray, np.ndarray]:
        """(bin edges [bins + 1] seconds, utilisation [links, bins]) over the time up to now."""
        while self.clock.now >= float(self._state.c["bin_s"][0]) * max(self.settings.num_bins, 1):
            core.comp.fold_series(self._core)
        for s in range(self.topology.num_segments):
            core.comp.account(self._core, s, self.clock.now)
        width = float(self._state.c["bin_s"][0])
        used = int(np.ceil(self.clock.now / width))
        if used and (used - 1) * width >= self.clock.now:
            used -= 1  # the division was rounded up
        series = self._state.series[:used].T
        links = np.zeros((self.topology.num_links, used))
        t = self.topology
        owner = np.repeat(np.arange(t.num_segments), np.diff(t.segment_start))
        np.add.at(links, t.segment_link, series[owner] * t.segment_share[:, None])
        edges = np.minimum(np.arange(used + 1) * width, self.clock.now)
        return edges, links / (t.link_rate[:, None] * np.maximum(np.diff(edges), 1e-300))

    def check_conservation(self) -> None:
        """Two ledgers, kept apart: of messages and of links.

        Application bytes: injected = delivered + cancelled + failed + still under way.
        Links: what left the sources (payload and wire bytes) = what arrived at the destinations, and its payload
        = what the messages got, cancelled ones in part.

        Raises ConservationError naming the law and the numbers.
        """
        open_bytes, open_delivered = self.open_bytes()
        segments = self._state.segments
        sent, arrived = segments["role"] == 0, segments["role"] == maxmin.NUM_ROLES - 1
        payload, wire = segments["payload_bytes"], segments["wire_bytes"]
        for law, expected, found in (
            ("application bytes: injected = delivered + cancelled + failed + under way",
             self.injected_bytes, self.closed_bytes.sum() + open_bytes),
            ("payload bytes on links: sent = arrived", payload[sent].sum(), payload[arrived].sum()),
            ("wire bytes on links: sent = arrived", wire[sent].sum(), wire[arrived].sum()),
            ("payload bytes: sent on links = delivered to messages",
             payload[sent].sum(), self.closed_bytes[DELIVERED] + open_delivered),
        ):  # fmt: skip
            if abs(found - expected) > 0.5 + 1e-9 * expected:
                raise ConservationError(f"{law} does not hold: {expected} is not {found}")

    # --- inside -----------------------------------------------------------------------------------------------------

    def _to_links(self, per_segment: np.ndarray) -> np.ndarray:
        t = self.topology
        owner = np.repeat(np.arange(t.num_segments), np.diff(t.segment_start))
        return np.bincount(t.segment_link, weights=per_segment[owner] * t.segment_share, minlength=t.num_links)

    def _grow_pieces(self, room: int) -> None:
        have = len(self._state.pieces)
        new = fs.for_pieces(room)
        self._replace(**{name: copied(getattr(self._state, name), array) for name, array in new.items()})
        state, c = self._state, self._state.c[0]
        state.next_piece[have:room] = np.append(np.arange(have + 1, room), c["free_piece"])
        c["free_piece"] = have
        c["num_free_pieces"] += room - have
        free = int(c["num_free_components"])
        state.free_components[free : free + room - have] = np.arange(room - 1, have - 1, -1)
        c["num_free_components"] += room - have
        self._replace(work=maxmin.with_room(state.work, room))

