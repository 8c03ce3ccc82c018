"""The asynchronous engine and its prefix cache, told as stories: every step takes one second."""

from __future__ import annotations

import numpy as np
from serving_parts import linear_table, served, tokens_of

from sim.devices.kv_cache import Contents


def both(*arguments, **options):
    """The same requests on a synchronous and an asynchronous engine."""
    return [served(*arguments, is_async=is_async, **options) for is_async in (False, True)]


def batches(made):
    steps = made.replicas[0].engines[0].steps
    return list(zip(steps["num_prefill_tokens"].tolist(), steps["num_decodes"].tolist(), strict=True))


def contents(*of_requests):
    start = np.cumsum([0, *map(len, of_requests)])
    return Contents(start, np.array([n for numbers in of_requests for n in numbers], np.int64))


def test_alone_a_request_is_served_alike():
    for made in both([0.5], [10], [3]):
        assert tokens_of(made, 0) == [1.5, 2.5, 3.5]
        assert made.requests["scheduled_s"][0] == 0.5


def test_an_arrival_is_seen_when_a_step_starts_and_runs_in_the_one_after():
    """The second request comes while step 2 runs. A synchronous engine takes it into step 3, which it forms when step 2
    has finished; the other has formed step 3 when step 2 began, and takes it into step 4, which it forms when step 3
    begins."""
    synchronous, asynchronous = both([0.0, 1.5], [4, 6], [5, 2])
    assert synchronous.requests["scheduled_s"][1] == 2.0
    assert tokens_of(synchronous, 1) == [3.0, 4.0]
    assert asynchronous.requests["scheduled_s"][1] == 2.0  # formed then, to run from 3 on
    assert tokens_of(asynchronous, 1) == [4.0, 5.0]
    assert tokens_of(asynchronous, 0) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_who_comes_at_the_very_end_of_a_step_is_there_when_the_next_batch_is_formed():
    """At one instant arrivals come first, as an engine drains its queue before it schedules: into the step that is
    formed then, which a synchronous engine runs at once and an asynchronous one behind the next. In a leap too."""
    for num_before in (1, 2, 40):
        synchronous, asynchronous = both([0.0, float(num_before)], [4, 6], [50, 2])
        assert synchronous.requests["scheduled_s"][1] == asynchronous.requests["scheduled_s"][1] == num_before
        assert tokens_of(synchronous, 1) == [num_before + 1.0, num_before + 2.0]
        assert tokens_of(asynchronous, 1) == [num_before + 2.0, num_before + 3.0]


def test_a_slot_freed_by_a_step_is_taken_a_step_later():
    """One of two slots is freed at 2. Step 3 was formed at 1, when it was still taken; without a second request step 3
    would be empty, and nobody would wait for it."""
    synchronous, asynchronous = both([0.0, 0.0, 0.0], [4, 4, 4], [2, 6, 1], max_num_seqs=2)
    assert tokens_of(synchronous, 2) == [3.0]
    assert tokens_of(asynchronous, 2) == [4.0]
    one_slot = both([0.0, 0.0], [4, 4], [2, 1], max_num_seqs=1)
    assert [tokens_of(made, 1) for made in one_slot] == [[3.0], [3.0]]


def test_no_step_is_wasted_on_a_request_whose_last_token_is_in_flight():
    for made in both([0.0], [4], [3]):
        assert batches(made) == [(4, 0), (0, 1), (0, 1)]


def test_a_victim_whose_last_token_is_in_flight_ends_while_it_waits():
    """Two requests in 3 blocks of 4 tokens: the first needs the third block for token 5, the second for its own.

    Step 2, formed at 0, gives the first its second block. Its third token would need none; the second request's does
    not fit, so it is preempted when step 3 is formed, with its last token of step 2 on the way.
    """
    made = served([0.0, 0.0], [4, 3], [6, 2], num_blocks=3, is_async=True)
    assert made.metrics()["completed"] == 2
    assert tokens_of(made, 0) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    made.check()


def test_a_cached_prefix_is_not_computed_again():
    """Two prompts of 12 tokens that share 8: the second computes 4, and all of them count as its prompt."""
    shared = contents((0, 1, 2), (0, 1, 3))
    made = served([0.0, 5.0], [12, 12], [1, 1], is_caching=True, contents=shared)
    assert batches(made) == [(12, 0), (4, 0)]
    assert made.requests["num_cached"].tolist() == [0, 8]
    assert made.metrics()["prefix_cache_hit_rate"] == 8 / 24
    without = served([0.0, 5.0], [12, 12], [1, 1], contents=shared)
    assert batches(without) == [(12, 0), (12, 0)]
    assert without.metrics()["prefix_cache_hit_rate"] == 0.0


def test_a_preempted_request_finds_its_own_blocks_again():
    """As `test_the_last_admitted_is_preempted_and_its_tokens_become_prompt`: 4 + 5 tokens are to be computed again. Its
    first block is still there, the second was taken for the first request."""
    made = served([0.0, 0.0], [4, 4], [6, 6], num_blocks=4, is_caching=True)
    assert made.requests["num_preemptions"].tolist() == [0, 1]
    assert batches(made)[-1] == (5, 0)


def test_small_batches_run_as_the_next_larger_graph():
    """0.1 s a token: 5 tokens run as 8, 3 as 4, and 9 as they are where the largest graph has 8."""
    table = linear_table(0.0, tokens=0.1)
    padded = [tokens_of(served([0.0], [n], [1], table=table, max_graph_tokens=8), 0)[0] for n in (2, 3, 5, 9)]
    assert np.allclose(padded, [0.2, 0.4, 0.8, 0.9])
