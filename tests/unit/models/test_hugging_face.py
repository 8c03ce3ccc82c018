"""Reading config.json: the presets come out again, and what cannot be read is refused by name."""

import dataclasses
import json

import pytest

from models.architecture import ARCHITECTURES, ArchitectureError
from models.hugging_face import from_hugging_face

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "max_position_embeddings": 32768,
}
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    "hidden_act": "silu",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3 = DEEPSEEK_V2_LITE | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8"},
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "hidden_act": "silu",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "sliding_window": None,
    "use_sliding_window": False,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
QWEN3 = {
    key: value
    for key, value in QWEN3_MOE.items()
    if not key.startswith(("moe", "num_experts", "decoder", "mlp"))
} | {
    "model_type": "qwen3",
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 25600,
}


@pytest.mark.parametrize(
    ("preset", "config"),
    [
        ("llama-3.1-8b", LLAMA),
        ("mixtral-8x7b", MIXTRAL),
        ("deepseek-v2-lite", DEEPSEEK_V2_LITE),
        ("deepseek-v3", DEEPSEEK_V3),
        ("qwen3-30b-a3b", QWEN3_MOE),
        ("qwen3-32b", QWEN3),
    ],
)
def test_presets_come_out_again(preset, config):
    read = from_hugging_face(config, name=preset)
    assert read == dataclasses.replace(ARCHITECTURES[preset], source="config.json")


def test_file_and_folder(tmp_path):
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert from_hugging_face(folder).name == "tiny-llama"
    assert from_hugging_face(str(folder / "config.json")).num_parameters == 8_030_261_248


def test_nested_text_config():
    read = from_hugging_face(
        {"model_type": "llava", "vision_config": {"hidden_size": 1}, "text_config": LLAMA}
    )
    assert read.hidden_size == 4096


def test_qwen2_has_biases_and_a_window_switched_off():
    """Qwen2.5-7B: 7,615,616,512 parameters."""
    config = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }
    assert from_hugging_face(config).num_parameters == 7_615_616_512


def test_qwen2_moe_has_a_gated_shared_expert():
    """Qwen1.5-MoE-A2.7B: 14.3 B parameters."""
    config = {
        "model_type": "qwen2_moe",
        "hidden_act": "silu",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
    }
    assert from_hugging_face(config).num_parameters == pytest.approx(14.3e9, rel=0.01)


def test_alternating_expert_layers():
    experts = from_hugging_face(QWEN3_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}).experts
    assert experts is not None
    assert experts.layers[:3] == (1, 5, 7)
    listed = from_hugging_face(QWEN3_MOE | {"moe_layer_freq": [0] + [1] * 47}).experts
    assert listed is not None
    assert listed.layers == tuple(range(1, 48))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "'hidden_size'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers'"),
        ({"vocab_size": "many"}, "'vocab_size'"),
        ({"vocab_size": True}, "'vocab_size'"),
        ({"num_key_value_heads": 5}, "'num_key_value_heads'"),
        ({"sliding_window": 4096}, "'sliding_window'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types'"),
        ({"index_topk": 2048}, "'index_topk'"),
        ({"is_encoder_decoder": True}, "'is_encoder_decoder'"),
        ({"hidden_act": "relu"}, "'hidden_act'"),
        ({"tie_word_embeddings": "no"}, "'tie_word_embeddings'"),
        ({"text_config": 3}, "'text_config'"),
        ({"num_local_experts": 8}, "'num_experts_per_tok'"),
        ({"num_local_experts": 8, "num_experts_per_tok": 9}, "9 of 8"),
        ({"experts_in_layer": 8}, "'experts_in_layer'"),
        ({"num_local_experts": 8, "num_experts_per_tok": 2, "moe_layer_freq": [1]}, "'moe_layer_freq'"),
    ],
)
def test_refusals_name_the_key(change, named):
    with pytest.raises(ArchitectureError, match=r"config\.json: ") as refused:
        from_hugging_face(LLAMA | change)
    assert named in str(refused.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[1]", b"[" * 100_000])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=r"config\.json"):
        from_hugging_face(path)


def test_missing_file(tmp_path):
    with pytest.raises(ArchitectureError, match="cannot be read"):
        from_hugging_face(tmp_path / "none.json")


FLOAT8 = {"weights": {"type": "float", "num_bits": 8}}


@pytest.mark.parametrize(
    ("quantised", "precision"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": FLOAT8}}, "fp8"),
    ],
)
def test_precision_of_the_checkpoint(quantised, precision):
    assert from_hugging_face(LLAMA | {"quantization_config": quantised}).checkpoint_precision == precision


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "mxfp4"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"type": "int", "num_bits": 8}}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": FLOAT8, "b": {"weights": None}}},
        {},
        "fp8",
    ],
)
def test_other_quantised_weights_are_refused(quantised):
    with pytest.raises(ArchitectureError, match="'quantization_config'"):
        from_hugging_face(LLAMA | {"quantization_config": quantised})
