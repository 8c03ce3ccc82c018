"""Topology: links, and the segments that routes are made of.

A route between two accelerators is at most four *segments* in a row: out of the NIC, up the fabric, down
the fabric, into the NIC (inside a host: onto and off the NVLink switch). A segment is a list of (link,
share): a plain link has share 1, and a sprayed one loads each of its k parallel links with share 1/k.
Millions of flows share a few thousand segments, which is what keeps the fluid core small.

Equal-cost paths of a leaf pair are numbered; the number picks a segment on the way up and the one of the
same number on the way down. What number means which spine, lane or plane is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

SAME_LEAF, SAME_POD, FAR = 0, 1, 2
"""How far apart two leaves are: it decides how many paths there are between them."""


class TopologyError(ValueError):
    """The numbers do not make a fabric; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Link:
    rate_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class LinkOverride:
    """A link that differs from its kind; None keeps the kind's value."""

    rate_bytes_per_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class HostKind:
    """`count` equal hosts.

    Accelerator i of a host uses NIC  i * num_nics // num_accelerators.
    injection_bytes_per_s   what a NIC can read from memory and put on its ports; None: no limit of its own
    message_overhead_s      a NIC's time per message (or per segment of one), one after the other
    segment_bytes           longer messages are posted in segments, so the NIC's own ceiling becomes
                            min(injection, segment / overhead); None: messages are posted whole
    """

    count: int
    num_accelerators: int = 1
    num_nics: int = 1
    nvlink: Link | None = None
    injection_bytes_per_s: float | None = None
    message_overhead_s: float = 0.0
    segment_bytes: int | None = None
    name: str = "host"
    accelerator: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The equal-cost paths between two leaves of one distance.

    num_paths    paths, numbered 0 … num_paths - 1; num_paths itself stands for "spread over all"
    plane        [num_paths + 1] the plane of each path (last: number of planes, "all")
    radix        (r0, r1): the leaf's hash picks one of r0, the next switch's hash one of r1: path = d0 r1 + d1
    down_lanes   the last switch on the way up hashes among this many parallel links down again
    """

    num_paths: int
    plane: Int64
    radix: tuple[int, int]
    down_lanes: int


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything the cores need to know of a fabric, as arrays.

    link_*                 one entry per directed link
    segment_start, segment_link, segment_share   CSR: segment -> (link, share)
    segment_latency_s      time of flight along the segment; for a spread one the longest alternative
    nvlink_up, nvlink_down [accelerators] segment, or -1 where a host has no NVLink domain
    nic_up, nic_down       [nics] first segment; + plane for one plane, + num_planes for all
    leaf_up, leaf_down     [leaves, 3 scopes] first segment; + path number; -1 where the scope has none
    """

    kind: str
    num_leaves: int
    num_spines: int
    num_planes: int
    link_name: list[str]
    link_rate: Float64
    link_latency_s: Float64
    link_tier: list[str]
    link_direction: list[str]
    link_group: Int64
    link_leaf: Int64
    link_spine: Int64
    segment_start: Int64
    segment_link: Int64
    segment_share: Float64
    segment_latency_s: Float64
    host_of_accelerator: Int64
    nic_of_accelerator: Int64
    leaf_of_accelerator: Int64
    local_index: Int64
    nvlink_up: Int64
    nvlink_down: Int64
    leaf_of_nic: Int64
    nic_up: Int64
    nic_down: Int64
    nic_overhead_s: Float64
    nic_rate: Float64
    leaf_up: Int64
    leaf_down: Int64
    pod_of_leaf: Int64
    scopes: tuple[Scope, Scope, Scope]
    host_kinds: tuple[HostKind, ...] = field(default=())

    @property
    def num_accelerators(self) -> int:
        return len(self.host_of_accelerator)

    @property
    def num_hosts(self) -> int:
        return int(self.host_of_accelerator[-1]) + 1

    @property
    def num_nics(self) -> int:
        return len(self.leaf_of_nic)

    @property
    def num_links(self) -> int:
        return len(self.link_rate)

    @property
    def num_segments(self) -> int:
        return len(self.segment_start) - 1

    def kind_of_host(self, host: int) -> HostKind:
        last = np.cumsum([kind.count for kind in self.host_kinds])
        return self.host_kinds[int(np.searchsorted(last, host, side="right"))]

    def latency_s(self, source: Int64, destination: Int64) -> Float64:
        """Time of flight between accelerators; where paths differ, that of the longest."""
        a, b = np.asarray(source), np.asarray(destination)
        nic_a, nic_b = self.nic_of_accelerator[a], self.nic_of_accelerator[b]
        leaf_a, leaf_b = self.leaf_of_nic[nic_a], self.leaf_of_nic[nic_b]
        scope = np.where(self.pod_of_leaf[leaf_a] == self.pod_of_leaf[leaf_b], SAME_POD, FAR)
        scope = np.where(leaf_a == leaf_b, SAME_LEAF, scope)
        spread = np.array([scope.num_paths for scope in self.scopes])[scope]
        flight, planes = self.segment_latency_s, self.num_planes
        fabric = flight[self.leaf_up[leaf_a, scope] + spread] + flight[self.leaf_down[leaf_b, scope] + spread]
        outside = flight[self.nic_up[nic_a] + planes] + flight[self.nic_down[nic_b] + planes]
        outside = outside + np.where(leaf_a == leaf_b, 0.0, fabric)
        inside = flight[self.nvlink_up[a]] + flight[self.nvlink_down[b]]
        return np.where(
            self.host_of_accelerator[a] == self.host_of_accelerator[b], np.where(a == b, 0.0, inside), outside
        )

    def accelerators_of_host(self, host: int) -> range:
        first, last = np.searchsorted(self.host_of_accelerator, [host, host + 1])
        return range(int(first), int(last))


class _Builder:
    """Collects links and segments."""

    def __init__(self, overrides: Mapping[str, LinkOverride]) -> None:
        self.overrides = dict(overrides)
        self.used: set[str] = set()
        self.name: list[str] = []
        self.rate: list[float] = []
        self.latency: list[float] = []
        self.tier: list[str] = []
        self.direction: list[str] = []
        self.group: list[int] = []
        self.leaf: list[int] = []
        self.spine: list[int] = []
        self.start: list[int] = [0]
        self.seg_link: list[int] = []
        self.seg_share: list[float] = []
        self.seg_latency: list[float] = []

    def link(
        self, ends: tuple[str, str], kind: Link, tier: str, direction: str, *,
        group: int = -1, leaf: int = -1, spine: int = -1, plane: int | None = None, lane: int | None = None,
    ) -> int:  # fmt: skip
        """Add one directed link; `ends` runs from low to high tier, `direction` says which way it goes.

        An override may name the pair alone, one lane, one plane, or both; the most specific one wins.
        """
        low, high = ends
        prefix = "" if plane is None else f"plane{plane}/"
        suffix = "" if lane is None else f".lane{lane}"
        rate, latency = kind.rate_bytes_per_s, kind.latency_s
        for key in dict.fromkeys(
            (f"{low}-{high}", f"{low}-{high}{suffix}", f"{prefix}{low}-{high}", f"{prefix}{low}-{high}{suffix}")
        ):
            override = self.overrides.get(key)
            if override is not None:
                self.used.add(key)
                rate = rate if override.rate_bytes_per_s is None else override.rate_bytes_per_s
                latency = latency if override.latency_s is None else override.latency_s
        a, b = (low, high) if direction == "up" else (high, low)
        self.name.append(f"{prefix}{a}->{b}{suffix}")
        self.rate.append(rate)
        self.latency.append(latency)
        self.tier.append(tier)
        self.direction.append(direction)
        self.group.append(group)
        self.leaf.append(leaf)
        self.spine.append(spine)
        return len(self.rate) - 1

    def segment(self, links: Sequence[tuple[int, float]], latency_s: float) -> int:
        for link, share in links:
            self.seg_link.append(link)
            self.seg_share.append(share)
        self.start.append(len(self.seg_link))
        self.seg_latency.append(latency_s)
        return len(self.seg_latency) - 1

    def alternatives(self, routes: Sequence[Sequence[int]]) -> int:
        """One segment per route, then one that spreads evenly over all; returns the first one's number."""
        latencies = [sum(self.latency[link] for link in route) for route in routes]
        first = len(self.seg_latency)
        for route, latency_s in zip(routes, latencies, strict=True):
            self.segment([(link, 1.0) for link in route], latency_s)
        share: dict[int, int] = {}
        for route in routes:
            for link in route:
                share[link] = share.get(link, 0) + 1
        self.segment([(link, count / len(routes)) for link, count in share.items()], max(latencies))
        return first

    def check_overrides(self) -> None:
        unknown = sorted(set(self.overrides) - self.used)
        if unknown:
            upward = [name for name, direction in zip(self.name, self.direction, strict=True) if direction == "up"]
            example = upward[-1].replace("->", "-")
            raise TopologyError(f"no link is named {unknown[0]!r}; links have names like {example!r}")


def leaf_spine(
    *,
    leaves: int,
    spines: int,
    hosts_per_leaf: int,
    host_link: Link,
    spine_link: Link,
    hosts: Sequence[HostKind],
    lanes: int = 1,
    planes: int = 1,
    attach: str = "host",
    overrides: Mapping[str, LinkOverride] | None = None,
) -> Topology:
    """A leaf-spine fabric: every leaf has `lanes` links to every spine, in each of `planes` copies.

    attach "host": all NICs of a host on one leaf, leaf = host // hosts_per_leaf. attach "rail": NIC i of a
    host on leaf (host // hosts_per_leaf) * num_nics + i. A path is numbered (plane * spines + spine) * lanes + lane.

    Raises TopologyError on numbers that do not fit together.
    """
    builder = _Builder(overrides or {})
    num_hosts, rails = _count_hosts(leaves, hosts_per_leaf, hosts, attach)
    paths = planes * spines * lanes
    nics = _Nics(builder, hosts, host_link, planes, lambda h, i: h // hosts_per_leaf * rails + (i if rails > 1 else 0))
    if leaves > 1 and spines < 1:
        raise TopologyError(f"{leaves} leaves need at least one spine to reach each other, got {spines}")
    ups = np.zeros((leaves, paths), np.int64)
    downs = np.zeros((leaves, paths), np.int64)
    for leaf in range(leaves):
        for path in range(paths if leaves > 1 else 0):
            plane, spine, lane = path // (spines * lanes), path // lanes % spines, path % lanes
            for direction, table in (("up", ups), ("down", downs)):
                table[leaf, path] = builder.link(
                    (f"leaf{leaf}", f"spine{spine}"), spine_link, "leaf-spine", direction, group=leaf, leaf=leaf,
                    spine=spine, plane=plane if planes > 1 else None, lane=lane if lanes > 1 else None,
                )  # fmt: skip
    leaf_up = np.full((leaves, 3), -1, np.int64)
    leaf_down = np.full((leaves, 3), -1, np.int64)
    if leaves > 1:
        for leaf in range(leaves):
            leaf_up[leaf, FAR] = builder.alternatives([[int(link)] for link in ups[leaf]])
            leaf_down[leaf, FAR] = builder.alternatives([[int(link)] for link in downs[leaf]])
    plane_of = np.append(np.arange(paths) // (spines * lanes), planes).astype(np.int64)
    nowhere = Scope(0, np.array([planes], np.int64), (1, 1), 1)
    return nics.topology(
        "leaf_spine", leaves, spines, num_hosts, leaf_up, leaf_down, np.arange(leaves, dtype=np.int64),
        (_same_leaf(planes), nowhere, Scope(paths, plane_of, (paths, 1), lanes)),
    )  # fmt: skip


def fat_tree(
    *,
    pods: int,
    edges_per_pod: int,
    aggregations_per_pod: int,
    cores: int,
    hosts_per_edge: int,
    host_link: Link,
    edge_link: Link,
    core_link: Link,
    hosts: Sequence[HostKind],
    edge_lanes: int = 1,
    core_lanes: int = 1,
    overrides: Mapping[str, LinkOverride] | None = None,
) -> Topology:
    """A three-tier fat tree: aggregation j of a pod connects to cores j g … (j + 1) g - 1, g = cores / aggregations.

    edge_lanes, core_lanes   parallel links of each edge and aggregation, and of each aggregation and core
    Inside a pod a path is the aggregation's number; between pods it is the core's, which fixes the aggregations. With
    lanes it is the uplink of the edge, and the uplink of the aggregation:  edge_uplink · g · core_lanes + core_uplink.

    Leaves out: between pods a path takes the same lane from the last aggregation down as up to the first one.
    Raises TopologyError on numbers that do not fit together.
    """
    if pods > 1 and (cores < 1 or cores % aggregations_per_pod):
        raise TopologyError(f"{cores} cores are no multiple of {aggregations_per_pod} aggregations per pod")
    builder = _Builder(overrides or {})
    leaves = pods * edges_per_pod
    num_hosts, _ = _count_hosts(leaves, hosts_per_edge, hosts, "host")
    nics = _Nics(builder, hosts, host_link, 1, lambda h, i: h // hosts_per_edge)
    per_aggregation = max(cores // aggregations_per_pod, 1)
    edge_uplinks, core_uplinks = aggregations_per_pod * edge_lanes, per_aggregation * core_lanes
    edge: dict[tuple[str, int, int], int] = {}
    core: dict[tuple[str, int, int], int] = {}
    for direction in ("up", "down"):
        for leaf in range(leaves):
            for i in range(edge_uplinks):
                j, lane = divmod(i, edge_lanes)
                ends = (f"edge{leaf}", f"aggregation{leaf // edges_per_pod * aggregations_per_pod + j}")
                edge[direction, leaf, i] = builder.link(
                    ends, edge_link, "edge-aggregation", direction, group=leaf, leaf=leaf, spine=j,
                    lane=lane if edge_lanes > 1 else None,
                )  # fmt: skip
        for pod in range(pods if pods > 1 else 0):
            for i in range(cores * core_lanes):
                c, lane = divmod(i, core_lanes)
                ends = (f"aggregation{pod * aggregations_per_pod + c // per_aggregation}", f"core{c}")
                core[direction, pod, i] = builder.link(
                    ends, core_link, "aggregation-core", direction, group=leaves + pod, leaf=pod, spine=c,
                    lane=lane if core_lanes > 1 else None,
                )  # fmt: skip
    tables = {}
    for direction in ("up", "down"):
        table = np.full((leaves, 3), -1, np.int64)
        for leaf in range(leaves):
            pod = leaf // edges_per_pod
            if edges_per_pod > 1:
                table[leaf, SAME_POD] = builder.alternatives(
                    [[edge[direction, leaf, i]] for i in range(edge_uplinks)]
                )
            if pods > 1:
                routes = [
                    [edge[direction, leaf, i], core[direction, pod, i // edge_lanes * core_uplinks + n]]
                    for i in range(edge_uplinks)
                    for n in range(core_uplinks)
                ]
                table[leaf, FAR] = builder.alternatives(routes if direction == "up" else [r[::-1] for r in routes])
        tables[direction] = table
    far_paths = cores * core_lanes * edge_lanes

    def plane_of(n: int) -> Int64:
        return np.append(np.zeros(n), 1).astype(np.int64)

    return nics.topology(
        "fat_tree", leaves, aggregations_per_pod, num_hosts, tables["up"], tables["down"],
        np.repeat(np.arange(pods), edges_per_pod).astype(np.int64),
        (
            _same_leaf(1),
            Scope(edge_uplinks, plane_of(edge_uplinks), (edge_uplinks, 1), edge_lanes),
            Scope(far_paths, plane_of(far_paths), (edge_uplinks, core_uplinks), core_lanes),
        ),
    )  # fmt: skip


def link_ends(name: str) -> tuple[str, str]:
    """(from, to) of a link, with the plane: plane0/leaf1->spine2.lane3 goes from plane0/leaf1 to plane0/spine2."""
    prefix, slash, rest = name.rpartition("/")
    source, _, destination = rest.partition(".lane")[0].partition("->")
    return f"{prefix}{slash}{source}", f"{prefix}{slash}{destination}"


def is_switch(name: str) -> bool:
    """Whether an end of a link is a switch of the fabric: hosts and NVLink domains are not."""
    return name.rpartition("/")[2].startswith(("leaf", "spine", "edge", "aggregation", "core"))


def _same_leaf(planes: int) -> Scope:
    return Scope(planes, np.arange(planes + 1, dtype=np.int64), (planes, 1), 1)


def _count_hosts(leaves: int, hosts_per_leaf: int, hosts: Sequence[HostKind], attach: str) -> tuple[int, int]:
    """Number of hosts, and of rails (1 where hosts are attached whole); checks that the kinds add up."""
    rails = 1
    if attach == "rail":
        kinds = {kind.num_nics for kind in hosts}
        if len(kinds) != 1:
            raise TopologyError(f"attach: rail needs the same number of NICs on every host, got {sorted(kinds)}")
        rails = kinds.pop()
        if leaves % rails:
            raise TopologyError(f"{leaves} leaves are no multiple of {rails} rails (NICs per host)")
    num_hosts = leaves // rails * hosts_per_leaf
    total = sum(kind.count for kind in hosts)
    if total != num_hosts:
        raise TopologyError(f"the fabric has room for {num_hosts} hosts, but the host kinds add up to {total}")
    return num_hosts, rails


class _Nics:
    """Hosts, their accelerators, NVLink domains and NICs; then the finished topology."""

    def __init__(self, builder: _Builder, hosts: Sequence[HostKind], host_link: Link, planes: int, leaf_of) -> None:
        self.builder, self.planes, self.kinds = builder, planes, tuple(hosts)
        self.host: list[int] = []
        self.nic: list[int] = []
        self.local: list[int] = []
        self.nvlink_up: list[int] = []
        self.nvlink_down: list[int] = []
        self.leaf: list[int] = []
        self.up: list[int] = []
        self.down: list[int] = []
        self.overhead: list[float] = []
        self.rate: list[float] = []
        h = 0
        for kind in hosts:
            if kind.num_nics < 1 or kind.num_accelerators < 1:
                raise TopologyError(f"host kind {kind.name!r} needs at least one accelerator and one NIC")
            for _ in range(kind.count):
                self._host(h, kind, host_link, leaf_of)
                h += 1

    def _host(self, h: int, kind: HostKind, host_link: Link, leaf_of) -> None:
        b = self.builder
        first_nic = len(self.leaf)
        for i in range(kind.num_accelerators):
            self.host.append(h)
            self.local.append(i)
            self.nic.append(first_nic + i * kind.num_nics // kind.num_accelerators)
            if kind.num_accelerators > 1:
                if kind.nvlink is None:
                    raise TopologyError(f"host kind {kind.name!r} has several accelerators but no NVLink rate")
                # The whole latency sits on the way up: the domain is one switch, crossed once.
                into = b.link((f"accelerator{len(self.host) - 1}", f"nvlink{h}"), kind.nvlink, "nvlink", "up")
                out = Link(kind.nvlink.rate_bytes_per_s, 0.0)
                off = b.link((f"accelerator{len(self.host) - 1}", f"nvlink{h}"), out, "nvlink", "down")
                self.nvlink_up.append(b.segment([(into, 1.0)], b.latency[into]))
                self.nvlink_down.append(b.segment([(off, 1.0)], 0.0))
            else:
                self.nvlink_up.append(-1)
                self.nvlink_down.append(-1)
        for i in range(kind.num_nics):
            self._nic(h, i, kind, host_link, leaf_of(h, i))

    def _nic(self, h: int, i: int, kind: HostKind, host_link: Link, leaf: int) -> None:
        b, planes = self.builder, self.planes
        port = f"host{h}" if kind.num_nics == 1 else f"host{h}.nic{i}"
        ceiling = kind.injection_bytes_per_s
        if kind.segment_bytes is not None and kind.message_overhead_s > 0:
            segmented = kind.segment_bytes / kind.message_overhead_s
            ceiling = segmented if ceiling is None else min(ceiling, segmented)
        injection: list[tuple[int, float]] = []
        if ceiling is not None:
            injection = [(b.link((port, "wire"), Link(ceiling, 0.0), "injection", "up", leaf=leaf), 1.0)]
        for direction, table in (("up", self.up), ("down", self.down)):
            ports = [
                b.link((port, f"leaf{leaf}"), host_link, "host", direction, leaf=leaf, plane=p if planes > 1 else None)
                for p in range(planes)
            ]
            extra = injection if direction == "up" else []
            table.append(len(b.seg_latency))
            for link in ports:
                b.segment([*extra, (link, 1.0)], b.latency[link])
            b.segment([*extra, *((link, 1.0 / planes) for link in ports)], max(b.latency[link] for link in ports))
            if direction == "up":
                self.rate.append(sum(b.rate[link] for link in ports))
        self.leaf.append(leaf)
        self.overhead.append(kind.message_overhead_s)

    def topology(
        self, kind: str, leaves: int, spines: int, num_hosts: int, leaf_up: Int64, leaf_down: Int64,
        pod_of_leaf: Int64, scopes: tuple[Scope, Scope, Scope],
    ) -> Topology:  # fmt: skip
        b = self.builder
        b.check_overrides()
        if not all(rate > 0 for rate in b.rate):
            i = next(i for i, rate in enumerate(b.rate) if not rate > 0)
            raise TopologyError(f"link {b.name[i]} has rate {b.rate[i]}; it must be above 0")

        def ints(values: Sequence[int]) -> Int64:
            return np.array(values, dtype=np.int64)

        nic_of, leaf_of_nic = ints(self.nic), ints(self.leaf)
        return Topology(
            kind, leaves, spines, self.planes, b.name, np.array(b.rate), np.array(b.latency), b.tier, b.direction,
            ints(b.group), ints(b.leaf), ints(b.spine), ints(b.start), ints(b.seg_link), np.array(b.seg_share),
            np.array(b.seg_latency), ints(self.host), nic_of, leaf_of_nic[nic_of], ints(self.local),
            ints(self.nvlink_up), ints(self.nvlink_down), leaf_of_nic, ints(self.up), ints(self.down),
            np.array(self.overhead), np.array(self.rate), leaf_up, leaf_down, pod_of_leaf, scopes, self.kinds,
        )  # fmt: skip
