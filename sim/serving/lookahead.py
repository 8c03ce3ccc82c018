"""When an engine's next request ends, found without moving the engine: clients that react have to be told in time.

An engine runs in compiled code, ahead of the clock or behind it. Where the next request depends on the end of another,
it must not pass an end that nobody has seen. So the clock asks each engine for a moment before which none ends there,
goes to the earliest, and advances only that engine.
"""

from __future__ import annotations

import numpy as np

from models.compiled import borrowing
from models.cost.step import StepTable
from sim.serving.adapter_pool import next_ready_s
from sim.serving.leap import leap
from sim.serving.offload import next_fetch_s
from sim.serving.state import EngineState
from sim.serving.verbs import next_arrival_s, num_waiting


@borrowing
def next_end_s(state: EngineState, table: StepTable) -> float:
    """A moment before which no request of this engine ends, unless one is submitted or taken away until then; infinity
    where there is none to end.

    Exact where the batch in flight, or the steady batches that follow it, end a request; where drafts may do so, the
    end of that batch. Else the first moment after the next step whose successor is not known yet: advanced to it, the
    engine knows more.
    """
    counts, flight = state.counts[0], state.flight[0]
    if flight.batch_size == 0:
        formed_s = counts.now_s
        if counts.num_running == 0 and num_waiting(state) == 0:
            formed_s = max(formed_s, next_arrival_s(state))
        elif counts.is_asked and counts.first_fetch > 0:
            formed_s = max(formed_s, min(next_arrival_s(state), next_fetch_s(state)))
        elif counts.awaits_load:
            formed_s = max(formed_s, min(next_arrival_s(state), next_ready_s(state)))
        return np.nextafter(formed_s, np.inf)
    finish_s = flight.finish_s
    num_steps = 0
    if flight.is_steady and counts.is_formed == 0:
        num_steps = leap(state, table, np.inf, True)
        if num_steps > 0:
            finish_s = state.leap_finish_s[num_steps]
    in_flight, requests = state.in_flight, state.requests
    for i in range(flight.batch_size):
        if in_flight[i].samples != 0:
            row = requests[in_flight[i].request]
            if row.num_generated + num_steps + in_flight[i].samples >= row.num_output_tokens:
                return finish_s
    return np.nextafter(finish_s, np.inf)
