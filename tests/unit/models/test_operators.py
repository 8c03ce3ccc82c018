"""Flops and bytes of single operators against sums made by hand, and of all together against the model."""

import pytest

from models.architecture import ARCHITECTURES
from models.features import Feature
from models.operators import operators, stage_repeats
from models.parallelism import Parallelism
from models.rerouting import Rerouting

LLAMA = ARCHITECTURES["llama-3.1-8b"]
LITE = ARCHITECTURES["deepseek-v2-lite"]


def features(
    tokens=0, decodes=0, sequences=0, pairs=0, prefill_context=0, decode_context=0, rows=0, distinct=0
):
    return (1, tokens, decodes, sequences, pairs, prefill_context, decode_context, rows, distinct)


def amounts(operator, x):
    assert len(x) == len(Feature)
    return (
        sum(a * b for a, b in zip(operator.flops, x, strict=True)),
        sum(a * b for a, b in zip(operator.bytes, x, strict=True)),
    )


def by_name(architecture, *args, **kwargs):
    return {operator.name: operator for operator in operators(architecture, *args, **kwargs)}


def test_gate_up_of_llama():
    """[10, 4096] x [4096, 28672]: 2 · 10 · 4096 · 28672 flops; the weights and both activations in bf16."""
    flops, size_bytes = amounts(by_name(LLAMA)["gate_up_proj"], features(tokens=10))
    assert flops == 2 * 10 * 4096 * 28672
    assert size_bytes == 2 * (4096 * 28672 + 10 * (4096 + 28672))


def test_decode_attention_of_llama():
    """1000 and 500 keys, each 4 · 4096 flops and 2 · 8 · 128 · 2 B; per row q, out, new k and v."""
    x = features(tokens=2, decodes=2, sequences=2, decode_context=1500)
    flops, size_bytes = amounts(by_name(LLAMA)["attention_decode"], x)
    assert flops == 4 * 4096 * 1500
    assert size_bytes == 1500 * 4096 + 2 * (2 * 4096 * 2 + 4096)


def test_prefill_attention_of_llama():
    """A chunk of 3 after a prefix of 5: 3 · 5 + 6 = 21 pairs over 8 keys; the decode beside it is no part."""
    x = features(tokens=4, decodes=1, sequences=2, pairs=21, prefill_context=8, decode_context=9)
    flops, size_bytes = amounts(by_name(LLAMA)["attention_prefill"], x)
    assert flops == 4 * 4096 * 21
    assert size_bytes == 8 * 4096 + 3 * (2 * 4096 * 2 + 4096)


def test_latent_decode_attention():
    """16 heads score 576 numbers and sum 512 of each of 1000 latents, which are read once: 1152 B each."""
    x = features(tokens=1, decodes=1, sequences=1, decode_context=1000)
    flops, size_bytes = amounts(by_name(LITE)["attention_decode"], x)
    assert flops == 2 * 16 * (576 + 512) * 1000
    assert size_bytes == 1000 * 1152 + 16 * (576 + 512) * 2 + 1152


def test_latent_prefill_expands_its_context():
    """8 latents of 512 become 16 heads of 128 + 128; pairs score 192 and sum 128 numbers a head."""
    x = features(tokens=3, sequences=1, pairs=21, prefill_context=8)
    assert amounts(by_name(LITE)["kv_b_proj"], x)[0] == 2 * 8 * 512 * 16 * 256
    assert amounts(by_name(LITE)["attention_prefill"], x)[0] == 2 * 21 * 16 * (192 + 128)


def test_routed_experts_read_what_they_touch():
    """3 distinct experts of 16.5 MiB; 12 rows of 2 · 3 · 2048 · 1408 flops."""
    flops, size_bytes = amounts(by_name(LITE)["routed_experts"], features(tokens=2, rows=12, distinct=3))
    assert flops == 12 * 6 * 2048 * 1408
    assert size_bytes == 3 * 16.5 * 2**20 + 12 * 2 * (2 * 2048 + 6 * 1408)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_token_costs_two_flops_per_active_weight(name):
    """A decode without context multiplies each active weight once; embedding and element-wise work aside."""
    architecture = ARCHITECTURES[name]
    top_k = architecture.experts.top_k if architecture.experts else 0
    x = features(tokens=1, decodes=1, sequences=1, rows=top_k, distinct=top_k)
    repeats = stage_repeats(architecture)
    small = {"layernorm", "final_layernorm", "rotary_emb", "qk_norm", "latent_norm", "act_fn", "sampler"}
    total = sum(
        operator.calls * repeats[operator.stage] * amounts(operator, x)[0]
        for operator in operators(architecture)
        if x[operator.runs_on] > 0 and operator.name not in small | {"expert_combine"}
    )
    embedding = architecture.vocab_size * architecture.hidden_size
    assert total == pytest.approx(2 * (architecture.num_active_parameters - embedding), rel=2e-3)


@pytest.mark.parametrize(("name", "tensor"), [("llama-3.1-8b", 8), ("mixtral-8x7b", 4), ("deepseek-v3", 16)])
def test_tensor_ranks_share_the_flops(name, tensor):
    """All ranks together do the uncut work; latent down-projections, router and norms are repeated."""
    x = features(64, 32, 33, 528, 32, 32_000, 128, 8)
    repeated = {"q_a_proj", "kv_a_proj", "router", "layernorm", "final_layernorm", "latent_norm"}
    repeated |= {"sampler", "expert_combine", "rotary_emb"}
    whole, cut = by_name(ARCHITECTURES[name]), by_name(ARCHITECTURES[name], Parallelism(tensor))
    for operator in whole.values():
        if operator.name not in repeated:
            assert tensor * amounts(cut[operator.name], x)[0] == pytest.approx(amounts(operator, x)[0])


def test_tensor_all_reduce_bytes():
    """Reduce-scatter and all-gather each move 3/4 of 8 · 4096 · 2 B past a rank of four."""
    reduce = by_name(LLAMA, Parallelism(4))["tensor_all_reduce"]
    assert amounts(reduce, features(tokens=8))[1] == 2 * 3 / 4 * 8 * 4096 * 2
    assert reduce.is_communication
    assert reduce.num_messages == 2
    assert "tensor_all_reduce" not in by_name(LLAMA)


def test_fp8_weights_halve_weight_bytes_only():
    bf16, fp8 = by_name(LLAMA)["qkv_proj"], by_name(LLAMA, weights="fp8")["qkv_proj"]
    assert fp8.bytes[Feature.ONE] * 2 == bf16.bytes[Feature.ONE]
    assert fp8.bytes[Feature.TOKENS] == bf16.bytes[Feature.TOKENS]
    assert fp8.precision == "fp8"
    assert by_name(LLAMA, weights="fp8")["lm_head"].precision == "bf16"


def test_fp8_cache_halves_its_bytes():
    bf16, fp8 = by_name(LLAMA)["attention_decode"], by_name(LLAMA, kv="fp8")["attention_decode"]
    assert fp8.bytes[Feature.DECODE_CONTEXT] * 2 == bf16.bytes[Feature.DECODE_CONTEXT]


def test_expert_ranks_keep_experts_whole():
    whole, spread = by_name(LITE), by_name(LITE, Parallelism(2, 8))
    assert spread["routed_experts"].flops == whole["routed_experts"].flops
    assert (
        by_name(LITE, Parallelism(2))["routed_experts"].flops[Feature.EXPERT_ROWS] * 2
        == (whole["routed_experts"].flops[Feature.EXPERT_ROWS])
    )


def test_gathered_logits_are_looked_up_by_the_whole_of_them():
    """As nccl-tests counts an all-gather, and as the tables do: 128,256 words of 2 bytes a row, whoever holds which."""
    for tensor in (2, 8):
        (gather,) = (o for o in operators(ARCHITECTURES["llama-3.1-8b"], Parallelism(tensor)) if o.kind == "all_gather")
        assert gather.shape == (tensor, 2 * 128_256)


def test_rerouting_of_lite():
    """A token's six experts and its adapter read, six slots written, 4 bytes each."""
    assert "rerouting" not in by_name(LITE)
    found = by_name(LITE, rerouting=Rerouting("fused", 8))["rerouting"]
    assert amounts(found, features(tokens=10)) == (0, 10 * 4 * (6 + 1 + 6))
    assert found.stage == "moe_local"
