"""`python -m calibration`: tables of times, imported, checked, or one beside another."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Triangles solve thousands of systems of two unknowns, for which threads of linear algebra only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from models.architecture import ARCHITECTURES
from models.cost.table import CostTable, TableError, read_table, write_table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    imports = commands.add_parser("import", help="a table from what another project has measured")
    imports.add_argument("kind", choices=("aiconfigurator", "llmservingsim", "vidur"))
    imports.add_argument("--out", type=Path, required=True, help="the table, .parquet or .csv")
    imports.add_argument("--accelerator", help="aiconfigurator: h100, h200, b200 or a100; vidur: the GPU's name")
    imports.add_argument("--framework", default="vllm", help="aiconfigurator: vllm, sglang or trtllm")
    imports.add_argument("--from", dest="folder", type=Path, help="the folder of the files")
    imports.add_argument("--model", help="llmservingsim: such as meta-llama/Llama-3.1-8B; vidur: a preset's name")
    imports.add_argument("--tensor", type=int, default=1, help="tensor-parallel degree of the profile")
    imports.add_argument("--skew", choices=("on", "off"), help="llmservingsim: uneven batches; default: as it says")
    check = commands.add_parser("check", help="how far the times between measured ones are off")
    check.add_argument("table", type=Path)
    check.add_argument("--alternatives", action="store_true", help="the same on other scales")
    check.add_argument("--first", type=int, choices=range(5), default=2, help="of every five points, which is held out")
    check.add_argument("--report", type=Path, metavar="FILE", help="also write figures to an HTML file")
    check.add_argument("--figure", type=Path, metavar="PNG", help="also draw found over measured times")
    compare = commands.add_parser("beside", help="one table's kernels over another's, where both were measured")
    compare.add_argument("table", type=Path)
    compare.add_argument("other", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "check":
            return _check(read_table(given.table), given.alternatives, given.first, given.report, given.figure)
        if given.command == "beside":
            from calibration.beside import beside

            found = beside(read_table(given.table), read_table(given.other))
            sys.stdout.write(found.to_string(index=False, float_format=lambda value: f"{value:.2f}") + "\n")
            return 0
        from calibration.methods import with_methods

        table = with_methods(_imported(given))
        write_table(table, given.out)
    except TableError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{given.out}: {len(table.rows)} rows of {table.gpu}\n")
    return 0


def _check(table: CostTable, alternatives: bool, first: int, to: Path | None, figure: Path | None) -> int:
    from calibration.check import held_out, lines

    found = held_out(table, first=first)
    for line in lines(table, found, alternatives):
        sys.stdout.write(line + "\n")
    if figure is not None:
        from calibration.figures import draw_scatter

        draw_scatter(found).savefig(figure, dpi=150)
        sys.stderr.write(f"{figure}\n")
    if to is not None:
        from calibration.report import write_report

        write_report(table, found, to)
        sys.stderr.write(f"{to}\n")
    return 0


def _imported(given: argparse.Namespace) -> CostTable:
    from calibration import importers

    if given.kind == "aiconfigurator":
        return importers.import_aiconfigurator(given.accelerator or "", given.framework, given.folder)
    if given.folder is None or given.model is None:
        raise TableError(f"{given.kind} needs --from FOLDER and --model NAME")
    if given.kind == "llmservingsim":
        skew = None if given.skew is None else given.skew == "on"
        return importers.import_llmservingsim(given.folder, given.model, given.tensor, skew)
    if given.model not in ARCHITECTURES:
        raise TableError(f"unknown model {given.model!r}; choose one of {', '.join(ARCHITECTURES)}")
    gpu = given.accelerator or "unknown"
    return importers.import_vidur(given.folder, ARCHITECTURES[given.model], given.tensor, gpu)


if __name__ == "__main__":
    sys.exit(main())
