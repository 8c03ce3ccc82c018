"""Laws of the serving engine, on random small engines that preempt a lot."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import PlainEngine, PlainRequest

from models.adapters import Adapter
from models.cost.step import StepTable, roofline_table
from models.experts import Popularity
from models.features import Feature
from models.touched import adapter_mix
from sim.devices.kv_cache import Contents, check_kv_cache, new_holdings
from sim.devices.kv_tiers import TierLimits, check_tiers
from sim.engine.clock import Clock
from sim.serving.engine import PAUSED, advance
from sim.serving.policies import BATCHING_POLICIES, RESERVING, compiled_policy
from sim.serving.replica import EngineLimits
from sim.serving.request import COMPLETED, FAILED, new_requests, new_token_times
from sim.serving.speculation import Speculation, is_accepted
from sim.serving.state import EngineState, new_engine_state
from sim.serving.verbs import submit
from sim.serving.workload import ServingWorkload


def cost_table(fixed_s=1e-3, per_token_s=1e-4, per_pair_s=1e-6, per_context_s=1e-5) -> StepTable:
    """One operator per feature that the engine sums, so that a wrong sum shows in the time."""
    rows = [
        (Feature.ONE, Feature.TOKENS, fixed_s),
        (Feature.TOKENS, Feature.TOKENS, per_token_s),
        (Feature.SEQUENCES, Feature.SEQUENCES, per_token_s / 3),
        (Feature.PREFILL_PAIRS, Feature.PREFILL_PAIRS, per_pair_s),
        (Feature.PREFILL_CONTEXT, Feature.PREFILL_CONTEXT, per_context_s / 7),
        (Feature.DECODE_CONTEXT, Feature.DECODES, per_context_s),
    ]
    work = np.zeros((len(rows), 2, len(Feature)))
    tags = np.zeros((len(rows), 3), dtype=np.int64)
    for i, (feature, runs_on, seconds) in enumerate(rows):
        work[i, 0, feature] = seconds
        tags[i, 0] = runs_on
    tags[2, 1] = 1
    num = len(rows)
    return roofline_table(work, np.ones((num, 2)), np.zeros(num), np.ones(num), tags, np.zeros(1), 0.0)


DRAFTING = ("chunked_prefill", "shortest_first", "priority")


def speculations():
    return st.builds(
        Speculation, st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.8, 1.0]), num_lookahead=st.sampled_from([0, 3]),
        draft_s=st.sampled_from([0.0, 1e-3]), draft_cost=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99),
    )  # fmt: skip


@st.composite
def small_engines(draw):
    block_size = draw(st.sampled_from([1, 2, 3, 4, 16]))
    num_blocks = draw(st.integers(1, 40))
    num = draw(st.integers(1, 14))
    most = max(num_blocks * block_size * 7 // 10, 1)
    lengths = st.integers(1, min(most, 60))
    gaps = st.sampled_from([0.0, 0.0, 0.0005, 0.01, 0.0731, 1.0])
    policy = draw(st.sampled_from(sorted(BATCHING_POLICIES)))
    speculation = draw(st.none() | speculations()) if policy in DRAFTING else None
    return {
        "policy": policy,
        "speculation": speculation,
        "block_size": block_size,
        "num_blocks": num_blocks,
        "max_num_seqs": draw(st.integers(1, 8)),
        "budget": draw(st.integers(1, 40)),
        "host_s": draw(st.sampled_from([0.0, 0.002, 0.02])),
        "arrival_s": np.cumsum(draw(st.lists(gaps, min_size=num, max_size=num))),
        "prompt": np.array(draw(st.lists(lengths, min_size=num, max_size=num))),
        "output": np.array(draw(st.lists(lengths, min_size=num, max_size=num))),
        "cuts": draw(st.lists(st.floats(0.0, 3.0), max_size=6)),
        "is_async": draw(st.booleans()) and speculation is None,
        "ends_unforeseen": draw(st.booleans()),
        "is_caching": draw(st.booleans()),
        "max_graph_tokens": draw(st.sampled_from([0, 3, 16])),
        "families": draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)),
        "common": draw(st.integers(0, 8)),
        "precedence": np.array(draw(st.lists(st.integers(0, 2), min_size=num, max_size=num))),
        "host_blocks": draw(st.sampled_from([0, 0, 3, 8, 40])),
        "block_copy_s": draw(st.sampled_from([0.0, 3e-4])),
    }


@st.composite
def tiered_engines(draw):
    """With tiers behind a cache: what runs before what is fetched, and how often, is up to their room and rates."""
    engine = draw(small_engines())
    num = len(engine["prompt"])
    times = st.sampled_from([0.0, 1e-4, 3e-3, 0.05])
    room = st.sampled_from([0, 2, 5, 20, 20, 200])
    tiers = [TierLimits("host", draw(room), draw(times), draw(times))]
    if draw(st.booleans()):
        tiers.append(TierLimits("disk", draw(room), draw(times), draw(times)))
    policy = draw(st.sampled_from(["chunked_prefill", "shortest_first", "priority", "batchllm"]))
    speculation = draw(st.none() | speculations()) if policy in DRAFTING else None
    return engine | {
        "policy": policy, "tiers": tuple(tiers), "is_caching": True, "host_blocks": 0, "speculation": speculation,
        "is_async": engine["is_async"] and speculation is None,
        "families": draw(st.lists(st.sampled_from([0, 1, 1, 2]), min_size=num, max_size=num)),
        "common": draw(st.integers(1, 20)),
        "arrival_s": engine["arrival_s"] * draw(st.sampled_from([1.0, 10.0])),
    }  # fmt: skip


KEYS = ("policy", "num_blocks", "block_size", "max_num_seqs", "budget", "host_s", "is_async", "is_caching",
        "max_graph_tokens", "host_blocks", "block_copy_s", "speculation", "ends_unforeseen", "tiers")  # fmt: skip


def options_of(engine):
    """Of the plain engine."""
    return {key: engine[key] for key in KEYS if key in engine}


def contents_of(engine) -> list[tuple[int, ...]]:
    """What requests' leading full blocks hold: the first `common` ones are the family's, 0 shares nothing."""
    found = []
    families = engine.get("families", engine["prompt"] * 0)
    for i, (prompt, family) in enumerate(zip(engine["prompt"], families, strict=True)):
        num_full = int(prompt) // engine["block_size"] if family else 0
        shared = [1000 * int(family) + j for j in range(min(num_full, engine.get("common", 0)))]
        found.append((*shared, *(10_000 + 1000 * i + j for j in range(len(shared), num_full))))
    return found


def shared_contents(engine) -> Contents:
    """The same for the compiled engine."""
    given = contents_of(engine)
    start = np.cumsum([0, *(len(numbers) for numbers in given)])
    return Contents(start, np.array([n for numbers in given for n in numbers], np.int64))


def compiled_engine(engine, table=None):
    """Everything that fits submitted: (state, requests, token times, which fit)."""
    requests = new_requests(engine["arrival_s"], engine["prompt"], engine["output"], engine.get("adapter"))
    requests["precedence"] = engine.get("precedence", 0)
    token_time_s = new_token_times(requests)
    contents = shared_contents(engine)
    state = new_engine_state(
        requests,
        token_time_s,
        new_holdings(len(requests)),
        num_blocks=engine["num_blocks"],
        block_size=engine["block_size"],
        max_num_seqs=engine["max_num_seqs"],
        max_num_batched_tokens=engine["budget"],
        host_s=engine["host_s"],
        is_async=engine.get("is_async", False),
        ends_unforeseen=engine.get("ends_unforeseen", False),
        is_caching=engine.get("is_caching", False),
        max_graph_tokens=engine.get("max_graph_tokens", 0),
        contents=contents,
        num_host_blocks=engine.get("host_blocks", 0),
        block_copy_s=engine.get("block_copy_s", 0.0),
        speculation=engine.get("speculation"),
        tiers=engine.get("tiers", ()),
        residency=engine.get("residency"),
        num_step_rows=100_000,
        max_tokens=-1 if table is None else table.curves.shape[1] - 1,
    )
    more = engine["speculation"].num_slots if engine.get("speculation") else 0
    if engine["policy"] in RESERVING and engine.get("is_async") and engine.get("ends_unforeseen"):
        more = 1  # one place more is reserved
    fits = engine["prompt"] + engine["output"] - 1 + more <= engine["num_blocks"] * engine["block_size"]
    for request in np.flatnonzero(fits):
        state = submit(state, int(request))
    return state, requests, token_time_s, fits


def run_compiled(engine, cuts=(), table=None):
    """The compiled engine, stopped at each of `cuts` on its way, its books checked there."""
    state, requests, token_time_s, fits = compiled_engine(engine, table)
    table = cost_table() if table is None else table
    policy = compiled_policy(engine["policy"])
    for until_s in [*sorted(cuts), np.inf]:
        while advance(state, policy, table, until_s, 7, 0) == PAUSED:
            check_kv_cache(state.kv)
            check_tiers(state.tiers)
        check_kv_cache(state.kv)
        check_tiers(state.tiers)
        assert not (token_time_s > until_s).any()
    return state, requests, token_time_s, fits


def accepts_of(engine):
    """(request, position) -> whether the draft is accepted."""
    drafts = engine["speculation"]
    return None if drafts is None else partial(is_accepted, drafts.seed, drafts.acceptance)


def plain_requests(engine, fits) -> list[PlainRequest]:
    given = contents_of(engine)
    return [
        PlainRequest(
            int(i), float(engine["arrival_s"][i]), int(engine["prompt"][i]), int(engine["output"][i]), given[i],
            int(engine["precedence"][i]),
        )
        for i in np.flatnonzero(fits)
    ]


def run_plain(engine, fits) -> tuple[PlainEngine, list[PlainRequest]]:
    requests = plain_requests(engine, fits)
    plain = PlainEngine(requests, cost_table(), **options_of(engine), accepts=accepts_of(engine))
    plain.run()
    return plain, requests


@settings(max_examples=300, deadline=None)
@given(small_engines())
def test_compiled_and_plain_engines_take_the_same_steps_at_the_same_times(engine):
    check_against_plain(engine)


def check_against_plain(engine) -> tuple[EngineState, PlainEngine, list[PlainRequest]]:
    """Both engines' steps, tokens and counts; returns the state, and the plain engine and its requests."""
    state, requests, token_time_s, fits = run_compiled(engine, engine["cuts"])
    plain, everybody = run_plain(engine, fits)

    rows = state.steps[: state.counts["num_recorded"][0]]
    fields = ["started_s", "finished_s", "num_prefill_tokens", "num_decodes", "num_kv_blocks"]
    assert [tuple(row[f].item() for f in fields) for row in rows] == plain.steps
    for request in everybody:
        row = requests[request.number]
        first = row["first_token"]
        assert token_time_s[first : first + request.output].tolist() == request.token_times_s
        assert row["num_preemptions"] == request.preemptions
        assert row["num_swaps"] == request.swaps
        assert row["num_cached"] == request.cached
        assert row["scheduled_s"] == request.scheduled_s
        assert row["first_token_s"] == request.token_times_s[0]
        assert row["finished_s"] == request.token_times_s[-1]
    found = tuple(int(state.counts[name][0]) for name in ("num_verified", "num_drafted", "num_accepted"))
    assert found == (plain.verified, plain.drafted, plain.accepted)
    assert state.counts["num_discarded"][0] == plain.discarded
    return state, plain, everybody


EXPERT_S = 1.2345678e-3
LAYERS = [[0.5, 0.25, 1.0, 0.25], [0.9, 0.1, 0.3, 0.7]]
"""Chances of four experts in two layers, of which a token takes two."""
ADAPTERS = [Adapter("first", ((1, 2), (0,))), Adapter("second", ((), (0, 3)))]


def experts_table() -> StepTable:
    """So much for each expert of a layer that a step touches: no round number, for a step that ends just as a request
    arrives is seen before or after it by rounding."""
    work = np.zeros((1, 2, len(Feature)))
    work[0, 0, Feature.DISTINCT_EXPERTS] = EXPERT_S
    tags = np.array([[Feature.EXPERT_ROWS, 0, 0]])
    table = roofline_table(work, np.ones((1, 2)), np.zeros(1), np.ones(1), tags, np.full(100, np.nan), 2.0)
    return table._replace(mix=adapter_mix(Popularity(np.array(LAYERS), 2), ADAPTERS, 100))


class PlainAdapters(PlainEngine):
    """Counts slots one by one: an expert has one for the base and one for each adapter that has tuned it."""

    adapter: dict[int, int]

    def sums(self, batch):
        tokens = [0] * 3
        for part in batch:
            tokens[self.adapter[part.request.number]] += part.num
        tokens[0] += self.padded(sum(tokens)) - sum(tokens)
        touched = 0.0
        for layer, chances in enumerate(LAYERS):
            for expert, chance in enumerate(chances):
                slot = {0: 0, **{i + 1: i + 1 if expert in a.tuned[layer] else 0 for i, a in enumerate(ADAPTERS)}}
                for s in range(3):
                    touched += 1 - (1 - chance) ** sum(n for i, n in enumerate(tokens) if slot[i] == s)
        (_, copies_s), prompt, decodes = super().sums(batch)
        return (EXPERT_S * touched / len(LAYERS), copies_s), prompt, decodes

    def price(self, contexts, chunks):
        return 0.0, 0.0


@settings(max_examples=100, deadline=None)
@given(small_engines(), st.lists(st.integers(0, 2), min_size=14, max_size=14))
def test_a_step_touches_the_experts_of_its_own_requests_adapters(engine, adapters):
    engine |= {"adapter": np.array(adapters[: len(engine["prompt"])]), "speculation": None, "host_blocks": 0}
    _, _, token_time_s, fits = run_compiled(engine, engine["cuts"], experts_table())
    plain = PlainAdapters(plain_requests(engine, fits), cost_table(), **options_of(engine))
    plain.adapter = dict(enumerate(adapters))
    everybody = list(plain.to_come)
    plain.run()
    times = [time_s for request in everybody for time_s in request.token_times_s]
    assert token_time_s[~np.isnan(token_time_s)] == pytest.approx(times, rel=1e-9, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(small_engines())
def test_every_request_ends_once_and_blocks_come_back(engine):
    state, requests, _token_time_s, fits = run_compiled(engine)

    assert (requests["outcome"][fits] == COMPLETED).all()
    assert state.counts["num_completed"][0] == fits.sum()
    assert (requests["num_generated"] == np.where(fits, requests["num_output_tokens"], 0)).all()
    assert state.kv.counts["num_free"][0] == engine["num_blocks"]
    assert state.kv.counts["num_free_host"][0] == engine["host_blocks"]
    assert state.counts["num_swaps"][0] == requests["num_swaps"].sum() <= requests["num_preemptions"].sum()
    assert state.steps["num_kv_blocks"].max(initial=0) <= engine["num_blocks"]
    # Tokens computed = tokens needed + tokens computed again after a preemption that lost them.
    rows = state.steps[: state.counts["num_recorded"][0]]
    computed = rows["num_prefill_tokens"].sum() + rows["num_decodes"].sum()
    needed = (engine["prompt"] + engine["output"] - 1)[fits].sum() - requests["num_cached"][fits].sum()
    discarded = state.counts["num_discarded"][0]
    assert discarded <= (fits.sum() if engine["is_async"] and engine["ends_unforeseen"] else 0)
    needed += discarded
    lost = (requests["num_preemptions"] - requests["num_swaps"]).sum()
    # Drafts that do not hold are computed in vain, and some that hold lie beyond the last token.
    drafted, accepted = (int(state.counts[name][0]) for name in ("num_drafted", "num_accepted"))
    most = engine["speculation"].num_tokens * fits.sum() if engine["speculation"] else 0
    assert computed >= needed + drafted - accepted
    assert lost > 0 or computed <= needed + drafted - accepted + most
    # Whoever goes to the host has a block at least.
    if engine["block_copy_s"] > 0:
        copies = np.rint(state.counts["total_copy_s"][0] / engine["block_copy_s"]) + state.counts["blocks_to_copy"][0]
        assert copies >= state.counts["num_swaps"][0]


@settings(max_examples=150, deadline=None)
@given(small_engines())
def test_times_are_in_order(engine):
    state, requests, token_time_s, fits = run_compiled(engine)

    for row in requests[fits]:
        tokens = token_time_s[row["first_token"] :][: row["num_output_tokens"]]
        assert row["arrival_s"] <= row["scheduled_s"] < tokens[0]
        assert (np.diff(tokens) > 0).all() if engine["speculation"] is None else (np.diff(tokens) >= 0).all()
    rows = state.steps[: state.counts["num_recorded"][0]]
    assert (rows["finished_s"] > rows["started_s"]).all()
    assert (rows["started_s"][1:] >= rows["finished_s"][:-1]).all()
    longest = np.maximum(rows["compute_s"] + rows["communication_s"], engine["host_s"])
    assert (rows["finished_s"] == rows["started_s"] + longest).all()


@settings(max_examples=150, deadline=None)
@given(small_engines())
def test_first_come_first_scheduled(engine):
    """Under shortest_first among prompts of one length, under priority within a class, under the others among all."""
    _, requests, _, fits = run_compiled(engine)

    within = {"shortest_first": "prompt", "priority": "precedence", "batchllm": "precedence"}
    classes = engine[within[engine["policy"]]] if engine["policy"] in within else engine["prompt"] * 0
    for each in np.unique(classes):
        rows = requests[fits & (classes == each)]
        assert (np.diff(rows["scheduled_s"]) >= 0).all()
        assert (np.diff(rows["first_token_s"]) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 80), st.floats(0.0, 1.0), st.integers(0, 10**6))
def test_more_drafts_never_take_more_steps(prompt, output, acceptance, seed):
    """Of one request alone: from wherever a step starts, one draft more reaches as far at least, for whether a draft
    holds is a property of its token; and from further on every step reaches as far at least."""
    engine = {"policy": "chunked_prefill", "block_size": 4, "num_blocks": 99, "max_num_seqs": 1, "budget": 64,
              "host_s": 0.0, "arrival_s": np.zeros(1), "prompt": np.array([prompt]),
              "output": np.array([output])}  # fmt: skip
    steps = []
    for num_tokens in range(5):
        drafts = Speculation(num_tokens, acceptance, seed=seed) if num_tokens else None
        state, *_ = run_compiled(engine | {"speculation": drafts})
        steps.append(int(state.counts["num_steps"][0]))
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == output


@settings(max_examples=60, deadline=None)
@given(small_engines(), st.sampled_from(RESERVING))
def test_who_has_reserved_is_never_preempted(engine, policy):
    _, requests, _, fits = run_compiled(engine | {"policy": policy, "speculation": None})

    assert (requests["num_preemptions"][fits] == 0).all()


@settings(max_examples=60, deadline=None)
@given(small_engines(), st.integers(1, 3), st.sampled_from(["round_robin", "least_outstanding"]))
def test_a_workload_accounts_for_every_request(engine, num_replicas, router):
    clock = Clock()
    limits = EngineLimits(
        engine["policy"],
        engine["num_blocks"],
        engine["block_size"],
        engine["max_num_seqs"],
        engine["budget"],
        engine["host_s"],
    )
    workload = ServingWorkload(
        "chat",
        clock,
        arrival_s=engine["arrival_s"],
        num_prompt_tokens=engine["prompt"],
        num_output_tokens=engine["output"],
        limits=limits,
        num_replicas=num_replicas,
        router=router,
        table=cost_table(),
    )
    clock.run(until=workload.start())

    metrics = workload.metrics()
    outcome = workload.requests["outcome"]
    assert ((outcome == COMPLETED) | (outcome == FAILED)).all()
    assert metrics["completed"] + metrics["failed"] == metrics["arrived"] == len(outcome)
    assert metrics["failed"] == workload.failures.total()
    ends = [*workload.requests["finished_s"], workload.requests["arrival_s"][-1]]
    assert clock.now == np.nanmax(ends)


@pytest.mark.parametrize("policy", sorted(BATCHING_POLICIES))
def test_more_slots_never_delay_a_first_come_first_served_request(policy):
    """Constant step time, room for every block: one more slot can only let a request start earlier."""
    rng = np.random.default_rng(5)
    engine = {
        "policy": policy,
        "block_size": 16,
        "num_blocks": 10_000,
        "budget": 64,
        "host_s": 0.0,
        "arrival_s": np.cumsum(rng.exponential(0.002, 200)),
        "prompt": np.ones(200, dtype=np.int64),
        "output": rng.integers(1, 30, 200),
    }
    engine["host_s"] = 1.0  # longer than any step here: every step takes one second
    waits = []
    for slots in (1, 2, 3, 8, 64):
        _, requests, _, _ = run_compiled(engine | {"max_num_seqs": slots})
        waits.append(requests["scheduled_s"] - requests["arrival_s"])
    for fewer, more in itertools.pairwise(waits):
        if policy == "chunked_prefill":
            assert (more <= fewer + 1e-9).all()
        else:
            # Prefills stop decodes for a step, so only the mean is sure to fall.
            assert more.mean() <= fewer.mean()
