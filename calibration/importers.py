"""Times that others have measured, as tables of `models.cost.table`.

Each importer reads what its project publishes, keeps every row's source, and takes nothing for what it is not: a row
whose columns are not understood is refused, not guessed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from models.architecture import ARCHITECTURES, Architecture, GroupedQueryAttention
from models.cost.table import CostTable, TableError, table_of
from models.features import Operator
from models.operators import operators
from models.parallelism import Parallelism

__all__ = ["SYSTEMS", "import_aiconfigurator", "import_llmservingsim", "import_vidur"]

Row = dict[str, Any]


def _from_frame(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """A frame of table columns: each a column of `frame`, by name or as values, or one value for all."""
    return pd.DataFrame(columns, index=frame.index)


# --- LLMServingSim ----------------------------------------------------------------------------------------------------

LLMSERVINGSIM_MODELS = {
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
}


def import_llmservingsim(folder: str | Path, model: str, tensor: int, skew: bool | None = None) -> CostTable:
    """Kernel times of one GPU and model from LLMServingSim's profiler: `FOLDER/MODEL/bf16/tpN/*.csv`, in us.

    One call in one layer, eager; `moe` includes the router, and is taken where it is there, else from tp1: a rank that
    holds some experts whole is in its rows, and one that holds a part of each is priced from them.

    skew: whether to take the batches with uneven contexts of skew.csv; None: as `skew_fit` of meta.yaml says. Their
    times are sums over `measurement_iterations` (the even ones among them take so many times what attention.csv says).
    """
    folder = Path(folder)
    if model not in LLMSERVINGSIM_MODELS:
        raise TableError(f"unknown model {model!r}; choose one of {', '.join(LLMSERVINGSIM_MODELS)}")
    architecture = ARCHITECTURES[LLMSERVINGSIM_MODELS[model]]
    at = folder / model / "bf16" / f"tp{tensor}"
    if not at.is_dir():
        raise TableError(f"{at}: no such folder; it holds attention.csv, dense.csv and per_sequence.csv")
    built = operators(architecture, Parallelism(tensor))
    common = {"unit": "s", "gpu": folder.name, "precision": "bf16",
              "source": f"LLMServingSim profiler, {folder.name}, {model}, tp{tensor} (MIT)"}  # fmt: skip
    frames = []
    for file, count in (("dense.csv", "tokens"), ("per_sequence.csv", "sequences")):
        read = _read_csv(at / file, ["layer", count, "time_us"])
        for layer, rows in read.groupby("layer", sort=False):
            operator = _operator_named(built, str(layer), at / file)
            frames.append(_from_frame(rows, name=layer, rows=rows[count], seconds=rows["time_us"] * 1e-6,
                                      **_shape(operator), **common))  # fmt: skip
    read = _read_csv(at / "attention.csv", ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"])
    attention = architecture.attention
    assert isinstance(attention, GroupedQueryAttention)
    frames.append(_from_frame(
        read, operator="attention", heads=attention.num_heads // tensor,
        kv_heads=max(attention.num_kv_heads // tensor, 1), head_dim=attention.head_dim, chunk=read["prefill_chunk"],
        prefix=read["kv_prefill"], decodes=read["n_decode"], context=read["kv_decode"],
        seconds=read["time_us"] * 1e-6, **common,
    ))  # fmt: skip
    meta = _meta(at.parent / "meta.yaml")
    if meta.get("skew_fit", {}).get("enabled", False) if skew is None else skew:
        frames += _uneven(at, attention, tensor, meta, common)
    experts = architecture.experts
    moe = next((file for file in (at / "moe.csv", at.parent / "tp1" / "moe.csv") if file.exists()), None)
    if experts is not None and moe is not None:
        read = _read_csv(moe, ["tokens", "activated_experts", "time_us"])
        cut = tensor if moe.parent == at else 1
        frames.append(_from_frame(
            read, operator="experts", name="moe", hidden=architecture.hidden_size, inner=experts.ffn_size // cut,
            top_k=experts.top_k, num_experts=experts.num_routed, rows=read["tokens"] * experts.top_k,
            experts=read["activated_experts"], seconds=read["time_us"] * 1e-6,
            **common | {"source": common["source"].replace(f"tp{tensor}", f"tp{cut}")},
        ))  # fmt: skip
    return table_of(pd.concat(frames, ignore_index=True), str(at))


def _meta(path: Path) -> dict[str, Any]:
    """meta.yaml of a profile; empty where there is none."""
    meta = YAML(typ="safe").load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return meta if isinstance(meta, dict) else {}


def _uneven(
    at: Path, attention: GroupedQueryAttention, tensor: int, meta: dict[str, Any], common: Row
) -> Iterator[pd.DataFrame]:
    """The uneven batches of skew.csv, `nb` of n decodes at kv_big and the others at kvs, and their even like."""
    iterations = meta.get("measurement_iterations")
    if not isinstance(iterations, int) or iterations < 1:
        raise TableError(f"{at.parent / 'meta.yaml'}: no measurement_iterations, over which skew.csv's times are sums")
    read = _read_csv(at / "skew.csv", ["n", "nb", "pc", "kp", "kvs", "kv_big", "kv_mean", "t_mean_us", "t_skew_us"])
    for context, num_long, longest, seconds in (
        (read["kvs"], read["nb"], read["kv_big"], read["t_skew_us"]),
        (read["kv_mean"], 0, read["kv_mean"], read["t_mean_us"]),
    ):
        yield _from_frame(
            read, operator="uneven_attention", heads=attention.num_heads // tensor,
            kv_heads=max(attention.num_kv_heads // tensor, 1), head_dim=attention.head_dim, chunk=read["pc"],
            prefix=read["kp"], decodes=read["n"], context=context, num_long=num_long, longest=longest,
            seconds=seconds * 1e-6 / iterations, **common,
        )  # fmt: skip


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.exists():
        raise TableError(f"{path}: no such file")
    read = pd.read_csv(path)
    missing = [column for column in columns if column not in read]
    if missing:
        raise TableError(f"{path}: no column {missing[0]}; it has {', '.join(read.columns)}")
    for column in columns:
        if column != "layer":
            values = pd.to_numeric(read[column], errors="coerce")
            if values.isna().any():
                line = int(values.isna().to_numpy().argmax()) + 2
                raise TableError(f"{path}: line {line}: {column} {read[column].iloc[line - 2]!r} is no number")
            read[column] = values
    return read


def _operator_named(built: Iterable[Operator], name: str, path: Path) -> Operator:
    for operator in built:
        if operator.name == name:
            return operator
    known = ", ".join(dict.fromkeys(operator.name for operator in built))
    raise TableError(f"{path}: layer {name!r} is no operator of this model; they are {known}")


def _shape(operator: Operator) -> Row:
    """The columns that say which operator it is."""
    if operator.kind == "linear":
        return {"operator": "linear", "inputs": operator.shape[0], "outputs": operator.shape[1]}
    return {"operator": "elementwise", "numbers": operator.shape[0]}


# --- aiconfigurator ---------------------------------------------------------------------------------------------------

SYSTEMS = {"h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "a100": "a100_sxm"}
"""Accelerators of `models.hardware` and the folders in which their times lie."""
PRECISIONS = {"bfloat16": "bf16", "float16": "bf16", "half": "bf16", "fp8": "fp8"}
MEMORY_PASS_WIDTHS = (4096, 16384)
"""Numbers a row: a usual hidden size, and one for the largest passes."""


def aiconfigurator_data() -> Path:
    """The folder of the tables that the installed package brings. Raises TableError where there is none."""
    for package in ("aiconfigurator_core", "aiconfigurator"):  # up to version 0.9 the tables were in the latter
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            data = Path(found.origin).parent / "systems" / "data"
            if data.is_dir():
                return data
    raise TableError("the package aiconfigurator-core is not installed; pip install 'spindle-sim[tables]'")


def import_aiconfigurator(accelerator: str, framework: str = "vllm", data: Path | None = None) -> CostTable:
    """Kernel and collective times of an accelerator from the tables that aiconfigurator publishes, in ms.

    framework: whose kernels: vllm, sglang or trtllm; of each operator its newest version is taken
    Attention: one prompt of `chunk` tokens without prefix, and decodes with `context` cached tokens each, without a
    window. Experts: the tables give the law by which tokens chose; how many experts they touched follows from it.
    A memory pass: quantising (2 bytes read, 1 written) of TensorRT-LLM.
    Left out: int4, fp8 by blocks, encoders, state-space and sparse attention, traffic between hosts.
    """
    if accelerator not in SYSTEMS:
        raise TableError(f"aiconfigurator has no tables for {accelerator!r}; choose one of {', '.join(SYSTEMS)}")
    root = (data or aiconfigurator_data()) / SYSTEMS[accelerator]
    frames = [frame for part in _PARTS for frame in part(_Folder(root, framework))]
    rows = pd.concat(frames, ignore_index=True)
    rows["gpu"] = rows["gpu"].mode().iloc[0]  # of PCIe and SXM names for one device
    return table_of(rows, f"aiconfigurator, {SYSTEMS[accelerator]}, {framework}")


class _Folder:
    """The tables of one device and framework."""

    def __init__(self, root: Path, framework: str) -> None:
        if not root.is_dir():
            raise TableError(f"{root}: no such folder")
        self.root, self.framework = root, framework

    def read(self, kind: str, file: str, framework: str | None = None) -> pd.DataFrame | None:
        """The newest version of a file, or None where there is none."""
        versions = [*(self.root / kind / (framework or self.framework)).glob(f"*/{file}_perf.parquet")]
        if not versions:
            return None
        newest = max(versions, key=lambda path: _version(path.parent.name))
        read = pd.read_parquet(newest)
        read["source"] = f"aiconfigurator {newest.relative_to(self.root.parent).as_posix()} (Apache-2.0)"
        return read


def _version(name: str) -> list[int]:
    """A version as numbers that compare: "1.3.0rc20" is [1, 3, 0, 20]."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _timed(read: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    return _from_frame(read, unit="s", gpu=read["device"], source=read["source"], seconds=read["latency"] * 1e-3,
                       **columns)  # fmt: skip


def _linear(folder: _Folder) -> Iterator[pd.DataFrame]:
    read = folder.read("gemm", "gemm")
    if read is not None:
        read = _fastest(read[read["gemm_dtype"].isin(["bfloat16", "fp8"])], ["gemm_dtype", "m", "n", "k"])
        yield _timed(read, operator="linear", precision=read["gemm_dtype"].map(PRECISIONS), inputs=read["k"],
                     outputs=read["n"], rows=read["m"])  # fmt: skip


def _fastest(read: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Of several kernels for one shape the fastest, as a library chooses."""
    return read.sort_values("latency").drop_duplicates(key).sort_index()


def _attention(folder: _Folder) -> Iterator[pd.DataFrame]:
    key = ["batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype"]
    for file, is_decode in (("context_attention", False), ("generation_attention", True)):
        read = folder.read("attention", file)
        if read is None:
            continue
        if "window_size" in read:
            read = read[read["window_size"] == 0]
        read = read[read["attn_dtype"].isin(["bfloat16", "float16"]) & read["kv_cache_dtype"].isin(PRECISIONS)]
        read = _fastest(read if is_decode else read[read["batch_size"] == 1], key)
        yield _timed(
            read, operator="attention", precision=read["kv_cache_dtype"].map(PRECISIONS), heads=read["num_heads"],
            kv_heads=read["num_key_value_heads"], head_dim=read["head_dim"],
            chunk=0 if is_decode else read["isl"], prefix=0, decodes=read["batch_size"] if is_decode else 0,
            context=read["step"] + read["isl"] if is_decode else 0,
        )  # fmt: skip


def _latent(folder: _Folder) -> Iterator[pd.DataFrame]:
    for file, is_decode in (("mla_context_module", False), ("mla_generation_module", True)):
        read = folder.read("mla", file)
        if read is None or "gemm_type" not in read:
            continue
        read = read[(read["gemm_type"] == "bfloat16") & (read["model"] == "deepseek-ai/DeepSeek-V3")]
        read = read if is_decode else read[read["batch_size"] == 1]
        read = _fastest(read, ["batch_size", "isl", "step", "num_heads", "kv_cache_dtype"])
        yield _timed(
            read, operator="latent_attention", precision=read["kv_cache_dtype"].map(PRECISIONS),
            heads=read["num_heads"], hidden=ARCHITECTURES["deepseek-v3"].hidden_size,
            chunk=0 if is_decode else read["isl"], prefix=0, decodes=read["batch_size"] if is_decode else 0,
            context=read["step"] + read["isl"] if is_decode else 0,
        )  # fmt: skip


def _experts(folder: _Folder) -> Iterator[pd.DataFrame]:
    read = folder.read("moe", "moe")
    if read is None:
        return
    # Over several ranks the first is the most loaded under a power law, by how much is not told: balanced loads only.
    rows = read["num_tokens"] * read["topk"] / read["moe_ep_size"]
    is_known = (read["moe_ep_size"] == 1) | (read["distribution"] == "balanced")
    is_whole = (rows == rows.round()) & (read["num_experts"] % read["moe_ep_size"] == 0)
    read = read[is_known & is_whole & read["moe_dtype"].isin(["bfloat16", "fp8"])]
    read = _fastest(read, ["moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
                           "moe_ep_size", "distribution"])  # fmt: skip
    local, rows = read["num_experts"] // read["moe_ep_size"], rows[read.index].astype(int)
    touched = [
        experts_touched(distribution, int(experts), int(num_rows), int(tokens))
        for distribution, experts, num_rows, tokens in zip(
            read["distribution"], local, rows, read["num_tokens"], strict=True)
    ]  # fmt: skip
    yield _timed(
        read, operator="experts", name="fused_moe", precision=read["moe_dtype"].map(PRECISIONS),
        hidden=read["hidden_size"], inner=read["inter_size"] // read["moe_tp_size"], top_k=read["topk"],
        num_experts=local, rows=rows, experts=touched,
    )  # fmt: skip


def experts_touched(distribution: str, num_experts: int, rows: int, num_tokens: int) -> int:
    """How many of a rank's experts `rows` (token, expert) pairs touch under a law of aiconfigurator's collector.

    balanced: all different, as far as there are experts. power_law_a: loads from a law of density x^-a between 1 and
    0.8 tokens, or 0.01 and 2 where there are fewer rows than experts, scaled to the rows and rounded; here at the
    law's quantiles instead of drawn.
    """
    if distribution == "balanced":
        return min(num_experts, rows)
    power = 1 - float(distribution.rpartition("_")[2])
    low, high = (1.0, max(0.8 * num_tokens, 1.001)) if rows > num_experts else (0.01, 2.0)
    quantiles = (np.arange(num_experts) + 0.5) / num_experts
    loads = (low**power + (high**power - low**power) * quantiles) ** (1 / power)
    touched = int((np.rint(loads / loads.sum() * rows) > 0).sum())
    return min(max(touched, 1), rows)


def _collectives(folder: _Folder) -> Iterator[pd.DataFrame]:
    names = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
             "alltoall": "all_to_all"}  # fmt: skip
    read = folder.read("comm", "nccl", "nccl")
    if read is not None:
        # Sizes are in numbers, of two bytes or one. Bytes that are only moved are the same; sums of bytes are not.
        read = read[(read["nccl_dtype"] == "half") | read["op_name"].isin(["all_gather", "alltoall"])]
        yield _timed(read, operator=read["op_name"].map(names), name="nccl", precision="bf16", ranks=read["num_gpus"],
                     size_bytes=read["message_size"] * read["nccl_dtype"].map({"half": 2, "int8": 1}))  # fmt: skip
    read = folder.read("comm", "custom_allreduce")
    if read is not None:
        if "backend" in read:
            read = read[~read["backend"].str.contains("eager")]
        read = _fastest(read, ["num_gpus", "message_size"])
        yield _timed(read, operator="all_reduce", name="custom", precision="bf16", ranks=read["num_gpus"],
                     size_bytes=2 * read["message_size"])  # fmt: skip


def _memory_pass(folder: _Folder) -> Iterator[pd.DataFrame]:
    read = folder.read("quantize", "scale_matrix", "trtllm")
    if read is not None:
        read = read[read["k"].isin(MEMORY_PASS_WIDTHS)]
        yield _timed(read, operator="memory_pass", name="quantize", size_bytes=3 * read["m"] * read["k"])


_PARTS = (_linear, _attention, _latent, _experts, _collectives, _memory_pass)


# --- Vidur ------------------------------------------------------------------------------------------------------------

VIDUR_LAYERS = {
    "attn_pre_proj": "qkv_proj", "attn_post_proj": "o_proj", "mlp_up_proj": "gate_up_proj", "mlp_act": "act_fn",
    "mlp_down_proj": "down_proj", "input_layernorm": "layernorm", "attn_rope": "rotary_emb",
}  # fmt: skip


def import_vidur(folder: str | Path, architecture: Architecture, tensor: int, gpu: str) -> CostTable:
    """Profiles of Vidur (Microsoft, MIT): `mlp.csv` and `attention.csv` of one model and device, in ms.

    Columns `time_stats.LAYER.median` by num_tokens and num_tensor_parallel_workers; attention by batch_size,
    prefill_chunk_size and kv_cache_size. Left out: its collectives and CPU overheads.
    """
    folder = Path(folder)
    built = operators(architecture, Parallelism(tensor))
    common = {"unit": "s", "gpu": gpu, "precision": "bf16", "source": f"Vidur, {folder.name} (MIT)"}
    mlp = _read_csv(folder / "mlp.csv", ["num_tokens", "num_tensor_parallel_workers"])
    mlp = mlp[mlp["num_tensor_parallel_workers"] == tensor]
    frames = []
    for theirs, ours in VIDUR_LAYERS.items():
        column = f"time_stats.{theirs}.median"
        rows = mlp[mlp[column].notna()] if column in mlp else mlp[:0]
        if len(rows):
            operator = _operator_named(built, ours, folder / "mlp.csv")
            frames.append(_from_frame(rows, name=ours, rows=rows["num_tokens"], seconds=rows[column] * 1e-3,
                                      **_shape(operator), **common))  # fmt: skip
    read = _read_csv(folder / "attention.csv", ["batch_size", "prefill_chunk_size", "kv_cache_size"])
    if "num_tensor_parallel_workers" in read:
        read = read[read["num_tensor_parallel_workers"] == tensor]
    attention = architecture.attention
    assert isinstance(attention, GroupedQueryAttention), "Vidur has no latent attention"
    for column, is_decode in (("time_stats.attn_prefill.median", False), ("time_stats.attn_decode.median", True)):
        if column not in read:
            continue
        rows = read[read[column].notna() & ((read["prefill_chunk_size"] == 0) == is_decode)]
        rows = rows if is_decode else rows[rows["batch_size"] == 1]
        frames.append(_from_frame(
            rows, operator="attention", heads=attention.num_heads // tensor,
            kv_heads=max(attention.num_kv_heads // tensor, 1), head_dim=attention.head_dim,
            chunk=0 if is_decode else rows["prefill_chunk_size"], prefix=0 if is_decode else rows["kv_cache_size"],
            decodes=rows["batch_size"] if is_decode else 0, context=rows["kv_cache_size"] if is_decode else 0,
            seconds=rows[column] * 1e-3, **common,
        ))  # fmt: skip
    if not frames or not any(len(frame) for frame in frames):
        raise TableError(f"{folder}: no time of {architecture.name} over {tensor} devices")
    return table_of(pd.concat(frames, ignore_index=True), str(folder))
