"""The expert pool on a GPU: the same bits as a padded pool, no leak, nothing lost when memory runs out."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kernels.align import align
from kernels.expert_ffn import Tiles, expert_ffn, tiles_for
from kernels.expert_pool import ExpertPool, PaddedPool, write
from kernels.virtual_memory import CudaMemory, OutOfDeviceMemory
from models.pages import PAGE_BYTES, Slots

pytestmark = pytest.mark.gpu

HIDDEN, INNER, NUM_BASE, MOST_TUNED, NUM_ADAPTERS = 512, 1408, 16, 5, 3
SHAPES = [(2 * INNER, HIDDEN), (HIDDEN, INNER)]
NUM_SLOTS = NUM_BASE + NUM_ADAPTERS * MOST_TUNED
OWNERS = {"base": Slots(0, NUM_BASE), "a": Slots(NUM_BASE, 3), "c": Slots(NUM_BASE + 2 * MOST_TUNED, 5)}
"""Adapter b is never loaded: its slots have no memory."""
HELD = [slot for slots in OWNERS.values() for slot in range(slots.first, slots.first + slots.count)]


def fill(*pools):
    torch.manual_seed(1)
    for name, slots in OWNERS.items():
        for pool in pools:
            pool.load(name, [slots] * 2)
        for i, shape in enumerate(SHAPES):
            weights = (torch.randn(slots.count, *shape) / shape[1] ** 0.5).bfloat16().cuda()
            for pool in pools:
                write(pool, name, i, weights)


@pytest.fixture
def pool(cuda):
    pool = ExpertPool(CudaMemory(), NUM_SLOTS, SHAPES)
    yield pool
    torch.cuda.synchronize()
    pool.close()


def batch(num_tokens, top_k, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(num_tokens, HIDDEN, generator=generator, device="cuda").bfloat16()
    names = torch.tensor(HELD, device="cuda", dtype=torch.int32)
    order = torch.rand(num_tokens, len(HELD), generator=generator, device="cuda").argsort(1)[:, :top_k]
    weight = torch.rand(num_tokens, top_k, generator=generator, device="cuda").bfloat16()
    return x, names[order].contiguous(), weight


def feed_forward(pool, x, slots, weight, tiles: Tiles | None = None):
    tiles = tiles or tiles_for(slots.numel(), NUM_SLOTS)
    return expert_ffn(x, *pool.tensors, weight, align(slots, NUM_SLOTS, tiles.rows), tiles)


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 500, 3000])
def test_virtual_and_padded_pools_give_the_same_bits(pool, num_tokens):
    padded = PaddedPool(torch.device("cuda"), NUM_SLOTS, SHAPES)
    fill(pool, padded)
    arguments = batch(num_tokens, 4)
    assert torch.equal(feed_forward(pool, *arguments), feed_forward(padded, *arguments))


def test_a_replayed_graph_gives_the_same_bits(pool):
    fill(pool)
    x, slots, weight = batch(64, 4)
    expected = feed_forward(pool, x, slots, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = feed_forward(pool, x, slots, weight)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected)


def test_mappings_do_not_change_while_a_graph_is_captured(pool):
    fill(pool)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        pool.evict("a")


def test_another_adapter_leaves_no_trace(pool):
    """Loading, writing and evicting b beside them does not change a bit of what the others compute."""
    fill(pool)
    arguments = batch(200, 4)
    expected = feed_forward(pool, *arguments)
    pool.load("b", [Slots(NUM_BASE + MOST_TUNED, 4)] * 2)
    for i, shape in enumerate(SHAPES):
        write(pool, "b", i, torch.full((4, *shape), float("nan"), device="cuda", dtype=torch.bfloat16))
    assert torch.equal(feed_forward(pool, *arguments), expected)
    pool.evict("b")
    assert torch.equal(feed_forward(pool, *arguments), expected)


def test_cycles_of_loading_do_not_leak(pool):
    fill(pool)
    free, _ = torch.cuda.mem_get_info()
    for _ in range(20):
        pool.evict("a")
        pool.evict("c")
        pool.load("c", [OWNERS["c"]] * 2)
        pool.load("a", [OWNERS["a"]] * 2)
    assert torch.cuda.mem_get_info()[0] == free


def test_no_memory_halfway_changes_nothing(pool, monkeypatch):
    """The device refuses after two more pages."""
    fill(pool)
    arguments = batch(64, 4)
    expected = feed_forward(pool, *arguments)
    create, left = pool.memory.create, [2]

    def refuse():
        if left[0] == 0:
            raise OutOfDeviceMemory("none left")
        left[0] -= 1
        return create()

    monkeypatch.setattr(pool.memory, "create", refuse)
    mapped = pool.table.num_mapped
    slots = [Slots(NUM_BASE + MOST_TUNED, 5)] * 2
    assert sum(run.end - run.first for run in pool.table.unmapped_pages(slots)) > 2
    with pytest.raises(OutOfDeviceMemory):
        pool.load("b", slots)
    assert (pool.table.num_mapped, pool.num_free_handles) == (mapped, 2)
    assert torch.equal(feed_forward(pool, *arguments), expected)
    monkeypatch.undo()
    pool.load("b", slots)


def test_a_pool_as_large_as_the_device_is_refused_and_given_back(cuda):
    """Half of its pages lie beyond what the device has; what was made for the load is returned. The driver keeps books
    of its own the first time, so that the second is held against it."""
    free = []
    for _ in range(2):
        num_pages = 2 * torch.cuda.mem_get_info()[1] // PAGE_BYTES
        pool = ExpertPool(CudaMemory(), num_pages, [(PAGE_BYTES // 2,)])
        with pytest.raises(OutOfDeviceMemory):
            pool.load("all", [Slots(0, num_pages)])
        assert pool.table.num_mapped == 0
        pool.close()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[1] == free[0]


def test_unmapped_slots_cannot_be_read(cuda):
    """An access faults and ends the context, so another process tries."""
    program = """
        import torch
        from kernels.expert_pool import ExpertPool
        from kernels.virtual_memory import CudaMemory
        from models.pages import Slots
        pool = ExpertPool(CudaMemory(), 8, [(1024, 1024)])
        pool.load("base", [Slots(0, 2)])
        pool.tensors[0][:2].fill_(1.0)
        assert pool.tensors[0][1].sum().item() > 0
        print("mapped slots are there", flush=True)
        pool.tensors[0][4].float().sum().item()
        print("unmapped ones too", flush=True)
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "mapped slots are there\n"
    assert done.returncode != 0
    assert "illegal memory access" in done.stderr
