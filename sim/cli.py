"""The command `spindle`: it reads the command line, calls what does the work, and prints what came of it.

Exit codes: 0 done · 1 a check failed, or an error that is ours · 2 bad input or a refused request ·
3 `calibrate --seconds` is over and points are left · 130 interrupted (what was finished is written).
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sim.carry_out import (
    INTERRUPTED,
    asked_for,
    how_to_report,
    imported,
    leave_if,
    say_if_compiling,
    searched,
    simulated,
    usual_workers,
)  # fmt: skip
from sim.console import fail, print_rows, print_text, rows_of, standard_output
from sim.options import (
    BoundOption,
    ForceOption,
    OutOption,
    OverOption,
    PacketHopsOption,
    PayerOption,
    PoliciesOption,
    PriceOption,
    QuietOption,
    RatedWorkloadOption,
    ScenarioArgument,
    SeedOption,
    SeedsOption,
    SetOption,
    SmallOption,
    TargetOption,
    ToleranceOption,
    WorkersOption,
    free_path,
    output_folder,
)
from sim.scenario.errors import Refused

BAD_INPUT = 2

app = typer.Typer(
    name="spindle",
    help="Discrete-event simulator of AI clusters: from a scenario file to a comparison report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("spindle-sim"))
        raise typer.Exit


@app.command()
def run(
    scenario: ScenarioArgument,
    settings: SetOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    small: SmallOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    workers: WorkersOption = None,
    trace: Annotated[bool, typer.Option("--trace", help="also write a timeline (arrives later)")] = False,
    max_packet_hops: PacketHopsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a scenario, all its variants and seeds, and write tables, figures and report.html."""
    from sim.scenario.load import load_scenario

    loaded = load_scenario(scenario, settings or [], small, seed, seeds)
    folder = output_folder(loaded.name, out, force)
    options = asked_for(trace=trace, overwrite=force, max_packet_hops=max_packet_hops)
    outcome = simulated(loaded, folder, workers, quiet, options)
    if not quiet:
        report_file = Path(outcome.out_dir) / "report.html"
        lines = [outcome.headline, *outcome.overloads, report_file if report_file.exists() else outcome.out_dir]
        print_text("\n".join(map(str, lines)))
    leave_if(outcome.partial, how_to_report(folder))


@app.command()
def sweep(
    scenario: ScenarioArgument,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=A,B,C", help="values of one key; several grids multiply"),
    ] = None,
    target: TargetOption = None,
    workload: RatedWorkloadOption = None,
    tolerance: ToleranceOption = "2%",
    price: PriceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="of --target: print JSON")] = False,
    settings: SetOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    small: SmallOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    workers: WorkersOption = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="a Dask scheduler; default: this machine"),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Run a scenario at every point of a grid, and gather their metrics; or search the highest rate that holds."""
    from sim.scenario.load import load_scenario
    from sim.sweep import grid_points, run_sweep

    if bool(grid) == bool(target):
        raise Refused("give --grid KEY=A,B,C to run every point, or --target METRIC=MS to search a rate, not both")
    of_search = {"--workload": workload, "--tolerance": tolerance != "2%", "--price": price, "--json": as_json}
    if grid and any(of_search.values()):
        raise Refused(f"{next(name for name, is_given in of_search.items() if is_given)} is of --target, not of --grid")
    if target:
        if scheduler is not None:
            raise Refused("--scheduler is of --grid; a search runs on this machine, with --workers")
        loaded = load_scenario(scenario, settings or [], small, seed, seeds)
        question = imported("sim.capacity_question").question_of(loaded, target, workload, tolerance, price)
        folder = output_folder(f"{loaded.name} capacity", out, force)
        is_partial = searched("sim.capacity_sweep", question, folder, workers, quiet, as_json)
    else:
        points = grid_points(scenario, grid or [], settings or [], small, seed, seeds)
        folder = output_folder(f"{points[0].loaded.name} sweep", out, force)
        try:
            outcome = run_sweep(points, folder, workers or usual_workers(len(points)), scheduler, quiet, force)
        except Exception as error:
            fail(error, folder)
        if not quiet:
            typer.echo(f"{outcome.num_finished} of {len(points)} points in {outcome.table}")
        is_partial = outcome.partial
    leave_if(is_partial)


class Least(StrEnum):
    """What `size` makes least."""

    accelerators = "accelerators"
    cost = "cost"


@app.command()
def size(
    scenario: ScenarioArgument,
    target: BoundOption = None,
    over: OverOption = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="which, where several serve a model", show_default=False)
    ] = None,
    price: Annotated[
        str | None,
        typer.Option("--price", metavar="DOLLARS", help="per accelerator-hour, 2.5 or h200=2.5,h100=2",
                     show_default=False),
    ] = None,
    by: Annotated[Least, typer.Option("--by", help="what is to be least; the other decides ties")] = Least.accelerators,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    settings: SetOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    small: SmallOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find the fewest accelerators that hold a scenario's load within latency targets."""
    ask = imported("sim.size_question").size_question
    question = ask(
        scenario, over or [], target or [], workload, price, by is Least.cost, settings or [], small, seed, seeds
    )
    folder = output_folder(f"{question.loaded.name} size", out, force)
    leave_if(searched("sim.size_run", question, folder, workers, quiet, as_json))


@app.command()
def tax(
    scenario: ScenarioArgument,
    policies: PoliciesOption = None,
    workload: PayerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    settings: SetOption = None,
    seed: SeedOption = None,
    seeds: SeedsOption = None,
    small: SmallOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    workers: WorkersOption = None,
    max_packet_hops: PacketHopsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Say what the fabric costs a serving workload: an unlimited fabric against each path policy, and a report."""
    taxes = imported("sim.tax")
    question = taxes.tax_question(scenario, policies, workload, settings or [], small, seed, seeds)
    folder = output_folder(f"{question.loaded.name} tax", out, force)
    options = asked_for(overwrite=force, max_packet_hops=max_packet_hops)
    outcome = simulated(question.loaded, folder, workers, quiet, options)
    rows = taxes.tax_rows(imported("sim.results.store").read_run(outcome.out_dir), question.workload)
    if as_json:
        print_rows(rows, "", as_json)
    elif not quiet:
        print_rows(taxes.shown_rows(rows), f"Network tax of {question.workload}", as_json)
        print_text("\n".join(map(str, [outcome.headline, *outcome.overloads, Path(outcome.out_dir) / "report.html"])))
    leave_if(outcome.partial, how_to_report(folder))


@app.command()
def study(
    folder: Annotated[Path, typer.Argument(help="folder of scenario files (YAML)", show_default=False)],
    settings: SetOption = None,
    seeds: SeedsOption = None,
    small: SmallOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    workers: WorkersOption = None,
    max_packet_hops: PacketHopsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run every scenario of a folder, a run folder each, and write one report: who wins where, and where that flips."""
    from sim.engine.progress import Progress
    from sim.study import load_study, run_study

    loaded = load_study(folder, settings or [], small, seeds)
    target = output_folder(f"{folder.resolve().name} study", out, force)
    num_runs = sum(len(each.variants) * len(each.seeds) for each in loaded.values())
    say_if_compiling(quiet)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress(num_runs, quiet) as progress:
            outcome = run_study(
                loaded, target, workers or usual_workers(num_runs), progress, overwrite=force,
                max_packet_hops=max_packet_hops,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the results in {target} are partial", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        fail(error, target)
    if not quiet:
        print_text(f"{outcome.headline}\n{outcome.report}")
    if outcome.partial:
        typer.echo(f"interrupted: the results in {target} are partial", err=True)
        raise typer.Exit(INTERRUPTED)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="run folders", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file to write; default: report.html in DIR", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file given by --out")] = False,
) -> None:
    """Write the report of one run again, or one report that compares several runs."""
    for folder in folders:
        if not (folder / "summary.json").is_file():
            raise Refused(f"{folder} is no run folder: it holds no summary.json; give what `spindle run` wrote")
    if out is not None and out.is_dir():
        raise Refused(f"--out {out} is a folder; give a file, for example {out / 'report.html'}")
    if out is not None and out.exists() and not force:
        raise Refused(f"--out {out} exists; choose another file, or replace it with --force")
    target = out or (folders[0] / "report.html" if len(folders) == 1 else free_path(Path("comparison.html")))
    written = imported("sim.results.report").write_report(folders, target)
    typer.echo(str(written or target))


@app.command()
def validate(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="DIR", help="a recorded run of your server, to compare with instead",
                     show_default=False),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="of --against: measured times of its GPU", show_default=False)
    ] = None,
    workload: Annotated[
        Path | None, typer.Option("--workload", help="of --against: what was sent, with shared blocks",
                                  show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="of --against: a preset's name", show_default=False)
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", help="of --against: a preset's name", show_default=False)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="of --against: a picture to draw", show_default=False)
    ] = None,
) -> None:
    """Check the simulator against closed forms, published figures and measured runs."""
    if against is not None:
        _validate_against(against, table, workload, model, accelerator, figure, as_json)
        return
    validation = imported("sim.validate.main")
    rows = rows_of(validation.run_checks())
    compared = validation.run_comparisons()
    compared_rows = rows_of(compared)
    if as_json:
        print_rows(rows + compared_rows, "Checks", as_json)
    else:
        print_rows(rows, "Checks", as_json)
        shown = [{key: value for key, value in row.items() if key != "because"} for row in compared_rows]
        print_rows(shown, "Fluid against packet", as_json)
        print_text("\n".join(validation.remarks(compared)))
    if any(row.get("passed") is False and row.get("because") is None for row in rows + compared_rows):
        raise typer.Exit(1)


def _validate_against(
    folder: Path, table: Path | None, workload: Path | None, model: str | None, accelerator: str | None,
    figure: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from models.cost.table import TableError

    if table is None:
        raise Refused("--against needs --table FILE, measured times of that GPU; `spindle calibrate` makes tables")
    try:
        found, remarks = imported("sim.validate.against").compare(folder, table, workload, model, accelerator, figure)
    except (TableError, ValueError) as error:  # RunError and TraceError are ValueErrors
        raise Refused(str(error)) from None
    for remark in remarks:
        typer.echo(remark, err=True)
    if as_json:
        print_text(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for title, rows in found.items():
        print_rows(rows, title, as_json)


@app.command()
def bench(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="only what takes a few seconds")] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="TEXT", help="figures with this in their name")] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FOLDER", help="also write FOLDER/<date>.md, with the machine")
    ] = None,
) -> None:
    """Measure the simulator's own speed; a few minutes."""
    benchmarks = imported("sim.bench.main")
    rows = rows_of(benchmarks.run_benchmarks(quick, only))
    if write is not None:
        typer.echo(str(benchmarks.write_record(rows, write)), err=True)
    print_rows(rows, "Benchmarks", as_json)


@app.command()
def calibrate(
    source: Annotated[
        str | None,
        typer.Option("--import", metavar="PROJECT", help="aiconfigurator, llmservingsim or vidur", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the table to write; of --check: a report, .html", show_default=False)
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="hold out every fifth point", show_default=False)
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", metavar="SCENARIO", help="its operators' times and sources", show_default=False),
    ] = None,
    needed_by: Annotated[
        Path | None,
        typer.Option("--for", metavar="SCENARIO", help="measure what no row covers; without --out: list it",
                     show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="measure fewer models and sizes")] = False,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="stop measuring then; go on with the same command",
                                   show_default=False),
    ] = None,
    commit: Annotated[
        str | None, typer.Option("--commit", help="of the measured kernels; default: this checkout's",
                                 show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="of --explain: print JSON")] = False,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", help="whose times: h100, h200, b200, a100", show_default=False)
    ] = None,
    framework: Annotated[str, typer.Option("--framework", help="whose kernels, of aiconfigurator")] = "vllm",
    folder: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="of the project's files", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="whose profile", show_default=False)] = None,
    tensor: Annotated[int, typer.Option("--tensor", min=1, help="of the profile")] = 1,
    skew: Annotated[
        str | None, typer.Option("--skew", metavar="on|off", help="of llmservingsim: take its uneven batches; default: "
                                 "as the profile says", show_default=False),
    ] = None,
) -> None:
    """Tables of measured times for `cost: {table: FILE}`: measured here, imported, checked, or explained."""
    if explain is not None:
        from sim.scenario.load import load_scenario

        loaded = load_scenario(explain, [], False, None, None)
        imported("sim.scenario.build").check(loaded)
        print_rows(imported("sim.explain_cost").explain(loaded), "Operators in two typical steps", as_json)
        return
    if check is not None:
        given = ["check", str(check), *(["--report", str(out)] if out is not None else [])]
    elif source is not None and out is not None:
        options = {"out": out, "accelerator": accelerator, "framework": framework, "from": folder, "model": model,
                   "skew": skew}  # fmt: skip
        given = ["import", source, "--tensor", str(tensor)]
        given += [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    elif source is None and (out is not None or needed_by is not None):
        code = imported("sim.calibrate").command(out, needed_by, quick, seconds, commit)
        if code:
            raise typer.Exit(code)
        return
    else:
        raise Refused(
            "give --out FILE to measure this machine's GPU, alone or --for SCENARIO; --import PROJECT with --out FILE; "
            "--check FILE; or --explain SCENARIO"
        )
    done = subprocess.run([sys.executable, "-m", "calibration", *given], check=False)
    if done.returncode:
        raise typer.Exit(BAD_INPUT)


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from sim.scenario.load import json_schema

    print_text(json.dumps(json_schema(), indent=2, ensure_ascii=False))


class Listed(StrEnum):
    """What can be listed."""

    policies = "policies"
    models = "models"
    hardware = "hardware"


@app.command("list")
def list_presets(
    what: Annotated[Listed | None, typer.Argument(help="one of them; default: all", show_default=False)] = None,
) -> None:
    """Show policies, models and hardware presets, each with its source."""
    from sim.presets import tables

    console = standard_output()
    for name in [what.value] if what is not None else [listed.value for listed in Listed]:
        for table in tables(name):
            console.print(table)


def check_packages() -> None:
    """Raises Refused when `models`, `kernels` or `calibration` is the package of another distribution."""
    home = Path(__file__).resolve().parent.parent
    for name in ("models", "kernels", "calibration"):
        try:
            found = importlib.import_module(name).__file__
        except ModuleNotFoundError:
            found = None
        if found is None or Path(found).resolve().parent.parent != home:
            raise Refused(
                f"the package '{name}' is {found or 'not there'}, not Spindle's in {home}: another "
                f"distribution with a package of that name is in the way; remove it (pip uninstall {name}) "
                "and install spindle-sim again"
            )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command; leaves by SystemExit."""
    try:
        check_packages()
        app(args=arguments, prog_name="spindle")
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        try:
            fail(error)
        except typer.Exit as leave:
            sys.exit(leave.exit_code)


if __name__ == "__main__":
    main()
