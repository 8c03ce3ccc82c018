"""Presets are complete: a number without a source is not one."""

import dataclasses

import pytest

from models.hardware import ACCELERATORS, NICS


@pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=lambda accelerator: accelerator.name)
def test_every_number_has_a_source(accelerator):
    numbers = {field.name for field in dataclasses.fields(accelerator)} - {"name", "sources"}
    assert set(accelerator.sources) == numbers
    assert all(accelerator.sources.values())


@pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=lambda accelerator: accelerator.name)
def test_fp8_doubles_the_rate_or_is_absent(accelerator):
    if accelerator.fp8_flops_per_s is None:
        assert accelerator.flops_per_s("fp8") == accelerator.bf16_flops_per_s
    else:
        assert accelerator.flops_per_s("fp8") == pytest.approx(2 * accelerator.bf16_flops_per_s, rel=1e-3)


def test_a100_widens_fp8_weights():
    assert ACCELERATORS["a100"].fp8_flops_per_s is None
    assert ACCELERATORS["a100"].flops_per_s("fp8") == 312e12


def test_pcie_hosts_are_marked_unmeasured():
    for name in ("rtx4090", "rtx_pro_6000"):
        assert ACCELERATORS[name].nvlink_bytes_per_s == 16e9
        assert ACCELERATORS[name].nvlink_latency_s == 20e-6
        assert "unmeasured" in ACCELERATORS[name].sources["nvlink_bytes_per_s"]


def test_nic_line_rates():
    assert NICS["400g"].bytes_per_s == 50e9
    assert all(nic.source for nic in NICS.values())
