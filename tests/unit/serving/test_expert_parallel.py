from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_iteration import PlainIteration
from serving_parts import workload

from models.architecture import ARCHITECTURES
from models.cost.build import stage_tables, step_table
from models.cost.step import step_seconds
from models.experts import Popularity
from models.hardware import ACCELERATORS
from models.parallelism import Parallelism
from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.serving.expert_parallel import (
    ExpertParallelIteration,
    IterationStep,
    copy_features,
    tokens_of_batch,
)

LITE = ARCHITECTURES["deepseek-v2-lite"]


def iteration(num_ranks=4, tensor=1, seed=0, **options):
    parallelism = Parallelism(tensor=tensor, expert=num_ranks)
    tables = stage_tables(LITE, ACCELERATORS["h100"], parallelism)
    options.setdefault("popularity", Popularity.uniform(64, 6))
    return ExpertParallelIteration(
        LITE, parallelism, tables, range(10, 10 + num_ranks), rng=np.random.default_rng(seed), **options
    )


class InstantFabric:
    """Runs a graph's delays with transfers that take no time, and keeps the graphs."""

    has_packets = False

    def __init__(self, clock):
        self.clock, self.graphs = clock, []

    def start(self, graph):
        self.graphs.append(graph)
        end_s = finish_times(graph, np.zeros(graph.num_messages)).max()
        transfer = type("Transfer", (), {})()
        transfer.done = self.clock.event()
        self.clock.succeed_at(transfer.done, end_s)
        return transfer


def finish_times(graph, transfer_s):
    """When each message is received, in index order, which the iteration graph keeps topological."""
    ready = graph.earliest_s.copy()
    finish = np.zeros(graph.num_messages)
    for i in range(graph.num_messages):
        finish[i] = ready[i] + transfer_s[i]
        for j in graph.successors[graph.successor_start[i] : graph.successor_start[i + 1]]:
            assert j > i
            ready[j] = max(ready[j], finish[i] + graph.delay_s[j])
    return finish


def step_of(sent, own_s, expert_s):
    """An iteration by hand."""
    return IterationStep(np.asarray(own_s), np.asarray(sent), np.asarray(expert_s))


def graph_of(step, first=10, **options):
    """Its graph from time 0 on, on accelerators `first` and up."""
    made = iteration(**options)
    made.accelerators = np.arange(first, first + step.expert_s.shape[1])
    return made.graph(step, 0.0)


def test_the_graph_of_one_token_by_hand():
    """Rank 1 holds one token with experts on ranks 0, 1 and 3, one layer.

    attends 0 to 3, their join, dispatches to 0 and 3, experts 0, 1 and 3, their join, combines from 0 and 3, four ends.
    """
    sent = np.zeros((1, 4, 4), np.int64)
    sent[0, 1, [0, 1, 3]] = 1
    own_s = np.zeros((2, 4))
    own_s[:, 1] = (0.5, 0.25)
    graph = iteration().graph(step_of(sent, own_s, [[1.0, 2.0, 0.0, 3.0]]), 10.0)

    assert graph.source.tolist() == [10, 11, 12, 13, 10, 11, 11, 10, 11, 13, 10, 10, 13, 10, 11, 12, 13]
    assert graph.destination.tolist() == [10, 11, 12, 13, 10, 10, 13, 10, 11, 13, 10, 11, 11, 10, 11, 12, 13]
    assert graph.size_bytes.tolist() == [0] * 5 + [4096] * 2 + [0] * 4 + [4096] * 2 + [0] * 4
    assert graph.earliest_s.tolist() == [10.0, 10.5, 10.0, 10.0] + [0.0] * 13
    assert graph.delay_s.tolist() == [0.0] * 7 + [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0, 0.0]
    tails = np.repeat(np.arange(17), np.diff(graph.successor_start))
    assert set(zip(tails.tolist(), graph.successors.tolist(), strict=True)) == {
        (0, 4), (1, 4), (2, 4), (3, 4), (1, 5), (1, 6), (4, 7), (5, 7), (4, 8), (4, 9), (6, 9), (7, 10), (8, 10),
        (9, 10), (7, 11), (9, 12), (10, 13), (10, 14), (10, 15), (10, 16), (11, 14), (12, 14),
    }  # fmt: skip
    assert graph.num_inputs.tolist() == np.bincount(graph.successors, minlength=17).tolist()


def test_a_late_rank_holds_up_every_rank():
    """An all-to-all ends for nobody before everybody has begun it, even who sends nothing to the others.

    Two layers, each rank one token for itself: 1 s more on rank 0 in layer 0 moves everything after it by 1 s.
    """
    sent = np.broadcast_to(np.eye(3, dtype=np.int64), (2, 3, 3))
    own_s, expert_s = np.ones((3, 3)), np.ones((2, 3))
    late_s = own_s.copy()
    late_s[0, 0] += 1.0
    ends = [
        finish_times(graph, np.zeros(graph.num_messages))
        for graph in (graph_of(step_of(sent, s, expert_s)) for s in (own_s, late_s))
    ]

    on_time = {1, 2}  # the attends of ranks 1 and 2 in layer 0
    moved = ends[1] - ends[0]
    assert moved.tolist() == [0.0 if i in on_time else 1.0 for i in range(len(moved))]
    assert ends[0].max() == 5.0


@st.composite
def iterations_by_hand(draw):
    num_layers, num_ranks = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    seconds = st.floats(0.0, 1e-4)
    holds = draw(st.lists(st.booleans(), min_size=num_ranks, max_size=num_ranks).filter(any))
    sent = np.zeros((num_layers, num_ranks, num_ranks), np.int64)
    own_s, expert_s = np.zeros((num_layers + 1, num_ranks)), np.zeros((num_layers, num_ranks))
    for r in range(num_ranks):
        own_s[:, r] = draw(st.lists(seconds, min_size=num_layers + 1, max_size=num_layers + 1))
    for r in np.flatnonzero(holds):
        for layer in range(num_layers):
            tokens = draw(st.lists(st.sampled_from([0, 0, 1, 2, 30]), min_size=num_ranks, max_size=num_ranks))
            tokens[draw(st.integers(0, num_ranks - 1))] += 1  # a token has at least one expert
            sent[layer, r] = tokens
    for layer, d in np.argwhere(sent.any(axis=1)):
        expert_s[layer, d] = draw(seconds)
    return step_of(sent, own_s, expert_s)


@settings(max_examples=200, deadline=None)
@given(iterations_by_hand(), st.sampled_from([1, 2]))
def test_an_iteration_on_the_fabric_takes_as_long_as_one_without_a_graph(step, dispatch_bytes):
    """The fluid fabric without limits behind its NICs, against `plain_iteration`."""
    num_ranks, leaves = step.expert_s.shape[1], 2
    link = Link(1e10, 1e-6)
    topology = leaf_spine(
        leaves=leaves, spines=2, hosts_per_leaf=3, host_link=link, spine_link=link, hosts=[HostKind(6)]
    )
    clock = Clock()
    fabric = FluidFabric(clock, topology, "ideal", settings=FluidSettings(tolerance=0.0))
    clock.run(until=fabric.start(graph_of(step, first=0, dispatch_bytes=dispatch_bytes)).done)

    def wire_bytes(kind, tokens):
        size = tokens * 2048 * (dispatch_bytes if kind == "dispatch" else 2)
        return size + 64 * -(-size // 4032)

    flight_s = [[2e-6 if s // 3 == d // 3 else 4e-6 for d in range(num_ranks)] for s in range(num_ranks)]
    plain = PlainIteration(
        step.own_s.tolist(), step.sent.tolist(), step.expert_s.tolist(),
        wire_bytes=wire_bytes, rate=1e10, flight_s=flight_s,
    )  # fmt: skip
    assert clock.now == pytest.approx(plain.end_s(), rel=1e-9, abs=1e-15)


def state_with_batch(prompts, max_graph_tokens=0, **options):
    made = workload(
        [0.0] * len(prompts),
        prompts,
        [5] * len(prompts),
        block_size=16,
        num_blocks=1000,
        max_graph_tokens=max_graph_tokens,
        iterations=[iteration(**options)],
    )
    graphs = InstantFabric(made.clock)
    made.replicas[0].fabric = graphs
    made.start()
    made.clock.run(until=1e-9)
    return made, graphs.graphs[0]


def crossing(graph, source, destination):
    """Sizes of the messages from one rank to another, in the order of the graph: dispatches and combines."""
    return graph.size_bytes[(graph.source == 10 + source) & (graph.destination == 10 + destination)]


def test_bytes_of_dispatch_and_combine():
    """Rank 1 has 300 tokens (request 1 of 4 copies), the others one each; a token crosses at most once to a rank."""
    _, graph = state_with_batch([1, 300, 1, 1], dispatch_bytes=1)

    large = 2048 * 100
    for other in (0, 2, 3):
        dispatch, combine = crossing(graph, 1, other), crossing(graph, other, 1)
        dispatch, combine = dispatch[dispatch > large], combine[combine > large]
        assert len(dispatch) == 26
        assert (dispatch % 2048 == 0).all()
        assert (dispatch <= 300 * 2048).all()
        # 16 of 64 experts on a rank, top-6: a token misses it with chance C(48, 6) / C(64, 6) = 0.1637.
        assert dispatch.mean() / 2048 == pytest.approx(300 * (1 - 0.1637), rel=0.03)
        assert (combine == 2 * dispatch).all()
    # Who has nothing for another sends nothing, not even a header.
    assert ((graph.source == graph.destination) == (graph.size_bytes == 0)).all()
    assert (crossing(graph, 0, 2) <= 4096).all()


def test_tensor_parallel_ranks_share_their_copy_s_tokens():
    """301 tokens of request 0 over ranks 0 and 1, from position 0 on: 151 and 150; one of request 1 on rank 2."""
    made, _ = state_with_batch([301, 1], num_ranks=4, tensor=2)
    replica = made.replicas[0]
    states = [engine.state for engine in replica.engines]
    parts = [tokens_of_batch(state, np.uint64(5), 2 * copy, 2, 0) for copy, state in enumerate(states)]
    key, rank = (np.concatenate(each) for each in zip(*parts, strict=True))
    step = replica.iteration.draw(states)

    assert np.bincount(rank, minlength=4).tolist() == [151, 150, 1, 0]
    assert len(set(key.tolist())) == 302
    assert (step.sent.max(axis=2) <= [151, 150, 1, 0]).all()
    assert (step.sent[:, 0].sum(), step.sent[:, 3].sum()) > (100 * step.sent[:, 2].sum(), 0)


def sent_in_all(made):
    """[layers, ranks] tokens to each rank over the whole run, and the key of each."""
    replica = made.replicas[0]
    sent, keys, draw = 0, [], replica.iteration.draw

    def draw_and_keep(states):
        nonlocal sent
        step = draw(states)
        sent = sent + step.sent.sum(axis=1)
        for state in states:
            keys.extend(tokens_of_batch(state, np.uint64(5), 0, 1, 0)[0].tolist())
        return step

    replica.iteration.draw = draw_and_keep
    made.clock.run(until=made.start())
    return sent, keys


def test_every_variant_sees_the_same_tokens_choose_the_same_experts():
    """Whatever the batching, the budget and the time of a step: over a run the same rows go to each rank.

    Without preemption each token is computed once; with it some again, which choose again as before.
    """
    rng = np.random.default_rng(4)
    load = (np.cumsum(rng.exponential(0.002, 30)), rng.integers(1, 200, 30), rng.integers(1, 20, 30))
    variants = (
        {},
        {"policy": "prefill_first"},
        {"max_num_batched_tokens": 64},
        {"host_s": 0.02},
        {"max_num_seqs": 3},
    )
    runs = [
        sent_in_all(workload(*load, **({"block_size": 16, "num_blocks": 2000, "iterations": [iteration()]} | v)))
        for v in variants
    ]
    for sent, keys in runs[1:]:
        assert (sent == runs[0][0]).all()
        assert sorted(keys) == sorted(runs[0][1])

    crowded = workload(*load, block_size=16, num_blocks=16, iterations=[iteration()])
    _, keys = sent_in_all(crowded)
    assert crowded.requests["num_preemptions"].sum() > 0
    assert len(keys) > len(runs[0][1])
    assert set(keys) == set(runs[0][1])


def test_without_a_fabric_a_step_takes_what_instant_transfers_give():
    rng = np.random.default_rng(4)
    load = (np.cumsum(rng.exponential(0.01, 40)), rng.integers(1, 400, 40), rng.integers(1, 20, 40))
    popularity = Popularity.zipf(64, 6, 0.8)
    runs = []
    for has_fabric in (False, True):
        clock = Clock()
        made = workload(
            *load,
            clock=clock,
            block_size=16,
            num_blocks=2000,
            iterations=[iteration(popularity=popularity)],
            fabric=InstantFabric(clock) if has_fabric else None,
        )
        clock.run(until=made.start())
        runs.append(made)

    assert runs[0].token_time_s == pytest.approx(runs[1].token_time_s, rel=1e-12)
    steps = runs[1].replicas[0].engines[0].steps
    assert steps["communication_s"] == pytest.approx(0.0, abs=1e-12)
    assert runs[0].metrics()["completed"] == 40


def test_one_copy_and_one_token_cost_what_the_whole_table_says_but_for_the_experts():
    """A single decode on one of four ranks: all stages but the experts are those of an unsplit model.

    The experts of top-6 split over ranks run beside each other, so the step is at most the unsplit one, and
    longer than it without its experts.
    """
    made = workload([0.0], [10], [2], block_size=16, num_blocks=100, iterations=[iteration()], clock=Clock())
    made.clock.run(until=made.start())
    decode_s = made.replicas[0].engines[0].steps["compute_s"][1]

    whole_s = step_seconds(step_table(LITE, ACCELERATORS["h100"]), 1, 1, 1, 0, 0, 11)
    experts = stage_tables(LITE, ACCELERATORS["h100"])["experts"]
    without_s = whole_s - 26 * step_seconds(experts, 1, 1, 1, 0, 0, 11)
    assert without_s < decode_s < whole_s


def test_skew_makes_the_slowest_rank_slower():
    def mean_step_s(popularity):
        made, _ = state_with_batch([500] * 4, popularity=popularity)
        return made.replicas[0].iteration.draw([engine.state for engine in made.engines]).compute_s

    assert mean_step_s(Popularity.zipf(64, 6, 1.2)) > mean_step_s(Popularity.uniform(64, 6))


def test_host_time_bounds_an_iteration_from_below():
    made = workload(
        [0.0], [10], [4], block_size=16, num_blocks=100, host_s=0.5, iterations=[iteration()], clock=Clock()
    )
    made.clock.run(until=made.start())

    assert np.diff(made.token_time_s) == pytest.approx(0.5)


def test_copies_step_together_each_within_its_own_limits():
    """Six requests on two copies of two slots each: four run, two wait, and every step ends for both at once."""
    made = workload([0.0] * 6, [8] * 6, [4] * 6, block_size=16, num_blocks=100, max_num_seqs=2,
                    iterations=[iteration(num_ranks=2)])  # fmt: skip
    made.clock.run(until=made.start())
    first, second = (engine.steps for engine in made.engines)
    assert made.requests["copy"].tolist() == [0, 1, 0, 1, 0, 1]
    assert first["finished_s"].tolist() == second["finished_s"].tolist()
    assert max(first["num_decodes"].max(), second["num_decodes"].max()) == 2
    assert np.argsort(made.requests["first_token_s"], kind="stable").tolist() == [0, 1, 2, 3, 4, 5]


def test_the_copy_with_least_to_do_takes_a_request():
    """Four times those who wait and those who run, as vLLM counts: a long prompt on copy 0 sends the rest elsewhere."""
    made = workload([0.0, 0.001, 0.002, 0.003], [4000, 8, 8, 8], [50, 1, 1, 1], block_size=16, num_blocks=500,
                    max_num_batched_tokens=8192, iterations=[iteration(num_ranks=2)])  # fmt: skip
    made.clock.run(until=made.start())
    assert made.requests["copy"][:2].tolist() == [0, 1]


def features_of(tokens, graph):
    made = workload([0.0] * len(tokens), tokens, [2] * len(tokens), block_size=16, num_blocks=500,
                    max_graph_tokens=graph, max_num_batched_tokens=8192, iterations=[iteration()])  # fmt: skip
    states = []
    made.replicas[0].iteration.draw = lambda given: states.extend(given) or step_of(
        np.zeros((26, 4, 4), int), np.ones((27, 4)), np.zeros((26, 4))
    )
    made.start()
    made.clock.run(until=1e-9)
    attention = made.replicas[0].iteration.tables.attention.attention
    most = max(int(state.counts["tokens"][0]) for state in states)
    return [copy_features(state, attention, most, 1)[0].tolist() for state in states]


def test_copies_are_padded_to_the_largest_and_who_is_idle_computes_a_dummy_batch():
    """Batches of 3 and 9 tokens as recorded graphs of 16 on all four copies; without one each as it is, the idle one
    token. A dummy batch attends to nothing and samples nothing."""
    padded, plain = features_of([3, 9], 64), features_of([3, 9], 0)
    assert [f[0] for f in padded] == [16, 16, 16, 16]
    assert [f[0] for f in plain] == [3, 9, 1, 1]
    assert padded[1][1:] == plain[1][1:] == [0, 1, 45, 9, 0]
    assert padded[2][1:] == plain[3][1:] == [0] * 5


def test_gathering_inside_a_host_by_hand():
    """Two copies of one decode each, 26 layers with experts of width 2048: each layer takes 2 (latency + 1 · 4096 B /
    rate) more than with transfers that take no time."""
    h100 = ACCELERATORS["h100"]
    times = []
    for exchange in ("dispatch", "all_gather"):
        parallelism = Parallelism(expert=2, exchange=exchange)
        made = ExpertParallelIteration(
            LITE, parallelism, stage_tables(LITE, h100, parallelism), range(2), Popularity.uniform(64, 6),
            np.random.default_rng(0), exchange=exchange,
        )  # fmt: skip
        served = workload([0.0, 0.0], [1, 1], [2, 2], block_size=16, num_blocks=9, iterations=[made])
        served.clock.run(until=served.start())
        times.append(np.diff(served.token_time_s)[[0, 2]])
    exchange_s = 26 * 2 * (h100.nvlink_latency_s + 4096 / h100.nvlink_bytes_per_s)
    assert times[1] - times[0] == pytest.approx(exchange_s, rel=1e-6)


@pytest.mark.parametrize(("tensor", "pairs"), [(1, 12), (2, 4)])
def test_gathering_across_hosts_sends_all_to_all(tensor, pairs):
    """Every copy's tokens to all others, padding included, twin to twin, and as many back: 5 tokens padded to 8."""
    _, graph = state_with_batch([5, 3], num_ranks=4, tensor=tensor, exchange="all_gather", max_graph_tokens=8)
    crossing = graph.size_bytes[graph.source != graph.destination]
    assert len(crossing) == 26 * 2 * pairs
    assert set(crossing.tolist()) == {8 * 2048 * 2}
    twins = (graph.source - graph.destination) % tensor == 0
    assert twins.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerators": range(3)}, "3 accelerators for an expert degree of 4"),
        ({"accelerators": (0, 1, 2, 1)}, "two expert ranks"),
        ({"architecture": ARCHITECTURES["llama-3.1-8b"]}, "no experts"),
        ({"popularity": Popularity.uniform(32, 6)}, "32 experts"),
        ({"dispatch_bytes": 4}, "1 \\(fp8\\) or 2 \\(bf16\\)"),
    ],
)
def test_refusals(change, message):
    arguments = {
        "architecture": LITE,
        "parallelism": Parallelism(expert=4),
        "tables": {},
        "accelerators": range(4),
        "popularity": Popularity.uniform(64, 6),
        "rng": np.random.default_rng(0),
    } | change
    with pytest.raises(ValueError, match=message):
        ExpertParallelIteration(**arguments)
