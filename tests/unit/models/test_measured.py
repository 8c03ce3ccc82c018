"""Times of operators from small tables, by hand."""

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.cost.measured import Measured
from models.cost.priced import measured_step
from models.cost.provenance import Source
from models.cost.roofline import Roofline
from models.cost.step import chunk_seconds, step_seconds
from models.cost.table import table_of
from models.features import Feature, Operator, affine, elementwise, linear
from models.hardware import ACCELERATORS
from models.operators import routed_experts
from models.rerouting import Rerouting, rerouting_operator

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


def reroute(family: str, name: str, adapters: int, rows: int, us: float) -> dict:
    slots = {"slots": 8 + 2 * adapters} if family == "align" else {}
    return {"operator": family, "name": name, "top_k": 2, "num_experts": 8, "adapters": adapters, "rows": rows,
            "seconds": us * US, "commit": "abc"} | slots  # fmt: skip


REROUTES = [reroute("reroute", "eager", 4, n, 10 + n / 10) for n in (1, 101)] + [
    reroute("reroute", "kernel", 4, 1, 2), reroute("reroute", "kernel", 4, 101, 3),
    reroute("reroute", "kernel", 32, 1, 5), reroute("reroute", "kernel", 32, 101, 6),
    reroute("align", "plain", 4, 1, 3), reroute("align", "plain", 4, 101, 9),
    reroute("align", "reroute", 4, 1, 3.5), reroute("align", "reroute", 4, 101, 8.9),
]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "adapters", "us"),
    [("eager", 4, [10.1, 15.1, 20.1]), ("fused", 4, [2, 2.5, 3]), ("fused", 10, [2, 2.5, 3]),
     ("fused", 12, [5, 5.5, 6]), ("fused", 11, [2, 2.5, 3]), ("aligned", 4, [0.5, 0.25, 0])],
)  # fmt: skip
def test_rerouting_by_its_way_and_the_nearest_number_of_adapters(way, adapters, us):
    """10 adapters are nearer to 4 than to 32 by ratio, 12 are not. On the way of the alignment it takes the difference
    to a plain one, and never less than nothing."""
    operator = rerouting_operator(Rerouting(way, adapters), 2, 8)
    found = table(*REROUTES).by_rows(operator, [1, 51, 101], by_rows)
    assert found.seconds == pytest.approx(np.array(us) * US)
    known = Source.MEASURED if adapters == 4 else Source.INTERPOLATED
    assert found.source.tolist() == [known, Source.INTERPOLATED, known]


def test_rerouting_of_another_model_is_left_to_the_roofline():
    operator = rerouting_operator(Rerouting("eager", 4), 2, 16)
    assert table(*REROUTES).by_rows(operator, [1], by_rows) is None


def test_a_layer_with_experts_reroutes_once():
    """Of 26 such layers in DeepSeek-V2-Lite; the difference between two ways is theirs alone."""
    lite = ARCHITECTURES["deepseek-v2-lite"]
    rows = [row | {"top_k": 6, "num_experts": 64} for row in REROUTES]
    seconds = {}
    for way in ("eager", "fused"):
        step = measured_step(table(*rows), lite, ACCELERATORS["h100"], max_tokens=101, rerouting=Rerouting(way, 4))
        seconds[way] = step_seconds(step.table, 101, 0, 1, 101 * 102 / 2, 101, 0)
    assert seconds["eager"] - seconds["fused"] == pytest.approx(26 * (20.1 - 3) * US)


def test_experts_beside_a_grid_s_impossible_corners_are_inside():
    """Rows of 8 and 16, experts of 8 and 16: 16 experts cannot be touched by 8 rows, and 12 rows that touch 11 lie
    within the three points that there are."""
    points = [(8, 8, 10), (16, 8, 20), (16, 16, 40), (32, 8, 30), (32, 16, 50)]
    rows = [{"operator": "experts", "name": "pool", "precision": "bf16", "hidden": 4, "inner": 4, "top_k": 8,
             "num_experts": 16, "rows": n, "experts": e, "seconds": us * US} for n, e, us in points]  # fmt: skip
    experts, _ = table(*rows).experts(
        Operator("x", "experts", affine(), affine(), kind="experts", shape=(4, 4, 8, 16), precision="bf16")
    )
    found = experts.at(np.array([(12, 11), (20, 12)]), by_rows)
    assert set(found.source) == {Source.INTERPOLATED}
    assert 10 * US < found.seconds[0] < 40 * US


def test_experts_half_as_wide_keep_the_launch_and_halve_the_reading():
    """10 us to launch and 1 us for each MiB of experts that 8 rows touch: of half the width, half of that is read. What
    the rows themselves move is a fiftieth."""
    device = Roofline(ACCELERATORS["h100"], 1.0, 2**40 / ACCELERATORS["h100"].hbm_bytes_per_s, 0.0, {})
    wide, narrow = (routed_experts(2**10, inner, 8, 64, 3, "bf16") for inner in (2**10, 2**9))
    rows = [{"operator": "experts", "name": "pool", "precision": "bf16", "hidden": 2**10, "inner": 2**10, "top_k": 8,
             "num_experts": 64, "rows": 64, "experts": e, "seconds": 10e-6 + 6 * e * 2**20 / 2**40}
            for e in (8, 16, 64)]  # fmt: skip
    known, at = table(*rows), np.array([(64, 8), (64, 16), (64, 40)])
    assert known.experts(narrow) is None
    experts, name = known.experts(narrow, lambda operator: roof_of_experts(device, operator))
    found = experts.at(at, roof_of_experts(device, narrow))
    assert name == "pool" and set(found.source) == {Source.EXTRAPOLATED}
    assert found.seconds == pytest.approx(10e-6 + 3 * at[:, 1] * 2**20 / 2**40, rel=0.02)
    experts, _ = known.experts(wide, lambda operator: roof_of_experts(device, operator))
    assert experts.at(at[:2], by_rows).source.tolist() == [Source.IMPORTED, Source.IMPORTED]


def roof_of_experts(roofline: Roofline, operator: Operator):
    def seconds(points):
        x = np.zeros((len(points), len(Feature)))
        x[:, Feature.ONE] = 1
        x[:, Feature.EXPERT_ROWS], x[:, Feature.DISTINCT_EXPERTS] = points.T
        return roofline.seconds(operator, x)

    return seconds
