"""Tables of measured times: what is read, merged, and refused."""

import numpy as np
import pytest

from models.cost.table import TableError, read_table, table_of, write_table

ROW = {"operator": "linear", "precision": "bf16", "inputs": 64, "outputs": 32, "rows": 1, "seconds": 1e-5, "unit": "s",
       "gpu": "A", "source": "a test"}  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_comes_back_as_it_was_written(tmp_path, suffix):
    table = table_of([ROW, ROW | {"rows": 2, "seconds": 3e-5}, ROW | {"operator": "memory_pass", "inputs": None,
                      "outputs": None, "rows": None, "size_bytes": 64, "precision": ""}], "here")  # fmt: skip
    write_table(table, tmp_path / f"table{suffix}")
    again = read_table(tmp_path / f"table{suffix}")
    assert again.gpu == "A"
    assert again.rows.equals(table.rows)
    assert [*tmp_path.iterdir()] == [tmp_path / f"table{suffix}"]


def test_the_same_call_measured_again_is_one_row_with_the_median():
    table = table_of([ROW | {"seconds": seconds} for seconds in (1e-5, 9e-5, 2e-5)], "here")
    assert table.rows["seconds"].tolist() == [2e-5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": "gemm"}, "row 2: operator 'gemm' is unknown; operators are linear, "),
        ({"unit": "ms"}, "row 2: unit 'ms' must be \"s\"; convert the times to seconds"),
        ({"seconds": 0.0}, "row 2: seconds .* must be a time above 0"),
        ({"seconds": "fast"}, "row 2: seconds 'fast' is no number"),
        ({"seconds": np.inf}, "row 2: seconds .*inf.* must be a time above 0"),
        ({"rows": None}, "row 2: rows .*nan.* must be a whole number: linear needs it"),
        ({"rows": 1.5}, "row 2: rows .*1.5.* must be a whole number: linear needs it"),
        ({"chunk": 3}, "row 2: chunk .*3.* must be empty: linear has no chunk"),
        ({"gpu": "B"}, "row 2: gpu 'B' differs from the other rows' 'A'; a table is of one device"),
    ],
)
def test_a_broken_row_is_refused_by_its_number(change, message):
    with pytest.raises(TableError, match=f"here: {message}"):
        table_of([ROW, ROW | change, ROW], "here")


def test_columns_that_are_missing_or_unknown():
    with pytest.raises(TableError, match="here: no column unit; it has operator, "):
        table_of([{key: value for key, value in ROW.items() if key != "unit"}], "here")
    with pytest.raises(TableError, match="here: unknown column speed; columns are operator, "):
        table_of([ROW | {"speed": 1}], "here")


def test_files_that_are_none(tmp_path):
    with pytest.raises(TableError, match="no such file; `spindle calibrate` makes tables"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("operator")
    with pytest.raises(TableError, match=r"text\.parquet: cannot be read as \.parquet"):
        read_table(tmp_path / "text.parquet")
