"""Message graphs into the core's rows, and results out of them: one pass over memory each."""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.fabric.fluid_state import NONE
from sim.fabric.messages import DELIVERED, PENDING, MessageGraph, MessageResults


def copy_in(state, first: int, first_edge: int, transfer: int, graph: MessageGraph) -> int:
    """Write a graph's messages to rows first …, its edges to successors first_edge …; returns the bytes to move."""
    columns = (
        graph.source, graph.destination, graph.size_bytes, graph.earliest_s, graph.delay_s, graph.num_inputs,
        graph.queue_pairs, graph.successor_start, graph.successors,
    )  # fmt: skip
    return _copy_in(state, first, first_edge, transfer, *(np.ascontiguousarray(column) for column in columns))


@njit(cache=True)
def _copy_in(
    state, first, first_edge, transfer, source, destination, size_bytes, earliest_s, delay_s, num_inputs,
    queue_pairs, successor_start, successors,
):  # fmt: skip
    messages, edges = state.messages, state.successors
    remote_bytes = 0
    for i in range(len(source)):
        message = messages[first + i]
        message.source = source[i]
        message.destination = destination[i]
        message.size_bytes = size_bytes[i]
        message.earliest_s = earliest_s[i]
        message.delay_s = delay_s[i]
        message.successor_start = successor_start[i] + first_edge
        message.successor_end = successor_start[i + 1] + first_edge
        message.waits_for = num_inputs[i]
        message.queue_pairs = queue_pairs[i]
        message.transfer = transfer
        message.input_s = 0.0
        message.ready_s = np.nan
        message.started_s = np.nan
        message.arrived_s = 0.0
        message.answered_s = 0.0
        message.delivered_bytes = 0.0
        message.pieces_left = 0
        message.unanswered = 0
        message.num_pieces = 0
        message.first_piece = NONE
        message.next_in_window = NONE
        message.first_watch = NONE
        message.outcome = PENDING
        if source[i] != destination[i]:
            remote_bytes += size_bytes[i]
    for e in range(len(successors)):
        edges[first_edge + e] = successors[e] + first
    return remote_bytes


def copy_out(state, first: int, count: int) -> MessageResults:
    """What is known of the messages in rows first … first + count - 1."""
    times = np.empty((5, count))
    outcome = np.empty(count, np.int8)
    num_pieces = np.empty(count, np.int16)
    _copy_out(state, first, times, outcome, num_pieces)
    ready_s, started_s, received_s, acknowledged_s, delivered_bytes = times
    return MessageResults(ready_s, started_s, received_s, acknowledged_s, delivered_bytes, outcome, num_pieces)


@njit(cache=True)
def _copy_out(state, first, times, outcome, num_pieces):
    messages = state.messages
    for i in range(len(outcome)):
        message = messages[first + i]
        times[0, i] = message.ready_s
        times[1, i] = message.started_s
        times[2, i] = message.arrived_s if message.outcome == DELIVERED else np.nan
        times[3, i] = message.answered_s if message.outcome == DELIVERED and message.unanswered == 0 else np.nan
        times[4, i] = message.delivered_bytes
        outcome[i] = message.outcome
        num_pieces[i] = message.num_pieces


@njit(cache=True)
def enter_in_ledger(state, first, count, closed_bytes):
    """Add the bytes of messages that have ended to closed_bytes [outcomes]; local copies cross no fabric."""
    messages = state.messages
    for i in range(first, first + count):
        message = messages[i]
        if message.source != message.destination:
            closed_bytes[DELIVERED] += message.delivered_bytes
            if message.outcome != DELIVERED:
                closed_bytes[message.outcome] += message.size_bytes - message.delivered_bytes
