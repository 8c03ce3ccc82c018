"""What a million requests take: a whole run in a process of its own, from its scenario to its report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from sim.bench.fabric import peak_bytes

NAME = "serving, a million requests and their report: memory"
MOST_GIB = 3.0

SCENARIO = """
name: a million requests
seed: 1
cluster:
  fabric:
    kind: leaf_spine
    leaves: 1
    hosts_per_leaf: 1
    spines: 1
    host_link: {rate: 400 Gbit/s, latency: 500 ns}
    spine_link: {rate: 400 Gbit/s, latency: 500 ns}
  host: {accelerators: 1, accelerator: h200}
workloads:
  - kind: serving
    name: chat
    model: llama-3.1-8b
    arrivals: {kind: poisson, rate: 20 /s}
    lengths:
      input: {law: lognormal, mean: 512, sigma: 0.8, max: 8000}
      output: {law: lognormal, mean: 120, sigma: 0.8, max: 1500}
    num_requests: 1000000
"""


def run() -> list[dict]:
    """One row, of the peak of resident memory; and how long the run took."""
    command = [sys.executable, "-m", "sim.bench.million"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    gib = found["peak_bytes"] / 2**30
    return [{"name": NAME, "value": gib, "unit": "GiB", "target": MOST_GIB, "ok": gib <= MOST_GIB,
             "wall_s": found["wall_s"]}]  # fmt: skip


def main() -> None:
    from sim.run import run_scenario
    from sim.scenario.load import load_scenario

    with TemporaryDirectory() as folder:
        path = Path(folder, "million.yaml")
        path.write_text(SCENARIO, encoding="utf-8")
        started_s = time.perf_counter()
        run_scenario(load_scenario(path, [], False, None, None), Path(folder, "run"))
        json.dump({"peak_bytes": peak_bytes(), "wall_s": time.perf_counter() - started_s}, sys.stdout)


if __name__ == "__main__":
    main()
