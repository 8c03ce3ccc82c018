"""The benchmark's cases run, and nothing is called measured without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import bench
from kernels.cases import LITE, TINY, Case
from kernels.timing import Times


def test_a_rehearsal_runs_every_case_and_measures_none(capsys, tmp_path):
    assert bench.main(["--rehearse", "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().err
    assert all(name in said for name in ("reroute", "align", "layer", "feed-forward"))
    assert not (tmp_path / "none").exists()


def test_without_a_gpu_it_refuses(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--out", str(tmp_path / "none")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_model_is_the_papers():
    """16.5 MiB an expert, as ExpertWeave says of DeepSeek-V2-Lite."""
    assert LITE.slot_bytes == 16.5 * 2**20
    assert LITE.num_slots == 64 + 8 * 13
    assert TINY.num_slots < LITE.num_slots


def test_rates_come_from_the_median():
    """Replays of 1, 2 and 9 us: 2 us for 4 kB is 2 GB/s, for 6 Mflop 3 Tflop/s."""
    times = Times(np.array([1e-6, 9e-6, 2e-6]))
    found = bench.row("k", "s", "w", times, times, 4e3, 6e6)
    assert found["median_us"] == pytest.approx(2.0)
    assert found["gb_per_s"] == pytest.approx(2.0)
    assert found["tflop_per_s"] == pytest.approx(3.0)
    assert found["p10_us"] < 2.0 < found["p90_us"]


def test_ways_are_compared_replay_by_replay(monkeypatch):
    """The clock halves midway: one way takes 1.5 times as long throughout, and the other's second run as long."""
    base = np.array([1e-6] * 5 + [2e-6] * 5)
    times = {"own": Times(base), "other": Times(1.5 * base), "own again": Times(base)}
    monkeypatch.setattr(bench.timing, "measure", lambda ways, rounds: times)
    rows = list(bench.rows_of(Case("k", "s", {"own": [], "other": []}), 10))
    assert [(row["way"], row["over_first"]) for row in rows] == [
        ("own", 1.0), ("other", pytest.approx(1.5)), ("own again", 1.0)
    ]  # fmt: skip
