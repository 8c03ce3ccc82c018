"""One engine step as operator calls, each with flops and bytes affine in the features of the step.

The features are listed once, in `Feature`; every operator, every compiled table and every batch uses that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from models.architecture import Architecture, GroupedQueryAttention, LatentAttention
from models.hardware import PRECISIONS, Precision
from models.parallelism import Parallelism

__all__ = ["STAGES", "Feature", "Operator", "operators", "stage_repeats"]

ACTIVATION_BYTES = 2
"""Activations are bf16, whatever the precision of the weights."""


class Feature(IntEnum):
    """What an operator's flops and bytes depend on, in the order of the coefficient arrays.

    ONE               1 for every step that runs the operator: weights are read once
    TOKENS            tokens computed in this step, of prefill chunks and decodes together
    DECODES           those among them that are decodes (one each); the prefill tokens are TOKENS - DECODES
    SEQUENCES         rows through the output head: every decode and every prefill chunk, finished or not (an engine
                      that computes only the finished chunks passes that number)
    PREFILL_PAIRS     query-key pairs of the prefill chunks, causal: chunk * prefix + chunk (chunk + 1) / 2, summed
    PREFILL_CONTEXT   keys that prefill reads: prefix + chunk, summed over the chunks
    DECODE_CONTEXT    keys that decode reads: the context of each decode, its new token included, summed
    EXPERT_ROWS       (token, routed expert) pairs that one rank computes in one layer
    DISTINCT_EXPERTS  different routed experts that these pairs touch on that rank in that layer
    """

    ONE = 0
    TOKENS = 1
    DECODES = 2
    SEQUENCES = 3
    PREFILL_PAIRS = 4
    PREFILL_CONTEXT = 5
    DECODE_CONTEXT = 6
    EXPERT_ROWS = 7
    DISTINCT_EXPERTS = 8


Medium = Literal["hbm", "nvlink"]

STAGES = ("embed", "attention", "dense_ffn", "moe_local", "experts", "head")
"""embed: once · attention: once a layer, with its two norms · dense_ffn: once a dense layer · moe_local: once a layer with experts, its router
and shared experts, on the rank's own tokens · experts: once a layer with experts, on the rows a rank received · head: once."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A kernel, or a transfer inside the host, that one pass of a stage calls `calls` times on each rank.

    `flops` and `bytes` are coefficients of one call in `Feature` order. The operator runs where the feature `runs_on` is positive and costs
    nothing elsewhere. `medium` says whether its bytes pass the device's memory or its link to the other devices of
    the host; each of `num_messages` messages on that link pays its latency.
    """

    name: str
    stage: str
    flops: tuple[float, ...]
    bytes: tuple[float, ...]
    runs_on: Feature = Feature.TOKENS
    calls: int = 1
    precision: Precision = "bf16"
    medium: Medium = "hbm"
    num_messages: int = 0

    @property
    def is_communication(self) -> bool:
        """Whether it moves bytes between devices instead of computing."""
        return self.medium == "nvlink"


def affine(**coefficients: float) -> tuple[float, ...]:
    """Coefficients in `Feature` order from features named in lower case; the rest are 0."""
    values = [0.0] * len(Feature)
    for name, value in coefficients.items():
        values[Feature[name.upper()]] = float(value)
    return tuple(values)


def stage_repeats(architecture: Architecture) -> dict[str, int]:
    """How often a step passes each stage."""
    return {
        "embed": 1,
        "attention": architecture.num_layers,
        "dense_ffn": architecture.num_dense_layers,
        "moe_local": architecture.num_moe_layers,
        "experts": architecture.num_moe_layers,
        "head": 1,
    }


def operators(
    architecture: Architecture,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    weights: Precision = "bf16",
    kv: Precision = "bf16",
) -> tuple[Operator, ...]:
    """The operators of one step on one rank, stage by stage.

    Bytes count each operand once: weights, activations read and written, cached keys and values. Linear layers of attention, feed-forward
    and experts have `weights` precision; embedding, router, norms and output head stay bf16. Attention computes in bf16 at any `kv`.

    Leaves out: scales of quantised weights, quantising activations, padding of batches, rows read twice by a tile.
    Raises ParallelismError where the model does not divide.
    """
    parallelism.check(architecture)
    built = [*_embed(architecture, parallelism)]
    attention = architecture.attention
    if isinstance(attention, LatentAttention):
        built += _latent_attention(architecture, attention, parallelism, weights, kv)
    else:
        built += _grouped_attention(architecture, attention, parallelism, weights, kv)
    built += _dense_ffn(architecture, parallelism, weights)
    built += _experts(architecture, parallelism, weights)
    built += _head(architecture, parallelism)
    repeats = stage_repeats(architecture)
    return tuple(operator for operator in built if repeats[operator.stage])


def _linear(
    name: str, stage: str, inputs: float, outputs: float, precision: Precision, rows: Feature = Feature.TOKENS
) -> Operator:
    """rows x inputs times inputs x outputs: 2 · inputs · outputs flops a row, the weights read once."""
    row = rows.name.lower()
    weight_bytes = inputs * outputs * PRECISIONS[precision]
    return Operator(
        name,
        stage,
        flops=affine(**{row: 2 * inputs * outputs}),
        bytes=affine(**{"one": weight_bytes, row: (inputs + outputs) * ACTIVATION_BYTES}),
        runs_on=rows,
        precision=precision,
    )


def _elementwise(name: str, stage: str, numbers: float, flops: float, calls: int = 1) -> Operator:
    """A memory-bound pass that touches `numbers` activations and computes `flops` per token."""
    return Operator(name, stage, affine(tokens=flops), affine(tokens=numbers * ACTIVATION_BYTES), calls=calls)


def _all_reduce(stage: str, hidden_size: int, tensor: int) -> list[Operator]:
    """Sum of the ranks' activations: reduce-scatter and all-gather, each a direct exchange over the switch.

    2 (latency + (n - 1) / n · size / rate): a fully connected domain needs one message time per phase, a ring n - 1.
    """
    if tensor == 1:
        return []
    size_bytes = hidden_size * ACTIVATION_BYTES
    moved = 2 * (tensor - 1) / tensor * size_bytes
    return [
        Operator("tensor_all_reduce", stage, affine(), affine(tokens=moved), medium="nvlink", num_messages=2)
    ]


def _embed(architecture: Architecture, parallelism: Parallelism) -> list[Operator]:
    h = architecture.hidden_size
    return [_elementwise("embedding", "embed", 2 * h, 0), *_all_reduce("embed", h, parallelism.tensor)]


def _grouped_attention(
    architecture: Architecture,
    attention: GroupedQueryAttention,
    parallelism: Parallelism,
    weights: Precision,
    kv: Precision,
) -> list[Operator]:
    h, stage, tensor = architecture.hidden_size, "attention", parallelism.tensor
    query = attention.query_size // tensor
    # More ranks than key-value heads: each rank keeps a whole one.
    key = max(attention.num_kv_heads // tensor, 1) * attention.head_dim
    key_value_bytes = 2 * key * PRECISIONS[kv]
    row_bytes = 2 * query * ACTIVATION_BYTES + key_value_bytes
    built = [
        _elementwise("layernorm", stage, 4 * h, 5 * h, calls=2),
        _linear("qkv_proj", stage, h, query + 2 * key, weights),
        _elementwise("rotary_emb", stage, 2 * (query + key), 3 * (query + key)),
        Operator(
            "attention_prefill",
            stage,
            flops=affine(prefill_pairs=4 * query),
            bytes=affine(prefill_context=key_value_bytes, tokens=row_bytes, decodes=-row_bytes),
            runs_on=Feature.PREFILL_CONTEXT,
        ),
        Operator(
            "attention_decode",
            stage,
            flops=affine(decode_context=4 * query),
            bytes=affine(decode_context=key_value_bytes, decodes=row_bytes),
            runs_on=Feature.DECODES,
        ),
        _linear("o_proj", stage, query, h, weights),
        *_all_reduce(stage, h, tensor),
    ]
    if attention.has_qk_norm:
        built.insert(2, _elementwise("qk_norm", stage, 2 * (query + key), 4 * (query + key)))
    return built


def _latent_attention(
    architecture: Architecture,
    attention: LatentAttention,
    parallelism: Parallelism,
    weights: Precision,
    kv: Precision,
) -> list[Operator]:
    """Prefill expands the latent of its context into keys and values; decode folds that expansion into the query and the output.

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
        projections = [_linear("q_proj", stage, h, query, weights)]
    else:
        projections = [
            _linear("q_a_proj", stage, h, attention.query_rank, weights),
            _linear("q_b_proj", stage, attention.query_rank, query, weights),
        ]
    prefill_row = (query + value) * ACTIVATION_BYTES + latent_bytes
    decode_row = heads * (latent + attention.kv_rank) * ACTIVATION_BYTES + latent_bytes
    expanded_key_value = (query + value) * ACTIVATION_BYTES
    return [
        _elementwise("layernorm", stage, 4 * h, 5 * h, calls=2),
        *projections,
        _linear("kv_a_proj", stage, h, latent, weights),
        _elementwise("latent_norm", stage, 2 * (attention.kv_rank + (attention.query_rank or 0)), 5 * latent),
        _elementwise(
            "rotary_emb", stage, 2 * (heads + 1) * attention.rope_dim, 3 * (heads + 1) * attention.rope_dim
        ),
        _linear("kv_b_proj", stage, attention.kv_rank, expanded, weights, Feature.PREFILL_CONTEXT),
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
        _linear("o_proj", stage, value, h, weights),
        *_all_reduce(stage, h, parallelism.tensor),
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


def _dense_ffn(architecture: Architecture, parallelism: Parallelism, weights: Precision) -> list[Operator]:
    h, stage = architecture.hidden_size, "dense_ffn"
    inner = architecture.ffn_size // parallelism.tensor
    wide = (architecture.num_ffn_matrices - 1) * inner
    return [
        _linear("gate_up_proj", stage, h, wide, weights),
        _elementwise("act_fn", stage, wide + inner, 5 * inner),
        _linear("down_proj", stage, inner, h, weights),
        *_all_reduce(stage, h, parallelism.tensor),
    ]


def _experts(architecture: Architecture, parallelism: Parallelism, weights: Precision) -> list[Operator]:
    experts = architecture.experts
    if experts is None:
        return []
    h, tensor, matrices = architecture.hidden_size, parallelism.tensor, architecture.num_ffn_matrices
    built = [_linear("router", "moe_local", h, experts.num_routed, "bf16")]
    if experts.shared_ffn_size:
        inner = experts.shared_ffn_size // tensor
        built.append(_feed_forward("shared_experts", h, inner, matrices, weights))
    built += _all_reduce("moe_local", h, tensor)
    inner = experts.ffn_size // (tensor if parallelism.expert == 1 else 1)
    parameters = matrices * h * inner
    # Gate and up write their outputs, the activation reads them and writes one, down reads that.
    row_numbers = 2 * h + 2 * matrices * inner
    built.append(
        Operator(
            "routed_experts",
            "experts",
            flops=affine(expert_rows=2 * parameters),
            bytes=affine(
                distinct_experts=parameters * PRECISIONS[weights], expert_rows=row_numbers * ACTIVATION_BYTES
            ),
            runs_on=Feature.EXPERT_ROWS,
            precision=weights,
        )
    )
    # The weighted sum over a token's experts reads its rows; the one row it writes is in the next norm.
    built.append(
        Operator(
            "expert_combine",
            "experts",
            flops=affine(expert_rows=2 * h),
            bytes=affine(expert_rows=h * ACTIVATION_BYTES),
            runs_on=Feature.EXPERT_ROWS,
        )
    )
    return built


def _feed_forward(name: str, h: int, inner: int, matrices: int, weights: Precision) -> Operator:
    """A whole feed-forward as one operator."""
    parameters = matrices * h * inner
    return Operator(
        name,
        "moe_local",
        flops=affine(tokens=2 * parameters),
        bytes=affine(
            one=parameters * PRECISIONS[weights], tokens=(2 * h + 2 * matrices * inner) * ACTIVATION_BYTES
        ),
        precision=weights,
    )


def _head(architecture: Architecture, parallelism: Parallelism) -> list[Operator]:
    h, stage, tensor = architecture.hidden_size, "head", parallelism.tensor
    vocabulary = -(-architecture.vocab_size // tensor)
    built = [
        _elementwise("final_layernorm", stage, 4 * h, 5 * h),
        _linear("lm_head", stage, h, vocabulary, "bf16", Feature.SEQUENCES),
    ]
    if tensor > 1:
        gathered = (tensor - 1) * vocabulary * ACTIVATION_BYTES
        built.append(
            Operator(
                "logits_all_gather",
                stage,
                affine(),
                affine(sequences=gathered),
                runs_on=Feature.SEQUENCES,
                medium="nvlink",
                num_messages=1,
            )
        )
    # Logits widened to float32 (read 2 bytes, write 4), then read once.
    sampler_bytes = architecture.vocab_size * (ACTIVATION_BYTES + 4 + 4)
    sampler_flops = 5 * architecture.vocab_size
    built.append(
        Operator(
            "sampler",
            stage,
            affine(sequences=sampler_flops),
            affine(sequences=sampler_bytes),
            runs_on=Feature.SEQUENCES,
        )
    )
    return built
