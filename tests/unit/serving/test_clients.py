"""Closed loops against closed forms, timeouts step by step. Steps take one second unless told otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of, workload

from sim.engine.recorder import Recorder
from sim.serving.clients import ClosedLoop, OpenLoop, Patience, Sessions
from sim.serving.fleet import Fleet, Outage
from sim.serving.front import Front
from sim.serving.request import COMPLETED, OUTCOMES, TIMED_OUT
from sim.workload.sessions import session_contents, session_prompts


def closed(num_clients, num, prompt=4, output=5, think_s=0.0, duration_s=None, **options):
    front = Front(ClosedLoop(num_clients, num, lambda _: think_s, duration_s))
    return served([0.0] * num, [prompt] * num, [output] * num, front=front, **options)


@pytest.mark.parametrize(("think_s", "is_async"), [(0.0, False), (2.5, False), (0.0, True), (2.5, True)])
def test_one_client_and_equal_steps(think_s, is_async):
    """m tokens take m steps of 1 s, the first of them the prompt's. An asynchronous engine is idle when the request
    comes, so that it waits for nothing. Throughput 1 / (m + Z), over n requests and n - 1 thoughts."""
    made = closed(1, 40, output=5, think_s=think_s, is_async=is_async)

    assert (made.requests["finished_s"] - made.requests["arrival_s"]).tolist() == pytest.approx([5.0] * 40)
    assert made.clock.now == pytest.approx(40 * 5 + 39 * think_s)


def test_as_many_clients_as_slots_keep_them_full():
    """8 requests of 5 steps at a time: X = 8 / 5."""
    made = closed(8, 400, output=5, max_num_seqs=8)
    assert made.clock.now == 400 / 8 * 5


def test_more_clients_than_slots_wait_in_line():
    """S = 4 slots serve X = S / m; N = X (R + Z) gives R = N m / S - Z = 12 · 5 / 4 - 3 = 12 once they have spread."""
    made = closed(12, 1200, output=5, think_s=3.0, max_num_seqs=4)

    late = made.requests[400:1000]
    assert (late["finished_s"] - late["arrival_s"]).mean() == pytest.approx(12.0, rel=0.01)
    assert made.metrics()["request_throughput"] == pytest.approx(4 / 5, rel=0.02)


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_little_s_law(num_replicas):
    """N = X (R + Z) over a window: each of N clients either waits or thinks at every moment, so that the integral N T
    of both is the sum of the times they waited and thought, up to one cycle of each client at either edge."""
    rng = np.random.default_rng(4)
    thinks: list[float] = []

    def think(_: int) -> float:
        thinks.append(float(rng.exponential(0.7)))
        return thinks[-1]

    n, num = 20, 3000
    front = Front(ClosedLoop(n, num, think))
    made = served(
        [0.0] * num, rng.integers(1, 30, num), rng.integers(1, 40, num), front=front, num_replicas=num_replicas,
        router="least_outstanding", num_blocks=200, table=linear_table(0.02, tokens=1e-3, decode_context=1e-5),
    )  # fmt: skip
    requests = made.requests
    outstanding = [((requests["arrival_s"] <= t) & (requests["finished_s"] > t)).sum() for t in requests["arrival_s"]]
    assert max(outstanding) <= n
    last_s = requests["arrival_s"].max()
    seen = requests[requests["finished_s"] <= last_s]
    latency_s = (seen["finished_s"] - seen["arrival_s"]).mean()
    assert len(seen) / last_s * (latency_s + np.mean(thinks)) == pytest.approx(n, rel=0.02)
    # Exactly, without edges: all that was waited and thought until the last send, client by client.
    waited_s = (np.minimum(requests["finished_s"], last_s) - requests["arrival_s"]).sum()
    sends = np.sort(requests["arrival_s"])[n:]
    ends = np.sort(requests["finished_s"])
    thought_s = (sends - 0).sum() - ends[: num - n].sum() + (last_s - ends[num - n :][ends[num - n :] < last_s]).sum()
    assert waited_s + thought_s == pytest.approx(n * last_s, rel=1e-12)


def test_a_duration_ends_the_sending_and_not_the_serving():
    made = closed(2, 100, output=5, duration_s=12.0)
    # Both send at 0, 5 and 10 s; what was sent at 10 is served to its end.
    arrived = made.requests[made.requests["outcome"] == OUTCOMES.index("completed")]
    assert sorted(arrived["arrival_s"]) == [0, 0, 5, 5, 10, 10]
    assert made.metrics()["arrived"] == 6 and made.clock.now == 15.0


def test_clients_begin_over_a_ramp():
    """Four clients over 8 s begin at 0, 2, 4 and 6 s; requests of 5 steps follow one another at once."""
    made = served([0.0] * 8, [4] * 8, [5] * 8, front=Front(ClosedLoop(4, 8, ramp_s=8.0)))
    assert sorted(made.requests["arrival_s"]) == [0, 2, 4, 5, 6, 7, 9, 10]
    assert made.requests["arrival_s"][:4].tolist() == [0, 2, 4, 6]
    assert "num_at_once" not in made.queue() and closed(4, 8).queue()["num_at_once"] == 4


def test_a_ramp_takes_the_herd_out_of_the_tail():
    """40 clients, 40 slots, prompts of 1 s each in a step: whoever begins with 39 others waits for up to 40 prompts,
    one in 10 s hardly for anybody; both send the same requests, and both have as many clients in the end."""
    rng = np.random.default_rng(3)
    num, think = 400, rng.exponential(400.0, 400).tolist().__getitem__
    tail = {}
    for ramp_s in (0.0, 400.0):
        made = served([0.0] * num, [10] * num, [2] * num, front=Front(ClosedLoop(40, num, think, ramp_s=ramp_s)),
                      table=linear_table(0.01, tokens=0.1), num_blocks=1000)  # fmt: skip
        tail[ramp_s] = made.metrics()["p99_ttft_ms"]
        assert made.metrics()["completed"] == num
        if ramp_s == 0:
            assert made.queue()["p99_ttft_later_s"] < 0.4 * made.queue()["p99_ttft_s"]
    assert tail[400.0] < 0.4 * tail[0.0]


def test_whoever_would_begin_after_the_end_does_not():
    made = served([0.0] * 9, [4] * 9, [5] * 9, front=Front(ClosedLoop(4, 9, duration_s=5.0, ramp_s=8.0)))
    sent = made.requests[made.requests["outcome"] == COMPLETED]
    assert sent["arrival_s"].tolist() == [0, 2, 4] and made.metrics()["arrived"] == 3


def test_a_request_that_is_refused_is_answered_at_once():
    made = served([0.0] * 3, [4, 999, 4], [2, 1, 2], front=Front(ClosedLoop(1, 3)))
    assert [OUTCOMES[o] for o in made.requests["outcome"]] == ["completed", "failed", "completed"]
    assert made.requests["arrival_s"].tolist() == [0, 2, 2]
    assert made.progress == (3, 3)


def patient(arrivals, prompts, outputs, *patience, **options):
    front = Front(OpenLoop(np.asarray(arrivals, float)), Patience(*patience))
    return served(arrivals, prompts, outputs, front=front, **options)


def test_who_has_waited_too_long_leaves_and_the_slot_is_free():
    """One slot, 10 steps each. At 4.5 s the first is given up in the middle of its fifth step, which is finished for
    nobody: the second begins at 5 s and ends in time."""
    made = patient([0.0, 4.0], [4, 4], [10, 3], 4.5, max_num_seqs=1)

    assert [OUTCOMES[o] for o in made.requests["outcome"]] == ["timed out", "completed"]
    assert tokens_of(made, 0) == [] and tokens_of(made, 1) == [6, 7, 8]
    metrics = made.metrics()
    assert (metrics["timed_out"], metrics["num_retries"], metrics["lost_output_tokens"]) == (1, 0, 4)
    assert made.notes() == ["1 requests timed out"]


def test_an_answer_at_the_very_moment_counts():
    made = patient([0.0], [4], [5], 5.0)
    assert made.metrics()["completed"] == 1


def test_the_first_token_may_end_the_wait():
    made = patient([0.0, 0.0], [4, 4], [10, 1], 2.0, True, max_num_seqs=1)
    assert [OUTCOMES[o] for o in made.requests["outcome"]] == ["completed", "timed out"]


def first_token_lost(died_s, others):
    """A first token by 2 s at most, two replicas of one slot. Request 0 has its first token at 1 s; then its replica
    dies, and the other one has a request of so many steps."""
    patience, fleet = Patience(2.0, True), Fleet([Outage((0,), died_s)])
    return served([0.0, 0.0], [4, 4], [10, others], num_replicas=2, max_num_seqs=1,
                  front=Front(OpenLoop(np.zeros(2)), patience, fleet))  # fmt: skip


def test_a_first_token_that_is_lost_is_waited_for_again():
    """Lost at 4.5 s, it has to come again by 6.5 s: it does at 6 where the other slot is free at 5."""
    assert tokens_of(first_token_lost(4.5, 5), 0) == [6.0 + i for i in range(10)]
    late = first_token_lost(4.5, 30)
    assert [OUTCOMES[o] for o in late.requests["outcome"]] == ["timed out", "completed"]
    assert late.front.num_lost.tolist() == [4, 0]


def test_and_has_the_whole_time_again():
    """Lost at 1.5 s, when the first wait had 0.5 s left: by 3.5 s. It does at 3, and at 4 it would be too late."""
    assert tokens_of(first_token_lost(1.5, 2), 0) == [3.0 + i for i in range(10)]
    assert OUTCOMES[first_token_lost(1.5, 3).requests["outcome"][0]] == "timed out"


def test_who_had_no_first_token_goes_on_waiting():
    """Lost at 0.5 s, in the middle of the first step: still by 2 s, and at 2 the other slot is free."""
    assert OUTCOMES[first_token_lost(0.5, 2).requests["outcome"][0]] == "timed out"
    assert tokens_of(first_token_lost(0.5, 1), 0) == [2.0 + i for i in range(10)]


def test_another_attempt_waits_twice_as_long_each_time():
    """One slot is taken for 20 s. Attempts of the second: sent at 1, given up at 3; 4 to 6; 8 to 10; then no more."""
    made = patient([0.0, 1.0], [4, 4], [20, 1], 2.0, True, 2, 1.0, max_num_seqs=1)
    assert made.requests["submitted_s"][1] == 8.0
    assert made.front.num_sent.tolist() == [1, 3]
    assert [OUTCOMES[o] for o in made.requests["outcome"]] == ["completed", "timed out"]
    made = patient([0.0, 1.0], [4, 4], [9, 1], 2.0, True, 2, 1.0, max_num_seqs=1)
    # Sent again at 8, it is scheduled at 9 and answered at 10.
    assert made.requests["first_token_s"][1] == 10.0 and made.requests["arrival_s"][1] == 1.0
    assert made.metrics()["mean_ttft_ms"] == 1e3 * (1 + 9) / 2
    frame_columns = made.front.columns(np.arange(2))
    assert frame_columns["num_attempts"].tolist() == [1, 3]


def test_a_run_cut_short_counts_who_waits_for_another_attempt():
    made = workload([0.0, 1.0], [4, 4], [20, 1], max_num_seqs=1,
                    front=Front(OpenLoop(np.array([0.0, 1.0])), Patience(2.0, True, 2, 5.0)))  # fmt: skip
    made.start()
    made.clock.run(until=5.0)
    made.check()
    assert made.front.num_between == 1 and made.metrics()["unfinished"] == 2


def test_turns_follow_one_another_and_find_what_was_said():
    """Blocks of 4. Turn 1: 8 tokens in, 5 out, of which the last is never computed: 12 tokens, 3 blocks. Turn 2 has
    13 + 3 = 16 tokens, of which 12 are found; a second session finds nothing of the first."""
    turns, new, output = np.array([2, 1]), np.array([8, 3, 8]), np.array([5, 2, 1])
    prompt = session_prompts(turns, new, output)
    front = Front(Sessions(OpenLoop(np.array([0.0, 20.0])), turns, lambda _: 2.5))
    contents = session_contents(turns, prompt, output, 4)
    made = served(np.zeros(3), prompt, output, front=front, is_caching=True, contents=contents)
    assert prompt.tolist() == [8, 16, 8]
    assert made.requests["arrival_s"].tolist() == [0.0, 7.5, 20.0]
    assert made.requests["num_cached"].tolist() == [0, 12, 0]


def test_a_session_breaks_off_where_it_is_not_answered():
    """A closed loop of one client: the first session's second turn is refused, its third never asked."""
    turns = np.array([3, 2])
    front = Front(Sessions(ClosedLoop(1, 2), turns, lambda _: 1.0))
    made = served(np.zeros(5), [4, 999, 4, 4, 4], [2] * 5, front=front)
    assert [OUTCOMES[o] for o in made.requests["outcome"]] == [
        "completed", "failed", "not arrived", "completed", "completed",
    ]  # fmt: skip
    assert made.requests["arrival_s"][[0, 1, 3, 4]].tolist() == [0, 3, 3, 6]
    assert made.metrics()["arrived"] == 4
    frames = Recorder()
    made.record(frames)
    assert frames.frames()["requests"]["request"].tolist() == [0, 1, 3, 4]


def test_prefix_affinity_keeps_a_session_where_it_began():
    rng = np.random.default_rng(6)
    turns = rng.integers(1, 6, 60)
    num = int(turns.sum())
    new, output = rng.integers(8, 40, num), rng.integers(8, 20, num)
    prompt = session_prompts(turns, new, output)
    hit_rate = {}
    for router in ("round_robin", "prefix_affinity"):
        front = Front(Sessions(OpenLoop(np.cumsum(rng.exponential(1.0, 60))), turns, lambda _: 2.0))
        made = served(np.zeros(num), prompt, output, front=front, is_caching=True, num_replicas=3, router=router,
                      contents=session_contents(turns, prompt, output, 4), num_blocks=5000,
                      table=linear_table(0.05, tokens=1e-3))  # fmt: skip
        hit_rate[router] = made.metrics()["prefix_cache_hit_rate"]
        if router == "prefix_affinity":
            first = np.repeat(np.cumsum(turns) - turns, turns)
            assert (made.requests["replica"] == made.requests["replica"][first]).all()
    assert hit_rate["prefix_affinity"] > 1.5 * hit_rate["round_robin"]


@pytest.mark.parametrize("is_async", [False, True])
def test_who_gives_up_in_the_line_lets_those_behind_in(is_async):
    """Request 0 decodes for long; 1 finds no room for its prompt, and 2, small enough, waits behind it. When 1 gives up
    at 4.5 s, 2 joins the next batch that is formed, though 0's decodes had been foreseen far ahead."""
    made = served(
        [0.0, 0.1, 3.0], [4, 40, 4], [30, 1, 1], num_blocks=11, is_async=is_async,
        front=Front(OpenLoop(np.array([0.0, 0.1, 3.0])), Patience(4.4, is_for_first=True)),
    )  # fmt: skip
    assert made.requests["outcome"].tolist() == [COMPLETED, TIMED_OUT, COMPLETED]
    assert made.requests["scheduled_s"][2] == 5.0
