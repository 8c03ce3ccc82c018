from __future__ import annotations

import numpy as np
import pytest

from sim.devices.kv_cache import (
    Contents,
    KVCacheError,
    blocks_for,
    can_hold,
    check_kv_cache,
    hold,
    new_holdings,
    new_kv_cache,
    note_contents,
    num_shared,
    release,
    share,
)

NUM_REQUESTS = 3


def cache_of(num_blocks, block_size, contents=None):
    """A cache for three requests; `contents` lists what each one's leading blocks hold."""
    known = None
    if contents is not None:
        start = np.cumsum([0, *map(len, contents)])
        known = Contents(start, np.array([n for numbers in contents for n in numbers], np.int64))
    return new_kv_cache(
        num_blocks, block_size, new_holdings(NUM_REQUESTS), num_slots=8, max_blocks=num_blocks, contents=known,
        is_caching=contents is not None,
    )  # fmt: skip


def blocks_of(cache, request):
    held = cache.holdings[request]
    return cache.tables[held["slot"], : held["num_blocks"]].tolist()


def compute(cache, request, num_tokens):
    """As the engine does: take what is there, then blocks for the rest, and note what they hold."""
    found, _ = num_shared(cache, request, num_tokens)
    share(cache, request, found)
    hold(cache, request, num_tokens)
    note_contents(cache, request, num_tokens)
    check_kv_cache(cache)
    return found


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_are_rounded_up(num_tokens, num_blocks):
    assert blocks_for(cache_of(10, 16), num_tokens) == num_blocks


def test_a_request_grows_block_by_block_and_gives_all_back():
    cache = cache_of(4, 2)

    hold(cache, 0, 3)
    hold(cache, 1, 1)
    hold(cache, 0, 4)
    assert (len(blocks_of(cache, 0)), len(blocks_of(cache, 1))) == (2, 1)
    hold(cache, 0, 5)
    assert cache.counts["num_free"][0] == 0
    assert sorted(blocks_of(cache, 0) + blocks_of(cache, 1)) == [0, 1, 2, 3]
    check_kv_cache(cache)

    release(cache, 0)
    assert cache.counts["num_free"][0] == 3
    assert blocks_of(cache, 0) == []
    check_kv_cache(cache)


def test_room_counts_the_request_s_own_blocks_and_the_free_ones():
    cache = cache_of(3, 4)
    hold(cache, 0, 4)
    hold(cache, 1, 4)

    assert can_hold(cache, 0, 8)
    assert not can_hold(cache, 0, 9)


def test_a_shared_prefix_is_held_by_both_and_its_blocks_are_whole():
    cache = cache_of(8, 2, [(0, 1, 2), (0, 1, 3), ()])
    assert compute(cache, 0, 7) == 0
    assert compute(cache, 1, 7) == 2
    assert blocks_of(cache, 0)[:2] == blocks_of(cache, 1)[:2]
    assert blocks_of(cache, 0)[2] != blocks_of(cache, 1)[2]
    assert cache.blocks["num_users"].sum() == 8

    release(cache, 0)
    check_kv_cache(cache)
    assert cache.counts["num_free"][0] == 4  # the shared two are still held


def test_the_last_token_is_always_computed():
    cache = cache_of(8, 2, [(0, 1), (0, 1), (0, 1)])
    compute(cache, 0, 4)
    assert num_shared(cache, 1, 4) == (1, 0)  # two blocks hold all four tokens, one of them has to be computed again
    assert num_shared(cache, 1, 5) == (2, 0)


def test_content_stays_until_its_block_is_needed_the_end_of_a_prompt_goes_first():
    cache = cache_of(4, 2, [(0, 1, 2, 3), (), (0, 1, 2, 3)])
    compute(cache, 0, 8)
    release(cache, 0)
    assert num_shared(cache, 2, 9) == (4, 4)
    hold(cache, 1, 2)
    assert num_shared(cache, 2, 9) == (3, 3)
    hold(cache, 1, 5)
    assert num_shared(cache, 2, 9) == (1, 1)
    check_kv_cache(cache)


def test_a_request_that_comes_back_finds_its_own_blocks_and_nobody_else_does():
    cache = cache_of(4, 2, [(), (), ()])
    compute(cache, 0, 6)
    release(cache, 0, True)
    assert num_shared(cache, 1, 7) == (0, 0)
    assert num_shared(cache, 0, 7) == (3, 3)
    hold(cache, 1, 3)  # the block that was never used, and the last of request 0's
    assert compute(cache, 0, 4) == 1
    release(cache, 0)
    assert num_shared(cache, 0, 7) == (0, 0)  # gone for good


def test_the_check_finds_a_leaked_a_wrongly_counted_and_a_misfiled_block():
    def cache():
        made = cache_of(4, 2)
        hold(made, 0, 4)
        hold(made, 1, 2)
        return made

    leaked = cache()
    leaked.counts["num_free"] += 1
    with pytest.raises(KVCacheError, match="1 blocks are in line, 2 are counted"):
        check_kv_cache(leaked)
    shared = cache()
    shared.holdings[2] = shared.holdings[0]
    with pytest.raises(KVCacheError, match="held 2 times and counts 1 users"):
        check_kv_cache(shared)
    both = cache()
    held = blocks_of(both, 1)[0]
    both.blocks[both.counts["first_free"][0]]["after"] = held
    both.blocks[held]["before"] = both.counts["first_free"][0]
    both.blocks[held]["after"] = -1
    both.counts["last_free"] = held
    both.counts["num_free"] = 2
    with pytest.raises(KVCacheError, match="held 1 times and in line 1 times"):
        check_kv_cache(both)


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="0 blocks of 16"):
        cache_of(0, 16)
