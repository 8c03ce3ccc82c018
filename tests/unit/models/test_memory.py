"""Weights, cache and what is left, against sums made by hand."""

import dataclasses
import re

import pytest

from models.architecture import ARCHITECTURES
from models.hardware import ACCELERATORS
from models.memory import DoesNotFit, kv_bytes_per_token, plan_memory, weight_bytes
from models.parallelism import Parallelism, ParallelismError

LLAMA = ARCHITECTURES["llama-3.1-8b"]
LITE = ARCHITECTURES["deepseek-v2-lite"]


def test_kv_bytes_per_token():
    """Llama-3.1-8B: 32 · 2 · 8 · 128 · 2 B = 131,072; DeepSeek-V2-Lite: 27 · 576 · 2 B = 31,104."""
    assert kv_bytes_per_token(LLAMA) == 131_072
    assert kv_bytes_per_token(LITE) == 31_104
    assert kv_bytes_per_token(LITE, kv="fp8") == 15_552


def test_latent_cache_is_not_cut_and_heads_are_at_most_once():
    assert kv_bytes_per_token(LITE, tensor=8) == 31_104
    assert kv_bytes_per_token(LLAMA, tensor=4) == 131_072 // 4
    assert kv_bytes_per_token(LLAMA, tensor=16) == 131_072 // 8


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.name)
def test_uncut_weights_are_all_parameters(architecture):
    assert weight_bytes(architecture) == 2 * architecture.num_parameters


def test_deepseek_v2_lite_weighs_what_expertweave_reports():
    """29.26 GiB on one device (arXiv 2508.17624)."""
    assert weight_bytes(LITE) / 2**30 == pytest.approx(29.26, abs=0.005)


def test_tensor_parallel_halves_all_but_the_norms():
    norms = 2 * (2 * 32 + 1) * 4096
    assert weight_bytes(LLAMA, Parallelism(2)) == (weight_bytes(LLAMA) + norms) // 2


def test_fp8_halves_the_linear_layers():
    embeddings_and_norms = 2 * (2 * 128_256 * 4096 + 65 * 4096)
    linear = weight_bytes(LLAMA) - embeddings_and_norms
    assert weight_bytes(LLAMA, weights="fp8") == embeddings_and_norms + linear // 2


def test_expert_parallel_keeps_attention_whole():
    """8 of 64 experts stay: 26 layers lose 56 experts of 16.5 MiB each."""
    assert weight_bytes(LITE) - weight_bytes(LITE, Parallelism(1, 8)) == 26 * 56 * 16.5 * 2**20


def test_blocks_fill_what_is_left():
    plan = plan_memory(LLAMA, ACCELERATORS["a100"], memory_fraction=0.9, block_size=16)
    left = plan.usable_bytes - plan.weight_bytes - plan.activation_bytes - plan.engine_bytes
    assert plan.kv_bytes_per_block == 16 * 131_072
    assert 0 <= left - plan.num_kv_blocks * plan.kv_bytes_per_block < plan.kv_bytes_per_block
    assert plan.num_kv_tokens == 16 * plan.num_kv_blocks


def test_blocks_of_a_recorded_engine():
    """vLLM 0.19 found 2,588 blocks of 16 tokens for Llama-3.1-8B on an RTX 4090 at a fraction of 0.9."""
    plan = plan_memory(LLAMA, ACCELERATORS["rtx4090"], max_num_batched_tokens=2048, max_num_seqs=256)
    assert plan.num_kv_blocks == pytest.approx(2588, rel=0.05)


def test_given_blocks_are_taken():
    assert plan_memory(LLAMA, ACCELERATORS["rtx4090"], num_kv_blocks=2588).num_kv_blocks == 2588
    with pytest.raises(DoesNotFit, match="fewer cache blocks"):
        plan_memory(LLAMA, ACCELERATORS["rtx4090"], num_kv_blocks=10_000)


def test_does_not_fit_names_numbers_and_remedy():
    with pytest.raises(DoesNotFit, match=r"llama-3\.1-70b .* h100: .*131\.4.*tensor parallelism of 2 or fp8"):
        plan_memory(ARCHITECTURES["llama-3.1-70b"], ACCELERATORS["h100"])
    plan_memory(ARCHITECTURES["llama-3.1-70b"], ACCELERATORS["h100"], Parallelism(4))


def works(architecture, accelerator, *args, **options):
    try:
        plan_memory(architecture, ACCELERATORS[accelerator], *args, **options)
    except (DoesNotFit, ParallelismError):
        return False
    return True


def remedy(architecture, accelerator, *args, **options):
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(architecture, ACCELERATORS[accelerator], *args, **options)
    return str(caught.value).rpartition("; ")[2]


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
@pytest.mark.parametrize("accelerator", ["h100", "h200"])
def test_the_remedy_is_the_smallest_degree_that_fits(accelerator, weights):
    """DeepSeek-V3's 671 G weights: the proposed degrees fit, and no smaller ones that divide do."""
    model = ARCHITECTURES["deepseek-v3"]
    found = remedy(model, accelerator, weights=weights)
    (expert,) = re.findall(r"expert parallelism of (\d+)", found)
    assert works(model, accelerator, Parallelism(1, int(expert)), weights)
    assert not any(works(model, accelerator, Parallelism(1, e), weights) for e in range(1, int(expert)))
    tensor = re.findall(r"tensor parallelism of (\d+)", found)
    assert tensor == [str(t) for t in range(1, 9) if works(model, accelerator, Parallelism(t), weights)][:1]


def test_the_remedy_stays_inside_the_host():
    model = ARCHITECTURES["llama-3.1-70b"]
    assert "tensor parallelism of 2 or fp8 weights" in remedy(model, "h200", max_num_batched_tokens=300_000)
    assert remedy(model, "h100", accelerators_per_host=1) == "take fp8 weights, or an accelerator with more memory"
    assert remedy(model, "rtx4090", accelerators_per_host=1).startswith("take pipeline parallelism of ")


def test_the_remedy_combines_what_alone_is_not_enough():
    """On a 24 GB device 70 B weights need fp8 and four ways (17.5 GB each); bf16 eight ways leaves nothing either."""
    found = remedy(ARCHITECTURES["llama-3.1-70b"], "rtx4090", accelerators_per_host=4)
    assert found.startswith("take fp8 weights with tensor parallelism of 4")
    assert works(ARCHITECTURES["llama-3.1-70b"], "rtx4090", Parallelism(4), "fp8")


def test_blocks_that_are_asked_of_a_model_that_does_not_fit():
    assert "tensor parallelism of 2" in remedy(ARCHITECTURES["llama-3.1-70b"], "h100", num_kv_blocks=10)


@pytest.mark.parametrize("changed", [{"memory_fraction": 0.0}, {"memory_fraction": 1.1}, {"block_size": 0}])
def test_bad_values(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        plan_memory(LLAMA, ACCELERATORS["a100"], **changed)


def test_tied_embedding_is_kept_once():
    tied = dataclasses.replace(LLAMA, has_tied_embeddings=True)
    assert weight_bytes(LLAMA) - weight_bytes(tied) == 2 * 128_256 * 4096
    assert weight_bytes(tied) == 2 * tied.num_parameters


def test_undividable_model():
    with pytest.raises(ParallelismError):
        weight_bytes(LLAMA, Parallelism(3))
