"""`spindle calibrate --check FILE --out REPORT` hands the report's file on."""

import subprocess
from types import SimpleNamespace

from typer.testing import CliRunner

from sim.cli import app


def test_a_check_writes_its_report_where_out_says(monkeypatch):
    given = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: given.append(command) or SimpleNamespace(returncode=0))
    for more in ([], ["--out", "r.html"]):
        assert CliRunner().invoke(app, ["calibrate", "--check", "t.parquet", *more]).exit_code == 0
    assert [command[3:] for command in given] == [["check", "t.parquet"], ["check", "t.parquet", "--report", "r.html"]]
