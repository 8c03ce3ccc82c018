"""`python -m kernels.tune`: which tiles of the expert feed-forward are fastest on this GPU.

For each batch size it times every candidate over the same inputs, by turns with the tiles in use, and prints the entry
for `expert_ffn.TILES`. Writes every time measured to tune.csv.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from triton.runtime.errors import OutOfResources

from kernels import timing
from kernels.align import align
from kernels.cases import LITE, Cases, Input, calls
from kernels.expert_ffn import Tiles, expert_ffn, rows_per_slot, tiles_for
from kernels.expert_pool import PaddedPool
from kernels.reroute import reroute_eagerly

BATCHES = (8, 64, 256, 512, 1024, 2048, 4096, 16384)
NUM_SETS = 4
SHARED_BYTES = 227 * 1024
MOST_ACCUMULATORS = 160
"""Of one thread: two fp32 tiles beside addresses and fragments in 255 registers."""


def candidates(rows: float) -> list[Tiles]:
    """Tiles that fit, with a quarter to four times the rows that a slot has; in an order that tries all sorts early."""
    found = []
    shapes = itertools.product((16, 32, 64, 128), (32, 64, 128, 256), (64, 128, 256), (4, 8), (3, 4))
    for height, columns, inner, num_warps, num_stages in shapes:
        is_near = min(rows / 4, 64) <= height <= max(4 * rows, 16)
        shared = num_stages * inner * (height + 2 * columns) * 2
        accumulators = 2 * height * columns / (32 * num_warps)
        if is_near and shared <= SHARED_BYTES and accumulators <= MOST_ACCUMULATORS:
            group = 1 if height < 64 else 8  # few rows: one block of them per slot, nothing to share
            found.append(Tiles(height, columns, inner, group, num_warps, num_stages))
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def times_of(inputs: Sequence[Input], pool: PaddedPool, tiles: Tiles) -> float:
    """Median ratio to the tiles in use."""
    up, down = pool.tensors
    num_slots = up.shape[0]
    ways = {}
    for name, shape in (("in use", tiles_for(inputs[0].topk.numel(), num_slots)), ("candidate", tiles)):
        sets = []
        for s in inputs:
            slots = reroute_eagerly(s.topk, s.adapter, s.table)
            sets.append((s.x, s.weight, align(slots, num_slots, shape.rows), shape))
        ways[name] = calls(lambda s: expert_ffn(s[0], up, down, s[1], s[2], s[3]), sets)
    found = timing.measure(ways, rounds=8)
    return found["candidate"].over(found["in use"])[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("kernels-tune"), help="folder for tune.csv")
    parser.add_argument("--seconds", type=float, default=500.0, help="stop trying after so long")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA device, so nothing can be tuned\n")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    cases = Cases(LITE, "cuda", is_quick=False, is_rehearsal=False)
    _, pool = cases.pools()
    begin = time.monotonic()
    rows: list[dict] = []
    for number, num_tokens in enumerate(BATCHES):
        height = rows_per_slot(num_tokens * LITE.top_k, LITE.num_slots)
        inputs = [cases.input(num_tokens, seed) for seed in range(NUM_SETS)]
        until = begin + given.seconds * (number + 1) / len(BATCHES)
        for tiles in candidates(height):
            if time.monotonic() > until:
                sys.stderr.write(f"{num_tokens} tokens: no time for the candidates that are left\n")
                break
            try:
                over = times_of(inputs, pool, tiles)
            except (OutOfResources, RuntimeError) as error:  # more shared memory or registers than there are
                torch.cuda.synchronize()  # raises where the device itself has failed
                sys.stderr.write(f"{tiles}: {str(error).strip().partition(chr(10))[0]}\n")
                continue
            rows.append({"tokens": num_tokens, "rows_per_slot": height, "over_in_use": over, "tiles": repr(tiles)})
            pd.DataFrame(rows).to_csv(given.out / "tune.csv", index=False)
    table = pd.DataFrame(rows)
    best = table.loc[table.groupby("tokens")["over_in_use"].idxmin()]
    sys.stdout.write(best.to_string(index=False) + "\n")
    sys.stdout.write(f"    {torch.cuda.get_device_name()!r}: [\n")
    least = 0.0
    for height, tiles in zip(best["rows_per_slot"].tolist(), best["tiles"].tolist(), strict=True):
        sys.stdout.write(f"        ({least:g}, {tiles}),\n")
        least = 1.5 * height
    sys.stdout.write("    ],\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
