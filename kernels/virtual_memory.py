"""CUDA's virtual memory management: ranges of addresses, and physical pages to put behind them.

A thin layer over the driver (CUDA driver API, section Virtual Memory Management) that raises what it refuses. Its
handles live in the device's primary context, which torch uses too.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from models.pages import PAGE_BYTES


class Memory(Protocol):
    """What a pool needs of a device. Addresses and sizes are bytes, whole pages."""

    device: torch.device

    def reserve(self, size_bytes: int) -> int: ...
    def unreserve(self, address: int, size_bytes: int) -> None: ...
    def create(self) -> Any: ...
    def release(self, handle: Any) -> None: ...
    def map(self, address: int, handle: Any) -> None: ...
    def unmap(self, address: int) -> None: ...
    def allow(self, address: int, size_bytes: int) -> None: ...
    def synchronize(self) -> None: ...
    def make_room(self) -> None: ...


class DriverError(RuntimeError):
    """A call that the driver refused: its name and the error's."""


class OutOfDeviceMemory(MemoryError):
    """The device has no physical page left."""


class CudaMemory:
    """The memory of one GPU. The first one probes every call that follows, so that what fails does so at once."""

    def __init__(self, device: int = 0) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self.device = torch.device("cuda", device)
        torch.zeros(1, device=self.device)  # torch makes the primary context current
        self._prop = driver.CUmemAllocationProp()
        self._prop.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._prop.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._prop.location.id = device
        self._access = driver.CUmemAccessDesc()
        self._access.location = self._prop.location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        least = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        granularity = self._call("cuMemGetAllocationGranularity", self._prop, least)
        if PAGE_BYTES % granularity:
            raise DriverError(f"pages of {PAGE_BYTES} bytes are no multiple of the device's {granularity}")
        self._probe()

    def _probe(self) -> None:
        address = self.reserve(PAGE_BYTES)
        handle = self.create()
        self.map(address, handle)
        self.allow(address, PAGE_BYTES)
        self.unmap(address)
        self.release(handle)
        self.unreserve(address, PAGE_BYTES)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *found = getattr(self._driver, name)(*arguments)
        if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{name}: {self.device} has no page of {PAGE_BYTES} bytes left")
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise DriverError(f"{name}: {status.name}")
        return found[0] if found else None

    def reserve(self, size_bytes: int) -> int:
        """The first of so many addresses, with nothing behind them."""
        return int(self._call("cuMemAddressReserve", size_bytes, PAGE_BYTES, 0, 0))

    def unreserve(self, address: int, size_bytes: int) -> None:
        self._call("cuMemAddressFree", address, size_bytes)

    def create(self) -> Any:
        """A handle of a physical page. Raises OutOfDeviceMemory."""
        return self._call("cuMemCreate", PAGE_BYTES, self._prop, 0)

    def release(self, handle: Any) -> None:
        self._call("cuMemRelease", handle)

    def map(self, address: int, handle: Any) -> None:
        """Put the page behind the address; no access yet."""
        self._call("cuMemMap", address, PAGE_BYTES, 0, handle, 0)

    def unmap(self, address: int) -> None:
        """Take back what `map` put there: whole mappings only."""
        self._call("cuMemUnmap", address, PAGE_BYTES)

    def allow(self, address: int, size_bytes: int) -> None:
        """Let kernels read and write a stretch that is mapped without a gap."""
        self._call("cuMemSetAccess", address, size_bytes, [self._access], 1)

    def synchronize(self) -> None:
        """Wait until no kernel runs that may still use what is to be unmapped."""
        torch.cuda.synchronize(self.device)

    def make_room(self) -> None:
        """Give back what torch's allocator keeps in stock."""
        torch.cuda.empty_cache()
