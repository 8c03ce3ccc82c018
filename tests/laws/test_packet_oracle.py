"""The packet core against the exact reference of `exact_packets`: every time, to the picosecond."""

import gc
from itertools import count

import numpy as np
import pytest
from exact_packets import Choice, Piece, Wire, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.fabric import packet_state as ps
from sim.fabric.messages import message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, Topology, fat_tree, leaf_spine

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser, from its definition."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def links_of(t: Topology, segment: int) -> tuple[int, ...]:
    return tuple(int(link) for link in t.segment_link[t.segment_start[segment] : t.segment_start[segment + 1]])


class Story:
    """Messages on the packet fabric, and the same as pieces of the reference, in the order in which they start."""

    numbers = count(1)

    def __init__(self, topology: Topology, policy: str, messages, options: PacketSettings, seed: int) -> None:
        if next(self.numbers) % 50 == 0:
            gc.collect()  # fabrics refer to their clocks and these to them, and a thousand of them fill the memory
        self.topology, self.options = topology, options
        self.clock = Clock()
        self.fabric = PacketFabric(
            self.clock, topology, policy, settings=options, seed=seed, jitter_s=0.0, window_s=0.0
        )
        self.first_turns = [int(turn) for turn in self.fabric._state.turns_to.flat]
        start_ps = np.array([m[3] for m in messages])
        self.transfer = self.fabric.start(
            message_graph([m[0] for m in messages], [m[1] for m in messages], [m[2] for m in messages],
                          earliest_s=start_ps / 1e12)
        )  # fmt: skip
        self.first_row = self.fabric._spans[self.transfer.key].first
        self.rows: list[tuple[int, np.void]] = []
        for time in np.unique(start_ps):
            self.clock.run(until=(time + 0.5) / 1e12)
            starting = [m for m in range(len(messages)) if start_ps[m] == time and messages[m][0] != messages[m][1]]
            for m in sorted(starting, key=lambda m: not self.is_direct(*messages[m][:2])):
                self.take_pieces(m, int(time))
        self.clock.run(self.transfer.done)
        self.fabric.settle()

    def is_direct(self, a: int, b: int) -> bool:
        t = self.topology
        return t.host_of_accelerator[a] == t.host_of_accelerator[b] or (
            t.leaf_of_accelerator[a] == t.leaf_of_accelerator[b] and t.num_planes == 1
        )

    def take_pieces(self, m: int, time: int) -> None:
        state = self.fabric._state
        r = state.messages["first_piece"][self.first_row + m]
        while r >= 0:
            self.rows.append((m, time, state.pieces[r].copy()))
            r = state.pieces["next_of_message"][r]

    def pieces(self) -> list[Piece]:
        full = self.options.mtu_bytes - self.options.header_bytes
        return [
            Piece(
                time, int(row["num_packets"] - 1) * full + int(row["last_size"]) - self.options.header_bytes,
                int(row["window"]), self.options.ack_every,
            )
            for _, time, row in self.rows
        ]  # fmt: skip

    def turn(self, group: int, n: int, choices: int) -> int:
        """Round robin from a random first link on, with a turn for each leaf, plane and destination leaf."""
        return (self.first_turns[group] + n) % choices

    def route(self, piece: int, seq: int):
        t, (_, _, row) = self.topology, self.rows[piece]
        out, up, down, into = (int(row[name]) for name in ("out", "up", "down", "into"))
        if row["spray"] == ps.FIXED:
            route = list(links_of(t, out))
            route += [int(row["extra"])] if row["extra"] >= 0 else []
            route += [*links_of(t, up), *links_of(t, down)] if up >= 0 else []
            return route + list(links_of(t, into))
        scope = t.scopes[row["scope"]]
        choices = t.num_planes if row["spray"] == ps.SWITCH else scope.num_paths
        if row["spray"] == ps.RANDOM:
            first = (int(row["random"]) - (1 + int(row["next_seq"])) * GOLDEN) & MASK
            path = mix((first + (1 + seq) * GOLDEN) & MASK) % choices
        else:
            path = (int(row["next_path"]) - int(row["next_seq"]) + seq) % choices
        if row["spray"] == ps.SWITCH:
            start = list(links_of(t, out + path))
            if up < 0:
                return start + list(links_of(t, into + path))
            per_plane = scope.num_paths // t.num_planes
            leaf = int(t.link_leaf[start[-1]])
            alternatives = tuple(
                (*links_of(t, up + p), *links_of(t, down + p), *links_of(t, into + path))
                for p in range(path * per_plane, (path + 1) * per_plane)
            )
            destination = int(t.link_leaf[links_of(t, into + path)[0]])
            return [*start, Choice((leaf * t.num_planes + path) * t.num_leaves + destination, alternatives)]
        plane = int(scope.plane[path])
        middle = [*links_of(t, up + path), *links_of(t, down + path)] if up >= 0 else []
        return [*links_of(t, out + plane), *middle, *links_of(t, into + plane)]

    def expected(self, run=simulate, **more):
        """What the reference makes of the same pieces."""
        state = self.fabric._state
        wires = [Wire(int(p["rate"]), int(p["latency"])) for p in state.paces[state.ports["pace"]]]
        reverse = [None if p < 0 else int(p) for p in state.reverse]
        return run(
            wires, reverse, self.pieces(), self.route, mtu=self.options.mtu_bytes, header=self.options.header_bytes,
            turn=self.turn, **more,
        )  # fmt: skip

    def compare(self) -> None:
        expected = self.expected()
        self.compare_with(expected)

    def compare_with(self, expected) -> None:
        ports = self.fabric._state.ports
        results = self.transfer.results
        flows = self.fabric._state.flows[self.first_row :]
        by_message: dict[int, list[int]] = {}
        for i, (m, _, _) in enumerate(self.rows):
            by_message.setdefault(m, []).append(i)
        for m, pieces in by_message.items():
            assert round(results.received_s[m] * 1e12) == max(expected.received_ps[i] for i in pieces)
            assert round(results.acknowledged_s[m] * 1e12) == max(expected.acknowledged_ps[i] for i in pieces)
            assert flows["displacement"][m] == max(expected.max_displacement[i] for i in pieces)
            assert flows["held_bytes"][m] == max(expected.max_held_bytes[i] for i in pieces)
        for name in ("data_packets", "ack_packets"):
            assert ports[name].tolist() == getattr(expected, name), name
        assert self.fabric._wire_bytes().tolist() == expected.wire_bytes
        assert self.fabric._payload_bytes().tolist() == expected.payload_bytes
        assert self.fabric._state.series["wait"].max(axis=0).tolist() == expected.max_wait_ps
        self.fabric.check_conservation()


def rate(draw) -> float:
    return draw(st.sampled_from([25, 100, 100 / 3, 400, 3200])) * 1e9 / 8


def latency(draw) -> float:
    return draw(st.sampled_from([0, 1e-12, 77e-12, 0.5e-6, 5e-6]))


def link(draw) -> Link:
    return Link(rate(draw), latency(draw))


@st.composite
def topologies(draw) -> Topology:
    injection = draw(st.sampled_from([None, None, 20e9]))
    accelerators = draw(st.integers(1, 2))
    nvlink = link(draw) if accelerators > 1 else None
    if draw(st.booleans()):
        leaves, per_leaf = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        hosts = HostKind(leaves * per_leaf, accelerators, 1, nvlink, injection)
        return leaf_spine(
            leaves=leaves, spines=draw(st.integers(1, 3)), hosts_per_leaf=per_leaf, host_link=link(draw),
            spine_link=link(draw), hosts=[hosts], lanes=draw(st.integers(1, 2)), planes=draw(st.integers(1, 2)),
        )  # fmt: skip
    hosts = HostKind(2 * 2 * 2, accelerators, 1, nvlink, injection)
    return fat_tree(
        pods=2, edges_per_pod=2, aggregations_per_pod=2, cores=draw(st.sampled_from([2, 4])), hosts_per_edge=2,
        host_link=link(draw), edge_link=link(draw), core_link=link(draw), hosts=[hosts],
    )  # fmt: skip


POLICIES = ["ideal", "ecmp", "multipath", "ethereal", "wrap_around", "spray", "spray_round_robin", "spray_random"]


@st.composite
def stories(draw) -> Story:
    topology = draw(topologies())
    policy = draw(st.sampled_from(POLICIES))
    if policy == "spray" and topology.kind == "fat_tree":
        policy = "spray_random"  # the reference's switches decide one after the other, the core's at once
    n = topology.num_accelerators
    ids = st.integers(0, n - 1)
    sizes = st.one_of(st.integers(0, 20_000), st.sampled_from([0, 1, 4032, 4033, 300_000]))
    starts = st.sampled_from([0, 0, 0, 1, 1_000_000, 1_234_567])
    messages = draw(st.lists(st.tuples(ids, ids, sizes, starts), min_size=1, max_size=12))
    options = PacketSettings(
        window_packets=draw(st.sampled_from([None, 1, 2, 3, 80])), ack_every=draw(st.sampled_from([1, 3, 4]))
    )
    return Story(topology, policy, messages, options, draw(st.integers(0, 1000)))


@settings(max_examples=150, deadline=None)
@given(stories())
def test_every_packet_is_where_the_reference_has_it(story):
    story.compare()


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(stories())
def test_every_packet_is_where_the_reference_has_it_many_times(story):
    story.compare()
