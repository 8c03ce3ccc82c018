"""Batching policies, told as stories: every step takes one second, so token times count steps."""

from __future__ import annotations

import pytest
from serving_parts import linear_table, served, tokens_of

from sim.serving.policies import BATCHING_POLICIES, compiled_policy


def batches(made):
    steps = made.replicas[0].engines[0].steps
    return list(zip(steps["num_prefill_tokens"].tolist(), steps["num_decodes"].tolist(), strict=True))


@pytest.mark.parametrize("policy", sorted(BATCHING_POLICIES))
def test_the_last_chunk_of_the_prompt_yields_the_first_token(policy):
    made = served([0.0], [10], [3], policy=policy)

    assert tokens_of(made, 0) == [1.0, 2.0, 3.0]
    assert batches(made) == [(10, 0), (0, 1), (0, 1)]


def test_prefill_first_stops_decodes_for_a_new_prompt():
    made = served([0.0, 1.5], [4, 6], [5, 2], policy="prefill_first")

    assert batches(made) == [(4, 0), (0, 1), (6, 0), (0, 2), (0, 1), (0, 1)]
    # The step from 2 to 3 belongs to request 1 alone.
    assert tokens_of(made, 0) == [1.0, 2.0, 4.0, 5.0, 6.0]
    assert tokens_of(made, 1) == [3.0, 4.0]


def test_chunked_prefill_lets_decodes_ride_along():
    made = served([0.0, 1.5], [4, 6], [5, 2], policy="chunked_prefill")

    assert batches(made) == [(4, 0), (0, 1), (6, 1), (0, 2), (0, 1)]
    assert tokens_of(made, 0) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_chunked_prefill_cuts_a_prompt_where_the_budget_ends():
    made = served([0.0, 0.0], [4, 10], [4, 1], policy="chunked_prefill", max_num_batched_tokens=5)

    # 4 + 1 tokens, then one decode and what is left of the budget, twice; the last chunk has one token.
    assert batches(made) == [(5, 0), (4, 1), (4, 1), (1, 1)]
    assert tokens_of(made, 1) == [4.0]


def test_prefill_first_takes_whole_prompts_within_the_budget_and_a_longer_one_alone():
    made = served([0.0] * 4, [4, 3, 9, 2], [1] * 4, policy="prefill_first", max_num_batched_tokens=7)

    assert batches(made) == [(7, 0), (9, 0), (2, 0)]


def test_orca_lets_whole_prompts_join_the_decodes():
    """The second comes while the first decodes, and joins the next iteration; nothing is cut at a budget of 5."""
    made = served([0.0, 1.5], [4, 6], [5, 2], policy="orca", max_num_batched_tokens=5)

    assert batches(made) == [(4, 0), (0, 1), (6, 1), (0, 2), (0, 1)]
    assert tokens_of(made, 1) == [3.0, 4.0]


def test_orca_reserves_blocks_for_the_whole_output():
    """In 4 blocks of 4, 4 + 6 tokens (9 are cached) reserve 3: the second waits for the first to end."""
    made = served([0.0, 0.0], [4, 4], [6, 6], policy="orca", num_blocks=4)

    assert made.requests["num_preemptions"].tolist() == [0, 0]
    assert made.requests["scheduled_s"].tolist() == [0.0, 6.0]


def test_static_admits_nobody_before_all_have_ended():
    """Two begin together; the one that ends after two tokens leaves its slot empty, and the third waits for the other.

    Orca would admit it after two seconds."""
    lengths = {"max_num_seqs": 2}
    static, orca = (served([0.0] * 3, [4, 4, 4], [2, 5, 1], policy=name, **lengths) for name in ("static", "orca"))

    assert batches(static) == [(8, 0), (0, 2), (0, 1), (0, 1), (0, 1), (4, 0)]
    assert static.requests["scheduled_s"].tolist() == [0.0, 0.0, 5.0]
    assert orca.requests["scheduled_s"].tolist() == [0.0, 0.0, 2.0]


def test_the_shortest_prompt_comes_next_and_ties_in_order_of_arrival():
    """All wait while the first runs, one at a time: 2 before 5 before 5 before 9."""
    made = served([0.0, 0.1, 0.2, 0.3, 0.4], [3, 9, 5, 2, 5], [2, 1, 1, 1, 1], policy="shortest_first", max_num_seqs=1)

    assert made.requests["scheduled_s"].tolist() == [0.0, 5.0, 3.0, 2.0, 4.0]


@pytest.mark.parametrize("policy", sorted(BATCHING_POLICIES))
def test_slots_bound_the_batch(policy):
    made = served([0.0] * 5, [1] * 5, [2] * 5, policy=policy, max_num_seqs=2)

    assert max(prefill + decodes for prefill, decodes in batches(made)) == 2
    assert made.metrics()["completed"] == 5


def test_the_last_admitted_is_preempted_and_its_tokens_become_prompt():
    """Two requests of 4 + 5 tokens in 4 blocks of 4: each fills one block, then wants a second and a third.

    Step 1 prefills both (2 blocks). Steps 2 to 5 decode (tokens 5 to 8, 4 blocks). In step 6 the first needs
    a third block: the second is preempted, and its 4 + 5 tokens are computed again once the first is done.
    """
    made = served([0.0, 0.0], [4, 4], [6, 6], policy="chunked_prefill", num_blocks=4)

    assert batches(made) == [(8, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1), (9, 0)]
    assert made.requests["num_preemptions"].tolist() == [0, 1]
    assert tokens_of(made, 0) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    # Recomputing 4 + 5 tokens yields its sixth token.
    assert tokens_of(made, 1) == [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]


def test_a_step_that_preempted_admits_nobody():
    """The victim frees two blocks and the third request needs one, but must wait for the next step."""
    made = served([0.0, 0.0, 4.5], [4, 4, 1], [6, 6, 1], policy="chunked_prefill", num_blocks=4)

    assert batches(made)[5] == (0, 1)
    assert made.requests["scheduled_s"].tolist() == [0.0, 0.0, 6.0]
    assert batches(made)[6] == (10, 0)


@pytest.mark.parametrize("policy", sorted(BATCHING_POLICIES))
def test_attention_is_priced_on_each_sequence_s_own_length(policy):
    """c tokens after s have c s + c (c + 1) / 2 pairs; a decode reads its context, itself included."""
    table = linear_table(1.0, prefill_pairs=0.01, decode_context=0.001)
    made = served([0.0, 0.0], [3, 5], [2, 2], table=table, policy=policy)

    prefill_s = 1.0 + 0.01 * (6 + 15)
    decode_s = 1.0 + 0.001 * (4 + 6)
    assert tokens_of(made, 0) == pytest.approx([prefill_s, prefill_s + decode_s], abs=1e-12)


def test_pairs_of_a_prompt_in_chunks_add_up_to_those_of_the_whole():
    """A kernel takes a chunk of one token for a decode, which reads its context: as many pairs."""
    table = linear_table(0.0, prefill_pairs=1.0, decode_context=1.0)
    whole = served([0.0], [50], [1], table=table)
    chunked = served([0.0], [50], [1], table=table, max_num_batched_tokens=7)

    assert tokens_of(whole, 0) == tokens_of(chunked, 0) == [50 * 51 / 2]


def test_a_step_takes_the_longer_of_accelerator_and_host():
    table = linear_table(0.0, tokens=0.1)
    made = served([0.0], [20], [3], table=table, host_s=0.5)

    assert tokens_of(made, 0) == pytest.approx([2.0, 2.5, 3.0])


def test_an_unknown_policy_is_a_key_error():
    with pytest.raises(KeyError):
        compiled_policy("longest_first")
