"""The order of those who wait, where it is not that of arrival."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from models.compiled import borrowing, inner_borrowing
from sim.serving.state import EngineState
from sim.serving.verbs import missing_tokens


@inner_borrowing
def comes_before(requests: NDArray[Any], a: int, b: int) -> bool:
    """By precedence, then arrival, then number."""
    first, second = requests[a], requests[b]
    if first.precedence != second.precedence:
        return first.precedence < second.precedence
    if first.arrival_s != second.arrival_s:
        return first.arrival_s < second.arrival_s
    return a < b


@inner_borrowing
def sink_head(state: EngineState) -> None:
    """Let the head of the line go back to its place in an ordered line."""
    counts, waiting, requests = state.counts[0], state.waiting, state.requests
    mask = waiting.size - 1
    place = counts.head
    request = waiting[place & mask]
    while place + 1 < counts.num_ordered and comes_before(requests, waiting[(place + 1) & mask], request):
        waiting[place & mask] = waiting[(place + 1) & mask]
        place += 1
    waiting[place & mask] = request


@borrowing
def order_line(state: EngineState) -> None:
    """Bring those who arrived since the last call to their places by precedence, then arrival."""
    counts, waiting, requests = state.counts[0], state.waiting, state.requests
    mask = waiting.size - 1
    for entry in range(max(counts.num_ordered, counts.head), counts.arrived):
        request = waiting[entry & mask]
        place = entry
        while place > counts.head and comes_before(requests, request, waiting[(place - 1) & mask]):
            waiting[place & mask] = waiting[(place - 1) & mask]
            place -= 1
        waiting[place & mask] = request
    counts.num_ordered = counts.arrived


@borrowing
def bring_shortest(state: EngineState) -> None:
    """Move to the head of the line the one with the fewest known tokens, cached ones included, the first of several.

    Who was preempted stays at the head.
    """
    counts = state.counts[0]
    mask = state.waiting.size - 1
    waiting, requests = state.waiting, state.requests
    if counts.arrived == counts.head or requests[waiting[counts.head & mask]].num_preemptions > 0:
        return
    shortest = counts.head
    fewest = missing_tokens(counts, requests[waiting[shortest & mask]])
    for place in range(counts.head + 1, counts.arrived):
        num_tokens = missing_tokens(counts, requests[waiting[place & mask]])
        if num_tokens < fewest:
            shortest, fewest = place, num_tokens
    request = waiting[shortest & mask]
    for place in range(shortest, counts.head, -1):
        waiting[place & mask] = waiting[(place - 1) & mask]
    waiting[counts.head & mask] = request
