"""Speed and memory of the fabric in both fidelities: a process per case, on one core, compilation excluded; and how
long that takes where nothing has been kept on disk.

A case is a topology, a path policy and a message graph. Timed is what the simulator does with the graph, from
`start` to the last byte; building the graph is not. Times are CPU seconds of the one thread, which other work
on the machine hardly moves; wall seconds stand beside them. Memory is the process's peak, everything included.
A case that takes a few seconds is run three times in its process and the fastest counts: the first one also waits
for memory that a virtual machine's host has not backed yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from sim.collectives.algorithms import ALGORITHMS
from sim.engine.clock import Clock
from sim.engine.random import RandomStreams
from sim.fabric.fluid import FluidFabric
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.fabric.topology import HostKind, Link, LinkOverride, Topology, leaf_spine
from sim.workload import patterns

REPOSITORY = Path(__file__).resolve().parents[2]
GIB = 2**30
LINK = Link(50e9, 500e-9)
"""400 Gbit/s, 500 ns."""
SLOW_RATE = 12.5e9
"""100 Gbit/s."""
MESSAGE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated; `is_quick` says whether it takes a few seconds only."""

    leaves: int
    hosts_per_leaf: int
    spines: int
    policy: str
    graph: Callable[[int], MessageGraph]
    has_slow_uplink: bool = False
    is_quick: bool = False
    is_packets: bool = False
    settings: PacketSettings | None = None

    def topology(self) -> Topology:
        slow = {"leaf0-spine0": LinkOverride(rate_bytes_per_s=SLOW_RATE)} if self.has_slow_uplink else {}
        return leaf_spine(
            leaves=self.leaves, spines=self.spines, hosts_per_leaf=self.hosts_per_leaf, host_link=LINK,
            spine_link=LINK, hosts=[HostKind(self.leaves * self.hosts_per_leaf)], overrides=slow,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """One case's cost; simulated_s is the time at which its last byte arrived.

    num_packet_hops: links that data packets crossed; 0 in fluid
    """

    cpu_s: float
    wall_s: float
    peak_bytes: int
    num_messages: int
    simulated_s: float
    num_packet_hops: int = 0


def all_to_all(num_nics: int) -> MessageGraph:
    """Every ordered pair at once, equal sizes."""
    source, destination = _pairs(num_nics)
    return message_graph(source, destination, MESSAGE_BYTES)


def uneven_all_to_all(num_nics: int) -> MessageGraph:
    """Every ordered pair at once, lognormal sizes (sigma 0.5, the same mean): no two flows are alike."""
    source, destination = _pairs(num_nics)
    rng = RandomStreams(1).stream("bench.sizes")
    sizes = rng.lognormal(np.log(MESSAGE_BYTES) - 0.125, 0.5, len(source))
    return message_graph(source, destination, np.maximum(sizes, 1).astype(np.int64))


def ring(num_nics: int) -> MessageGraph:
    """A ring all-reduce in lockstep: 2 (n - 1) steps of n messages, each after the one that it passes on."""
    return ALGORITHMS["all_reduce", "ring"](np.arange(num_nics), 1024 * num_nics)


def jittered_ring(num_nics: int) -> MessageGraph:
    """The same ring; each rank starts at a time of its own within 1 us."""
    graph = ring(num_nics)
    earliest_s = graph.earliest_s.copy()
    first = graph.num_inputs == 0
    earliest_s[first] = RandomStreams(1).stream("bench.jitter").uniform(0.0, 1e-6, int(first.sum()))
    return dataclasses.replace(graph, earliest_s=earliest_s)


def _few(num_nics: int) -> MessageGraph:
    """A small graph in place of one that needs many NICs."""
    return message_graph(np.arange(num_nics), np.arange(num_nics)[::-1], MESSAGE_BYTES)


def permutation(num_nics: int, size_bytes: int = 1000 * 4032) -> MessageGraph:
    """Every NIC to one on another leaf, leaves of 32; by default 1,000 full packets each."""
    rng = RandomStreams(1).stream("bench.permutation")
    ranks = np.arange(num_nics)
    return patterns.permutation(ranks, size_bytes, rng=rng, leaf_of_accelerator=ranks // 32)


def long_permutation(num_nics: int) -> MessageGraph:
    """The same with 24,500 packets: 100 M packet-hops among 1,024 NICs, four links each."""
    return permutation(num_nics, 24_500 * 4032)


def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.repeat(np.arange(n), n - 1)
    return source, (source + 1 + np.tile(np.arange(n - 1), n)) % n


CASES = {
    "all-to-all, 1,024 NICs, ecmp": Case(32, 32, 32, "ecmp", all_to_all),
    "all-to-all, 1,024 NICs, spray": Case(32, 32, 32, "spray", all_to_all, is_quick=True),
    "all-to-all, 1,024 NICs, ethereal": Case(32, 32, 32, "ethereal", all_to_all),
    "all-to-all, 2,048 NICs, ecmp": Case(64, 32, 32, "ecmp", all_to_all),
    "lognormal all-to-all, 256 NICs, a slow uplink, ecmp": Case(
        16, 16, 16, "ecmp", uneven_all_to_all, has_slow_uplink=True
    ),
    "ring all-reduce, 1,024 ranks, lockstep": Case(32, 32, 32, "ecmp", ring, is_quick=True),
    "ring all-reduce, 1,024 ranks, 1 us jitter, ecmp": Case(32, 32, 32, "ecmp", jittered_ring, is_quick=True),
}
MOST_S = dict(zip(CASES, (20.0, 10.0, 10.0, 150.0, 20.0, 5.0, 30.0), strict=True))
"""The most seconds that each may take."""
PACKET_CASES = {
    "packets: all-to-all, 64 NICs, ecmp": Case(8, 8, 8, "ecmp", all_to_all, is_quick=True, is_packets=True),
    "packets: all-to-all, 64 NICs, spray": Case(8, 8, 8, "spray", all_to_all, is_quick=True, is_packets=True),
    "packets: all-to-all, 256 NICs, spray": Case(16, 16, 16, "spray", all_to_all, is_packets=True),
}
LEAST_PACKET_HOPS_PER_S = 2.2e6
"""Data packets over links, every acknowledgement simulated as well: the best that htsim reached on two such cores."""
PRODUCT = 8 * LINK.rate_bytes_per_s * LINK.latency_s + 4 * 4096
"""Bandwidth times the idle round trip, bytes."""
NSCC = PacketSettings(
    ack_every=1, transport="nscc", port_buffer_bytes=int(PRODUCT), mark_from_bytes=round(0.2 * PRODUCT),
    mark_all_bytes=round(0.8 * PRODUCT), trim=True,
)  # fmt: skip
PFC = PacketSettings(ack_every=1, ports="full", pause_above_bytes=200_000, resume_below_bytes=190_000)
PERMUTED = Case(32, 32, 32, "spray_random", permutation, is_quick=True, is_packets=True)
PERMUTATIONS = {
    f"packets: permutation, 1,024 NICs, spray_random, {name}": (dataclasses.replace(PERMUTED, settings=settings), least)
    for name, settings, least in (
        ("lean, ack_every 1", PacketSettings(ack_every=1), 6e6),
        ("lean, ack_every 4", PacketSettings(ack_every=4), 9e6),
        ("full, ack_every 1", PacketSettings(ack_every=1, ports="full"), 3.5e6),
        ("NSCC, ack_every 1", NSCC, 2e6),
        ("PFC, ack_every 1", PFC, 2e6),
    )
}
LONG = "packets: permutation, 1,024 NICs, spray_random, 100 M packet-hops"
PACKET_CASES |= {name: case for name, (case, _) in PERMUTATIONS.items()}
PACKET_CASES[LONG] = dataclasses.replace(PERMUTED, graph=long_permutation, is_quick=False)
MOST_PACKET_GIB = 1.0
LEAST_LONG_HOPS = 100_000_000
COMPILATIONS = {
    "compilation, fluid": dataclasses.replace(PERMUTED, policy="spray", is_packets=False),
    "packets: compilation, lean ports": PERMUTED,
    "packets: compilation, full ports": dataclasses.replace(PERMUTED, settings=NSCC),
}
"""The first run of a user who has run nothing yet."""
MOST_COMPILATION_S = 40.0
SMALL, LARGE = "all-to-all, 1,024 NICs, ecmp", "all-to-all, 2,048 NICs, ecmp"
MOST_GIB = 4.0
MOST_GROWTH = 9.0
"""Four times the flows cost at most so many times the time."""
LEAST_MESSAGES_PER_S = 1e6


def run(is_quick: bool = False, selected: str = "") -> list[dict]:
    """One row per figure: name, value, unit, target, ok, wall_s. `selected` is a part of the case's name."""
    names = [name for name, case in CASES.items() if selected in name and (case.is_quick or not is_quick)]
    if names:
        for policy in {CASES[name].policy for name in names}:
            measure(f"warm up, {policy}")
    rows = []
    measured = {name: measure(name) for name in names}
    for name, m in measured.items():
        rows.append(row(name, m.cpu_s, "s CPU", MOST_S[name], m.cpu_s <= MOST_S[name], m))
        peak_gib = m.peak_bytes / GIB
        if name == SMALL:
            rows.append(row(f"{name}, peak memory", peak_gib, "GiB", MOST_GIB, peak_gib <= MOST_GIB, m))
        if CASES[name].graph in (ring, jittered_ring):
            rate = m.num_messages / m.cpu_s
            ok = rate >= LEAST_MESSAGES_PER_S
            rows.append(row(f"{name}, messages", rate, "1/s", LEAST_MESSAGES_PER_S, ok, m))
    names = [name for name, case in PACKET_CASES.items() if selected in name and (case.is_quick or not is_quick)]
    for name in names:
        measure("warm up, packets")
        m = measure(name)
        rate = m.num_packet_hops / m.cpu_s
        if name == LONG:
            peak_gib = m.peak_bytes / GIB
            ok = peak_gib <= MOST_PACKET_GIB and m.num_packet_hops >= LEAST_LONG_HOPS
            rows.append(row(f"{name}, peak memory", peak_gib, "GiB", MOST_PACKET_GIB, ok, m))
            continue
        least = PERMUTATIONS[name][1] if name in PERMUTATIONS else LEAST_PACKET_HOPS_PER_S
        rows.append(row(name, rate, "packet-hops/s", least, rate >= least, m))
    for name in (name for name in COMPILATIONS if selected in name and not is_quick):
        with tempfile.TemporaryDirectory() as empty:
            m = measure(name, {"XDG_CACHE_HOME": empty, "NUMBA_CACHE_DIR": ""})
        rows.append(row(name, m.cpu_s, "s CPU", MOST_COMPILATION_S, m.cpu_s <= MOST_COMPILATION_S, m))
    if SMALL in measured and LARGE in measured:
        growth = measured[LARGE].cpu_s / measured[SMALL].cpu_s
        name = "all-to-all, ecmp, four times the flows"
        rows.append(row(name, growth, "x time", MOST_GROWTH, growth <= MOST_GROWTH, measured[LARGE]))
    return rows


def row(name: str, value: float, unit: str, target: float, ok: bool, measured: Measured) -> dict:
    return {"name": name, "value": value, "unit": unit, "target": target, "ok": ok, "wall_s": measured.wall_s}


def measure(name: str, environment: Mapping[str, str] = MappingProxyType({})) -> Measured:
    """Run a case in a fresh process. Raises CalledProcessError when it fails; what it said is on stderr."""
    threads = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sim.bench.fabric", name], env={**os.environ, **threads, **environment}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return Measured(**json.loads(done.stdout))


def simulate(case: Case) -> Measured:
    """Run a case in this process. Its compiled code is loaded by a small run first."""
    _timed(_tiny(case))
    return min((_timed(case) for _ in range(3 if case.is_quick else 1)), key=lambda measured: measured.cpu_s)


def compile_for(case: Case) -> Measured:
    """What a tiny case takes with all that it compiles. The imports are not counted."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = _timed(_tiny(case))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return dataclasses.replace(found, cpu_s=cpu_s, wall_s=wall_s)


def _tiny(case: Case) -> Case:
    small = _few if case.graph in (permutation, long_permutation) else case.graph
    return dataclasses.replace(case, leaves=2, hosts_per_leaf=2, spines=2, graph=small)


def _timed(case: Case) -> Measured:
    clock = Clock()
    topology = case.topology()
    graph = case.graph(topology.num_accelerators)
    fabric: FluidFabric | PacketFabric
    if case.is_packets:
        fabric = PacketFabric(clock, topology, case.policy, settings=case.settings)
    else:
        fabric = FluidFabric(clock, topology, case.policy)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    clock.run(fabric.start(graph).done)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    fabric.check_conservation()
    num_packet_hops = fabric.num_packet_hops if isinstance(fabric, PacketFabric) else 0
    return Measured(cpu_s, wall_s, peak_bytes(), graph.num_messages, clock.now, num_packet_hops)


def peak_bytes() -> int:
    """Peak resident memory of this process; from /proc where there is one, as getrusage counts the parent's too."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(name: str) -> None:
    if name in COMPILATIONS:
        json.dump(dataclasses.asdict(compile_for(COMPILATIONS[name])), sys.stdout)
        return
    policy = name.removeprefix("warm up, ")
    is_packets = policy == "packets"
    case = (CASES | PACKET_CASES).get(name) or Case(
        2, 2, 2, "spray" if is_packets else policy, all_to_all, is_packets=is_packets
    )
    json.dump(dataclasses.asdict(simulate(case)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
