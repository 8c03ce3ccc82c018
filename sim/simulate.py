"""One run: a variant with one seed, from the built objects to its tables and metrics."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from simpy import AllOf

from sim.engine.recorder import Recorder
from sim.results.links import link_metrics, record_links, record_packets
from sim.results.run_results import VariantResult
from sim.scenario import build
from sim.scenario.schema import Scenario

Report = Callable[[float, float | None, int, float | None], None]
"""Told (simulated seconds, end if known, events, share done if known) now and then; may raise KeyboardInterrupt."""

SECONDS_BETWEEN_REPORTS = 0.1


class StalledError(RuntimeError):
    """Nothing can move any more, and somebody still waits; the text says who for what."""


def simulate(scenario: Scenario, seed: int, label: str, report: Report | None = None) -> VariantResult:
    """Simulate one variant with one seed to its end: every foreground workload done, or `max_time` reached.

    An interrupt (Ctrl-C) ends it early; the result then holds what happened until then and notes.partial.
    Raises StalledError when nothing can move any more, and the fabric's ConservationError when bytes vanished.
    """
    gc.collect()  # the previous one's parts refer to one another, and Python does not see how much hangs on them
    sim = build.build(scenario, seed)
    if report is not None:
        sim.clock.on_pause = _reporter(sim, report)
    if scenario.max_time_s is not None:
        sim.clock.cut_s = scenario.max_time_s
    sim.faults.start()
    foreground = [w for w in sim.workloads if not w.is_background]
    done = [w.start() for w in foreground]
    for workload in sim.workloads:
        if workload.is_background:
            workload.start()
    is_partial = False
    warnings: list[str] = list(sim.notes)
    try:
        finished = AllOf(sim.clock, done) if done else sim.clock.event()  # never: it ends at max_time
        limit = sim.clock.timeout(scenario.max_time_s) if scenario.max_time_s is not None else None
        sim.clock.run(until=finished if limit is None else finished | limit)
        if done and not finished.triggered:
            warnings.append(f"cut at max_time, {scenario.max_time_s:g} s, before every workload had ended")
            if scenario.faults:
                warnings += sim.fabric.waiting()
    except KeyboardInterrupt:
        is_partial = True
        warnings.append(f"interrupted at {sim.clock.now:.6g} s of simulated time")
    except RuntimeError as error:
        if "No scheduled events left" not in str(error):
            raise
        waiting = sim.fabric.waiting() or ["no message is under way: a workload waits for an event nobody triggers"]
        raise StalledError(f"{label}: nothing moves at {sim.clock.now:.6g} s: " + "; ".join(waiting)) from error
    recorder = Recorder()
    links = link_metrics(sim.topology, sim.fabric, sim.clock.now)
    record_links(recorder, sim.topology, sim.fabric, sim.clock.now)
    warnings += record_packets(recorder, sim.fabric)
    sim.faults.record(recorder)
    warnings += sim.faults.notes()
    if not is_partial:
        sim.fabric.settle()
    metrics: dict[str, float | int | None] = {}
    for workload in sim.workloads:
        metrics |= {f"{workload.kind}.{workload.name}.{key}": v for key, v in workload.metrics().items()}
        workload.record(recorder)
        warnings += [f"{workload.name}: {text}" for text in getattr(workload, "notes", list)()]
    sim.fabric.check_conservation()
    metrics |= links
    notes: dict[str, Any] = {"fidelity": scenario.fidelity, "warnings": warnings}
    if scenario.faults:
        notes["faults"] = sim.faults.rows()
    if serving := [w for w in sim.workloads if w.kind == "serving"]:
        notes["cost_sources"] = {"roofline": 1.0}
        notes["queues"] = {w.name: w.queue() for w in serving}
    if is_partial:
        notes["partial"] = True
    return VariantResult(label, seed, metrics, recorder.tables(), notes)


def _reporter(sim: build.Simulation, report: Report) -> Callable[[], None]:
    """What the clock calls when it pauses: reports, at most ten times a second."""
    reported_s = float("-inf")

    def report_now_and_then() -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= SECONDS_BETWEEN_REPORTS:
            report(sim.clock.now, sim.scenario.max_time_s, sim.fabric.num_events, _share_done(sim))
            reported_s = time.monotonic()

    return report_now_and_then


def _share_done(sim: build.Simulation) -> float | None:
    """How much of the run is behind us: of the workload that has most to do, or of max_time if that comes first."""
    shares = []
    progress = [w.progress for w in sim.workloads if not w.is_background]
    if progress:
        shares.append(min(done / total if total else 1.0 for done, total in progress))
    if sim.scenario.max_time_s is not None:
        shares.append(sim.clock.now / sim.scenario.max_time_s)
    return max(shares, default=None)
