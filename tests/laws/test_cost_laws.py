"""Laws of the cost model: they hold for any batch, model and device."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architecture import ARCHITECTURES
from models.cost.build import step_table
from models.cost.step import operator_seconds, step_parts, step_seconds
from models.hardware import ACCELERATORS
from models.parallelism import Parallelism

MODELS = ("llama-3.1-8b", "deepseek-v2-lite", "qwen3-30b-a3b")
models = st.sampled_from(MODELS)
degrees = st.sampled_from([1, 2, 4])
decodes = st.lists(st.integers(1, 20_000), max_size=20)
chunks = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 20_000)), max_size=5)


def batch(decode_lengths, prefill_chunks):
    """Arguments of `step_seconds` from context lengths of decodes and (chunk, prefix) of prefills."""
    new = sum(chunk for chunk, _ in prefill_chunks)
    num_decodes = len(decode_lengths)
    return tuple(
        map(
            float,
            (
                new + num_decodes,
                num_decodes,
                num_decodes + len(prefill_chunks),
                sum(chunk * prefix + chunk * (chunk + 1) / 2 for chunk, prefix in prefill_chunks),
                sum(chunk + prefix for chunk, prefix in prefill_chunks),
                sum(decode_lengths),
            ),
        )
    )


@cache
def table(model, tensor=1, faster=1.0, fixed_s=0.0):
    device = ACCELERATORS["h200"]
    device = dataclasses.replace(
        device,
        hbm_bytes_per_s=device.hbm_bytes_per_s * faster,
        bf16_flops_per_s=device.bf16_flops_per_s * faster,
        nvlink_bytes_per_s=device.nvlink_bytes_per_s * faster,
        nvlink_latency_s=device.nvlink_latency_s / faster,
    )
    return step_table(ARCHITECTURES[model], device, Parallelism(tensor), fixed_s=fixed_s)


@settings(deadline=None)
@given(models, degrees, decodes, chunks)
def test_operators_sum_to_the_step(model, tensor, decode_lengths, prefill_chunks):
    args, built = batch(decode_lengths, prefill_chunks), table(model, tensor, fixed_s=1e-6)
    each = np.zeros(built.weight.size)
    operator_seconds(built, *args, each)
    total_s = step_seconds(built, *args)
    assert np.all(each >= 0)
    assert sum(each) == pytest.approx(total_s, rel=1e-12)
    assert sum(step_parts(built, *args)) == pytest.approx(total_s, rel=1e-12)
    assert (total_s > 0) == (args[0] > 0)


@settings(deadline=None)
@given(models, degrees, decodes, chunks, st.integers(1, 20_000))
def test_another_request_never_makes_a_step_shorter(model, tensor, decode_lengths, prefill_chunks, length):
    built = table(model, tensor)
    before = step_seconds(built, *batch(decode_lengths, prefill_chunks))
    assert step_seconds(built, *batch([*decode_lengths, length], prefill_chunks)) >= before
    assert step_seconds(built, *batch(decode_lengths, [*prefill_chunks, (16, length)])) >= before


@settings(deadline=None)
@given(models, degrees, decodes, chunks, decodes, chunks)
def test_one_step_is_never_longer_than_two(model, tensor, some, some_chunks, more, more_chunks):
    """Batching shares the weights: no operator's flops or bytes grow faster than its batch."""
    built = table(model, tensor, fixed_s=1e-6)
    together = step_seconds(built, *batch(some + more, some_chunks + more_chunks))
    apart = step_seconds(built, *batch(some, some_chunks)) + step_seconds(built, *batch(more, more_chunks))
    assert together <= apart * (1 + 1e-12)


@settings(deadline=None)
@given(models, degrees, decodes, chunks)
def test_twice_the_rates_half_the_time(model, tensor, decode_lengths, prefill_chunks):
    args = batch(decode_lengths, prefill_chunks)
    slow_s, fast_s = step_seconds(table(model, tensor), *args), step_seconds(table(model, tensor, 2.0), *args)
    assert 2 * fast_s == pytest.approx(slow_s, rel=1e-12)


@settings(deadline=None)
@given(models, st.integers(1, 20_000), st.integers(1, 400))
def test_splitting_a_prefill_never_helps_it(model, prefix, chunk):
    """A chunk in two steps reads the weights and the prefix twice, and computes the same pairs."""
    built = table(model)
    whole_s = step_seconds(built, *batch([], [(2 * chunk, prefix)]))
    first_s = step_seconds(built, *batch([], [(chunk, prefix)]))
    assert whole_s <= (first_s + step_seconds(built, *batch([], [(chunk, prefix + chunk)]))) * (1 + 1e-12)
