"""What it takes to bring an adapter from host memory into the expert pool, and to take it out again.

The pool's physical pages are made before serving starts, since the cache gets what they leave; so a load maps pages
that are there (`kernels.expert_pool` keeps those of evicted adapters), allows access to each stretch, and copies the
experts of each linear layer from pinned host memory:

    load  = sum over stretches of  map(pages) + allow(pages) + copy(bytes)
    evict = sum over stretches of  unmap(pages)

A padded pool has memory behind every slot: a load is its copies, an eviction nothing.

Against a real load and eviction on an H200 (`kernels.bench`): `tests/unit/models/test_loading.py`.
Leaves out: reading an adapter from disk; waiting for the device before pages are unmapped; a page at the end of an
adapter's slots that a neighbour has mapped already, which counts as mapped anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.adapters import Adapter, Deployment, stretches
from models.architecture import Architecture
from models.cost.fit import Fit, fit_of
from models.cost.provenance import Source
from models.cost.table import CostTable
from models.hardware import Accelerator, Precision

__all__ = ["AdapterLoad", "LoadTimes", "adapter_loads"]

PAGE_CALLS_S = {"map": 3.2e-6, "allow": 34.1e-6, "unmap": 26.0e-6}
"""Of one page of 2 MiB: a 512th of what 512 take on an H200 under driver 580 (`calibration/data/h200.parquet`). For any
accelerator that has no rows of its own, since it is the driver's time."""


@dataclass(frozen=True)
class LoadTimes:
    """Times of page calls and of copies from pinned host memory.

    calls    of each page call over pages; of one that is not there PAGE_CALLS_S
    copies   over bytes; None: the accelerator's link, as its preset or the scenario has it
    """

    accelerator: Accelerator
    calls: dict[str, Fit]
    copies: Fit | None

    @classmethod
    def of(cls, accelerator: Accelerator, table: CostTable | None) -> LoadTimes:
        if table is None:
            return cls(accelerator, {}, None)
        fits = {name: fit_of(table.of("page_call", name=name), ["pages"]) for name in PAGE_CALLS_S}
        copies = fit_of(table.of("host_copy"), ["size_bytes"])
        return cls(accelerator, {name: fit for name, fit in fits.items() if fit is not None}, copies)

    def page_call_s(self, name: str, pages: ArrayLike) -> NDArray[np.float64]:
        """Seconds of the call for each stretch of so many pages; 0 for none."""
        pages = np.asarray(pages, np.float64)
        fit = self.calls.get(name)
        if fit is None:
            return pages * PAGE_CALLS_S[name]
        return np.where(pages > 0, fit.at(pages[:, None], lambda at: at[:, 0]).seconds, 0.0)

    def copy_s(self, size_bytes: ArrayLike) -> NDArray[np.float64]:
        """Seconds of a copy of each size to the device; 0 for none."""
        sizes = np.asarray(size_bytes, np.float64)
        if self.copies is None:
            seconds = self.accelerator.pcie_copy_s + sizes / self.accelerator.pcie_bytes_per_s
        else:
            seconds = self.copies.at(sizes[:, None], lambda at: at[:, 0]).seconds
        return np.where(sizes > 0, seconds, 0.0)

    def source(self, deployment: Deployment) -> Source:
        """Of the times of a load as a whole: of a roofline where any part of it is."""
        is_measured = self.copies is not None and (deployment == "padded" or len(self.calls) == len(PAGE_CALLS_S))
        return Source.INTERPOLATED if is_measured else Source.ROOFLINE


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """One adapter on each rank: pages behind its slots, bytes in them, seconds to load and to evict it."""

    num_pages: int
    size_bytes: int
    load_s: float
    evict_s: float


def adapter_loads(
    architecture: Architecture,
    adapters: Sequence[Adapter],
    deployment: Deployment,
    room: int,
    times: LoadTimes,
    weights: Precision = "bf16",
    tensor: int = 1,
) -> list[AdapterLoad]:
    """Of each adapter, on each of `tensor` ranks, which load their shares at the same time.

    room: slots kept for each adapter in each layer
    Leaves out: ranks that share a link to the host.
    """
    loads = []
    for pages, sizes in stretches(architecture, adapters, room, weights, tensor):
        load_s, evict_s = float(times.copy_s(sizes).sum()), 0.0
        if deployment == "virtual":
            load_s += float(times.page_call_s("map", pages).sum() + times.page_call_s("allow", pages).sum())
            evict_s = float(times.page_call_s("unmap", pages).sum())
        loads.append(AdapterLoad(int(pages.sum()), int(sizes.sum()), load_s, evict_s))
    return loads
