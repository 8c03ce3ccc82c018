"""Compile every kernel for GPUs that are not there, and print what came out as JSON. Run without the interpreter.

Pointers and sizes are marked as multiples of 16, as they are when an engine's tensors are passed.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from kernels import align, expert_ffn, reroute
from kernels.expert_ffn import TILES

INDICES = {
    "topk", "adapter", "table", "out", "slots", "counts", "totals", "starts", "next_rows", "rows", "blocks", "num_rows",
}  # fmt: skip
NUMBERS = {"x", "weights", "hidden", "router", "parts"}
SIZES = {"H", "I"}
BUILT_FOR = {"NVIDIA H200": (90,)}
"""A GPU's own tiles need not fit another."""


def build(kernel, constants: dict, architecture: int, out="*i32", **options) -> dict:
    names = kernel.arg_names
    types = {name: "*i32" if name in INDICES else "*bf16" if name in NUMBERS else "i32" for name in names}
    types |= {"out": out} if "out" in types else {}
    aligned = [i for i, name in enumerate(names) if name not in constants and (types[name][0] == "*" or name in SIZES)]
    source = ASTSource(
        fn=kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        "shared_bytes": compiled.metadata.shared,
        "has_tensor_cores": "mma" in ptx,
        "has_warp_group_products": "wgmma" in ptx,
        "has_async_copies": "cp.async" in ptx,
        "spilled_bytes": spilled_bytes(ptx, architecture),
    }


def spilled_bytes(ptx: str, architecture: int) -> int:
    """What the assembler finds no register for, and stores: PTX has as many registers as it likes."""
    name = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert name is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        done = subprocess.run(
            [get_ptxas(architecture).path, "-v", f"-arch={name[1]}", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", done.stderr))


def main() -> None:
    found = {}
    for architecture in (80, 90):

        def add(kernel, name="", architecture=architecture, **more):
            found[f"sm_{architecture} {kernel.__name__} {name}".strip()] = build(
                kernel, more.pop("constants"), architecture, **more
            )

        add(reroute._reroute, constants={"K": 6, "BLOCK": reroute.BLOCK})
        few = {"K": 6, "REROUTE": True, "PAIRS": align.FEW_PAIRS, "PIECE": align.PIECE}
        for bins in (128, 1024):
            add(align._count, f"{bins}", constants={"K": 6, "REROUTE": True, "PIECE": align.PIECE, "BINS": bins})
            add(align._start, f"{bins}", constants={"BLOCK": 128, "BINS": bins})
            for block in (16, 128):
                add(align._align_few, f"{bins} {block}", constants=few | {"BLOCK": block, "BINS": bins})
        add(align._scan, constants={"TILE": 1024})
        add(align._place, constants={"BLOCK": 128, "PIECE": align.PIECE})
        for device, ladder in TILES.items():
            if architecture not in BUILT_FOR.get(device, (80, 90)):
                continue
            for least, tiles in ladder:
                shape = {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "INNER": tiles.inner, "GROUP": tiles.group}
                runs = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
                name = f"{tiles.rows} {device} from {least:g}"
                add(expert_ffn._gate_up, name, constants=shape | {"K": 6, "WIDEN": False}, **runs)
                add(expert_ffn._down, name, constants=shape | {"WIDEN": False}, **runs)
        add(expert_ffn._sum, constants={"K": 6, "COLUMNS": 1024, "WIDEN": False}, out="*bf16")
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
