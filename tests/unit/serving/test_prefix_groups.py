"""BatchLLM's plan, and what it saves."""

from __future__ import annotations

import numpy as np
from serving_parts import served

from sim.devices.kv_cache import Contents
from sim.serving.prefix_groups import plan_batch


def contents_of(numbers: list[list[int]]) -> Contents:
    return Contents(np.cumsum([0, *map(len, numbers)]), np.array([n for each in numbers for n in each], np.int64))


def test_groups_with_the_most_output_come_first_and_prefixes_side_by_side():
    """Blocks of 4. Requests 0, 2, 4 share block 7, 0 and 4 the next one too; 1 and 5 share block 3; 3 shares nothing.

    The first group in the order 0, 4, 2: 4 shares 8 tokens with the one before, 2 shares 4, so that of 36 tokens 24 are
    computed for 6 of output, 0.25 each. The second: 16 - 4 = 12 for 12, 1. The third: 8 for 4, 0.5.
    """
    numbers = [[7, 8, 1], [3, 2], [7, 9, 4], [6, 5], [7, 8, 10], [3, 11]]
    prompt = np.array([12, 8, 12, 8, 12, 8])
    output = np.array([2, 6, 2, 4, 2, 6])
    place = plan_batch(prompt, output, contents_of(numbers), 4)

    assert np.argsort(place).tolist() == [1, 5, 3, 0, 4, 2]


def test_without_shared_content_each_is_its_own_group():
    place = plan_batch(np.array([8, 8, 4]), np.array([1, 4, 2]), None, 4)

    assert np.argsort(place).tolist() == [1, 2, 0]


def batch(num_groups=8, size=6, prefix_blocks=8):
    """(prompts, outputs, contents) in random order: 32 tokens in common in a group, 5 own ones, 3 of output."""
    rng = np.random.default_rng(4)
    group = rng.permutation(np.repeat(np.arange(num_groups), size))
    numbers = [
        [*(100 * g + i for i in range(prefix_blocks)), 10_000 + request] for request, g in enumerate(group.tolist())
    ]
    prompt = np.full(len(group), 4 * prefix_blocks + 5)
    return prompt, np.full(len(group), 3), contents_of(numbers)


def run(policy, num_blocks):
    prompt, output, contents = batch()
    place = plan_batch(prompt, output, contents, 4) if policy == "batchllm" else None
    return served(
        np.zeros(len(prompt)), prompt, output, policy=policy, num_blocks=num_blocks, is_caching=True,
        contents=contents, precedence=place, max_num_batched_tokens=64, max_num_seqs=64,
    )  # fmt: skip


def test_planned_every_prefix_is_computed_once_where_lru_loses_them():
    """8 prefixes of 8 blocks are larger than 40 blocks. The most that can be saved is 5 of 6 prefixes of 32 tokens."""
    planned, lru = run("batchllm", 40), run("chunked_prefill", 40)

    most = 8 * 5 * 32
    assert planned.requests["num_cached"].sum() == most
    assert lru.requests["num_cached"].sum() < 0.8 * most
    assert planned.requests["num_preemptions"].sum() == 0
    assert planned.num_steps < lru.num_steps
    # In a cache that holds them all LRU loses nothing.
    assert run("chunked_prefill", 1000).requests["num_cached"].sum() == most


def test_a_group_is_admitted_before_the_next_begins():
    """Groups are admitted one after the other, also where there is room for all."""
    planned = run("batchllm", 400)

    order = np.argsort(planned.requests["precedence"])
    scheduled_s = planned.requests["scheduled_s"][order].reshape(8, 6)
    assert (scheduled_s[1:].min(axis=1) >= scheduled_s[:-1].max(axis=1)).all()
