"""Reader of BurstGPT's traces: requests to ChatGPT and GPT-4 behind one campus's gateway."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from sim.workload.traces import Trace, TraceError, csv_rows, tokens_of, windowed

TIMESTAMP, MODEL, REQUEST, RESPONSE, LOG = "Timestamp", "Model", "Request tokens", "Response tokens", "Log Type"
COLUMNS = (TIMESTAMP, MODEL, REQUEST, RESPONSE, LOG)

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def read_burstgpt_trace(
    path: str | Path,
    *,
    from_s: float = 0.0,
    until_s: float | None = None,
    scale: float = 1.0,
    model: str | None = None,
    log_type: str | None = None,
) -> Trace:
    """Read a trace in the format of BurstGPT.

    A CSV file with at least the columns Timestamp (seconds from midnight before the first request, whole ones in what
    is published, so that several arrive at one instant), Model, Request tokens, Response tokens and Log Type, in order
    of time. Rows with 0 response tokens are failures: they are left out, and counted in `num_zero_outputs`.

    model, log_type   only rows that have these words in Model, in Log Type (None: all)
    from_s, until_s, scale   as for `read_azure_trace`; time counts from the first row of the file

    Leaves out: Session ID and Elapsed time of later releases, so no prompt has anything in common with another.
    Source: Wang et al., BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems (arXiv 2401.17644),
    https://github.com/HPMLL/BurstGPT.
    Raises TraceError for an unreadable file, a missing column, a broken row anywhere in it, times that fall, no row of
    that model or log type, or an empty window; ValueError for a window or a scale that makes no sense.
    """
    path = Path(path)
    times_s: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    first_s, last_s = None, -math.inf
    wanted = {name: word for name, word in ((MODEL, model), (LOG, log_type)) if word is not None}
    seen: dict[str, dict[str, None]] = {name: {} for name in wanted}
    for where, fields in csv_rows(path, COLUMNS):
        row = dict(zip(COLUMNS, map(str.strip, fields), strict=True))
        text = row[TIMESTAMP]
        if not _SECONDS.fullmatch(text):
            raise TraceError(f"{where}: {TIMESTAMP} {text!r} is no time in seconds like 45 or 45.5")
        time_s = float(text)
        if time_s < last_s:
            raise TraceError(f"{where}: {TIMESTAMP} {text} is before that of the row above; sort by time")
        last_s = time_s
        first_s = time_s if first_s is None else first_s
        output = tokens_of(row[RESPONSE], RESPONSE, 0, where)
        prompt = tokens_of(row[REQUEST], REQUEST, int(output > 0), where)
        for name in wanted:
            seen[name][row[name]] = None
        if all(row[name] == word for name, word in wanted.items()):
            times_s.append(time_s)
            prompts.append(max(prompt, 1))
            outputs.append(output)
    if not times_s:
        words = " and ".join(f"{name} {word!r}" for name, word in wanted.items())
        known = "; ".join(f"{name}: {', '.join(list(seen[name])[:10])}" for name in wanted)
        raise TraceError(f"{path}: no row with {words}; it has {known}")
    whole = Trace(np.array(times_s) - first_s, np.array(prompts), np.array(outputs))
    return windowed(whole, path, from_s, until_s, scale, drops_zero_output=True)
