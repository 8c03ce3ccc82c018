"""The packet fabric: every packet and acknowledgement hop by hop, behind the message-graph contract.

Two cores: lean ports (a fixed window over unlimited buffers) where nothing needs more, full ports (finite buffers,
marks, pauses, trimming, recovery, congestion control) otherwise. A switch forwards a packet when it has all of it, in
no time. Left out: the bandwidth of pause frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.engine.clock import Clock
from sim.fabric import fluid_state as fs
from sim.fabric import full_core, full_faults, packet_faults, packet_ledger, packet_log, waiting_packets
from sim.fabric import full_state as fulls
from sim.fabric import packet_core as core
from sim.fabric import packet_state as ps
from sim.fabric.message_fabric import EVENTS_PER_CALL, SMALLEST, ConservationError, MessageFabric, copied
from sim.fabric.messages import PENDING, MessageResults
from sim.fabric.policies import PATH_POLICIES, PLACED, PathPolicy, compiled, path_network
from sim.fabric.topology import Topology

NUM_BINS = 256
FIRST_PACKETS = 1 << 12
MOST_PACKETS = 1 << 25
"""Under way at once: some gigabytes of them."""
UNLIMITED = 2**60
"""Bytes."""


@dataclass(frozen=True, slots=True)
class PacketSettings:
    """mtu_bytes counts the header; an acknowledgement is a header.

    window_bdp      window of a queue pair in bandwidth-delay products of its path, when idle
    window_packets  the same in packets; None: from window_bdp
    ack_every       data packets per acknowledgement; the last packet of a queue pair is acknowledged at once
    transport       see transports.py; all but "window" need full ports
    port_buffer_bytes, switch_buffer_bytes, buffer_alpha
                    data that a switch's port, and the switch, may hold; a port at most alpha times what is free
    mark_from_bytes, mark_all_bytes, mark_most
                    a queue marks none up to the first, all from the second on, and with a probability that grows to
                    mark_most between
    trim            a packet that finds no room goes on as its header
    pause_above_bytes, resume_below_bytes
                    lossless: a link whose packets hold more than this in the switch is paused, until they hold less
    retransmission_timeout_s, goes_back, gap
                    recovery: the timer; a receiver that takes packets in order only; packets that overtake a lost one
                    before it counts as lost (0: only the timer and trimming tell)
    flowlet_gap_s   a pause after which `flowlet` draws another path
    has_faults      links may fail
    log_rows        events that the packet log has room for
    ports           "auto", or "lean" or "full" to insist
    """

    mtu_bytes: int = 4096
    header_bytes: int = 64
    window_bdp: float = 1.5
    window_packets: int | None = None
    ack_every: int = 4
    transport: str = "window"
    port_buffer_bytes: int | None = None
    switch_buffer_bytes: int | None = None
    buffer_alpha: float | None = None
    mark_from_bytes: int | None = None
    mark_all_bytes: int | None = None
    mark_most: float = 1.0
    trim: bool = False
    pause_above_bytes: int | None = None
    resume_below_bytes: int | None = None
    retransmission_timeout_s: float = 100e-6
    goes_back: bool = False
    gap: int = 0
    flowlet_gap_s: float = 50e-6
    has_faults: bool = False
    log_rows: int = 0
    ports: str = "auto"

    def needs_full_ports(self, policy: PathPolicy) -> bool:
        """Does anything here, or the policy, need more than lean ports know?"""
        if self.ports != "auto":
            return self.ports == "full"
        limits = (self.port_buffer_bytes, self.switch_buffer_bytes, self.mark_from_bytes, self.pause_above_bytes)
        looks = policy.spray in ("adaptive", "flowlet", "reps")
        is_more = self.transport != "window" or self.goes_back or self.has_faults
        return is_more or looks or any(limit is not None for limit in limits)


class PacketFabric(MessageFabric):
    """The fabric of one simulation; attach one to a clock."""

    has_packets = True

    def __init__(
        self,
        clock: Clock,
        topology: Topology,
        policy: str | PathPolicy = "ecmp",
        *,
        settings: PacketSettings | None = None,
        seed: int = 1,
        subflows: int = 4,
        window_s: float | None = None,
        jitter_s: float | None = None,
    ) -> None:
        super().__init__(clock, topology)
        self._patience = packet_faults.Patience()
        self.settings = settings or PacketSettings()
        self.policy = PATH_POLICIES[policy] if isinstance(policy, str) else policy
        window_s = self.policy.window_s if window_s is None else window_s
        jitter_s = self.policy.jitter_s if jitter_s is None else jitter_s
        self._choose = compiled(self.policy)
        self.is_full = self.settings.needs_full_ports(self.policy)
        self._compiled: Any = full_core if self.is_full else core
        self._state = self._first_state([subflows, jitter_s, window_s, seed], seed)
        self._core = ps.pointer(self._state)
        self._run = self._compiled.advance_for(self._core)
        self._grow_pieces(SMALLEST)
        self._grow_packets(FIRST_PACKETS + 2 * int(self._state.c["num_sources"][0]))
        clock.attach(self)

    def _first_state(self, parameters: list[float], seed: int) -> ps.PacketState:
        t, settings = self.topology, self.settings
        network = ps.ports_of(t, settings.mtu_bytes, settings.header_bytes)
        num_switches = 0
        if self.is_full:
            shares = (settings.switch_buffer_bytes, settings.buffer_alpha, settings.pause_above_bytes)
            network["ports"], num_switches = fulls.ports_of(
                t, network["ports"], network["paces"], any(limit is not None for limit in shares), seed
            )
            network["is_early"] &= self._may_enter_early(network["ports"])
        ports, paces = network["ports"], network["paces"]
        c = np.zeros(1, fulls.COUNTERS if self.is_full else ps.COUNTERS)
        c["free_piece"] = c["free_packet"] = fs.NONE
        c["header_bytes"] = settings.header_bytes
        c["payload_per_packet"] = settings.mtu_bytes - settings.header_bytes
        c["mtu_bytes"] = settings.mtu_bytes
        c["ack_every"] = settings.ack_every
        c["window_packets"] = settings.window_packets or 0
        c["window_bdp"] = settings.window_bdp
        c["window_s"] = parameters[2]
        c["next_s"] = np.inf
        c["num_planes"] = t.num_planes
        c["num_sources"] = int(ports["is_source"].sum()) + (t.num_nics if self.is_full else 0)
        c["is_live"] = self.policy.is_live
        c["spray"] = ps.SPRAYS.get(self.policy.spray or "", ps.FIXED)
        c["bin_shift"] = 20
        c["seed"] = seed
        c["num_leaf_turns"] = t.num_leaves * t.num_planes
        c["num_paces"] = len(paces)
        c["shift"] = ps.wheel_shift(ports if self.policy.name == "ideal" else ports[: t.num_links], paces)
        if self.is_full:
            self._set_limits(c)
        num_switches_up = 0
        if self.policy.spray == "switch":
            num_pods, radix = int(t.pod_of_leaf.max()) + 1, max(scope.radix[0] for scope in t.scopes)
            num_switches_up = t.num_leaves * t.num_planes + num_pods * radix
        static = fs.static(t)
        for name in ("link_label",):
            del static[name]
        rng = np.random.default_rng(seed)
        return ps.PacketState(
            c=c,
            successors=np.zeros(SMALLEST, np.int64),
            transfers=np.zeros(SMALLEST, fs.COUNT),
            watches=np.zeros(SMALLEST, fs.COUNT),
            nodes=np.zeros(SMALLEST, fs.NODE),
            fired=np.zeros(3 * SMALLEST, fs.FIRED),
            paths=path_network(t, parameters, seed),
            **network,
            segment_start=t.segment_start,
            segment_link=t.segment_link,
            turns=rng.integers(0, 1 << 20, (t.num_leaves, t.num_planes)),
            turns_to=rng.integers(0, 1 << 20, (num_switches_up, t.num_leaves), np.uint32),
            waits=np.zeros(ps.WAIT_BINS, np.int64),
            series=np.zeros((NUM_BINS, len(ports)), ps.SERIES),
            log=np.zeros(settings.log_rows, ps.LOG),
            woken=np.zeros(len(ports), np.int64),
            buckets=np.full(ps.NUM_BUCKETS, fs.NONE, np.int32),
            bucket_group=np.zeros(ps.NUM_BUCKETS >> 6, np.int64),
            slots=ps.aligned(2 * len(ports), ps.SLOT),
            far_time=np.zeros(2 * len(ports), np.int64),
            far_slot=np.zeros(2 * len(ports), np.int64),
            keys=np.zeros(2 * len(ports), np.int64),
            switches=np.zeros(num_switches, fulls.SWITCH),
            pullers=fulls.pullers_of(t, ports, paces) if self.is_full else np.zeros(0, fulls.PULLER),
            **static,
            **self._for_messages(SMALLEST),
            **self._for_pieces(0),
            **self._for_packets(0),
        )

    def _may_enter_early(self, ports: np.ndarray) -> bool:
        """Whether full ports, too, may be entered before a packet's arrival: nothing looks at them, stops them or
        lets what comes to them vanish in the meantime (a transfer's last packet would be gone too soon)."""
        settings = self.settings
        is_looked_at = ports["has_ends"][~ports["is_source"]].any() or self.policy.spray == "adaptive"
        drops = settings.port_buffer_bytes is not None and not settings.trim
        return not (is_looked_at or drops or settings.has_faults)

    def _set_limits(self, c: np.ndarray) -> None:
        """What full ports and transports go by, into the counters."""
        settings = self.settings

        def or_none(value: float | None) -> float:
            return UNLIMITED if value is None else value

        c["transport"] = fulls.TRANSPORTS[settings.transport]
        c["port_limit"] = or_none(settings.port_buffer_bytes)
        c["buffer"] = or_none(settings.switch_buffer_bytes)
        c["buffer_alpha"] = np.inf if settings.buffer_alpha is None else settings.buffer_alpha
        c["mark_from"] = or_none(settings.mark_from_bytes)
        last = settings.mark_all_bytes
        c["mark_all"] = or_none(settings.mark_from_bytes if last is None else last)
        c["mark_most"] = settings.mark_most
        c["is_trimming"] = settings.trim
        c["is_lossless"] = settings.pause_above_bytes is not None
        c["pause_above"] = or_none(settings.pause_above_bytes)
        c["resume_below"] = or_none(settings.resume_below_bytes)
        c["rto"] = round(settings.retransmission_timeout_s * ps.PS_PER_S)
        c["goes_back"] = settings.goes_back
        c["gap"] = settings.gap
        c["flowlet_gap"] = round(settings.flowlet_gap_s * ps.PS_PER_S)
        c["path_timeout"] = round((self.policy.timeout_s or 0.0) * ps.PS_PER_S)
        c["bad_for_s"] = self.policy.bad_for_s

    # --- the core -----------------------------------------------------------------------------------------------------

    def _for_messages(self, n: int) -> dict[str, np.ndarray]:
        return super()._for_messages(n) | {"flows": np.zeros(n, fulls.FLOW if self.is_full else ps.FLOW)}

    def _for_pieces(self, n: int) -> dict[str, np.ndarray]:
        if self.is_full:
            return fulls.for_pieces(n, self.topology.num_links, self.topology.num_nics, PLACED)
        none = np.zeros(0, np.int64)
        return ps.for_pieces(n, PLACED) | {"alarm_time": none, "alarm_code": none}

    def _for_packets(self, n: int) -> dict[str, np.ndarray]:
        return fulls.for_packets(n) if self.is_full else ps.for_packets(n)

    def _enter_arrivals(self) -> None:
        """What has arrived of pieces under way, into the messages' books."""
        pieces, messages = self._state.pieces, self._state.messages
        live = np.flatnonzero(pieces["message"] >= 0)
        live = live[messages["outcome"][pieces["message"][live]] == PENDING]
        np.add.at(messages["delivered_bytes"], pieces["message"][live], pieces["arrived_bytes"][live])
        pieces["arrived_bytes"][live] = 0

    def _copy_out(self, first: int, count: int) -> MessageResults:
        self._enter_arrivals()
        flows = self._state.flows[first : first + count]
        return replace(
            super()._copy_out(first, count),
            **{name: flows[name].copy() for name, _ in ps.FLOW_FIELDS},
        )

    def _admit(self, first: int, last: int) -> None:
        self._state.flows[first:last] = 0
        self._compiled.admit(self._core, first, last, self.clock.now)

    def _cancel_message(self, m: int) -> None:
        self._compiled.cancel(self._core, m, self.clock.now)

    def _refresh(self) -> None:
        self._compiled.refresh_next(self._core)

    def _pointer(self, state: Any) -> Any:
        return ps.pointer(state)

    def advance(self, until_s: float) -> None:
        """Run the compiled loop until then, until something watched is complete, or for 2^18 events.

        When nothing is to come that could repair a dead link, and nothing moves any more but timers, the core is idle.
        """
        if until_s == np.inf:
            until_s = self._patience.until_s(self._state, super().next_s)
        status = self._run(self._core, self._choose, until_s, EVENTS_PER_CALL)
        if status == core.GROW:
            c = self._state.c[0]
            if c["is_resuming"] or (self.is_full and 2 * c["num_alarms"] >= len(self._state.alarm_time)):
                have = len(self._state.pieces)
                self._grow_pieces(max(2 * have, have - int(c["num_free_pieces"]) + int(c["needed_pieces"])))
            else:
                self._grow_packets(2 * len(self._state.packets))
            self._compiled.refresh_next(self._core)
        elif status == core.FIRED:
            self._deliver_fired()

    def open_bytes(self) -> tuple[int, float]:
        self._enter_arrivals()
        return super().open_bytes()

    def settle(self) -> None:
        """Let the acknowledgements of transfers that are done arrive, once the run is over; others go on meanwhile."""
        while not self._patience.is_over and any(self._state.transfers[key]["left"] == 0 for key in self._spans):
            self.advance(np.inf)

    # --- faults -------------------------------------------------------------------------------------------------------

    @property
    def next_s(self) -> float:
        return np.inf if self._patience.is_over else super().next_s

    def _set_now(self) -> None:
        super()._set_now()
        self._patience = packet_faults.Patience()

    def set_links(self, links: np.ndarray, rate_bytes_per_s: np.ndarray) -> int:
        """From now on these links carry so much, 0: they are down. Returns the messages under way across them."""
        self._prepare_for_faults()
        if self.policy.timeout_s is not None and (rate_bytes_per_s == 0).any():
            self._allow_marks()
        bits_per_s = np.rint(rate_bytes_per_s * 8).astype(np.int64)
        bits_per_s[rate_bytes_per_s > 0] = np.maximum(bits_per_s[rate_bytes_per_s > 0], 1)
        paces = self._state.paces[: int(self._state.c["num_paces"][0])]
        self._replace(paces=copied(paces, np.zeros(len(paces) + len(links), ps.PACE)))
        full_faults.set_rates(self._core, links, bits_per_s, self.clock.now)
        self._refresh()
        return packet_faults.num_messages_across(self._state, self.topology, links)

    def set_losses(self, links: np.ndarray, probability: np.ndarray) -> int:
        """From now on these links lose each packet with this probability. Returns the messages across them."""
        self._prepare_for_faults()
        full_faults.set_losses(self._core, links, probability, self.clock.now)
        self._refresh()
        return packet_faults.num_messages_across(self._state, self.topology, links)

    def set_routing(self, links: np.ndarray, is_withdrawn: np.ndarray) -> None:
        """Routing learns now that these links are dead (withdrawn), or alive again: what it can move, it moves."""
        self._prepare_for_faults()
        self._state.paths.withdrawn[links] = is_withdrawn
        self._state.c["num_withdrawn"] = self._state.paths.withdrawn.sum()
        if self.policy.name != "ideal":
            full_faults.reroute(self._core, self.clock.now)
        self._refresh()

    def _prepare_for_faults(self) -> None:
        if not self.settings.has_faults:
            raise RuntimeError("links that may fail must be known from the start; give PacketSettings has_faults")
        self._set_now()

    @property
    def moved_bytes(self) -> np.ndarray:
        """[links] payload that has moved to another path because the link was dead."""
        return self._state.ports["moved"][: self.topology.num_links].astype(np.float64)

    def _held_up(self) -> dict[int, str]:
        """Rows of messages that are under way and cannot move -> the dead link that they wait for."""
        return packet_faults.held_up(self._state, self.topology) if self.is_full else {}

    # --- at this moment -----------------------------------------------------------------------------------------------

    def senders(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row of its message, link of its NIC, whether it waits for its turn there) of the pieces under way."""
        return waiting_packets.senders(self._state)

    def waiting_packets(self) -> np.ndarray:
        """Data packets in the queues of all links (`waiting_packets.ENTRY`)."""
        now = int(np.rint(self.clock.now * ps.PS_PER_S))
        return waiting_packets.waiting_packets(self._state, self.topology.num_links, now)

    def owner_of(self, message: int) -> str:
        """Whose the row of a message is; "" when its transfer is over."""
        span = self._spans.get(int(self._state.messages["transfer"][message]))
        return "" if span is None else span.transfer.graph.owner

    # --- what happened ------------------------------------------------------------------------------------------------

    @property
    def num_packet_hops(self) -> int:
        """Links that data packets have crossed so far."""
        return int(self._state.c["num_hops"][0])

    def link_bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """(payload, wire) bytes of every link so far; a packet counts when its serialisation starts.

        Of a run that is cut short, a leaf's links up may be ahead of the clock by the latency of a host's link, here
        and in what queues did: packets enter them when their source has sent them (`packet_state._early`).
        """
        num_links = self.topology.num_links
        return self._payload_bytes()[:num_links].astype(np.float64), self._wire_bytes()[:num_links].astype(np.float64)

    def _wire_bytes(self) -> np.ndarray:
        """[ports] bytes of all packets so far."""
        return self._state.series["bytes"].sum(axis=0)

    def _payload_bytes(self) -> np.ndarray:
        """[ports] wire bytes less a header for each packet."""
        ports = self._state.ports
        packets = ports["data_packets"].astype(np.int64) + ports["ack_packets"]
        return self._wire_bytes() - self.settings.header_bytes * packets

    def queue_metrics(self, now_s: float) -> dict[str, float | None]:
        """How long data packets waited at ports other than the NICs', and what full ports did to them.

        queue_wait_p50_s, queue_wait_p99_s   lower edges of bins an eighth of an octave wide; queue_wait_max_s is exact
        longest_queue_bytes                  of any port, the packet being sent included
        marked_share, dropped_share, trimmed_share   of the data packets that entered switches' ports
        lost_share                           data packets that faulty links lost, of those that set out over any link
        max_paused_share                     of the whole time, of the link that was paused longest
        """
        waits = self._state.waits
        total = int(waits.sum())
        below = np.cumsum(waits)
        ports = self._state.ports
        found: dict[str, float | None] = {}
        for percent in (50, 99):
            rank = np.searchsorted(below, total * percent / 100)
            found[f"queue_wait_p{percent}_s"] = ps.bin_start(int(rank)) / ps.PS_PER_S if total else None
        found["queue_wait_max_s"] = float(self._state.series["wait"].max()) / ps.PS_PER_S if total else None
        if not self.is_full:
            return found
        entered = int(ports["entered"].sum())
        found["longest_queue_bytes"] = float(ports["longest_queue"].max())
        for name, column in (("marked_share", "marks"), ("dropped_share", "drops"), ("trimmed_share", "trims")):
            found[name] = int(ports[column].sum()) / entered if entered else None
        sent = int(ports["data_packets"].sum())
        found["lost_share"] = int(ports["losses"].sum()) / sent if sent else None
        paused = self._paused_s(now_s).max(initial=0.0)
        found["max_paused_share"] = float(paused) / now_s if now_s > 0 else None
        return found

    def queue_columns(self, now_s: float) -> dict[str, np.ndarray]:
        """Of each link: what its port did, for the table of links."""
        ports = self._state.ports[: self.topology.num_links]
        columns = {
            "data_packets": ports["data_packets"].copy(),
            "longest_wait_s": self._state.series["wait"][:, : len(ports)].max(axis=0) / ps.PS_PER_S,
        }
        if self.is_full:
            columns |= {name: ports[name].copy() for name in ("drops", "losses", "trims", "marks", "pauses")}
            columns |= {"longest_queue_bytes": ports["longest_queue"].copy(), "paused_s": self._paused_s(now_s)}
        return columns

    def _paused_s(self, now_s: float) -> np.ndarray:
        ports = self._state.ports[: self.topology.num_links]
        open_s = np.where(ports["is_paused"], now_s - ports["paused_since"] / ps.PS_PER_S, 0.0)
        return ports["paused"] / ps.PS_PER_S + open_s

    def link_series(self) -> tuple[np.ndarray, np.ndarray]:
        """(bin edges [bins + 1] seconds, utilisation [links, bins]) over the time up to now.

        What has begun to leave counts in the last bin as if it had left, up to what the link carries.
        """
        width = float(1 << int(self._state.c["bin_shift"][0])) / ps.PS_PER_S
        used = min(max(int(np.ceil(self.clock.now / width)), 1), NUM_BINS) if self.clock.now > 0 else 0
        edges = np.minimum(np.arange(used + 1) * width, self.clock.now)
        capacity = self.topology.link_rate[:, None] * np.maximum(np.diff(edges), 1e-300)
        utilisation = self._state.series["bytes"][:used, : self.topology.num_links].T / capacity
        utilisation[:, -1:] = np.minimum(utilisation[:, -1:], 1.0)
        return edges, utilisation

    def wait_series(self) -> np.ndarray:
        """[links, bins] seconds: the longest that a data packet had waited at the link's port when it began to leave,
        in each of link_series's stretches of time."""
        used = len(self.link_series()[0]) - 1
        return self._state.series["wait"][:used, : self.topology.num_links].T / ps.PS_PER_S

    def packet_log(self) -> tuple[dict[str, np.ndarray], int]:
        """(columns as packet_log.columns has them, up to now; events that found no room in the log)."""
        c = self._state.c[0]
        until_s = max(self.clock.now, int(c["now"]) / ps.PS_PER_S)  # later than the clock when acknowledgements settle
        return packet_log.columns(self._state, self.topology, until_s), int(c["num_unlogged"])

    def check_conservation(self) -> None:
        """Application bytes: injected = delivered + cancelled + failed + under way. Links: nothing vanishes.

        Packets put on the first links of their routes = those that the last ones delivered + those that were dropped,
        trimmed or lost + those on their way, and with nothing on its way the same for bytes.

        Raises ConservationError naming the law and the numbers.
        """
        open_bytes, _ = self.open_bytes()
        laws = [
            ("application bytes: injected = delivered + cancelled + failed + under way",
             self.injected_bytes, self.closed_bytes.sum() + open_bytes),
            *packet_ledger.laws(self._state, self.topology, self._payload_bytes()),
        ]  # fmt: skip
        for law, expected, found in laws:
            if abs(found - expected) > 0.5 + 1e-9 * expected:
                raise ConservationError(f"{law} does not hold: {expected} is not {found}")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _grow_pieces(self, room: int) -> None:
        have = len(self._state.pieces)
        new = self._for_pieces(room)
        self._replace(**{name: copied(getattr(self._state, name), array) for name, array in new.items()})
        c = self._state.c[0]
        self._state.pieces["next_ready"][have:room] = np.append(np.arange(have + 1, room), c["free_piece"])
        c["free_piece"] = have
        c["num_free_pieces"] += room - have

    def _grow_packets(self, room: int) -> None:
        have = len(self._state.packets)
        if room > MOST_PACKETS:
            raise RuntimeError(
                f"{have:,} packets are under way at {self.clock.now:.6g} s: senders put more on the network than it "
                "ever delivers; give a longer retransmission_timeout, a smaller window, or finite buffers"
            )
        self._replace(packets=copied(self._state.packets, self._for_packets(room)["packets"]))
        c = self._state.c[0]
        self._state.packets["next"][have:room] = np.append(np.arange(have + 1, room), c["free_packet"])
        c["free_packet"] = have
        c["num_free_packets"] += room - have
