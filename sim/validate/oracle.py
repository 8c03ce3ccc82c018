"""An independent max-min solver: exact fractions over plain dictionaries, written from the definition.

Shares nothing with `sim.fabric.maxmin`; far too slow for a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction


def max_min_rates(
    capacity: Mapping[str, Fraction], flows: Sequence[Mapping[str, Fraction]], weight: Sequence[Fraction]
) -> list[Fraction]:
    """Weighted max-min fair rates.

    flows[i]  link -> share of the flow's rate that crosses it. All rates rise together as weight * level until a
    link is full; flows that cross it stop there, the rest rise on.
    """
    rate: list[Fraction | None] = [None] * len(flows)
    while any(r is None for r in rate):
        level: Fraction | None = None
        for link, total in capacity.items():
            used = sum((r * f.get(link, 0) for r, f in zip(rate, flows, strict=True) if r is not None), Fraction(0))
            rising = sum(
                (w * f.get(link, 0) for r, f, w in zip(rate, flows, weight, strict=True) if r is None), Fraction(0)
            )
            if rising > 0:
                at = (total - used) / rising
                level = at if level is None else min(level, at)
        if level is None:
            raise ValueError("a flow crosses no link, so its rate has no bound")
        full = {
            link
            for link, total in capacity.items()
            if sum(
                (
                    (r if r is not None else level * w) * f.get(link, 0)
                    for r, f, w in zip(rate, flows, weight, strict=True)
                ),
                Fraction(0),
            )
            == total
        }
        for i, flow in enumerate(flows):
            if rate[i] is None and any(link in full and share > 0 for link, share in flow.items()):
                rate[i] = level * weight[i]
    return [r for r in rate if r is not None]
