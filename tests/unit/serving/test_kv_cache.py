from __future__ import annotations

import numpy as np
import pytest

from sim.devices.kv_cache import (
    KVCacheError,
    blocks_for,
    can_hold,
    check_kv_cache,
    hold,
    new_chains,
    new_kv_cache,
    release,
)


def chain_of(cache, request):
    block, found = cache.chains[request]["first"], []
    while block >= 0:
        found.append(int(block))
        block = cache.blocks[block]["next"]
    return found


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_are_rounded_up(num_tokens, num_blocks):
    assert blocks_for(new_kv_cache(10, 16, new_chains(1)), num_tokens) == num_blocks


def test_a_request_grows_block_by_block_and_gives_all_back():
    cache = new_kv_cache(4, 2, new_chains(2))

    hold(cache, 0, 3)
    hold(cache, 1, 1)
    hold(cache, 0, 4)
    assert (len(chain_of(cache, 0)), len(chain_of(cache, 1))) == (2, 1)
    hold(cache, 0, 5)
    assert cache.counts["num_free"][0] == 0
    assert sorted(chain_of(cache, 0) + chain_of(cache, 1)) == [0, 1, 2, 3]
    check_kv_cache(cache)

    release(cache, 0)
    assert cache.counts["num_free"][0] == 3
    assert chain_of(cache, 0) == []
    check_kv_cache(cache)


def test_room_counts_the_request_s_own_blocks_and_the_free_ones():
    cache = new_kv_cache(3, 4, new_chains(2))
    hold(cache, 0, 4)
    hold(cache, 1, 4)

    assert can_hold(cache, 0, 8)
    assert not can_hold(cache, 0, 9)


def test_the_check_finds_a_leaked_a_shared_and_a_misfiled_block():
    def cache():
        made = new_kv_cache(4, 2, new_chains(2))
        hold(made, 0, 4)
        hold(made, 1, 2)
        return made

    leaked = cache()
    leaked.counts["num_free"] -= 1
    with pytest.raises(KVCacheError, match="held 0 times"):
        check_kv_cache(leaked)
    shared = cache()
    shared.chains[1] = shared.chains[0]
    with pytest.raises(KVCacheError, match="belongs to another"):
        check_kv_cache(shared)
    freed_twice = cache()
    freed_twice.free[int(freed_twice.counts["num_free"][0])] = chain_of(freed_twice, 1)[0]
    freed_twice.counts["num_free"] += 1
    with pytest.raises(KVCacheError, match="a free block has an owner"):
        check_kv_cache(freed_twice)


def test_an_empty_cache_is_refused():
    with pytest.raises(ValueError, match="0 blocks of 16"):
        new_kv_cache(0, 16, np.zeros(0))
