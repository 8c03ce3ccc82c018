"""A scenario on a table of measured times: whose time it was, in tables, metrics, figure and command."""

import json

import numpy as np
import pandas as pd
import pytest

from models.cost.table import table_of, write_table
from sim.explain_cost import explain
from sim.run import run_scenario
from sim.scenario import build
from sim.scenario.errors import ScenarioError
from sim.scenario.load import load_scenario

SCENARIO = """
name: measured
cluster:
  fabric: {kind: leaf_spine, leaves: 1, spines: 1, hosts_per_leaf: 1, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 1, accelerator: h100}
cost: {table: times.csv}
workloads:
  - {kind: serving, name: chat, model: llama-3.1-8b, arrivals: {kind: constant, rate: 1 /s}, num_requests: 2,
     lengths: {input: {law: fixed, tokens: 100}, output: {law: fixed, tokens: 11}}}
"""
QKV = {"operator": "linear", "name": "", "precision": "bf16", "inputs": 4096, "outputs": 6144, "unit": "s",
       "gpu": "NVIDIA H100 80GB HBM3", "source": "a test", "commit": "abc"}  # fmt: skip
LAYERS = 32


@pytest.fixture
def folder(tmp_path):
    """A table that knows qkv_proj of 1 and 64 rows: 10 us and 73 us, 1 us a row in between."""
    (tmp_path / "measured.yaml").write_text(SCENARIO)
    rows = [QKV | {"rows": 1, "seconds": 10e-6}, QKV | {"rows": 64, "seconds": 73e-6}]
    write_table(table_of(rows, "here"), tmp_path / "times.csv")
    return tmp_path


def test_whose_time_it_was(folder):
    """Two requests alone: each a prompt of 100, beyond the 64 rows measured, and ten decodes of one row. A hundred
    tokens run as the recorded graph of 104.

    Ten decodes take 32 layers x 10 us of measured qkv_proj. A product of 64 rows and of 104 is bound by its weights on
    an H100, so that the prompt takes hardly more than the edge: 73 us times the ratio of the bytes."""
    out = folder / "out"
    run_scenario(load_scenario(folder / "measured.yaml"), out)
    (file,) = out.rglob("cost_sources*.parquet")
    frame = pd.read_parquet(file)
    seconds = {(row.operator, row.source): row.seconds for row in frame.itertuples()}
    assert seconds["qkv_proj", "measured"] == pytest.approx(2 * 10 * LAYERS * 10e-6)
    at_edge, beyond = (4096 * 6144 + n * (4096 + 6144) for n in (64, 104))
    assert seconds["qkv_proj", "extrapolated"] == pytest.approx(2 * LAYERS * 73e-6 * beyond / at_edge)
    assert set(seconds) == {("qkv_proj", "measured"), ("qkv_proj", "extrapolated"),
                            ("all that a roofline prices", "roofline")}  # fmt: skip
    batches = pd.concat(map(pd.read_parquet, out.rglob("batches*.parquet")))
    total_s = float((batches["compute_s"] + batches["communication_s"]).sum())
    assert sum(seconds.values()) == pytest.approx(total_s)
    summary = json.loads((out / "summary.json").read_text())
    (variant,) = summary["variants"].values()
    assert variant["metrics"]["serving.chat.measured_share"] == pytest.approx(
        seconds["qkv_proj", "measured"] / total_s
    )
    assert summary["calibration"].startswith("times-")
    assert (out / "figures" / "cost-sources-1.png").stat().st_size > 5000


def test_operators_are_explained_before_anything_runs(folder):
    rows = explain(load_scenario(folder / "measured.yaml"))
    decode = {row["operator"]: row for row in rows if row["step"].startswith("32 decodes at 105")}
    assert decode["qkv_proj"]["us"] == pytest.approx(LAYERS * 41)
    assert (decode["qkv_proj"]["source"], decode["qkv_proj"]["nearest"]) == ("interpolated", "64")
    assert (decode["o_proj"]["source"], decode["o_proj"]["nearest"]) == ("roofline", None)
    for step in {row["step"] for row in rows}:
        assert np.sum([row["share"] for row in rows if row["step"] == step]) == pytest.approx(1)


def test_explained_as_it_will_run_with_factors_on_operators(folder):
    text = SCENARIO.replace("cost: {table: times.csv}", "cost: {table: times.csv, scale: {qkv_proj: 2}}")
    (folder / "measured.yaml").write_text(text)
    rows = explain(load_scenario(folder / "measured.yaml"))
    decode = [row for row in rows if row["operator"] == "qkv_proj" and row["step"].startswith("32 decodes")]
    assert [row["us"] for row in decode] == pytest.approx([2 * LAYERS * 41])


def test_more_may_decode_than_a_step_of_prompts_takes(folder):
    """Under prefill_first the budget is of prompts: 40 requests of 20 tokens decode together."""
    text = SCENARIO.replace("rate: 1 /s}, num_requests: 2", "rate: 100000 /s}, num_requests: 40")
    text = text.replace("tokens: 100}", "tokens: 20}").replace(
        "lengths:", "batching: {policy: prefill_first, max_num_batched_tokens: 20, max_num_seqs: 40}, lengths:"
    )
    (folder / "measured.yaml").write_text(text)
    run_scenario(load_scenario(folder / "measured.yaml"), folder / "out")
    batches = pd.concat(map(pd.read_parquet, (folder / "out").rglob("batches*.parquet")))
    assert batches["num_decodes"].max() == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "NVIDIA H200"}, r"times\.csv has times of NVIDIA H200, the accelerator is h100; take a table of its"),
        ({"unit": "us"}, r"times\.csv: row 1: unit 'us' must be \"s\"; convert"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_runs(folder, change, message):
    pd.DataFrame([QKV | {"rows": 1, "seconds": 10e-6} | change]).to_csv(folder / "times.csv", index=False)
    with pytest.raises(ScenarioError, match=rf"cost\.table: .*{message}"):
        build.check(load_scenario(folder / "measured.yaml"))
