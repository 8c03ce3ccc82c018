"""Which metric answers a scenario's question, and which serving workloads gave none."""

from __future__ import annotations

from sim.results.metrics import meaning_of
from sim.results.run_results import RunResults

PREFERRED = (
    ("serving.", ".network_tax"),
    ("serving.", ".p99_itl_ms"),
    ("traffic.", ".completion_time_s"),
    ("traffic.", ".slowdown.p99"),
    ("traffic.", ".fct_s.p99"),
    ("collective.", ".completion_time_s"),
    ("training.", ".step_s.mean"),
)
"""Which metric answers, first match first, where the scenario does not say (`answer: <metric key>`)."""


def keys_with_values(run: RunResults) -> list[str]:
    """The metrics for which any variant has a value."""
    return [
        key
        for key in run.metric_keys()
        if any(value is not None for name in run.variants for value in run.values(name, key))
    ]


def main_metric(run: RunResults) -> str | None:
    """The key of the metric that answers the question; None when no variant has any value."""
    keys = keys_with_values(run)
    if run.answer in keys:
        return run.answer
    telling = [key for key in keys if not is_arrival_window(key, keys)]
    for start, end in PREFERRED:
        for key in telling:
            if key.startswith(start) and key.endswith(end):
                return key
    directed = [key for key in telling if meaning_of(key).better is not None]
    return next(iter(directed or telling), None)


def is_arrival_window(key: str, keys: list[str]) -> bool:
    """Whether a completion time says little: flows that arrive over time end when arrivals do.

    Such traffic is known by its slowdowns, which only open-loop workloads have.
    """
    start, found, _ = key.rpartition(".completion_time_s")
    return bool(found) and f"{start}.slowdown.p99" in keys


def network_tax_key(run: RunResults, key: str) -> str | None:
    """The tax that is this metric over an ideal fabric's, where it is known; None for all other metrics.

    It is a mean of ratios, seed by seed: beside it a ratio of means would be a second number for one thing.
    """
    tax = key.removesuffix(".p99_itl_ms") + ".network_tax"
    return tax if key.endswith(".p99_itl_ms") and tax in keys_with_values(run) else None


def unserved(run: RunResults) -> dict[str, str]:
    """Serving workloads of which no request was completed in any result, and what the results say of why."""
    out = {}
    for key in run.metric_keys():
        meaning = meaning_of(key)
        if meaning.kind != "serving" or meaning.name != "completed" or meaning.workload is None:
            continue
        counts = [v for name in run.variants for v in run.values(name, key) if v is not None]
        arrived = [v for name in run.variants for v in run.values(name, f"serving.{meaning.workload}.arrived")]
        if counts and not any(counts) and any(arrived):
            out[meaning.workload] = _reasons(run, meaning.workload)
    return out


def _reasons(run: RunResults, workload: str) -> str:
    said: dict[str, None] = {}
    for result in run.results.values():
        for warning in result.notes.get("warnings", ()):
            if str(warning).startswith((f"{workload}: ", "interrupted at", "cut at max_time")):
                said[str(warning).removeprefix(f"{workload}: ")] = None
    return "; ".join(said)
