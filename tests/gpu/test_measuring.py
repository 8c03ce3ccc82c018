"""Measuring on a GPU: a few points of each family have times, and none is faster than the device."""

from __future__ import annotations

import pytest

from calibration.gpu import GpuTimer
from calibration.grids import model_needs, points_of
from calibration.journal import journal_of
from calibration.measure import main
from calibration.points import CEILINGS, COPY, PAGE_CALLS, PRODUCT, point, rates
from models.cost.needs import Need, needs_to_json
from models.cost.table import read_table

pytestmark = pytest.mark.gpu

HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
EXPERTS = {"hidden": 2048, "inner": 1408, "top_k": 6, "num_experts": 64}
ROUTED = {"top_k": 6, "num_experts": 64, "adapters": 8}
POINTS = [
    point("linear", inputs=4096, outputs=4096, rows=16),
    point("linear", inputs=4096, outputs=28672, rows=4096),
    point("attention", "sdpa", **HEADS, chunk=2048, prefix=0, decodes=0, context=0),
    point("attention", "sdpa", **HEADS, chunk=512, prefix=2048, decodes=0, context=0),
    point("attention", "sdpa", **HEADS, chunk=0, prefix=0, decodes=64, context=2048),
    *(point("experts", name, **EXPERTS, rows=384, experts=64) for name in ("pool", "padded")),
    point("elementwise", "layernorm", numbers=4 * 4096, rows=4096),
    *(point("reroute", name, **ROUTED, rows=65536) for name in ("kernel", "eager")),
    *(point("align", name, **ROUTED, slots=168, rows=rows) for name in ("plain", "reroute") for rows in (64, 4096)),
    point("host_copy", size_bytes=2**24),
    *(point("page_call", name, pages=8) for name in PAGE_CALLS),
]


@pytest.fixture(scope="module")
def timer(cuda):
    made = GpuTimer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def ceilings(timer):
    return {each: float(sorted(timer.seconds(each))[10]) for each in CEILINGS if each.precision != "fp8"}


@pytest.mark.parametrize("of", POINTS, ids=str)
def test_a_time_is_positive_and_below_the_ceilings(timer, ceilings, of):
    seconds = timer.seconds(of)
    assert (seconds > 0).all()
    share = rates(of, float(sorted(seconds)[len(seconds) // 2]), ceilings)["of_ceiling"]
    assert share is None or 0 < share <= 1.1


def test_ceilings_are_near_the_data_sheet(timer, ceilings):
    """More than 1 TB/s and 200 Tflop/s: whatever has tensor cores for bf16 and HBM2e or later."""
    assert COPY.num_bytes / ceilings[COPY] > 1e12
    assert PRODUCT["bf16"].num_flops / ceilings[PRODUCT["bf16"]] > 2e14


def test_a_small_table_from_the_command(timer, tmp_path):
    needs = [Need("linear", "", "bf16", (2048, 2048), 4), *list(model_needs("llama-3.1-8b", 1))[:1]]
    (tmp_path / "needs.json").write_text(needs_to_json(needs))
    out = tmp_path / "t.parquet"
    assert main(["--out", str(out), "--quick", "--needs", str(tmp_path / "needs.json")]) == 0
    table = read_table(out)
    assert not journal_of(out).exists()
    assert {p.columns["rows"] for p in points_of(needs[0], True)} <= set(table.of("linear", inputs=2048)["rows"])
    assert (table.rows["of_ceiling"].dropna() <= 1.1).all()
