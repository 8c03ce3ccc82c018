"""Degrees that divide, and refusals that say which would."""

import pytest

from models.architecture import ARCHITECTURES
from models.parallelism import Parallelism, ParallelismError


def test_attention_copies():
    assert Parallelism(tensor=2).num_accelerators == 2
    assert Parallelism(tensor=2).data == 1
    spread = Parallelism(tensor=2, expert=16)
    assert (spread.num_accelerators, spread.data) == (16, 8)


@pytest.mark.parametrize(
    ("model", "parallelism"),
    [
        ("llama-3.1-8b", Parallelism(8)),
        ("llama-3.1-8b", Parallelism(32)),
        ("deepseek-v2-lite", Parallelism(1, 64)),
        ("deepseek-v3", Parallelism(8, 64)),
        ("qwen3-30b-a3b", Parallelism(4)),
    ],
)
def test_degrees_that_divide(model, parallelism):
    parallelism.check(ARCHITECTURES[model])


@pytest.mark.parametrize(
    ("model", "tensor", "expert", "words"),
    [
        ("llama-3.1-8b", 3, 1, "32 attention heads"),
        ("llama-3.1-8b", 1, 8, "no experts"),
        ("deepseek-v2-lite", 1, 48, "64 routed experts"),
        ("deepseek-v2-lite", 1, 48, "1, 2, 4, 8, 16, 32, 64"),
        ("deepseek-v2-lite", 32, 1, "16 attention heads"),
        ("deepseek-v2-lite", 4, 2, "multiple of tensor"),
        ("llama-3.1-8b", 0, 1, "at least 1"),
    ],
)
def test_refusals(model, tensor, expert, words):
    with pytest.raises(ParallelismError, match=words):
        Parallelism(tensor, expert).check(ARCHITECTURES[model])
