"""What a replica keeps in the memory of each accelerator: weights, cached keys and values, activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from models.architecture import Architecture, GroupedQueryAttention, LatentAttention
from models.hardware import PRECISIONS, Accelerator, Precision
from models.parallelism import Parallelism, ParallelismError
from models.pipeline import StagePart, stage_parts

__all__ = [
    "DoesNotFit",
    "MemoryPlan",
    "activation_bytes",
    "copies_per_block",
    "kv_bytes_per_token",
    "plan_memory",
    "weight_bytes",
]

GIB = 2**30
BF16_BYTES = PRECISIONS["bf16"]
SINGLE = Parallelism()

ENGINE_BYTES = 512 * 2**20
"""CUDA context, communicators and workspaces: an assumption, not measured here.

With `activation_bytes` it is 12 % above what vLLM 0.19.0 kept free on an RTX 4090 (2,515 blocks for 2,588), and
less than half of what vLLM 0.28.0, which counts CUDA graphs too, kept on an RTX PRO 6000 (36,618 for 35,913), by the
engine settings recorded in LLMServingSim's meta.json files. A scenario can give `kv.num_blocks` instead.
"""

SAMPLING_BYTES = 2 + 4 + 4 + 8 + 4 + 4
"""Of one row and one word of the vocabulary; `activation_bytes` lists them."""


class DoesNotFit(ValueError):
    """A model that leaves no room for its cache; the message has the numbers and what would help."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How one accelerator's memory is spent, and how many cache blocks remain.

    usable_bytes: the fraction of the device that the engine may take
    adapter_bytes: of the experts that adapters bring along
    num_kv_blocks: blocks of `block_size` tokens each, of one attention copy
    stages: of several pipeline stages the plan of an accelerator of each, with the blocks that fit there; the whole is
        then the stage on which the fewest fit
    """

    usable_bytes: int
    weight_bytes: int
    adapter_bytes: int
    activation_bytes: int
    engine_bytes: int
    kv_bytes_per_block: int
    block_size: int
    num_kv_blocks: int
    stages: tuple[MemoryPlan, ...] = ()

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.num_kv_blocks * self.block_size


def weight_bytes(
    architecture: Architecture,
    parallelism: Parallelism = SINGLE,
    weights: Precision = "bf16",
    stage: int = 0,
) -> int:
    """Bytes of weights on each accelerator, of this pipeline stage.

    Cut over `tensor`: attention, dense and shared feed-forward, embedding, output head. Whole on every rank:
    norms, router, the down-projections of latent attention, key-value heads fewer than ranks. Routed experts:
    cut over `tensor`, or whole ones on `expert` ranks. The first stage has the embedding, the last one the final norm
    and the head; where both are one matrix each has it. Embedding, head, norms and router stay bf16; linear
    layers have the precision `weights`.

    Leaves out: scales of quantised weights, a second copy that some kernels keep (absorbed latent
    projections).
    Raises ParallelismError where the model does not divide.
    """
    parallelism.check(architecture)
    part = stage_parts(architecture, parallelism.pipeline)[stage]
    h, tensor = architecture.hidden_size, parallelism.tensor
    vocabulary = -(-architecture.vocab_size // tensor) * h
    linear, plain = _attention_parameters(architecture, tensor)
    linear *= part.num_layers
    plain = (plain + 2 * h) * part.num_layers + (h if part.is_last else 0)
    plain += vocabulary * part.num_vocabulary_matrices(architecture.has_tied_embeddings)
    matrices = architecture.num_ffn_matrices
    linear += part.num_dense_layers * matrices * h * architecture.ffn_size // tensor
    experts = architecture.experts
    if experts is not None:
        ways = parallelism.expert if parallelism.expert > 1 else tensor
        routed = experts.num_routed * architecture.expert_parameters // ways
        shared = matrices * h * experts.shared_ffn_size // tensor
        linear += part.num_moe_layers * (routed + shared)
        plain += part.num_moe_layers * h * (experts.num_routed + (1 if experts.has_shared_gate else 0))
    return linear * PRECISIONS[weights] + plain * BF16_BYTES


def _attention_parameters(architecture: Architecture, tensor: int) -> tuple[int, int]:
    """Weights of one layer's attention on one rank: (in linear layers, in norms and biases)."""
    h, attention = architecture.hidden_size, architecture.attention
    if isinstance(attention, LatentAttention):
        heads = attention.num_heads // tensor
        query = attention.query_size // tensor
        into_query = h if attention.query_rank is None else attention.query_rank
        linear = into_query * query + h * (attention.kv_rank + attention.rope_dim)
        linear += 0 if attention.query_rank is None else h * attention.query_rank
        linear += attention.kv_rank * heads * (attention.nope_dim + attention.value_dim)
        return linear + heads * attention.value_dim * h, attention.kv_rank + (attention.query_rank or 0)
    query, key = attention.query_size // tensor, _kv_heads(attention, tensor) * attention.head_dim
    bias = query + 2 * key if attention.has_qkv_bias else 0
    norms = 2 * attention.head_dim if attention.has_qk_norm else 0
    return h * (2 * query + 2 * key), bias + norms


def _kv_heads(attention: GroupedQueryAttention, tensor: int) -> int:
    return max(attention.num_kv_heads // tensor, 1)


def kv_bytes_per_token(
    architecture: Architecture, tensor: int = 1, kv: Precision = "bf16", num_layers: int | None = None
) -> int:
    """Bytes that one token's cache takes on each of `tensor` ranks, all layers (or so many) together.

    Grouped-query: layers · 2 · heads per rank · head_dim · bytes. Latent: layers · (kv_rank + rope_dim) ·
    bytes, whole on every rank.
    """
    attention = architecture.attention
    if isinstance(attention, LatentAttention):
        numbers = attention.kv_rank + attention.rope_dim
    else:
        numbers = 2 * _kv_heads(attention, tensor) * attention.head_dim
    return (architecture.num_layers if num_layers is None else num_layers) * numbers * PRECISIONS[kv]


def copies_per_block(architecture: Architecture) -> int:
    """Copies that move one cache block to the host or back: of each layer its keys and its values, or its latents.

    Source: vLLM 0.6, csrc/cache_kernels.cu, swap_blocks: one cudaMemcpyAsync a block, called for each of them.
    """
    return architecture.num_layers * (1 if isinstance(architecture.attention, LatentAttention) else 2)


def activation_bytes(
    architecture: Architecture, parallelism: Parallelism, max_num_batched_tokens: int, max_num_seqs: int,
    samples: bool = True,
) -> int:
    """Largest activations that live at once: an estimate of what an engine finds by a trial run.

    Residual and hidden state (2 h a token) and the widest of: query, key and value with the attention's
    output; the inner width of a feed-forward, read and written; the rows of the routed experts likewise. Or,
    if larger, the sampling of `max_num_seqs` rows by top-p, as vLLM's PyTorch path does it (the FlashInfer and
    Triton samplers of later versions need less): per word of the vocabulary a
    bf16 logit (2 bytes), its float32 copy (4), sorted values (4) and indices (8), probabilities (4) and their
    running sums (4). A pipeline stage that is not the last one samples nothing (samples: False).

    Leaves out: fragmentation, buffers that an attention kernel keeps for itself.
    """
    h, tensor = architecture.hidden_size, parallelism.tensor
    attention = architecture.attention
    if isinstance(attention, LatentAttention):
        heads = attention.num_heads // tensor
        widest = heads * (2 * (attention.nope_dim + attention.rope_dim) + 2 * attention.value_dim)
    else:
        widest = 2 * (attention.query_size // tensor + _kv_heads(attention, tensor) * attention.head_dim)
    matrices = architecture.num_ffn_matrices
    if architecture.num_dense_layers:
        widest = max(widest, matrices * architecture.ffn_size // tensor)
    experts = architecture.experts
    if experts is not None:
        inner = experts.ffn_size // (tensor if parallelism.expert == 1 else 1)
        widest = max(widest, experts.top_k * (matrices * inner + h))
    in_layers = max_num_batched_tokens * (2 * h + widest) * BF16_BYTES
    sampling = max_num_seqs * architecture.vocab_size * SAMPLING_BYTES if samples else 0
    return max(in_layers, sampling)


def plan_memory(
    architecture: Architecture,
    accelerator: Accelerator,
    parallelism: Parallelism = SINGLE,
    weights: Precision = "bf16",
    kv: Precision = "bf16",
    memory_fraction: float = 0.9,
    block_size: int = 16,
    max_num_batched_tokens: int = 2048,
    max_num_seqs: int = 256,
    num_kv_blocks: int | None = None,
    accelerators_per_host: int = 8,
    adapters: Callable[[Parallelism, Precision], int] = lambda parallelism, weights: 0,
) -> MemoryPlan:
    """Memory of one accelerator and the cache blocks that fit.

    blocks = floor((fraction · memory - weights - adapters - activations - engine) / bytes of a block)
    A given `num_kv_blocks` is taken as it is, as an engine that is told so does, if it fits in the whole
    device. Of pipeline stages each holds its layers of every block, so that the stage on which the fewest fit decides
    (vLLM 0.19, v1/core/kv_cache_utils.py, get_kv_cache_configs: the minimum over the workers).

    accelerators_per_host: the largest tensor degree that the remedy of DoesNotFit may propose
    adapters: bytes on each accelerator that adapters add to the weights (`models.adapters.adapter_bytes`)
    Raises DoesNotFit when no block is left, with the smallest degrees that leave one; ParallelismError where the
    model does not divide, ValueError for a fraction outside (0, 1] or a block size below 1.
    """
    if not 0 < memory_fraction <= 1:
        raise ValueError(f"memory_fraction must be in (0, 1], got {memory_fraction}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 token, got {block_size}")

    def of_stage(parallelism: Parallelism, weights: Precision, stage: int, part: StagePart) -> MemoryPlan:
        """The plan as it comes out; with fewer than one block the model does not fit."""
        weight = weight_bytes(architecture, parallelism, weights, stage)
        activation = activation_bytes(architecture, parallelism, max_num_batched_tokens, max_num_seqs, part.is_last)
        usable = int(memory_fraction * accelerator.hbm_bytes)
        block = kv_bytes_per_token(architecture, parallelism.tensor, kv, part.num_layers) * block_size
        added = adapters(parallelism, weights)
        num_blocks = (usable - weight - added - activation - ENGINE_BYTES) // block
        return MemoryPlan(usable, weight, added, activation, ENGINE_BYTES, block, block_size, num_blocks)

    def planned(parallelism: Parallelism, weights: Precision) -> MemoryPlan:
        """The plan of the stage on which the fewest blocks fit."""
        parallelism.check(architecture)
        parts = enumerate(stage_parts(architecture, parallelism.pipeline))
        plans = tuple(of_stage(parallelism, weights, *part) for part in parts)
        return replace(min(plans, key=lambda plan: plan.num_kv_blocks), stages=plans if len(plans) > 1 else ())

    def taken_bytes(plan: MemoryPlan) -> int:
        return plan.weight_bytes + plan.adapter_bytes + (num_kv_blocks or 0) * plan.kv_bytes_per_block

    plan = planned(parallelism, weights)
    if num_kv_blocks is None:
        is_short = plan.num_kv_blocks < 1
    else:
        fullest = max(plan.stages or (plan,), key=taken_bytes)
        is_short = num_kv_blocks < 1 or taken_bytes(fullest) > accelerator.hbm_bytes
        plan = replace(fullest, stages=plan.stages) if is_short else plan
    if is_short:
        wanted = max(num_kv_blocks or 1, 1)
        numbers = (
            f"{architecture.name} does not fit on {accelerator.name}: of {plan.usable_bytes / GIB:.1f} GiB usable "
            f"({memory_fraction:g} of {accelerator.hbm_bytes / GIB:.1f}), weights take "
            f"{plan.weight_bytes / GIB:.1f}, "
            f"{f'adapters {plan.adapter_bytes / GIB:.1f}, ' if plan.adapter_bytes else ''}"
            f"activations {plan.activation_bytes / GIB:.1f}, the engine "
            f"{ENGINE_BYTES / GIB:.1f}, and {wanted} cache block{'s' if wanted > 1 else ''} would take "
            f"{wanted * plan.kv_bytes_per_block / GIB:.3g}"
        )
        if num_kv_blocks is not None and plan.num_kv_blocks >= 1:
            remedy = "ask for fewer cache blocks, or leave their number out"
        else:
            remedy = _remedy(architecture, parallelism, weights, accelerators_per_host, planned)
        raise DoesNotFit(f"{numbers}; {remedy}")
    return plan if num_kv_blocks is None else replace(plan, num_kv_blocks=num_kv_blocks)


def _remedy(
    architecture: Architecture,
    now: Parallelism,
    weights: Precision,
    most_tensor: int,
    planned: Callable[[Parallelism, Precision], MemoryPlan],
) -> str:
    """The smallest degrees with which the model fits, found by planning; fp8 weights where they help."""

    def fits(parallelism: Parallelism, weights: Precision) -> bool:
        try:
            return planned(parallelism, weights).num_kv_blocks >= 1
        except ParallelismError:
            return False

    def cuts(weights: Precision) -> list[str]:
        """One degree alone, if that is enough, else both."""
        tensor = range(now.tensor + 1, most_tensor + 1)
        experts = architecture.experts if now.pipeline == 1 else None
        expert = range(now.num_accelerators + 1, experts.num_routed + 1 if experts else 0)
        alone = [Parallelism(t, 1, pipeline=now.pipeline) for t in tensor if now.expert == 1]
        found = [f"tensor parallelism of {p.tensor}" for p in alone if fits(p, weights)][:1]
        wider = [Parallelism(now.tensor, e) for e in expert if e % now.tensor == 0]
        found += [f"expert parallelism of {p.expert}" for p in wider if fits(p, weights)][:1]
        both = [] if found else [Parallelism(t, e) for e in expert for t in tensor if e % t == 0]
        pairs = [f"tensor parallelism of {p.tensor} and expert parallelism of {p.expert}" for p in both
                 if fits(p, weights)]  # fmt: skip
        return found + pairs[:1]

    ways = cuts(weights)
    if weights == "bf16" and fits(now, "fp8"):
        ways.append("fp8 weights")
    if not ways and weights == "bf16":
        ways = [f"fp8 weights with {cut}" for cut in cuts("fp8")]
    if not ways and now.expert == 1:
        deeper = (replace(now, pipeline=stages) for stages in range(now.pipeline + 1, architecture.num_layers + 1))
        ways = [f"pipeline parallelism of {next((p.pipeline for p in deeper if fits(p, weights)), 0)}"]
        ways = [way for way in ways if not way.endswith(" 0")]
    if not ways:
        tried = f"no tensor degree up to {most_tensor} (accelerators of a host)"
        tried += " nor expert degree" if architecture.experts else ""
        return f"{tried} makes it fit, not with fp8 weights; take an accelerator with more memory"
    return f"take {' or '.join(ways)}, or an accelerator with more memory"
