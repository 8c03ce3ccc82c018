from __future__ import annotations

import numpy as np
import pytest
from serving_parts import workload

from models.architecture import ARCHITECTURES
from models.cost.build import stage_tables, step_table
from models.cost.step import step_seconds
from models.experts import Popularity
from models.hardware import ACCELERATORS
from models.parallelism import Parallelism
from sim.engine.clock import Clock
from sim.serving.expert_parallel import ExpertParallelIteration, route_tokens
from sim.serving.iteration_graph import iteration_shape

LITE = ARCHITECTURES["deepseek-v2-lite"]


def iteration(num_ranks=4, tensor=1, seed=0, **options):
    parallelism = Parallelism(tensor=tensor, expert=num_ranks)
    tables = stage_tables(LITE, ACCELERATORS["h100"], parallelism)
    options.setdefault("popularity", Popularity.uniform(64, 6))
    return ExpertParallelIteration(
        LITE, parallelism, tables, range(10, 10 + num_ranks), rng=np.random.default_rng(seed), **options
    )


def routed(inclusion, top_k, num_tokens, seed=0):
    num_ranks = len(num_tokens)
    sent = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    rows, distinct = np.zeros(num_ranks, dtype=np.int64), np.zeros(num_ranks, dtype=np.int64)
    tokens = np.asarray(num_tokens)
    route_tokens(np.random.default_rng(seed), np.asarray(inclusion), top_k, tokens, sent, rows, distinct)
    return sent, rows, distinct


class InstantFabric:
    """Runs a graph's delays with transfers that take no time, and keeps the graphs."""

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


def test_the_graph_has_linear_edges_and_joins_at_every_stage():
    shape = iteration_shape((3, 5, 8), 2)
    graph = shape.template

    # Per layer: 3 + 3 joins, 6 + 6 transfers; 3 ends.
    assert graph.num_messages == 2 * 18 + 3
    assert len(graph.successors) == 2 * (4 * 6 + 2 * 3)
    assert set(graph.source) == {3, 5, 8}
    for layer in range(2):
        assert (graph.num_inputs[shape.expert[layer]] == 3).all()
        for s in range(3):
            for d in range(3):
                if s != d:
                    dispatch, combine = shape.dispatch[layer, s, d], shape.combine[layer, s, d]
                    assert (graph.source[dispatch], graph.destination[dispatch]) == (
                        (3, 5, 8)[s],
                        (3, 5, 8)[d],
                    )
                    assert (graph.source[combine], graph.destination[combine]) == ((3, 5, 8)[s], (3, 5, 8)[d])
    local = np.concatenate([shape.attend.ravel(), shape.expert.ravel(), shape.end])
    assert (graph.source[local] == graph.destination[local]).all()
    with pytest.raises(ValueError, match="two expert ranks"):
        iteration_shape((1, 1), 2)


def test_a_late_rank_holds_up_exactly_what_waits_for_it():
    """Rank 0 attends 1 s longer in layer 0: every expert of layer 0 starts 1 s late, and everything after."""
    shape = iteration_shape((0, 1, 2), 2)
    num = shape.template.num_messages
    early = shape.graph(np.zeros(num, np.int64), np.zeros(num), np.zeros(num), "x")
    earliest_s = np.zeros(num)
    earliest_s[shape.attend[0, 0]] = 1.0
    late = shape.graph(np.zeros(num, np.int64), np.zeros(num), earliest_s, "x")

    moved = finish_times(late, np.zeros(num)) - finish_times(early, np.zeros(num))
    on_time = [*shape.attend[0, 1:], *shape.dispatch[0, 1:].ravel()]
    assert {i for i in range(num) if moved[i] == 0} == {int(i) for i in on_time if i >= 0}


def test_each_expert_is_drawn_with_its_own_chance():
    """20,000 tokens of top-2 of 4: each count is binomial, so 4.5 standard deviations bound it."""
    inclusion = np.array([0.9, 0.6, 0.4, 0.1])
    num = 20_000
    _, rows, distinct = routed(inclusion, 2, [num, 0, 0, 0])

    assert rows.sum() == 2 * num
    assert (np.abs(rows - num * inclusion) < 4.5 * np.sqrt(num * inclusion * (1 - inclusion))).all()
    assert distinct.tolist() == [1, 1, 1, 1]


def test_a_token_goes_once_to_a_rank_that_holds_several_of_its_experts():
    """Top-3 of 4 experts on 2 ranks: every token has experts on both, so each rank gets it exactly once."""
    sent, rows, _ = routed([0.75] * 4, 3, [10, 7])

    assert sent.tolist() == [[10, 10], [7, 7]]
    assert rows.sum() == 3 * 17


def test_uniform_draws_reach_as_many_ranks_as_independent_ones_would():
    """Top-6 of 64 on 8 ranks: a rank is missed with chance C(56, 6) / C(64, 6) = 0.4329.

    Systematic sampling in a fresh random order per 8 tokens: the mean over many orders is what is tested,
    with a tolerance of four standard errors of the mean over orders (standard deviation of a rank's share
    below 0.25).
    """
    num = 40_000
    sent, _, _ = routed([6 / 64] * 64, 6, [num] + [0] * 7)

    assert sent[0].sum() / num == pytest.approx(8 * (1 - 0.4329), abs=4 * 8 * 0.25 / np.sqrt(num / 8))


def state_with_batch(prompts, **options):
    made = workload(
        [0.0] * len(prompts),
        prompts,
        [5] * len(prompts),
        block_size=16,
        num_blocks=1000,
        iterations=[iteration(**options)],
    )
    graphs = InstantFabric(made.clock)
    made.replicas[0].fabric = graphs
    made.start()
    made.clock.run(until=1e-9)
    return made, graphs.graphs[0]


def test_bytes_of_dispatch_and_combine():
    """Rank 1 alone has tokens (request 1 of 4 copies); each crosses at most once to each other rank."""
    made, graph = state_with_batch([1, 300, 1, 1], dispatch_bytes=1)
    shape = made.replicas[0].iteration.shape

    dispatch = graph.size_bytes[shape.dispatch[:, 1, [0, 2, 3]]]
    combine = graph.size_bytes[shape.combine[:, [0, 2, 3], 1]]
    assert (dispatch % 2048 == 0).all()
    assert (dispatch <= 300 * 2048).all()
    # 16 of 64 experts on a rank, top-6: a token misses it with chance C(48, 6) / C(64, 6) = 0.1637.
    assert dispatch.mean() / 2048 == pytest.approx(300 * (1 - 0.1637), rel=0.03)
    assert (combine == 2 * dispatch).all()
    # Who has nothing for another sends nothing, not even a header.
    is_local = graph.source == graph.destination
    assert (is_local == (graph.size_bytes == 0)).all()
    assert (graph.size_bytes[shape.dispatch[:, 0, [1, 2, 3]]] <= 2048).all()


def test_tensor_parallel_ranks_share_their_copy_s_tokens():
    made, graph = state_with_batch([301, 1], num_ranks=4, tensor=2)
    shape = made.replicas[0].iteration.shape

    first = (
        graph.size_bytes[shape.dispatch[:, 0, 1:]].sum()
        + graph.size_bytes[shape.dispatch[:, 1, [0, 2, 3]]].sum()
    )
    second = graph.size_bytes[shape.dispatch[:, 2:, :2]].sum()
    assert first > 100 * second
    assert (graph.size_bytes[shape.dispatch[:, 1, 2]] <= 151 * 4096).all()


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
    steps = runs[1].replicas[0].engine.steps
    assert steps["communication_s"] == pytest.approx(0.0, abs=1e-12)
    assert runs[0].metrics()["completed"] == 40


def test_one_copy_and_one_token_cost_what_the_whole_table_says_but_for_the_experts():
    """A single decode on one of four ranks: all stages but the experts are those of an unsplit model.

    The experts of top-6 split over ranks run beside each other, so the step is at most the unsplit one, and
    longer than it without its experts.
    """
    made = workload([0.0], [10], [2], block_size=16, num_blocks=100, iterations=[iteration()], clock=Clock())
    made.clock.run(until=made.start())
    decode_s = made.replicas[0].engine.steps["compute_s"][1]

    whole_s = step_seconds(step_table(LITE, ACCELERATORS["h100"]), 1, 1, 1, 0, 0, 11)
    experts = stage_tables(LITE, ACCELERATORS["h100"])["experts"]
    without_s = whole_s - 26 * step_seconds(experts, 1, 1, 1, 0, 0, 11)
    assert without_s < decode_s < whole_s


def test_skew_makes_the_slowest_rank_slower():
    def mean_step_s(popularity):
        made, _ = state_with_batch([500] * 4, popularity=popularity)
        return made.replicas[0].iteration.draw(made.replicas[0].engine.state, 0.0).compute_s

    assert mean_step_s(Popularity.zipf(64, 6, 1.2)) > mean_step_s(Popularity.uniform(64, 6))


def test_host_time_bounds_an_iteration_from_below():
    made = workload(
        [0.0], [10], [4], block_size=16, num_blocks=100, host_s=0.5, iterations=[iteration()], clock=Clock()
    )
    made.clock.run(until=made.start())

    assert np.diff(made.token_time_s) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerators": range(3)}, "3 accelerators for an expert degree of 4"),
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
