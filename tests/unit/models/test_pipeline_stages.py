"""Layers cut into stages, what each keeps in memory, and how a step's time is shared among them."""

import dataclasses

import numpy as np
import pytest

from models.architecture import ARCHITECTURES
from models.cost.build import step_table
from models.cost.step import operator_seconds, step_seconds
from models.hardware import ACCELERATORS
from models.memory import DoesNotFit, plan_memory, weight_bytes
from models.operators import operators
from models.parallelism import Parallelism, ParallelismError
from models.pipeline import stage_layers, stage_parts, stage_shares

LLAMA, LITE = ARCHITECTURES["llama-3.1-8b"], ARCHITECTURES["deepseek-v2-lite"]
DEGREES = [Parallelism(1, pipeline=2), Parallelism(4, pipeline=3), Parallelism(2, pipeline=4)]


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (80, 4, [20, 20, 20, 20]),
        (61, 2, [31, 30]),
        (61, 4, [15, 15, 16, 15]),
        (22, 4, [5, 6, 6, 5]),
        (27, 4, [7, 7, 7, 6]),
        (5, 5, [1, 1, 1, 1, 1]),
        (80, 1, [80]),
    ],
)
def test_layers_that_are_left_over_go_before_the_last_stage(layers, stages, expected):
    """61 layers as vLLM's documentation has DeepSeek-V3's: 31 and 30, or 15, 15, 16, 15."""
    cut = stage_layers(layers, stages)
    assert [len(part) for part in cut] == expected
    assert [layer for part in cut for layer in part] == list(range(layers))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.name)
def test_stages_together_weigh_what_the_whole_does(architecture):
    for stages in (2, 3, 5):
        together = sum(weight_bytes(architecture, Parallelism(1, pipeline=stages), stage=s) for s in range(stages))
        # One matrix that is embedding and head is needed at both ends.
        twice = 2 * architecture.vocab_size * architecture.hidden_size if architecture.has_tied_embeddings else 0
        assert together == weight_bytes(architecture) + twice


def test_ends_hold_the_vocabulary_and_the_middle_does_not():
    """Llama-3.1-8B over 4 stages: 8 layers each, the embedding (128,256 x 4,096, bf16) first, the head last."""
    first, *middle, last = (weight_bytes(LLAMA, Parallelism(1, pipeline=4), stage=s) for s in range(4))
    assert middle[0] == middle[1]
    assert first - middle[0] == 2 * 128_256 * 4096
    assert last - first == 2 * 4096  # the final norm


def test_dense_layers_come_first():
    """DeepSeek-V2-Lite: the first of 27 layers is dense; 13 and 14, with the one that is left over before the last."""
    first, last = stage_parts(LITE, 2)
    assert (first.num_layers, first.num_dense_layers, first.num_moe_layers) == (14, 1, 13)
    assert (last.num_layers, last.num_dense_layers, last.num_moe_layers) == (13, 0, 13)


def test_the_fullest_stage_decides_on_blocks():
    """Blocks of 16 tokens of Llama-3.1-8B: 8 layers of 4,096 B a token each. Ends have the vocabulary besides, and the
    last one samples; each stage's plan is the sum made by hand."""
    plan = plan_memory(LLAMA, ACCELERATORS["rtx4090"], Parallelism(1, pipeline=4))
    assert [stage.kv_bytes_per_block for stage in plan.stages] == [16 * 8 * 4096] * 4
    for stage in plan.stages:
        left = stage.usable_bytes - stage.weight_bytes - stage.activation_bytes - stage.engine_bytes
        assert stage.num_kv_blocks == left // stage.kv_bytes_per_block
    assert plan.num_kv_blocks == min(stage.num_kv_blocks for stage in plan.stages)
    assert plan.weight_bytes == plan.stages[3].weight_bytes == max(stage.weight_bytes for stage in plan.stages)
    assert plan.stages[1].num_kv_blocks > plan.stages[0].num_kv_blocks > plan.stages[3].num_kv_blocks
    assert plan_memory(LLAMA, ACCELERATORS["rtx4090"]).stages == ()


def test_uneven_layers_bound_the_cache():
    """5 layers over 3 stages are 2, 2, 1, so that of equal room half as many tokens fit on the first two."""
    few = dataclasses.replace(LLAMA, num_layers=5)
    plan = plan_memory(few, ACCELERATORS["h100"], Parallelism(1, pipeline=3))
    assert [s.kv_bytes_per_block // (16 * 4096) for s in plan.stages] == [2, 2, 1]
    assert plan.num_kv_blocks == plan.stages[0].num_kv_blocks < plan.stages[2].num_kv_blocks


def test_what_does_not_fit_in_a_host_may_fit_in_stages():
    model, device = ARCHITECTURES["llama-3.1-70b"], ACCELERATORS["rtx4090"]
    with pytest.raises(DoesNotFit, match="take pipeline parallelism of 4") as caught:
        plan_memory(model, device, Parallelism(2), accelerators_per_host=2)
    assert "no tensor degree" not in str(caught.value)
    plan_memory(model, device, Parallelism(2, pipeline=4), accelerators_per_host=2)
    with pytest.raises(DoesNotFit):
        plan_memory(model, device, Parallelism(2, pipeline=3), accelerators_per_host=2)
    with pytest.raises(DoesNotFit, match="fewer cache blocks"):
        plan_memory(model, device, Parallelism(2, pipeline=5), num_kv_blocks=10**7)


def test_degrees_that_do_not_go_together():
    with pytest.raises(ParallelismError, match="expert degree 8 and pipeline degree 2"):
        Parallelism(1, 8, pipeline=2)
    with pytest.raises(ParallelismError, match="32 layers are too few for pipeline degree 33"):
        Parallelism(1, pipeline=33).check(LLAMA)
    with pytest.raises(ParallelismError, match="pipeline 0"):
        Parallelism(1, pipeline=0)
    assert Parallelism(4, pipeline=2).num_accelerators == 8
    assert Parallelism(4, pipeline=2).data == 1


FEATURES = (300, 40, 43, 5000, 900, 41_000)


def each_of(model, parallelism):
    built = operators(model, parallelism)
    table = step_table(model, ACCELERATORS["h100"], parallelism)
    each = np.zeros(len(built))
    operator_seconds(table, *FEATURES, each)
    return built, each


@pytest.mark.parametrize("parallelism", DEGREES, ids=str)
@pytest.mark.parametrize("model", [LLAMA, LITE, ARCHITECTURES["qwen3-30b-a3b"]], ids=lambda model: model.name)
def test_stages_take_together_what_the_whole_takes(model, parallelism):
    """The uncut step, and the ways between stages; each stage its layers' part."""
    built, each = each_of(model, parallelism)
    of_stages, of_sends = stage_shares(built, model, parallelism.pipeline)
    np.testing.assert_allclose(of_stages.sum(axis=0) + of_sends.sum(axis=0), 1.0, rtol=1e-12)

    uncut = step_table(model, ACCELERATORS["h100"], Parallelism(parallelism.tensor))
    handed_over = sum(each[o] for o, operator in enumerate(built) if operator.stage == "handover")
    whole_s = step_seconds(uncut, *FEATURES)
    assert (of_stages @ each).sum() + (of_sends @ each).sum() == pytest.approx(whole_s + handed_over, rel=1e-12)

    names = [operator.name for operator in built]
    assert of_stages[0, names.index("embedding")] == of_stages[-1, names.index("lm_head")] == 1
    layers = [len(part) for part in stage_layers(model.num_layers, parallelism.pipeline)]
    attention = of_stages[:, names.index("attention_decode")]
    np.testing.assert_allclose(attention, np.array(layers) / model.num_layers, rtol=1e-12)


def test_a_handover_by_hand():
    """300 tokens of 4,096 numbers, twice, each of 4 ranks a quarter, at 450 GB/s after 1.9 us a message; then two
    all-gathers of three quarters."""
    built, each = each_of(LLAMA, Parallelism(4, pipeline=2))
    by_name = dict(zip([operator.name for operator in built], each, strict=True))
    size_bytes = 300 * 4096 * 2
    assert by_name["pipeline_send"] == pytest.approx(2 * (1.9e-6 + size_bytes / 4 / 450e9), rel=1e-12)
    assert by_name["pipeline_all_gather"] == pytest.approx(2 * (1.9e-6 + 3 / 4 * size_bytes / 450e9), rel=1e-12)
    assert "pipeline_all_gather" not in [operator.name for operator in operators(LLAMA, Parallelism(1, pipeline=2))]
