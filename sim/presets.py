"""Tables of what a scenario can name: policies, models, hardware, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from models.units import format_count, format_seconds
from sim.console import titled_table


def tables(name: str) -> list[Table]:
    """The tables of one kind of preset. Raises KeyError for another kind."""
    return _TABLES[name]()


def _policies() -> list[Table]:
    from sim.collectives.algorithms import ALGORITHMS
    from sim.fabric.policies import PATH_POLICIES
    from sim.serving.policies import BATCHING_POLICIES

    paths = titled_table("Path policies (paths.policy)", "name", "decides per", "what it does", "source")
    for policy in PATH_POLICIES.values():
        paths.add_row(policy.name, policy.decides, policy.summary, policy.source)
    batching = titled_table("Batching policies (serving: batching.policy)", "name", "what it does", "source")
    for name, function in BATCHING_POLICIES.items():
        batching.add_row(name, _first_sentence(function), _source(function))
    operations = titled_table("Collectives (collective: operation, algorithm)", "operation", "algorithms")
    by_operation: dict[str, list[str]] = {}
    for operation, algorithm in ALGORITHMS:
        by_operation.setdefault(operation, []).append(algorithm)
    for operation, names in by_operation.items():
        operations.add_row(operation, ", ".join(names))
    return [paths, batching, operations]


def _first_sentence(function: Any) -> str:
    text = " ".join((function.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".")


def _source(function: Any) -> str:
    """What the docstring says after "Source:"."""
    text = " ".join((function.__doc__ or "").split())
    return text.partition("Source: ")[2].split("; ")[0].rstrip(".") or _first_sentence(function).split(":")[0]


def _models() -> list[Table]:
    from models.architecture import ARCHITECTURES

    table = titled_table(
        "Models (serving: model; or the path of a Hugging Face config.json)",
        "name", "parameters", "active", "layers", "experts", "source",
    )  # fmt: skip
    for model in ARCHITECTURES.values():
        experts = (
            f"{model.experts.num_routed}, top {model.experts.top_k}" if model.experts is not None else "–"
        )
        table.add_row(
            model.name,
            format_count(model.num_parameters),
            format_count(model.num_active_parameters),
            str(model.num_layers),
            experts,
            model.source,
        )
    return [table]


def _hardware() -> list[Table]:
    from models.hardware import ACCELERATORS, NICS

    accelerators = titled_table(
        "Accelerators (cluster.host.accelerator)",
        "name", "memory GiB", "memory TB/s", "bf16 Tflop/s", "fp8 Tflop/s", "link GB/s", "link latency",
    )  # fmt: skip
    sources = titled_table("Where these numbers come from", "name", "number", "source")
    for device in ACCELERATORS.values():
        fp8 = device.fp8_flops_per_s
        accelerators.add_row(
            device.name,
            f"{device.hbm_bytes / 2**30:.1f}",
            f"{device.hbm_bytes_per_s / 1e12:.3g}",
            f"{device.bf16_flops_per_s / 1e12:.4g}",
            "–" if fp8 is None else f"{fp8 / 1e12:.4g}",
            f"{device.nvlink_bytes_per_s / 1e9:.4g}",
            format_seconds(device.nvlink_latency_s),
        )
        for number, source in device.sources.items():
            sources.add_row(device.name, number, source)
    nics = titled_table("NICs", "name", "Gbit/s", "source")
    for nic in NICS.values():
        nics.add_row(nic.name, f"{nic.bytes_per_s * 8 / 1e9:g}", nic.source)
    return [accelerators, sources, nics]


_TABLES: Mapping[str, Callable[[], list[Table]]] = {
    "policies": _policies,
    "models": _models,
    "hardware": _hardware,
}
