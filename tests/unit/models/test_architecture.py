"""Parameter counts against the published totals."""

import pytest

from models.architecture import ARCHITECTURES

PUBLISHED = {
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.6e9,
    "mixtral-8x7b": 46.7e9,
    "deepseek-v2-lite": 15.7e9,
    "deepseek-v3": 671e9,
    "qwen3-30b-a3b": 30.5e9,
    "qwen3-32b": 32.8e9,
}
"""Model cards of the makers."""

PUBLISHED_ACTIVE = {"mixtral-8x7b": 12.9e9, "deepseek-v3": 37e9, "qwen3-30b-a3b": 3.3e9}
"""Parameters that a token meets, from the same cards, which round them to two digits."""


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_total_parameters(name, total):
    assert ARCHITECTURES[name].num_parameters == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize(("name", "active"), PUBLISHED_ACTIVE.items())
def test_active_parameters(name, active):
    assert ARCHITECTURES[name].num_active_parameters == pytest.approx(active, rel=0.02)


def test_every_preset_is_checked():
    assert set(PUBLISHED) == set(ARCHITECTURES)
    assert all(architecture.source for architecture in ARCHITECTURES.values())


def test_one_routed_expert_of_deepseek_v2_lite():
    """gate and up [2 x 1408, 2048] and down [2048, 1408] in bf16: 11 MiB + 5.5 MiB."""
    assert ARCHITECTURES["deepseek-v2-lite"].expert_parameters * 2 == 16.5 * 2**20


def test_dense_models_have_no_expert_layers():
    llama = ARCHITECTURES["llama-3.1-8b"]
    assert (llama.num_moe_layers, llama.num_dense_layers, llama.expert_parameters) == (0, 32, 0)
    assert llama.num_active_parameters == llama.num_parameters


def test_deepseek_keeps_its_first_layers_dense():
    assert ARCHITECTURES["deepseek-v3"].num_dense_layers == 3
    assert ARCHITECTURES["deepseek-v2-lite"].num_dense_layers == 1
