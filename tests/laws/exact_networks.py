"""Networks as plain dictionaries of links, written from the design: what the exact fabric runs on.

A link's name is its capacity's key; a route is {link: share} and a time of flight. All numbers are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from sim.fabric import topology as spindle

NO_FABRIC, SPREAD = "no fabric", "spread"
Route = tuple[dict[str, Fraction], Fraction]


@dataclass
class Hosts:
    """Accelerators and NICs, in order; `kinds` are the simulator's own value objects."""

    kinds: list[spindle.HostKind]
    planes: int
    host_of: list[int] = field(default_factory=list)
    nic_of: list[tuple[int, int]] = field(default_factory=list)
    kind_of: list[spindle.HostKind] = field(default_factory=list)

    def __post_init__(self):
        for kind in self.kinds:
            for _ in range(kind.count):
                h = len(self.kind_of)
                self.kind_of.append(kind)
                for i in range(kind.num_accelerators):
                    self.host_of.append(h)
                    self.nic_of.append((h, i * kind.num_nics // kind.num_accelerators))


class Network:
    """What leaf-spine and fat tree have in common: hosts, and routes put together from parts."""

    def __init__(self, hosts: Hosts, host_link, overrides):
        self.hosts, self.planes, self.overrides = hosts, hosts.planes, overrides or {}
        self.capacity: dict[str, Fraction] = {}
        self.latency: dict[str, Fraction] = {}
        for h, kind in enumerate(hosts.kind_of):
            ceilings = [kind.injection_bytes_per_s] if kind.injection_bytes_per_s else []
            if kind.segment_bytes and kind.message_overhead_s:
                ceilings.append(kind.segment_bytes / kind.message_overhead_s)
            for i in range(kind.num_nics):
                port = self.port((h, i))
                if ceilings:
                    self.add(f"{port}->wire", min(ceilings), 0)
                for p in range(self.planes):
                    ends = (port, f"leaf{self.leaf_of_nic(h, i)}")
                    self.add_both_ways(ends, host_link, p)
        for a, h in enumerate(hosts.host_of):
            if hosts.kind_of[h].num_accelerators > 1:
                nvlink = hosts.kind_of[h].nvlink
                self.add(f"accelerator{a}->nvlink{h}", nvlink.rate_bytes_per_s, nvlink.latency_s)
                self.add(f"nvlink{h}->accelerator{a}", nvlink.rate_bytes_per_s, 0)

    def add(self, name, rate, latency):
        self.capacity[name], self.latency[name] = Fraction(rate), Fraction(latency)

    def add_both_ways(self, ends, link, plane=0, suffix=""):
        low, high = ends
        override = self.overrides.get(f"{low}-{high}{suffix}") or self.overrides.get(f"{low}-{high}")
        rate, latency = link.rate_bytes_per_s, link.latency_s
        if override is not None:
            rate = rate if override.rate_bytes_per_s is None else override.rate_bytes_per_s
            latency = latency if override.latency_s is None else override.latency_s
        prefix = f"plane{plane}/" if self.planes > 1 else ""
        self.add(f"{prefix}{low}->{high}{suffix}", rate, latency)
        self.add(f"{prefix}{high}->{low}{suffix}", rate, latency)

    def port(self, nic):
        h, i = nic
        return f"host{h}" if self.hosts.kind_of[h].num_nics == 1 else f"host{h}.nic{i}"

    def leaf_of(self, accelerator):
        return self.leaf_of_nic(*self.hosts.nic_of[accelerator])

    def overhead(self, accelerator):
        return Fraction(self.hosts.kind_of[self.hosts.host_of[accelerator]].message_overhead_s)

    def is_inside_host(self, a, b):
        return self.hosts.host_of[a] == self.hosts.host_of[b]

    def needs_path(self, a, b):
        return not self.is_inside_host(a, b) and (self.leaf_of(a) != self.leaf_of(b) or self.planes > 1)

    def route(self, a, b, up, down) -> Route:
        """From accelerator a to b; `up` and `down` are path numbers, SPREAD or NO_FABRIC."""
        if self.is_inside_host(a, b):
            h = self.hosts.host_of[a]
            into, out = f"accelerator{a}->nvlink{h}", f"nvlink{h}->accelerator{b}"
            return {into: Fraction(1), out: Fraction(1)}, self.latency[into]
        links: dict[str, Fraction] = {}
        flight = Fraction(0)
        fabric_up, fabric_down = self.fabric_paths(self.leaf_of(a), self.leaf_of(b))
        plane = self.plane_of_path(self.leaf_of(a), self.leaf_of(b), up)
        for accelerator, leaves in ((a, True), (b, False)):
            nic = self.hosts.nic_of[accelerator]
            port, leaf = self.port(nic), f"leaf{self.leaf_of(accelerator)}"
            if leaves and f"{port}->wire" in self.capacity:
                links[f"{port}->wire"] = Fraction(1)
            over = range(self.planes) if plane is None else [plane]
            names = [
                (f"plane{p}/" if self.planes > 1 else "") + (f"{port}->{leaf}" if leaves else f"{leaf}->{port}")
                for p in over
            ]
            for name in names:
                links[name] = Fraction(1, len(names))
            flight += max(self.latency[name] for name in names)
        for paths, choice in ((fabric_up, up), (fabric_down, down)):
            if not paths:
                continue
            chosen = paths if choice in (SPREAD, NO_FABRIC) else [paths[choice]]
            flight += max(sum(self.latency[link] for link in path) for path in chosen)
            if choice != NO_FABRIC:
                for path in chosen:
                    for link in path:
                        links[link] = links.get(link, Fraction(0)) + Fraction(1, len(chosen))
        return links, flight


class LeafSpine(Network):
    """Leaf-spine: path number = (plane * spines + spine) * lanes + lane."""

    def __init__(self, *, leaves, spines, hosts_per_leaf, host_link, spine_link, hosts, lanes=1, planes=1,
                 attach="host", overrides=None):  # fmt: skip
        self.spines, self.lanes, self.hosts_per_leaf, self.attach = spines, lanes, hosts_per_leaf, attach
        self.rails = hosts[0].num_nics if attach == "rail" else 1
        super().__init__(Hosts(hosts, planes), host_link, overrides)
        if leaves > 1:
            for leaf in range(leaves):
                for p in range(planes):
                    for s in range(spines):
                        for k in range(lanes):
                            suffix = f".lane{k}" if lanes > 1 else ""
                            self.add_both_ways((f"leaf{leaf}", f"spine{s}"), spine_link, p, suffix)

    def leaf_of_nic(self, host, nic):
        return host // self.hosts_per_leaf * self.rails + (nic if self.attach == "rail" else 0)

    def num_paths(self, leaf_a, leaf_b):
        return self.planes if leaf_a == leaf_b else self.planes * self.spines * self.lanes

    def down_lanes(self, leaf_a, leaf_b):
        return 1 if leaf_a == leaf_b else self.lanes

    def plane_of_path(self, leaf_a, leaf_b, path):
        if self.planes == 1:
            return 0
        if path in (SPREAD, NO_FABRIC):
            return None
        return path if leaf_a == leaf_b else path // (self.spines * self.lanes)

    def fabric_paths(self, leaf_a, leaf_b):
        if leaf_a == leaf_b:
            return [], []
        ups, downs = [], []
        for p in range(self.planes):
            for s in range(self.spines):
                for k in range(self.lanes):
                    prefix = f"plane{p}/" if self.planes > 1 else ""
                    suffix = f".lane{k}" if self.lanes > 1 else ""
                    ups.append([f"{prefix}leaf{leaf_a}->spine{s}{suffix}"])
                    downs.append([f"{prefix}spine{s}->leaf{leaf_b}{suffix}"])
        return ups, downs


class FatTree(Network):
    """Three tiers: aggregation j of a pod is wired to cores j g … (j + 1) g - 1, g = cores / aggregations."""

    def __init__(self, *, pods, edges_per_pod, aggregations_per_pod, cores, hosts_per_edge, host_link, edge_link,
                 core_link, hosts, overrides=None):  # fmt: skip
        self.edges, self.aggregations, self.cores = edges_per_pod, aggregations_per_pod, cores
        self.hosts_per_edge, self.group = hosts_per_edge, cores // aggregations_per_pod
        super().__init__(Hosts(hosts, 1), host_link, overrides)
        for leaf in range(pods * edges_per_pod):
            for j in range(aggregations_per_pod):
                self.add_both_ways((f"edge{leaf}", self.aggregation(leaf, j)), edge_link)
        for pod in range(pods):
            for c in range(cores):
                self.add_both_ways((self.aggregation(pod * edges_per_pod, c // self.group), f"core{c}"), core_link)

    def aggregation(self, leaf, j):
        return f"aggregation{leaf // self.edges * self.aggregations + j}"

    def leaf_of_nic(self, host, nic):
        return host // self.hosts_per_edge

    def num_paths(self, leaf_a, leaf_b):
        if leaf_a == leaf_b:
            return 1
        return self.aggregations if leaf_a // self.edges == leaf_b // self.edges else self.cores

    def down_lanes(self, leaf_a, leaf_b):
        return 1

    def plane_of_path(self, leaf_a, leaf_b, path):
        return 0

    def fabric_paths(self, leaf_a, leaf_b):
        if leaf_a == leaf_b:
            return [], []
        if leaf_a // self.edges == leaf_b // self.edges:
            via = [[self.aggregation(leaf_a, j)] for j in range(self.aggregations)]
            return ([[f"edge{leaf_a}->{s}"] for (s,) in via], [[f"{s}->edge{leaf_b}"] for (s,) in via])
        ups, downs = [], []
        for c in range(self.cores):
            a, b = self.aggregation(leaf_a, c // self.group), self.aggregation(leaf_b, c // self.group)
            ups.append([f"edge{leaf_a}->{a}", f"{a}->core{c}"])
            downs.append([f"core{c}->{b}", f"{b}->edge{leaf_b}"])
        return ups, downs
