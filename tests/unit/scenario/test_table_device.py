"""Whose times a table has."""

import pytest

from sim.scenario.cost_table import is_of


@pytest.mark.parametrize(
    ("accelerator", "gpu", "is_it"),
    [
        ("h100", "NVIDIA H100 80GB HBM3", True), ("a100", "NVIDIA A100-SXM4-80GB", True), ("b200", "NVIDIA B200", True),
        ("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", True), ("rtx4090", "RTX4090", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", True), ("b200", "NVIDIA GB200", False), ("h200", "NVIDIA GH200", False),
        ("h100", "NVIDIA H100 PCIe", False), ("h200", "NVIDIA H200 NVL", False), ("h100", "NVIDIA H200", False),
        ("l40", "NVIDIA L40S", False), ("h100", "", False),
    ],
)  # fmt: skip
def test_a_device_is_named_by_whole_words(accelerator, gpu, is_it):
    assert is_of(accelerator, gpu) == is_it
