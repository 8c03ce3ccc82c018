"""Where a request's time goes, by hand. A step takes 1 s unless said otherwise; blocks hold 4 tokens."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, workload

from sim.engine.recorder import Recorder
from sim.serving.time_split import PARTS


def parts(made, request):
    """The parts that are not 0, in seconds."""
    split = made.time_split()
    assert split["request"][request] == request
    found = {part: float(split[f"{part}_s"][request]) for part in PARTS}
    assert sum(found.values()) == pytest.approx(split["e2e_s"][request])
    return {part: pytest.approx(seconds) for part, seconds in found.items() if seconds != 0}


def test_a_request_alone():
    """Arrives at 0, prompt in one step, three tokens."""
    assert parts(served([0.0], [4], [3]), 0) == {"prefill": 1.0, "decode": 2.0}


@pytest.mark.parametrize("is_async", [False, True])
def test_the_queue_ends_when_the_first_step_starts(is_async):
    """Request 1 comes at 0.5, while step 0 … 1 runs. An asynchronous engine has formed step 1 … 2 by then."""
    made = served([0.0, 0.5], [4, 4], [4, 2], is_async=is_async)

    assert parts(made, 1) == {"queue": 1.5 if is_async else 0.5, "prefill": 1.0, "decode": 1.0}
    # The steps of both: whoever runs beside another's prompt decodes.
    assert parts(made, 0) == {"prefill": 1.0, "decode": 3.0}


def test_a_slow_host_is_what_steps_take_beyond_the_accelerator():
    made = served([0.0], [4], [3], host_s=1.25)

    assert parts(made, 0) == {"prefill": 1.0, "decode": 2.0, "host": 0.75}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_preempted_request_waits_again_and_computes_again(is_async):
    """Synchronous: two prompts of 4 tokens, 8 and 6 out, in 4 blocks of 4 tokens.

    Step 0 … 1 computes both prompts (a block each), 1 … 2 takes each one's second block, for tokens 5 to 8. After the
    step 4 … 5 both have 8 tokens computed and 5 generated, and no block is free: request 0 takes those of request 1,
    which waits until request 0 has its 8th token at 8. It then computes its 9 known tokens again and has its 6th at 9.

    Asynchronous: the step 5 … 6 is formed at 4, when 7 tokens are computed and the 8th is on its way, so the same
    happens to the same step; the slot that request 0 leaves at 8 is seen by the step that is formed then.
    """
    made = served([0.0, 0.0], [4, 4], [8, 6], num_blocks=4, is_async=is_async)

    assert made.requests["num_preemptions"].tolist() == [0, 1]
    assert parts(made, 0) == {"prefill": 1.0, "decode": 7.0}
    assert parts(made, 1) == {"prefill": 1.0, "decode": 4.0, "waiting_again": 3.0, "recompute": 1.0}


@pytest.mark.parametrize(("is_caching", "num_tokens"), [(False, 9), (True, 5)])
def test_what_the_cache_has_kept_is_not_computed_again(is_caching, num_tokens):
    """As above with 6 tokens out each, in steps of 1 s and 1/8 s per token.

    Request 0 needs one block more than the two it has; of the two that request 1 gave up it takes the one from the end.
    So a cache still has the first block of request 1 when request 0 is done: 4 of its 9 tokens.
    """
    table = linear_table(1.0, tokens=0.125)
    made = served([0.0, 0.0], [4, 4], [6, 6], table=table, num_blocks=4, is_caching=is_caching)

    assert made.requests["num_preemptions"].tolist() == [0, 1]
    assert parts(made, 1)["recompute"] == 1 + num_tokens / 8


def test_communication_inside_the_host_is_a_part_of_its_own():
    """Of a step 1 s is computing; each sequence adds 0.25 s of communication."""
    table = linear_table(1.0, sequences=0.25)
    table.tags[1, 1] = 1
    made = served([0.0, 0.0], [4, 4], [2, 3], table=table)

    assert parts(made, 0) == {"prefill": 1.0, "decode": 1.0, "in_host_communication": 1.0}
    assert parts(made, 1) == {"prefill": 1.0, "decode": 2.0, "in_host_communication": 1.25}


def test_the_table_has_a_row_per_completed_request_and_metrics_are_its_means():
    made = served([0.0, 0.0, 1.0], [4, 8, 999], [3, 2, 1])
    recorder = Recorder()
    made.record(recorder)
    frame = recorder.frames()["time_split"]

    assert frame["request"].tolist() == [0, 1]
    assert frame["e2e_s"].tolist() == [3.0, 2.0]
    metrics = made.metrics()
    assert metrics["mean_decode_ms"] == 1500.0
    assert sum(metrics[f"mean_{part}_ms"] for part in PARTS) == pytest.approx(metrics["mean_e2el_ms"])


def test_a_request_that_ends_after_the_clock_has_no_row():
    made = workload([0.0, 0.0], [4, 4], [2, 9])
    made.start()
    made.clock.run(until=3.0)

    assert made.time_split()["request"].tolist() == [0]
    assert made.metrics()["mean_decode_ms"] == 1000.0
    assert np.isnan(made.requests["finished_s"]).sum() <= 1
