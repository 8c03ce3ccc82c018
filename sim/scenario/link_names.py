"""Names of single links and switches: whether a scenario's cluster has one of that name, and if not, why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.scenario.cluster import Cluster

_LINK = re.compile(
    r"(?:plane(?P<plane>[0-9]{1,7})/)?"
    r"(?P<low>[a-z]+)(?P<low_id>[0-9]{1,7})(?:\.nic(?P<nic>[0-9]{1,7}))?"
    r"-(?P<high>[a-z]+)(?P<high_id>[0-9]{1,7})(?:\.lane(?P<lane>[0-9]{1,7}))?"
)
_SWITCH = re.compile(r"(?:plane(?P<plane>[0-9]{1,7})/)?(?P<word>[a-z]+)(?P<id>[0-9]{1,7})")


class _Link(NamedTuple):
    """A link's name, taken apart."""

    name: str
    plane: int | None
    low: str
    low_id: int
    nic: int | None
    high: str
    high_id: int
    lane: int | None


def wrong_link(cluster: Cluster, name: str) -> str | None:
    """Why the cluster has no link of this name; None where it has one."""
    fabric = cluster.tree
    ends = {("host", "leaf"): (cluster.num_hosts, fabric.num_leaves)}
    planes, lanes_to = 1, {"leaf": 1}
    if fabric.kind == "leaf_spine":
        planes, lanes_to["spine"] = fabric.planes, fabric.lanes
        ends["leaf", "spine"] = (fabric.leaves, fabric.spines)
    else:
        num_aggregations = fabric.pods * fabric.aggregations_per_pod
        lanes_to |= {"aggregation": fabric.edge_lanes, "core": fabric.core_lanes}
        ends["edge", "aggregation"] = (fabric.num_leaves, num_aggregations)
        ends["aggregation", "core"] = (num_aggregations, fabric.cores)
    match = _LINK.fullmatch(name)
    if match is None or (match["low"], match["high"]) not in ends:
        return f"no link is named '{name}'; names are like " + " and ".join(f"'{a}0-{b}0'" for a, b in ends)
    number = {
        key: None if match[key] is None else int(match[key])
        for key in ("plane", "low_id", "nic", "high_id", "lane")
    }
    link = _Link(name, low=match["low"], high=match["high"], **number)  # type: ignore[arg-type]
    num_low, num_high = ends[link.low, link.high]
    lanes = lanes_to[link.high]
    for word, index, count in (
        ("plane", link.plane, planes),
        (link.low, link.low_id, num_low),
        (link.high, link.high_id, num_high),
        ("lane", link.lane, lanes),
    ):
        if index is not None and index >= count:
            return f"'{name}': there is no {word}{index}, {_numbered(word, count)}"
    if link.plane is not None and planes == 1:
        return f"'{name}': there is one plane only; leave plane{link.plane}/ out"
    if link.low == "host":
        return _wrong_host_link(cluster, link)
    if link.nic is not None:
        return f"'{name}': only hosts have NICs; leave .nic{link.nic} out"
    if link.lane is not None and lanes == 1:
        return f"'{name}': there is one lane only; leave .lane{link.lane} out"
    return _wrong_switch_link(cluster, link)


def wrong_switch(cluster: Cluster, name: str) -> str | None:
    """Why the cluster has no switch of this name; None where it has one."""
    fabric = cluster.tree
    planes = 1
    if fabric.kind == "leaf_spine":
        planes = fabric.planes
        counts = {"leaf": fabric.leaves, "spine": fabric.spines if fabric.leaves > 1 else 0}
    else:
        counts = {
            "edge": fabric.num_leaves,
            "aggregation": fabric.pods * fabric.aggregations_per_pod,
            "core": fabric.cores if fabric.pods > 1 else 0,
        }
    match = _SWITCH.fullmatch(name)
    there = " and ".join(f"{word}0" + (f" … {word}{n - 1}" if n > 1 else "") for word, n in counts.items() if n)
    if match is None or match["word"] not in counts:
        return f"no switch is named '{name}'; there are {there}"
    if int(match["id"]) >= counts[match["word"]]:
        return f"there is no {match['word']}{match['id']}; there are {there}"
    if match["plane"] is not None and planes == 1:
        return f"'{name}': there is one plane only; leave plane{match['plane']}/ out"
    if match["plane"] is not None and int(match["plane"]) >= planes:
        return f"'{name}': there is no plane{match['plane']}, {_numbered('plane', planes)}"
    return None


def _wrong_switch_link(cluster: Cluster, link: _Link) -> str | None:
    fabric = cluster.tree
    if fabric.kind == "leaf_spine":
        return f"'{link.name}': a fabric of one leaf uses no spine" if fabric.leaves == 1 else None
    per_pod = fabric.aggregations_per_pod
    if link.low == "edge":
        is_connected = link.low_id // fabric.edges_per_pod == link.high_id // per_pod
    else:
        is_connected = fabric.pods > 1 and link.high_id // (fabric.cores // per_pod) == link.low_id % per_pod
    if is_connected:
        return None
    return f"'{link.name}': {link.low}{link.low_id} has no link to {link.high}{link.high_id}"


def _wrong_host_link(cluster: Cluster, link: _Link) -> str | None:
    fabric = cluster.tree
    nics, hosts_before = 1, 0
    for kind, count in cluster.host_groups:
        if link.low_id < hosts_before + count:
            nics = kind.nics
            break
        hosts_before += count
    if link.lane is not None:
        return f"'{link.name}': lanes are between switches; leave .lane{link.lane} out"
    if (link.nic is None) != (nics == 1):
        port = f"host{link.low_id}.nic0" if nics > 1 else f"host{link.low_id}"
        plural = "s" if nics > 1 else ""
        return f"'{link.name}': host {link.low_id} has {nics} NIC{plural}; write '{port}-leaf{link.high_id}'"
    index = link.nic or 0
    if index >= nics:
        return f"'{link.name}': there is no nic{index}, {_numbered('nic', nics)}"
    leaf = fabric.leaf_of_nic(link.low_id, index, nics)
    if link.high_id == leaf:
        return None
    return f"'{link.name}': this NIC is on leaf {leaf}; write '{link.name.rpartition('-')[0]}-leaf{leaf}'"


def _numbered(word: str, count: int) -> str:
    return f"only {word}0" if count == 1 else f"{'leave' if word == 'leaf' else word}s are 0 … {count - 1}"
