"""The serving engine as a queue with one server, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.cost.step import StepTable, roofline_table
from models.features import Feature
from sim.devices.kv_cache import new_holdings
from sim.serving.engine import REACHED, advance
from sim.serving.policies import compiled_policy
from sim.serving.request import new_requests, new_token_times
from sim.serving.state import EngineState, new_engine_state
from sim.workload.arrivals import arrival_times_s

SERVICE_S = 0.1


def constant_step_table(step_s: float) -> StepTable:
    """Every step takes step_s, whatever it computes."""
    tags = np.array([[Feature.TOKENS, 0, 0]])
    one = np.ones(1)
    return roofline_table(
        np.zeros((1, 2, len(Feature))), np.ones((1, 2)), step_s * one, one, tags, np.zeros(1), 0.0
    )


def submit_all(state: EngineState) -> EngineState:
    """What `submit` does, for all requests at once: one by one, half a million take as long as their steps."""
    num = len(state.requests)
    waiting = np.zeros(1 << (num + len(state.running)).bit_length(), dtype=np.int64)
    waiting[:num] = np.arange(num)
    state.counts["submitted"] = num
    return state._replace(waiting=waiting)


def waits_s(arrival_s, prompt_tokens: int, output_tokens: int, policy: str):
    """Waits of equal requests in an engine with a single slot."""
    ones = np.ones(len(arrival_s), dtype=np.int64)
    requests = new_requests(arrival_s, prompt_tokens * ones, output_tokens * ones)
    state = new_engine_state(
        requests,
        new_token_times(requests),
        new_holdings(len(requests)),
        num_blocks=64,
        block_size=16,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        num_step_rows=0,
    )
    state = submit_all(state)
    step_s = SERVICE_S / output_tokens
    reason = advance(state, compiled_policy(policy), constant_step_table(step_s), np.inf, 1 << 40, 0)
    assert reason == REACHED
    return requests["scheduled_s"] - requests["arrival_s"]


@pytest.mark.parametrize("policy", ["prefill_first", "chunked_prefill"])
@pytest.mark.parametrize("output_tokens", [1, 5])
@pytest.mark.parametrize("utilisation", [0.3, 0.7, 0.9])
def test_one_slot_and_a_fixed_service_time_are_an_m_d_1_queue(utilisation, output_tokens, policy):
    """One slot: a request occupies the engine from prefill to last decode, for output_tokens equal steps.

    Pollaczek and Khinchine: mean wait = rho D / (2 (1 - rho)). Batch means give a 99.9 % interval: 100
    batches of 5,000 requests, far longer than the queue remembers (1 / (1 - rho)^2 services, 100 at most).
    """
    rng = np.random.default_rng(11)
    num_batches, batch = 100, 5_000
    arrival_s = arrival_times_s(
        "poisson", utilisation / SERVICE_S, rng, num_requests=(num_batches + 1) * batch
    )
    means = waits_s(arrival_s, 32, output_tokens, policy)[batch:].reshape(num_batches, batch).mean(axis=1)

    expected_s = utilisation * SERVICE_S / (2 * (1 - utilisation))
    half_width_s = stats.t.ppf(0.9995, num_batches - 1) * means.std(ddof=1) / np.sqrt(num_batches)
    assert half_width_s < 0.08 * expected_s
    assert abs(means.mean() - expected_s) < half_width_s


def test_one_slot_and_equal_gaps_never_wait():
    """D/D/1 below saturation: the server is free again before the next request comes."""
    arrival_s = arrival_times_s("constant", 0.99 / SERVICE_S, np.random.default_rng(0), num_requests=1_000)

    assert waits_s(arrival_s, 32, 1, "chunked_prefill").max() == 0.0


def test_one_slot_and_equal_gaps_above_saturation_fall_behind_linearly():
    """D/D/1 at rate 1 / g with service D > g: request i waits i (D - g)."""
    gap_s = 0.08
    arrival_s = arrival_times_s("constant", 1 / gap_s, np.random.default_rng(0), num_requests=1_000)

    waits = waits_s(arrival_s, 32, 1, "chunked_prefill")

    assert waits == pytest.approx(np.arange(1_000) * (SERVICE_S - gap_s), abs=1e-9)
