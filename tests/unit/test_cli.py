"""The command as a user meets it: exit codes, words on stderr, folders. What it calls is faked."""

import json
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from sim import cli
from sim.scenario.errors import Place, ScenarioError

SCENARIO = """\
name: Two racks, one question
question: Which?
seeds: 2
cluster:
  fabric: {kind: leaf_spine, leaves: 2, spines: 1, hosts_per_leaf: 1,
           host_link: {rate: 400 Gbit/s, latency: 500 ns}, spine_link: {rate: 400 Gbit/s, latency: 500 ns}}
  host: {}
workloads:
  - {kind: traffic, name: t, pattern: all_to_all, size_per_flow: 1 MB}
small:
  seeds: 1
"""


@dataclass
class Outcome:
    out_dir: Path
    partial: bool = False
    headline: str = "spray is 2.1 times faster"
    overloads: tuple = ()


class Fakes:
    """Stand-ins for what the command calls; `calls` says how they were called."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.calls = []
        self.raises = None
        self.partial = False
        self.module("sim.run", run_scenario=self.run_scenario)

    def module(self, name, **contents):
        module = types.ModuleType(name)
        vars(module).update(contents)
        parent = name.rpartition(".")[0]
        if parent not in sys.modules:
            self.monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        self.monkeypatch.setitem(sys.modules, name, module)

    def run_scenario(self, loaded, out_dir, workers, progress, **options):
        self.calls.append((loaded, Path(out_dir), workers, options))
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        metrics = {
            "traffic.t.completion_time_s": {"mean": 1.5, "ci95": [1, 2]},
            "links.max_load_over_fair": None,
        }
        summary = {"variants": {label: {"metrics": metrics} for label, _ in loaded.variants}}
        (Path(out_dir) / "summary.json").write_text(json.dumps(summary))
        if self.raises is not None:
            raise self.raises
        return Outcome(Path(out_dir), self.partial)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPINDLE_TRACEBACK", raising=False)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    return Fakes(monkeypatch)


@pytest.fixture
def spindle(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return caught.value.code or 0, shown.out, shown.err

    return run


def test_run_says_the_answer_and_where_it_is(fakes, spindle):
    code, out, err = spindle("run", "s.yaml")
    assert code == 0 and err == ""
    assert out == "spray is 2.1 times faster\nruns/two-racks-one-question\n"
    loaded, folder, workers, options = fakes.calls[0]
    assert loaded.seeds == [1, 2] and folder == Path("runs/two-racks-one-question")
    assert workers >= 1 and options == {}


def test_options_reach_the_run(fakes, spindle):
    code, out, _ = spindle(
        "run",
        "s.yaml",
        "--set",
        "workloads.t.size_per_flow=2 MB",
        "--seed",
        7,
        "--seeds",
        3,
        "--small",
        "--out",
        "o",
        "--workers",
        5,
        "--trace",
        "--max-packet-hops",
        "1e6",
        "--quiet",
    )
    loaded, folder, workers, options = fakes.calls[0]
    assert code == 0 and out == ""
    assert loaded.seeds == [7, 8, 9] and loaded.is_small
    assert loaded.variants[0][1].workloads[0].size_per_flow_bytes == 2_000_000
    assert (folder, workers) == (Path("o"), 5)
    assert options == {"trace": True, "max_packet_hops": 1e6}


def test_no_folder_is_overwritten_silently(fakes, spindle):
    for number, name in enumerate(["", "-2", "-3"]):
        assert spindle("run", "s.yaml")[0] == 0
        assert fakes.calls[number][1] == Path(f"runs/two-racks-one-question{name}")
    code, _, err = spindle("run", "s.yaml", "--out", "runs/two-racks-one-question")
    assert code == 2 and "is not empty; choose another folder, or replace the run in it with --force" in err
    assert spindle("run", "s.yaml", "--out", "runs/two-racks-one-question", "--force")[0] == 0
    assert fakes.calls[-1][3] == {"overwrite": True}
    Path("empty").mkdir()
    assert spindle("run", "s.yaml", "--out", "empty")[0] == 0
    code, _, err = spindle("run", "s.yaml", "--out", "s.yaml")
    assert code == 2 and "s.yaml is a file; give a folder" in err
    code, _, err = spindle("run", "s.yaml", "--out", "s.yaml/deep/er")
    assert code == 2 and "s.yaml is a file; give a folder" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "absent.yaml"], "absent.yaml: there is no such file"),
        (["run", "."], "is a directory"),
        (["run", "s.yaml", "--set", "paths.policy=sprey"], "--set paths.policy: unknown policy 'sprey'"),
        (["run", "s.yaml", "--set", "x"], "--set x: is not an assignment"),
        (["run", "s.yaml", "--seed", "-1"], "'--seed'"),
        (["run", "s.yaml", "--seed", "one"], "'--seed'"),
        (["run"], "issing"),
        (["run", "s.yaml", "--frobnicate"], "--frobnicate"),
        (["runn"], "runn"),
        (["list", "animals"], "animals"),
        (["report", "."], "is no run folder: it holds no summary.json"),
        (["calibrate"], "give --out FILE to measure this machine's GPU, alone or --for SCENARIO; --import PROJECT"),
        (
            ["sweep", "s.yaml", "--grid", "paths.policy"],
            "is no grid; write for example --grid paths.policy=ecmp,spray",
        ),
        (
            ["sweep", "s.yaml", "--grid", "paths.policy=ecmp,sprey"],
            "unknown policy 'sprey'; did you mean 'spray'?",
        ),
        (["sweep", "s.yaml", "--grid", "seed=1,1"], "gives a value twice"),
    ],
)
def test_bad_input_is_refused_with_exit_code_2(fakes, spindle, arguments, words):
    code, _, err = spindle(*arguments)
    assert code == 2 and words in err
    assert not fakes.calls and not Path("runs").exists()


def test_a_refusal_by_the_run_itself(fakes, spindle):
    fakes.raises = ScenarioError.at(Place("s.yaml", 9), "does not fit", "workloads.t")
    code, _, err = spindle("run", "s.yaml")
    assert code == 2 and err == "s.yaml:9: workloads.t: does not fit\n"


def test_interruptions(fakes, spindle):
    """Interrupted inside (the run wrote what there was) and outside of the run's own care: both 130."""
    fakes.partial = True
    code, out, err = spindle("run", "s.yaml")
    assert code == 130 and "spray is" in out
    folder = "runs/two-racks-one-question"
    assert err == f"interrupted: the results are partial; for their report: spindle report {folder}\n"
    fakes.raises = KeyboardInterrupt()
    code, _, err = spindle("run", "s.yaml")
    assert code == 130
    assert err == f"interrupted; what was finished is in {folder}-2; for their report: spindle report {folder}-2\n"


def test_an_error_of_ours_is_named_and_its_traceback_kept(fakes, spindle, monkeypatch):
    fakes.raises = ZeroDivisionError("no capacity on link 3")
    code, _, err = spindle("run", "s.yaml", "--out", "o")
    assert code == 1
    assert err == "ZeroDivisionError: no capacity on link 3\nwhere it happened: o/error.txt\n"
    assert "run_scenario" in Path("o/error.txt").read_text()

    fakes.module("sim.validate.main", run_checks=lambda: 1 / 0)
    code, _, err = spindle("validate")
    assert code == 1 and "set SPINDLE_TRACEBACK=1" in err


def test_spindle_traceback_shows_it(fakes, monkeypatch, capsys):
    monkeypatch.setenv("SPINDLE_TRACEBACK", "1")
    fakes.raises = ZeroDivisionError("no capacity")
    with pytest.raises(SystemExit):
        cli.main(["run", "s.yaml"])
    assert "Traceback" in capsys.readouterr().err


def test_sweep(fakes, spindle):
    code, out, err = spindle(
        "sweep",
        "s.yaml",
        "--grid",
        "workloads.t.size_per_flow=1 MB,2 MB",
        "--grid",
        "paths.policy=ecmp,spray,ethereal",
    )
    assert code == 0 and out == "6 of 6 points in runs/two-racks-one-question-sweep/sweep.csv\n", err
    sizes = [loaded.variants[0][1].workloads[0].size_per_flow_bytes for loaded, *_ in fakes.calls]
    assert sizes == [1_000_000] * 3 + [2_000_000] * 3
    assert fakes.calls[4][1].name == "5-size-per-flow-2-mb-policy-spray"
    rows = Path("runs/two-racks-one-question-sweep/sweep.csv").read_text().splitlines()
    assert rows[0] == (
        "folder,workloads.t.size_per_flow,paths.policy,variant,traffic.t.completion_time_s,links.max_load_over_fair"
    )
    assert rows[5] == "5-size-per-flow-2-mb-policy-spray,2 MB,spray,run,1.5,"


def test_sweep_values_with_commas(fakes, spindle):
    code, _, err = spindle(
        "sweep", "s.yaml", "--grid", "paths={policy: spray, fairness: message},{policy: ecmp}"
    )
    assert code == 0, err
    assert [loaded.variants[0][1].paths.fairness for loaded, *_ in fakes.calls] == ["message", "queue_pair"]


def test_an_interrupted_sweep_keeps_its_table(fakes, spindle):
    fakes.partial = True
    code, out, _ = spindle("sweep", "s.yaml", "--grid", "paths.policy=ecmp,spray")
    assert code == 130 and "0 of 2 points" in out and len(fakes.calls) == 1
    assert len(Path("runs/two-racks-one-question-sweep/sweep.csv").read_text().splitlines()) == 2


def test_report(fakes, spindle):
    written = []

    def write_report(folders, target):
        written.append((folders, target))
        return target

    fakes.module("sim.results.report", write_report=write_report)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        (Path(folder) / "summary.json").write_text("{}")
    assert spindle("report", "a") == (0, "a/report.html\n", "")
    assert spindle("report", "a", "b")[1] == "comparison.html\n"
    Path("comparison.html").touch()
    assert spindle("report", "a", "b")[1] == "comparison-2.html\n"
    code, _, err = spindle("report", "a", "--out", "comparison.html")
    assert code == 2 and "exists; choose another file" in err
    assert spindle("report", "a", "--out", "comparison.html", "--force")[0] == 0
    assert written[1] == ([Path("a"), Path("b")], Path("comparison.html"))


@dataclass(frozen=True)
class Check:
    name: str
    expected: float
    passed: bool


@dataclass(frozen=True)
class Comparison:
    messages: str
    ratio: float
    passed: bool
    because: str | None


def test_validate_fails_with_a_failed_check(fakes, spindle):
    checks = [Check("ring", 1.0, True)]
    compared = [Comparison("shift", 1.2, False, "queues grow")]
    fakes.module(
        "sim.validate.main", run_checks=lambda: checks, run_comparisons=lambda: compared,
        remarks=lambda found: [c.because for c in found],
    )  # fmt: skip
    code, out, _ = spindle("validate")
    assert code == 0 and "ring" in out and "yes" in out
    assert "Fluid against packet" in out and "queues grow" in out
    checks.append(Check("incast", 2.0, False))
    code, out, _ = spindle("validate", "--json")
    assert code == 1 and json.loads(out)[1] == {"name": "incast", "expected": 2.0, "passed": False}


def test_bench(fakes, spindle):
    fakes.module("sim.bench.main", run_benchmarks=lambda *_: [{"name": "all-to-all", "seconds": 8.25}])
    assert "8.25" in spindle("bench")[1]
    assert json.loads(spindle("bench", "--json")[1]) == [{"name": "all-to-all", "seconds": 8.25}]


def test_schema_and_list(spindle):
    code, out, _ = spindle("schema")
    assert code == 0 and json.loads(out)["title"] == "Spindle scenario"
    code, out, _ = spindle("list")
    assert code == 0
    for words in (
        "ethereal",
        "arXiv 2407.00550",
        "chunked_prefill",
        "deepseek-v3",
        "h200",
        "data sheet",
        "halving_doubling",
    ):
        assert words in out
    assert "ethereal" not in spindle("list", "models")[1]


def test_version_and_help(spindle):
    assert spindle("--version") == (0, "0.1.0\n", "")
    code, out, _ = spindle("--help")
    assert code == 0
    for command in ("run", "sweep", "study", "report", "validate", "bench", "calibrate", "schema", "list"):
        assert command in out


def test_a_foreign_package_of_our_name_is_named(spindle, monkeypatch, tmp_path):
    foreign = types.ModuleType("kernels")
    foreign.__file__ = str(tmp_path / "site-packages" / "kernels" / "__init__.py")
    monkeypatch.setitem(sys.modules, "kernels", foreign)
    code, _, err = spindle("schema")
    assert code == 2 and "the package 'kernels' is" in err and "pip uninstall kernels" in err


def test_the_installed_command(tmp_path):
    """Once in a process of its own: the entry point, the exit code, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", "run", "absent.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "absent.yaml: there is no such file\n")


def test_a_closed_pipe_is_no_error(tmp_path):
    """`spindle list | head -1`: ended by SIGPIPE like any other command, without a word."""
    command = [sys.executable, "-m", "sim.cli", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGPIPE
