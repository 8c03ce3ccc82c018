"""Which points to measure: those of our models, or those that a scenario needs; coarse ones before fine ones.

Shapes come from `models.operators` on the presets. Numbers along an axis are a fixed list; a quick grid takes fewer of
them and fewer models, and is the beginning of the whole one, so that a table cut short covers the whole range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from calibration.points import CEILINGS, PAGE_CALLS, Point, point
from models.architecture import ARCHITECTURES
from models.cost.needs import Limits, Need, need_of
from models.features import ACTIVATION_BYTES
from models.hardware import Precision
from models.operators import operators
from models.parallelism import Parallelism

__all__ = ["grid", "points_of", "tiny", "whole_needs"]


@dataclass(frozen=True, slots=True)
class Axis:
    """Places along an axis; `quick`: some of them."""

    whole: tuple[int, ...]
    quick: tuple[int, ...]

    def places(self, is_quick: bool) -> tuple[int, ...]:
        return self.quick if is_quick else self.whole

    def upto(self, most: int, is_quick: bool) -> list[int]:
        """The places below `most` and the first that is not; beyond the last one, each twice the one before."""
        places = list(self.places(is_quick))
        while places[-1] < most:
            places.append(2 * places[-1])
        return [place for before, place in zip([-1, *places], places, strict=False) if before < most]


ROWS = Axis((1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 1536, 2048, 4096, 8192, 16384),
            (1, 16, 128, 1024, 4096, 16384))  # fmt: skip
NORM_ROWS = Axis((1, 4, 16, 64, 256, 1024, 4096, 16384), (1, 64, 1024, 16384))
CHUNKS = Axis((1, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384), (1, 64, 512, 2048, 8192, 16384))
PREFIXES = Axis((0, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768), (0, 2048, 32768))
DECODES = Axis((1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 8, 64, 256))
CONTEXTS = Axis((16, 128, 512, 2048, 8192, 32768), (16, 512, 8192, 32768))
EXPERT_TOKENS = Axis((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384), (1, 16, 128, 1024, 16384))
PAIRED_TOKENS = Axis(tuple(2**n for n in range(17)), (1, 64, 1024, 65536))
PASS_BYTES = Axis((*(2**n for n in range(12, 32, 2)), 2**31), (2**12, 2**18, 2**24, 2**31))
COPY_BYTES = Axis(tuple(2**n for n in range(16, 29, 2)), (2**16, 2**22, 2**28))
PAGES = Axis(tuple(2**n for n in range(10)), (1, 64))

MOST_CACHE_BYTES = 2**34
"""Keys and values of one attention call: longer contexts of many sequences are left out."""
ADAPTERS, MOST_TUNED = Axis((1, 8, 32), (8,)), 13
"""Adapters, and slots kept for each: as ExpertWeave has them of DeepSeek-V2-Lite."""
NORMS = ("layernorm", "final_layernorm", "qk_norm", "latent_norm")
"""Elementwise operators with rows of their own. The others are priced as memory passes."""

QUICK_MODELS = {"llama-3.1-8b": (1,), "qwen3-30b-a3b": (1,), "deepseek-v2-lite": (1,)}
MODELS = {
    "llama-3.1-8b": (1, 2, 4), "llama-3.1-70b": (4,), "qwen3-30b-a3b": (1, 2), "qwen3-32b": (2,),
    "deepseek-v2-lite": (1,), "mixtral-8x7b": (2,),
}  # fmt: skip
"""Presets, and the tensor degrees whose shapes are measured."""
FP8_MODELS = {"llama-3.1-8b": (1,)}
PAIRED_MODELS = ("deepseek-v2-lite", "qwen3-30b-a3b")
"""Whose experts rerouting and alignment are measured on."""


def grid(is_quick: bool) -> list[Point]:
    """Ceilings, the quick grid, and then, unless it is all that is asked for, what the whole one has beyond it."""
    points = [*CEILINGS, *_level(True)]
    if not is_quick:
        points += _level(False)
    return list(dict.fromkeys(points))


def whole_needs(is_quick: bool) -> Iterator[Need]:
    """What our models need, in all their operators."""
    models = [(name, degree, "bf16") for name, degrees in (QUICK_MODELS if is_quick else MODELS).items()
              for degree in degrees]  # fmt: skip
    if not is_quick:
        models += [(name, degree, "fp8") for name, degrees in FP8_MODELS.items() for degree in degrees]
    for name, degree, weights in models:
        yield from model_needs(name, degree, "fp8" if weights == "fp8" else "bf16")


def model_needs(name: str, tensor: int, weights: Precision = "bf16", limits: Limits = Limits()) -> Iterator[Need]:  # noqa: B008 - frozen
    """What one preset needs, cut over `tensor` devices."""
    for operator in operators(ARCHITECTURES[name], Parallelism(tensor), weights):
        need = need_of(operator, "bf16", limits)
        if need is not None:
            yield need


def _level(is_quick: bool) -> Iterator[Point]:
    needs = list(dict.fromkeys(whole_needs(is_quick)))
    for kind in POINTS_OF:  # family by family: inputs of like points are made once
        for need in needs:
            if need.kind == kind:
                yield from points_of(need, is_quick)
    yield from _adapters(is_quick)
    yield from _passes(2**31, is_quick)
    yield from _host_copies(is_quick)
    yield from (point("page_call", name, pages=n) for n in PAGES.places(is_quick) for name in PAGE_CALLS)


def points_of(need: Need, is_quick: bool = False) -> Iterator[Point]:
    """The points that cover a need; none for what one device cannot measure."""
    if need.kind in POINTS_OF:
        yield from POINTS_OF[need.kind](need, is_quick)


def _linear(need: Need, is_quick: bool) -> Iterator[Point]:
    inputs, outputs = need.shape
    for rows in ROWS.upto(need.most_rows, is_quick):
        yield point("linear", "", need.precision, inputs=inputs, outputs=outputs, rows=rows)


def _elementwise(need: Need, is_quick: bool) -> Iterator[Point]:
    (numbers,) = need.shape
    if need.name in NORMS:
        for rows in NORM_ROWS.upto(need.most_rows, is_quick):
            yield point("elementwise", need.name, numbers=numbers, rows=rows)
    else:
        yield from _passes(numbers * need.most_rows * ACTIVATION_BYTES, is_quick)


def _passes(most_bytes: int, is_quick: bool) -> Iterator[Point]:
    for size in PASS_BYTES.upto(min(most_bytes, 2**31), is_quick):
        yield point("memory_pass", "copy", size_bytes=size)


def _feed_forward(need: Need, is_quick: bool) -> Iterator[Point]:
    """As `Measured` prices it: two products and a pass."""
    hidden, inner, matrices = need.shape
    wide = (matrices - 1) * inner
    for shape in ((hidden, wide), (inner, hidden)):
        yield from _linear(Need("linear", "", need.precision, shape, need.most_rows), is_quick)
    yield from _passes((wide + inner) * need.most_rows * ACTIVATION_BYTES, is_quick)


def _attention(need: Need, is_quick: bool) -> Iterator[Point]:
    heads, kv_heads, head_dim = need.shape
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    for chunk in CHUNKS.upto(need.most_rows, is_quick):
        for prefix in PREFIXES.upto(need.most_context, is_quick):
            yield point("attention", "sdpa", need.precision, **shape, chunk=chunk, prefix=prefix, decodes=0, context=0)
    for context in CONTEXTS.upto(need.most_context, is_quick):
        for decodes in DECODES.upto(need.most_seqs, is_quick):
            if decodes * context * 2 * kv_heads * head_dim * ACTIVATION_BYTES <= MOST_CACHE_BYTES:
                yield point("attention", "sdpa", need.precision, **shape, chunk=0, prefix=0, decodes=decodes,
                            context=context)  # fmt: skip


def _experts(need: Need, is_quick: bool) -> Iterator[Point]:
    """Over the pool from a token's own experts touched to all; the other kernels where as many as can are."""
    hidden, inner, top_k, num_experts = need.shape
    least = min(top_k, num_experts)
    for tokens in EXPERT_TOKENS.upto(need.most_rows, is_quick):
        rows = tokens * least
        most = min(rows, num_experts)
        between = (least * 2**n for n in range(0, 8, 3 if is_quick else 1))
        touched = {most} | {experts for experts in between if experts < most}
        for experts in sorted(touched):
            yield point("experts", "pool", need.precision, hidden=hidden, inner=inner, top_k=top_k,
                        num_experts=num_experts, rows=rows, experts=experts)  # fmt: skip


def _other_kernels(is_quick: bool) -> Iterator[Point]:
    """The padded twin and PyTorch's grouped product, with every expert touched that can be."""
    for need in dict.fromkeys(whole_needs(is_quick)):
        if need.kind == "experts" and need.precision == "bf16":
            largest: dict[int, Point] = {}
            for each in _experts(need, is_quick):
                largest[each.columns["rows"]] = each
            for name in ("padded", "grouped"):
                for each in largest.values():
                    yield Point("experts", name, each.precision, each.numbers)


def _adapters(is_quick: bool) -> Iterator[Point]:
    """Experts' other kernels; rerouting by its own kernel and by PyTorch; alignment with it on the way and without;
    experts of a pool with adapters, all its slots touched."""
    yield from _other_kernels(is_quick)
    tokens = PAIRED_TOKENS.places(is_quick)
    for name in PAIRED_MODELS:
        experts = ARCHITECTURES[name].experts
        assert experts is not None, "a model with experts"
        shape = {"top_k": experts.top_k, "num_experts": experts.num_routed}
        for adapters in ADAPTERS.places(is_quick):
            for way in ("kernel", "eager"):
                yield from (point("reroute", way, **shape, adapters=adapters, rows=n) for n in tokens)
            slots = experts.num_routed + adapters * MOST_TUNED
            for way in ("plain", "reroute"):
                yield from (point("align", way, **shape, adapters=adapters, slots=slots, rows=n) for n in tokens)
        slots = experts.num_routed + ADAPTERS.quick[0] * MOST_TUNED
        need = Need("experts", "", "bf16", (ARCHITECTURES[name].hidden_size, experts.ffn_size, experts.top_k, slots),
                    EXPERT_TOKENS.whole[-1])  # fmt: skip
        yield from (p for p in _experts(need, is_quick) if p.columns["experts"] > experts.num_routed)


def _host_copies(is_quick: bool) -> Iterator[Point]:
    """Of experts as a host keeps them, and of other sizes."""
    sizes = {2 * architecture.expert_parameters for architecture in ARCHITECTURES.values() if architecture.experts}
    for size in sorted({*COPY_BYTES.places(is_quick), *sizes}):
        yield point("host_copy", size_bytes=size)


def _rerouting(need: Need, is_quick: bool) -> Iterator[Point]:
    """Of as many experts and adapters, in one way."""
    top_k, num_experts, adapters = need.shape
    shape = {"top_k": top_k, "num_experts": num_experts, "adapters": adapters}
    for rows in PAIRED_TOKENS.upto(need.most_rows, is_quick):
        if need.kind == "reroute_aligned":
            slots = num_experts + adapters * MOST_TUNED
            yield from (point("align", way, **shape, slots=slots, rows=rows) for way in ("plain", "reroute"))
        else:
            yield point("reroute", "eager" if need.kind == "reroute_eager" else "kernel", **shape, rows=rows)


POINTS_OF: dict[str, Callable[[Need, bool], Iterable[Point]]] = {
    "linear": _linear, "attention": _attention, "experts": _experts, "feed_forward": _feed_forward,
    "elementwise": _elementwise, **dict.fromkeys(("reroute_eager", "reroute_fused", "reroute_aligned"), _rerouting),
}  # fmt: skip


def tiny() -> list[Point]:
    """Each family once in each way, so small that a CPU runs it."""
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    routed = {"top_k": 3, "num_experts": 8, "adapters": 2}
    expert = {"hidden": 64, "inner": 48, "top_k": 3, "num_experts": 8}
    return [
        *(point("linear", "", precision, inputs=64, outputs=32, rows=16) for precision in ("bf16", "fp8")),
        point("memory_pass", "copy", size_bytes=4096),
        point("attention", "sdpa", **heads, chunk=8, prefix=0, decodes=0, context=0),
        point("attention", "sdpa", **heads, chunk=8, prefix=5, decodes=0, context=0),
        point("attention", "sdpa", **heads, chunk=0, prefix=0, decodes=3, context=9),
        *(point("experts", name, **expert, rows=15, experts=7) for name in ("pool", "padded", "grouped")),
        point("experts", "pool", **expert, rows=4, experts=2),
        *(point("elementwise", name, numbers=1024, rows=3) for name in NORMS),
        *(point("reroute", name, **routed, rows=20) for name in ("kernel", "eager")),
        *(point("align", name, **routed, slots=14, rows=rows) for name in ("plain", "reroute") for rows in (5, 400)),
        point("host_copy", size_bytes=4096),
        *(point("page_call", name, pages=2) for name in PAGE_CALLS),
    ]
