"""Laws of adapters that come and go, on random small engines that preempt a lot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_adapters import PlainAdapters
from plain_engine import PlainEngine
from test_serving_laws import (
    accepts_of,
    compiled_engine,
    cost_table,
    options_of,
    plain_requests,
    run_compiled,
    small_engines,
)

from sim.serving.engine import PAUSED, REACHED, advance
from sim.serving.lookahead import next_end_s
from sim.serving.policies import compiled_policy
from sim.serving.removal import lose_memory, take_away
from sim.serving.request import COMPLETED
from sim.serving.residency import Residency, held
from sim.serving.verbs import submit

NUM_ADAPTERS = 5
PARTS = ("queue", "prefill", "decode", "recompute", "waiting_again", "host", "communication", "adapter_load")


CAPACITIES = st.integers(1, 6)


def residencies(capacities=CAPACITIES):
    """Times that no sum of steps and gaps meets: a load that ends just as a request arrives is seen before or after it
    by rounding."""
    loads = st.sampled_from([0.00123457, 0.0345679, 0.789123, 2.34561])
    evictions = st.sampled_from([0.0, 0.00098761, 0.0212347])
    return st.builds(
        lambda capacity, size, load_s, evict_s, is_overlapped: Residency(
            capacity, tuple(min(s, capacity) for s in size), tuple(load_s), tuple(evict_s), is_overlapped
        ),
        capacities, st.lists(st.sampled_from([1, 1, 2, 3]), min_size=NUM_ADAPTERS, max_size=NUM_ADAPTERS),
        st.lists(loads, min_size=NUM_ADAPTERS, max_size=NUM_ADAPTERS),
        st.lists(evictions, min_size=NUM_ADAPTERS, max_size=NUM_ADAPTERS), st.booleans(),
    )  # fmt: skip


@st.composite
def engines_with_adapters(draw, capacities=CAPACITIES):
    engine = draw(small_engines())
    num = len(engine["prompt"])
    adapters = draw(st.lists(st.integers(0, NUM_ADAPTERS), min_size=num, max_size=num))
    return engine | {"policy": draw(st.sampled_from(["chunked_prefill", "priority"])), "adapter": np.array(adapters),
                     "residency": draw(residencies(capacities))}  # fmt: skip


def advanced(state, policy, table, until_s) -> None:
    while advance(state, policy, table, until_s, 7, 0) == PAUSED:
        pass


def run_plain(engine, fits, cancels=()):
    requests = plain_requests(engine, fits)
    for request in requests:
        request.adapter = int(engine["adapter"][request.number])
    adapters = PlainAdapters(engine["residency"])
    plain = PlainEngine(
        requests, cost_table(), **options_of(engine), accepts=accepts_of(engine), adapters=adapters,
        cancelled=[(when, next(r for r in requests if r.number == who)) for when, who in cancels],
    )  # fmt: skip
    plain.run()
    return plain, requests, adapters


@settings(max_examples=300, deadline=None)
@given(engines_with_adapters())
def test_compiled_and_plain_engines_load_the_same_adapters_at_the_same_times(engine):
    state, requests, token_time_s, fits = run_compiled(engine, engine["cuts"])
    plain, everybody, adapters = run_plain(engine, fits)

    rows = state.steps[: state.counts["num_recorded"][0]]
    fields = ["started_s", "finished_s", "num_prefill_tokens", "num_decodes", "num_kv_blocks"]
    assert [tuple(row[f].item() for f in fields) for row in rows] == plain.steps
    found = [int(state.counts[n][0]) for n in ("num_loads", "num_evictions", "num_joined", "num_joined_at_once")]
    assert found == [adapters.num_loads, adapters.num_evictions, adapters.joined, adapters.at_once]
    for request in everybody:
        row, split = requests[request.number], state.splits[request.number]
        assert token_time_s[row["first_token"] :][: request.output].tolist() == request.token_times_s
        e2e_s = row["finished_s"] - row["arrival_s"]
        assert [split[f"{part}_s"] for part in PARTS] == pytest.approx(
            [request.parts_s[part] for part in PARTS], rel=1e-9, abs=1e-9 * e2e_s
        )
        assert sum(split[f"{part}_s"] for part in PARTS) == pytest.approx(e2e_s, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(engines_with_adapters())
def test_no_more_adapters_are_there_than_have_room_and_none_goes_that_is_in_use(engine):
    """Looked at after every step."""
    state, requests, token_time_s, fits = compiled_engine(engine)
    table, policy = cost_table(), compiled_policy(engine["policy"])
    counts, adapters, capacity = state.counts, state.adapters, engine["residency"].capacity
    is_going_on = True
    while is_going_on:
        is_going_on = advance(state, policy, table, np.inf, 1, 0) != REACHED
        num_there, room = held(adapters)
        assert room == capacity - counts["adapter_room"][0] <= capacity
        came = counts["num_adapters_given"][0] + counts["num_loads"][0]
        assert num_there == came - counts["num_evictions"][0]
        in_use = requests["adapter"][state.running[: counts["num_running"][0]]]
        assert adapters["is_there"][in_use].all()
    assert (requests["outcome"][fits] == COMPLETED).all()
    assert counts["num_completed"][0] == fits.sum()
    known = np.flatnonzero(~np.isnan(token_time_s))
    assert len(known) == requests["num_output_tokens"][fits].sum()


@settings(max_examples=100, deadline=None)
@given(engines_with_adapters(capacities=st.just(15)))
def test_with_room_for_all_nothing_changes(engine):
    state, requests, token_time_s, _ = run_compiled(engine, engine["cuts"])
    without, *found = run_compiled(engine | {"residency": None}, engine["cuts"])

    assert token_time_s.tobytes() == found[1].tobytes()
    assert requests.tobytes() == found[0].tobytes()
    assert state.splits.tobytes() == without.splits.tobytes()
    assert state.steps.tobytes() == without.steps.tobytes()
    assert state.counts["num_loads"][0] == 0


@settings(max_examples=200, deadline=None)
@given(engines_with_adapters())
def test_nobody_ends_before_the_moment_that_is_foreseen(engine):
    """From moment to moment, loads beside the steps among them, an engine does what it does in one go."""
    state, requests, token_time_s, _ = compiled_engine(engine)
    _, _, expected_s, _ = run_compiled(engine)
    policy, table = compiled_policy(engine["policy"]), cost_table()
    while (next_s := next_end_s(state, table)) < np.inf:
        before = requests["outcome"] == COMPLETED
        advanced(state, policy, table, next_s)
        ended = requests["finished_s"][(requests["outcome"] == COMPLETED) & ~before]
        assert (ended == next_s).all()
    assert token_time_s.tobytes() == expected_s.tobytes()


@settings(max_examples=200, deadline=None)
@given(engines_with_adapters(), st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 13)), max_size=8))
def test_cancelled_requests_leave_adapters_as_they_leave_the_plain_ones(engine, cancels):
    state, requests, token_time_s, fits = compiled_engine(engine)
    policy, table = compiled_policy(engine["policy"]), cost_table()
    cancels = sorted((when, who) for when, who in {who: (when, who) for when, who in cancels}.values()
                     if who < len(fits) and fits[who])  # fmt: skip
    for when, who in cancels:
        advanced(state, policy, table, when)
        if requests["outcome"][who] != COMPLETED:
            take_away(state, who)
    advanced(state, policy, table, np.inf)

    plain, everybody, adapters = run_plain(engine, fits, cancels)
    assert state.counts["num_steps"][0] == len(plain.steps)
    assert state.counts["num_loads"][0] == adapters.num_loads
    for request in everybody:
        times = token_time_s[requests[request.number]["first_token"] :][: request.output]
        assert times[~np.isnan(times)].tolist() == request.token_times_s


@settings(max_examples=60, deadline=None)
@given(engines_with_adapters(), st.floats(0.0, 5.0), st.integers(0, 14))
def test_a_death_loses_adapters_and_leaves_the_books_right(engine, died_s, num_lost):
    """Everything taken away and the memory lost, and the last requests then sent again to the same engine."""
    state, requests, _, fits = compiled_engine(engine)
    policy, table = compiled_policy(engine["policy"]), cost_table()
    advanced(state, policy, table, died_s)
    gone = np.flatnonzero(fits & (requests["outcome"] != COMPLETED))
    for request in gone:
        take_away(state, int(request))
    lose_memory(state)
    again = gone[:num_lost]
    requests["submitted_s"][again] = np.maximum(died_s, requests["arrival_s"][again])
    state.counts["now_s"] = max(float(state.counts["now_s"][0]), died_s)
    for request in again:
        state = submit(state, int(request))
    advanced(state, policy, table, np.inf)

    num_there, room = held(state.adapters)
    came, went = (sum(int(state.counts[name][0]) for name in names) for names in
                  (("num_adapters_given", "num_loads"), ("num_evictions", "num_adapters_lost")))  # fmt: skip
    assert num_there == came - went
    assert room + state.counts["adapter_room"][0] == engine["residency"].capacity >= room
    assert (requests["outcome"][again] == COMPLETED).all()
