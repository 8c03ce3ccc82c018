"""From a fault of the scenario to the links it is about."""

from __future__ import annotations

import numpy as np

from models.units import format_bytes_per_s
from sim.fabric import faults
from sim.fabric.link_sets import links_named, links_of_host, links_of_switch
from sim.fabric.topology import Topology
from sim.scenario.faults import Fault


def build_fault(fault: Fault, topology: Topology) -> faults.Fault:
    """Raises ValueError where a link would be no slower than it is. A replica's has no links: its workload knows it."""
    if fault.replica is not None:
        return faults.Fault(f"replica {fault.replica} down", (), None, fault.at_s, fault.until_s)
    if fault.link is not None:
        name, links = fault.link, links_named(topology, fault.link)
    elif fault.switch is not None:
        name, links = fault.switch, links_of_switch(topology, fault.switch)
    else:
        assert fault.host is not None
        name, links = f"host{fault.host}", links_of_host(topology, fault.host)
    if fault.loss is not None:
        what = f"{name} loses {100 * fault.loss:g} %"
        return faults.Fault(what, links, None, fault.at_s, fault.until_s, fault.loss)
    rate = fault.rate_bytes_per_s
    if rate is None:
        return faults.Fault(f"{name} down", links, None, fault.at_s, fault.until_s)
    fastest = float(np.max(topology.link_rate[list(links)]))
    if rate >= fastest:
        raise ValueError(
            f"{name} carries {format_bytes_per_s(fastest)} as it is, so that {format_bytes_per_s(rate)} changes "
            "nothing; give a lower rate"
        )
    return faults.Fault(f"{name} at {format_bytes_per_s(rate)}", links, rate, fault.at_s, fault.until_s)
