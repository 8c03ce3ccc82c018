"""The expert pool: one tensor of slots per linear layer, with memory only behind the slots that hold an expert.

`ExpertPool` lives in reserved addresses; loading an adapter maps the pages that `models.pages.PageTable` names,
evicting it unmaps those that nobody shares. Free pages keep their handles, for the next adapter. `PaddedPool` is its
twin in plain tensors, with memory behind every slot.

Nothing may touch a whole tensor of the pool (print, sum, clone, zero_): what is not mapped is an illegal access, which
ends the CUDA context. Left out: several devices; loading while a graph is captured, which is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.dlpack import tensor_at
from kernels.virtual_memory import Memory
from models.pages import PAGE_BYTES, PageRun, PageTable, Slots, SlotTensor


class ExpertPool:
    """Virtual tensors [num_slots, *shape], one for each entry of `shapes`.

    shapes     of one slot, for each tensor
    num_pages  physical pages that it may take; None: what the device has
    """

    def __init__(
        self,
        memory: Memory,
        num_slots: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype = torch.bfloat16,
        num_pages: int | None = None,
    ) -> None:
        self.memory = memory
        self.table = PageTable(_slot_tensors(num_slots, shapes, dtype), num_pages)
        self._free: list[Any] = []
        self._handles: dict[int, Any] = {}  # by the address of the page
        self._addresses: list[int] = []
        self.tensors: list[Tensor] = []
        for tensor, shape in zip(self.table.tensors, shapes, strict=True):
            address = memory.reserve(tensor.num_pages * PAGE_BYTES)
            self._addresses.append(address)
            self.tensors.append(tensor_at(address, (num_slots, *shape), dtype, memory.device))

    @property
    def num_free_handles(self) -> int:
        """Physical pages that belong to the pool and are behind no address."""
        return len(self._free)

    def load(self, owner: str, slots: Sequence[Slots]) -> None:
        """Put memory behind the owner's slots, one entry for each tensor. What is in them is not said.

        Raises what PageTable.load does, and OutOfDeviceMemory; nothing has changed then. RuntimeError while a graph is
        captured.
        """
        self._refuse_capture("load")
        runs = self.table.load(owner, slots)
        mapped: list[int] = []
        try:
            self._take_handles(sum(run.end - run.first for run in runs))
            for run in runs:
                for page in range(run.first, run.end):
                    address = self._addresses[run.tensor] + page * PAGE_BYTES
                    self.memory.map(address, self._free[-1])
                    self._handles[address] = self._free.pop()
                    mapped.append(address)
                first = self._addresses[run.tensor] + run.first * PAGE_BYTES
                self.memory.allow(first, (run.end - run.first) * PAGE_BYTES)
        except BaseException:
            for address in mapped:
                self._unmap(address)
            self.table.evict(owner)
            raise

    def evict(self, owner: str) -> None:
        """Take the memory from behind slots of the owner's that share no page with another's. Waits for the device.

        Raises KeyError for an owner that is not there.
        """
        self._refuse_capture("evict")
        self.memory.synchronize()
        for run in self.table.evict(owner):
            for address in self._pages(run):
                self._unmap(address)

    def trim(self) -> None:
        """Give free pages back to the device."""
        while self._free:
            self.memory.release(self._free[-1])
            self._free.pop()

    def close(self) -> None:
        """Give everything back. The pool's tensors must not be used any more."""
        for owner in list(self.table.slots):
            self.evict(owner)
        self.trim()
        self.tensors.clear()
        for address, tensor in zip(self._addresses, self.table.tensors, strict=True):
            self.memory.unreserve(address, tensor.num_pages * PAGE_BYTES)
        self._addresses.clear()

    def _pages(self, run: PageRun) -> list[int]:
        return [self._addresses[run.tensor] + page * PAGE_BYTES for page in range(run.first, run.end)]

    def _take_handles(self, count: int) -> None:
        """Have so many free handles; those made for a load that fails stay for the next."""
        if len(self._free) >= count:
            return
        self.memory.make_room()
        while len(self._free) < count:
            self._free.append(self.memory.create())

    def _unmap(self, address: int) -> None:
        self.memory.unmap(address)
        self._free.append(self._handles.pop(address))

    def _refuse_capture(self, what: str) -> None:
        if self.memory.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{what}: mappings cannot change while a CUDA graph is captured")


class PaddedPool:
    """The same slots in plain tensors: memory behind all of them, from the start."""

    def __init__(
        self, device: torch.device, num_slots: int, shapes: Sequence[tuple[int, ...]], dtype=torch.bfloat16
    ) -> None:
        self.table = PageTable(_slot_tensors(num_slots, shapes, dtype))
        self.tensors = [torch.empty((num_slots, *shape), dtype=dtype, device=device) for shape in shapes]

    def load(self, owner: str, slots: Sequence[Slots]) -> None:
        """Keep the books."""
        self.table.load(owner, slots)

    def evict(self, owner: str) -> None:
        """Keep the books."""
        self.table.evict(owner)


def write(pool: ExpertPool | PaddedPool, owner: str, tensor: int, weights: Tensor) -> None:
    """Copy weights [count, *shape] into the owner's slots of one tensor, on the current stream."""
    slots = pool.table.slots[owner][tensor]
    pool.tensors[tensor][slots.first : slots.first + slots.count].copy_(weights, non_blocking=True)


def _slot_tensors(num_slots: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[SlotTensor]:
    sizes = [torch.Size(shape).numel() * dtype.itemsize for shape in shapes]
    return [SlotTensor(num_slots, size) for size in sizes]
