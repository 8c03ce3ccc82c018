"""Importers: what other projects' columns mean, on files written here, and on the real ones where they are."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.check import drops, held_out, lines, summary
from calibration.importers import experts_touched, import_aiconfigurator, import_llmservingsim, import_vidur
from models.architecture import ARCHITECTURES
from models.cost.table import TableError, table_of


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def profile(tmp_path, **changes: str) -> Path:
    files = {
        "dense": "layer,tokens,time_us\nqkv_proj,1,10\nlayernorm,8,2\n",
        "per_sequence": "layer,sequences,time_us\nlm_head,4,1000\n",
        "attention": "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n16,0,0,0,9\n0,0,2,32,11\n16,32,2,64,30\n",
    }
    write(tmp_path / "GPU1" / "meta-llama/Llama-3.1-8B" / "bf16" / "tp2", **files | changes)
    return tmp_path / "GPU1"


def test_a_profile_of_llmservingsim(tmp_path):
    """Llama-3.1-8B over two: 16 of 32 heads, 4 of 8 for keys, so that qkv_proj is 4096 x (2048 + 2 x 512)."""
    table = import_llmservingsim(profile(tmp_path), "meta-llama/Llama-3.1-8B", 2)
    assert table.gpu == "GPU1"
    linear = table.of("linear", name="qkv_proj").iloc[0]
    assert (linear["inputs"], linear["outputs"], linear["rows"]) == (4096, 3072, 1)
    assert linear["seconds"] == pytest.approx(1e-5)
    assert table.of("linear", name="lm_head")["outputs"].tolist() == [128_256 // 2]
    assert table.of("elementwise", name="layernorm")["numbers"].tolist() == [4 * 4096]
    attention = table.of("attention")
    assert attention[["heads", "kv_heads", "head_dim"]].drop_duplicates().to_numpy().tolist() == [[16, 4, 128]]
    assert attention[["chunk", "prefix", "decodes", "context"]].to_numpy().tolist() == [
        [16, 0, 0, 0], [0, 0, 2, 32], [16, 32, 2, 64],
    ]  # fmt: skip
    assert "LLMServingSim" in table.rows["source"].iloc[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense": "layer,tokens,time_us\nfast_proj,1,10\n"}, "layer 'fast_proj' is no operator of this model; they"),
        ({"dense": "layer,tokens,time_us\nqkv_proj,x,10\n"}, "dense.csv: line 2: tokens 'x' is no number"),
        ({"dense": "layer,tokens\nqkv_proj,1\n"}, "dense.csv: no column time_us; it has layer, tokens"),
    ],
)
def test_profiles_that_are_not_understood(tmp_path, changes, message):
    with pytest.raises(TableError, match=message):
        import_llmservingsim(profile(tmp_path, **changes), "meta-llama/Llama-3.1-8B", 2)


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(TableError, match="tp4: no such folder"):
        import_llmservingsim(profile(tmp_path), "meta-llama/Llama-3.1-8B", 4)
    with pytest.raises(TableError, match="unknown model 'gpt'; choose one of meta-llama"):
        import_llmservingsim(profile(tmp_path), "gpt", 1)


def test_vidur(tmp_path):
    mlp = "num_tokens,num_tensor_parallel_workers,time_stats.mlp_up_proj.median,time_stats.mlp_act.median\n"
    attention = (
        "batch_size,prefill_chunk_size,kv_cache_size,num_tensor_parallel_workers,time_stats.attn_prefill.median,"
        "time_stats.attn_decode.median\n1,128,64,1,0.02,\n4,0,512,1,,0.03\n"
    )
    write(tmp_path / "llama", mlp=mlp + "8,1,0.5,0.01\n8,2,0.3,0.01\n", attention=attention)
    table = import_vidur(tmp_path / "llama", ARCHITECTURES["llama-3.1-8b"], 1, "a100")
    up = table.of("linear").iloc[0]
    assert (up["name"], up["inputs"], up["outputs"], up["rows"]) == ("gate_up_proj", 4096, 28_672, 8)
    assert up["seconds"] == pytest.approx(5e-4)
    assert table.of("attention")[["chunk", "prefix", "decodes", "context"]].to_numpy().tolist() == [
        [128, 64, 0, 0], [0, 0, 4, 512],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("law", "experts", "rows", "tokens", "touched"),
    [("balanced", 128, 8, 1, 8), ("balanced", 128, 4096, 512, 128), ("power_law_1.2", 8, 4096, 2048, 8)],
)
def test_experts_that_a_law_touches(law, experts, rows, tokens, touched):
    assert experts_touched(law, experts, rows, tokens) == touched


def test_a_power_law_leaves_some_experts_out():
    found = [experts_touched(law, 128, 512, 64) for law in ("power_law_1.01", "power_law_1.2")]
    assert all(64 < touched < 128 for touched in found)


def test_held_out_points_of_a_straight_line_are_found_and_a_drop_is_listed():
    """10 us and 1 us a row, but for one of sixty rows that was measured at a third."""
    rows = [{"operator": "linear", "name": "x", "precision": "bf16", "inputs": 8, "outputs": 8, "rows": n, "unit": "s",
             "gpu": "A", "source": "a test", "seconds": (10 + n) * 1e-6 / (3 if n == 50 else 1)}
            for n in range(1, 61)]  # fmt: skip
    table = table_of(rows, "made")
    held = held_out(table)["linear"]
    assert len(held.errors) == 12 and held.num_outside == 0
    assert np.sort(held.errors)[:-1] == pytest.approx(0, abs=1e-9)
    assert summary({"linear": held})["verdict"].tolist() == ["ok"]
    assert drops(table)[["rows", "axis"]].to_numpy().tolist() == [[50, "rows"]]
    assert list(lines(table, held_out(table)))[-1] == "  linear x inputs 8, outputs 8, rows 50: 66%, 20.0 us"


@pytest.mark.parametrize("accelerator", ["h100", "h200", "b200", "a100"])
def test_the_tables_that_aiconfigurator_publishes(accelerator):
    pytest.importorskip("aiconfigurator_core")
    table = import_aiconfigurator(accelerator)
    assert accelerator in table.gpu.lower()
    assert {"linear", "attention", "experts", "all_reduce"} <= set(table.rows["operator"])
    assert table.rows["source"].str.startswith("aiconfigurator ").all()


@cache
def held_out_of(accelerator):
    return held_out(import_aiconfigurator(accelerator))


@pytest.mark.parametrize("accelerator", [pytest.param("h200", marks=pytest.mark.slow), "a100"])
def test_held_out_errors(accelerator):
    """What decision 012 promises of products, attention, experts and collectives: medians to 3 %, p90 to 10 %."""
    pytest.importorskip("aiconfigurator_core")
    found = summary(held_out_of(accelerator)).set_index("operator")
    operators = {"linear", "attention", "experts", "latent_attention", "memory_pass", "collectives"} & set(found.index)
    assert len(operators) >= 4
    assert found.loc[sorted(operators), "verdict"].tolist() == ["ok"] * len(operators), found.to_string()


def test_every_table_says_how_far_its_times_are_off_and_none_is_negative():
    pytest.importorskip("aiconfigurator_core")
    for held in held_out_of("a100").values():
        assert (held.found[~np.isnan(held.found)] > 0).all()
        assert len(held.errors) + held.num_outside == len(held.measured)


@pytest.mark.parametrize(
    ("gpu", "model", "tensor"),
    [("RTX4090", "meta-llama/Llama-3.1-8B", 1), ("RTXPRO6000", "Qwen/Qwen3-30B-A3B-Instruct-2507", 1),
     ("RTXPRO6000", "Qwen/Qwen3-32B", 2)],
)  # fmt: skip
def test_held_out_errors_of_real_profiles(shared_data, gpu, model, tensor):
    found = summary(held_out(import_llmservingsim(shared_data / "profiles" / gpu, model, tensor)))
    assert found["verdict"].tolist() == ["ok"] * len(found), found.to_string()


def test_real_rows_keep_their_numbers(shared_data):
    """One row of each file, as it stands there."""
    folder = shared_data / "profiles" / "RTXPRO6000"
    at = folder / "Qwen/Qwen3-30B-A3B-Instruct-2507" / "bf16" / "tp1"
    table = import_llmservingsim(folder, "Qwen/Qwen3-30B-A3B-Instruct-2507", 1)
    moe = pd.read_csv(at / "moe.csv").iloc[20]
    same = table.of("experts", rows=8 * int(moe["tokens"]), experts=int(moe["activated_experts"]))
    assert same["seconds"].tolist() == pytest.approx([moe["time_us"] * 1e-6])
    assert len(table.of("attention")) == len(pd.read_csv(at / "attention.csv"))


def test_experts_of_a_degree_without_a_profile_are_those_of_one_device(shared_data):
    """Whole experts, as a rank of two keeps half of them; a half of each is priced from them."""
    model = "Qwen/Qwen3-30B-A3B-Instruct-2507"
    one, two = (import_llmservingsim(shared_data / "profiles/RTXPRO6000", model, n).of("experts") for n in (1, 2))
    assert len(two) == len(one) > 0
    assert two["inner"].unique().tolist() == one["inner"].unique().tolist() == [768]
    assert two["source"].str.contains("tp1").all()
