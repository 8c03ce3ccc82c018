"""Which links hold up a workload's flows at this moment, and whose flows they share these links with."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sim.fabric.fluid import FluidFabric
from sim.fabric.topology import is_switch, link_ends

FULL = 1 - 1e-6
NOBODY = ""
"""In place of another owner: the flow has the link for itself, which is slower than its NIC."""


def held_up(fabric: FluidFabric, owner: str) -> dict[tuple[str, str], float] | None:
    """{(link, other owner): share of this owner's flows under way}; None where none is under way.

    Under max-min fairness a flow is held up by the fullest link of its route. Each flow counts alike, and is shared out
    among the other flows on that link by their rates. A NIC holds up only with flows of other owners: an owner's own
    messages take turns there on any fabric. What is not held up so is missing from the sum, which is at most 1.
    """
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
