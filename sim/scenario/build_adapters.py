"""From a workload's adapters to the memory they take and to when they are there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.adapters import Adapter, adapter_bytes, most_tuned, resident_bytes, stretches
from models.architecture import Architecture
from models.cost.loading import LoadTimes, adapter_loads
from models.cost.provenance import Source
from models.hardware import Precision
from models.pages import PAGE_BYTES
from sim.scenario.adapters import Adapters
from sim.serving.residency import Residency


def pool_room_bytes(
    adapters: Adapters, each: Sequence[Adapter], architecture: Architecture, weights: Precision, tensor: int
) -> int:
    """Bytes on each of `tensor` ranks beside the base's, for those that may be there at once.

    Raises ValueError for an adapter without room, in its slots or in the pool.
    """
    if adapters.deployment == "merged":
        return 0
    room = slots_kept(adapters, each)
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
