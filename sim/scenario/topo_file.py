"""Topology files (`.topo`) of the packet simulator htsim: a fat tree of two or three tiers.

Syntax and checks as htsim's reader has them: csg-htsim and uet-htsim, sim/datacenter/fat_tree_topology.cpp. Keys are
read in any case, `#` begins a comment, a header (Nodes, Tiers, Podsize) comes before the first `Tier N`. Tier 0 is the
leaves, and what a tier says of links is about those down from it: Tier 1's rate is that of a leaf's uplinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sim.scenario.errors import suggestion
from sim.workload.flow_file import TrafficFileError, numbered_lines, whole_number

HEADER = ("Nodes", "Tiers", "Podsize")
COMPULSORY = ("Downlink_speed_Gbps", "Downlink_Latency_ns", "Radix_Down")
OF_TIER = (*COMPULSORY, "Radix_Up", "Bundle", "Oversubscribed", "Switch_Latency_ns", "Queue_Up", "Queue_Down")
ABOVE_TOP = ("Radix_Up", "Oversubscribed", "Queue_Up")
"""Keys about links up, of which the highest tier has none."""


class TopoFileError(TrafficFileError):
    """A `.topo` file that cannot be used: file, line, what is wrong, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Value:
    number: int
    line: int


@dataclass(frozen=True, slots=True)
class Tier:
    """The switches of a tier and their links down. queue_*_bytes: of one port; None where the file is silent."""

    gbit_per_s: int
    link_latency_ns: int
    switch_latency_ns: int
    radix_down: int
    radix_up: int
    bundle: int
    queue_up_bytes: int | None
    queue_down_bytes: int | None


@dataclass(frozen=True, slots=True)
class TopoFile:
    """What a file says. unused: sentences about what it says to no effect, in htsim as here."""

    path: Path
    num_hosts: int
    hosts_per_pod: int
    tiers: tuple[Tier, ...]
    unused: tuple[str, ...] = ()

    @property
    def leaves_per_pod(self) -> int:
        return self.hosts_per_pod // self.tiers[0].radix_down

    @property
    def num_pods(self) -> int:
        return self.num_hosts // self.hosts_per_pod

    def queues(self) -> list[int | None]:
        """The size of every kind of switch port: down of each tier, up of all but the highest."""
        return [tier.queue_down_bytes for tier in self.tiers] + [tier.queue_up_bytes for tier in self.tiers[:-1]]


def read_topo(path: str | Path) -> TopoFile:
    """Raises TopoFileError for what htsim's reader refuses, and where radices, bundles and rates do not agree.

    Stricter than htsim: unknown keys (older versions skip them), numbers that are not whole, and keys given twice.
    """
    path = Path(path)
    header, sections = _sections(path)
    for key in HEADER:
        if key not in header:
            raise TopoFileError(path, None, f"has no line `{key} N` before the first `Tier`; add one")
    num_tiers = header["Tiers"]
    if num_tiers.number not in (2, 3):
        raise TopoFileError(path, num_tiers.line, f"Tiers {num_tiers.number}: a fat tree has 2 or 3; write one of them")
    for t in range(num_tiers.number):
        if t not in sections:
            raise TopoFileError(path, None, f"has no section `Tier {t}`, but Tiers {num_tiers.number}; add one")
    unused: list[str] = []
    tiers = [_tier(path, t, num_tiers.number, sections, unused) for t in range(num_tiers.number)]
    unused += [f"{path.name}: Tier {t} is not used: there are {num_tiers.number}" for t in sections if t >= len(tiers)]
    found = TopoFile(path, header["Nodes"].number, header["Podsize"].number, tuple(tiers), tuple(unused))
    for line, problem in _problems(found, header, sections):
        raise TopoFileError(path, line, problem)
    return found


Section = dict[str, Value]


def _sections(path: Path) -> tuple[Section, dict[int, Section]]:
    """The header, and the keys of each tier."""
    header: Section = {}
    sections: dict[int, Section] = {}
    current: Section = header
    known = {key.lower(): key for key in (*HEADER, *OF_TIER, "Tier")}
    for number, line in numbered_lines(path):
        word, *rest = line.split()
        key = known.get(word.lower())
        if key is None:
            raise TopoFileError(path, number, f"unknown key '{word}'; {suggestion(word, known.values())}")
        if len(rest) != 1:
            raise TopoFileError(path, number, f"'{line}': write `{key} N`")
        value = Value(whole_number(path, number, rest[0], f"number for {key}"), number)
        if key == "Tier":
            if value.number > 2:
                raise TopoFileError(path, number, f"Tier {value.number}: tiers are 0, 1 and 2")
            current = sections.setdefault(value.number, {})
            continue
        is_header = current is header
        if is_header != (key in HEADER):
            wrong = "stands before the first `Tier`; move it below" if is_header else "belongs before the first `Tier`"
            raise TopoFileError(path, number, f"{key} {wrong}")
        if key in current:
            raise TopoFileError(path, number, f"{key} is given twice (line {current[key].line}); keep one")
        if value.number == 0 and key != "Switch_Latency_ns":
            raise TopoFileError(path, number, f"{key} 0: give at least 1")
        current[key] = value
    return header, sections


def _tier(path: Path, t: int, num_tiers: int, sections: Mapping[int, Section], unused: list[str]) -> Tier:
    section, is_top = sections[t], t == num_tiers - 1
    for key in COMPULSORY if is_top else (*COMPULSORY, "Radix_Up"):
        if key not in section:
            raise TopoFileError(path, None, f"Tier {t} has no {key}; add a line `{key} N` to it")
    ignored = [key for key in ABOVE_TOP if is_top and key in section]
    if ignored:
        unused.append(f"{path.name}: {' and '.join(ignored)} of Tier {t} is not used: nothing is above it")

    def number(key: str) -> int | None:
        return section[key].number if key in section and key not in ignored else None

    return Tier(
        gbit_per_s=section["Downlink_speed_Gbps"].number,
        link_latency_ns=section["Downlink_Latency_ns"].number,
        switch_latency_ns=number("Switch_Latency_ns") or 0,
        radix_down=section["Radix_Down"].number,
        radix_up=number("Radix_Up") or 0,
        bundle=number("Bundle") or 1,
        queue_up_bytes=number("Queue_Up"),
        queue_down_bytes=number("Queue_Down"),
    )


def _problems(f: TopoFile, header: Section, sections: Mapping[int, Section]) -> Iterator[tuple[int, str]]:
    """(line, sentence) of what does not agree, the first one first: what follows may be its consequence."""
    leaf = f.tiers[0]
    pods = header["Podsize"].line
    if f.num_hosts % f.hosts_per_pod:
        yield pods, f"Nodes {f.num_hosts} is no multiple of Podsize {f.hosts_per_pod}; change one of them"
    if len(f.tiers) == 2 and f.num_pods != 1:
        yield pods, (
            f"Podsize {f.hosts_per_pod}, but on two tiers every leaf reaches every spine; write Podsize {f.num_hosts}"
        )
    if leaf.bundle != 1:
        yield sections[0]["Bundle"].line, (
            f"Bundle {leaf.bundle}: a host has one link to its leaf; leave Bundle out of Tier 0"
        )
    if f.hosts_per_pod % leaf.radix_down:
        yield sections[0]["Radix_Down"].line, (
            f"Radix_Down {leaf.radix_down}: Podsize {f.hosts_per_pod} is no multiple of it; change one of them"
        )
    for t, (low, high) in enumerate(zip(f.tiers, f.tiers[1:], strict=False)):
        if low.radix_up % high.bundle:
            yield sections[t]["Radix_Up"].line, (
                f"Radix_Up {low.radix_up} is no multiple of Tier {t + 1}'s Bundle {high.bundle}; change one of them"
            )
        yield from _oversubscription(low, high, sections[t])
    for t, below, what in ((1, f.leaves_per_pod, "leaves of a pod"), (2, f.num_pods, "pods")):
        if t < len(f.tiers) and f.tiers[t].radix_down != below * f.tiers[t].bundle:
            needed = below * f.tiers[t].bundle
            of = "" if f.tiers[t].bundle == 1 else f" on {f.tiers[t].bundle} links each"
            yield sections[t]["Radix_Down"].line, (
                f"Radix_Down {f.tiers[t].radix_down}, but it reaches {below} {what}{of}; write Radix_Down {needed}"
            )


def _oversubscription(low: Tier, high: Tier, section: Section) -> Iterator[tuple[int, str]]:
    said = section["Oversubscribed"].number if "Oversubscribed" in section else 1
    ratio = Fraction(low.radix_down * low.gbit_per_s, low.radix_up * high.gbit_per_s)
    if ratio == said:
        return
    remedy = f"write Oversubscribed {ratio}" if ratio.denominator == 1 else "choose radices with a whole ratio"
    given = f"Oversubscribed {said}" if "Oversubscribed" in section else "Oversubscribed is left out, which means 1"
    line = section.get("Oversubscribed", section["Radix_Up"]).line
    yield line, (
        f"{given}, but {low.radix_down} links down at {low.gbit_per_s} Gbit/s and {low.radix_up} up at "
        f"{high.gbit_per_s} Gbit/s make {float(ratio):.3g}; {remedy}"
    )
