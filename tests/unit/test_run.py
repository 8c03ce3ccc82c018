"""A scenario from file to folder: the same bytes twice, with any number of workers; what stalls says so."""

import json

import pytest

from sim.run import run_scenario
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
