"""Fine-tuned adapters of a mixture of experts, as ESFT makes them (arXiv 2407.01906): a few experts of each layer.

ExpertWeave (arXiv 2508.17624) serves many over one base, in one pool of slots; `models.pages` says what that takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from models.hardware import Precision
from models.pages import PAGE_BYTES, PageTable, Slots, slot_tensors

__all__ = [
    "Adapter",
    "Deployment",
    "adapter_bytes",
    "most_added",
    "most_tuned",
    "on_rank",
    "read_esft",
    "resident_bytes",
    "spread",
    "stretches",
]

Deployment = Literal["virtual", "padded"]
"""virtual: pages behind the slots that hold an expert; padded: memory for all slots."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """tuned: of each layer with experts, in order, the experts that the adapter has its own weights for."""

    name: str
    tuned: tuple[tuple[int, ...], ...]

    def check(self, architecture: Architecture) -> None:
        """Raises ValueError where it is another model's."""
        experts = architecture.experts
        if experts is None:
            raise ValueError(f"{architecture.name} is dense, adapters tune experts; leave `adapters` out")
        if len(self.tuned) != len(experts.layers):
            raise ValueError(
                f"adapter {self.name} has {len(self.tuned)} layers, {architecture.name} has {len(experts.layers)} with "
                "experts"
            )
        for layer, ids in zip(experts.layers, self.tuned, strict=True):
            if len(set(ids)) != len(ids) or not all(0 <= expert < experts.num_routed for expert in ids):
                raise ValueError(
                    f"adapter {self.name} tunes experts {list(ids)} of layer {layer}; {architecture.name} has 0 to "
                    f"{experts.num_routed - 1}, and each may stand there once"
                )


def read_esft(path: str | Path, name: str, architecture: Architecture) -> Adapter:
    """An adapter from ESFT's JSON: {"experts": {"layer": [ids]}}, by the layer's index in the model.

    A layer that is not named is not tuned. Raises ValueError for a file of another form or of another model.
    """
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
        layers = {int(layer): tuple(int(expert) for expert in ids) for layer, ids in read["experts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: is not of the form {{"experts": {{"1": [3, 14], …}}}}: {error!r}') from error
    with_experts = architecture.experts.layers if architecture.experts is not None else ()
    unknown = sorted(set(layers) - set(with_experts))
    if unknown and with_experts:
        raise ValueError(
            f"{path}: layer {unknown[0]} has no experts in {architecture.name}, whose layers {with_experts[0]} to "
            f"{with_experts[-1]} have"
        )
    adapter = Adapter(name, tuple(layers.get(layer, ()) for layer in with_experts))
    adapter.check(architecture)
    return adapter


def spread(name: str, most: int, mean: float, architecture: Architecture, rng: np.random.Generator) -> Adapter:
    """An adapter of which only the most and the mean of tuned experts per layer are known.

    The first layer has the most, the others share the rest as evenly as whole numbers can; which experts is drawn.
    Raises ValueError where there is no such adapter.
    """
    experts = architecture.experts
    if experts is None:
        raise ValueError(f"{architecture.name} is dense, adapters tune experts; leave `adapters` out")
    num_layers = len(experts.layers)
    left = round(mean * num_layers) - most
    if not 1 <= most <= experts.num_routed or not 0 <= left <= (num_layers - 1) * most:
        raise ValueError(
            f"adapter {name}: no {num_layers} layers of {experts.num_routed} experts have {most} tuned at most and "
            f"{mean:g} in the mean; take max from 1 to {experts.num_routed} and a mean from max / {num_layers} to max"
        )
    others, more = divmod(left, max(num_layers - 1, 1))
    counts = [most] + [others + (i < more) for i in range(num_layers - 1)]
    return Adapter(name, tuple(tuple(map(int, rng.permutation(experts.num_routed)[:n])) for n in counts))


def most_tuned(adapters: Sequence[Adapter]) -> int:
    """E_max: the most experts that any adapter tunes in any layer."""
    return max((len(ids) for adapter in adapters for ids in adapter.tuned), default=0)


def on_rank(adapters: Sequence[Adapter], num_experts: int, expert: int, rank: int) -> list[Adapter]:
    """What adapters have tuned of the experts on one of `expert` ranks, which hold equal groups of neighbours, by their
    number there."""
    per_rank = num_experts // expert
    first = rank * per_rank
    return [
        Adapter(one.name, tuple(tuple(e - first for e in ids if 0 <= e - first < per_rank) for ids in one.tuned))
        for one in adapters
    ]


def most_added(adapters: Sequence[Adapter], num_experts: int, expert: int) -> int:
    """Experts that adapters add to those of any of `expert` ranks in any layer, all together."""
    added = 0
    for rank in range(expert):
        here = on_rank(adapters, num_experts, expert, rank)
        added = max([added, *(sum(map(len, layer)) for layer in zip(*(one.tuned for one in here), strict=True))])
    return added


def adapter_bytes(
    architecture: Architecture,
    adapters: Sequence[Adapter],
    deployment: Deployment,
    room: int,
    weights: Precision = "bf16",
    tensor: int = 1,
    expert: int = 1,
) -> int:
    """Bytes on each of `tensor` accelerators, or on one of `expert` ranks, beyond the base model's: of mapped pages, or
    of all slots.

    room: E_max, slots kept for each adapter in each layer
    adapters: of a rank, where experts lie on several: `on_rank` says which are there
    A page that the base's experts end in is the base's; what it leaves empty counts here.
    Raises ValueError for an adapter that tunes more than `room` experts in a layer.
    """
    experts = architecture.experts
    assert experts is not None, "adapters have been checked"
    if most_tuned(adapters) > room:
        raise ValueError(f"an adapter tunes {most_tuned(adapters)} experts in one layer, above most_tuned, {room}")
    num_base = experts.num_routed // expert
    tensors = slot_tensors(architecture, len(adapters), room, weights, tensor, expert)
    base = sum(num_base * t.slot_bytes for t in tensors)
    if deployment == "padded":
        return sum(t.num_slots * t.slot_bytes for t in tensors) - base
    table = PageTable(tensors)
    table.load("the base", [Slots(0, num_base) for _ in tensors])
    for i, adapter in enumerate(adapters):
        first = num_base + i * room
        table.load(f"adapter {i}", [Slots(first, len(ids)) for ids in adapter.tuned for _ in ("up", "down")])
    return table.num_mapped * PAGE_BYTES - base


def stretches(
    architecture: Architecture, adapters: Sequence[Adapter], room: int, weights: Precision = "bf16", tensor: int = 1
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each adapter the stretches of its experts, one in each tensor of the pool: ([tensors] pages, [tensors] bytes).

    Adapter i's slots begin at num_routed + i · room. A page that a neighbour ends in as well counts for both.
    """
    experts = architecture.experts
    assert experts is not None, "adapters have been checked"
    tensors = slot_tensors(architecture, len(adapters), room, weights, tensor)
    found = []
    for i, adapter in enumerate(adapters):
        slots = [Slots(experts.num_routed + i * room, len(ids)) for ids in adapter.tuned for _ in ("up", "down")]
        pages = [len(t.pages(own)) for t, own in zip(tensors, slots, strict=True)]
        sizes = [own.count * t.slot_bytes for t, own in zip(tensors, slots, strict=True)]
        found.append((np.array(pages, np.int64), np.array(sizes, np.int64)))
    return found


def resident_bytes(
    architecture: Architecture, num_pages: Sequence[int], deployment: Deployment, room: int, resident: int | None,
    pool_pages: int = 0, weights: Precision = "bf16", tensor: int = 1,
) -> int:  # fmt: skip
    """The same where adapters come and go: what is set aside for those that may be there at once.

        padded     resident · room slots in each layer
        virtual    the pages of the `resident` adapters that take most, or, where resident is None, of `pool_pages`

    and the rest of a page that the base's experts end in.
    num_pages: that each adapter takes (the sums of its `stretches`)
    """
    experts = architecture.experts
    assert experts is not None, "adapters have been checked"
    tensors = slot_tensors(architecture, 0, room, weights, tensor)
    if deployment == "padded":
        assert resident is not None, "a padded pool has places, not pages"
        return sum(resident * room * t.slot_bytes for t in tensors)
    pages = pool_pages if resident is None else sum(sorted(num_pages)[-resident:])
    of_base = sum(t.num_pages * PAGE_BYTES - experts.num_routed * t.slot_bytes for t in tensors)
    return pages * PAGE_BYTES + of_base
