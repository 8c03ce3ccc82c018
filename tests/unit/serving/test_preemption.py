"""Preemption by swapping, and by priority. All examples have blocks of 4 tokens."""

from __future__ import annotations

import pytest
from serving_parts import linear_table, served, tokens_of

TWO = ([0.0, 0.0], [4, 4], [6, 6])
"""Two requests in 4 blocks: in step 6 the first needs a third block, and the second, with 8 tokens computed in two
blocks, gives way; it comes back when the first is done, for one token more."""


def steps_of(made) -> list[tuple[int, int]]:
    return [(int(s["num_prefill_tokens"]), int(s["num_decodes"])) for s in made.replicas[0].engine.steps]


def test_swapped_blocks_are_copied_out_and_back_and_nothing_is_computed_again():
    made = served(*TWO, num_blocks=4, num_host_blocks=2, block_copy_s=0.01)

    assert steps_of(made) == [(8, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1), (0, 1)]
    assert made.requests["num_swaps"].tolist() == [0, 1]
    # The step that is formed when the second gives way waits for its two blocks, and so does the one it is back with.
    assert tokens_of(made, 0) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 6.02])
    assert tokens_of(made, 1) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 7.04])
    metrics = made.metrics()
    assert metrics["num_swapped"] == metrics["num_preemptions"] == 1


def test_a_full_host_means_computing_again():
    made = served(*TWO, num_blocks=4, num_host_blocks=1, block_copy_s=0.01)

    assert steps_of(made)[-1] == (9, 0)
    assert made.requests["num_preemptions"].tolist() == [0, 1] and made.metrics()["num_swapped"] == 0


@pytest.mark.parametrize("block_copy_s", [0.0, 0.1, 0.19, 0.21, 0.5])
def test_swapping_pays_where_four_copies_take_less_than_eight_tokens(block_copy_s):
    """A step takes 1 s and 0.1 s a token. To compute again: 8 tokens more. To swap: 2 blocks out, 2 back. So swapping
    is ahead by 8 · 0.1 - 4 copies, and with an endless rate never behind."""
    table = linear_table(1.0, tokens=0.1)
    again = served(*TWO, num_blocks=4, table=table)
    swapped = served(*TWO, num_blocks=4, table=table, num_host_blocks=9, block_copy_s=block_copy_s)

    ahead_s = tokens_of(again, 1)[-1] - tokens_of(swapped, 1)[-1]
    assert ahead_s == pytest.approx(0.8 - 4 * block_copy_s)


def test_whoever_is_on_the_host_goes_before_whoever_waits():
    """prefill_first: the third request's prompt would fit once the first is done, but the second goes first, with its
    decode, beside no prompt."""
    made = served([0.0, 0.0, 4.5], [4, 4, 4], [6, 6, 1], policy="prefill_first", num_blocks=4, num_host_blocks=2)

    assert steps_of(made)[5:] == [(0, 1), (0, 1), (4, 0)]
    assert made.requests["scheduled_s"].tolist() == [0.0, 0.0, 7.0]


def test_copies_are_named_among_the_sources_of_time():
    made = served(*TWO, num_blocks=4, num_host_blocks=2, block_copy_s=0.01)

    found = {operator: seconds for (operator, _), seconds in made.time_by_source().items()}
    assert found["copies of KV blocks"] == pytest.approx(0.04)
    assert sum(found.values()) == pytest.approx(7.04)


def test_lower_priority_comes_first_and_within_a_class_whoever_came_first():
    """One at a time; all others wait while the first runs."""
    made = served(
        [0.0, 0.1, 0.2, 0.3, 0.4], [4] * 5, [2, 1, 1, 1, 1], policy="priority", max_num_seqs=1,
        precedence=[0, 1, 0, 1, -3],
    )  # fmt: skip

    assert made.requests["scheduled_s"].tolist() == [0.0, 4.0, 3.0, 5.0, 2.0]


def test_the_last_by_priority_gives_way_though_admitted_first_and_its_tokens_go_to_others():
    """As TWO, but the first is of the lower class: in step 6 it has its third block already when the second finds none.
    It leaves the batch, and 4 + 5 tokens of it are computed again once the second is done."""
    made = served(*TWO, policy="priority", num_blocks=5, precedence=[1, 0])

    assert made.requests["num_preemptions"].tolist() == [1, 0]
    assert steps_of(made) == [(8, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1), (9, 0)]
    assert tokens_of(made, 1) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert tokens_of(made, 0) == [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]


def test_a_victim_that_leaves_the_batch_keeps_what_it_had_computed_before():
    """The same with swapping: of the first its two full blocks go to the host, not the one just taken."""
    made = served(*TWO, policy="priority", num_blocks=5, precedence=[1, 0], num_host_blocks=2, block_copy_s=0.01)

    assert made.requests["num_swaps"].tolist() == [1, 0]
    assert tokens_of(made, 1)[-1] == pytest.approx(6.02) and tokens_of(made, 0)[-1] == pytest.approx(7.04)


def test_whoever_is_first_in_the_step_may_give_way_to_those_behind():
    """As TWO, but the first is of the lower class and finds no third block itself: it goes, and the step is the
    second's."""
    made = served(*TWO, policy="priority", num_blocks=4, precedence=[1, 0])

    assert steps_of(made) == [(8, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 1), (9, 0)]
    assert tokens_of(made, 1)[-1] == 6.0 and tokens_of(made, 0)[-1] == 7.0
