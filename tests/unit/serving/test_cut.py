"""Runs that are cut: what is counted is what had happened by then. Every step takes one second."""

from __future__ import annotations

import pytest
from serving_parts import served, tokens_of, workload

from sim.engine.clock import Clock
from sim.serving.speculation import Speculation


def cut_at(cut_s, *arguments, **options):
    """A run that is to be cut, as a scenario with max_time is."""
    clock = Clock()
    clock.cut_s = cut_s
    made = workload(*arguments, clock=clock, **options)
    clock.run(until=made.start() | clock.timeout(cut_s))
    return made


@pytest.mark.parametrize(("cut_s", "num_steps"), [(0.5, 0), (1.0, 1), (2.0, 2), (2.5, 2), (99.5, 99), (1000.0, 100)])
def test_steps_are_counted_that_had_ended(cut_s, num_steps):
    """At its very end a step has ended. The run is over when the request is, if that comes first."""
    made = cut_at(cut_s, [0.0], [4], [100])
    assert made.num_steps == num_steps
    assert made.clock.now == min(cut_s, 100.0)
    made.check()


@pytest.mark.parametrize(("cut_s", "num_swapped"), [(4.5, 0), (5.5, 1), (7.5, 1)])
def test_who_was_swapped_is_counted_if_it_had_happened(cut_s, num_swapped):
    """Two requests in 4 blocks of 4 tokens: when step 6 is formed, at 5, the second gives way, and not before."""
    requests = [0.0, 0.0], [4, 4], [6, 6]
    made = cut_at(cut_s, *requests, num_blocks=4, num_host_blocks=2)
    assert made.metrics()["num_swapped"] == made.metrics()["num_preemptions"] == num_swapped
    assert served(*requests, num_blocks=4, num_host_blocks=2).metrics()["num_swapped"] == 1


@pytest.mark.parametrize(("cut_s", "num_drafts"), [(0.5, 0), (1.5, 0), (2.0, 1), (2.5, 1), (40.5, 39)])
def test_drafts_are_counted_that_had_been_verified(cut_s, num_drafts):
    """Step 1 computes the prompt; each step after it verifies one draft of 3 tokens, which all hold."""
    made = cut_at(cut_s, [0.0], [4], [400], num_blocks=400, speculation=Speculation(3, 1.0))
    metrics = made.metrics()
    assert metrics["spec_decode_num_drafts"] == num_drafts
    assert metrics["spec_decode_draft_tokens"] == metrics["spec_decode_accepted_tokens"] == 3 * num_drafts


def test_nothing_else_changes():
    """Tokens up to the cut are those of the whole run."""
    whole, cut = served([0.0, 0.5], [4, 6], [30, 9]), cut_at(7.0, [0.0, 0.5], [4, 6], [30, 9])
    for request in (0, 1):
        assert tokens_of(cut, request) == [time_s for time_s in tokens_of(whole, request) if time_s <= 7.0]
