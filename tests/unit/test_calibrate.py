"""`spindle calibrate`: what a scenario needs that no row covers, and the process that is started to measure it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.grids import points_of
from models.cost.needs import Need, needs_from_json
from models.cost.table import table_of, write_table
from sim import calibrate, cli
from sim.scenario.load import load_scenario

SCENARIO = """
name: one host
cluster:
  fabric: {{kind: leaf_spine, leaves: 2, hosts_per_leaf: 1, spines: 1,
           host_link: {{rate: 400 Gbit/s, latency: 1 us}}, spine_link: {{rate: 400 Gbit/s, latency: 1 us}}}}
  host: {{accelerators: 8, accelerator: h100}}
workloads:
  - kind: serving
    name: chat
    model: {model}
    ranks: [0]
    duration: 10 s
    arrivals: {{kind: poisson, rate: 1 /s}}
    lengths: {{input: {{law: fixed, tokens: 900}}, output: {{law: fixed, tokens: 100}}}}
    batching: {{max_num_seqs: 64, max_num_batched_tokens: 2048}}
{cost}
"""


@pytest.fixture
def scenario(tmp_path):
    def load(model: str = "llama-3.1-8b", table: Path | None = None):
        path = tmp_path / "s.yaml"
        path.write_text(SCENARIO.format(model=model, cost=f"cost: {{table: {table}}}" if table else ""))
        return load_scenario(path, [], False, None, None)

    return load


def rows_of(needs, commit="abc", source="spindle calibrate", **columns):
    return [
        {"operator": p.operator, "name": p.name, "precision": p.precision, **p.columns, "unit": "s", "commit": commit,
         "gpu": "NVIDIA H100", "source": source, "seconds": 1e-6 + p.num_bytes / 3e12 + p.num_flops / 6e14} | columns
        for need in needs for p in points_of(need)
    ]  # fmt: skip


def table(path: Path, rows) -> Path:
    write_table(table_of(rows, "t"), path)
    return path


def test_without_a_table_all_that_a_device_can_measure_is_needed(scenario):
    """Llama-3.1-8B: 4096 wide, 32 heads over 8 of 128, 14,336 inside; a step of 2,048 tokens, contexts of 1,000."""
    found = calibrate.wanted(scenario())
    needs = {need.name or need.kind: need for need in found.needs}
    assert needs["qkv_proj"] == Need("linear", "qkv_proj", "bf16", (4096, 4096 + 2 * 1024), 2048)
    assert needs["down_proj"].shape == (14336, 4096)
    assert needs["lm_head"].most_rows == 64, "one row for each sequence"
    assert needs["attention"] == Need("attention", "", "bf16", (32, 8, 128), 1000, 64, 1000)
    assert found.tables == () and found.left_out == ()


def test_what_a_table_covers_is_not_needed(scenario, tmp_path):
    whole = calibrate.wanted(scenario()).needs
    some = [need for need in whole if need.name != "o_proj" and need.kind != "attention"]
    there = table(tmp_path / "t.parquet", rows_of(some))
    found = calibrate.wanted(scenario(table=there))
    assert {need.name or need.kind for need in found.needs} <= {"o_proj", "attention"}
    assert "attention" in {need.kind for need in found.needs}
    assert found.tables == (str(there),)
    assert calibrate.wanted(scenario(table=table(tmp_path / "all.parquet", rows_of(whole)))).needs == ()


def test_sizes_past_the_last_row_are_needed_unless_the_rows_are_another_project_s(scenario, tmp_path):
    whole = calibrate.wanted(scenario()).needs
    rows = rows_of(whole)
    short = [row for row in rows if row.get("inputs") != 14336 or row["rows"] <= 512]
    found = calibrate.wanted(scenario(table=table(tmp_path / "ours.parquet", short)))
    assert [need.name for need in found.needs] == ["down_proj"]
    theirs = [{**row, "commit": ""} for row in short]
    assert calibrate.wanted(scenario(table=table(tmp_path / "theirs.parquet", theirs))).needs == ()


def test_what_measuring_cannot_help_is_said(scenario):
    """DeepSeek-V2-Lite: latent attention has no rows of its own; its products and its experts do."""
    found = calibrate.wanted(scenario("deepseek-v2-lite"))
    reasons = dict(found.left_out)
    assert "the roofline prices it" in reasons["attention_decode"]
    assert {"q_proj", "router", "routed_experts", "shared_experts"} <= {need.name for need in found.needs}


class Child:
    """A process that ends when it is waited for the second time, after a Ctrl-C."""

    def __init__(self, command, code=3):
        self.command, self.code, self.waits = command, code, 0
        self.needs = Path(command[command.index("--needs") + 1]).read_text() if "--needs" in command else None

    def wait(self):
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt
        return self.code


def test_the_process_gets_needs_and_table_and_ends_by_itself(scenario, tmp_path, monkeypatch):
    children = []
    monkeypatch.setattr(subprocess, "Popen", lambda command: children.append(Child(command)) or children[-1])
    there = table(tmp_path / "t.parquet", rows_of([Need("linear", "", "bf16", (8, 8), 4)]))
    found = calibrate.wanted(scenario(table=there))
    assert calibrate.measure(["--out", "x.parquet"], found) == 3
    (child,) = children
    assert child.command[:5] == [sys.executable, "-m", "calibration.measure", "--out", "x.parquet"]
    assert child.command[-2:] == ["--known", str(there)]
    assert needs_from_json(child.needs) == found.needs
    assert child.waits == 2


def test_the_command_passes_on_what_it_was_given(monkeypatch):
    started = []
    monkeypatch.setattr(calibrate, "measure", lambda options, found: started.append((options, found)) or 3)
    with pytest.raises(SystemExit) as left:
        cli.main(["calibrate", "--out", "x.csv", "--quick", "--seconds", "400", "--commit", "abc"])
    assert left.value.code == 3
    assert started == [(["--out", "x.csv", "--commit", "abc", "--quick", "--seconds", "400.0"], None)]


def test_the_commit_is_this_checkout_s():
    commit = calibrate.commit()
    assert commit == "unknown" or len(commit.removesuffix("-dirty")) == 40


def test_on_a_machine_without_a_gpu_the_list_is_printed_and_measuring_refused(scenario, tmp_path):
    scenario()
    command = [sys.executable, "-m", "sim.cli", "calibrate", "--for", str(tmp_path / "s.yaml")]
    there = {"cwd": Path(__file__).resolve().parents[2], "env": os.environ | {"CUDA_VISIBLE_DEVICES": ""}}
    listed = subprocess.run(command, capture_output=True, text=True, check=False, **there)
    assert listed.returncode == 0, listed.stderr
    assert "linear bf16 inputs 4096 outputs 6144 rows 2048\n" in listed.stdout
    command += ["--out", str(tmp_path / "x.csv")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, **there)
    assert refused.returncode == 2 and "no CUDA device" in refused.stderr
    assert refused.stdout == listed.stdout and not (tmp_path / "x.csv").exists()
