import hashlib
import json

import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic_results import SCENARIO, make_run

from sim.results.run_results import RunResults, VariantResult
from sim.results.store import (
    RunFolder,
    RunFolderError,
    StoredTables,
    read_run,
    variant_slugs,
    write_result,
)

SMALL = {"num_requests": 12, "leaves": 2, "spines": 2, "hosts_per_leaf": 2}


def stored(path, **arguments):
    """Write a synthetic run; returns its folder and what was in memory."""
    run = make_run(**{**SMALL, **arguments})
    results, run.results = dict(run.results), {}
    folder = RunFolder.create(path, run)
    for result in results.values():
        folder.add(result)
    folder.finish(machine={"wall_s": 1.5})
    return path, results


def hashes(path):
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_summary_of_one_seed_is_the_documented_structure(tmp_path):
    path, results = stored(tmp_path / "run", num_seeds=1)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["scenario"] == "shift on a leaf-spine" and summary["seed"] == 1
    assert summary["version"] == "0.1.0" and summary["calibration"] == "3f2a91c07d"
    assert summary["partial"] is False and summary["headline"] and "differences" not in summary
    assert list(summary["variants"]) == ["single path", "one assigned path", "spray"]
    metrics = summary["variants"]["spray"]["metrics"]
    assert metrics == results["spray", 1].metrics


def test_the_summary_of_several_seeds_has_intervals_and_paired_differences(tmp_path):
    path, results = stored(tmp_path / "run", num_seeds=3)
    summary = json.loads((path / "summary.json").read_text())
    key = "traffic.shift.completion_time_s"
    metric = summary["variants"]["single path"]["metrics"][key]
    assert metric["values"] == [results["single path", seed].metrics[key] for seed in (1, 2, 3)]
    assert metric["ci95"][0] < metric["mean"] < metric["ci95"][1]
    assert summary["seeds"] == [1, 2, 3]
    difference = summary["differences"]["spray"][key]
    assert list(summary["differences"]) == ["one assigned path", "spray"]
    assert difference["verdict"] == "better" and difference["ci95"][1] < 0
    assert set(difference) == {"mean", "ci95", "relative", "relative_ci95", "verdict"}


def test_the_same_results_give_the_same_bytes(tmp_path):
    first, _ = stored(tmp_path / "a", num_seeds=2)
    second, _ = stored(tmp_path / "b", num_seeds=2)
    assert hashes(first) == hashes(second)
    assert json.loads((first / "run.json").read_text()) == {"wall_s": 1.5}


def test_tables_carry_their_provenance_and_read_back_as_they_were(tmp_path):
    path, results = stored(tmp_path / "run", num_seeds=1)
    file = path / "tables" / "one-assigned-path" / "1" / "links.parquet"
    metadata = pq.read_schema(file).metadata
    assert metadata[b"scenario"] == b"shift on a leaf-spine" and metadata[b"seed"] == b"1"
    assert metadata[b"version"] == b"0.1.0" and metadata[b"calibration"] == b"3f2a91c07d"
    run = read_run(path)
    tables = run.results["one assigned path", 1].tables
    assert isinstance(tables, StoredTables)
    for name, frame in results["one assigned path", 1].tables.items():
        pd.testing.assert_frame_equal(tables[name], frame)
    assert run.results["spray", 1].metrics == results["spray", 1].metrics
    assert run.scenario_text == SCENARIO
    with pytest.raises(KeyError):
        tables["faults"]


def test_what_is_finished_survives_a_kill(tmp_path):
    """Neither finish() nor the rest of the variants ever comes."""
    run = make_run(num_seeds=2, **SMALL)
    results, run.results = dict(run.results), {}
    folder = RunFolder.create(tmp_path / "run", run)
    for name_and_seed in (("single path", 1), ("single path", 2), ("spray", 1)):
        folder.add(results[name_and_seed])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["partial"] is True and "3 of 6 runs finished" in summary["headline"]
    metrics = summary["variants"]["spray"]["metrics"]
    assert metrics["traffic.shift.completion_time_s"]["values"][1] is None
    assert summary["variants"]["one assigned path"] == {"metrics": {}}
    found = read_run(tmp_path / "run")
    assert found.partial and set(found.results) == {("single path", 1), ("single path", 2), ("spray", 1)}
    folder.finish(partial=False)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["partial"] is True


def test_a_worker_writes_and_the_parent_takes_in(tmp_path):
    run = make_run(num_seeds=1, **SMALL)
    results, run.results = dict(run.results), {}
    folder = RunFolder.create(tmp_path / "run", run)
    for result in results.values():
        folder.add(write_result(tmp_path / "run", run, result))
    folder.finish()
    direct, _ = stored(tmp_path / "direct", num_seeds=1)
    assert hashes(tmp_path / "run") == hashes(direct)


def test_network_tax_is_taken_against_the_ideal_twin_of_the_same_seed(tmp_path):
    path, results = stored(tmp_path / "run", num_seeds=2, variants=("single path", "ideal"))
    metrics = json.loads((path / "summary.json").read_text())["variants"]["single path"]["metrics"]
    key = "serving.chat.p99_itl_ms"
    expected = [results["single path", s].metrics[key] / results["ideal", s].metrics[key] - 1 for s in (1, 2)]
    assert metrics["serving.chat.network_tax"]["values"] == pytest.approx(expected)
    ideal = read_run(path).results["ideal", 1].metrics
    assert ideal["serving.chat.network_tax"] == 0.0


def test_nan_and_none_metrics_become_null(tmp_path):
    run = RunResults("none", None, (1,), ("run",), "0.1.0", None)
    folder = RunFolder.create(tmp_path / "run", run)
    folder.add(
        VariantResult("run", 1, {"traffic.a.completion_time_s": float("nan"), "links.wire_bytes": None})
    )
    folder.finish()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["variants"]["run"]["metrics"] == {
        "traffic.a.completion_time_s": None,
        "links.wire_bytes": None,
    }
    assert summary["calibration"] is None and "No answer yet" in summary["headline"]


def test_a_folder_in_use_is_refused_and_foreign_files_are_never_removed(tmp_path):
    path, _ = stored(tmp_path / "run", num_seeds=1)
    run = make_run(num_seeds=1, **SMALL)
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder.create(path, run)
    (path / "notes.txt").write_text("mine")
    RunFolder.create(path, run, overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"
    assert not (path / "summary.json").exists() and not (path / "tables").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.create(foreign, run, overwrite=True)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(foreign / "thesis.tex", run)


def test_reading_something_else_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"scenario": "x"}')
    with pytest.raises(RunFolderError, match="does not hold what a run writes"):
        read_run(tmp_path)


def test_slugs_are_plain_and_unique():
    names = ["Single path", "single-path", "../../etc", "漢字", "???", "a" * 200]
    slugs = variant_slugs(names)
    assert list(slugs.values())[:3] == ["single-path", "single-path-2", "etc"]
    assert len(set(slugs.values())) == len(names)
    assert all(slug.replace("-", "").isalnum() and len(slug) <= 64 for slug in slugs.values())
