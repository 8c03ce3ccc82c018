"""Readers of recorded request traces."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.workload.shared_blocks import SharedBlocks

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_TOKENS = 2**30

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")

ZeroOutput = Literal["one", "drop", "refuse"]


class TraceError(ValueError):
    """A trace that cannot be replayed; the text names file, line, value and what was expected."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival.

    arrival_s             seconds from the start of the window
    num_prompt_tokens, num_output_tokens    at least 1 each
    num_zero_outputs      rows that recorded no output token, and were replayed with one, or dropped
    blocks                what prompts have in common, where the trace says so
    """

    arrival_s: NDArray[np.float64]
    num_prompt_tokens: NDArray[np.int64]
    num_output_tokens: NDArray[np.int64]
    num_zero_outputs: int = 0
    blocks: SharedBlocks | None = None

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)


def read_azure_trace(
    path: str | Path,
    *,
    from_s: float = 0.0,
    until_s: float | None = None,
    scale: float = 1.0,
    zero_output: ZeroOutput = "one",
) -> Trace:
    """Read a trace in the format of the Azure LLM inference traces.

    A CSV file with a header and at least the columns TIMESTAMP (2023-11-16 18:15:46.6805900: up to nine
    digits of a second, an optional zone), ContextTokens and GeneratedTokens, in order of time.

    from_s, until_s   the window [from_s, until_s) of the trace's own time, which starts with its first row;
                      the arrivals returned count from from_s
    scale             factor on the rate of arrival: times are divided by it
    zero_output       a row with 0 generated tokens: "one" replays it with one token (an engine always samples
                      one after the prompt), "drop" leaves it out, both counted; "refuse" is an error

    Source: https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md
    Raises TraceError for an unreadable or binary file, a missing column, a broken row anywhere in it, times
    that fall, or an empty window; ValueError for a window or a scale that makes no sense.
    """
    path = Path(path)
    time_ns, prompt, output = _azure_rows(path, refuse_zero_output=zero_output == "refuse")
    whole = Trace((time_ns - time_ns[0]) * 1e-9, prompt, output)
    return windowed(whole, path, from_s, until_s, scale, drops_zero_output=zero_output == "drop")


def windowed(
    whole: Trace, path: str | Path, from_s: float, until_s: float | None, scale: float, drops_zero_output: bool = False
) -> Trace:
    """A trace's window, at `scale` times its rate; an output of 0 tokens becomes 1, or is dropped.

    Raises TraceError where the window is empty; ValueError for a window or a scale that makes no sense.
    """
    if not (0 <= from_s < np.inf and (until_s is None or from_s < until_s)):
        raise ValueError(f"window from {from_s} s until {until_s} s is empty")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale of a trace's rate must be positive and finite, got {scale}")
    elapsed_s, output = whole.arrival_s, whole.num_output_tokens
    keep = (elapsed_s >= from_s) & (elapsed_s < (np.inf if until_s is None else until_s))
    is_zero = keep & (output == 0)
    if drops_zero_output:
        keep &= ~is_zero
    if not keep.any():
        window = f"from {from_s:g} s on" if until_s is None else f"between {from_s:g} s and {until_s:g} s"
        raise TraceError(
            f"{path}: no request {window}; the trace lasts {elapsed_s[-1]:.3f} s, so begin and end within it"
        )
    return Trace(
        (elapsed_s[keep] - from_s) / scale, whole.num_prompt_tokens[keep], np.maximum(output[keep], 1),
        int(is_zero.sum()), None if whole.blocks is None else whole.blocks.select(keep),
    )  # fmt: skip


def _azure_rows(
    path: Path, refuse_zero_output: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Absolute times in ns, prompt and output tokens of every row."""
    times: list[int] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for where, (timestamp, prompt, output) in csv_rows(path, AZURE_COLUMNS):
        time_ns = _nanoseconds(timestamp, where)
        if times and time_ns < times[-1]:
            raise TraceError(f"{where}: TIMESTAMP {timestamp} is before that of the row above; sort by time")
        times.append(time_ns)
        prompts.append(tokens_of(prompt, "ContextTokens", 1, where))
        outputs.append(tokens_of(output, "GeneratedTokens", int(refuse_zero_output), where))
    return np.array(times), np.array(prompts), np.array(outputs)


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields of these columns) of each row of a CSV file with a header.

    Raises TraceError for an unreadable file, a missing column, a row of another length, or no rows.
    """
    reader = csv.reader(io.StringIO(trace_text(path), newline=""))
    is_empty = True
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise TraceError(
                f"{path}, line 1: no column {', '.join(missing)}; expected {','.join(columns)}, "
                f"found {','.join(header)[:120] or 'nothing'}"
            )
        places = [header.index(name) for name in columns]
        for row in reader:
            if not row:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise TraceError(f"{where}: {len(row)} fields, the header has {len(header)}")
            is_empty = False
            yield where, [row[place] for place in places]
    except csv.Error as error:
        raise TraceError(f"{path}, line {reader.line_num}: {error}") from error
    if is_empty:
        raise TraceError(f"{path}: a header and no rows")


def trace_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{path}, line {line}: not a text file (byte {error.start} is not UTF-8)") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TraceError(f"{path}, line {line}: not a text file (it holds a zero byte)")
    return text


def _nanoseconds(text: str, where: str) -> int:
    """A timestamp as integer nanoseconds: digits beyond the microsecond would be lost in a datetime."""
    match = _TIMESTAMP.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        day, time, fraction, zone = match.groups()
        moment = datetime.fromisoformat(f"{day} {time}{(zone or '+00:00').replace('Z', '+00:00')}")
    except ValueError:
        raise TraceError(
            f"{where}: TIMESTAMP {text!r} is not a time like 2023-11-16 18:15:46.6805900"
        ) from None
    return int(moment.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))


def tokens_of(text: str, column: str, least: int, where: str) -> int:
    stripped = text.strip()
    # Not int(): it would take "1_000" and digits of other scripts.
    if not re.fullmatch(r"[0-9]+", stripped) or not least <= int(stripped) < MOST_TOKENS:
        raise TraceError(f"{where}: {column} {text!r} is not a whole number of at least {least}")
    return int(stripped)
