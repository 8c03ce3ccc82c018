"""`python -m kernels.bench`: how fast the kernels are on this GPU, beside PyTorch's and beside what the GPU can do.

Prints a table and writes it, with the log of what was measured on what, to a folder: bench.csv, bench.parquet,
provenance.json. Rates count the bytes that must move and the flops of real rows; ceilings are measured in the same run:
a pass over memory (bytes read and written), and a large bf16 product. `--rehearse` runs every case on tiny shapes and
times nothing: the same path, without a GPU under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import triton

from kernels import timing
from kernels.cases import LITE, TINY, Case, Cases
from kernels.expert_pool import ExpertPool, write
from kernels.timing import Times


def loading(pool: ExpertPool) -> Iterator[dict]:
    """An adapter evicted and loaded again from the free list, with its weights from pinned memory; wall time."""
    name = "adapter 0"
    slots = pool.table.slots[name]
    weights = [
        torch.empty(held.count, *tensor.shape[1:], dtype=tensor.dtype, pin_memory=True)
        for held, tensor in zip(slots, pool.tensors, strict=True)
    ]
    num_bytes = sum(w.numel() * w.element_size() for w in weights)
    target = [torch.empty_like(w, device="cuda") for w in weights]

    def copy() -> None:
        for here, there in zip(weights, target, strict=True):
            there.copy_(here, non_blocking=True)

    def load() -> None:
        pool.load(name, slots)
        for i, here in enumerate(weights):
            write(pool, name, i, here)

    found: dict[str, list[float]] = {"pinned copy": [], "evict": [], "load": []}
    for _ in range(10):
        for what, work in (("pinned copy", copy), ("evict", lambda: pool.evict(name)), ("load", load)):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            work()
            torch.cuda.synchronize()
            found[what].append(time.perf_counter() - begin)
    first = Times(np.array(found["pinned copy"]))
    for what, seconds in found.items():
        moved = 0 if what == "evict" else num_bytes
        shape = f"{num_bytes / 2**20:.0f} MiB"
        yield row("load an adapter", shape, what, Times(np.array(seconds)), first, moved, 0.0)


def row(
    kernel: str, shape: str, way: str, times: Times, first: Times, num_bytes: float, num_flops: float
) -> dict:
    """One way of doing one thing. over_first: its time over that of the first way, replay by replay."""
    over, over_p10, over_p90 = times.over(first)
    return {
        "kernel": kernel, "shape": shape, "way": way, "median_us": times.median_s * 1e6, "p10_us": times.p10_s * 1e6,
        "p90_us": times.p90_s * 1e6, "over_first": over, "over_p10": over_p10, "over_p90": over_p90,
        "gb_per_s": num_bytes / times.median_s / 1e9 if num_bytes else np.nan,
        "tflop_per_s": num_flops / times.median_s / 1e12 if num_flops else np.nan,
    }  # fmt: skip


def rows_of(case: Case, rounds: int) -> Iterator[dict]:
    """A row for each way, and for the first one again, which shows the noise."""
    times = timing.measure(case.ways, rounds)
    first = times[next(iter(case.ways))]
    for way, found in times.items():
        yield row(case.kernel, case.shape, way, found, first, case.num_bytes, case.num_flops)


def ceilings() -> dict[str, float]:
    """bytes/s of a pass, read and written; flop/s of a bf16 product of 8,192."""
    size = 1 << 30
    source, target = (torch.ones(size // 4, dtype=torch.int32, device="cuda") for _ in range(2))
    both = timing.measure({"pass": [lambda: timing.pass_over(target, source)]})["pass"]
    n = 8192
    a, b = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
    product = timing.measure({"product": [lambda: a @ b]})["product"]
    return {"bytes_per_s": 2 * size / both.median_s, "flop_per_s": 2 * n**3 / product.median_s}


def provenance(found: dict[str, float], commit: str | None = None) -> dict:
    """What was measured on what. commit: of this code, where it is no checkout."""

    def output(*command: str) -> str | None:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = output("git", "status", "--porcelain")
    device = torch.cuda.get_device_properties(0)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m kernels.bench", *sys.argv[1:]]),
        "gpu": device.name, "gpu_bytes": device.total_memory, "l2_bytes": device.L2_cache_size,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
        "python": platform.python_version(), "commit": commit or output("git", "rev-parse", "HEAD"),
        "is_changed": None if changes is None else bool(changes), "ceilings": found,
    }  # fmt: skip


def run(bench: Cases, say: Callable[[str], None]) -> Iterator[dict]:
    """All rows, each as soon as it is measured; none in a rehearsal."""
    pool, twin = bench.pools()
    rounds = 10 if bench.is_quick else 30
    try:
        for cases in (bench.rerouting(), bench.aligning(), bench.layers(pool), bench.feed_forward(pool, twin)):
            for case in cases:
                say(f"{case.kernel}, {case.shape}")
                if bench.is_rehearsal:
                    timing.rehearse(case.ways)
                else:
                    yield from rows_of(case, rounds)
        if isinstance(pool, ExpertPool) and not bench.is_rehearsal:
            say("loading")
            yield from loading(pool)
    finally:
        if isinstance(pool, ExpertPool):
            pool.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three sizes of each, ten rounds")
    parser.add_argument("--rehearse", action="store_true", help="run every case on tiny shapes, time nothing")
    parser.add_argument("--out", type=Path, default=Path("kernels-bench"), help="folder for the tables")
    parser.add_argument("--commit", help="of this code, where it is no checkout of git")
    given = parser.parse_args(arguments)
    has_cuda = torch.cuda.is_available()
    if not (has_cuda or given.rehearse):
        sys.stderr.write("no CUDA device, so nothing can be measured; --rehearse runs the cases and times nothing\n")
        return 2
    bench = Cases(TINY if given.rehearse else LITE, "cuda" if has_cuda else "cpu", given.quick, given.rehearse)

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    if given.rehearse:
        for _ in run(bench, say):
            pass
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    found = ceilings()
    measured = json.dumps(provenance(found, given.commit), indent=1)
    (given.out / "provenance.json").write_text(measured + "\n", encoding="utf-8")
    rows = []
    for new in run(bench, say):
        of_copy, of_product = new["gb_per_s"] * 1e9, new["tflop_per_s"] * 1e12
        rows.append(
            new | {"of_copy": of_copy / found["bytes_per_s"], "of_product": of_product / found["flop_per_s"]}
        )
        pd.DataFrame(rows).to_csv(given.out / "bench.csv", index=False)  # after each: a run cut short keeps its rows
    table = pd.DataFrame(rows)
    table.to_parquet(given.out / "bench.parquet", index=False)
    sys.stdout.write(table.to_string(index=False, float_format=lambda value: f"{value:.4g}") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
