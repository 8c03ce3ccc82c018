"""Runs of a real engine, as they were recorded: what came, when it was scheduled, and when tokens came out."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.architecture import ARCHITECTURES
from sim.workload.prefix_traces import read_vllm_trace
from sim.workload.shared_blocks import SharedBlocks
from sim.workload.traces import TraceError

Float64 = NDArray[np.float64]


class RunError(ValueError):
    """A recording that cannot be replayed; the text names file, line, what is missing and the remedy."""


@dataclass(frozen=True)
class RecordedRun:
    """One engine, its settings and its requests in order of arrival; times from the first arrival, in seconds.

    tensor, data, is_expert_parallel    how the model was cut; of several data-parallel engines each has the limits
    pipeline      stages of its layers
    scheduled_s   None where only a client measured
    num_blocks    of its KV cache, of each engine, None where that was not recorded
    blocks        what prompts have in common, None where that is not known
    is_async, is_caching, has_graphs    whether the engine scheduled while it ran, cached prefixes, recorded graphs
    timeline      columns t, running, waiting, None where there is none
    policy        of its batches, a name in BATCHING_POLICIES
    """

    name: str
    model: str
    device: str
    tensor: int
    data: int
    is_expert_parallel: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    memory_fraction: float
    num_blocks: int | None
    arrival_s: Float64
    scheduled_s: Float64 | None
    first_token_s: Float64
    last_token_s: Float64
    num_prompt_tokens: NDArray[np.int64]
    num_output_tokens: NDArray[np.int64]
    blocks: SharedBlocks | None
    timeline: pd.DataFrame | None
    block_size: int = 16
    is_async: bool = True
    is_caching: bool = True
    has_graphs: bool = True
    pipeline: int = 1
    policy: str = "chunked_prefill"


def read_run(path: str | Path, workload: str | Path | None = None) -> RecordedRun:
    """A folder with requests.jsonl and meta.json, a result of `vllm bench serve --save-result --save-detailed`, or one
    of `python -m sglang.bench_serving --output-details`, a file with one line.

    requests.jsonl   a line per request: input_toks, output_toks, queued_ts, scheduled_ts, first_token_ts, last_token_ts
    meta.json        model, engine_kwargs; kv_cache.num_gpu_blocks where known
    timeseries.csv   t, running, waiting; may be missing
    workload         what was sent, in the same order, with the prompts' shared blocks (trace format `vllm`)
    Raises RunError.
    """
    path = Path(path)
    if path.name == "requests.jsonl":
        path = path.parent
    if path.is_dir() and (path / "requests.jsonl").is_file():
        return _read_engine_run(path, workload)
    results = [path] if path.is_file() else sorted(path.glob("*.json*")) if path.is_dir() else []
    for file in results:
        result = _read_only_line(file) if file.suffix == ".jsonl" else _read_json(file)
        if "ttfts" in result or SGLANG_S in result:
            return _read_client_run(file, result, workload)
    raise RunError(
        f"{path}: neither requests.jsonl with meta.json, nor a result of vllm bench serve with --save-result and "
        "--save-detailed, nor one of sglang.bench_serving with --output-details"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _read_only_line(path: Path) -> dict[str, Any]:
    """Of a file with a run a line, the run that is there."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON, a run a line: {error}") from error
    if len(found) > 1 and all(isinstance(run, dict) and SGLANG_S in run for run in found):
        raise RunError(f"{path}: {len(found)} runs, one a line; give a file with one of them")
    return found[0] if len(found) == 1 and isinstance(found[0], dict) else {}


FIELDS = ("input_toks", "output_toks", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def _read_engine_run(folder: Path, workload: str | Path | None) -> RecordedRun:
    rows = []
    path = folder / "requests.jsonl"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append([float(row[field]) for field in FIELDS])
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}, line {number}: needs numbers {', '.join(FIELDS)}: {error!r}") from None
        if not np.isfinite(rows[-1]).all():
            raise RunError(f"{path}, line {number}: {', '.join(FIELDS)} must be finite")
    if not rows:
        raise RunError(f"{path}: no requests")
    prompt, output, queued, scheduled, first, last = np.array(rows).T
    order = np.argsort(queued, kind="stable")
    start_s = queued.min()
    meta = _read_json(folder / "meta.json")
    engine, cache, device = (_part(meta, name) for name in ("engine_kwargs", "kv_cache", "hardware"))
    scheduler = _part(_part(meta, "resolved_config"), "scheduler_config")
    _refuse_others(folder / "meta.json", engine)
    series = folder / "timeseries.csv"
    return RecordedRun(
        name=f"{folder.parent.name}/{folder.name}",
        model=str(meta.get("model", "")),
        device=str(device.get("device_name", "")),
        tensor=_whole(folder, engine, "tensor_parallel_size", 1),
        data=_whole(folder, engine, "data_parallel_size", 1),
        is_expert_parallel=bool(engine.get("enable_expert_parallel", False)),
        max_num_seqs=_whole(folder, engine, "max_num_seqs", 256),
        max_num_batched_tokens=_whole(folder, engine, "max_num_batched_tokens", 2048),
        memory_fraction=float(cache.get("gpu_memory_utilization") or 0.9),
        num_blocks=_whole(folder, cache, "num_gpu_blocks", 0) or None,
        block_size=_whole(folder, cache, "block_size", 16),
        is_async=bool(scheduler.get("async_scheduling", True)),
        is_caching=bool(cache.get("enable_prefix_caching", engine.get("enable_prefix_caching", True))),
        has_graphs=not engine.get("enforce_eager", False),
        pipeline=max(_whole(folder, engine, "pipeline_parallel_size", 1), 1),
        arrival_s=queued[order] - start_s,
        scheduled_s=scheduled[order] - start_s,
        first_token_s=first[order] - start_s,
        last_token_s=last[order] - start_s,
        num_prompt_tokens=prompt[order].astype(np.int64),
        num_output_tokens=output[order].astype(np.int64),
        blocks=_shared(workload, prompt, order),
        timeline=pd.read_csv(series) if series.is_file() else None,
    )


def _part(meta: dict[str, Any], name: str) -> dict[str, Any]:
    found = meta.get(name)
    return found if isinstance(found, dict) else {}


def _whole(folder: Path, settings: dict[str, Any], name: str, usual: int) -> int:
    value = settings.get(name)
    if value is None:
        return usual
    if type(value) is not int or value < 0:
        raise RunError(f"{folder / 'meta.json'}: {name} {value!r} is not a whole number")
    return value


def _refuse_others(path: Path, engine: dict[str, Any]) -> None:
    """What the replay does not do."""
    usual = (None, "auto", "bfloat16")
    others = {"quantization": (None,), "kv_cache_dtype": usual, "dtype": usual}
    for name, known in others.items():
        if engine.get(name) not in known:
            raise RunError(f"{path}: {name} {engine[name]!r}: only bf16 is replayed so far")


def _read_client_run(path: Path, result: dict[str, Any], workload: str | Path | None) -> RecordedRun:
    is_sglang = SGLANG_S in result
    needed = ["input_lens", "output_lens", "ttfts", "itls"] + ([] if is_sglang else ["start_times"])
    missing = [key for key in needed if key not in result]
    if missing:
        options = "--output-details" if is_sglang else "--save-result --save-detailed"
        raise RunError(f"{path}: no {missing[0]}; record with {options}")
    if len({len(result[key]) for key in needed}) > 1 or not any(result["output_lens"]):
        raise RunError(f"{path}: {', '.join(needed)} must be equally long, and some request have succeeded")
    prompt, output = np.array(result["input_lens"]), np.array(result["output_lens"])
    ttft, gaps_s = np.array(result["ttfts"]), np.array([sum(gaps) for gaps in result["itls"]])
    start = np.array(result["start_times"]) if "start_times" in result else _sent_s(path, result, ttft + gaps_s)
    last = start + ttft + gaps_s
    done = output > 0
    order = np.flatnonzero(done)[np.argsort(start[done], kind="stable")]
    start_s = start[order].min()
    return RecordedRun(
        name=path.stem, model=str(result.get("model_id", "")), device="", tensor=1, data=1,
        is_expert_parallel=False, memory_fraction=0.9, num_blocks=None, arrival_s=start[order] - start_s,
        scheduled_s=None, first_token_s=(start + ttft)[order] - start_s, last_token_s=last[order] - start_s,
        num_prompt_tokens=prompt[order], num_output_tokens=output[order], blocks=_shared(workload, prompt, order),
        timeline=None, **(SGLANG if is_sglang else VLLM),
    )  # fmt: skip


SGLANG_S = "total_output_tokens_retokenized"
"""What only SGLang's client writes."""
VLLM: dict[str, Any] = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
SGLANG: dict[str, Any] = {"max_num_seqs": 2048, "max_num_batched_tokens": 8192, "policy": "prefill_first"}
"""How a server is set up that nobody said anything of: by its defaults. SGLang's are at least so many running requests,
on a GPU of 60 to 90 GiB so many tokens of prompts a step (chunked_prefill_size), and prompts in steps of their own
before decodes; that it computes a longer prompt in chunks is left out."""


def _sent_s(path: Path, result: dict[str, Any], latency_s: Float64) -> Float64:
    """When SGLang's client sent each request, which it does not save: at once, or, of as many under way as
    max_concurrency says, in turn when one of these had ended.

    Raises RunError where it drew the time between requests.
    """
    if result.get("request_rate") != np.inf:
        raise RunError(
            f"{path}: sglang.bench_serving does not save when it sent a request, and request_rate is "
            f"{result.get('request_rate')}; record with --request-rate inf, with or without --max-concurrency"
        )
    most = result.get("max_concurrency") or len(latency_s)
    sent_s, ends_s = np.zeros(len(latency_s)), list[float]()
    for i, seconds in enumerate(latency_s):
        if len(ends_s) >= most:
            sent_s[i] = heapq.heappop(ends_s)
        heapq.heappush(ends_s, float(sent_s[i] + seconds))
    return sent_s


def _shared(
    workload: str | Path | None, prompt: NDArray[Any], order: NDArray[np.int64]
) -> SharedBlocks | None:
    if workload is None:
        return None
    try:
        sent = read_vllm_trace(workload)
    except TraceError as error:
        raise RunError(f"{error}; the workload has the trace format vllm") from None
    if sent.num_prompt_tokens.tolist() != prompt.astype(np.int64).tolist():
        raise RunError(f"{workload}: its prompts are not those of the run, one by one; give the workload that was sent")
    return None if sent.blocks is None else sent.blocks.taken(order)


def preset_of(model: str) -> str:
    """The architecture preset of a model's name on Hugging Face, such as Qwen/Qwen3-30B-A3B-Instruct-2507."""
    plain = model.rsplit("/", 1)[-1].lower()
    found = [name for name in ARCHITECTURES if plain.startswith(name)]
    if not found:
        raise RunError(f"no preset is called like {model!r}; give --model, one of {', '.join(ARCHITECTURES)}")
    return max(found, key=len)
