"""Readers of traces in JSON lines that say what prompts have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.workload.shared_blocks import SharedBlocks
from sim.workload.traces import MOST_TOKENS, Trace, TraceError, windowed


@dataclass(frozen=True, slots=True)
class Keys:
    """How a format calls a request's time, of which there are `per_s` in a second, its lengths and its blocks."""

    time: str
    per_s: float
    prompt: str
    output: str
    block_tokens: int
    blocks: str = "hash_ids"


MOONCAKE = Keys("timestamp", 1e3, "input_length", "output_length", 512)
"""https://github.com/kvcache-ai/Mooncake, FAST25-release/traces: blocks of 512 tokens."""
VLLM = Keys("arrival_time_ns", 1e9, "input_toks", "output_toks", 16)
"""Workloads of LLMServingSim's benchmark of vLLM: the prompt's full blocks of 16 tokens."""


def read_mooncake_trace(
    path: str | Path, *, from_s: float = 0.0, until_s: float | None = None, scale: float = 1.0
) -> Trace:
    """A trace in the format of Mooncake's; arguments and errors as for `read_azure_trace`, no outputs of 0 tokens."""
    return windowed(_read(Path(path), MOONCAKE), path, from_s, until_s, scale)


def read_vllm_trace(
    path: str | Path, *, from_s: float = 0.0, until_s: float | None = None, scale: float = 1.0
) -> Trace:
    """A workload that was sent to vLLM; arguments and errors as for `read_azure_trace`, no outputs of 0 tokens."""
    return windowed(_read(Path(path), VLLM), path, from_s, until_s, scale)


def _read(path: Path, keys: Keys) -> Trace:
    times: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    start, numbers = [0], []
    for where, row in _rows(path):
        time = _number(row, keys.time, where)
        if times and time < times[-1]:
            raise TraceError(f"{where}: {keys.time} {time} is before that of the row above; sort by time")
        times.append(time)
        prompts.append(_tokens(row, keys.prompt, where))
        outputs.append(_tokens(row, keys.output, where))
        blocks = row.get(keys.blocks, [])
        if not isinstance(blocks, list) or not all(type(b) is int and 0 <= b < 2**31 for b in blocks):
            raise TraceError(f"{where}: {keys.blocks} must be a list of whole numbers from 0 to 2^31")
        most = -(-prompts[-1] // keys.block_tokens)
        if len(blocks) > most:
            raise TraceError(
                f"{where}: {len(blocks)} {keys.blocks}, but {prompts[-1]} tokens have {most} blocks of "
                f"{keys.block_tokens}"
            )
        numbers += blocks
        start.append(len(numbers))
    if not times:
        raise TraceError(f"{path}: no rows")
    blocks = SharedBlocks(np.array(start), np.array(numbers, np.int64), keys.block_tokens)
    arrival_s = (np.array(times) - times[0]) / keys.per_s
    return Trace(arrival_s, np.array(prompts), np.array(outputs), blocks=blocks)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as text: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TraceError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise TraceError(f"{where}: {line[:60]!r} is not a JSON object")
        yield where, row


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        raise TraceError(f"{where}: {key} {value!r} is not a number")
    return value


def _tokens(row: dict[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if type(value) is not int or not 1 <= value < MOST_TOKENS:
        raise TraceError(f"{where}: {key} {value!r} is not a whole number of at least 1")
    return value
