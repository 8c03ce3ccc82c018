"""The paged KV cache of one replica: which request holds which blocks, as arrays and compiled functions.

A block stores the keys and values of `block_size` consecutive tokens. Several requests may hold a block whose content
they share. A block that nobody holds is free, and keeps its content until it is taken for another: free blocks wait in
line, those freed last at the end, and a request that asks for content in the line takes it out again. That is vLLM's
block pool (v1/core/block_pool.py); its order decides what is evicted.

Content has a number. Requests that share a prefix are given equal numbers for its blocks; all other blocks are a
request's own, which it finds again after a preemption if they are still there.

A request may lie in host memory instead: its blocks there are counted, not numbered, since nothing shares them.

Leaves out: of several blocks with one content only the one computed last is found; vLLM remembers all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import borrowing, inner_borrowing

NONE = -1
"""No block, no slot, no content."""

BLOCK = np.dtype([("content", "i8"), ("num_users", "i4"), ("before", "i4"), ("after", "i4")], align=True)
HOLDING = np.dtype([("slot", "i4"), ("num_blocks", "i4"), ("num_known", "i4"), ("num_host", "i4")], align=True)
KV_COUNTS = np.dtype(
    [("num_free", "i8"), ("num_blocks", "i8"), ("block_size", "i8"), ("first_free", "i8"), ("last_free", "i8"),
     ("num_free_slots", "i8"), ("is_caching", "i8"), ("num_host_blocks", "i8"), ("num_free_host", "i8")],
    align=True,
)  # fmt: skip


class KVCacheError(RuntimeError):
    """A law of the cache does not hold: the text names the block and who claims it."""


class Contents(NamedTuple):
    """What requests' blocks hold, shared by all replicas.

    start    [num_requests + 1] a request's numbers are entries start … of `number`; it may have none
    number   content of its leading full blocks, from 0; equal numbers are equal content after equal content
    """

    start: NDArray[np.int64]
    number: NDArray[np.int64]


class KVCache(NamedTuple):
    """Blocks of one replica.

    blocks    [num_blocks] BLOCK: its content, requests that hold it, and, of a free one, its neighbours in line
    holdings  [num_requests] HOLDING: row of `tables`, blocks held, how many of the row's entries had their
              content noted, and blocks in host memory. Replicas may share this array, because a request is served by
              one of them.
    tables    [num_slots, blocks of the longest request] the blocks of a request, in order of its tokens
    slots     [num_slots] a stack of free rows of `tables`; the first num_free_slots entries are valid
    contents  what requests' blocks hold
    block_of  [contents] the block with this content, NONE where there is none
    counts    [1] KV_COUNTS
    """

    blocks: NDArray[Any]
    holdings: NDArray[Any]
    tables: NDArray[np.int32]
    slots: NDArray[np.int32]
    contents: Contents
    block_of: NDArray[np.int32]
    counts: NDArray[Any]


def new_holdings(num_requests: int) -> NDArray[Any]:
    """Requests that hold nothing yet."""
    return np.array([(NONE, 0, 0, 0)], dtype=HOLDING).repeat(num_requests)


def no_contents(num_requests: int) -> Contents:
    """Requests that share nothing."""
    return Contents(np.zeros(num_requests + 1, np.int64), np.zeros(0, np.int64))


def new_kv_cache(
    num_blocks: int,
    block_size: int,
    holdings: NDArray[Any],
    *,
    num_slots: int,
    max_blocks: int,
    contents: Contents | None = None,
    is_caching: bool = False,
    num_host_blocks: int = 0,
) -> KVCache:
    """An empty cache.

    num_slots   requests that may hold blocks, or keep their table, at once
    max_blocks  that a request may hold
    is_caching  whether free blocks are found again by their content
    num_host_blocks    room in host memory for blocks of requests that are preempted
    Raises ValueError when num_blocks or block_size is below 1.
    """
    if num_blocks < 1 or block_size < 1:
        raise ValueError(f"a KV cache needs blocks: got {num_blocks} blocks of {block_size} tokens")
    blocks = np.zeros(num_blocks, dtype=BLOCK)
    blocks["content"] = NONE
    blocks["before"] = np.arange(num_blocks) - 1
    blocks["after"] = np.append(np.arange(1, num_blocks), NONE)
    known = no_contents(len(holdings)) if contents is None else contents
    return KVCache(
        blocks,
        holdings,
        np.full((num_slots, max_blocks), NONE, np.int32),
        np.arange(num_slots - 1, -1, -1, dtype=np.int32),
        known,
        np.full(int(known.number.max(initial=-1)) + 1, NONE, np.int32),
        np.array(
            [(num_blocks, num_blocks, block_size, 0, num_blocks - 1, num_slots, is_caching, num_host_blocks,
              num_host_blocks)],
            dtype=KV_COUNTS,
        ),
    )


@borrowing
def blocks_for(cache: KVCache, num_tokens: int) -> int:
    """ceil(num_tokens / block_size)."""
    block_size = cache.counts[0].block_size
    return (num_tokens + block_size - 1) // block_size


@borrowing
def can_hold(cache: KVCache, request: int, num_tokens: int) -> bool:
    """Whether the request's blocks, with the free ones added to them, hold this many tokens."""
    counts = cache.counts[0]
    # A product instead of a division: this runs for every sequence of every step.
    return num_tokens <= (cache.holdings[request].num_blocks + counts.num_free) * counts.block_size


@borrowing
def hold(cache: KVCache, request: int, num_tokens: int) -> None:
    """Extend the request's table until it holds num_tokens; `can_hold` must be true."""
    counts = cache.counts[0]
    held = cache.holdings[request]
    if held.num_blocks * counts.block_size >= num_tokens:
        return
    blocks, block_of = cache.blocks, cache.block_of
    if held.slot == NONE:
        _take_slot(cache, request)
    table = cache.tables[held.slot]
    while held.num_blocks * counts.block_size < num_tokens:
        block = counts.first_free
        content = blocks[block].content
        if content >= 0 and block_of[content] == block:
            block_of[content] = NONE
        blocks[block].content = NONE
        _leave_line(counts, blocks, block)
        blocks[block].num_users = 1
        table[held.num_blocks] = block
        held.num_blocks += 1


@inner_borrowing
def _take_slot(cache: KVCache, request: int) -> None:
    counts = cache.counts[0]
    counts.num_free_slots -= 1
    cache.holdings[request].slot = cache.slots[counts.num_free_slots]


@inner_borrowing
def _leave_line(counts, blocks, block) -> None:
    before, after = blocks[block].before, blocks[block].after
    if before == NONE:
        counts.first_free = after
    else:
        blocks[before].after = after
    if after == NONE:
        counts.last_free = before
    else:
        blocks[after].before = before
    counts.num_free -= 1


@inner_borrowing
def _join_line(counts, blocks, block) -> None:
    last = counts.last_free
    blocks[block].before = last
    blocks[block].after = NONE
    if last == NONE:
        counts.first_free = block
    else:
        blocks[last].after = block
    counts.last_free = block
    counts.num_free += 1


@borrowing
def release(cache: KVCache, request: int, keeps_table: bool = False) -> None:
    """Let go of every block of the request, its last one first, so that the beginning stays longest.

    keeps_table: it will come back, and look for them
    """
    counts = cache.counts[0]
    held = cache.holdings[request]
    if held.slot == NONE:
        return
    blocks = cache.blocks
    table = cache.tables[held.slot]
    for i in range(held.num_blocks - 1, -1, -1):
        block = table[i]
        blocks[block].num_users -= 1
        if blocks[block].num_users == 0:
            _join_line(counts, blocks, block)
    held.num_blocks = 0
    if not keeps_table or counts.is_caching == 0 or counts.num_free_slots < cache.slots.size // 2:
        cache.slots[counts.num_free_slots] = held.slot
        counts.num_free_slots += 1
        held.slot = NONE
        held.num_known = 0


# --- host memory ------------------------------------------------------------------------------------------------------


@inner_borrowing
def swap_out(cache: KVCache, request: int, num_tokens: int) -> int:
    """Move what the request's blocks hold of num_tokens to the host; returns the blocks copied, 0 where the host has no
    room and nothing happened."""
    counts = cache.counts[0]
    num_blocks = blocks_for(cache, num_tokens)
    if num_blocks > counts.num_free_host:
        return 0
    release(cache, request)
    counts.num_free_host -= num_blocks
    cache.holdings[request].num_host = num_blocks
    return num_blocks


@inner_borrowing
def leave_host(cache: KVCache, request: int) -> int:
    """Give back the request's room in host memory; returns the blocks it had there."""
    held = cache.holdings[request]
    num_blocks = held.num_host
    cache.counts[0].num_free_host += num_blocks
    held.num_host = 0
    return num_blocks


# --- content ----------------------------------------------------------------------------------------------------------


@inner_borrowing
def _own_content(request: int, i: int) -> int:
    """Of a block that no other request shares; below NONE."""
    return -2 - ((request << 24) | i)


@inner_borrowing
def content_of(cache: KVCache, request: int, i: int) -> int:
    """What the request's i-th block holds when it is full."""
    start = cache.contents.start[request]
    if i < cache.contents.start[request + 1] - start:
        return cache.contents.number[start + i]
    return _own_content(request, i)


@inner_borrowing
def _found(cache: KVCache, request: int, i: int) -> int:
    """The block with the content of the request's i-th block, or NONE."""
    start = cache.contents.start[request]
    if i < cache.contents.start[request + 1] - start:
        return cache.block_of[cache.contents.number[start + i]]
    held = cache.holdings[request]
    if held.slot == NONE or i >= held.num_known:
        return NONE
    block = cache.tables[held.slot, i]
    return block if cache.blocks[block].content == _own_content(request, i) else NONE


@borrowing
def num_shared(cache: KVCache, request: int, num_tokens: int) -> tuple[int, int]:
    """(leading full blocks of num_tokens - 1 tokens whose content is there, how many of them are free).

    The last token is always computed: its output is what comes next. The request must hold nothing.
    """
    counts = cache.counts[0]
    if counts.is_caching == 0:
        return 0, 0
    num, num_idle = 0, 0
    most = (num_tokens - 1) // counts.block_size
    while num < most:
        block = _found(cache, request, num)
        if block == NONE:
            break
        if cache.blocks[block].num_users == 0:
            num_idle += 1
        num += 1
    return num, num_idle


@borrowing
def share(cache: KVCache, request: int, num_blocks: int) -> None:
    """Let the request hold the blocks that `num_shared` found, and forget what else its table had."""
    counts = cache.counts[0]
    held = cache.holdings[request]
    if num_blocks > 0 and held.slot == NONE:
        _take_slot(cache, request)
    blocks = cache.blocks
    for i in range(num_blocks):
        block = _found(cache, request, i)
        if blocks[block].num_users == 0:
            _leave_line(counts, blocks, block)
        blocks[block].num_users += 1
        cache.tables[held.slot, i] = block
    held.num_blocks = num_blocks
    held.num_known = num_blocks


@borrowing
def note_contents(cache: KVCache, request: int, num_tokens: int) -> None:
    """Note the content of the request's blocks that num_tokens known tokens fill, so that it is found."""
    counts = cache.counts[0]
    held = cache.holdings[request]
    if counts.is_caching == 0 or (held.num_known + 1) * counts.block_size > num_tokens:
        return
    start = cache.contents.start[request]
    num_given = cache.contents.start[request + 1] - start
    while (held.num_known + 1) * counts.block_size <= num_tokens:
        i = held.num_known
        block = cache.tables[held.slot, i]
        if i < num_given:
            content = cache.contents.number[start + i]
            cache.blocks[block].content = content
            cache.block_of[content] = block
        else:
            cache.blocks[block].content = _own_content(request, i)
        held.num_known += 1


@inner_borrowing
def forget_contents(cache: KVCache, request: int, num_tokens: int) -> None:
    """Take back what was noted of the request's blocks beyond those that num_tokens fill: they are not computed."""
    held = cache.holdings[request]
    num_full = num_tokens // cache.counts[0].block_size
    for i in range(num_full, held.num_known):
        block = cache.tables[held.slot, i]
        content = cache.blocks[block].content
        if content >= 0 and cache.block_of[content] == block:
            cache.block_of[content] = NONE
        cache.blocks[block].content = NONE
    held.num_known = min(held.num_known, num_full)


def check_kv_cache(cache: KVCache, is_here: NDArray[np.bool_] | None = None) -> None:
    """Raise KVCacheError unless every block is in line once, or held by as many requests as it says, and the host's
    blocks add up.

    is_here: [num_requests] those that this replica serves; None: all of them
    """
    counts = cache.counts[0]
    num_blocks = int(counts["num_blocks"])
    in_line = np.zeros(num_blocks, dtype=np.int64)
    block, before, length = int(counts["first_free"]), NONE, 0
    while block != NONE and length <= num_blocks:
        if cache.blocks["before"][block] != before:
            raise KVCacheError(f"block {block} is in line behind {before}, and says {cache.blocks['before'][block]}")
        in_line[block] += 1
        before, block, length = block, int(cache.blocks["after"][block]), length + 1
    if length != counts["num_free"] or before != counts["last_free"]:
        raise KVCacheError(f"{length} blocks are in line, {counts['num_free']} are counted")
    uses = np.zeros(num_blocks, dtype=np.int64)
    is_holding = cache.holdings["num_blocks"] > 0
    for request in np.flatnonzero(is_holding if is_here is None else is_holding & is_here):
        held = cache.holdings[request]
        if held["slot"] == NONE or held["num_blocks"] > cache.tables.shape[1]:
            raise KVCacheError(f"request {request} holds {held['num_blocks']} blocks, more than its table has")
        np.add.at(uses, cache.tables[held["slot"], : held["num_blocks"]], 1)
    if (uses != cache.blocks["num_users"]).any():
        block = int(np.argmax(uses != cache.blocks["num_users"]))
        raise KVCacheError(
            f"block {block} is held {uses[block]} times and counts {cache.blocks['num_users'][block]} users"
        )
    if ((uses > 0) == (in_line > 0)).any():
        block = int(np.argmax((uses > 0) == (in_line > 0)))
        raise KVCacheError(f"block {block} is held {uses[block]} times and in line {in_line[block]} times")
    on_host = cache.holdings["num_host"] if is_here is None else cache.holdings["num_host"][is_here]
    if (on_host < 0).any() or on_host.sum() + counts["num_free_host"] != counts["num_host_blocks"]:
        raise KVCacheError(
            f"{on_host.sum()} blocks in host memory and {counts['num_free_host']} free ones there are not "
            f"{counts['num_host_blocks']}"
        )
    both = is_holding & (cache.holdings["num_host"] > 0)
    if both.any():
        raise KVCacheError(f"request {int(np.argmax(both))} holds blocks of the device and of the host")
    known = np.flatnonzero(cache.block_of != NONE)
    if (cache.blocks["content"][cache.block_of[known]] != known).any():
        raise KVCacheError("a content's block holds another content")
