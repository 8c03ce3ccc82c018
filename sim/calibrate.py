"""`spindle calibrate --out FILE` and `--for SCENARIO`: what is to be measured, and the process that measures it.

Torch is imported there, never here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from models.cost.needs import Limits, Need, need_of, needs_to_json, reason_against
from models.cost.priced import PricedStep, measured_step
from models.cost.provenance import Source
from models.cost.step import BY_CURVE, BY_EXPERTS, BY_PREFILL, BY_ROOFLINE, PRICED_BY
from models.cost.table import CostTable
from models.features import Operator
from models.operators import operators
from sim.engine.random import RandomStreams
from sim.scenario.build import build_topology, check
from sim.scenario.build_server import Server
from sim.scenario.cost_table import table_path
from sim.scenario.load import LoadedScenario, load_scenario
from sim.scenario.serving import Serving

__all__ = ["Wanted", "command", "measure", "wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a scenario's tables lack.

    needs      operators that no row covers
    left_out   (operator, why measuring would not help)
    tables     names of the scenario's tables
    """

    needs: tuple[Need, ...]
    left_out: tuple[tuple[str, str], ...]
    tables: tuple[str, ...]


def command(
    out: Path | None, needed_by: Path | None, quick: bool, seconds: float | None, hash_of_commit: str | None
) -> int:
    """`spindle calibrate` where it measures: the exit code of the process that does; lists points where out is None."""
    found = None
    if needed_by is not None:
        loaded = load_scenario(needed_by, [], False, None, None)
        check(loaded)
        found = wanted(loaded)
        for name, reason in found.left_out:
            sys.stderr.write(f"{name}: left out, {reason}\n")
    options = ["--list"] if out is None else ["--out", str(out), "--commit", hash_of_commit or commit()]
    options += ["--quick"] if quick else []
    options += ["--seconds", str(seconds)] if seconds is not None else []
    return measure(options, found)


def wanted(loaded: LoadedScenario) -> Wanted:
    """What no row covers, of all serving workloads of all variants.

    An operator is covered where its times come from rows. A size beyond the last row is not covered, except where the
    rows are another project's: kernels must not mix along a line.
    """
    needs: dict[Need, None] = {}
    left_out: dict[tuple[str, str], None] = {}
    tables: dict[str, None] = {}
    for _, scenario in loaded.variants:
        topology = build_topology(scenario.cluster)
        if scenario.cost.table is not None:
            tables[scenario.cost.table] = None
        for w in scenario.workloads:
            if isinstance(w, Serving):
                found = [_of_server(server) for _, server in Server(scenario, w, topology).pools]
                for operator, need in chain.from_iterable(found):
                    reason = reason_against(operator)
                    if need is not None:
                        needs[need] = None
                    elif reason is not None:
                        left_out[operator.name, reason] = None
    return Wanted(tuple(needs), tuple(left_out), tuple(tables))


def _of_server(server: Server) -> Iterator[tuple[Operator, Need | None]]:
    """Operators that no row covers."""
    w = server.w
    _, prompt, output = server.requests(RandomStreams(server.scenario.seed))
    costs, known = server.costs(prompt, output), server.measured()
    context = int(prompt.max() + output.max())
    beside = w.batching.max_num_seqs if w.batching.policy == "orca" else 0  # decodes that a whole prompt joins
    largest_prompt = 1 if w.batching.is_chunked else int(prompt.max()) + beside
    limits = Limits(max(w.batching.max_num_batched_tokens, w.batching.max_num_seqs, largest_prompt),
                    w.batching.max_num_seqs, min(context, server.architecture.max_positions or context))  # fmt: skip
    kv = w.precision.kv
    built = operators(server.architecture, server.parallelism, server.weights, kv, server.rerouting)
    if known is None:
        yield from ((operator, need_of(operator, kv, limits)) for operator in built)
        return
    priced = measured_step(known, server.architecture, server.accelerator, server.parallelism, **costs,
                           max_seqs=limits.seqs, max_context=context)  # fmt: skip
    for o, operator in enumerate(built):
        need = need_of(operator, kv, limits)
        if operator.name not in priced.includes and not _is_covered(priced, o, need, known.table):
            yield operator, need


def _is_covered(priced: PricedStep, o: int, need: Need | None, table: CostTable) -> bool:
    by = priced.table.tags[o, PRICED_BY]
    if by == BY_ROOFLINE or need is None:
        return by != BY_ROOFLINE
    families = {"elementwise": ("elementwise", "memory_pass"), "feed_forward": ("linear", "memory_pass")}
    rows = table.rows[table.rows["operator"].isin(families.get(need.kind, (need.kind,)))]
    if by == BY_EXPERTS or (rows["commit"] == "").any():
        return True
    if by == BY_CURVE:
        sources = priced.sources[o]
        assert sources is not None, "curves have sources"
        return not (sources[1 : need.most_rows + 1] == Source.EXTRAPOLATED).any()
    attention = priced.table.attention
    if by == BY_PREFILL:
        return bool(attention.limits[0] >= need.most_rows and attention.limits[2] >= need.most_context)
    return bool(np.min(attention.decode_limit[1 : need.most_seqs + 1]) >= need.most_context)


def measure(options: Sequence[str], found: Wanted | None = None) -> int:
    """Run `python -m calibration.measure` with these options and, where a scenario asks, its needs; its exit code.

    Its table completes the scenario's where that has one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "calibration.measure", *options]
        if found is not None:
            needs = Path(folder) / "needs.json"
            needs.write_text(needs_to_json(found.needs), encoding="utf-8")
            command += ["--needs", str(needs)]
            if len(found.tables) == 1:
                command += ["--known", str(table_path(found.tables[0]))]
        child = subprocess.Popen(command)
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue  # the child has it as well: it keeps what it has, and ends


def commit() -> str:
    """Of this checkout, with a mark where files have changed; "unknown" where it is none."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return "unknown"
    asked = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
