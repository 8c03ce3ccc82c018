"""A fabric without a network, to test what sits on top of one."""

from __future__ import annotations

import numpy as np
import pytest
import simpy

from sim.fabric.messages import OUTCOMES, MessageGraph, MessageResults


class FixedTimeTransfer:
    """A cancelled transfer is done at once, before anything else of that instant, as on a real fabric."""

    def __init__(self, clock: simpy.Environment, results: MessageResults) -> None:
        self.clock, self.results = clock, results
        self.done = clock.event()

    is_final = True

    def cancel(self, indices=None) -> None:
        late = ~(self.results.received_s <= self.clock.now)
        chosen = late if indices is None else late & np.isin(np.arange(len(late)), indices)
        self.results.outcome[chosen] = OUTCOMES.index("cancelled")
        self.results.received_s[chosen] = self.results.acknowledged_s[chosen] = np.nan
        self.results.delivered_bytes[chosen] = 0
        if not self.done.triggered:
            self.done._ok, self.done._value = True, None
            self.clock.schedule(self.done, priority=-1)


class FixedTimeFabric:
    """Every message takes message_s + size / rate from when it is ready; a join takes no time.

    Acknowledgements take acknowledgement_s more. `graphs` keeps what was started.
    """

    has_packets = False

    def __init__(self, clock, message_s=1.0, bytes_per_s=np.inf, acknowledgement_s=0.25) -> None:
        self.clock = clock
        self.message_s, self.bytes_per_s, self.acknowledgement_s = message_s, bytes_per_s, acknowledgement_s
        self.graphs: list[MessageGraph] = []

    def start(self, graph: MessageGraph) -> FixedTimeTransfer:
        self.graphs.append(graph)
        n = graph.num_messages
        ready = np.maximum(graph.earliest_s, self.clock.now)
        received = np.full(n, np.nan)
        waiting_for = graph.num_inputs.copy()
        next_up = list(np.flatnonzero(waiting_for == 0))
        while next_up:
            m = next_up.pop()
            is_join = graph.source[m] == graph.destination[m]
            takes_s = 0.0 if is_join else self.message_s + graph.size_bytes[m] / self.bytes_per_s
            received[m] = ready[m] + takes_s
            for s in graph.successors[graph.successor_start[m] : graph.successor_start[m + 1]]:
                ready[s] = max(ready[s], received[m] + graph.delay_s[s])
                waiting_for[s] -= 1
                if waiting_for[s] == 0:
                    next_up.append(s)
        assert not np.isnan(received).any(), "some messages wait for each other in a circle"
        results = MessageResults(
            ready_s=ready,
            started_s=ready.copy(),
            received_s=received,
            acknowledged_s=received + self.acknowledgement_s,
            delivered_bytes=graph.size_bytes.astype(np.float64),
            outcome=np.zeros(n, np.int8),
            num_pieces=np.where(graph.source != graph.destination, 1, 0).astype(np.int16),
        )
        transfer = FixedTimeTransfer(self.clock, results)
        self.clock.process(self._finish(transfer, received.max()))
        return transfer

    def _finish(self, transfer: FixedTimeTransfer, time_s: float):
        yield self.clock.timeout(time_s - self.clock.now)
        if not transfer.done.triggered:
            transfer.done.succeed()


@pytest.fixture
def clock() -> simpy.Environment:
    return simpy.Environment()


@pytest.fixture
def fixed_time_fabric(clock) -> FixedTimeFabric:
    return FixedTimeFabric(clock)
