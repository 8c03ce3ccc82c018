"""One table's kernels over another's."""

import numpy as np
import pytest

from calibration.beside import beside
from calibration.check import held_out
from models.cost.table import read_table, table_of
from sim.scenario.cost_table import OWN

COMMON = {"unit": "s", "gpu": "NVIDIA H200", "source": "a test", "precision": "bf16"}
HEADS = {"heads": 8, "kv_heads": 2, "head_dim": 64}
SHAPE = {"hidden": 8, "inner": 4, "top_k": 2, "num_experts": 4}


def table(factor: float, kernel: str, most_rows: int = 4096):
    """Products of rows x 1 us, attention of chunk + decodes x context, experts of rows + 10 x touched, x factor."""
    rows = [{"operator": "linear", "name": "", "inputs": 64, "outputs": 64, "rows": n, "seconds": n * 1e-6 * factor}
            for n in (1, 64, 512, 4096) if n <= most_rows]  # fmt: skip
    rows += [{"operator": "attention", "name": "", **HEADS, "chunk": n, "prefix": 0, "decodes": 0, "context": 0,
              "seconds": n * 1e-8 * factor} for n in (16, 4096)]  # fmt: skip
    rows += [{"operator": "attention", "name": "", **HEADS, "chunk": 0, "prefix": 0, "decodes": d, "context": c,
              "seconds": d * c * 1e-9 * factor} for d in (1, 64) for c in (512, 4096)]  # fmt: skip
    rows += [{"operator": "experts", "name": kernel, **SHAPE, "rows": n, "experts": e,
              "seconds": (n + 10 * e) * 1e-6 * factor} for n in (8, 16, 32) for e in (2, 4)]  # fmt: skip
    return table_of([COMMON | row for row in rows], "here")


def test_half_as_fast_in_every_part():
    found = beside(table(2.0, "pool"), table(1.0, "fused_moe")).set_index("work")
    assert len(found) == 7
    assert found["median"].to_numpy() == pytest.approx(np.full(7, 2.0))
    assert found.loc["experts, all touched, over fused_moe", "points"] == 3
    assert found["points"].sum() == 4 + 2 + 4 + 3


def test_what_the_other_has_not_measured_is_left_out():
    found = beside(table(2.0, "pool"), table(1.0, "fused_moe", most_rows=64)).set_index("work")
    assert found.loc["bf16 products, up to 128 rows", "points"] == 2
    assert "bf16 products, more rows" not in found.index


def test_a_grid_of_five_places_loses_no_column():
    """Held out by fives from a grid whose last axis has five places: each place once, not one place of all."""
    rows = [COMMON | {"operator": "attention", "name": "", **HEADS, "chunk": c, "prefix": p, "decodes": 0, "context": 0,
                      "seconds": (c + p) * 1e-8} for c in (1, 2, 4, 8, 16) for p in (0, 1, 2, 3, 4)]  # fmt: skip
    (part,) = held_out(table_of(rows, "here"))["attention"].parts
    assert sorted(part.out["prefix"].astype(int)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", sorted(OWN))
def test_our_own_tables_are_whole(name):
    """Of one device and commit, with the ceilings in them, and no time faster than the device by more than reads from
    L2 explain."""
    rows = read_table(OWN[name]).rows
    assert rows["commit"].nunique() == rows["gpu"].nunique() == rows["driver"].nunique() == 1
    assert (rows["commit"].str.len() >= 7).all()
    assert (rows["source"] == "spindle calibrate").all()
    assert rows.loc[rows["size_bytes"] == 2**31, "of_ceiling"].tolist() == [1.0]
    assert rows["of_ceiling"].max() < 1.1
    assert (rows["p10_s"] <= rows["seconds"]).all() and (rows["seconds"] <= rows["p90_s"]).all()
