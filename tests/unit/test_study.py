"""A folder of scenarios from files to one report; what two of them share is simulated once."""

import json

import pandas as pd
import pytest

import sim.run
import sim.workers
from sim.engine.progress import Progress
from sim.scenario.errors import Refused, ScenarioError
from sim.study import load_study, run_study

BASE = """
name: study, base
question: Is spraying needed?
seeds: 2
cluster:
  fabric: {kind: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 2, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 1, accelerator: h100}
workloads: [{kind: collective, name: c, operation: all_to_all, size: 1 MB}]
compare:
  size:
    - {name: 1 MB}
    - {name: 2 MB, workloads: [{name: c, size: 2 MB}]}
  policy:
    - {name: ecmp, side: one path, paths: {policy: ecmp}}
    - {name: spray, side: spraying, paths: {policy: spray}}
    - {name: ideal, paths: {policy: ideal}}
"""
OTHER = BASE.replace("study, base", "study, spines").replace("seeds: 2", "seeds: 2 # as in the base")
OTHER = OTHER.replace("""  size:
    - {name: 1 MB}
    - {name: 2 MB, workloads: [{name: c, size: 2 MB}]}
""", """  oversubscription:
    - {name: "1:1"}
    - {name: "2:1", cluster: {fabric: {spines: 1}}}
""")  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "study"
    path.mkdir()
    (path / "base.yaml").write_text(BASE)
    (path / "a_spines.yaml").write_text(OTHER)
    return path


def test_what_two_scenarios_share_runs_once(folder, tmp_path, monkeypatch):
    ran = []
    simulate = sim.workers.simulate

    def counting(scenario, seed, label, report=None):
        ran.append((label, seed))
        return simulate(scenario, seed, label, report)

    monkeypatch.setattr(sim.workers, "simulate", counting)
    loaded = load_study(folder)
    assert list(loaded) == ["base", "a_spines"]
    outcome = run_study(loaded, tmp_path / "out", 1, Progress(24, quiet=True))
    assert len(ran) == len(set(ran)) == 2 * 6 + 2 * 3
    assert not any(label.startswith("1:1") for label, _ in ran)
    assert not outcome.partial and "Of 3 cases" in outcome.headline
    assert "no difference" in outcome.report.read_text()
    winners = pd.read_csv(tmp_path / "out" / "winners.csv")
    assert list(winners.circumstances.unique()) == ["1 MB", "2 MB", "1:1", "2:1"]
    base, spines = (json.loads((tmp_path / "out" / name / "summary.json").read_text()) for name in ("base", "a_spines"))
    assert base["axes"]["policy"] == ["ecmp", "spray", "ideal"] and base["sides"]["spray"] == "spraying"
    assert spines["variants"]["1:1, ecmp"] == base["variants"]["1 MB, ecmp"]
    assert set(base["differences"]) == {"1 MB, spray", "1 MB, ideal", "2 MB, spray", "2 MB, ideal"}
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_single_file_gives_the_same_report(folder, tmp_path):
    from sim.scenario.load import load_scenario

    outcome = sim.run.run_scenario(load_scenario(folder / "base.yaml"), tmp_path / "one")
    assert "Of 2 cases" in outcome.headline
    assert "Flip points" in (tmp_path / "one" / "report.html").read_text()
    assert list((tmp_path / "one").rglob("*.parquet"))


def test_what_no_scenario_may_cost_is_refused_before_anything_runs(folder, tmp_path):
    loaded = load_study(folder, ["fidelity=packet"])
    with pytest.raises(Refused, match="--max-packet-hops"):
        run_study(loaded, tmp_path / "out", 1, Progress(24, quiet=True), max_packet_hops=10.0)
    assert not (tmp_path / "out").exists()


def test_what_is_no_study_is_refused(folder, tmp_path):
    with pytest.raises(Refused, match="is no folder"):
        load_study(folder / "base.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds no scenario file"):
        load_study(tmp_path / "empty")
    (folder / "c.yaml").write_text(BASE[: BASE.index("compare:")])
    with pytest.raises(Refused, match=r"c.yaml has no axes"):
        load_study(folder)
    (folder / "c.yaml").write_text(BASE + "fidelity: auto\n")
    with pytest.raises(Refused, match=r"c.yaml has fidelity: auto, .* write fidelity: packet, or fluid"):
        load_study(folder)
    (folder / "c.yaml").write_text(BASE.replace("ecmp}}", "ecpm}}"))
    with pytest.raises(ScenarioError, match=r"c.yaml:\d+: .*did you mean 'ecmp'"):
        load_study(folder)
