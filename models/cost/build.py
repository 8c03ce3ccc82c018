"""From an architecture and a device to the compiled tables of `models.cost.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from models.cost.provenance import Source
from models.cost.roofline import Roofline
from models.cost.step import StepTable, roofline_table
from models.experts import Popularity, expected_distinct
from models.features import Feature
from models.hardware import Accelerator, Precision
from models.operators import STAGES, Operator, operators, stage_repeats
from models.parallelism import Parallelism, ParallelismError
from models.rerouting import Rerouting
from models.touched import AdapterMix

__all__ = ["check_scale", "compiled", "factors", "operator_names", "operator_scale", "stage_tables", "step_table"]


def step_table(
    architecture: Architecture,
    accelerator: Accelerator,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    weights: Precision = "bf16",
    kv: Precision = "bf16",
    compute_efficiency: float = 1.0,
    memory_efficiency: float = 1.0,
    fixed_s: float = 0.0,
    scale: Mapping[str, float] | None = None,
    popularity: Popularity | None = None,
    max_tokens: int = 8192,
    rerouting: Rerouting | None = None,
    mix: AdapterMix | None = None,
) -> StepTable:
    """The whole step of one replica as one table, all its layers included.

    popularity: how tokens choose experts, uniform where None; max_tokens: the most tokens a step of a model
    with experts may have; rerouting, mix: of the adapters over it.
    Rows are named by `operator_names`. Efficiencies, fixed_s and scale as in `Roofline`.

    Leaves out: differences of popularity between layers (the mean of their distinct experts is used).
    Raises ParallelismError for expert parallelism, whose steps are built from `stage_tables`, and where the
    model does not divide; ValueError for an efficiency out of range or a name in `scale` that covers no operator.
    """
    if parallelism.expert > 1:
        raise ParallelismError(
            f"expert degree {parallelism.expert}: a step across ranks has no single table, use stage_tables"
        )
    built = operators(architecture, parallelism, weights, kv, rerouting)
    roofline = Roofline(accelerator, compute_efficiency, memory_efficiency, fixed_s, factors(scale, built))
    repeats = stage_repeats(architecture, parallelism.pipeline)
    distinct = distinct_lookup(architecture, popularity, max_tokens)
    table = compiled(built, roofline, [repeats[o.stage] for o in built], architecture, distinct)
    return table if mix is None else table._replace(mix=mix)


def stage_tables(
    architecture: Architecture,
    accelerator: Accelerator,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    weights: Precision = "bf16",
    kv: Precision = "bf16",
    compute_efficiency: float = 1.0,
    memory_efficiency: float = 1.0,
    fixed_s: float = 0.0,
    scale: Mapping[str, float] | None = None,
    popularity: Popularity | None = None,
    max_tokens: int = 8192,
    rerouting: Rerouting | None = None,
) -> dict[str, StepTable]:
    """One table per stage of the step on one rank, each for one pass of that stage.

    The stages are those of `models.features.STAGES` that the model has; a step passes each
    `stage_repeats(architecture)` times. All but "experts" go through `step_seconds` with the rank's own
    tokens, "experts" through `expert_seconds` with what the rank received.
    With expert degree 1 the stages times their repeats sum to `step_table`'s time.

    Arguments and errors as for `step_table`, expert parallelism allowed.
    """
    built = operators(architecture, parallelism, weights, kv, rerouting)
    roofline = Roofline(accelerator, compute_efficiency, memory_efficiency, fixed_s, factors(scale, built))
    distinct = distinct_lookup(architecture, popularity, max_tokens)
    tables = {}
    for stage in STAGES:
        part = [operator for operator in built if operator.stage == stage]
        if part:
            tables[stage] = compiled(part, roofline, [1] * len(part), architecture, distinct)
    return tables


def operator_names(
    architecture: Architecture,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    stage: str | None = None,
    rerouting: Rerouting | None = None,
) -> tuple[str, ...]:
    """Names of a table's rows, in order: of the whole step, or of one stage.

    A name may occur in several rows (an all-reduce after attention and one after the feed-forward).
    """
    built = operators(architecture, parallelism, rerouting=rerouting)
    return tuple(operator.name for operator in built if stage is None or operator.stage == stage)


def factors(scale: Mapping[str, float] | None, built: Sequence[Operator]) -> dict[str, float]:
    """`scale` by operator. Raises ValueError for a name that covers none of them."""
    names = [operator.name for operator in built]
    check_scale(scale or {}, names)
    return operator_scale(scale or {}, names)


def operator_scale(scale: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The factor of each of the operators `names` that `scale` covers, by its own name or by its family's.

    A name covers the operator so called and those that go on after an underscore: "attention" covers
    attention_decode and attention_prefill. The longest name that covers an operator decides.
    """
    factors: dict[str, float] = {}
    for name in sorted(scale, key=len):
        factors |= dict.fromkeys(_covered(name, names), scale[name])
    return factors


def _covered(name: str, names: Sequence[str]) -> list[str]:
    return [operator for operator in names if operator == name or operator.startswith(f"{name}_")]


def query_shares(
    architecture: Architecture,
    accelerator: Accelerator,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    kv: Precision = "bf16",
    compute_efficiency: float = 1.0,
    memory_efficiency: float = 1.0,
) -> tuple[float, float]:
    """(arithmetic, bytes) of one decode's attention over its context, as times, the larger being 1.

    n queries over one context that is read once take max(n · arithmetic, bytes) times what one takes.
    """
    roofline = Roofline(accelerator, compute_efficiency, memory_efficiency)
    decode = next(o for o in operators(architecture, parallelism, kv=kv) if o.name == "attention_decode")
    flops_s = decode.flops[Feature.DECODE_CONTEXT] / roofline.flops_per_s(decode)
    bytes_s = decode.bytes[Feature.DECODE_CONTEXT] / roofline.bytes_per_s(decode)
    return flops_s / max(flops_s, bytes_s), bytes_s / max(flops_s, bytes_s)


def check_scale(scale: Mapping[str, float], names: Sequence[str]) -> None:
    """Raises ValueError for a name in `scale` that covers none of the operators `names`, with the nearest."""
    for name in scale:
        if not _covered(name, names):
            families = {operator.partition("_")[0] for operator in names if "_" in operator}
            near = get_close_matches(name, sorted({*names, *families}), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"operators: {', '.join(sorted(set(names)))}"
            raise ValueError(f"unknown operator {name!r} in scale; {hint}")


def distinct_lookup(
    architecture: Architecture, popularity: Popularity | None, max_tokens: int
) -> NDArray[np.float64]:
    """[max_tokens + 1] expected distinct experts of so many tokens in a layer, the mean over the layers."""
    experts = architecture.experts
    if experts is None:
        return np.zeros(1)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if popularity is None:
        popularity = Popularity.uniform(experts.num_routed, experts.top_k)
    popularity.check(experts)
    return expected_distinct(popularity, np.arange(max_tokens + 1)).mean(axis=0)


def compiled(
    built: Sequence[Operator],
    roofline: Roofline,
    repeats: Sequence[int],
    architecture: Architecture,
    distinct: NDArray[np.float64],
) -> StepTable:
    """The table of these operators, each as often as `repeats` says; distinct: as StepTable.distinct_experts."""
    calls = np.array([o.calls * n for o, n in zip(built, repeats, strict=True)], dtype=np.float64)
    return roofline_table(
        work=np.array([(o.flops, o.bytes) for o in built]),
        rates=np.array([(roofline.flops_per_s(o), roofline.bytes_per_s(o)) for o in built]),
        fixed_s=np.array([roofline.fixed_s_of(o) for o in built]),
        weight=calls * np.array([roofline.scale_of(o) for o in built]),
        tags=np.array([(int(o.runs_on), int(o.is_communication), int(Source.ROOFLINE)) for o in built]),
        distinct_experts=distinct,
        top_k=float(architecture.experts.top_k) if architecture.experts else 0.0,
    )
