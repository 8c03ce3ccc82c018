"""A study: every scenario of a folder, run after one another, and one report of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.engine.progress import Progress
from sim.results.run_results import VariantResult
from sim.results.store import read_run
from sim.results.study import answer_of, findings_of
from sim.results.study_report import write_study
from sim.run import identity, run_scenario
from sim.scenario import build
from sim.scenario.errors import Problem, Refused, ScenarioError
from sim.scenario.estimate import check_cost, estimate
from sim.scenario.load import LoadedScenario, load_scenario

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """What a study left behind; partial when it was interrupted."""

    report: Path
    headline: str
    partial: bool


def load_study(
    folder: Path, settings: Sequence[str] = (), small: bool = False, seeds: int | None = None
) -> dict[str, LoadedScenario]:
    """Every scenario file of a folder, in the order of their names; `base.yaml` comes first.

    Raises Refused when there is none, or one whose `compare` has no axes, and ScenarioError with everything that is
    wrong in any of them.
    """
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder; give one with scenario files, for example scenarios/spraying")
    files = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != "base", path.name))
    if not files:
        raise Refused(f"{folder} holds no scenario file (*.yaml)")
    loaded: dict[str, LoadedScenario] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            loaded[file.stem] = load_scenario(file, settings, small, None, seeds)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    for stem, each in loaded.items():
        if any(scenario.fidelity == "auto" for _, scenario in each.variants):
            raise Refused(
                f"{folder / stem}.yaml has fidelity: auto, which decides by the tables of its runs, and a study keeps "
                "metrics only; write fidelity: packet, or fluid, or run it with `spindle run`"
            )
        if not each.axes:
            raise Refused(
                f"{folder / stem}.yaml has no axes, so that it does not say who competes under which circumstances; "
                "give compare several lists, or run it with `spindle run`"
            )
    return loaded


def run_study(
    loaded: Mapping[str, LoadedScenario],
    out_dir: Path,
    workers: int,
    progress: Progress,
    *,
    overwrite: bool = False,
    max_packet_hops: float | None = None,
) -> StudyOutcome:
    """Run every scenario into out_dir/<file> and write out_dir/report.html, winners.csv and pairs.csv.

    What two scenarios have in common (a circumstance from which each varies something else) is simulated once. Run
    folders hold metrics only; `spindle run` on a single file keeps flows and links too. Everything is checked before
    anything runs; packets over more links than `max_packet_hops` in one scenario are Refused.
    """
    for each in loaded.values():
        build.check(each)
        check_cost(estimate(each), max_packet_hops)
    known: dict[tuple[str, int], VariantResult] = {}
    runs, partial = [], False
    for stem, each in loaded.items():
        outcome = run_scenario(
            each, out_dir / stem, workers, progress, overwrite=overwrite, max_packet_hops=max_packet_hops,
            is_part_of_study=True, known=known,
        )  # fmt: skip
        run = read_run(outcome.out_dir)
        runs.append(run)
        identities = {label: identity(scenario) for label, scenario in each.variants}
        known |= {(identities[label], seed): result for (label, seed), result in run.results.items()}
        partial = outcome.partial
        if partial:
            break
    answer = answer_of([finding for run in runs for finding in findings_of(run)])
    return StudyOutcome(write_study(runs, out_dir / REPORT), answer, partial)
