import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.fluid import FluidFabric
from sim.fabric.messages import message_graph
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.workload import sizes
from sim.workload.open_load import poisson
from sim.workload.patterns import PatternError
from sim.workload.traffic import TrafficWorkload

THREE = message_graph(np.array([0, 1, 2]), np.array([1, 2, 0]), 100, earliest_s=np.array([0.0, 1.0, 5.0]))


def traffic(clock, fabric, graph=THREE, **options):
    return TrafficWorkload("t", graph, clock=clock, fabric=fabric, rng=np.random.default_rng(1), **options)


def recorded(workload):
    recorder = Recorder()
    workload.record(recorder)
    return recorder.frames()


def test_one_pass(clock, fixed_time_fabric):
    """Each message takes 1 s from when it is ready; the last is ready at 5 s."""
    workload = traffic(clock, fixed_time_fabric)
    clock.run(workload.start())
    assert workload.metrics() == {
        "completion_time_s": 6.0,
        "acknowledged_s": 6.25,
        "delivered_bytes": 300.0,
        "extra_pieces": 0,
        "jain_index": 1.0,
        "fct_s.mean": 1.0,
        "fct_s.p50": 1.0,
        "fct_s.p90": 1.0,
        "fct_s.p99": 1.0,
        "fct_s.max": 1.0,
    }
    flows = recorded(workload)["flows"]
    assert list(flows.columns) == [
        "workload", "repetition", "message", "source", "destination", "size_bytes", "ready_s", "started_s",
        "received_s", "acknowledged_s", "delivered_bytes", "outcome", "num_pieces", "row_weight",
    ]  # fmt: skip
    assert flows.ready_s.tolist() == [0, 1, 5]
    assert flows.outcome.tolist() == ["delivered"] * 3
    assert flows.row_weight.tolist() == [1.0] * 3


def test_repetitions_start_anew(clock, fixed_time_fabric):
    workload = traffic(clock, fixed_time_fabric, repeat=3, gap_s=4.0, start_s=2.0)
    clock.run(workload.start())
    assert clock.now == 2 + 3 * 6 + 2 * 4
    metrics = workload.metrics()
    assert metrics["completion_time_s"] == metrics["repetition_s.mean"] == 6.0
    assert metrics["delivered_bytes"] == 900
    assert recorded(workload)["flows"].ready_s.tolist() == [2, 3, 7, 12, 13, 17, 22, 23, 27]


def test_jitter_delays_first_messages_only(clock, fixed_time_fabric):
    graph = message_graph(np.arange(100), np.arange(100) + 1, 1, edges=([0], [1]))
    workload = traffic(clock, fixed_time_fabric, graph, jitter_s=2.0)
    clock.run(workload.start())
    late = fixed_time_fabric.graphs[0].earliest_s
    assert late[1] == 0
    others = np.delete(late, 1)
    assert np.all((others >= 0) & (others < 2))
    assert len(np.unique(others)) == 99


def test_cut_short_it_reports_what_was_delivered(clock, fixed_time_fabric):
    """At 2.5 s of the second pass (from 6 s), the flows received after 1 and 2 s are there, the third is not ready."""
    workload = traffic(clock, fixed_time_fabric, repeat=3, ideal_fct_s=np.array([1.0, 0.5, 0.25]))
    workload.start()
    clock.run(until=8.5)
    metrics = workload.metrics()
    assert metrics["completion_time_s"] == 6.0
    assert metrics["fct_s.mean"] == metrics["fct_s.max"] == 1.0
    assert metrics["slowdown.mean"] == pytest.approx((1 + 2 + 4 + 1 + 2) / 5)
    flows = recorded(workload)["flows"]
    assert flows.outcome.tolist() == ["delivered"] * 5 + ["pending"]
    assert flows.received_s.isna().tolist() == [False] * 5 + [True]
    assert workload.metrics() == metrics
    assert workload.notes() == ["1 of 6 flows were not delivered", "1 of 3 repetitions had not begun"]


def test_nothing_delivered_is_none_not_zero(clock, fixed_time_fabric):
    workload = traffic(clock, fixed_time_fabric)
    workload.start()
    clock.run(until=0.5)
    metrics = workload.metrics()
    assert metrics["completion_time_s"] is metrics["fct_s.mean"] is metrics["fct_s.max"] is None
    assert len(recorded(workload)["flows"]) == 3


def test_a_pattern_that_sends_nothing_says_so(clock, fixed_time_fabric):
    nothing = message_graph(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
    workload = traffic(clock, fixed_time_fabric, nothing)
    clock.run(workload.start())
    metrics = workload.metrics()
    assert metrics.pop("delivered_bytes") == metrics.pop("extra_pieces") == 0
    assert set(metrics.values()) == {None}
    assert "no flow at all" in workload.notes()[0]
    assert "flows" not in recorded(workload)


def test_pieces_beyond_one_a_flow_are_counted(clock, fixed_time_fabric):
    """One flow in five pieces, one whole, one not placed: 4 extra pieces, in each of two passes."""
    start = fixed_time_fabric.start

    def start_in_pieces(graph):
        transfer = start(graph)
        transfer.results.num_pieces[:] = [5, 1, 0]
        return transfer

    fixed_time_fabric.start = start_in_pieces
    workload = traffic(clock, fixed_time_fabric, repeat=2)
    clock.run(workload.start())
    assert workload.metrics()["extra_pieces"] == 8
    assert workload.notes() == []


def test_progress_counts_passes_and_the_messages_of_the_one_under_way():
    """Three flows over a network, the last a thousand times as long: two thirds are over soon after the start."""
    clock, fast = Clock(), Link(50e9, 1e-6)
    topology = leaf_spine(leaves=2, hosts_per_leaf=2, spines=2, host_link=fast, spine_link=fast, hosts=[HostKind(4)])
    graph = message_graph(np.array([0, 1, 2]), np.array([2, 3, 0]), np.array([50_000, 50_000, 50_000_000]))
    workload = traffic(clock, FluidFabric(clock, topology), graph, repeat=2)
    done = workload.start()
    assert workload.progress == (0, 2)
    clock.run(until=0.5e-3)
    assert workload.progress == (pytest.approx(2 / 3), 2)
    clock.run(done)
    assert workload.progress == (2, 2)


def test_more_rows_than_the_cap_become_an_even_sample(clock, fixed_time_fabric):
    """Metrics see all 5 x 1,000 flows; of the rows, 100 stay, from everywhere, each standing for 50."""
    n = 1000
    graph = message_graph(np.arange(n), np.arange(n) + 1, 1, earliest_s=np.arange(n) * 1e-3)
    workload = traffic(clock, fixed_time_fabric, graph, repeat=5, max_rows=100)
    clock.run(workload.start())
    flows = recorded(workload)["flows"]
    assert len(flows) == 100
    assert set(flows.row_weight) == {50.0}
    assert set(flows.repetition) == set(range(5))
    assert not flows.duplicated(["repetition", "message"]).any()
    assert 300 < flows.message.mean() < 700
    assert workload.metrics()["delivered_bytes"] == 5 * n
    assert np.allclose(flows.ready_s, flows.repetition * (0.999 + 1) + flows.message * 1e-3)


def test_slowdown_over_the_ideal(clock, fixed_time_fabric):
    """1 s each, where an empty fabric needs 1, 0.5 and 0.25 s: slowdowns 1, 2 and 4; two bins of size."""
    graph = message_graph(np.array([0, 1, 2]), np.array([1, 2, 0]), np.array([99, 100, 999]))
    workload = traffic(clock, fixed_time_fabric, graph, ideal_fct_s=np.array([1.0, 0.5, 0.25]))
    clock.run(workload.start())
    metrics = workload.metrics()
    assert metrics["slowdown.mean"] == pytest.approx(7 / 3)
    assert metrics["slowdown.p50"] == 2.0
    by_size = [key for key in metrics if key.startswith("slowdown.1e")]
    assert by_size == [f"slowdown.1e{d}-1e{d + 1}.{s}" for d in (1, 2) for s in ("mean", "p50", "p99")]
    assert (metrics["slowdown.1e1-1e2.p99"], metrics["slowdown.1e2-1e3.p50"]) == (1.0, 3.0)
    table = recorded(workload)["slowdowns"]
    assert table.from_bytes.tolist() == [10, 100]
    assert table.below_bytes.tolist() == [100, 1000]
    assert table.num_flows.tolist() == [1, 2]
    assert table["mean"].tolist() == [1.0, 3.0]


HOSTS = np.arange(16) // 2


def offered(seed, law, load=0.5, duration_s=1e-3):
    return poisson(
        np.arange(16), law, load=load, duration_s=duration_s, total_host_link_bytes_per_s=8 * 50e9,
        host_of_accelerator=HOSTS, rng=np.random.default_rng(seed),
    )  # fmt: skip


@pytest.mark.parametrize("law", [sizes.fixed(5000), sizes.lognormal(20_000, 1.0)], ids=["fixed", "lognormal"])
def test_offered_load_is_exact_in_expectation(law):
    """Wire bytes, headers included, over 40 runs: load · Σ rates · duration within 4 standard errors."""
    expected = 0.5 * 8 * 50e9 * 1e-3
    found = [sizes.wire_bytes(offered(seed, law).size_bytes, 4096, 64).sum() for seed in range(40)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(40))
    assert np.std(found) / np.sqrt(40) < 0.01 * expected


def test_arrivals_are_poisson_between_different_hosts():
    graph = offered(1, sizes.fixed(2000), duration_s=2e-3)
    assert np.all(np.diff(graph.earliest_s) >= 0)
    assert graph.earliest_s[0] >= 0 and graph.earliest_s[-1] < 2e-3
    assert np.all(HOSTS[graph.source] != HOSTS[graph.destination])
    gaps = np.diff(graph.earliest_s)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    pairs = np.bincount(graph.source * 16 + graph.destination, minlength=256)
    allowed = (HOSTS[:, None] != HOSTS).ravel()
    mean = pairs[allowed].mean()
    assert abs(pairs[allowed] - mean).max() < 6 * np.sqrt(mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": 0.0}, "above 0"),
        ({"load": float("nan")}, "load is nan"),
        ({"duration_s": -1.0}, "duration"),
        ({"duration_s": 1e6}, "shorten the duration"),
    ],
)
def test_impossible_loads_are_refused(options, message):
    with pytest.raises(PatternError, match=message):
        offered(1, sizes.fixed(2000), **options)


def test_poisson_needs_two_hosts():
    with pytest.raises(PatternError, match="two hosts"):
        poisson(
            np.arange(2), sizes.fixed(1), load=0.5, duration_s=1.0, total_host_link_bytes_per_s=1e9,
            host_of_accelerator=HOSTS, rng=np.random.default_rng(1),
        )  # fmt: skip
