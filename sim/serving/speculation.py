"""Speculative decoding: several tokens of a sequence in one step.

A drafter proposes num_tokens tokens; the model computes them in one step behind the last token it knows, and takes
those that it would have said itself: one after another with probability `acceptance`, until the first that it would
not. With that one, or behind the last, comes one token of its own, so that a step brings (1 - a^(k + 1)) / (1 - a)
tokens of a sequence on average.

Whether a draft is taken is a property of the token, keyed by (seed, request, position): alike under every policy, batch
and number of drafts.

Leaves out: acceptance that depends on the text or falls with the position beyond 1 - a each; memory of a draft model.

Source: Leviathan et al., Fast inference from transformers via speculative decoding, ICML 2023; slots and budget as in
vLLM 0.19's scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.compiled import borrowing, inner_borrowing
from sim.serving.token_routing import token_key


@dataclass(frozen=True, slots=True)
class Speculation:
    """What is drafted, and how well.

    num_tokens       drafts of a sequence a step; shorter where the step's tokens run out
    acceptance       probability that a draft is taken, if all before it were
    num_lookahead    slots beyond the drafts that the drafter itself fills
    draft_s          time of drafting for a step's sequences between two steps
    draft_cost       time of the drafter's one pass over a step's tokens, as a share of the step's own
    flop_share, byte_share    of one query's attention over a context: the time of its arithmetic and of its bytes, the
                     larger being 1
    seed             of the draws
    """

    num_tokens: int
    acceptance: float
    num_lookahead: int = 0
    draft_s: float = 0.0
    draft_cost: float = 0.0
    flop_share: float = 0.0
    byte_share: float = 1.0
    seed: int = 0

    @property
    def num_slots(self) -> int:
        """Blocks' slots that a sequence needs at most beyond its known tokens."""
        return self.num_tokens + self.num_lookahead


@borrowing
def is_accepted(seed: int, acceptance: float, request: int, position: int) -> bool:
    """Whether the draft of a request's output token number `position` is taken."""
    key = token_key(np.uint64(seed), request, position)
    return float(key >> np.uint64(11)) * 2.0**-53 < acceptance


@inner_borrowing
def query_weight(counts, num_queries: int) -> float:
    """Time of the attention of several queries over one context, read once, in times of that of one query:
    max(n · arithmetic, bytes)."""
    return max(num_queries * counts.flop_share, counts.byte_share)


@inner_borrowing
def slots_ahead(counts, row) -> int:
    """Slots beyond the tokens of a request's next step that have to be there."""
    return counts.num_lookahead if row.num_drafts > 0 else 0


@inner_borrowing
def verify(counts, row, request: int, num_drafts: int) -> int:
    """Take the drafts that hold, and give back the places of the others; returns the tokens that the step brought, none
    beyond the last."""
    accepted = 0
    while accepted < num_drafts and is_accepted(
        counts.draft_seed, counts.acceptance, request, row.num_generated + accepted
    ):
        accepted += 1
    row.num_computed -= num_drafts - accepted
    counts.num_verified += 1
    counts.num_drafted += num_drafts
    counts.num_accepted += accepted
    return min(1 + accepted, row.num_output_tokens - row.num_generated)
