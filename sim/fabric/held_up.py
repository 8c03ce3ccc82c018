"""Which links hold up a workload's flows at this moment, and whose flows they share these links with."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sim.fabric.fluid import FluidFabric
from sim.fabric.packet import PacketFabric
from sim.fabric.topology import is_switch, link_ends

FULL = 1 - 1e-6
NOBODY = ""
"""In place of another owner: the flow has the link for itself, which is slower than its NIC."""


Found = dict[tuple[str, str], float]


def held_up(fabric: FluidFabric | PacketFabric, owner: str) -> Found | None:
    """{(link, other owner): share of this owner's flows under way}; None where none is under way.

    Each flow counts alike. A NIC holds up only with flows of other owners: an owner's own messages take turns there on
    any fabric. What is not held up so is missing from the sum, which is at most 1.

    Fluid           a flow is held up by the fullest link of its route, as max-min fairness has it, and shared out among
                    the other flows on that link by their rates
    packet by packet  a message that could send more (its window has room) is held up by its NIC, if others wait for
                    their turn there as well; one that could not, by the link where most of its packets wait, and shared
                    out among the others in that queue by their bytes
    """
    if isinstance(fabric, PacketFabric):
        return _by_queues(fabric, owner)
    return _by_rates(fabric, owner)


def _by_rates(fabric: FluidFabric, owner: str) -> Found | None:
    rate, route = fabric.current_rates()
    owners = np.array(fabric.current_owners())
    runs = rate > 0
    rate, route, owners = rate[runs], route[runs], owners[runs]
    own = np.flatnonzero(owners == owner)
    if len(own) == 0:
        return None
    network = fabric.network
    flow, role = np.nonzero(route >= 0)
    segment = route[flow, role]
    num = network.segment_start[segment + 1] - network.segment_start[segment]
    entry = np.repeat(network.segment_start[segment] - (np.cumsum(num) - num), num) + np.arange(num.sum())
    flow, link = np.repeat(flow, num), network.segment_link[entry]
    load = rate[flow] * network.segment_share[entry]
    used = np.bincount(link, load, minlength=len(network.capacity))
    fill = np.divide(used, network.capacity, out=np.zeros_like(used), where=network.capacity > 0)
    found: dict[tuple[str, str], float] = defaultdict(float)
    for i in own:
        mine = link[flow == i]
        fullest = int(mine[np.argmax(fill[mine])])
        if fill[fullest] < FULL:
            continue
        name = fabric.topology.link_name[fullest]
        others = (link == fullest) & (flow != i)
        if not all(map(is_switch, link_ends(name))):
            others &= owners[flow] != owner
        elif not others.any():
            found[name, NOBODY] += 1 / len(own)
        total = load[others].sum()
        for other in np.unique(owners[flow[others]]):
            found[name, str(other)] += load[others & (owners[flow] == other)].sum() / total / len(own)
    return dict(found)


def _by_queues(fabric: PacketFabric, owner: str) -> Found | None:
    message, nic, is_next = fabric.senders()
    owner_of = {int(m): fabric.owner_of(int(m)) for m in np.unique(message)}
    own = [m for m, its in owner_of.items() if its == owner]
    if not own:
        return None
    queued = fabric.waiting_packets()
    found: dict[tuple[str, str], float] = defaultdict(float)
    for m in own:
        if is_next[message == m].any():
            link = int(nic[(message == m) & is_next][0])
            others = message[(nic == link) & is_next & (message != m)]
            size = np.ones(len(others))
        else:
            mine = queued[(queued["message"] == m) & queued["waits"]]
            if len(mine) == 0:
                continue
            link = int(np.bincount(mine["link"], mine["size"]).argmax())
            beside = queued[(queued["link"] == link) & (queued["message"] != m)]
            others, size = beside["message"], beside["size"].astype(float)
        name = fabric.topology.link_name[link]
        owners = np.array([owner_of.get(int(other), NOBODY) for other in others], dtype=object)
        if not all(map(is_switch, link_ends(name))):
            size = size[owners != owner]
            owners = owners[owners != owner]
        elif len(owners) == 0:
            found[name, NOBODY] += 1 / len(own)
        for other in set(owners):
            found[name, str(other)] += size[owners == other].sum() / size.sum() / len(own)
    return dict(found)
