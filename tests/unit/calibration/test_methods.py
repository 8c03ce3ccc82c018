"""Methods chosen by held-out error, what a table says of them, and the report of a check."""

import re

import numpy as np
import pytest

from calibration.__main__ import main
from calibration.check import held_out, other_rank_errors, peaks
from calibration.groups import groups
from calibration.methods import choose, score, with_methods
from models.cost.measured import Measured
from models.cost.method import FLAT, LINEAR, LOG, ROOT, STEPS, Method, default_method, read_method
from models.cost.table import CostTable, TableError, read_table, table_of, write_table
from models.features import Operator, affine

COMMON = {"unit": "s", "gpu": "A", "source": "a test"}


def passes(of, names=20) -> list[dict]:
    """Kernels that take of(rows) us, each somewhat slower than the one before."""
    return [COMMON | {"operator": "elementwise", "name": f"k{i}", "numbers": 64, "rows": int(n),
                      "seconds": (1 + i / 100) * of(n) * 1e-6}
            for i in range(names) for n in 2 ** np.arange(15)]  # fmt: skip


def attention(heads=(8, 16, 32)) -> list[dict]:
    """Prefill that takes the square of its chunk, decodes that take what they read."""
    shape = {"operator": "attention", "precision": "bf16", "kv_heads": 8, "head_dim": 128, "chunk": 0, "prefix": 0,
             "decodes": 0, "context": 0}  # fmt: skip
    chunks = [shape | {"heads": h, "chunk": c, "seconds": h * (1 + c / 64) ** 2 * 1e-6}
              for h in heads for c in (1, 64, 256, 512, 1024, 2048, 4096)]  # fmt: skip
    decodes = [shape | {"heads": h, "decodes": n, "context": k, "seconds": (5 + h * n * k / 1e4) * 1e-6}
               for h in heads for n in (1, 8, 64) for k in (16, 256, 4096, 8192)]  # fmt: skip
    return [COMMON | row for row in chunks + decodes]


@pytest.mark.parametrize(
    ("of", "scales"),
    [(lambda n: 5 + n, (LINEAR, LINEAR)), (lambda n: (3 + n) ** 2, (LINEAR, ROOT)),
     (lambda n: (1 + n) ** 0.7, (LOG, LOG))],
    ids=["a line", "a square", "a power"],
)  # fmt: skip
def test_the_scales_on_which_times_are_straight_are_chosen(of, scales):
    table = with_methods(table_of(passes(of), "made"))
    assert set(table.rows["method"]) == {Method(scales).text}
    assert held_out(table)["elementwise"].errors == pytest.approx(0, abs=1e-9)


def test_few_points_choose_nothing():
    table = with_methods(table_of(passes(lambda n: (3 + n) ** 2, names=2), "made"))
    assert set(table.rows["method"]) == {"linear linear steps"}


def test_the_choice_of_a_check_does_not_see_what_it_holds_out():
    """Times that are a power law where held out, and jagged elsewhere, choose as the jagged ones alone would."""
    table = table_of(passes(lambda n: (1 + n) ** 0.7), "made")
    rows = table.rows.copy()
    splits = [group.split() for group in groups(table)]
    is_out = rows.index.isin(np.concatenate([out.index for _, out in splits]))
    moved = rows["seconds"].where(~is_out, rows["seconds"] * 3)
    before, after = (
        {k: m for h in held_out(CostTable(rows.assign(seconds=s), "made")).values() for k, m in h.methods.items()}
        for s in (rows["seconds"], moved)
    )
    assert before == after
    assert choose(rest for rest, _ in splits)["elementwise", "", ""].text == before[""]


def test_a_score_is_the_worse_of_median_and_p90_beside_its_target():
    assert score(np.array([0.0, 0.03, 0.06])) == pytest.approx(1.0)
    assert score(np.array([0.0] * 8 + [0.2] * 2)) == pytest.approx(2.0)


def test_methods_survive_the_file_and_are_what_times_are_found_by(tmp_path):
    """On the root of time a square is straight: between 1,024 and 2,048 tokens, 1,536 take (1 + 24)^2."""
    table = table_of(attention(), "made")
    rows = table.rows.assign(method=np.where(table.rows["chunk"] > 0, "linear linear linear linear lines", ""))
    operator = Operator("attention", "s", affine(), affine(), kind="attention", shape=(16, 8, 128))
    assert Measured(table).attention(operator, "bf16").prefill.inside([[1536, 0]]) == pytest.approx([16e-6 * 25**2])
    for name in ("t.csv", "t.parquet"):
        write_table(table_of(rows, "made"), tmp_path / name)
        known = Measured(read_table(tmp_path / name)).attention(operator, "bf16")
        assert known.prefill.inside([[1536, 0]]) == pytest.approx([16e-6 * (17**2 + 33**2) / 2])
        assert known.decode.scales == (LINEAR,) * 3 and known.decode.fill == STEPS


def test_a_method_that_is_none():
    for text in ("linear", "linear cubic lines", "root linear lines", "linear linear", "linear linear splines"):
        with pytest.raises(TableError, match=r"row 1: method .* must be linear or log for each axis"):
            table_of([row | {"method": text} for row in passes(lambda n: n, 1)], "made")
    assert read_method("linear log root steps") == Method((LINEAR, LOG, ROOT), STEPS)
    assert default_method("experts", 2).fill == FLAT


def test_a_gap_at_one_number_of_heads_is_filled_from_the_others():
    """Prefill jumps by half from 512 tokens on; with 16 heads 512 itself was not measured, with 8 and 32 it was."""
    rows = [row | {"seconds": row["seconds"] * (1.5 if row["chunk"] >= 512 else 1)} for row in attention()]
    kept = [row for row in rows if (row["heads"], row["chunk"]) != (16, 512)]
    operator = Operator("attention", "s", affine(), affine(), kind="attention", shape=(16, 8, 128))
    found = Measured(table_of(kept, "made")).attention(operator, "bf16").prefill.inside([[512, 0]])
    assert found == pytest.approx([1.5 * 16e-6 * 9**2], rel=0.05)


def test_rows_that_stand_alone_are_counted():
    rows = [row | {"seconds": row["seconds"] * (2 if row["rows"] == 64 else 1)} for row in passes(lambda n: 5 + n, 3)]
    assert peaks(table_of(rows, "made")) == {("elementwise", ""): (0, 39)}  # 128 take 133, twice 69 are 138
    rows = [row | {"seconds": row["seconds"] * (3 if row["rows"] == 64 else 1)} for row in passes(lambda n: 5 + n, 3)]
    assert peaks(table_of(rows, "made")) == {("elementwise", ""): (3, 39)}


def test_a_report_stands_alone_and_has_every_operator(tmp_path, capsys):
    gathers = [COMMON | {"operator": "all_gather", "name": "nccl", "ranks": n, "size_bytes": 2**s,
                         "seconds": (5 + n + 2**s / 1e4) * 1e-6} for n in (2, 4, 8) for s in range(10, 24)]  # fmt: skip
    experts = [COMMON | {"operator": "experts", "name": "fused_moe", "precision": "bf16", "hidden": 64, "inner": 64,
                         "top_k": 2, "num_experts": 8, "rows": r, "experts": e, "seconds": (r / 9 + e) * 1e-6}
               for r in (8, 16, 32, 64, 128) for e in (1, 2, 4, 8)]  # fmt: skip
    table = table_of(passes(lambda n: 5 + n, 2) + attention() + gathers + experts, "made")
    assert len(other_rank_errors(table)) == 14
    write_table(table, tmp_path / "t.parquet")
    assert main(["check", str(tmp_path / "t.parquet"), "--report", str(tmp_path / "r.html")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "r.html").read_text()
    assert "collectives on a number of ranks left out" in printed
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!["']?data:)|https?://|url\(""", re.sub(r'base64,[^"]*', "", page))
    assert page.count("<img") == 3
    for operator in ("elementwise", "attention", "all_gather", "experts", "collectives"):
        assert f"<td>{operator}</td>" in page and operator in printed


def test_a_table_of_one_point_keeps_the_default():
    row = {"operator": "linear", "precision": "bf16", "inputs": 64, "outputs": 32, "rows": 1, "seconds": 1e-6,
           "unit": "s", "gpu": "GPU1", "source": "a test"}  # fmt: skip
    assert with_methods(table_of([row], "here")).rows["method"].tolist() == ["linear linear steps"]
