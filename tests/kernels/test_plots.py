"""The benchmark's figure, of numbers made up here."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from kernels import bench, plots
from kernels.cases import Case
from kernels.timing import Times


def table_of_made_up_numbers():
    rng = np.random.default_rng(1)
    rows = []
    for kernel, ways in (("reroute", ["kernel", "PyTorch"]), ("feed-forward", ["pool", "padded", "PyTorch"]),
                         ("layer", ["without rerouting", "rerouting on the way", "PyTorch"])):  # fmt: skip
        for tokens in (1, 64, 1024, 16384):
            first = Times(rng.uniform(1e-5, 1.02e-5, 20))
            for i, way in enumerate(ways):
                case = Case(kernel, f"{tokens} tokens", {}, 1e6, 1e9)
                times = Times(first.seconds * rng.uniform(1 + i / 10, 1.02 + i / 10, 20))
                rows.append(bench.row(case.kernel, case.shape, way, times, first, case.num_bytes, case.num_flops))
    table = pd.DataFrame(rows)
    return table.assign(of_copy=table["gb_per_s"] / 300, of_product=table["tflop_per_s"] / 300)


def test_a_figure_from_a_folder(tmp_path, capsys):
    table_of_made_up_numbers().to_csv(tmp_path / "bench.csv", index=False)
    made_up = {"gpu": "no GPU", "time": "never", "ceilings": {"bytes_per_s": 3e11, "flop_per_s": 3e14}}
    (tmp_path / "provenance.json").write_text(json.dumps(made_up))
    assert plots.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_without_a_table(tmp_path, capsys):
    assert plots.main([str(tmp_path)]) == 2
    assert "kernels.bench" in capsys.readouterr().err
