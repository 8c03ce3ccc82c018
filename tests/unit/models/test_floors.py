"""No batching undercuts the least seconds: random schedulers, priced step by step by the table itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architecture import ARCHITECTURES
from models.cost.build import step_table
from models.cost.floors import Work, least_seconds
from models.cost.step import BY_CURVE, CURVE, PRICED_BY, RUNS_ON, step_seconds
from models.features import Feature
from models.hardware import ACCELERATORS
from models.parallelism import Parallelism

MOST_TOKENS, MOST_SEQS = 64, 8


def with_random_curves(table, seed):
    """Half of the operators that run on tokens or rows priced by measured curves, noisy and not even rising."""
    rng = np.random.default_rng(seed)
    tags, curves = table.tags.copy(), []
    for o in range(len(tags)):
        if tags[o, RUNS_ON] in (Feature.TOKENS, Feature.SEQUENCES) and rng.random() < 0.5:
            tags[o, [PRICED_BY, CURVE]] = BY_CURVE, len(curves)
            curves.append(np.append(0.0, 1e-6 * (5 + np.arange(1, 257) * 0.1) * rng.uniform(0.5, 1.5, 256)))
    return table._replace(tags=tags, curves=np.array(curves).reshape(len(curves), 257))


def tables():
    h100 = ACCELERATORS["h100"]
    dense = step_table(ARCHITECTURES["llama-3.1-8b"], h100, Parallelism(2))
    mixture = step_table(ARCHITECTURES["mixtral-8x7b"], h100, Parallelism(2), fixed_s=2e-6, max_tokens=256)
    return {"dense": dense, "mixture": mixture, "curves": with_random_curves(dense, 1),
            "mixture with curves": with_random_curves(mixture, 2)}  # fmt: skip


TABLES = tables()


def scheduled_s(table, prompts, outputs, rng):
    """Total of a random schedule: any mixture of chunks and decodes within the bounds, in any order."""
    left, done, total, steps = list(prompts), [0] * len(prompts), 0.0, 0
    while any(d < o for d, o in zip(done, outputs, strict=True)):
        room, seqs = MOST_TOKENS, 0
        decodes = sequences = pairs = prefix_sum = context = tokens = 0
        for i in rng.permutation(len(prompts)):
            if done[i] == outputs[i] or room == 0 or seqs == MOST_SEQS or (seqs and rng.random() < 0.3):
                continue
            seqs += 1
            if left[i]:
                chunk = int(rng.integers(1, min(left[i], room) + 1))
                prefix = prompts[i] - left[i]
                if chunk == 1:
                    decodes += 1
                    context += prefix + 1
                else:
                    pairs += chunk * prefix + chunk * (chunk + 1) // 2
                    prefix_sum += prefix + chunk
                left[i] -= chunk
                tokens, room = tokens + chunk, room - chunk
                sequences += 1
                done[i] += left[i] == 0
            else:
                tokens, room, decodes, sequences = tokens + 1, room - 1, decodes + 1, sequences + 1
                context += prompts[i] + done[i]
                done[i] += 1
        total += step_seconds(table, tokens, decodes, sequences, pairs, prefix_sum, context)
        steps += 1
    return total, steps


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 12)), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
)
def test_no_schedule_takes_less(name, requests, seed):
    prompts, outputs = np.array(requests).T
    took_s, steps = scheduled_s(TABLES[name], prompts.tolist(), outputs.tolist(), np.random.default_rng(seed))
    decodes = outputs - 1
    context = decodes * prompts + decodes * (decodes + 1) // 2
    totals = [np.array([float(x.sum())]) for x in (prompts + decodes, decodes, outputs, context)]
    least, least_steps = least_seconds(TABLES[name], Work(*totals), MOST_TOKENS, MOST_SEQS)
    assert 0 < least[0] <= took_s * (1 + 1e-12)
    assert least_steps[0] <= steps


def test_one_decode_is_the_step_itself():
    """By roofline a step with a single decode costs just what is said to be its least."""
    one = np.ones(1)
    for name in ("dense", "mixture"):
        least, _ = least_seconds(TABLES[name], Work(one, one, one, one * 500), MOST_TOKENS, MOST_SEQS)
        assert least[0] == pytest.approx(step_seconds(TABLES[name], 1, 1, 1, 0, 0, 500), rel=1e-12)


def test_full_batches_of_equal_decodes_come_near():
    """All steps alike, and full: the sum of maxima is the maximum of the sums for each operator by itself."""
    n, steps, context = MOST_SEQS, 50, 300
    table = TABLES["dense"]
    work = Work(*(np.array([float(x)]) for x in (n * steps, n * steps, n * steps, n * steps * context)))
    least, _ = least_seconds(table, work, MOST_TOKENS, MOST_SEQS)
    assert least[0] == pytest.approx(steps * step_seconds(table, n, n, n, 0, 0, n * context), rel=1e-12)
