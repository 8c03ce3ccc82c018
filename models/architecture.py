"""Transformer architectures: the sizes from which operators, memory and cost follow.

`models.hugging_face.from_hugging_face` reads others from a `config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.hardware import Precision

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureError",
    "Experts",
    "GroupedQueryAttention",
    "LatentAttention",
]


class ArchitectureError(ValueError):
    """A model description that cannot be read, lacks a key or has layers that are not modelled."""


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Softmax attention where `num_heads` query heads share `num_kv_heads` key-value heads.

    Equal counts are plain multi-head attention, one key-value head is multi-query attention.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qkv_bias: bool = False
    has_qk_norm: bool = False

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of one layer: q, k, v and o projections, their biases, the norms of queries and keys."""
        projections = hidden_size * (2 * self.query_size + 2 * self.key_size)
        bias = self.query_size + 2 * self.key_size if self.has_qkv_bias else 0
        norms = 2 * self.head_dim if self.has_qk_norm else 0
        return projections + bias + norms


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    The cache holds per token one latent of `kv_rank` numbers and one rotary key of `rope_dim`, shared by all
    heads. `query_rank` None: the queries are projected directly.
    """

    num_heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def query_size(self) -> int:
        """Width of all query heads together, rotary part included."""
        return self.num_heads * (self.nope_dim + self.rope_dim)

    def num_parameters(self, hidden_size: int) -> int:
        """Weights of one layer: projections of queries and latent, down and up, their norms, output."""
        if self.query_rank is None:
            query = hidden_size * self.query_size
        else:
            query = hidden_size * self.query_rank + self.query_rank + self.query_rank * self.query_size
        down = hidden_size * (self.kv_rank + self.rope_dim) + self.kv_rank
        up = self.kv_rank * self.num_heads * (self.nope_dim + self.value_dim)
        return query + down + up + self.num_heads * self.value_dim * hidden_size


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture-of-experts layers of a model.

    `layers` are the indices of the layers that have experts; the others keep the dense feed-forward.
    `shared_ffn_size` is the inner width of all shared experts together (they run as one feed-forward), 0
    where there are none.
    """

    num_routed: int
    top_k: int
    ffn_size: int
    layers: tuple[int, ...]
    shared_ffn_size: int = 0
    has_shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer with pre-norm layers.

    checkpoint_precision: how its published weights are stored, which is what serving takes unless told otherwise

    Leaves out: vision towers, multi-token-prediction heads, sliding windows, layers that differ in anything
    but dense against experts.
    """

    name: str
    source: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    attention: GroupedQueryAttention | LatentAttention
    ffn_size: int
    experts: Experts | None = None
    is_gated: bool = True
    has_tied_embeddings: bool = False
    max_positions: int | None = None
    checkpoint_precision: Precision = "bf16"

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return len(self.experts.layers) if self.experts else 0

    @property
    def num_dense_layers(self) -> int:
        """Layers with a dense feed-forward."""
        return self.num_layers - self.num_moe_layers

    @property
    def num_ffn_matrices(self) -> int:
        """Matrices of a feed-forward: gate, up and down, or up and down without a gate."""
        return 3 if self.is_gated else 2

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert in one layer, 0 for a dense model."""
        return self.num_ffn_matrices * self.hidden_size * self.experts.ffn_size if self.experts else 0

    @property
    def num_parameters(self) -> int:
        """All weights: embedding, layers, norms, output head (once, where tied).

        layers (attention + 2 h of norms + feed-forward) + h of final norm + h V embedding, twice if untied
        """
        h = self.hidden_size
        embeddings = h * self.vocab_size * (1 if self.has_tied_embeddings else 2)
        layers = self.num_layers * (self.attention.num_parameters(h) + 2 * h)
        dense = self.num_dense_layers * self.num_ffn_matrices * h * self.ffn_size
        return embeddings + layers + dense + self.num_moe_layers * self._moe_layer_parameters() + h

    @property
    def num_active_parameters(self) -> int:
        """Weights that one token meets: top-k routed experts of each layer instead of all."""
        if self.experts is None:
            return self.num_parameters
        idle = self.experts.num_routed - self.experts.top_k
        return self.num_parameters - self.num_moe_layers * idle * self.expert_parameters

    def _moe_layer_parameters(self) -> int:
        if self.experts is None:
            return 0
        h = self.hidden_size
        router = h * self.experts.num_routed
        shared = self.num_ffn_matrices * h * self.experts.shared_ffn_size
        gate = h if self.experts.has_shared_gate else 0
        return self.experts.num_routed * self.expert_parameters + router + shared + gate


def _layers_from(first: int, num_layers: int) -> tuple[int, ...]:
    return tuple(range(first, num_layers))


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="llama-3.1-8b",
            source="config.json of meta-llama/Llama-3.1-8B",
            vocab_size=128_256,
            hidden_size=4096,
            num_layers=32,
            attention=GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128),
            ffn_size=14_336,
            max_positions=131_072,
        ),
        Architecture(
            name="llama-3.1-70b",
            source="config.json of meta-llama/Llama-3.1-70B",
            vocab_size=128_256,
            hidden_size=8192,
            num_layers=80,
            attention=GroupedQueryAttention(num_heads=64, num_kv_heads=8, head_dim=128),
            ffn_size=28_672,
            max_positions=131_072,
        ),
        Architecture(
            name="mixtral-8x7b",
            source="config.json of mistralai/Mixtral-8x7B-v0.1",
            vocab_size=32_000,
            hidden_size=4096,
            num_layers=32,
            attention=GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128),
            ffn_size=14_336,
            experts=Experts(num_routed=8, top_k=2, ffn_size=14_336, layers=_layers_from(0, 32)),
            max_positions=32_768,
        ),
        Architecture(
            name="deepseek-v2-lite",
            source="config.json of deepseek-ai/DeepSeek-V2-Lite; arXiv 2405.04434, appendix B",
            vocab_size=102_400,
            hidden_size=2048,
            num_layers=27,
            attention=LatentAttention(
                num_heads=16, query_rank=None, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            ffn_size=10_944,
            experts=Experts(
                num_routed=64, top_k=6, ffn_size=1408, layers=_layers_from(1, 27), shared_ffn_size=2 * 1408
            ),
            max_positions=163_840,
        ),
        Architecture(
            name="deepseek-v3",
            source="config.json of deepseek-ai/DeepSeek-V3; arXiv 2412.19437, section 4.2",
            vocab_size=129_280,
            hidden_size=7168,
            num_layers=61,
            attention=LatentAttention(
                num_heads=128, query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            ffn_size=18_432,
            experts=Experts(
                num_routed=256, top_k=8, ffn_size=2048, layers=_layers_from(3, 61), shared_ffn_size=2048
            ),
            max_positions=163_840,
            checkpoint_precision="fp8",
        ),
        Architecture(
            name="qwen3-30b-a3b",
            source="config.json of Qwen/Qwen3-30B-A3B",
            vocab_size=151_936,
            hidden_size=2048,
            num_layers=48,
            attention=GroupedQueryAttention(num_heads=32, num_kv_heads=4, head_dim=128, has_qk_norm=True),
            ffn_size=6144,
            experts=Experts(num_routed=128, top_k=8, ffn_size=768, layers=_layers_from(0, 48)),
            max_positions=40_960,
        ),
        Architecture(
            name="qwen3-32b",
            source="config.json of Qwen/Qwen3-32B",
            vocab_size=151_936,
            hidden_size=5120,
            num_layers=64,
            attention=GroupedQueryAttention(num_heads=64, num_kv_heads=8, head_dim=128, has_qk_norm=True),
            ffn_size=25_600,
            max_positions=40_960,
        ),
    )
}
"""Presets by name."""
