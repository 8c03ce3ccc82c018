"""The paged KV cache of one replica: which request holds which block, as arrays and compiled functions.

A block stores the keys and values of `block_size` consecutive tokens of one request. A request's blocks form
a chain in token order, so a block can be found, shared or freed by walking it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

NOBODY = -1
"""Owner of a free block."""
END = -1
"""What follows the last block of a chain."""

BLOCK = np.dtype([("owner", "i4"), ("next", "i4")], align=True)
CHAIN = np.dtype([("first", "i4"), ("last", "i4"), ("num_blocks", "i4")], align=True)
KV_COUNTS = np.dtype([("num_free", "i8"), ("num_blocks", "i8"), ("block_size", "i8")], align=True)


class KVCacheError(RuntimeError):
    """A law of the cache does not hold: the text names the block and who claims it."""


class KVCache(NamedTuple):
    """Blocks of one replica.

    blocks   [num_blocks] BLOCK: the request that owns the block, and the next block of its chain
    free     [num_blocks] a stack of free block ids; the first num_free entries are valid
    chains   [num_requests] CHAIN: first and last block and number of blocks of each request. Replicas may
             share this array, because a request is served by one of them.
    counts   [1] KV_COUNTS
    """

    blocks: NDArray[Any]
    free: NDArray[np.int32]
    chains: NDArray[Any]
    counts: NDArray[Any]


def new_chains(num_requests: int) -> NDArray[Any]:
    """Chains of requests that hold nothing yet."""
    return np.array([(END, END, 0)], dtype=CHAIN).repeat(num_requests)


def new_kv_cache(num_blocks: int, block_size: int, chains: NDArray[Any]) -> KVCache:
    """An empty cache. Raises ValueError when num_blocks or block_size is below 1."""
    if num_blocks < 1 or block_size < 1:
        raise ValueError(f"a KV cache needs blocks: got {num_blocks} blocks of {block_size} tokens")
    blocks = np.array([(NOBODY, END)], dtype=BLOCK).repeat(num_blocks)
    free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
    return KVCache(blocks, free, chains, np.array([(num_blocks, num_blocks, block_size)], dtype=KV_COUNTS))


@njit(cache=True)
def blocks_for(cache: KVCache, num_tokens: int) -> int:
    """ceil(num_tokens / block_size)."""
    block_size = cache.counts[0].block_size
    return (num_tokens + block_size - 1) // block_size


@njit(cache=True)
def can_hold(cache: KVCache, request: int, num_tokens: int) -> bool:
    """Whether the request's blocks, with the free ones added to them, hold this many tokens."""
    counts = cache.counts[0]
    # A product instead of a division: this runs for every sequence of every step.
    return num_tokens <= (cache.chains[request].num_blocks + counts.num_free) * counts.block_size


@njit(cache=True)
def hold(cache: KVCache, request: int, num_tokens: int) -> None:
    """Extend the request's chain until it holds num_tokens; `can_hold` must be true."""
    counts = cache.counts[0]
    chain = cache.chains[request]
    while chain.num_blocks * counts.block_size < num_tokens:
        counts.num_free -= 1
        block = cache.free[counts.num_free]
        cache.blocks[block].owner = request
        if chain.num_blocks == 0:
            chain.first = block
        else:
            cache.blocks[chain.last].next = block
        chain.last = block
        chain.num_blocks += 1


@njit(cache=True)
def release(cache: KVCache, request: int) -> None:
    """Free every block of the request."""
    counts = cache.counts[0]
    chain = cache.chains[request]
    block = chain.first
    while block != END:
        following = cache.blocks[block].next
        cache.blocks[block].owner = NOBODY
        cache.blocks[block].next = END
        cache.free[counts.num_free] = block
        counts.num_free += 1
        block = following
    chain.first = END
    chain.last = END
    chain.num_blocks = 0


def check_kv_cache(cache: KVCache) -> None:
    """Raise KVCacheError unless every block is free once, or in the chain of its owner once.

    Left out: chains of requests that other replicas serve, which own no block here.
    """
    counts = cache.counts[0]
    num_blocks = int(counts["num_blocks"])
    seen = np.zeros(num_blocks, dtype=np.int64)
    free = cache.free[: counts["num_free"]]
    np.add.at(seen, free, 1)
    if (cache.blocks["owner"][free] != NOBODY).any():
        raise KVCacheError("a free block has an owner")
    for request in np.unique(cache.blocks["owner"]):
        if request == NOBODY:
            continue
        chain = cache.chains[request]
        block, length = int(chain["first"]), 0
        while block != END and length <= num_blocks:
            if cache.blocks["owner"][block] != request:
                raise KVCacheError(f"block {block} in the chain of request {request} belongs to another")
            seen[block] += 1
            length += 1
            block = int(cache.blocks["next"][block])
        if length != chain["num_blocks"]:
            raise KVCacheError(f"request {request} counts {chain['num_blocks']} blocks, its chain {length}")
    if (seen != 1).any():
        block = int(np.argmax(seen != 1))
        raise KVCacheError(f"block {block} is held {seen[block]} times; each block is free or owned, once")
