from __future__ import annotations

import pytest

from models.architecture import ARCHITECTURES
from models.kv_transfer import kv_shards
from models.memory import kv_bytes_per_token

LLAMA = ARCHITECTURES["llama-3.1-8b"]  # 8 key-value heads of 128, 32 layers
DEEPSEEK = ARCHITECTURES["deepseek-v3"]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3"])
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
@pytest.mark.parametrize("source", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("destination", [1, 2, 4, 8, 16])
def test_every_rank_receives_what_it_keeps(model, kv, source, destination):
    shards = kv_shards(ARCHITECTURES[model], source, destination, kv)

    received = [0] * destination
    for j, size in zip(shards.destination, shards.layer_bytes, strict=True):
        received[j] += size * shards.num_layers
    assert received == [kv_bytes_per_token(ARCHITECTURES[model], destination, kv)] * destination
    assert shards.token_bytes == sum(received)
    assert set(shards.source) <= set(range(source))


def test_equal_degrees_send_rank_to_rank():
    shards = kv_shards(LLAMA, 4, 4)

    assert shards.source == shards.destination == (0, 1, 2, 3)
    assert shards.layer_bytes == (2 * 2 * 128 * 2,) * 4  # key and value, 2 heads each of 128 numbers of 2 bytes


def test_a_rank_gathers_the_heads_that_two_have():
    shards = kv_shards(LLAMA, 4, 2)

    assert list(zip(shards.source, shards.destination, strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_ranks_that_share_a_head_take_turns():
    """16 ranks keep 8 heads, two each: of the 4 receivers of one head two ask the first, two the second."""
    shards = kv_shards(LLAMA, 16, 32)

    first_head = [i for i, j in zip(shards.source, shards.destination, strict=True) if j < 4]
    assert first_head == [0, 1, 0, 1]


def test_a_latent_comes_whole_from_one_rank():
    shards = kv_shards(DEEPSEEK, 2, 4)

    assert list(zip(shards.source, shards.destination, strict=True)) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert set(shards.layer_bytes) == {(512 + 64) * 2}
