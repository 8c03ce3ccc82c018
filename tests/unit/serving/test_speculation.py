"""Speculative decoding against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of

from sim.serving.speculation import Speculation, is_accepted


def steps_of(made):
    return made.replicas[0].engine.steps


def test_drafts_that_all_hold_bring_four_tokens_a_step():
    """The prompt's step brings one; of 3 drafts and the token behind them two steps make the other 8."""
    made = served([0.0], [4], [9], speculation=Speculation(3, 1.0))

    assert tokens_of(made, 0) == [1.0, *[2.0] * 4, *[3.0] * 4]
    metrics = made.metrics()
    assert metrics["spec_decode_acceptance_length"] == 4 and metrics["spec_decode_num_drafts"] == 2
    # One gap a step, as a client sees chunks; time per output token counts tokens.
    assert metrics["mean_itl_ms"] == metrics["p99_itl_ms"] == 1000
    assert metrics["mean_tpot_ms"] == pytest.approx(1000 * 2 / 8)


def test_nothing_is_said_beyond_the_last_token():
    made = served([0.0], [4], [7], speculation=Speculation(3, 1.0))

    assert tokens_of(made, 0) == [1.0, *[2.0] * 4, *[3.0] * 2]
    assert made.requests["num_generated"].tolist() == [7]


def test_drafts_that_never_hold_cost_tokens_and_bring_nothing():
    table = linear_table(1.0, tokens=0.1, sequences=0.01)
    made = served([0.0], [4], [3], table=table, speculation=Speculation(3, 0.0))

    assert tokens_of(made, 0) == pytest.approx([1.41, 1.41 + 1.44, 1.41 + 2 * 1.44])
    assert made.metrics()["spec_decode_acceptance_length"] == 1


@pytest.mark.parametrize(("k", "a", "c"), [(1, 0.5, 0.0), (3, 0.7, 0.05), (5, 0.9, 0.1), (8, 0.2, 0.02)])
def test_the_speedup_is_leviathan_s(k, a, c):
    """Steps of 1 s, k passes of a drafter of c s: (1 - a^(k + 1)) / ((1 - a) (k c + 1)) times as fast as without.

    A step brings X = 1 + min(G, k) tokens, P(G >= i) = a^i: E X = sum of a^i and E X^2 = sum of (2 i + 1) a^i over
    i = 0 … k, and of N steps the mean is off by four standard deviations sqrt(Var X / N) with a chance below 1e-4.
    """
    num_tokens = 40_000
    powers = a ** np.arange(k + 1)
    mean = powers.sum()
    variance = (powers * (2 * np.arange(k + 1) + 1)).sum() - mean**2
    assert mean == pytest.approx((1 - a ** (k + 1)) / (1 - a))
    drafts = Speculation(k, a, draft_cost=c, seed=5)
    made = served([0.0], [4], [num_tokens + 1], block_size=16, num_blocks=3000, speculation=drafts)
    tolerance = 4 * np.sqrt(variance / (num_tokens / mean)) / mean

    metrics = made.metrics()
    assert metrics["spec_decode_acceptance_length"] == pytest.approx(mean, rel=tolerance)
    speedup = 1000 / metrics["mean_tpot_ms"]
    assert speedup == pytest.approx(mean / (1 + k * c), rel=tolerance)


def test_a_draft_holds_with_its_probability_and_whatever_else_is_asked():
    held = np.array([[is_accepted(3, 0.7, request, j) for j in range(200)] for request in range(200)])

    assert held.mean() == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / held.size))
    # Neighbours, of one request and of one position, are independent.
    for pair in (held[1:] & held[:-1], held[:, 1:] & held[:, :-1]):
        assert pair.mean() == pytest.approx(0.49, abs=4 * np.sqrt(0.49 * 0.51 / pair.size) * 1.5)
    assert not is_accepted(3, 0.0, 1, 1) and is_accepted(3, 1.0, 1, 1)


@pytest.mark.parametrize(("num_lookahead", "blocks"), [(0, 2), (3, 3)])
def test_drafts_hold_slots_and_a_draft_model_as_many_again(num_lookahead, blocks):
    """Blocks of 4 tokens: behind 4 tokens of prompt a token and 3 drafts end at 8, the drafter's slots at 11. Those of
    drafts that do not hold are used again: the second such step ends at 9 and 12."""
    made = served([0.0], [4], [4], speculation=Speculation(3, 0.0, num_lookahead))

    assert steps_of(made)["num_kv_blocks"].tolist() == [1, blocks, 3, 3 + (num_lookahead > 0)]


def test_attention_of_drafts_reads_the_context_once_or_computes_for_each():
    """4 queries over 8 tokens: arithmetic of an eighth of the bytes' time hides behind them, a half does not."""
    table = linear_table(1.0, decode_context=0.01)
    for flop_share, weight in ((0.125, 1), (0.5, 2), (1.0, 4)):
        made = served([0.0], [4], [5], table=table, speculation=Speculation(3, 1.0, flop_share=flop_share))
        assert tokens_of(made, 0)[-1] == pytest.approx(2.0 + 0.01 * 8 * weight)


def test_drafts_share_the_budget():
    """Two sequences and 5 tokens a step: the first takes 4, the second its token alone."""
    made = served([0.0, 0.0], [2, 2], [5, 2], max_num_batched_tokens=5, speculation=Speculation(3, 1.0))

    assert steps_of(made)["num_decodes"].tolist() == [0, 5]
    assert tokens_of(made, 0) == [1.0, *[2.0] * 4] and tokens_of(made, 1) == [1.0, 2.0]


def test_a_lookup_on_the_host_lengthens_steps_after_which_it_is_done():
    """Prompt of 8 in two chunks: nothing is drafted after the first."""
    made = served([0.0], [8], [2], max_num_batched_tokens=4, speculation=Speculation(3, 0.0, draft_s=0.25))

    assert tokens_of(made, 0) == [2.25, 3.5]
    assert {what: s for (what, _), s in made.time_by_source().items()}["drafting"] == 0.5


def test_a_draft_model_s_passes():
    """0.1 s a token, the drafter half of that: its first pass is on the step's 4 tokens, two more are on one each."""
    table = linear_table(0.0, tokens=0.1)
    made = served([0.0], [4], [2], table=table, speculation=Speculation(3, 0.0, draft_cost=0.5))

    assert tokens_of(made, 0) == pytest.approx([0.4 + 0.2 + 2 * 0.05, 2 * 0.7])
