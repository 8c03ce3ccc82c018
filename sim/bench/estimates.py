"""Speed of pricing: batches a second through `price_batch`, which the serving loop calls, on measured H200 times.

The batches are those of a run: the first STEPS steps of Llama-3.1-8B under the Azure conversation trace, formed and
finished one by one, so that nothing is leapt over. They are laid back into the engine's arrays and priced again and
again; laying them back is counted.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.architecture import ARCHITECTURES
from models.cost.priced import measured_step
from models.cost.step import StepTable
from models.cost.table import TableError
from models.hardware import ACCELERATORS
from models.memory import plan_memory
from sim.bench.serving import load, row
from sim.devices.kv_cache import new_holdings
from sim.scenario.cost_table import measured
from sim.serving.engine import complete_step, form_batch, launch_batch
from sim.serving.policies import compiled_policy
from sim.serving.request import new_requests, new_token_times
from sim.serving.state import EngineState, new_engine_state
from sim.serving.step import price_batch
from sim.serving.verbs import submit

STEPS, REPEATS = 50_000, 5
TARGET = 1_000_000


def run() -> list[dict]:
    """One row; none without aiconfigurator's tables."""
    try:
        table = _table()
    except TableError:
        return []
    trace, note = load()
    counts, first, entries = _record(table, trace)
    state = _idle_state(trace)
    _price(state, table, counts[:10], first[:11], entries)
    walls = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        _price(state, table, counts, first, entries)
        walls.append(time.perf_counter() - started_s)
    value = len(counts) / min(walls)
    size = float(np.diff(first).mean())
    name = f"batch estimates on measured times, {size:.0f} requests a batch"
    return [row(name, value, "estimates/s", TARGET, value >= TARGET, note)]


def _table() -> StepTable:
    return measured_step(
        measured("h200", "h200"), ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h200"], max_tokens=16_384,
        max_seqs=256, max_context=16_384,
    ).table  # fmt: skip


def _idle_state(trace: Any) -> EngineState:
    requests = new_requests(trace.arrival_s, trace.num_prompt_tokens, trace.num_output_tokens)
    blocks = plan_memory(ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h200"]).num_kv_blocks
    return new_engine_state(
        requests, new_token_times(requests), new_holdings(len(requests)), num_blocks=blocks, block_size=16,
        max_num_seqs=256, max_num_batched_tokens=2048, max_tokens=16_384,
    )  # fmt: skip


def _record(table: StepTable, trace: Any) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """(counts of each batch, where its entries begin, entries: tokens, prefix)."""
    state = _idle_state(trace)
    for request in range(len(state.requests)):
        state = submit(state, request)
    policy = compiled_policy("chunked_prefill")
    counts = state.counts
    saved: list[np.void] = []
    entries, first = [], [0]
    while len(saved) < STEPS:
        form_batch(state, policy)
        size = int(counts["batch_size"][0])
        if size == 0:
            next_one = state.waiting[counts["arrived"][0] & (len(state.waiting) - 1)]
            counts["now_s"] = state.requests["arrival_s"][next_one]
            continue
        saved.append(counts[0].copy())
        batch = state.batch[:size]
        entries.append(np.column_stack([batch["num_tokens"], batch["prefix"]]))
        first.append(first[-1] + size)
        price_batch(state, table)
        launch_batch(state)
        complete_step(state)
    return np.array(saved, counts.dtype), np.array(first), np.concatenate(entries).astype(np.int64)


@njit(cache=True)
def _price(state, table, counts, first, entries):
    for b in range(counts.size):
        into, batch = state.counts[0], counts[b]
        into.tokens = batch.tokens
        into.decodes = batch.decodes
        into.batch_size = batch.batch_size
        into.prefill_pairs = batch.prefill_pairs
        into.prefill_context = batch.prefill_context
        into.decode_context = batch.decode_context
        for i in range(first[b + 1] - first[b]):
            entry = entries[first[b] + i]
            state.batch[i].request = i
            state.batch[i].num_tokens = entry[0]
            state.batch[i].prefix = entry[1]
        price_batch(state, table)
