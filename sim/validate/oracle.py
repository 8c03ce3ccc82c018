"""An independent max-min solver: exact fractions over plain dictionaries, written from the definition.

Shares nothing with `sim.fabric.maxmin`; far too slow for a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

Flow = Mapping[str, Fraction]
"""Link -> share of the flow's rate that crosses it."""


def max_min_rates(
    capacity: Mapping[str, Fraction], flows: Sequence[Flow], weight: Sequence[Fraction]
) -> list[Fraction]:
    """Weighted max-min fair rates.

    All rates rise together as weight * level until a link is full; flows that cross it stop there, the rest rise on.
    Raises ValueError for a flow that crosses no link: its rate has no bound.
    """
    if not all(flows):
        raise ValueError("a flow crosses no link, so its rate has no bound")
    crossing: dict[str, list[int]] = {}
    for i, flow in enumerate(flows):
        for link in flow:
            crossing.setdefault(link, []).append(i)
    room = {link: Fraction(capacity[link]) for link in crossing}
    rising = {
        link: sum((weight[i] * flows[i][link] for i in members), Fraction(0)) for link, members in crossing.items()
    }
    rate: dict[int, Fraction] = {}
    while len(rate) < len(flows):
        fills_at = {link: room[link] / rising[link] for link in crossing if rising[link] > 0}
        level = min(fills_at.values())
        for link in [link for link, at in fills_at.items() if at == level]:
            for i in crossing[link]:
                if i not in rate:
                    rate[i] = level * weight[i]
                    for crossed, share in flows[i].items():
                        room[crossed] -= share * rate[i]
                        rising[crossed] -= share * weight[i]
    return [rate[i] for i in range(len(flows))]


def broken_laws(
    capacity: Mapping[str, float],
    flows: Sequence[Flow],
    weight: Sequence[float],
    rates: Sequence[float],
    tolerance: float = 1e-9,
) -> list[str]:
    """What keeps `rates` from being max-min fair, in words; empty when they are.

    Rates are weighted max-min fair if and only if no link is over its capacity and every flow crosses a full link
    on which no other flow has more per weight (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2).
    """
    load = dict.fromkeys(capacity, 0.0)
    highest = dict.fromkeys(capacity, 0.0)
    for flow, w, rate in zip(flows, weight, rates, strict=True):
        for link, share in flow.items():
            load[link] += float(share) * rate
            highest[link] = max(highest[link], rate / w)
    broken = [
        f"{link} carries {load[link]} of {capacity[link]}"
        for link in capacity
        if load[link] > capacity[link] * (1 + tolerance)
    ]
    for i, (flow, w, rate) in enumerate(zip(flows, weight, rates, strict=True)):
        has_bottleneck = any(
            load[link] >= capacity[link] * (1 - tolerance) and rate / w >= highest[link] * (1 - tolerance)
            for link in flow
        )
        if not has_bottleneck:
            broken.append(f"flow {i} at {rate} has no bottleneck")
    return broken
