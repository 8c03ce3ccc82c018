"""All checks: `spindle validate`, or `python -m sim.validate.main FILE` to write them as a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from sim.validate import against, fabric_checks, packet_checks, serving_checks
from sim.validate.fidelities import WHERE_NOT, Comparison, comparisons
from sim.validate.table import CheckResult

CHECKS: tuple[Callable[[], Iterator[CheckResult]], ...] = (
    fabric_checks.single_flow_and_incast,
    fabric_checks.collectives,
    fabric_checks.max_min,
    fabric_checks.shift_law,
    fabric_checks.hashed_loads,
    fabric_checks.assigned_loads,
    packet_checks.one_packet_flow,
    packet_checks.packet_references,
    packet_checks.packet_shift_is_a_multiple,
    packet_checks.ndp_references,
    packet_checks.dctcp_reference,
    packet_checks.transports_behave,
    serving_checks.md1,
)


def run_checks(selected: Collection[str] | None = None) -> list[CheckResult]:
    """Run the checks, in order; `selected` names functions of CHECKS, None for all.

    Raises ValueError for a name that is not there.
    """
    names = [check.__name__ for check in CHECKS]
    unknown = sorted(set(selected or ()) - set(names))
    if unknown:
        raise ValueError(f"no check is named {unknown[0]!r}; there are {', '.join(names)}")
    return [result for check in CHECKS if selected is None or check.__name__ in selected for result in check()]


def run_comparisons() -> list[Comparison]:
    """The table "fluid against packet"."""
    return list(comparisons())


def remarks(compared: list[Comparison]) -> list[str]:
    """What stands below that table: why fidelities part, case by case, and where fluid is not to be used."""
    known = [f"{c.messages}, {c.paths}: {c.because}." for c in compared if c.because is not None]
    return [*known, WHERE_NOT]


AGAINST_VLLM = """\
300 ShareGPT requests, vLLM 0.19.0, as LLMServingSim recorded them; kernel times from its profiles of the same GPUs;
nothing is fitted to a run. Arrivals are the engine's `queued_ts`. Blind, the KV blocks follow from our accounting of
memory; matched, they are the recorded ones. `spindle validate --against DIR --table FILE --workload FILE` does the same
for any recorded run.

On the RTX PRO 6000 steps with a prompt took the real engine longer than the profile's kernels add up to, so that its
first tokens come 12 % too early after they are scheduled, while times between tokens are 1.6 % short: its matrix
products do not seem to have been those of the profile, and no mechanism of an engine that we know of makes up for it.
Single steps say where: 769 to 1,024 tokens took 71 to 74 ms beside 126 decodes whatever their number, as products in
blocks of 256 rows would, where the profile has kernels in blocks of 128.
Batches of uneven contexts are taken from a profile where its meta.yaml says so: RTX PRO 6000 yes, RTX 4090 no."""


def as_page(results: list[CheckResult], compared: list[Comparison], recorded_runs: Iterable[str] = ()) -> str:
    """The results as Markdown; recorded_runs: the lines of `against.as_page`."""
    lines = [
        "# Validation",
        "",
        "Written by `python -m sim.validate.main docs/validation.md`; `spindle validate` prints the same.",
        "",
        "| check | expected | simulated | error | tolerance | source | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        error = "–" if r.error is None else f"{r.error:.2g}"
        verdict = "ok" if r.passed else "**FAILED**"
        lines.append(
            f"| {r.name} | {r.expected:.6g} | {r.simulated:.6g} | {error} | {r.tolerance} | {r.source} | {verdict} |"
        )
    lines += [
        "",
        "## Fluid against packet",
        "",
        "8 leaves x 8 hosts x 8 spines, 400 Gbit/s, 500 ns a link, fixed windows; lossless where no buffer is named.",
        "",
        "| messages | paths | fluid, us | packet, us | packet / fluid | target | |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in compared:
        verdict = "ok" if c.passed else "outside" if c.because is not None else "**FAILED**"
        times = f"{c.fluid_us:.5g} | {c.packet_us:.5g} | {c.ratio:.3f}"
        lines.append(f"| {c.messages} | {c.paths} | {times} | {c.target} | {verdict} |")
    lines += ["", *(f"- {remark}" for remark in remarks(compared))]
    lines += ["", "## Against recorded runs of vLLM", "", AGAINST_VLLM, *recorded_runs]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_page(run_checks(), run_comparisons(), against.as_page()), encoding="utf-8")
