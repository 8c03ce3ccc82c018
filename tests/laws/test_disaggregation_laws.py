"""Laws of prefill and decode on separate pools: random small pools that wait for each other and preempt."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import PlainEngine, PlainRequest
from test_serving_laws import contents_of, cost_table

from models.kv_transfer import KVShards
from sim.devices.kv_cache import Contents, check_kv_cache
from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.serving.clients import ClosedLoop
from sim.serving.disaggregated_workload import DisaggregatedWorkload, Pool
from sim.serving.pools_front import PoolsFront
from sim.serving.replica import EngineLimits
from sim.serving.request import COMPLETED, FAILED, UNFINISHED

SHARDS = KVShards((0, 1), (0, 0), (3, 5), 2)
"""Two tensor ranks send to one."""

TABLES = (cost_table(), cost_table(fixed_s=1.37e-3))
"""Of the prefill and of the decode pool: steps of both never end at one instant."""


@st.composite
def small_pools(draw):
    num = draw(st.integers(1, 12))
    block_size = draw(st.sampled_from([1, 3, 4]))
    num_blocks = [draw(st.integers(2, 30)), draw(st.integers(2, 30))]
    most = st.integers(1, min(max(min(num_blocks) * block_size * 7 // 10, 1), 40))
    gaps = st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.2])
    budgets = [draw(st.integers(1, 40)), draw(st.integers(8, 40))]
    slots = [draw(st.integers(1, 8)), draw(st.integers(1, 8))]
    prefill = draw(st.sampled_from(["chunked_prefill", "prefill_first", "shortest_first", "orca", "static"]))
    return {
        "block_size": block_size,
        "num_blocks": num_blocks,
        "policies": [prefill, draw(st.sampled_from(["chunked_prefill", "shortest_first"]))],
        "budgets": budgets,
        "slots": slots,
        "is_async": [draw(st.booleans()), draw(st.booleans())],
        "is_caching": draw(st.booleans()),
        "host_s": draw(st.sampled_from([(0.0, 0.0), (0.002, 0.00271)])),
        "arrival_s": np.cumsum(draw(st.lists(gaps, min_size=num, max_size=num))),
        "prompt": np.array(draw(st.lists(most, min_size=num, max_size=num))),
        "output": np.array(draw(st.lists(most, min_size=num, max_size=num))),
        "families": np.array(draw(st.lists(st.integers(0, 2), min_size=num, max_size=num))),
        "common": draw(st.integers(0, 4)),
        "num_replicas": [draw(st.integers(1, 2)), draw(st.integers(1, 2))],
        "router": draw(st.sampled_from(["round_robin", "least_outstanding", "least_kv", "prefix_affinity"])),
        "is_layered": draw(st.booleans()),
        "rate": draw(st.sampled_from([2e2, 1e4, 1e7])),
    }


def workload_of(pools, clock, *, has_fabric=True, **options) -> DisaggregatedWorkload:
    given_contents = contents_of(pools)
    contents = Contents(
        np.cumsum([0, *(len(numbers) for numbers in given_contents)]),
        np.array([n for numbers in given_contents for n in numbers], np.int64),
    )
    made, first = [], 0
    for side, tensor in ((0, 2), (1, 1)):
        limits = EngineLimits(
            pools["policies"][side], pools["num_blocks"][side], pools["block_size"], pools["slots"][side],
            pools["budgets"][side], pools["host_s"][side], is_async=pools["is_async"][side],
            is_caching=pools["is_caching"],
        )  # fmt: skip
        ranks = [first + i * tensor + np.arange(tensor)[None] for i in range(pools["num_replicas"][side])]
        first += tensor * len(ranks)
        made.append(Pool(limits, ranks, pools["router"], table=TABLES[side], contents=contents))
    fabric = None
    if has_fabric:
        link = Link(pools["rate"], 1e-4)
        topology = leaf_spine(
            leaves=2, spines=1, hosts_per_leaf=3, host_link=link, spine_link=link, hosts=[HostKind(6)]
        )
        fabric = FluidFabric(clock, topology, settings=FluidSettings(tolerance=0.0))
    return DisaggregatedWorkload(
        "chat", clock, arrival_s=pools["arrival_s"], num_prompt_tokens=pools["prompt"],
        num_output_tokens=pools["output"], prefill=made[0], decode=made[1], shards=SHARDS, fabric=fabric,
        is_layered=pools["is_layered"], **options,
    )  # fmt: skip


def check_books(workload: DisaggregatedWorkload) -> None:
    """Every block is free or held; who has it is known."""
    for engine in workload.engines:
        requests = engine.state.requests
        check_kv_cache(engine.state.kv, requests["replica"] == engine.index)


@settings(max_examples=200, deadline=None)
@given(small_pools(), st.lists(st.floats(1e-3, 2.0), max_size=4), st.integers(-1, 11))
def test_every_request_ends_once_and_no_block_or_byte_is_lost(pools, cuts, broken):
    """At any time the books are right; at the end all is free, and what did not arrive is counted as failed."""
    clock = Clock()
    workload = workload_of(pools, clock)
    fabric = workload.sender.fabric
    start, transfers = fabric.start, []

    def cut(graph):
        transfer = start(graph)
        transfers.append(transfer)
        if len(transfers) - 1 == broken:
            transfer.cancel()
        return transfer

    fabric.start = cut
    done = workload.start()
    for until_s in sorted(cuts):
        if until_s > clock.now and not done.triggered:
            clock.run(until=until_s)
            check_books(workload)
            metrics = workload.metrics()
            assert metrics["completed"] + metrics["failed"] + metrics["unfinished"] == metrics["arrived"]
    if not done.triggered:
        clock.run(until=done)
    fabric.settle()

    metrics = workload.metrics()
    workload.check()
    check_books(workload)
    fabric.check_conservation()
    outcome = workload.requests["outcome"]
    assert ((outcome == COMPLETED) | (outcome == FAILED)).all()
    assert metrics["completed"] + metrics["failed"] == metrics["arrived"] == len(outcome)
    assert metrics["failed"] == workload.failures.total()
    for engine in workload.engines:
        kv = engine.state.kv.counts[0]
        assert kv["num_free"] == kv["num_blocks"]
        assert kv["num_free_slots"] == len(engine.state.kv.slots)
    handovers = workload.handovers.values()
    assert fabric.injected_bytes == metrics["kv_transfer_bytes"] == sum(h.size_bytes for h in handovers)
    num_moved = ((outcome == COMPLETED) & (pools["output"] > 1)).sum()
    assert len(handovers) == num_moved + sum(h.has_failed for h in handovers)


@settings(max_examples=150, deadline=None)
@given(small_pools())
def test_times_are_in_order(pools):
    clock = Clock()
    workload = workload_of(pools, clock)
    clock.run(until=workload.start())
    workload.metrics()

    rows = workload.requests
    least_s = 0.0 if pools["is_caching"] else 2e-4  # across two links, unless the receiver had it all
    for request in np.flatnonzero(rows["outcome"] == COMPLETED):
        row = rows[request]
        tokens = workload.token_time_s[row["first_token"] :][: row["num_output_tokens"]]
        assert row["arrival_s"] <= row["scheduled_s"] < tokens[0] == row["first_token_s"]
        assert (np.diff(tokens) > 0).all()
        if len(tokens) > 1:
            moved = workload.handovers[int(request)]
            assert moved.asked_s <= moved.reserved_s <= moved.received_s < tokens[1]
            assert moved.received_s - tokens[0] >= (0.0 if pools["is_layered"] else least_s)
            if not pools["is_layered"]:
                assert moved.asked_s == tokens[0]


@settings(max_examples=150, deadline=None)
@given(small_pools())
def test_pools_take_the_steps_of_two_plain_engines_one_behind_the_other(pools):
    """Transfers take no time, the second pool has room: it is an engine to which requests come with their prompts."""
    pools = pools | {
        "num_replicas": [1, 1], "is_layered": False, "num_blocks": [pools["num_blocks"][0], 600],
        "slots": [pools["slots"][0], 12], "budgets": [pools["budgets"][0], 40],
    }  # fmt: skip
    clock = Clock()
    workload = workload_of(pools, clock, has_fabric=False)
    clock.run(until=workload.start())
    workload.metrics()
    fits = workload.requests["outcome"] != FAILED
    given_contents = contents_of(pools)

    def plain(side, requests):
        engine = PlainEngine(
            requests, TABLES[side], policy=pools["policies"][side], num_blocks=pools["num_blocks"][side],
            block_size=pools["block_size"], max_num_seqs=pools["slots"][side], budget=pools["budgets"][side],
            host_s=pools["host_s"][side], is_async=pools["is_async"][side], is_caching=pools["is_caching"],
        )  # fmt: skip
        engine.run()
        return engine

    first = [
        PlainRequest(int(i), float(pools["arrival_s"][i]), int(pools["prompt"][i]), 1, given_contents[i])
        for i in np.flatnonzero(fits)
    ]
    plain(0, first)
    line = list(workload.handovers)
    order = sorted((r for r in first if pools["output"][r.number] > 1), key=lambda r: line.index(r.number))
    second = [
        PlainRequest(
            r.number, r.token_times_s[0], r.prompt, int(pools["output"][r.number]), r.contents,
            first_token_s=r.token_times_s[0],
        )
        for r in order
    ]  # fmt: skip
    plain(1, second)

    answers = {r.number: r.token_times_s for r in [*first, *second]}
    for i, tokens in answers.items():
        row = workload.requests[i]
        np.testing.assert_allclose(
            workload.token_time_s[row["first_token"] :][: row["num_output_tokens"]], tokens, rtol=1e-12
        )


def test_random_pools_do_wait_and_preempt():
    """What the laws above are about does happen in a pool of this size."""
    rng = np.random.default_rng(3)
    pools = {
        "block_size": 4, "num_blocks": [20, 24], "policies": ["chunked_prefill"] * 2, "budgets": [16, 16],
        "slots": [8, 8], "is_async": [True, True], "is_caching": True, "host_s": (0.0, 0.0),
        "arrival_s": np.cumsum(rng.exponential(0.005, 60)), "prompt": rng.integers(1, 30, 60),
        "output": rng.integers(2, 50, 60), "num_replicas": [2, 2], "router": "least_outstanding", "is_layered": True,
        "rate": 1e4,
    }  # fmt: skip
    clock = Clock()
    workload = workload_of(pools, clock)
    clock.run(until=workload.start())

    assert workload.answers["num_preemptions"].sum() > 0
    assert sum(h.reserved_s > h.asked_s for h in workload.handovers.values()) > 10
    assert workload.metrics()["completed"] == 60
    assert not (workload.requests["outcome"] == UNFINISHED).any()


@settings(max_examples=150, deadline=None)
@given(small_pools(), st.integers(1, 6), st.sampled_from([0.00317, 0.1]), st.booleans())
def test_a_closed_loop_is_the_open_loop_of_the_times_at_which_its_clients_sent(pools, num_clients, think_s, by_class):
    """Two ways through the code: from end to end, and decode replicas that run ahead; with service classes as well."""
    num = len(pools["prompt"])
    precedence = pools["families"] if by_class else np.zeros(num, np.int64)
    if by_class:
        pools = pools | {"policies": ["priority", "priority"]}
    clock = Clock()
    front = PoolsFront(ClosedLoop(num_clients, num, lambda _: think_s))
    closed = workload_of(pools, clock, front=front, precedence=precedence)
    clock.run(until=closed.start())
    closed.check()
    assert closed.progress == (num, num)
    requests = closed.requests.copy()
    order = np.argsort(requests["arrival_s"], kind="stable")
    again = {name: pools[name][order] for name in ("prompt", "output", "families")}
    opened = workload_of(pools | again | {"arrival_s": requests["arrival_s"][order]}, Clock(),
                         precedence=precedence[order])  # fmt: skip
    opened.clock.run(until=opened.start())
    opened.check()

    for field in ("scheduled_s", "first_token_s", "finished_s", "num_preemptions", "outcome"):
        np.testing.assert_array_equal(opened.requests[field], requests[field][order])
    ended_s = np.where(requests["outcome"] == FAILED, requests["arrival_s"], requests["finished_s"])
    sent_s = np.sort(requests["arrival_s"])
    assert sent_s[num_clients:].tolist() == np.sort(ended_s + think_s)[: max(num - num_clients, 0)].tolist()


@settings(max_examples=150, deadline=None)
@given(small_pools())
def test_classes_lose_nothing_and_nobody_waits_for_ever(pools):
    """Who has room waits for a higher class that was preempted and lacks blocks, and is let pass: all end."""
    pools = pools | {"policies": ["priority", "priority"]}
    clock = Clock()
    workload = workload_of(pools, clock, precedence=pools["families"])
    clock.run(until=workload.start())
    workload.check()
    check_books(workload)
    outcome = workload.requests["outcome"]
    assert ((outcome == COMPLETED) | (outcome == FAILED)).all()
    for engine in workload.engines:
        assert engine.state.kv.counts["num_free"][0] == engine.state.kv.counts["num_blocks"][0]
