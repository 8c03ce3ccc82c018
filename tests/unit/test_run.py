"""A scenario from file to folder: the same bytes twice, with any number of workers; what stalls says so."""

import gc
import json
import weakref

import pytest

from sim.run import run_scenario
from sim.scenario import build
from sim.scenario.errors import ScenarioError
from sim.scenario.load import load_scenario
from sim.simulate import StalledError, simulate

SCENARIO = """
name: tiny
seeds: 2
cluster:
  fabric: {kind: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 2, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 1, accelerator: h100}
workloads:
  - {kind: traffic, name: exchange, pattern: all_to_all, size_per_flow: 1 MB, repeat: 4}
  - {kind: training, name: neighbour, operation: all_reduce, size: 1 MB, compute: 20 us}
compare:
  - {name: one path, paths: {policy: ecmp}}
  - {name: spray, paths: {policy: spray}}
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO)
    return path


def test_tables_and_summary_are_the_same_bytes_with_one_worker_and_with_two(tiny, tmp_path):
    folders = []
    for workers in (1, 2, 1):
        out = tmp_path / f"out{len(folders)}"
        outcome = run_scenario(load_scenario(tiny), out, workers)
        assert not outcome.partial
        folders.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*.parquet")}
                       | {"summary": (out / "summary.json").read_bytes()})  # fmt: skip
        assert (out / "report.html").stat().st_size > 10_000
    assert len(folders[0]) > 8
    assert folders[0] == folders[1] == folders[2]
    metrics = json.loads(folders[0]["summary"])["variants"]["spray"]["metrics"]
    assert metrics["links.max_load_over_fair"]["values"] == pytest.approx([1.0, 1.0])
    assert metrics["training.neighbour.num_steps"]["mean"] > 0


def test_a_model_that_does_not_fit_is_refused_with_its_line(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text(SCENARIO.replace(
        "  - {kind: traffic, name: exchange, pattern: all_to_all, size_per_flow: 1 MB, repeat: 4}",
        "  - {kind: serving, name: chat, model: llama-3.1-70b, arrivals: {kind: poisson, rate: 1 /s}, num_requests: 3,"
        " lengths: {input: {law: fixed, tokens: 10}, output: {law: fixed, tokens: 10}}}",
    ))  # fmt: skip
    with pytest.raises(ScenarioError, match=r"large.yaml:9: .*does not fit on h100"):
        run_scenario(load_scenario(path), tmp_path / "out")


def test_a_run_in_which_nothing_can_move_says_what_waits(tiny, monkeypatch):
    from sim.fabric.fluid import FluidFabric
    from sim.fabric.messages import message_graph

    start = FluidFabric.start

    def gated(self, graph):
        return start(self, message_graph(graph.source, graph.destination, graph.size_bytes, gate=5, owner="exchange"))

    monkeypatch.setattr(FluidFabric, "start", gated)
    with pytest.raises(StalledError, match=r"exchange: message 0 .*waits for .*gate 5"):
        simulate(load_scenario(tiny, ["workloads.neighbour.steps=1"]).variants[0][1], 1, "one path")


def only(tiny, tmp_path, workload, *settings):
    """The tiny cluster with one workload, under spraying."""
    head, tail = SCENARIO.index("workloads:"), SCENARIO.index("compare:")
    tiny.write_text(f"{SCENARIO[:head]}workloads:\n  - {{{workload}}}\n{SCENARIO[tail:]}")
    return load_scenario(tiny, list(settings)).variants[1][1]


def test_a_simulation_is_gone_when_the_next_one_begins(tiny, monkeypatch):
    """A study's worker runs hundreds after one another, and each holds up to gigabytes in a few objects."""
    fabrics = []
    real = build.build

    def build_and_remember(*arguments):
        assert all(fabric() is None for fabric in fabrics)
        simulation = real(*arguments)
        fabrics.append(weakref.ref(simulation.fabric))
        return simulation

    monkeypatch.setattr(build, "build", build_and_remember)
    scenario = load_scenario(tiny).variants[0][1]
    gc.disable()
    try:
        for seed in (1, 2, 3):
            simulate(scenario, seed, "run")
    finally:
        gc.enable()
    assert len(fabrics) == 3


def test_training_without_an_end_runs_to_max_time(tiny, tmp_path):
    """Steps of 1 ms of computing and 6 ring steps of at most 4 us and 1 kB, under 25 us together: 10 in 10.5 ms."""
    job = "kind: training, name: job, operation: all_reduce, size: 4 kB, compute: 1 ms"
    result = simulate(only(tiny, tmp_path, job, "max_time=10.5 ms"), 1, "one path")
    assert result.metrics["training.job.num_steps"] == 10
    assert 1e-3 < result.metrics["training.job.step_s.mean"] < 1.025e-3
    assert result.notes["warnings"] == []


def test_traffic_cut_at_max_time_counts_what_arrived(tiny, tmp_path):
    """12.5 GB/s: 1 MB takes 81 us (64 B of header in 4,096), 1 GB does not end within 1 ms."""
    (tmp_path / "three.csv").write_text("source,destination,bytes\n0,2,1000000\n1,3,1000000\n2,0,1000000000\n")
    scenario = only(tiny, tmp_path, f"kind: traffic, name: t, pattern: matrix, file: {tmp_path / 'three.csv'}",
                    "max_time=1 ms")  # fmt: skip
    result = simulate(scenario, 1, "one path")
    assert result.metrics["traffic.t.completion_time_s"] is None
    assert result.metrics["traffic.t.delivered_bytes"] == 2e6
    assert result.metrics["traffic.t.fct_s.max"] == pytest.approx(1e6 * 4096 / 4032 / 12.5e9 + 4e-6, rel=1e-3)
    assert "t: 1 of 3 flows were not delivered" in result.notes["warnings"]
    assert result.tables["link_series"].utilisation.between(0, 1 + 1e-9).all()
    assert (result.tables["link_series"].span_s > 0).all()


def test_an_interrupted_transfer_keeps_what_was_delivered_by_then(tiny, tmp_path):
    """Interrupted at the first report after 1 ms: the clock stands there, though nothing but the fabric was at work."""
    reports = []

    def report(now_s, end_s, num_events, share):
        reports.append((now_s, share))
        if now_s >= 1e-3:
            raise KeyboardInterrupt

    scenario = only(tiny, tmp_path, "kind: traffic, name: p, pattern: poisson, load: 0.5, duration: 1 s,"
                    " sizes: {law: fixed, size: 1 MB}")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.simulate.SECONDS_BETWEEN_REPORTS", 0.0)
        patch.setattr("sim.fabric.fluid.EVENTS_PER_CALL", 4)
        result = simulate(scenario, 1, "one path", report)
    now_s = reports[-1][0]
    assert len(reports) > 5 and 1e-3 <= now_s < 2e-3
    assert [share for _, share in reports] == sorted(share for _, share in reports)
    assert 0 < reports[-1][1] < 0.01
    assert result.notes["partial"] is True
    assert f"interrupted at {now_s:.6g} s of simulated time" in result.notes["warnings"]
    flows = result.tables["flows"]
    delivered = flows[flows.outcome == "delivered"]
    assert 0 < len(delivered) < len(flows) and delivered.received_s.max() <= now_s
    assert result.metrics["traffic.p.delivered_bytes"] >= 1e6 * len(delivered)
    assert result.metrics["links.payload_bytes"] >= 1e6 * len(delivered)
    assert result.tables["link_series"].time_s.max() < now_s


def test_a_run_interrupted_at_its_start_is_recorded(tiny, tmp_path):
    """No time has passed: no bytes, no series, no utilisation, no error."""

    def report(*standing):
        raise KeyboardInterrupt

    scenario = only(tiny, tmp_path, "kind: traffic, name: t, pattern: all_to_all, size_per_flow: 1 MB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.fabric.fluid.EVENTS_PER_CALL", 1)
        result = simulate(scenario, 1, "spray", report)
    assert "interrupted at 0 s of simulated time" in result.notes["warnings"]
    assert result.metrics["links.wire_bytes"] == 0
    assert result.metrics["links.max_utilisation"] is None
    assert len(result.tables["links"]) > 0 and "link_series" not in result.tables


def test_an_interruption_while_the_report_is_written_leaves_whole_results(tiny, tmp_path, monkeypatch):
    def interrupted(folders, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.run.write_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_scenario(load_scenario(tiny), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["partial"] is False
