"""Compile every kernel for GPUs that are not there, and print what came out as JSON. Run without the interpreter.

Pointers and sizes are marked as multiples of 16, as they are when an engine's tensors are passed.
"""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import align, expert_ffn, reroute
from kernels.expert_ffn import TILES

INDICES = {
    "topk", "adapter", "table", "out", "slots", "counts", "totals", "rows", "blocks", "num_rows",
}  # fmt: skip
NUMBERS = {"x", "weights", "hidden", "router", "parts"}
SIZES = {"H", "I"}


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
        "has_async_copies": "cp.async" in ptx,
        "num_spills": ptx.count("st.local"),
    }


def main() -> None:
    found = {}
    for architecture in (80, 90):

        def add(kernel, name="", architecture=architecture, **more):
            found[f"sm_{architecture} {kernel.__name__} {name}".strip()] = build(
                kernel, more.pop("constants"), architecture, **more
            )

        add(reroute._reroute, constants={"BLOCK": reroute.BLOCK})
        for bins in (128, 1024):
            piece = {"PIECE": align.PIECE, "BINS": bins}
            add(align._count, f"{bins}", constants=piece | {"REROUTE": True})
            add(align._place, f"{bins}", constants=piece | {"BLOCK": 128})
            add(align._align_few, f"{bins}", constants=piece | {"BLOCK": 16, "REROUTE": True})
        add(align._scan, constants={"TILE": 1024})
        for device, ladder in TILES.items():
            for _, tiles in ladder:
                shape = {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "INNER": tiles.inner, "GROUP": tiles.group}
                runs = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
                for kernel in (expert_ffn._gate_up, expert_ffn._down):
                    add(kernel, f"{device} {tiles.rows}", constants=shape | {"WIDEN": False}, **runs)
        add(expert_ffn._sum, constants={"K": 6, "COLUMNS": 1024, "WIDEN": False}, out="*bf16")
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
