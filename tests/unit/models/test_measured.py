"""Times of operators from small tables, by hand."""

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.cost.measured import Measured
from models.cost.priced import measured_step
from models.cost.provenance import Source
from models.cost.step import chunk_seconds, step_seconds
from models.cost.table import table_of
from models.features import Operator, affine, elementwise, linear
from models.hardware import ACCELERATORS

COMMON = {"unit": "s", "gpu": "NVIDIA H100", "source": "a test"}
US = 1e-6


def table(*rows: dict) -> Measured:
    return Measured(table_of([COMMON | row for row in rows], "here"))


def product(inputs: int, outputs: int, rows: int, us: float, **more) -> dict:
    return {"operator": "linear", "precision": "bf16", "inputs": inputs, "outputs": outputs, "rows": rows,
            "seconds": us * US} | more  # fmt: skip


def by_rows(points):
    return points[:, 0]


GRID = [product(i, o, n, (i + o) / 100 + n) for i in (100, 200, 400) for o in (100, 200, 400) for n in (1, 9)]
"""Time is a plane: (inputs + outputs) / 100 us and 1 us a row."""


def test_a_shape_of_its_own_and_one_between_shapes():
    known = table(*GRID)
    own = known.by_rows(linear("x", "s", 100, 200, "bf16"), [1, 5, 9, 18], by_rows)
    assert own.seconds == pytest.approx(np.array([4, 8, 12, 24]) * US)
    assert own.source.tolist() == [Source.IMPORTED, Source.INTERPOLATED, Source.IMPORTED, Source.EXTRAPOLATED]
    between = known.by_rows(linear("x", "s", 150, 300, "bf16"), [1, 5, 9], by_rows)
    assert between.seconds == pytest.approx(np.array([5.5, 9.5, 13.5]) * US)
    assert set(between.source) == {Source.INTERPOLATED}
    assert known.by_rows(linear("x", "s", 100, 200, "fp8"), [1], by_rows) is None


def test_wider_than_any_is_several_side_by_side_and_narrower_is_the_narrowest():
    known = table(*GRID)
    wide = known.by_rows(linear("lm_head", "s", 100, 700, "bf16"), [1, 9], by_rows)
    assert wide.seconds == pytest.approx(2 * np.array([5.5, 13.5]) * US)  # two of 350
    assert set(wide.source) == {Source.INTERPOLATED}
    narrow = known.by_rows(linear("router", "s", 100, 8, "bf16"), [1], by_rows)
    assert narrow.seconds == pytest.approx([3 * US]) and narrow.source.tolist() == [Source.EXTRAPOLATED]


def test_a_named_kernel_goes_before_another_of_its_shape():
    known = table(product(8, 8, 1, 5, name="o_proj"), product(8, 8, 1, 9, name="q_proj"))
    assert known.by_rows(linear("o_proj", "s", 8, 8, "bf16"), [1], by_rows).seconds == pytest.approx([5 * US])


def test_a_pass_without_a_row_takes_what_as_many_bytes_take():
    """100 numbers of 2 bytes: 4 rows are 800 bytes, 2.4 us on the line; below 400 bytes it is the launch, 2 us."""
    known = table(
        {"operator": "memory_pass", "size_bytes": 400, "seconds": 2 * US},
        {"operator": "memory_pass", "size_bytes": 1400, "seconds": 3 * US},
        {"operator": "elementwise", "name": "layernorm", "numbers": 100, "rows": 4, "seconds": 7 * US},
    )
    found = known.by_rows(elementwise("act_fn", "s", 100, 0), [1, 4, 14], by_rows)
    assert found.seconds == pytest.approx(np.array([2, 2.4, 6]) * US)
    assert found.source.tolist() == [Source.INTERPOLATED, Source.INTERPOLATED, Source.EXTRAPOLATED]
    assert known.by_rows(elementwise("layernorm", "s", 100, 0), [4], by_rows).seconds == pytest.approx([7 * US])


def test_the_custom_all_reduce_goes_before_the_library():
    rows = [{"operator": "all_reduce", "name": name, "ranks": 2, "size_bytes": size, "seconds": us * US}
            for name, size, us in (("nccl", 64, 9), ("custom", 64, 4), ("custom", 192, 8))]  # fmt: skip
    operator = Operator("tensor_all_reduce", "s", affine(), affine(), kind="all_reduce", shape=(2, 64))
    assert table(*rows).by_rows(operator, [1, 2, 3], by_rows).seconds == pytest.approx(np.array([4, 6, 8]) * US)
    other = Operator("tensor_all_reduce", "s", affine(), affine(), kind="all_reduce", shape=(4, 64))
    assert table(*rows).by_rows(other, [1], by_rows) is None


def attention(chunk: int, prefix: int, decodes: int, context: int, us: float) -> dict:
    return {"operator": "attention", "precision": "bf16", "heads": 32, "kv_heads": 8, "head_dim": 128, "chunk": chunk,
            "prefix": prefix, "decodes": decodes, "context": context, "seconds": us * US}  # fmt: skip


def llama(*rows: dict):
    return measured_step(table(*rows), ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h100"], max_tokens=64, max_seqs=8,
                         max_context=512)  # fmt: skip


DECODES = [attention(0, 0, n, k, 2 * n + k / 100) for n in (1, 8) for k in (100, 500)]


def test_a_chunk_after_a_prefix_where_only_whole_prompts_were_measured():
    """Whole prompts take the square of their length: so does the share of the pairs, to half a token."""
    step = llama(*DECODES, *(attention(n, 0, 0, 0, n**2 / 64) for n in (8, 16, 32, 64)))
    found = chunk_seconds(step.table.attention, 16, 48)
    assert found == pytest.approx(64 * US * (16 * 48 + 16 * 17 / 2) / (64 * 65 / 2), rel=1e-6)
    assert chunk_seconds(step.table.attention, 64, 0) == pytest.approx(64 * US)
    assert step.table.attention.extra.size == 0


def test_a_step_adds_up_measured_attention_layer_by_layer():
    """Four decodes of 300: between 1 and 8, and 100 and 500, on the plane: 8 + 3 us in each of 32 layers."""
    with_it = llama(*DECODES, attention(8, 0, 0, 0, 10), attention(64, 0, 0, 0, 80)).table
    nothing = with_it._replace(weight=np.where(with_it.tags[:, 3] == 3, 0.0, with_it.weight))
    at = with_it.attention
    segment = at.segment[300]
    line = at.decode_at_0[4, segment] + at.decode_slope[4, segment] * 300
    assert 4 * line == pytest.approx(11 * US)
    args = (4.0, 4.0, 4.0, 0.0, 0.0, 1200.0, 0.0, 4 * line)
    assert step_seconds(with_it, *args) - step_seconds(nothing, *args) == pytest.approx(32 * 11 * US)


def test_a_curve_prices_only_what_runs_on_tokens_or_sequences():
    """DeepSeek's kv_b_proj expands the keys that prefill reads, and the weighted sum runs on expert rows: even where
    rows of their shape are there, tokens do not say how long they take."""
    lite = ARCHITECTURES["deepseek-v2-lite"]
    rows = [product(512, 4096, n, 50) for n in (1, 64)] + [product(2048, 3072, n, 50) for n in (1, 64)]
    memory = [{"operator": "memory_pass", "size_bytes": size, "seconds": US} for size in (64, 640_000)]
    step = measured_step(table(*rows, *memory), lite, ACCELERATORS["h100"], max_tokens=64)
    priced = {o.name: int(by) for o, by in zip(step.operators, step.table.tags[:, 3], strict=True)}
    assert (priced["q_proj"], priced["latent_norm"]) == (1, 1)
    assert (priced["kv_b_proj"], priced["expert_combine"], priced["attention_decode"]) == (0, 0, 0)


def test_decodes_beyond_what_was_measured_with_so_many_are_outside():
    """Eight decodes were measured up to 500, one up to 2000: between the two, eight of 900 lie outside, and two of 500
    do not."""
    step = llama(*DECODES, attention(0, 0, 1, 2000, 30), attention(8, 0, 0, 0, 10), attention(64, 0, 0, 0, 80))
    assert step.table.attention.decode_limit[[1, 2, 8]].tolist() == [2000, 500, 500]


def test_experts_are_pooled_over_the_ranks_that_hold_few_and_many():
    """A rank that holds 64 was measured on 64 touched experts, one that holds 128 on 128; between them, 96."""
    def experts(num: int, rows: int, touched: int, us: float) -> dict:
        return {"operator": "experts", "name": "fused_moe", "precision": "bf16", "hidden": 2048, "inner": 768,
                "top_k": 8, "num_experts": num, "rows": rows, "experts": touched, "seconds": us * US}  # fmt: skip

    known = table(*(experts(n, rows, n, n) for n in (64, 128) for rows in (128, 512)))
    operator = Operator("routed_experts", "experts", affine(), affine(), kind="experts", shape=(2048, 768, 8, 128))
    times, name = known.experts(operator)
    found = times.at([[128, 64], [256, 96], [512, 128]], by_rows)
    assert name == "fused_moe"
    assert found.seconds == pytest.approx(np.array([64, 96, 128]) * US, rel=0.02)
    assert Source.EXTRAPOLATED not in found.source


def test_experts_are_priced_by_one_kernel_an_engine_s_first():
    """Of kernels for one shape "moe" counts, without it "fused_moe", then our own over the pool; never a mixture."""
    def rows(name: str, us: float) -> list[dict]:
        return [{"operator": "experts", "name": name, "precision": "bf16", "hidden": 2048, "inner": 768, "top_k": 8,
                 "num_experts": 128, "rows": n, "experts": 64, "seconds": us * US} for n in (64, 128)]  # fmt: skip

    operator = Operator("routed_experts", "experts", affine(), affine(), kind="experts", shape=(2048, 768, 8, 128))
    there = [("strange", 6.0), ("grouped", 5.0), ("padded", 4.0), ("pool", 3.0), ("fused_moe", 2.0), ("moe", 1.0)]
    while there:
        times, name = table(*(row for each in there for row in rows(*each))).experts(operator)
        expected = there.pop()
        assert name == expected[0]
        assert times.fit.seconds.tolist() == pytest.approx([expected[1] * US] * 2)
