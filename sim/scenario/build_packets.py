"""From the packet section of a scenario to the settings of the packet fabric: what is left out gets its default."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sim.fabric.packet import PacketSettings
from sim.fabric.topology import Topology, is_switch, link_ends
from sim.scenario.packets import Buffer, Marking
from sim.scenario.paths import FlowletPaths
from sim.scenario.schema import Scenario

MB = 1_000_000
SHARED_BUFFER_BYTES = 64 * MB


def packet_settings(scenario: Scenario, topology: Topology) -> PacketSettings:
    """Raises ValueError when the switches cannot hold what lossless links may send them."""
    packet = scenario.packet
    transport, mtu = packet.transport, packet.mtu_bytes
    size, unit = transport.window
    product = _bandwidth_delay_bytes(topology, mtu)
    is_lossless, imported = packet.is_lossless, scenario.imported_buffer_bytes
    own = _own_buffer(transport.kind, product, mtu)
    buffer = packet.buffer or (own if imported is None else Buffer.model_construct(per_port_bytes=imported))
    marking = packet.ecn or _own_marking(transport.kind, product, topology)
    trims = packet.trim if packet.trim is not None else transport.kind in ("nscc", "ndp") and not is_lossless
    pause_above, resume_below = _pauses(scenario, topology, buffer) if is_lossless else (None, None)
    return PacketSettings(
        mtu,
        packet.header_bytes,
        window_bdp=size,
        window_packets=int(size) if unit == "packets" else None,
        ack_every=transport.ack_every,
        transport=transport.kind,
        port_buffer_bytes=buffer.per_port_bytes,
        switch_buffer_bytes=buffer.shared_bytes,
        buffer_alpha=buffer.alpha if buffer.shared_bytes is not None else None,
        mark_from_bytes=marking.from_bytes if marking else None,
        mark_all_bytes=marking.all_bytes if marking else None,
        mark_most=marking.most if marking else 1.0,
        trim=bool(trims),
        pause_above_bytes=pause_above,
        resume_below_bytes=resume_below,
        retransmission_timeout_s=transport.retransmission_timeout_s,
        goes_back=transport.receiver == "go_back_n",
        gap=transport.gap,
        flowlet_gap_s=scenario.paths.gap_s if isinstance(scenario.paths, FlowletPaths) else 0.0,
        has_faults=bool(scenario.faults),
        ports=packet.ports,
        log_rows=packet.log,
    )


def _bandwidth_delay_bytes(t: Topology, mtu: int) -> float:
    """Of accelerator 0's NIC and the farthest accelerator: rate (2 latency + four packets' time)."""
    rate = float(t.nic_rate[0])
    latency_s = t.latency_s(np.zeros(t.num_accelerators, np.int64), np.arange(t.num_accelerators))
    return rate * 2 * float(latency_s.max()) + 4 * mtu


def _own_buffer(kind: str, product: float, mtu: int) -> Buffer:
    if kind == "window":
        return Buffer()
    if kind == "ndp":
        return Buffer.model_construct(per_port_bytes=8 * mtu)
    if kind == "nscc":
        return Buffer.model_construct(per_port_bytes=int(max(product, 8 * mtu)))
    return Buffer.model_construct(shared_bytes=SHARED_BUFFER_BYTES)


def _own_marking(kind: str, product: float, t: Topology) -> Marking | None:
    by_rate = float(t.nic_rate[0]) / 50e9
    match kind:
        case "dctcp":
            first, last, most = product / 7, product / 7, 1.0
        case "dcqcn":
            first, last, most = 50e3 * by_rate, 2e6 * by_rate, 0.01
        case "nscc":
            first, last, most = 0.2 * product, 0.8 * product, 1.0
        case _:
            return None
    return Marking.model_construct(from_bytes=round(first), all_bytes=round(last), most=most)


def _pauses(scenario: Scenario, t: Topology, buffer: Buffer) -> tuple[int, int]:
    """(pause above, go on at): as asked, or half of what the buffer leaves per link beside what is still on its way."""
    packet, mtu = scenario.packet, scenario.packet.mtu_bytes
    links: Counter[str] = Counter()
    on_way: Counter[str] = Counter()
    for i, name in enumerate(t.link_name):
        into = link_ends(name)[1]
        if not is_switch(into):
            continue
        links[into] += 1
        on_way[into] += int(2 * t.link_rate[i] * t.link_latency_s[i]) + 3 * mtu
    switch = max(links, key=lambda key: (on_way[key], key))
    shared = buffer.shared_bytes
    if packet.pfc and packet.pfc is not True:
        above = packet.pfc.above_bytes
        below = packet.pfc.below_bytes if packet.pfc.below_bytes is not None else max(above - 2 * mtu, 1)
    else:
        above = int(((shared or SHARED_BUFFER_BYTES) - on_way[switch]) / links[switch] / 2)
        below = above - 2 * mtu
    needed = links[switch] * max(above, 0) + on_way[switch]
    if shared is not None and (needed > shared or below <= 0):
        raise ValueError(
            f"lossless links need room in {switch}: {links[switch]} links that are paused above "
            f"{above} B, and {on_way[switch]} B still on their way, make {needed} B, but it has {shared} B; "
            f"give packet.buffer.shared more, or pause earlier"
        )
    return above, below
