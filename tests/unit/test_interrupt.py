"""Stopped from outside, a run writes what there is, says so, and leaves no process behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

SCENARIO = """
name: long
cluster:
  fabric: {kind: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 2, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 1, accelerator: h100}
workloads:
  - {kind: training, name: job, operation: all_reduce, size: 1 MB, compute: 20 us, steps: 1000000}
compare:
  - {name: one path, paths: {policy: ecmp}}
  - {name: spray, paths: {policy: spray}}
"""


TRANSFER = "  - {kind: traffic, name: t, pattern: poisson, load: 0.9, duration: 4 s, sizes: {law: fixed, size: 1 MB}}"
"""One message graph: SimPy has nothing to do from its start to its end. Four NICs would be done
with it before the signal on a fast machine; among the 32 of `MANY_HOSTS` its 1.4 million flows take minutes."""

MANY_HOSTS = "leaves: 4, spines: 4, hosts_per_leaf: 8"

DRAWS_A_BAR = {"FORCE_COLOR": "1", "COLUMNS": "200"}
"""As on a terminal wide enough for a whole line."""


def runs_under_way(err):
    """The runs that the bar has shown at a simulated time beyond 0: those are in the midst of their events."""
    return set(re.findall(r"(one path|spray), seed 1 · (?!0 s)[^·]* simulated", err.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "how", "workers"),
    [("job", signal.SIGINT, 2), ("job", signal.SIGTERM, 2), ("flows", signal.SIGINT, 1), ("flows", signal.SIGINT, 2)],
)
def test_a_stopped_run_is_partial_and_ends_its_workers(tmp_path, workload, how, workers):
    text = SCENARIO
    if workload == "flows":
        text = re.sub(r"  - {kind: training.*", TRANSFER, text)
        text = text.replace("leaves: 2, spines: 2, hosts_per_leaf: 2", MANY_HOSTS)
    (tmp_path / "long.yaml").write_text(text)
    out, err = tmp_path / "out", tmp_path / "err.txt"
    command = [sys.executable, "-m", "sim.cli", "run", str(tmp_path / "long.yaml"), "--out", str(out)]
    command += ["--workers", str(workers)]
    with err.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, **DRAWS_A_BAR})
    while process.poll() is None and len(runs_under_way(err)) < workers:
        time.sleep(0.1)
    process.send_signal(how)
    process.wait(timeout=100)
    assert process.returncode == 130, err.read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["partial"] is True
    results = [json.loads(file.read_text()) for file in out.rglob("result.json")]
    assert len(results) == workers
    for result in results:
        assert result["notes"]["partial"] is True
        assert result["metrics"]["links.payload_bytes"] > 0
    left = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def num_children(pid):
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return len(shown.stdout.split())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_group_stopped_while_its_workers_start_says_so_without_a_traceback(tmp_path, how):
    """Ctrl-C in a terminal reaches every process at once, here two workers that are still importing."""
    (tmp_path / "long.yaml").write_text(SCENARIO)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sim.cli", "run", str(tmp_path / "long.yaml"), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    resource_tracker_and_workers = 3
    while process.poll() is None and num_children(process.pid) < resource_tracker_and_workers:
        time.sleep(0.05)
    os.killpg(process.pid, how)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "interrupted" in said
    assert not (out / "error.txt").exists()
    assert json.loads((out / "summary.json").read_text())["partial"] is True
