"""`python -m kernels.tune`: which tiles of the expert feed-forward are fastest on this GPU.

For each batch size it goes downhill from the tiles in use, one number of them by one step at a time, each candidate
timed over the same inputs by turns with those in use, and prints the entry for `expert_ffn.TILES`. Writes every time
measured to tune.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

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
CHOICES = {
    "rows": (16, 32, 64, 128), "columns": (32, 64, 128, 256), "inner": (32, 64, 128, 256), "group": (1, 4, 8, 16),
    "num_warps": (4, 8), "num_stages": (2, 3, 4, 5),
}  # fmt: skip
SHARED_BYTES = 227 * 1024
MOST_ACCUMULATORS = 160
"""Of one thread: two fp32 tiles beside addresses and fragments in 255 registers."""


def fits(tiles: Tiles, rows: float) -> bool:
    """Whether a block can hold them, with a quarter to four times the rows that a slot has."""
    is_near = min(rows / 4, 64) <= tiles.rows <= max(4 * rows, 16)
    shared = tiles.num_stages * tiles.inner * (tiles.rows + 2 * tiles.columns) * 2
    accumulators = 2 * tiles.rows * tiles.columns / (32 * tiles.num_warps)
    return is_near and shared <= SHARED_BYTES and accumulators <= MOST_ACCUMULATORS


def neighbours(tiles: Tiles) -> Iterator[Tiles]:
    """Those that differ in one number, by one step."""
    for name, choices in CHOICES.items():
        at = choices.index(getattr(tiles, name))
        for number in (*choices[max(at - 1, 0) : at], *choices[at + 1 : at + 2]):
            yield replace(tiles, **{name: number})


def search(
    begin: Tiles, rows: float, over: Callable[[Tiles], float | None], is_over: Callable[[], bool]
) -> dict[Tiles, float]:
    """Times over those of `begin` on the way downhill from it, one step at a time, until no neighbour is faster.

    over     a time over that of `begin`; None where tiles do not run
    is_over  whether time is up
    """
    found: dict[Tiles, float] = {begin: 1.0}
    tried, best = {begin}, begin
    while True:
        for tiles in neighbours(best):
            if tiles in tried or not fits(tiles, rows):
                continue
            if is_over():
                return found
            tried.add(tiles)
            ratio = over(tiles)
            if ratio is not None:
                found[tiles] = ratio
        fastest = min(found, key=found.__getitem__)
        if fastest == best:
            return found
        best = fastest


def over_in_use(inputs: Sequence[Input], pool: PaddedPool, tiles: Tiles) -> float | None:
    """Median ratio to the tiles in use; None where they need more than a block has."""
    up, down = pool.tensors
    num_slots = up.shape[0]
    ways = {}
    for name, shape in (("in use", tiles_for(inputs[0].topk.numel(), num_slots)), ("candidate", tiles)):
        sets = []
        for s in inputs:
            slots = reroute_eagerly(s.topk, s.adapter, s.table)
            sets.append((s.x, s.weight, align(slots, num_slots, shape.rows), shape))
        ways[name] = calls(lambda s: expert_ffn(s[0], up, down, s[1], s[2], s[3]), sets)
    try:
        found = timing.measure(ways, rounds=8, has_again=False)
    except (OutOfResources, RuntimeError) as error:
        torch.cuda.synchronize()  # raises where the device itself has failed
        sys.stderr.write(f"{tiles}: {str(error).strip().partition(chr(10))[0]}\n")
        return None
    return found["candidate"].over(found["in use"])[0]


def is_past(moment: float) -> bool:
    return time.monotonic() > moment


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
        in_use = tiles_for(num_tokens * LITE.top_k, LITE.num_slots)
        found = search(in_use, height, partial(over_in_use, inputs, pool), partial(is_past, until))
        rows += [{"tokens": num_tokens, "rows_per_slot": height, "over_in_use": over, "tiles": repr(tiles)}
                 for tiles, over in found.items()]  # fmt: skip
        pd.DataFrame(rows).to_csv(given.out / "tune.csv", index=False)
    table = pd.DataFrame(rows)
    best = table.loc[table.groupby("tokens")["over_in_use"].idxmin()]
    sys.stdout.write(best.to_string(index=False) + "\n")
    sys.stdout.write(f"    {torch.cuda.get_device_name()!r}: [\n")
    heights = best["rows_per_slot"].tolist()
    for i, tiles in enumerate(best["tiles"].tolist()):
        least = 0.0 if i == 0 else (heights[i - 1] * heights[i]) ** 0.5  # halfway, by ratio
        sys.stdout.write(f"        ({least:.3g}, {tiles}),\n")
    sys.stdout.write("    ],\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
