"""Architectures from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import (
    Architecture,
    ArchitectureError,
    Experts,
    GroupedQueryAttention,
    LatentAttention,
)
from models.hardware import Precision

__all__ = ["from_hugging_face"]

_WITHOUT_GATE = {"gpt_neox", "gpt_bigcode", "starcoder2", "opt", "phi", "falcon", "bloom", "nemotron", "gptj"}
_WITH_QKV_BIAS = {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"}
_WITH_QK_NORM = {"qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe"}
_TIED_UNLESS_SAID = {"gemma", "gemma2", "cohere", "cohere2", "gpt2", "opt", "phi3small"}
_GATED_ACTIVATIONS = {"silu", "swish", "swiglu"}

_UNSUPPORTED = {
    "is_encoder_decoder": "an encoder beside the decoder",
    "index_topk": "sparse attention that picks its keys",
    "attention_chunk_size": "attention in chunks",
    "compress_ratios": "compressed attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "mamba_num_heads": "state-space layers",
    "ssm_state_size": "state-space layers",
    "attn_layer_period": "attention in some layers only",
    "hybrid_override_pattern": "layers of several kinds",
    "layers_block_type": "layers of several kinds",
    "linear_num_key_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "full_attention_interval": "linear attention",
    "block_configs": "layers of different sizes",
    "num_kv_shared_layers": "layers that share their cache",
    "cross_layer_attention": "layers that share their cache",
    "zero_expert_num": "experts that compute nothing",
}
"""Keys that, when set, mean a layer which is not modelled."""

_FP8_METHODS = ("fp8", "fbgemm_fp8")

_EXPERT_KEYS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


def from_hugging_face(config: Mapping[str, Any] | str | Path, name: str | None = None) -> Architecture:
    """The architecture that a `config.json` describes.

    config: its content, its path, or the folder it lies in. `name` is what reports call the model; the
    default
    is the config's own or that of its folder. A vision-language config is read through its `text_config`, the
    vision part being left out.

    Known families: Llama, Mistral, Mixtral, Qwen2/3 with and without experts, DeepSeek V2/V3 and what shares
    their
    keys. Another `model_type` is read the same way if its activation is SiLU, as only gated feed-forwards use
    it.

    A `quantization_config` with fp8 weights becomes the architecture's checkpoint_precision.

    Raises ArchitectureError for an unreadable file, a missing key, a value out of range, a layer not modelled
    (sliding windows, linear or sparse attention, encoders), or weights quantised otherwise than to fp8; the
    message names the key.
    """
    source = "config.json"
    if isinstance(config, str | Path):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        source, folder = str(path), path.resolve().parent.name
        config = _read(path)
        name = name or (path.stem if path.stem != "config" else folder)
    if not isinstance(config, Mapping):
        raise ArchitectureError(f"{source}: expected a mapping of keys, got {type(config).__name__}")
    text = {**config, **_nested(config, source)}
    keys = _Keys(text, source)
    _refuse_unsupported(keys)
    num_layers = keys.count("num_hidden_layers")
    experts = _experts(keys, num_layers)
    all_experts = experts is not None and len(experts.layers) == num_layers
    return Architecture(
        name=name or str(text.get("_name_or_path") or text.get("model_type") or "unnamed"),
        source=source,
        vocab_size=keys.count("vocab_size"),
        hidden_size=keys.count("hidden_size"),
        num_layers=num_layers,
        attention=_attention(keys),
        ffn_size=keys.optional("intermediate_size") or 0 if all_experts else keys.count("intermediate_size"),
        experts=experts,
        is_gated=_is_gated(keys),
        has_tied_embeddings=_flag(keys, "tie_word_embeddings", keys.model_type in _TIED_UNLESS_SAID),
        max_positions=keys.optional("max_position_embeddings"),
        checkpoint_precision=_checkpoint_precision(keys),
    )


class _Keys:
    """A config with checked access: every refusal names file, key and value."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source
        self.model_type = str(values.get("model_type", ""))

    def refuse(self, message: str) -> ArchitectureError:
        return ArchitectureError(f"{self.source}: {message}")

    def count(self, *names: str, least: int = 1) -> int:
        """The first of these keys that is there, a whole number of at least `least`."""
        value = self.optional(*names, least=least)
        if value is None:
            kind = f" (model_type {self.model_type!r})" if self.model_type else ""
            raise self.refuse(f"missing key {' or '.join(map(repr, names))}{kind}")
        return value

    def optional(self, *names: str, least: int = 1) -> int | None:
        for key in names:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.refuse(f"{key!r} must be a whole number of at least {least}, got {value!r}")
            return value
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArchitectureError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArchitectureError(f"{path}: is not a text file") from error
    except json.JSONDecodeError as error:
        raise ArchitectureError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ArchitectureError(f"{path}: is nested too deeply") from error


def _nested(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise ArchitectureError(f"{source}: {key!r} must be a mapping, got {nested!r}")
        return nested
    return {}


def _flag(keys: _Keys, name: str, default: bool) -> bool:
    value = keys.values.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise keys.refuse(f"{name!r} must be true or false, got {value!r}")
    return value


def _checkpoint_precision(keys: _Keys) -> Precision:
    """How the weights are stored: fp8 if the config says so, else bf16."""
    quantised = keys.values.get("quantization_config")
    if quantised is None:
        return "bf16"
    if not isinstance(quantised, Mapping):
        raise keys.refuse(f"'quantization_config' must be a mapping, got {quantised!r}")
    method = quantised.get("quant_method")
    if method in _FP8_METHODS or (method == "compressed-tensors" and _has_fp8_groups(quantised)):
        return "fp8"
    raise keys.refuse(
        f"'quantization_config' has quant_method {method!r}: of quantised weights only fp8 is modelled "
        f"({', '.join(_FP8_METHODS)}, compressed-tensors); leave the key out to take them as bf16"
    )


def _has_fp8_groups(quantised: Mapping[str, Any]) -> bool:
    groups = quantised.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else []
    return bool(weights) and all(
        isinstance(w, Mapping) and (w.get("type"), w.get("num_bits")) == ("float", 8) for w in weights
    )


def _refuse_unsupported(keys: _Keys) -> None:
    values = keys.values
    for key, what in _UNSUPPORTED.items():
        if values.get(key):
            raise keys.refuse(f"{key!r} = {values[key]!r}: {what} is not modelled")
    kinds = values.get("layer_types")
    other = {kind for kind in kinds if kind != "full_attention"} if isinstance(kinds, list) else set()
    if other:
        names = ", ".join(sorted(map(str, other)))
        raise keys.refuse(f"'layer_types' has {names}; only full_attention is modelled")
    window = values.get("sliding_window")
    # Qwen2 carries a window that is switched off.
    if window is not None and _flag(keys, "use_sliding_window", True):
        positions = values.get("max_position_embeddings")
        if not (isinstance(positions, int) and isinstance(window, int) and window >= positions):
            raise keys.refuse(
                f"'sliding_window' = {window!r}: windows are not modelled; null counts full attention instead"
            )


def _is_gated(keys: _Keys) -> bool:
    if keys.model_type in _WITHOUT_GATE:
        return False
    activation = keys.values.get("hidden_act", keys.values.get("hidden_activation", "silu"))
    if activation in _GATED_ACTIVATIONS or keys.model_type.startswith(("gemma", "glm", "cohere", "granite")):
        return True
    raise keys.refuse(
        f"'hidden_act' = {activation!r} of model_type {keys.model_type!r}: whether its feed-forward has a "
        f"gate is not known; activations known to have one: {', '.join(sorted(_GATED_ACTIVATIONS))}"
    )


def _attention(keys: _Keys) -> GroupedQueryAttention | LatentAttention:
    num_heads = keys.count("num_attention_heads")
    if keys.values.get("kv_lora_rank") is not None:
        return LatentAttention(
            num_heads=num_heads,
            query_rank=keys.optional("q_lora_rank"),
            kv_rank=keys.count("kv_lora_rank"),
            nope_dim=keys.count("qk_nope_head_dim"),
            rope_dim=keys.count("qk_rope_head_dim"),
            value_dim=keys.count("v_head_dim"),
        )
    head_dim = keys.optional("head_dim")
    if head_dim is None:
        hidden_size = keys.count("hidden_size")
        if hidden_size % num_heads:
            raise keys.refuse(f"missing key 'head_dim': {hidden_size} does not divide over {num_heads} heads")
        head_dim = hidden_size // num_heads
    num_kv_heads = keys.optional("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise keys.refuse(f"'num_key_value_heads' = {num_kv_heads} does not divide {num_heads} heads")
    return GroupedQueryAttention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        has_qkv_bias=_flag(keys, "attention_bias", keys.model_type in _WITH_QKV_BIAS),
        has_qk_norm=_flag(keys, "use_qk_norm", keys.model_type in _WITH_QK_NORM),
    )


def _experts(keys: _Keys, num_layers: int) -> Experts | None:
    num_routed = keys.optional(*_EXPERT_KEYS, least=0)
    if not num_routed or num_routed == 1:
        strange = [key for key in keys.values if "expert" in key and _is_count(keys.values[key])]
        if strange and num_routed is None:
            known = ", ".join(_EXPERT_KEYS)
            raise keys.refuse(f"{strange[0]!r} speaks of experts, but none of {known} is there")
        return None
    top_k = keys.count("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
    if top_k > num_routed:
        raise keys.refuse(f"a token takes {top_k} of {num_routed} experts")
    ffn_size = keys.count("moe_intermediate_size", "intermediate_size")
    shared_keys = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    num_shared = keys.optional(*shared_keys, least=0) or 0
    shared = keys.optional("shared_expert_intermediate_size", "shared_intermediate_size", least=0)
    layers = _moe_layers(keys, num_layers)
    if not layers:
        return None
    return Experts(
        num_routed=num_routed,
        top_k=top_k,
        ffn_size=ffn_size,
        layers=layers,
        shared_ffn_size=num_shared * ffn_size if shared is None else shared,
        has_shared_gate=keys.model_type == "qwen2_moe",
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def _moe_layers(keys: _Keys, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers with experts, by the rule of whichever family's keys are there."""
    frequency = keys.values.get("moe_layer_freq")
    if isinstance(frequency, list):
        if len(frequency) != num_layers:
            raise keys.refuse(f"'moe_layer_freq' lists {len(frequency)} layers, the model has {num_layers}")
        return tuple(layer for layer, has_experts in enumerate(frequency) if has_experts)
    first = keys.optional("first_k_dense_replace", least=0) or 0
    every = keys.optional("moe_layer_freq") or 1
    sparse_step = keys.optional("decoder_sparse_step", "interleave_moe_layer_step") or 1
    dense = keys.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise keys.refuse(f"'mlp_only_layers' must be a list of layers, got {dense!r}")
    return tuple(
        layer
        for layer in range(num_layers)
        if layer >= first and layer % every == 0 and (layer + 1) % sparse_step == 0 and layer not in dense
    )
