"""The page table of the expert pool: which physical pages carry which experts' weights, and for whom.

A pool holds, for each layer and each linear layer in it, one virtual tensor of equal slots, contiguous in virtual
addresses (ExpertWeave, arXiv 2508.17624). Only slots that hold an expert need physical pages behind them. A page that
the end of one owner's slots shares with the start of another's is mapped once and counted for both. Pure bookkeeping:
`kernels.expert_pool` maps what this table says; what a pool takes can be counted without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.architecture import Architecture
from models.hardware import PRECISIONS, Precision

__all__ = [
    "PAGE_BYTES",
    "OutOfPages",
    "PageRun",
    "PageTable",
    "SlotTensor",
    "Slots",
    "expert_map",
    "padding_overhead",
    "slot_tensors",
]

PAGE_BYTES = 2 * 2**20
"""As ExpertWeave has it; `kernels.virtual_memory` asks the device whether its granularity divides this."""


class OutOfPages(MemoryError):
    """The device has too few free pages for what is to be loaded; nothing has changed."""


@dataclass(frozen=True, slots=True)
class SlotTensor:
    """One virtual tensor [num_slots, ...] with `slot_bytes` for each slot."""

    num_slots: int
    slot_bytes: int

    def pages(self, slots: Slots) -> range:
        """Pages that hold a byte of these slots."""
        if slots.count == 0:
            return range(0)
        first, end = slots.first * self.slot_bytes, (slots.first + slots.count) * self.slot_bytes
        return range(first // PAGE_BYTES, -(-end // PAGE_BYTES))

    @property
    def num_pages(self) -> int:
        """Of the whole range of virtual addresses."""
        return -(-self.num_slots * self.slot_bytes // PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Slots:
    """Neighbouring slots of a tensor."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class PageRun:
    """Neighbouring pages [first, end) of a tensor."""

    tensor: int
    first: int
    end: int


class PageTable:
    """Which pages are mapped, and for how many owners. An owner is the base model or an adapter.

    num_pages  physical pages of the device; None: without limit
    """

    def __init__(self, tensors: Sequence[SlotTensor], num_pages: int | None = None) -> None:
        self.tensors = tuple(tensors)
        self.num_pages = num_pages
        self._users = [np.zeros(tensor.num_pages, np.int32) for tensor in self.tensors]
        self._is_taken = [np.zeros(tensor.num_slots, np.bool_) for tensor in self.tensors]
        self._slots: dict[str, tuple[Slots, ...]] = {}

    @property
    def slots(self) -> Mapping[str, tuple[Slots, ...]]:
        """Of each owner, the slots that it holds in each tensor."""
        return self._slots

    def users(self, tensor: int) -> NDArray[np.int32]:
        """[pages] owners that have a byte in each page of the tensor; 0: not mapped."""
        return self._users[tensor].copy()

    @property
    def num_mapped(self) -> int:
        """Physical pages in use."""
        return sum(int(np.count_nonzero(users)) for users in self._users)

    @property
    def num_shared(self) -> int:
        """Those in use by several owners."""
        return sum(int(np.count_nonzero(users > 1)) for users in self._users)

    @property
    def held_bytes(self) -> int:
        """Bytes of the slots that owners hold."""
        return sum(
            slots.count * tensor.slot_bytes
            for held in self._slots.values()
            for slots, tensor in zip(held, self.tensors, strict=True)
        )

    @property
    def wasted_bytes(self) -> int:
        """Bytes of mapped pages that no owner's slots fill."""
        return self.num_mapped * PAGE_BYTES - self.held_bytes

    def unmapped_pages(self, slots: Sequence[Slots]) -> list[PageRun]:
        """Pages behind these slots, one entry of `slots` per tensor, that nobody uses."""
        runs = []
        for i, (tensor, users) in enumerate(zip(self.tensors, self._users, strict=True)):
            pages = tensor.pages(slots[i])
            runs += _runs(i, pages, users[pages.start : pages.stop] == 0)
        return runs

    def load(self, owner: str, slots: Sequence[Slots]) -> list[PageRun]:
        """Give the owner these slots, one entry per tensor; returns the pages that are to be mapped for it.

        Raises ValueError for an owner that is there already, and for slots outside a tensor or held by another;
        OutOfPages when the device has not so many free pages. Nothing has changed then.
        """
        self._check(owner, slots)
        runs = self.unmapped_pages(slots)
        needed = sum(run.end - run.first for run in runs)
        if self.num_pages is not None and needed > self.num_pages - self.num_mapped:
            raise OutOfPages(
                f"{owner} needs {needed} pages of {PAGE_BYTES} bytes, {self.num_pages - self.num_mapped} of "
                f"{self.num_pages} are free; evict {' or '.join(self._slots) or 'nothing: the device is too small'}"
            )
        self._count(slots, 1)
        self._slots[owner] = tuple(slots)
        return runs

    def evict(self, owner: str) -> list[PageRun]:
        """Take the owner's slots back; returns the pages that nobody uses any more, to be unmapped.

        Raises KeyError for an owner that is not there.
        """
        slots = self._slots.pop(owner)
        self._count(slots, -1)
        return self.unmapped_pages(slots)

    def _count(self, slots: Sequence[Slots], change: int) -> None:
        for i, tensor in enumerate(self.tensors):
            pages = tensor.pages(slots[i])
            self._users[i][pages.start : pages.stop] += change
            self._is_taken[i][slots[i].first : slots[i].first + slots[i].count] = change > 0

    def _check(self, owner: str, slots: Sequence[Slots]) -> None:
        if owner in self._slots:
            raise ValueError(f"{owner} is loaded already; evict it first")
        if len(slots) != len(self.tensors):
            raise ValueError(f"{owner}: slots for {len(slots)} tensors, the pool has {len(self.tensors)}")
        for i, (tensor, taken) in enumerate(zip(self.tensors, self._is_taken, strict=True)):
            first, end = slots[i].first, slots[i].first + slots[i].count
            if not 0 <= first <= end <= tensor.num_slots:
                raise ValueError(f"{owner}: slots {first} to {end - 1} of tensor {i}, which has {tensor.num_slots}")
            if taken[first:end].any():
                held = first + int(np.argmax(taken[first:end]))
                raise ValueError(f"{owner}: slot {held} of tensor {i} is held by another")


def _runs(tensor: int, pages: range, is_in: NDArray[np.bool_]) -> list[PageRun]:
    """The stretches of `pages` for which is_in holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in, [False]]).astype(np.int8)))
    return [
        PageRun(tensor, pages.start + int(first), pages.start + int(end))
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def slot_tensors(
    architecture: Architecture, num_adapters: int, most_tuned: int, weights: Precision = "bf16", tensor: int = 1,
    expert: int = 1,
) -> list[SlotTensor]:  # fmt: skip
    """The pool's virtual tensors on one of `tensor`, or of `expert`, ranks: of each layer with experts, gate and up
    together, then down.

    Each has num_routed / expert + num_adapters · most_tuned slots: the base's, then most_tuned for each adapter.
    Raises ValueError for a model without experts.
    """
    experts = architecture.experts
    if experts is None:
        raise ValueError(f"{architecture.name} has no experts to pool")
    num_slots = experts.num_routed // expert + num_adapters * most_tuned
    ways = 1 if expert > 1 else tensor  # experts over ranks are whole ones
    matrix_bytes = architecture.hidden_size * experts.ffn_size // ways * PRECISIONS[weights]
    up = (architecture.num_ffn_matrices - 1) * matrix_bytes
    return [SlotTensor(num_slots, size) for _ in experts.layers for size in (up, matrix_bytes)]


def expert_map(tuned: Sequence[Sequence[int]], num_experts: int, most_tuned: int) -> NDArray[np.int32]:
    """[adapters, experts] slot that serves each expert of one layer for each adapter's tokens.

    The expert itself where the adapter leaves it as it is; else num_experts + i · most_tuned + δ for the adapter's
    δ-th tuned expert, in order of number.
    tuned: of each adapter, the experts of this layer that it has tuned.
    Raises ValueError for an expert that is not there or named twice, and for more than most_tuned of them.
    """
    slots = np.tile(np.arange(num_experts, dtype=np.int32), (len(tuned), 1))
    for i, names in enumerate(tuned):
        if len(set(names)) != len(names) or not all(0 <= expert < num_experts for expert in names):
            raise ValueError(f"adapter {i} tunes experts {list(names)}: each of 0 to {num_experts - 1} once at most")
        if len(names) > most_tuned:
            raise ValueError(f"adapter {i} tunes {len(names)} experts, the pool has room for {most_tuned}")
        slots[i, sorted(names)] = num_experts + i * most_tuned + np.arange(len(names))
    return slots


def padding_overhead(num_tuned: ArrayLike, num_experts: int, most_tuned: int | None = None) -> float:
    """F_mem: slots of a padded pool over slots that hold an expert:  L (M + N E_max) / sum_l (M + sum_i e_i,l)

    num_tuned: e, [adapters, layers]; most_tuned: E_max, by default the most of any adapter and layer.
    """
    tuned = np.asarray(num_tuned)
    num_adapters, num_layers = tuned.shape
    most = int(tuned.max(initial=0)) if most_tuned is None else most_tuned
    return num_layers * (num_experts + num_adapters * most) / (num_layers * num_experts + int(tuned.sum()))
