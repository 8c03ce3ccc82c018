"""The ledger of packets over links: what was sent is there, was lost, or is on its way."""

from __future__ import annotations

import numpy as np

from sim.fabric.packet_state import PacketState, links_at
from sim.fabric.topology import Topology

Law = tuple[str, float, float]
"""What it says, and the two amounts that it says are equal."""


def laws(state: PacketState, topology: Topology, payload_bytes: np.ndarray) -> list[Law]:
    """The laws that can be told now: while packets are under way, only those that are broken already.

    payload_bytes  [ports] that began to leave
    """
    ports = state.ports
    is_last = _last_ports(topology, len(ports))
    is_idle = int(state.c["num_free_packets"][0]) == len(state.packets)
    found: list[Law] = []
    lost = {"payload_bytes": 0, "data_packets": 0}
    lost_at_the_end = dict(lost)
    if "losses" in (ports.dtype.names or ()):  # full ports
        drops = int(ports["drops"].sum())
        header_bytes = int(state.c["header_bytes"][0])
        lost["data_packets"] = drops + int(ports["trims"].sum()) + int(ports["losses"].sum())
        lost["payload_bytes"] = int(ports["dropped_bytes"].sum()) - drops * header_bytes
        lost["payload_bytes"] += int(ports["trimmed_bytes"].sum()) + int(ports["lost_bytes"].sum())
        lost_at_the_end["payload_bytes"] = int(ports["lost_bytes"][is_last].sum())
        lost_at_the_end["data_packets"] = int(ports["losses"][is_last].sum())
        at_switches = ports[ports["node"] >= 0]
        left = at_switches["data_packets"] + at_switches["drops"] + at_switches["trims"]
        if is_idle or (left > at_switches["entered"]).any():
            law = "data packets at switches: entered = sent + dropped + trimmed"
            found.append((law, int(at_switches["entered"].sum()), int(left.sum())))
    carried = {"payload_bytes": payload_bytes, "data_packets": ports["data_packets"].astype(np.int64)}
    for what, amount in carried.items():
        sent = int(amount[ports["is_source"]].sum()) - lost[what]
        arrived = int(amount[is_last].sum()) - lost_at_the_end[what]
        if is_idle or arrived > sent:
            found.append((f"{what} on links: sent = arrived + lost", sent, arrived))
    return found


def _last_ports(t: Topology, num_ports: int) -> np.ndarray:
    """[ports] whether its link ends at an accelerator or its NIC."""
    is_last = np.zeros(num_ports, np.bool_)
    for plane in range(t.num_planes):
        is_last[links_at(t, t.nic_down + plane, 0)] = True
    is_last[links_at(t, t.nvlink_down[t.nvlink_down >= 0], 0)] = True
    return is_last
