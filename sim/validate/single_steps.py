"""Single steps of a recorded engine, found in the times of its requests, against what the table prices them at.

When an engine schedules while it runs, a step is scheduled when the one before it begins, that is when the one before
that has ended. So a request that was scheduled at s and whose first token came at f has seen two steps, of which the
second is its own; and when exactly one more group of requests was scheduled in between, at u, then u is the end of the
first: its own step took f - u. An engine that does not schedule ahead takes f - s. What else was in that step follows
from who was running; how far each had come, from its first and last token.

Errors of the figures of a whole run add up over all its steps, and may cancel; these say at which steps a table is off.
Left out: prompts in several chunks; prompts that share blocks, once the cache may have lost some; steps at which not
all who ran had room, so that some had given way; several engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.devices.kv_cache import new_holdings
from sim.serving.engine import price_batch
from sim.serving.graphs import largest_graph
from sim.serving.request import new_requests
from sim.serving.state import EngineState, new_engine_state
from sim.validate.engine_runs import Replay
from sim.validate.recorded_runs import RecordedRun

__all__ = ["SingleStep", "single_steps", "step_rows"]

SAME_S = 1e-3
"""Times of one step, as its requests have them, lie closer together than this."""
FEWEST = 3
BANDS = (256, 512, 768, 1024, 1536)
"""Tokens of a step, in so many kinds: up to the first, up to the second, …"""


@dataclass(frozen=True, slots=True)
class SingleStep:
    """seconds it took; (tokens, prefix) of each prompt in it; contexts of its decodes, this step's token included."""

    seconds: float
    chunks: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(num for num, _ in self.chunks) + len(self.contexts)


def single_steps(run: RecordedRun, num_blocks: int) -> Iterator[SingleStep]:
    """Steps with a prompt whose time can be told; none of several engines, or where nobody said when it scheduled.

    num_blocks   of the cache: until so many have been filled none can have been lost
    """
    if run.scheduled_s is None or run.data > 1 or run.pipeline > 1:
        return
    scheduled, first, last = run.scheduled_s, run.first_token_s, run.last_token_s
    prefix = _prefixes(run)
    groups = _groups(scheduled)
    starts = np.array([scheduled[group].min() for group in groups])
    filled = np.cumsum([(run.num_prompt_tokens + run.num_output_tokens)[group].sum() for group in groups])
    may_have_lost = filled > num_blocks * run.block_size
    for at, group, is_full in zip(starts, groups, may_have_lost, strict=True):
        end = float(first[group].max())
        chunks = tuple((int(run.num_prompt_tokens[i] - prefix[i]), int(prefix[i])) for i in group)
        if end - first[group].min() > SAME_S or sum(num for num, _ in chunks) > run.max_num_batched_tokens:
            continue
        if is_full and prefix[group].any():
            continue
        between = starts[(starts > at + SAME_S) & (starts < end - SAME_S)]
        if len(between) != run.is_async:
            continue
        begin = float(between[0]) if run.is_async else float(at)
        others = np.setdiff1d(np.flatnonzero((scheduled < at - SAME_S) & (last > begin + SAME_S)), group)
        if (first[others] > begin + SAME_S).any():  # somebody's prompt goes on
            continue
        share = (begin - first[others]) / np.maximum(last[others] - first[others], 1e-9)
        contexts = run.num_prompt_tokens[others] + np.rint(share * (run.num_output_tokens[others] - 1)) + 1
        held = np.ceil(np.append(contexts, [num + before for num, before in chunks]) / run.block_size).sum()
        if held <= num_blocks:  # else somebody has given way, and is computed again in this step or another
            yield SingleStep(end - begin, chunks, tuple(contexts.astype(int).tolist()))


def _groups(scheduled: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Requests that were scheduled together, in order of time."""
    order = np.argsort(scheduled, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(scheduled[order]) > SAME_S) + 1)


def _prefixes(run: RecordedRun) -> NDArray[np.int64]:
    """[requests] leading tokens that a cache without bound has when they are scheduled, at most all but the last."""
    prefix = np.zeros(len(run.num_prompt_tokens), np.int64)
    if run.blocks is None or not run.is_caching or run.scheduled_s is None:
        return prefix
    contents = run.blocks.contents(run.num_prompt_tokens, run.block_size)
    seen: set[int] = set()
    for group in _groups(run.scheduled_s):
        of_each = [contents.number[contents.start[i] : contents.start[i + 1]].tolist() for i in group]
        for i, numbers in zip(group, of_each, strict=True):
            num = next((n for n, number in enumerate(numbers) if number not in seen), len(numbers))
            prefix[i] = min(num, (run.num_prompt_tokens[i] - 1) // run.block_size) * run.block_size
        seen.update(*of_each)
    return prefix


def priced_s(replay: Replay, steps: Sequence[SingleStep]) -> NDArray[np.float64]:
    """[steps] what the simulated engine takes for each."""
    run = replay.run
    largest = largest_graph(run.max_num_seqs, run.max_num_batched_tokens) if run.has_graphs else 0
    none = np.zeros(0, np.int64)
    state = new_engine_state(
        new_requests(np.zeros(0), none, none), np.zeros(0), new_holdings(0), num_blocks=1, block_size=run.block_size,
        max_num_seqs=max(len(step.chunks) + len(step.contexts) for step in steps),
        max_num_batched_tokens=run.max_num_batched_tokens, num_step_rows=0,
        max_tokens=replay.priced.table.curves.shape[1] - 1, max_graph_tokens=largest,
    )  # fmt: skip
    found = np.empty(len(steps))
    for i, step in enumerate(steps):
        _fill(state, step)
        price_batch(state, replay.priced.table)
        found[i] = state.flight[1]["compute_s"] + state.flight[1]["communication_s"]
    return found


def _fill(state: EngineState, step: SingleStep) -> None:
    """Make the step the engine's batch; who computes one token is a decode, as for the engine."""
    entries = [(num, before) for num, before in step.chunks] + [(1, context - 1) for context in step.contexts]
    batch, counts = state.batch[: len(entries)], state.counts
    batch["num_tokens"], batch["prefix"] = np.array(entries).T
    batch["samples"] = 1
    tokens, prefix = batch["num_tokens"].astype(np.int64), batch["prefix"].astype(np.int64)
    is_decode = tokens == 1
    counts["batch_size"], counts["tokens"] = len(entries), tokens.sum()
    counts["decodes"], counts["decode_context"] = is_decode.sum(), (prefix + 1)[is_decode].sum()
    counts["prefill_pairs"] = (tokens * prefix + tokens * (tokens + 1) // 2)[~is_decode].sum()
    counts["prefill_context"] = (tokens + prefix)[~is_decode].sum()


def step_rows(replay: Replay) -> list[dict[str, Any]]:
    """A row for each band of tokens that has FEWEST steps: how many, medians of recorded and priced times and of their
    difference, and the relative error of the sum."""
    steps = list(single_steps(replay.run, next(iter(replay.blocks_used().values()))))
    if not steps:
        return []
    real, ours = np.array([step.seconds for step in steps]), priced_s(replay, steps)
    band = np.searchsorted(BANDS, [step.num_tokens for step in steps])
    bounds = (0, *BANDS, replay.run.max_num_batched_tokens)
    rows = []
    for b in np.unique(band):
        here = band == b
        if here.sum() < FEWEST:
            continue
        rows.append({
            "tokens of a step": f"{bounds[b] + 1} to {bounds[b + 1]}", "steps": int(here.sum()),
            "recorded, ms": 1e3 * float(np.median(real[here])), "priced, ms": 1e3 * float(np.median(ours[here])),
            "priced - recorded, ms": 1e3 * float(np.median((ours - real)[here])),
            "error of the sum": float(ours[here].sum() / real[here].sum() - 1),
        })  # fmt: skip
    return rows
