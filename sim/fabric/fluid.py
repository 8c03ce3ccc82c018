"""The fluid fabric: weighted max-min fair rates on wire bytes, behind the message-graph contract.

What it leaves out: queues, loss, reordering, windows, store-and-forward of the last packet (one packet time
per hop), the acknowledgements' own load. An acknowledgement takes the path's latency.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from simpy import Event

from sim.engine.clock import Clock
from sim.fabric import fluid_core as core
from sim.fabric import fluid_faults as faults
from sim.fabric import fluid_state as fs
from sim.fabric import maxmin
from sim.fabric.detours import Detours, keys_of
from sim.fabric.link_sets import some_link_of_segments
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
        self._down_since_s = np.full(topology.num_links, np.inf)
        self._moved_bytes = np.zeros(topology.num_links)
        self._detours = Detours(topology, self._state.paths.withdrawn, self.policy.name == "ideal")
        self._is_watching = False
        clock.attach(self)

    def _first_state(self, parameters: list[float], seed: int) -> fs.State:
        t = self.topology
        c = np.zeros(1, fs.COUNTERS)
        c["free_piece"] = fs.NONE
        c["header_bytes"] = self.settings.header_bytes
        c["payload_per_packet"] = self.settings.mtu_bytes - self.settings.header_bytes
        c["is_fair_by_message"] = self.settings.fairness == "message"
        c["is_live"] = self.policy.is_live
        c["is_spread"] = self.policy.spray is not None or self.policy.name == "ideal"
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
            detour_keys=np.zeros(0, np.int64),
            detours=np.zeros(0, fs.DETOUR),
            network=maxmin.network(t.segment_start, t.segment_link, t.segment_share, t.link_rate.copy()),
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
        if status == core.GROW and self._state.c["needed_detours"][0]:
            batch = self._state.batch[: int(self._state.c["needed_detours"][0])]
            self._state.c["needed_detours"] = 0
            self._add_detours(batch["source"], batch["destination"])
            core.refresh_next(self._core)
        elif status == core.GROW:
            have = len(self._state.pieces)
            in_use = have - int(self._state.c["num_free_pieces"][0])
            self._grow_pieces(max(2 * have, in_use + int(self._state.c["needed_pieces"][0])))
            core.refresh_next(self._core)
        elif status == core.FIRED:
            self._deliver_fired()

    # --- faults -----------------------------------------------------------------------------------------------------

    def set_links(self, links: np.ndarray, rate_bytes_per_s: np.ndarray) -> int:
        """From now on these links carry so much, 0: they are down. Returns the messages under way across them."""
        self._set_now()
        crosses = (self._some_link_of(links)[self._state.route] >= 0).any(axis=1)
        messages = self._state.pieces["message"]
        hit = np.unique(messages[(messages >= 0) & crosses])
        faults.set_rates(self._core, links, rate_bytes_per_s, self._down_since_s, self.clock.now)
        if self.policy.timeout_s is not None and not self._is_watching and (rate_bytes_per_s == 0).any():
            self._is_watching = True
            self._allow_marks()
            self.clock.process(self._time_out(self.policy.timeout_s))
        return len(hit)

    def set_routing(self, links: np.ndarray, is_withdrawn: np.ndarray) -> None:
        """Routing learns now that these links are dead (withdrawn), or alive again: what it can move, it moves."""
        self._set_now()
        self._state.paths.withdrawn[links] = is_withdrawn
        self._state.c["num_withdrawn"] = self._state.paths.withdrawn.sum()
        if self._state.c["is_spread"][0]:
            live = self._state.pieces["message"]
            messages = self._state.messages[np.unique(live[live >= 0])]
            self._detours.forget()
            self._add_detours(messages["source"], messages["destination"])
        faults.reroute(self._core, self._moved_bytes, self.clock.now)

    @property
    def moved_bytes(self) -> np.ndarray:
        """[links] payload that has moved to another path because the link was dead."""
        return self._moved_bytes.copy()

    def _time_out(self, timeout_s: float) -> Generator[Event, Any, None]:
        """Senders that watch their paths, for as long as a dead link is in use."""
        while (np.isfinite(self._down_since_s) & ~self._state.paths.withdrawn).any():
            self._set_now()
            next_s = faults.time_out(
                self._core, timeout_s, self.policy.bad_for_s, self._down_since_s, self._moved_bytes, self.clock.now
            )
            wake = self.clock.event()
            self.clock.succeed_at(wake, min(next_s, self.clock.now + timeout_s))  # for pieces that start meanwhile
            yield wake
        self._is_watching = False

    def _held_up(self) -> dict[int, str]:
        """Rows of messages that are under way and cannot move -> the dead link that they wait for."""
        dead_link = self._some_link_of(np.flatnonzero(self._state.network.capacity <= 0))[self._state.route]
        messages = self._state.pieces["message"]
        found = {}
        for p in np.flatnonzero((messages >= 0) & (dead_link >= 0).any(axis=1)):
            if not np.isnan(self._state.messages["started_s"][messages[p]]):
                found[int(messages[p])] = self.topology.link_name[max(dead_link[p])]
        return found

    def _some_link_of(self, links: np.ndarray) -> np.ndarray:
        network = self._state.network
        return some_link_of_segments(network.segment_start, network.segment_link, links)

    def _add_detours(self, source: np.ndarray, destination: np.ndarray) -> None:
        """Find the sprayed routes between these accelerators, and make room for the segments that they need."""
        self._detours.add(keys_of(self.topology, source, destination))
        keys, rows = self._detours.table()
        self._replace(detour_keys=keys, detours=rows)
        made, have = self._detours.made, len(self._state.segments)
        num_new = self.topology.num_segments + len(made.roles) - have
        if num_new == 0:
            return
        new = slice(len(made.roles) - num_new, None)
        parts = made.links[new], made.shares[new], made.latency_s[new], made.roles[new]
        self._replace(**fs.with_segments(self._state, *parts, now=self.clock.now))

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

    def current_owners(self) -> list[str]:
        """Whose each piece under way is, in the order of `current_rates`."""
        messages = self._state.pieces["message"]
        transfers = self._state.messages["transfer"][messages[messages >= 0]]
        return [self._spans[int(key)].transfer.graph.owner for key in transfers]

    @property
    def network(self) -> maxmin.Network:
        return self._state.network

    def link_series(self) -> tuple[np.ndarray, np.ndarray]:
        """(bin edges [bins + 1] seconds, utilisation [links, bins]) over the time up to now.

        Never above 1, and therefore short of the wire bytes by up to twice the tolerance: the last bytes of a flow that
        finishes with another, and the first ones of a flow that waits to be solved with others, are not in it.
        """
        while self.clock.now >= float(self._state.c["bin_s"][0]) * max(self.settings.num_bins, 1):
            core.comp.fold_series(self._core)
        for s in range(len(self._state.segments)):
            core.comp.account(self._core, s, self.clock.now)
        width = float(self._state.c["bin_s"][0])
        used = int(np.ceil(self.clock.now / width))
        if used and (used - 1) * width >= self.clock.now:
            used -= 1  # the division was rounded up
        series = self._state.series[:used].T
        links = np.zeros((self.topology.num_links, used))
        network = self._state.network
        owner = np.repeat(np.arange(len(series)), np.diff(network.segment_start))
        np.add.at(links, network.segment_link, series[owner] * network.segment_share[:, None])
        edges = np.minimum(np.arange(used + 1) * width, self.clock.now)
        return edges, links / (self.topology.link_rate[:, None] * np.maximum(np.diff(edges), 1e-300))

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
        network = self._state.network
        loads = np.repeat(per_segment, np.diff(network.segment_start)) * network.segment_share
        return np.bincount(network.segment_link, weights=loads, minlength=self.topology.num_links)

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

