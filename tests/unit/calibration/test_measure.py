"""Measuring, with a timer that makes times up: the same table whatever interrupts it, and nothing mixed or lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.budget import estimated_s
from calibration.grids import grid, model_needs, points_of, tiny
from calibration.journal import Journal, JournalError, journal_of
from calibration.measure import DONE, FAILED, INTERRUPTED, REFUSED, UNFINISHED, main
from calibration.points import CEILINGS, COPY, HOST_COPY, PAGE_CALLS, PRODUCT, Point, point, rates
from calibration.progress import Progress
from models.architecture import ARCHITECTURES
from models.cost.measured import Measured
from models.cost.needs import Limits, Need, needs_from_json, needs_to_json
from models.cost.priced import measured_step
from models.cost.provenance import Source
from models.cost.step import BY_ROOFLINE, PRICED_BY
from models.cost.table import COLUMNS, FAMILIES, read_table, table_of
from models.hardware import ACCELERATORS

GPU = "Test H100"
NEEDS = (Need("linear", "qkv_proj", "bf16", (64, 96), 8), Need("elementwise", "layernorm", "bf16", (256,), 4))
SPREAD = np.linspace(0.9, 1.4, 21)


class TooSmall(RuntimeError):
    """The fake device cannot do it."""


class FakeTimer:
    """3 us and a roofline; stops at the call `stop_at`, and cannot do fp8."""

    def __init__(self, stop_at: int | None = None, gpu: str = GPU) -> None:
        self.stop_at, self.gpu = stop_at, gpu
        self.timed: list[Point] = []
        self.is_closed = False

    def identity(self) -> dict[str, str]:
        return {"gpu": self.gpu, "driver": "1", "torch": "2", "triton": "3"}

    def seconds(self, point: Point) -> np.ndarray:
        if len(self.timed) == self.stop_at:
            raise KeyboardInterrupt
        self.timed.append(point)
        if point.precision == "fp8":
            raise TooSmall("no fp8 here")
        return SPREAD * (3e-6 + point.num_bytes / 3e12 + point.num_flops / 6e14)

    def close(self) -> None:
        self.is_closed = True


def run(out: Path, *options: str, timer: FakeTimer | None = None, day: int = 0) -> int:
    """`calibration.measure` on the fake device, `day` days after the first one."""
    needs = out.with_name("needs.json")
    needs.write_text(needs_to_json(NEEDS))
    arguments = ["--out", str(out), "--commit", "abc", "--needs", str(needs), *options]
    timer = timer or FakeTimer()
    code = main(arguments, timer, (TooSmall,), clock=lambda: 1.8e9 + 86400 * day)
    assert timer.is_closed
    return code


@pytest.fixture(params=["csv", "parquet"])
def whole(tmp_path, request) -> tuple[Path, bytes, int]:
    """(the table of an uninterrupted run, its bytes, its number of points)."""
    out, timer = tmp_path / "whole" / f"t.{request.param}", FakeTimer()
    out.parent.mkdir()
    assert run(out, timer=timer) == DONE
    assert not journal_of(out).exists()
    return out, out.read_bytes(), len(timer.timed)


def test_interrupted_before_any_point_and_gone_on_with_it_is_the_same_table(tmp_path, whole):
    first, expected, num_points = whole
    for k in range(num_points):
        out = tmp_path / f"{k}{first.suffix}"
        assert run(out, timer=FakeTimer(stop_at=k)) == INTERRUPTED
        assert out.exists() == (k > 0), "what was measured can be used"
        second = FakeTimer()
        assert run(out, timer=second, day=2) == DONE
        assert len(second.timed) == num_points - k, "nothing is measured twice"
        assert out.read_bytes() == expected


@pytest.mark.slow
def test_killed_at_any_byte_and_gone_on_with_it_is_the_same_table(tmp_path, whole):
    """The journal of an interrupted run, cut off anywhere: in a line, at its end, in the first one."""
    first, expected, num_points = whole
    out = tmp_path / f"cut{first.suffix}"
    assert run(out, timer=FakeTimer(stop_at=num_points - 1)) == INTERRUPTED
    text = journal_of(out).read_bytes()
    begin = text.index(b"\n")
    for length in [0, 1, begin // 2, *range(begin - 1, begin + 3), *range(begin, len(text), 37), len(text)]:
        out.unlink(missing_ok=True)
        journal_of(out).write_bytes(text[:length])
        assert run(out) == DONE
        assert out.read_bytes() == expected, length


def test_killed_between_table_and_the_end_of_its_journal(tmp_path, whole, monkeypatch):
    first, expected, _ = whole
    out = tmp_path / f"t{first.suffix}"
    monkeypatch.setattr(Journal, "remove", lambda self: None)
    assert run(out) == DONE
    monkeypatch.undo()
    again = FakeTimer()
    assert run(out, timer=again) == DONE
    assert not again.timed and out.read_bytes() == expected and not journal_of(out).exists()


def test_slices(tmp_path, whole, capsys):
    """A slice of no time measures nothing; the run's own end is 0, a slice's 3."""
    first, expected, num_points = whole
    out = tmp_path / f"t{first.suffix}"
    assert run(out, "--seconds", "0") == UNFINISHED
    assert f"{num_points} points are left" in capsys.readouterr().err
    assert run(out, "--seconds", "1000") == DONE
    assert out.read_bytes() == expected


def test_what_the_device_cannot_do_is_counted_and_said(tmp_path, capsys):
    assert run(tmp_path / "t.csv") == DONE
    assert "1 points left out: no fp8 here" in capsys.readouterr().err
    assert "fp8" not in set(read_table(tmp_path / "t.csv").rows["precision"])


def test_a_device_that_can_do_nothing(tmp_path, capsys):
    class Useless(FakeTimer):
        def seconds(self, point: Point) -> np.ndarray:
            raise TooSmall("no memory")

    assert run(tmp_path / "t.csv", timer=Useless()) == FAILED
    assert "nothing was measured, so no table is written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"needs.json"}


def test_a_point_that_fails_is_not_tried_for_ever(tmp_path, capsys):
    """An illegal access ends the device's context: this run ends, the next one goes on behind the point."""
    class Failing(FakeTimer):
        def seconds(self, point: Point) -> np.ndarray:
            if point.columns.get("rows") == 4 and point.operator == "linear":
                raise RuntimeError("CUDA error: an illegal memory access\nmore")
            return super().seconds(point)

    with pytest.raises(RuntimeError, match="illegal"):
        run(tmp_path / "t.csv", timer=Failing())
    assert run(tmp_path / "t.csv", timer=Failing()) == DONE
    said = capsys.readouterr().err
    assert "1 points left out: it failed with RuntimeError: CUDA error: an illegal memory access\n" in said
    assert 4 not in set(read_table(tmp_path / "t.csv").of("linear")["rows"])


def test_another_device_s_journal_is_refused(tmp_path, capsys):
    out = tmp_path / "t.csv"
    run(out, timer=FakeTimer(stop_at=3))
    before = journal_of(out).read_bytes()
    assert run(out, timer=FakeTimer(gpu="Other")) == REFUSED
    assert f"begun with gpu {GPU!r}, here it is 'Other'; finish it there, or remove" in capsys.readouterr().err
    assert run(out, "--quick") == REFUSED
    assert "begun with asked 'needs" in capsys.readouterr().err
    assert journal_of(out).read_bytes() == before


def test_a_broken_journal_and_one_in_use_are_refused(tmp_path, capsys):
    out = tmp_path / "t.csv"
    run(out, timer=FakeTimer(stop_at=3))
    with Journal.open(journal_of(out), {**FakeTimer().identity(), "commit": "abc"}, _asked(out), (), "") as journal:
        assert len(journal.found) == 3
        assert run(out) == REFUSED
        assert "another process is measuring into it" in capsys.readouterr().err
    lines = journal_of(out).read_bytes().split(b"\n")
    journal_of(out).write_bytes(b"\n".join([lines[0], b'{"point": 10', *lines[2:]]))
    assert run(out) == REFUSED
    assert "no journal of a measurement" in capsys.readouterr().err
    with pytest.raises(JournalError, match="remove it to begin again"):
        Journal.open(journal_of(out), {}, "", (), "")


def _asked(out: Path) -> str:
    import json

    return json.loads(journal_of(out).read_text().split("\n")[0])["asked"]


def test_a_table_that_is_there_is_not_replaced(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("mine")
    assert run(tmp_path / "t.csv") == REFUSED
    assert "t.csv exists; choose another file" in capsys.readouterr().err
    assert (tmp_path / "t.csv").read_text() == "mine"


def test_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("calibration.measure._has_gpu", lambda: False)
    assert main(["--out", str(tmp_path / "t.csv")]) == REFUSED
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- what a row says --------------------------------------------------------------------------------------------------


def test_rows_say_what_was_measured_on_what(whole):
    out, _, num_points = whole
    table = read_table(out)
    assert table.gpu == GPU and len(table.rows) == num_points - 1
    row = table.of("linear", inputs=64, rows=8).iloc[0]
    assert [row[c] for c in ("unit", "source", "driver", "torch", "triton", "commit", "date")] == [
        "s", "spindle calibrate", "1", "2", "3", "abc", "2027-01-15T08:00:00Z"
    ]  # fmt: skip
    num_bytes, num_flops = 2 * (64 * 96 + 8 * (64 + 96)), 2 * 8 * 64 * 96
    alone_s = 3e-6 + num_bytes / 3e12 + num_flops / 6e14
    assert row["seconds"] == pytest.approx(1.15 * alone_s)  # the middle of the spread
    assert (row["p10_s"], row["p90_s"]) == (pytest.approx(0.95 * alone_s), pytest.approx(1.35 * alone_s))
    assert row["bytes_per_s"] == pytest.approx(num_bytes / row["seconds"])
    assert row["flop_per_s"] == pytest.approx(num_flops / row["seconds"])


def test_of_ceiling_is_the_larger_share():
    """A copy at 3 TB/s and a product at 600 Tflop/s. 3 MB and 0.3 Gflop in 2 us: 1.5 TB/s, half; 150 Tflop/s, less."""
    known = {COPY: COPY.num_bytes / 3e12, PRODUCT["bf16"]: PRODUCT["bf16"].num_flops / 6e14}
    of = point("linear", inputs=1000, outputs=1000, rows=250)
    assert of.num_bytes == 3e6 and of.num_flops == 5e8
    assert rates(of, 2e-6, known) == {"bytes_per_s": pytest.approx(1.5e12), "flop_per_s": pytest.approx(2.5e14),
                                      "of_ceiling": pytest.approx(0.5)}  # fmt: skip
    assert rates(COPY, known[COPY], known)["of_ceiling"] == pytest.approx(1)
    fp8 = point("linear", "", "fp8", inputs=64, outputs=64, rows=1 << 20)
    assert rates(fp8, 1e-3, {PRODUCT["bf16"]: 1.0})["of_ceiling"] is None, "nothing of its kind was measured"
    assert rates(HOST_COPY, 1.0, known)["of_ceiling"] is None
    assert rates(HOST_COPY, 2.0, {HOST_COPY: 1.0})["of_ceiling"] == pytest.approx(0.5)
    assert set(rates(point("page_call", "map", pages=8), 1e-5, known).values()) == {None}


def test_tables_of_before_are_still_read():
    old = {"operator": "linear", "seconds": 1e-6, "unit": "s", "gpu": GPU, "source": "x", "inputs": 1, "outputs": 1,
           "rows": 1}  # fmt: skip
    row = table_of([old], "t").rows.iloc[0]
    assert np.isnan(row["of_ceiling"])


@pytest.mark.parametrize("of", tiny(), ids=str)
def test_work_is_counted(of):
    assert (of.num_bytes > 0) == (of.operator != "page_call")
    assert (of.num_flops > 0) == (of.operator in ("linear", "attention", "experts"))


def test_work_of_attention_and_experts():
    """4 heads of 16 over 2: a chunk of 8 after 5 sees 8 · 5 + 8 · 9 / 2 = 76 pairs, reads 13 keys and values."""
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    chunk = point("attention", **heads, chunk=8, prefix=5, decodes=0, context=0)
    assert chunk.num_flops == 4 * 4 * 16 * 76
    assert chunk.num_bytes == 16 * (2 * 8 * 4 * 2 + 2 * 13 * 2 * 2)
    decodes = point("attention", "", "fp8", **heads, chunk=0, prefix=0, decodes=3, context=9)
    assert decodes.num_flops == 4 * 4 * 16 * 27
    assert decodes.num_bytes == 16 * (2 * 3 * 4 * 2 + 2 * 27 * 2)
    experts = point("experts", "pool", hidden=64, inner=48, top_k=3, num_experts=8, rows=15, experts=7)
    assert experts.num_flops == 15 * 3 * 2 * 64 * 48
    assert experts.num_bytes == 7 * 3 * 64 * 48 * 2 + 15 * (2 * 64 + 6 * 48) * 2
    with pytest.raises(KeyError, match="linear has inputs, outputs, rows, got rows"):
        point("linear", rows=1)


# --- grids ------------------------------------------------------------------------------------------------------------


def test_the_quick_grid_is_the_beginning_of_the_whole_one():
    quick, whole = grid(True), grid(False)
    assert whole[: len(quick)] == quick and len(set(whole)) == len(whole)
    assert quick[: len(CEILINGS)] == list(CEILINGS)
    assert {p.operator for p in quick} == {"linear", "elementwise", "memory_pass", "attention", "experts", "reroute",
                                           "align", "host_copy", "page_call"}  # fmt: skip
    for points in (quick, whole):
        assert {p.name for p in points if p.operator == "experts"} == {"pool", "padded", "grouped"}
        assert {p.name for p in points if p.operator == "page_call"} == set(PAGE_CALLS)
        assert {p.columns["top_k"] for p in points if p.operator == "reroute"} == {6, 8}


def test_grids_fit_their_time():
    """A quarter of an hour, and three minutes, on an H100 with nothing compiled: an estimate, no measurement."""
    assert estimated_s(grid(False)) < 900
    assert estimated_s(grid(True)) < 180


def test_no_point_asks_for_more_than_a_device_has():
    for p in grid(False):
        assert p.num_bytes < 40e9, p
        of = p.columns
        if p.operator == "experts":
            assert min(of["top_k"], of["num_experts"]) <= of["experts"] <= min(of["rows"], of["num_experts"]), p


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The quick grid on the fake device."""
    timer = FakeTimer()
    rows = [
        {"operator": p.operator, "name": p.name, "precision": p.precision, **p.columns, "unit": "s", "gpu": GPU,
         "source": "test", "commit": "abc", "seconds": float(timer.seconds(p)[0])}
        for p in grid(True) if p.precision != "fp8"
    ]  # fmt: skip
    return Measured(table_of(rows, "t"))


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_the_quick_grid_prices_a_whole_step(measured, model):
    """Every operator from rows, none beyond them: Llama's and Qwen's.

    But for the experts of few tokens: cells of the grid have a corner there that cannot be, more experts than rows.
    """
    priced = measured_step(measured, ARCHITECTURES[model], ACCELERATORS["h100"], max_tokens=8192, max_seqs=256,
                           max_context=16384)  # fmt: skip
    for o, operator in enumerate(priced.operators):
        if operator.name in priced.includes:
            continue
        assert priced.table.tags[o, PRICED_BY] != BY_ROOFLINE, operator.name
        sources = priced.sources[o]
        if sources is not None:
            most = 256 if operator.name in ("lm_head", "sampler") else 8192
            least = 16 if operator.kind == "experts" else 1
            assert set(sources[least : most + 1].tolist()) <= {Source.MEASURED, Source.INTERPOLATED}, operator.name
    assert priced.table.attention.limits.tolist() == [16384, 32768, 49152]
    assert (priced.table.attention.decode_limit[1:65] >= 16384).all()


def test_rows_go_on_past_a_list_and_stop_at_the_first_that_is_enough():
    rows = [p.columns["rows"] for p in points_of(Need("linear", "", "bf16", (1, 1), 40_000))]
    assert rows[-3:] == [16384, 32768, 65536]
    assert [p.columns["rows"] for p in points_of(Need("linear", "", "bf16", (1, 1), 100))][-2:] == [64, 128]


def test_needs_are_what_was_written():
    needs = tuple(model_needs("qwen3-30b-a3b", 2, "bf16", Limits(100, 10, 1000)))
    assert needs_from_json(needs_to_json(needs)) == needs
    assert {need.kind for need in needs} == {"linear", "elementwise", "attention", "experts"}
    with pytest.raises(ValueError, match="no list of needs"):
        needs_from_json('[{"kind": "linear"}]')


def test_ranks_that_hold_few_experts_have_points():
    """A rank that holds 4 of a top 8's experts gets up to 4 rows a token."""
    points = list(points_of(Need("experts", "", "bf16", (64, 48, 8, 4), 16)))
    assert {p.columns["rows"] for p in points} == {4, 8, 16, 32, 64}
    assert {p.columns["experts"] for p in points} == {4}


# --- a table that has some of it --------------------------------------------------------------------------------------


def known(path: Path, gpu: str = GPU) -> Path:
    """A table with the linear rows up to 4."""
    rows = [{"operator": "linear", "precision": "bf16", "unit": "s", "gpu": gpu, "source": "earlier", "seconds": 1.0,
             "inputs": 64, "outputs": 96, "rows": n} for n in (1, 2, 4, 16)]  # fmt: skip
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_only_what_a_table_lacks_is_measured_and_completes_it(tmp_path):
    timer, there = FakeTimer(), known(tmp_path / "known.csv")
    assert run(there, "--known", str(there), timer=timer) == DONE
    assert [p.columns["rows"] for p in timer.timed if p.operator == "linear" and p not in CEILINGS] == [8]
    rows = read_table(there).of("linear", inputs=64)
    assert dict(zip(rows["rows"], rows["source"], strict=True)) == {
        1: "earlier", 2: "earlier", 4: "earlier", 16: "earlier", 8: "spindle calibrate"
    }  # fmt: skip
    before, again = there.read_bytes(), FakeTimer()
    assert run(there, "--known", str(there), timer=again) == DONE
    assert not again.timed and there.read_bytes() == before


def test_a_table_that_is_completed_changes_once(tmp_path):
    there = known(tmp_path / "known.csv")
    before = there.read_bytes()
    assert run(there, "--known", str(there), timer=FakeTimer(stop_at=5)) == INTERRUPTED
    assert there.read_bytes() == before
    assert run(there, "--known", str(there)) == DONE
    assert len(read_table(there).of("linear", inputs=64)) == 5


def test_another_device_s_table_stays_as_it_is(tmp_path, capsys):
    there = known(tmp_path / "known.csv", "Other")
    assert run(there, "--known", str(there)) == REFUSED
    assert "has times of Other" in capsys.readouterr().err
    assert run(tmp_path / "new.csv", "--known", str(there)) == DONE
    assert "gets the new rows alone" in capsys.readouterr().err
    assert "earlier" not in set(read_table(tmp_path / "new.csv").rows["source"])


# --- on a box that has little -----------------------------------------------------------------------------------------


def test_a_rehearsal_runs_where_the_simulator_s_packages_are_missing():
    missing = ["pydantic", "simpy", "typer", "rich", "hypothesis", "numba", "matplotlib", "ruamel", "jinja2"]
    code = (f"import sys; sys.modules.update(dict.fromkeys({missing})); sys.argv = ['measure', '--rehearse']\n"
            "import runpy; runpy.run_module('calibration.measure', run_name='__main__')")  # fmt: skip
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False,
                          env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    for p in tiny():
        assert any(line.startswith(f"{p}: ") for line in said)
    left_out = {line.split()[0] for line in said if "left out" in line}
    assert left_out <= {"page_call"}


class Terminal:
    """Keeps what is written."""

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal, self.text = is_terminal, ""

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_is_a_bar_on_a_terminal_and_ten_lines_elsewhere():
    """200 points at 2 s each, 100 of them found before: the rate is that of this run."""
    for is_terminal in (True, False):
        to, now = Terminal(is_terminal), [0.0]
        progress = Progress(200, to, lambda now=now: now[0])
        for done in range(100, 200):
            progress.show(done, "linear")
            now[0] += 2
        progress.end()
        if is_terminal:
            assert "\r\033[K[############............] 100/200  linear" in to.text
            assert "150/200, 1:40 left  linear" in to.text and to.text.endswith("\n")
        else:
            assert to.text.splitlines()[:2] == ["100/200  linear", "120/200, 2:40 left  linear"]
            assert len(to.text.splitlines()) == 5


def test_every_family_s_columns_are_columns():
    for family in FAMILIES.values():
        assert {*family.shape, *family.axes} <= set(COLUMNS)
