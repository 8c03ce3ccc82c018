"""The expert pool over a device that counts: what is mapped, what is shared, what a failure leaves behind.

`CountingMemory` keeps the driver's rules and has real memory behind it, so that tensors over it can be read and
written; a GPU does the same in tests/gpu.
"""

from __future__ import annotations

import ctypes
import gc
import mmap

import pytest
import torch

from kernels import dlpack
from kernels.dlpack import tensor_at
from kernels.expert_pool import ExpertPool, PaddedPool, write
from kernels.virtual_memory import DriverError, OutOfDeviceMemory
from models.pages import PAGE_BYTES, OutOfPages, Slots


class CountingMemory:
    """Reserved addresses are ordinary memory; handles, mappings and access are rules to be kept."""

    device = torch.device("cpu")

    def __init__(self, num_pages: int = 1000, refuses_map_after: int | None = None) -> None:
        self.num_pages = num_pages
        self.refuses_map_after = refuses_map_after
        self.handles: set[int] = set()
        self.behind: dict[int, int] = {}
        self.allowed: set[int] = set()
        self.reserved: dict[int, mmap.mmap] = {}
        self.num_created = self.num_synchronized = 0

    def reserve(self, size_bytes):
        block = mmap.mmap(-1, size_bytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        self.reserved[address] = block
        return address

    def unreserve(self, address, size_bytes):
        assert not any(address <= page < address + size_bytes for page in self.behind)
        del self.reserved[address]

    def create(self):
        if len(self.handles) == self.num_pages:
            raise OutOfDeviceMemory("full")
        self.num_created += 1
        self.handles.add(self.num_created)
        return self.num_created

    def release(self, handle):
        assert handle not in self.behind.values()
        self.handles.remove(handle)

    def map(self, address, handle):
        if self.refuses_map_after == len(self.behind):
            raise DriverError("cuMemMap: refused")
        assert address not in self.behind
        assert handle in self.handles
        assert handle not in self.behind.values()
        self.behind[address] = handle

    def unmap(self, address):
        del self.behind[address]
        self.allowed.discard(address)

    def allow(self, address, size_bytes):
        pages = range(address, address + size_bytes, PAGE_BYTES)
        assert all(page in self.behind for page in pages)
        self.allowed.update(pages)

    def synchronize(self):
        self.num_synchronized += 1

    def make_room(self):
        pass


SHAPES = [(3, 512, 1024), (384, 1024)]
"""In bf16 a slot of the first has a page and a half, of the second three quarters of one."""


def pool_of(memory, **more):
    return ExpertPool(memory, 12, SHAPES, **more)


def base(pool):
    pool.load("base", [Slots(0, 5)] * 2)


def test_slots_have_the_sizes_that_the_tests_count_with():
    pool = pool_of(CountingMemory())
    assert [tensor.slot_bytes / PAGE_BYTES for tensor in pool.table.tensors] == [1.5, 0.375]
    assert [tuple(tensor.shape) for tensor in pool.tensors] == [(12, 3, 512, 1024), (12, 384, 1024)]


def test_only_pages_behind_slots_are_mapped():
    """Five slots of 1.5 pages are 7.5 pages, of 0.375 1.875: 8 and 2 pages. Two more slots: 3 and 0.75 pages, of
    which half a page and an eighth are there: 3 and 1 new ones."""
    memory = CountingMemory()
    pool = pool_of(memory)
    base(pool)
    assert len(memory.behind) == 8 + 2
    pool.load("a", [Slots(5, 2)] * 2)
    assert len(memory.behind) == 8 + 2 + 3 + 1
    assert memory.allowed == set(memory.behind)


def test_what_is_written_to_slots_is_there_for_both_owners_of_a_page():
    pool, padded = pool_of(CountingMemory()), PaddedPool(torch.device("cpu"), 12, SHAPES)
    torch.manual_seed(1)
    for i, shape in enumerate(SHAPES):
        weights = {"base": torch.randn(5, *shape).bfloat16(), "a": torch.randn(2, *shape).bfloat16()}
        for each in (pool, padded):
            if i == 0:
                base(each)
                each.load("a", [Slots(5, 2)] * 2)
            for owner, tensor in weights.items():
                write(each, owner, i, tensor)
        assert torch.equal(pool.tensors[i][:7], padded.tensors[i][:7])
        assert torch.equal(pool.tensors[i][5:7], weights["a"])


def test_eviction_keeps_what_neighbours_share():
    memory = CountingMemory()
    pool = pool_of(memory)
    base(pool)
    before = dict(memory.behind)
    pool.load("a", [Slots(5, 2)] * 2)
    pool.evict("a")
    assert memory.behind == before
    assert memory.num_synchronized == 1
    assert pool.num_free_handles == 4


def test_load_and_evict_make_no_more_handles():
    memory = CountingMemory()
    pool = pool_of(memory)
    base(pool)
    for _ in range(5):
        pool.load("a", [Slots(5, 3), Slots(5, 1)])
        pool.evict("a")
        pool.load("b", [Slots(6, 1), Slots(8, 2)])
        pool.evict("b")
    created = memory.num_created
    pool.load("a", [Slots(5, 3), Slots(5, 1)])
    assert memory.num_created == created
    pool.close()
    assert not memory.handles
    assert not memory.behind
    assert not memory.reserved


@pytest.mark.parametrize("num_pages", range(10, 14))
def test_no_memory_halfway_through_a_load_changes_nothing(num_pages):
    """The base takes 10 pages, the adapter 4 more; the device has fewer."""
    memory = CountingMemory(num_pages)
    pool = pool_of(memory)
    base(pool)
    before = dict(memory.behind)
    with pytest.raises(OutOfDeviceMemory):
        pool.load("a", [Slots(5, 2)] * 2)
    assert memory.behind == before
    assert list(pool.table.slots) == ["base"]
    assert len(memory.handles) == num_pages  # made, free, and there for a smaller adapter
    assert pool.num_free_handles == num_pages - 10
    pool.close()
    assert not memory.handles


@pytest.mark.parametrize("after", range(4))
def test_a_refused_mapping_changes_nothing(after):
    memory = CountingMemory()
    pool = pool_of(memory)
    base(pool)
    before = dict(memory.behind)
    memory.refuses_map_after = len(before) + after
    with pytest.raises(DriverError):
        pool.load("a", [Slots(5, 2)] * 2)
    assert memory.behind == before
    memory.refuses_map_after = None
    pool.load("a", [Slots(5, 2)] * 2)
    assert len(memory.behind) == 14


def test_a_limit_of_its_own():
    pool = pool_of(CountingMemory(), num_pages=12)
    base(pool)
    with pytest.raises(OutOfPages, match="a needs 4 pages of 2097152 bytes, 2 of 12 are free; evict base"):
        pool.load("a", [Slots(5, 2)] * 2)


def test_trim_gives_free_pages_back():
    memory = CountingMemory()
    pool = pool_of(memory)
    base(pool)
    pool.evict("base")
    pool.trim()
    assert not memory.handles


@pytest.mark.parametrize("dtype", list(dlpack.TYPES))
def test_a_tensor_over_an_address_shares_its_bytes(dtype):
    owner = torch.arange(24).to(dtype)
    gone = []
    view = tensor_at(owner.data_ptr(), (2, 3, 4), dtype, torch.device("cpu"), lambda: gone.append(True))
    assert view.dtype == dtype
    assert torch.equal(view, owner.view(2, 3, 4))
    part = view[1, 1:]
    part += 1
    assert torch.equal(owner[16:24], torch.arange(17, 25).to(dtype))
    del view
    gc.collect()
    assert not gone
    del part
    gc.collect()
    assert gone == [True]


def test_a_type_without_a_code():
    with pytest.raises(ValueError, match=r"torch\.complex64 is none of"):
        tensor_at(0, (1,), torch.complex64, torch.device("cpu"))
