"""Compiled tables against the plain estimate of each operator, and against hand-made sums."""

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.cost.build import operator_names, operator_scale, stage_tables, step_table
from models.cost.provenance import Source
from models.cost.roofline import Roofline
from models.cost.step import SOURCE, expert_seconds, operator_seconds, step_parts, step_seconds
from models.experts import Popularity, expected_distinct
from models.hardware import ACCELERATORS
from models.operators import operators, stage_repeats
from models.parallelism import Parallelism, ParallelismError

LLAMA = ARCHITECTURES["llama-3.1-8b"]
LITE = ARCHITECTURES["deepseek-v2-lite"]
A100 = ACCELERATORS["a100"]
H200 = ACCELERATORS["h200"]

DECODE = (8.0, 8.0, 8.0, 0.0, 0.0, 8000.0)
MIXED = (72.0, 8.0, 9.0, 64.0 * 100 + 64 * 65 / 2, 164.0, 8000.0)


def test_one_decode_of_llama_reads_the_weights():
    """All weights but the embedding, 15.01 GB at 2,039 GB/s: 7.36 ms; the rest adds under 0.5 %."""
    weights_s = 2 * (LLAMA.num_parameters - 128_256 * 4096) / 2.039e12
    assert weights_s == pytest.approx(7.36e-3, rel=1e-3)
    step_s = step_seconds(step_table(LLAMA, A100), 1.0, 1.0, 1.0, 0.0, 0.0, 100.0)
    assert weights_s < step_s < 1.005 * weights_s


def test_a_large_prefill_computes():
    """2,048 tokens at half of 312 TFLOPS: 2 · 6.98 G layer weights each, and the attention's pairs."""
    linear = 2 * 2048 * 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    pairs = 2048 * 2049 / 2
    compute_s = (linear + 32 * 4 * 4096 * pairs) / 156e12
    table = step_table(LLAMA, A100, compute_efficiency=0.5)
    step_s = step_seconds(table, 2048.0, 0.0, 1.0, pairs, 2048.0, 0.0)
    assert compute_s < step_s < 1.06 * compute_s


@pytest.mark.parametrize("batch", [DECODE, MIXED])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiled_equals_plain(name, batch):
    architecture = ARCHITECTURES[name]
    roofline = Roofline(H200, 0.7, 0.8, 2e-6, {"lm_head": 0.5})
    table = step_table(
        architecture,
        H200,
        compute_efficiency=0.7,
        memory_efficiency=0.8,
        fixed_s=2e-6,
        scale={"lm_head": 0.5},
        max_tokens=100,
    )
    x = [1.0, *batch, 0.0, 0.0]
    if architecture.experts:
        popularity = Popularity.uniform(architecture.experts.num_routed, architecture.experts.top_k)
        x[7] = architecture.experts.top_k * batch[0]
        x[8] = expected_distinct(popularity, np.array([int(batch[0])]))[0, 0]
    repeats = stage_repeats(architecture)
    expected = [
        operator.calls * repeats[operator.stage] * roofline.estimate(operator, x).seconds
        for operator in operators(architecture)
    ]
    each = np.zeros(len(expected))
    operator_seconds(table, *batch, each)
    assert each == pytest.approx(expected, rel=1e-12)
    assert step_seconds(table, *batch) == pytest.approx(sum(expected), rel=1e-12)
    assert len(operator_names(architecture)) == each.size


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v2-lite", "deepseek-v3", "qwen3-30b-a3b"])
def test_stages_sum_to_the_step(name, tensor):
    architecture, parallelism = ARCHITECTURES[name], Parallelism(tensor)
    whole = step_table(architecture, H200, parallelism, weights="fp8", max_tokens=100)
    stages = stage_tables(architecture, H200, parallelism, weights="fp8", max_tokens=100)
    repeats = stage_repeats(architecture)
    for batch in (DECODE, MIXED):
        total_s = 0.0
        for stage, table in stages.items():
            if stage == "experts":
                rows, distinct = whole.top_k * batch[0], whole.distinct_experts[int(batch[0])]
                stage_s = expert_seconds(table, rows, distinct)
                assert stage_s == pytest.approx(step_seconds(table, *batch))
            else:
                stage_s = step_seconds(table, *batch)
            total_s += repeats[stage] * stage_s
        assert total_s == pytest.approx(step_seconds(whole, *batch), rel=1e-12)


def test_communication_apart():
    """Two ranks, 8 tokens: two all-reduces a layer, one after the embedding, and the gather of logits."""
    table = step_table(LLAMA, H200, Parallelism(2))
    compute_s, communication_s = step_parts(table, *DECODE)
    reduce_s = 2 * H200.nvlink_latency_s + 2 * 1 / 2 * 8 * 4096 * 2 / H200.nvlink_bytes_per_s
    gather_s = H200.nvlink_latency_s + 8 * 128_256 // 2 * 2 / H200.nvlink_bytes_per_s
    assert communication_s == pytest.approx(65 * reduce_s + gather_s)
    assert compute_s + communication_s == pytest.approx(step_seconds(table, *DECODE))
    assert step_parts(step_table(LLAMA, H200), *DECODE)[1] == 0.0


def test_an_empty_step_is_free():
    for architecture in (LLAMA, LITE):
        table = step_table(architecture, H200, fixed_s=1e-6, max_tokens=8)
        assert step_seconds(table, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) == 0.0
    assert expert_seconds(stage_tables(LITE, H200, Parallelism(1, 8))["experts"], 0.0, 0.0) == 0.0


def test_a_decode_only_step_pays_no_prefill():
    names = operator_names(LITE)
    each = np.zeros(len(names))
    operator_seconds(step_table(LITE, H200, fixed_s=1e-6), *DECODE, each)
    seconds = dict(zip(names, each, strict=True))
    assert seconds["attention_prefill"] == seconds["kv_b_proj"] == 0.0
    assert seconds["attention_decode"] > 0.0


def test_a_faster_kernel():
    names = operator_names(LLAMA)
    before, after = np.zeros(len(names)), np.zeros(len(names))
    operator_seconds(step_table(LLAMA, H200), *MIXED, before)
    operator_seconds(step_table(LLAMA, H200, scale={"attention_decode": 0.8}), *MIXED, after)
    factors = dict(zip(names, after / before, strict=True))
    assert factors.pop("attention_decode") == pytest.approx(0.8)
    assert set(factors.values()) == {1.0}


def test_every_row_says_where_it_came_from():
    assert set(step_table(LITE, H200).tags[:, SOURCE]) == {Source.ROOFLINE}
    assert Source.ROOFLINE.label == "roofline"


def test_skew_reads_fewer_experts():
    skewed = Popularity.zipf(64, 6, 1.2)
    even_s = step_seconds(step_table(LITE, H200), *DECODE)
    assert step_seconds(step_table(LITE, H200, popularity=skewed), *DECODE) < even_s


def test_expert_stage_by_hand():
    """64 rows on 8 experts of one H200 rank: 8 · 16.5 MiB at 4.8 TB/s outweigh the rows' bytes and flops."""
    table = stage_tables(LITE, H200, Parallelism(1, 8))["experts"]
    rows_bytes = 64 * 2 * (2 * 2048 + 6 * 1408)
    combine_bytes = 64 * 2048 * 2
    expected = (8 * 16.5 * 2**20 + rows_bytes + combine_bytes) / 4.8e12
    assert expert_seconds(table, 64.0, 8.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"compute_efficiency": 0.0}, "compute_efficiency"),
        ({"memory_efficiency": 1.5}, "memory_efficiency"),
        ({"memory_efficiency": float("nan")}, "memory_efficiency"),
        ({"fixed_s": -1.0}, "fixed_s"),
        ({"scale": {"lm_head": -1.0}}, "lm_head"),
        ({"scale": {"lm_haed": 0.8}}, "did you mean 'lm_head'"),
        ({"scale": {"atention": 0.8}}, "unknown operator 'atention' in scale; did you mean 'attention'"),
        ({"scale": {"attention_": 0.8}}, "did you mean 'attention'"),
        ({"scale": {"attn": 0.8}}, "unknown operator 'attn' in scale; "),
        ({"popularity": Popularity.uniform(8, 2)}, "top-6 of 64"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_refusals(changed, words):
    with pytest.raises(ValueError, match=words):
        step_table(LITE, H200, **changed)


def test_expert_parallel_steps_have_no_single_table():
    with pytest.raises(ParallelismError, match="stage_tables"):
        step_table(LITE, H200, Parallelism(1, 8))


def test_more_tokens_than_the_table_knows():
    table = step_table(LITE, H200, max_tokens=8)
    assert step_seconds(table, 8.0, 8.0, 8.0, 0.0, 0.0, 8.0) > 0
    with pytest.raises(ValueError, match="max_tokens"):
        step_seconds(table, 9.0, 9.0, 9.0, 0.0, 0.0, 9.0)


def test_a_family_scales_its_operators_and_a_longer_name_wins():
    names = ["attention_decode", "attention_prefill", "attention_decode", "lm_head", "o_proj"]
    assert operator_scale({"attention": 0.8}, names) == {"attention_decode": 0.8, "attention_prefill": 0.8}
    both = {"attention_decode": 0.5, "attention": 0.8}
    assert operator_scale(both, names) == {"attention_decode": 0.5, "attention_prefill": 0.8}
    assert operator_scale({"lm_head": 2.0}, names) == {"lm_head": 2.0}
