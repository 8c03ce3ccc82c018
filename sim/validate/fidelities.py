"""Fluid against packet: the same messages on the same fabric in both fidelities, and where they part.

Both place flows with the same seed, so that a single path is the same path. Times are of the last byte; of three
seeds the one whose two times lie farthest apart is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sim.collectives.algorithms import ALGORITHMS
from sim.engine.clock import Clock
from sim.escalation import FIDELITY_ERROR
from sim.fabric.fluid import FluidFabric
from sim.fabric.message_fabric import MessageFabric
from sim.fabric.messages import MessageGraph, message_graph
from sim.fabric.packet import PacketFabric, PacketSettings
from sim.validate.fabric_checks import EXACT, completion_s, leaf_spine_of
from sim.workload import patterns

HOSTS = np.arange(64)
LEAF = HOSTS // 8
SEEDS = (1, 2, 3)
SHALLOW = PacketSettings(port_buffer_bytes=200_000)

WHERE_NOT = (
    "Fluid has no queue, no packet and no loss. Do not use it where a flow is below a bandwidth-delay product (here "
    "200 kB; a message of a packet or two is stored and forwarded at every hop), where buffers are finite and many "
    "short flows meet at one receiver (what is lost waits for a timer), or where paths are drawn packet by packet on "
    "links that are full (queues grow, windows stand still)."
)

STORED = "below a bandwidth-delay product: each hop stores the packet before it sends it on"
LOST = "loss: what a full buffer drops is sent again when its timer runs out"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Completion in both fidelities; `because` says why they part, where that is known: then it is no failure."""

    messages: str
    paths: str
    fluid_us: float
    packet_us: float
    ratio: float
    target: str
    passed: bool
    because: str | None = None


Messages = Callable[[int], MessageGraph]


def shift(seed: int) -> MessageGraph:
    return patterns.shift(HOSTS, 4_000_000, leaf_of_accelerator=LEAF)


def permutation(seed: int) -> MessageGraph:
    rng = np.random.default_rng(seed)
    return patterns.permutation(HOSTS, 4_000_000, rng=rng, leaf_of_accelerator=LEAF)


def all_to_all(seed: int) -> MessageGraph:
    return patterns.all_to_all(HOSTS, 250_000)


def ring(seed: int) -> MessageGraph:
    return ALGORITHMS["all_reduce", "ring"](HOSTS, 64_000_000)


def one_packet(seed: int) -> MessageGraph:
    return message_graph([0], [8], [4032])


def short_incast(seed: int) -> MessageGraph:
    return patterns.incast(HOSTS, 50_000, fan_in=63)


PATTERNS: dict[str, Messages] = {
    "shift of 4 MB": shift,
    "permutation of 4 MB": permutation,
    "all-to-all of 250 kB a pair": all_to_all,
    "ring all-reduce of 64 MB": ring,
}


def comparisons() -> Iterator[Comparison]:
    """Lossless traffic, which should agree; then what fluid is not for."""
    for name, messages in PATTERNS.items():
        for policy in ("ecmp", "ethereal", "spray_switch"):
            yield compare(name, messages, policy)
    yield compare("permutation of 4 MB", permutation, "spray_round_robin")
    yield compare("one packet", one_packet, "ecmp", because=STORED)
    yield compare("incast of 63 x 50 kB, 200 kB buffers", short_incast, "ecmp", settings=SHALLOW, because=LOST)


def compare(
    name: str, messages: Messages, policy: str, *, settings: PacketSettings | None = None, because: str | None = None
) -> Comparison:
    """The seed of SEEDS whose completion times differ most."""
    pairs = []
    for seed in SEEDS:
        fluid = FluidFabric(Clock(), leaf_spine_of(8, 8, 8), fluid_policy(policy), settings=EXACT, seed=seed)
        packet = PacketFabric(Clock(), leaf_spine_of(8, 8, 8), policy, settings=settings, seed=seed)
        fabrics: tuple[MessageFabric, ...] = (fluid, packet)
        pairs.append([completion_s(fabric, messages(seed)) for fabric in fabrics])
    fluid_s, packet_s = max(pairs, key=lambda pair: abs(pair[1] / pair[0] - 1))
    ratio = packet_s / fluid_s
    passed = abs(ratio - 1) <= FIDELITY_ERROR
    target = f"{1 - FIDELITY_ERROR:g} … {1 + FIDELITY_ERROR:g}"
    return Comparison(name, policy, fluid_s * 1e6, packet_s * 1e6, ratio, target, passed, because)


def fluid_policy(policy: str) -> str:
    """Fluid's `spray` is a turn that never collides, whoever takes it."""
    return "spray" if policy.startswith("spray") else policy
