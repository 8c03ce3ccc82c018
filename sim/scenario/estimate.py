"""What a run would cost, before it runs: messages, and at packet level the links that data packets cross."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.fabric.messages import MessageGraph
from sim.fabric.topology import FAR, SAME_LEAF, SAME_POD, Topology
from sim.scenario import build
from sim.scenario.errors import Refused
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario

MOST_PACKET_HOPS = 2e9
"""Above it a run is refused unless told otherwise: about ten minutes on one core."""

PACKET_HOPS_PER_S = 4e6
"""On one core, with every acknowledgement; `spindle bench` measures it on yours."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of all variants and seeds together.

    packet_hops       links that data packets cross; 0 in fluid
    is_least          some workload's traffic is not known beforehand (serving, training without an end)
    escalation_hops   what `fidelity: auto` adds if it runs everything again packet by packet
    """

    num_messages: int
    packet_hops: int
    is_least: bool
    escalation_hops: int = 0

    def __str__(self) -> str:
        least = "at least " if self.is_least else ""
        text = f"{least}{self.num_messages:,} messages"
        if self.packet_hops:
            seconds = self.packet_hops / PACKET_HOPS_PER_S
            text += f", {self.packet_hops:.2g} packet-hops: about {seconds:.0f} s of one core"
        if self.escalation_hops:
            seconds = self.escalation_hops / PACKET_HOPS_PER_S
            text += f"; where fluid is not enough, up to {self.escalation_hops:.2g} packet-hops: {seconds:.0f} s more"
        return text


def estimate(loaded: LoadedScenario) -> Estimate:
    """Add up what the workloads of every variant and seed will send."""
    num_messages, packet_hops, escalation_hops, is_least = 0, 0, 0, False
    known: dict[str, Estimate] = {}
    for _, scenario in loaded.variants:
        sent = scenario.model_dump_json(include={"cluster", "workloads", "packet", "fidelity"})
        if sent not in known:
            known[sent] = planned_cost(scenario, loaded.seeds[0])
        found = known[sent]
        num_messages += found.num_messages * len(loaded.seeds)
        is_least |= found.is_least
        if scenario.first_fidelity == "packet":
            packet_hops += found.packet_hops * len(loaded.seeds)
        elif scenario.fidelity == "auto" and not any(scenario.why_not("packet")):
            escalation_hops += found.packet_hops * len(loaded.seeds)
    return Estimate(num_messages, packet_hops, is_least, escalation_hops)


def planned_cost(scenario: Scenario, seed: int) -> Estimate:
    """What one run of a variant sends, as far as it is known; packet-hops also where `auto` begins in fluid.

    What it sends does not depend on its path policy.
    """
    simulation = build.build(scenario, seed)
    num_messages, packet_hops, is_least = 0, 0, False
    for workload in simulation.workloads:
        planned = getattr(workload, "planned", None)
        if planned is None:
            is_least = True
            continue
        graph, repeat = planned
        is_least |= repeat is None
        num_messages += graph.num_messages * (repeat or 1)
        if scenario.fidelity != "fluid":
            packet_hops += _packet_hops(scenario, simulation.topology, graph) * (repeat or 1)
    return Estimate(num_messages, packet_hops, is_least)


def check_cost(found: Estimate, most_packet_hops: float | None) -> None:
    """Raises Refused when the packets would cross more links than is allowed, saying what would fit."""
    most = most_packet_hops or MOST_PACKET_HOPS
    if found.packet_hops > most:
        minutes = found.packet_hops / PACKET_HOPS_PER_S / 60
        raise Refused(
            f"this run needs about {found.packet_hops:.2g} packet-hops ({minutes:.0f} minutes of one core), above the "
            f"{most:.2g} allowed: {most / found.packet_hops:.0%} of its bytes or seeds would fit; write "
            f"fidelity: fluid, or allow it with --max-packet-hops {found.packet_hops:.2g}"
        )


def _packet_hops(scenario: Scenario, t: Topology, graph: MessageGraph) -> int:
    """Packets of every message times the links of its path."""
    full = scenario.packet.mtu_bytes - scenario.packet.header_bytes
    packets = np.maximum(-(-graph.size_bytes // full), 1)
    leaf = t.leaf_of_accelerator
    a, b = leaf[graph.source], leaf[graph.destination]
    scope = np.where(a == b, SAME_LEAF, np.where(t.pod_of_leaf[a] == t.pod_of_leaf[b], SAME_POD, FAR))
    hops_of = np.array([2 + 2 * _links_up(t, scope) for scope in (SAME_LEAF, SAME_POD, FAR)])
    hops = hops_of[scope]
    hops[t.host_of_accelerator[graph.source] == t.host_of_accelerator[graph.destination]] = 2
    hops[graph.source == graph.destination] = 0
    return int((packets * hops).sum())


def _links_up(t: Topology, scope: int) -> int:
    """Links from a leaf to the highest switch on the way to one of that distance."""
    first = int(t.leaf_up[0, scope])
    return 0 if first < 0 else int(t.segment_start[first + 1] - t.segment_start[first])
