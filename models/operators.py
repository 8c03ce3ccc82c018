"""One engine step as operator calls on one rank."""

from __future__ import annotations

from models.architecture import Architecture, LatentAttention
from models.attention import grouped_attention, latent_attention
from models.features import (
    ACTIVATION_BYTES,
    STAGES,
    Feature,
    Operator,
    affine,
    all_reduce,
    elementwise,
    gather_and_scatter,
    linear,
)
from models.hardware import PRECISIONS, Precision
from models.parallelism import Parallelism
from models.pipeline import handover
from models.rerouting import Rerouting, rerouting_operator

__all__ = ["STAGES", "Feature", "Operator", "operators", "routed_experts", "stage_repeats"]


def stage_repeats(architecture: Architecture, pipeline: int = 1) -> dict[str, int]:
    """How often a step passes each stage, on all `pipeline` stages of layers together."""
    return {
        "embed": 1,
        "attention": architecture.num_layers,
        "dense_ffn": architecture.num_dense_layers,
        "moe_local": architecture.num_moe_layers,
        "exchange": architecture.num_moe_layers,
        "experts": architecture.num_moe_layers,
        "head": 1,
        "handover": pipeline - 1,
    }


def operators(
    architecture: Architecture,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 - frozen
    weights: Precision = "bf16",
    kv: Precision = "bf16",
    rerouting: Rerouting | None = None,
) -> tuple[Operator, ...]:
    """The operators of one step on one rank, stage by stage.

    rerouting: of a model with experts that has adapters over it

    Of several pipeline stages those of all, one after the other; `models.pipeline.stage_shares` tells them apart.

    Bytes count each operand once: weights, activations read and written, cached keys and values. Linear
    layers of attention, feed-forward and experts have `weights` precision; embedding, router, norms and
    output head stay bf16. Attention computes in bf16 at any `kv`.

    Leaves out: scales of quantised weights, quantising activations, padded batches, rows that tiles reread.
    Raises ParallelismError where the model does not divide.
    """
    parallelism.check(architecture)
    built = [*_embed(architecture, parallelism)]
    attention = architecture.attention
    if isinstance(attention, LatentAttention):
        built += latent_attention(architecture, attention, parallelism, weights, kv)
    else:
        built += grouped_attention(architecture, attention, parallelism, weights, kv)
    built += _dense_ffn(architecture, parallelism, weights)
    built += _experts(architecture, parallelism, weights, rerouting)
    built += _head(architecture, parallelism)
    if parallelism.pipeline > 1:
        built += handover(architecture.hidden_size, parallelism.tensor)
    repeats = stage_repeats(architecture, parallelism.pipeline)
    return tuple(operator for operator in built if repeats[operator.stage])


def _embed(architecture: Architecture, parallelism: Parallelism) -> list[Operator]:
    h = architecture.hidden_size
    return [elementwise("embedding", "embed", 2 * h, 0), *all_reduce("embed", h, parallelism.tensor_in_host)]


def _dense_ffn(architecture: Architecture, parallelism: Parallelism, weights: Precision) -> list[Operator]:
    h, stage = architecture.hidden_size, "dense_ffn"
    inner = architecture.ffn_size // parallelism.tensor
    wide = (architecture.num_ffn_matrices - 1) * inner
    return [
        linear("gate_up_proj", stage, h, wide, weights),
        elementwise("act_fn", stage, wide + inner, 5 * inner),
        linear("down_proj", stage, inner, h, weights),
        *all_reduce(stage, h, parallelism.tensor_in_host),
    ]


def routed_experts(
    hidden: int, inner: int, top_k: int, num_experts: int, matrices: int, weights: Precision
) -> Operator:
    """Feed-forwards of one layer's routed experts on a rank that holds `num_experts` of them."""
    parameters = matrices * hidden * inner
    # Gate and up write their outputs, the activation reads them and writes one, down reads that.
    row_numbers = 2 * hidden + 2 * matrices * inner
    return Operator(
        "routed_experts", "experts",
        flops=affine(expert_rows=2 * parameters),
        bytes=affine(distinct_experts=parameters * PRECISIONS[weights], expert_rows=row_numbers * ACTIVATION_BYTES),
        runs_on=Feature.EXPERT_ROWS, precision=weights, kind="experts", shape=(hidden, inner, top_k, num_experts),
    )  # fmt: skip


def _experts(
    architecture: Architecture, parallelism: Parallelism, weights: Precision, rerouting: Rerouting | None
) -> list[Operator]:
    experts = architecture.experts
    if experts is None:
        return []
    h, tensor, matrices = architecture.hidden_size, parallelism.tensor, architecture.num_ffn_matrices
    built = [linear("router", "moe_local", h, experts.num_routed, "bf16")]
    if rerouting is not None:
        built.append(rerouting_operator(rerouting, experts.top_k, experts.num_routed))
    if experts.shared_ffn_size:
        inner = experts.shared_ffn_size // tensor
        built.append(_feed_forward("shared_experts", h, inner, matrices, weights))
    built += all_reduce("moe_local", h, parallelism.tensor_in_host)
    if parallelism.expert > 1 and parallelism.exchange == "all_gather":
        built += gather_and_scatter(h, parallelism.data)
    inner = experts.ffn_size // (tensor if parallelism.expert == 1 else 1)
    num_local = experts.num_routed // parallelism.expert
    built.append(routed_experts(h, inner, experts.top_k, num_local, matrices, weights))
    # The weighted sum over a token's experts reads its rows; the one row it writes is in the next norm.
    built.append(
        Operator(
            "expert_combine",
            "experts",
            flops=affine(expert_rows=2 * h),
            bytes=affine(expert_rows=h * ACTIVATION_BYTES),
            runs_on=Feature.EXPERT_ROWS,
            shape=(h,),
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
        kind="feed_forward",
        shape=(h, inner, matrices),
    )


def _head(architecture: Architecture, parallelism: Parallelism) -> list[Operator]:
    h, stage, tensor = architecture.hidden_size, "head", parallelism.tensor
    vocabulary = -(-architecture.vocab_size // tensor)
    built = [
        elementwise("final_layernorm", stage, 4 * h, 5 * h),
        linear("lm_head", stage, h, vocabulary, "bf16", Feature.SEQUENCES),
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
                kind="all_gather",
                shape=(tensor, tensor * vocabulary * ACTIVATION_BYTES),
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
            shape=(sampler_bytes // ACTIVATION_BYTES,),
        )
    )
    return built
