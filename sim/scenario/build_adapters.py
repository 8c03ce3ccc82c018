"""From a workload's adapters to the memory they take and to when they are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.adapters import Adapter, adapter_bytes, most_tuned, on_rank, resident_bytes, stretches
from models.architecture import Architecture
from models.cost.loading import LoadTimes, adapter_loads
from models.cost.provenance import Source
from models.hardware import Precision
from models.pages import PAGE_BYTES
from models.parallelism import Parallelism
from sim.scenario.adapters import Adapters
from sim.serving.residency import Residency


def pool_room_bytes(
    adapters: Adapters, each: Sequence[Adapter], architecture: Architecture, weights: Precision,
    parallelism: Parallelism,
) -> int:  # fmt: skip
    """Bytes on each rank beside the base's, for those that may be there at once; of several ranks of experts as on the
    fullest, because all have as many blocks.

    Raises ValueError for an adapter without room, in its slots or in the pool.
    """
    if adapters.deployment == "merged":
        return 0
    room, tensor = slots_kept(adapters, each), parallelism.tensor
    if parallelism.expert > 1:
        return _bytes_on_ranks(adapters, each, architecture, weights, parallelism.expert)
    whole = adapter_bytes(architecture, each, adapters.deployment, room, weights, tensor)
    if not adapters.is_on_demand:
        return whole
    pages = [int(own.sum()) for own, _ in stretches(architecture, each, room, weights, tensor)]
    pool_pages = (adapters.pool_bytes or 0) // PAGE_BYTES
    largest = int(np.argmax(pages))
    if adapters.pool_bytes is not None and pages[largest] > pool_pages:
        raise ValueError(
            f"a pool of {adapters.pool_bytes} B has no room for {each[largest].name}, which takes {pages[largest]} "
            f"pages of 2 MiB; give it {pages[largest] * PAGE_BYTES} B at least"
        )
    return resident_bytes(
        architecture, pages, adapters.deployment, room, adapters.resident, pool_pages, weights, tensor
    )


def _bytes_on_ranks(
    adapters: Adapters, each: Sequence[Adapter], architecture: Architecture, weights: Precision, expert: int
) -> int:
    """On the fullest of `expert` ranks. Slots kept for an adapter on a rank are the most that any has tuned there, or
    `most_tuned`, if the rank has so many experts."""
    assert architecture.experts is not None and adapters.deployment != "merged", "adapters have been checked"
    num_experts = architecture.experts.num_routed
    if most_tuned(each) > slots_kept(adapters, each):
        raise ValueError(
            f"an adapter tunes {most_tuned(each)} experts in one layer, above most_tuned, {adapters.most_tuned}"
        )
    shares = [on_rank(each, num_experts, expert, rank) for rank in range(expert)]
    room = max(most_tuned(share) for share in shares)
    if adapters.most_tuned is not None:
        room = min(adapters.most_tuned, num_experts // expert)
    return max(
        adapter_bytes(architecture, share, adapters.deployment, room, weights, expert=expert) for share in shares
    )


def slots_kept(adapters: Adapters, each: Sequence[Adapter]) -> int:
    """For each adapter in each layer."""
    return adapters.most_tuned or most_tuned(each)


def residency_of(
    adapters: Adapters, each: Sequence[Adapter], architecture: Architecture, times: LoadTimes,
    weights: Precision, tensor: int,
) -> tuple[Residency, Source]:  # fmt: skip
    """Adapters that come and go, and where their times are from."""
    assert adapters.deployment != "merged", "merged models are all there"
    loads = adapter_loads(
        architecture, each, adapters.deployment, slots_kept(adapters, each), times, weights, tensor
    )
    by_pages = adapters.pool_bytes is not None
    capacity = (adapters.pool_bytes or 0) // PAGE_BYTES if by_pages else adapters.resident
    assert capacity is not None, "one of them is given"
    found = Residency(
        capacity,
        tuple(load.num_pages if by_pages else 1 for load in loads),
        tuple(load.load_s for load in loads),
        tuple(load.evict_s for load in loads),
        adapters.loading == "overlapped",
    )
    return found, times.source(adapters.deployment)
