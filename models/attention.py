"""Operators of one attention layer, its two norms included: grouped-query and latent."""

from __future__ import annotations

from models.architecture import Architecture, GroupedQueryAttention, LatentAttention
from models.features import ACTIVATION_BYTES, Feature, Operator, affine, all_reduce, elementwise, linear
from models.hardware import PRECISIONS, Precision
from models.parallelism import Parallelism

__all__ = ["grouped_attention", "latent_attention"]


def grouped_attention(
    architecture: Architecture,
    attention: GroupedQueryAttention,
    parallelism: Parallelism,
    weights: Precision,
    kv: Precision,
) -> list[Operator]:
    """Heads in groups share a cached key and value head; scores and values cost 4 flops per pair and number.

    Leaves out: biases of the projections.
    """
    h, stage, tensor = architecture.hidden_size, "attention", parallelism.tensor
    query = attention.query_size // tensor
    # More ranks than key-value heads: each rank keeps a whole one.
    key = max(attention.num_kv_heads // tensor, 1) * attention.head_dim
    key_value_bytes = 2 * key * PRECISIONS[kv]
    row_bytes = 2 * query * ACTIVATION_BYTES + key_value_bytes
    heads = (query // attention.head_dim, key // attention.head_dim, attention.head_dim)
    built = [
        elementwise("layernorm", stage, 4 * h, 5 * h, calls=2),
        linear("qkv_proj", stage, h, query + 2 * key, weights),
        elementwise("rotary_emb", stage, 2 * (query + key), 3 * (query + key)),
        Operator(
            "attention_prefill",
            stage,
            flops=affine(prefill_pairs=4 * query),
            bytes=affine(prefill_context=key_value_bytes, tokens=row_bytes, decodes=-row_bytes),
            runs_on=Feature.PREFILL_CONTEXT,
            kind="attention",
            shape=heads,
        ),
        Operator(
            "attention_decode",
            stage,
            flops=affine(decode_context=4 * query),
            bytes=affine(decode_context=key_value_bytes, decodes=row_bytes),
            runs_on=Feature.DECODES,
            kind="attention",
            shape=heads,
        ),
        linear("o_proj", stage, query, h, weights),
        *all_reduce(stage, h, parallelism.tensor_in_host),
    ]
    if attention.has_qk_norm:
        built.insert(2, elementwise("qk_norm", stage, 2 * (query + key), 4 * (query + key)))
    return built


def latent_attention(
    architecture: Architecture,
    attention: LatentAttention,
    parallelism: Parallelism,
    weights: Precision,
    kv: Precision,
) -> list[Operator]:
    """Prefill expands the latents it reads into keys and values; decode folds that into query and output.

    Every tensor rank reads the whole latent cache, and computes the down-projections again.
    """
    h, stage = architecture.hidden_size, "attention"
    heads = attention.num_heads // parallelism.tensor
    latent = attention.kv_rank + attention.rope_dim
    query_dim = attention.nope_dim + attention.rope_dim
    query, value = heads * query_dim, heads * attention.value_dim
    expanded = heads * (attention.nope_dim + attention.value_dim)
    latent_bytes = latent * PRECISIONS[kv]
    if attention.query_rank is None:
        projections = [linear("q_proj", stage, h, query, weights)]
    else:
        projections = [
            linear("q_a_proj", stage, h, attention.query_rank, weights),
            linear("q_b_proj", stage, attention.query_rank, query, weights),
        ]
    prefill_row = (query + value) * ACTIVATION_BYTES + latent_bytes
    decode_row = heads * (latent + attention.kv_rank) * ACTIVATION_BYTES + latent_bytes
    expanded_key_value = (query + value) * ACTIVATION_BYTES
    return [
        elementwise("layernorm", stage, 4 * h, 5 * h, calls=2),
        *projections,
        linear("kv_a_proj", stage, h, latent, weights),
        elementwise(
            "latent_norm",
            stage,
            2 * (attention.kv_rank + (attention.query_rank or 0)),
            5 * (attention.kv_rank + (attention.query_rank or 0)),
        ),
        elementwise(
            "rotary_emb", stage, 2 * (heads + 1) * attention.rope_dim, 3 * (heads + 1) * attention.rope_dim
        ),
        linear("kv_b_proj", stage, attention.kv_rank, expanded, weights, Feature.PREFILL_CONTEXT),
        Operator(
            "attention_prefill",
            stage,
            flops=affine(prefill_pairs=2 * (query + value)),
            bytes=affine(prefill_context=expanded_key_value, tokens=prefill_row, decodes=-prefill_row),
            runs_on=Feature.PREFILL_CONTEXT,
        ),
        _absorbed("q_absorb", heads, attention.nope_dim, attention.kv_rank),
        Operator(
            "attention_decode",
            stage,
            flops=affine(decode_context=2 * heads * (latent + attention.kv_rank)),
            bytes=affine(decode_context=latent_bytes, decodes=decode_row),
            runs_on=Feature.DECODES,
        ),
        _absorbed("v_absorb", heads, attention.kv_rank, attention.value_dim),
        linear("o_proj", stage, value, h, weights),
        *all_reduce(stage, h, parallelism.tensor_in_host),
    ]


def _absorbed(name: str, heads: int, inputs: int, outputs: int) -> Operator:
    """A batched product per head on the decodes; its matrices are kept in bf16."""
    return Operator(
        name,
        "attention",
        flops=affine(decodes=2 * heads * inputs * outputs),
        bytes=affine(
            one=heads * inputs * outputs * ACTIVATION_BYTES,
            decodes=heads * (inputs + outputs) * ACTIVATION_BYTES,
        ),
        runs_on=Feature.DECODES,
    )
