"""Which rank's keys and values go to which rank, when a request moves to a replica that is cut otherwise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from models.architecture import Architecture, LatentAttention
from models.hardware import PRECISIONS, Precision

__all__ = ["KVShards", "kv_shards"]


@dataclass(frozen=True, slots=True)
class KVShards:
    """What one token's keys and values are, rank by rank.

    source, destination   tensor ranks of the sending and of the receiving replica, one entry per pair that talks
    layer_bytes           bytes of one layer and one token between the pair
    """

    source: tuple[int, ...]
    destination: tuple[int, ...]
    layer_bytes: tuple[int, ...]
    num_layers: int

    @property
    def token_bytes(self) -> int:
        """Of one token, all layers and pairs: what all ranks of the receiving replica keep."""
        return self.num_layers * sum(self.layer_bytes)


def kv_shards(
    architecture: Architecture, source_tensor: int, destination_tensor: int, kv: Precision = "bf16"
) -> KVShards:
    """The pairs of ranks between replicas of so many tensor ranks each, and the bytes of each.

    Grouped-query: a rank keeps the heads rank · heads / ranks …, or, of more ranks than heads, one head that ranks /
    heads of them have. Each head that a rank keeps comes to it once, from a rank that has it; where several have it,
    they take turns. Latent: every rank keeps the whole latent, and rank j gets it from rank j modulo the senders.

    A rank receives `kv_bytes_per_token` of its own degree, whatever the sender's.
    Leaves out: scales of quantised caches.
    Source: vLLM, nixl_connector.py, which reads equal or coarser shards alike.
    """
    attention, layers = architecture.attention, architecture.num_layers
    if isinstance(attention, LatentAttention):
        size = (attention.kv_rank + attention.rope_dim) * PRECISIONS[kv]
        pairs = Counter({(j % source_tensor, j): size for j in range(destination_tensor)})
    else:
        heads, size = attention.num_kv_heads, 2 * attention.head_dim * PRECISIONS[kv]
        pairs = Counter()
        for j in range(destination_tensor):
            first = j * heads // destination_tensor
            for head in range(first, first + max(heads // destination_tensor, 1)):
                copies = max(source_tensor // heads, 1)
                pairs[head * source_tensor // heads + j % copies, j] += size
    order = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    return KVShards(tuple(i for i, _ in order), tuple(j for _, j in order), tuple(pairs[p] for p in order), layers)
