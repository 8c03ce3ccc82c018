"""Requests that end by a token nobody foresaw: an asynchronous engine has them in one step too many. A step takes a
second, and a tenth for each sequence where that is said."""

from __future__ import annotations

import pytest
from serving_parts import linear_table, served, tokens_of

from sim.serving.policies import RESERVING
from sim.serving.speculation import Speculation


def batches(made):
    steps = made.replicas[0].engines[0].steps
    return list(zip(steps["num_prefill_tokens"].tolist(), steps["num_decodes"].tolist(), strict=True))


def ended_by(*arguments, **options):
    """The same requests, ended by their length and by a token."""
    return [served(*arguments, is_async=True, ends_unforeseen=is_eos, **options) for is_eos in (False, True)]


def test_alone_a_request_has_its_tokens_when_it_had_them_and_one_step_more():
    by_length, by_token = ended_by([0.0], [4], [3])
    assert tokens_of(by_length, 0) == tokens_of(by_token, 0) == [1.0, 2.0, 3.0]
    assert batches(by_length) == [(4, 0), (0, 1), (0, 1)]
    assert batches(by_token) == [(4, 0), (0, 1), (0, 1), (0, 1)]
    assert by_token.metrics()["discarded_tokens"] == 1
    assert "discarded_tokens" not in by_length.metrics()


def test_a_synchronous_engine_knows_before_it_forms_the_next_batch():
    made = served([0.0], [4], [3], ends_unforeseen=True)
    assert batches(made) == [(4, 0), (0, 1), (0, 1)]
    assert made.metrics()["discarded_tokens"] == 0


def test_whoever_comes_meanwhile_waits_for_the_step_that_is_in_vain():
    """The first ends at 2, and step 3 runs in vain. The second comes at 2.5: nothing else would be running."""
    by_length, by_token = ended_by([0.0, 2.5], [4, 4], [2, 1])
    assert tokens_of(by_length, 1) == [3.5]
    assert tokens_of(by_token, 1) == [4.0]


def test_the_row_in_vain_costs_the_others_its_time():
    """Steps of two sequences take 1.2 s, of one 1.1 s. The first ends with step 2, and is in step 3 as well."""
    table = linear_table(1.0, sequences=0.1)
    by_length, by_token = ended_by([0.0, 0.0], [4, 4], [2, 4], table=table)
    assert tokens_of(by_length, 1) == pytest.approx([1.2, 2.4, 3.5, 4.6])
    assert tokens_of(by_token, 1) == pytest.approx([1.2, 2.4, 3.6, 4.7])
    assert tokens_of(by_token, 0) == pytest.approx([1.2, 2.4])
    assert by_token.metrics()["discarded_tokens"] == 2


def test_its_slot_and_its_blocks_are_free_when_its_last_token_is_there():
    """One slot: the second request is scheduled when step 3, in vain, starts, and not when that has ended."""
    by_length, by_token = ended_by([0.0, 0.0], [4, 4], [2, 1], max_num_seqs=1)
    assert by_length.requests["scheduled_s"].tolist() == by_token.requests["scheduled_s"].tolist() == [0.0, 2.0]
    assert tokens_of(by_length, 1) == [3.0]
    assert tokens_of(by_token, 1) == [4.0]


def test_the_place_of_a_token_in_vain_may_cost_somebody_his_blocks():
    """Two blocks of 4 tokens, one for each prompt. The first request ends with its prompt, which fills its block; step
    2, formed at 0, wants a block for one more token of it, and the second request gives way. It comes back in step 3,
    formed at 1, when both blocks are free; its first token, of step 1, is there by then."""
    by_length, by_token = ended_by([0.0, 0.0], [4, 3], [1, 2], num_blocks=2)
    assert tokens_of(by_length, 1) == [1.0, 2.0]
    assert by_token.requests["num_preemptions"].tolist() == [0, 1]
    assert tokens_of(by_token, 1) == [1.0, 3.0]
    assert batches(by_token) == [(7, 0), (0, 1), (4, 0), (0, 1)]
    by_token.check()


def test_a_request_that_fills_the_cache_ends_all_the_same():
    """There is no block for one more, so that it gives way to itself, and ends while it waits."""
    made = served([0.0], [4], [5], num_blocks=2, is_async=True, ends_unforeseen=True)
    assert tokens_of(made, 0) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert made.metrics()["discarded_tokens"] == 0
    made.check()


@pytest.mark.parametrize("policy", RESERVING)
def test_who_reserves_reserves_a_place_for_the_token_in_vain(policy):
    """Two blocks of 4 tokens hold 4 and 5 without it, and then one is refused that could never be admitted."""
    for num_output, num_completed in ((4, 1), (5, 0)):
        made = served([0.0], [4], [num_output], policy=policy, num_blocks=2, is_async=True, ends_unforeseen=True)
        assert made.metrics()["completed"] == made.metrics()["discarded_tokens"] == num_completed
        assert made.failures.total() == 1 - num_completed
    assert served([0.0], [4], [5], policy=policy, num_blocks=2, is_async=True).metrics()["completed"] == 1


def test_what_is_drafted_and_accepted_beyond_the_end_is_thrown_away():
    """Of 3 drafts that hold, a step brings 4: the last of three steps says only two, whatever ends the output."""
    by_length, by_token = (
        served([0.0], [4], [7], speculation=Speculation(3, 1.0), ends_unforeseen=is_eos) for is_eos in (False, True)
    )
    assert tokens_of(by_length, 0) == tokens_of(by_token, 0) == [1.0, *[2.0] * 4, *[3.0] * 2]
    assert by_length.num_steps == by_token.num_steps == 3
