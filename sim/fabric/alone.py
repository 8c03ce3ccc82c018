"""How long a message graph takes with the fabric to itself: what is left when there is no contention."""

from __future__ import annotations

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.messages import MessageGraph
from sim.fabric.topology import Topology


class AloneOnIdeal:
    """An idle fabric without limits behind the real NICs, on a clock of its own; one graph at a time.

    What a graph takes longer elsewhere is contention in the fabric, among its own messages or with others', and with
    others at its NICs; packet by packet also queues, windows and store-and-forward. Its own messages that share a NIC
    are no contention: no path policy changes that. Links that a fault made slower are as built here.
    """

    def __init__(self, topology: Topology, mtu_bytes: int, header_bytes: int, tolerance: float) -> None:
        self._clock = Clock()
        settings = FluidSettings(mtu_bytes, header_bytes, tolerance, num_bins=0)
        self._fabric = FluidFabric(self._clock, topology, "ideal", settings=settings)

    @property
    def now_s(self) -> float:
        """When the next graph starts."""
        return self._clock.now

    def seconds(self, graph: MessageGraph) -> float:
        """From now_s to its last byte."""
        started_s = self._clock.now
        self._clock.run(until=self._fabric.start(graph).done)
        return self._clock.now - started_s
