"""Steps priced by measured times: the compiled engine against a plain one that interpolates for itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import PlainEngine, PlainRequest
from test_serving_laws import accepts_of, contents_of, cost_table, options_of, run_compiled, small_engines

from models.cost.step import BY_CURVE, BY_DECODE, BY_PREFILL, AttentionTable, StepTable, decode_lines
from models.features import Feature

CHUNK, PREFIX = np.array([1.0, 4.0, 16.0, 64.0]), np.array([0.0, 8.0, 32.0, 128.0])
CONTEXT = np.array([1.0, 5.0, 20.0, 130.0])
LONGEST, EVENNESS = np.array([2.0, 40.0]), np.array([0.2, 0.5, 1.0])
GRID_DECODES, GRID_CONTEXT = np.array([1.0, 4.0, 8.0]), np.array([1.0, 30.0, 130.0])
MAX_TOKENS = 130


@st.composite
def measured_tables(draw) -> tuple[StepTable, np.ndarray]:
    """(table, [decodes, contexts] times of its decodes): the plain table's fixed time, a curve by tokens, one by
    sequences, and attention on uneven nodes."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))

    def times(*shape):
        return 1e-3 * (0.1 + rng.random(shape))

    decode = np.cumsum(times(9, len(CONTEXT)), axis=1)
    decode[0] = 0
    has_extra = draw(st.booleans())
    shape = (len(CHUNK), len(PREFIX), len(GRID_DECODES), len(GRID_CONTEXT))
    attention = AttentionTable(
        CHUNK, PREFIX, times(len(CHUNK), len(PREFIX)), CONTEXT, *decode_lines(CONTEXT, decode), CHUNK, PREFIX,
        GRID_DECODES, GRID_CONTEXT, times(*shape) - 0.5e-3 if has_extra else np.zeros((0, 0, 0, 0)),
        np.array([16.0, 32.0, 48.0]), np.array([0.0, *[100.0] * 4, *[0.0] * 4]),
        np.array([0.0, 4.0, 16.0]), GRID_DECODES, LONGEST, EVENNESS,
        times(3, 3, 2, 3) * 1e-2 if draw(st.booleans()) else np.zeros((0, 0, 0, 0)),
    )  # fmt: skip
    plain = cost_table()
    tags = np.array([
        [Feature.TOKENS, 0, 0, 0, 0], [Feature.TOKENS, 0, 2, BY_CURVE, 0], [Feature.SEQUENCES, 1, 2, BY_CURVE, 1],
        [Feature.PREFILL_CONTEXT, 0, 3, BY_PREFILL, 0], [Feature.DECODES, 0, 3, BY_DECODE, 0],
    ])  # fmt: skip
    table = plain._replace(
        work=plain.work[:5], rates=plain.rates[:5], fixed_s=plain.fixed_s[:5],
        weight=np.array([1.0, 2.0, 1.0, 3.0, 3.0]), tags=tags, curves=times(2, MAX_TOKENS + 1), attention=attention,
    )  # fmt: skip
    return table, decode


def bilinear(x_axis, y_axis, values, x, y) -> float:
    return np.interp(x, x_axis, [np.interp(y, y_axis, row) for row in values])


class MeasuredEngine(PlainEngine):
    """Each sequence at its own length; the longest decode beyond the mean; the chunk that takes longest meets the
    decodes once."""

    decode: np.ndarray

    def price(self, contexts, chunks, drafts=0):
        a: AttentionTable = self.table.attention
        tokens, n = len(contexts) + drafts + sum(num for num, _ in chunks), len(contexts)
        decode_s = sum(np.interp(context, a.context, self.decode[n]) for context in contexts) / n if n else 0.0
        each = [bilinear(a.chunk, a.prefix, a.prefill, num, prefix) for num, prefix in chunks]
        prefill_s = sum(each)
        if chunks and n and a.extra.size:
            num, prefix = chunks[int(np.argmax(each))]
            lines = [[bilinear(a.grid_decodes, a.grid_context, a.extra[i, j], n, np.mean(contexts))
                      for j in range(len(PREFIX))] for i in range(len(CHUNK))]  # fmt: skip
            prefill_s = max(prefill_s + bilinear(a.grid_chunk, a.grid_prefix, lines, num, prefix), 0.0)
        if n and a.tail.size:
            num = chunks[int(np.argmax(each))][0] if chunks else 0
            mean, longest = np.mean(contexts), max(contexts)
            lines = [
                np.interp(n, a.tail_decodes, [
                    bilinear(a.tail_longest, a.tail_evenness, values, longest, mean / longest) for values in per_chunk
                ])
                for per_chunk in a.tail
            ]  # fmt: skip
            decode_s += np.interp(num, a.tail_chunk, lines) * (longest - mean)
        t = self.table
        tokens = self.padded(tokens)
        compute_s = t.work[0, 0, 0] + 2 * t.curves[0, tokens] + 3 * prefill_s + 3 * decode_s
        return compute_s, t.curves[1, len(contexts) + drafts + len(chunks)]


@settings(max_examples=200, deadline=None)
@given(small_engines(), measured_tables())
def test_compiled_and_plain_engines_take_the_same_steps_on_measured_times(engine, measured):
    table, decode = measured
    if engine["speculation"] is not None:  # drafting is priced in steps, which this price does not know
        engine |= {"speculation": replace(engine["speculation"], draft_s=0.0, draft_cost=0.0)}
    state, _requests, _token_time_s, fits = run_compiled(engine, engine["cuts"], table)
    given = contents_of(engine)
    requests = [PlainRequest(int(i), float(engine["arrival_s"][i]), int(engine["prompt"][i]), int(engine["output"][i]),
                             given[i], int(engine["precedence"][i])) for i in np.flatnonzero(fits)]  # fmt: skip
    plain = MeasuredEngine(requests, table, **options_of(engine), accepts=accepts_of(engine))
    plain.decode = decode
    plain.run()
    rows = state.steps[: state.counts["num_recorded"][0]]
    assert len(rows) == len(plain.steps)
    expected = np.array([step[:4] for step in plain.steps]).reshape(-1, 4)
    for i, field in enumerate(("started_s", "finished_s", "num_prefill_tokens", "num_decodes")):
        assert rows[field] == pytest.approx(expected[:, i], rel=1e-9, abs=1e-12)
    counts = state.counts[0]
    steps_s = (rows["compute_s"] + rows["communication_s"]).sum()
    assert counts["total_s"] + counts["total_copy_s"] == pytest.approx(steps_s, rel=1e-9)
    tokens = np.array([plain.padded(t) for t in rows["num_prefill_tokens"] + rows["num_decodes"]], dtype=np.int64)
    assert state.steps_with_tokens.tolist() == np.bincount(tokens, minlength=MAX_TOKENS + 1).tolist()
    curves_s = 2 * (state.steps_with_tokens * table.curves[0]).sum() + (
        state.steps_with_sequences * table.curves[1]
    ).sum()
    attention_s = 3 * (counts["total_prefill_s"] + counts["total_decode_s"])
    assert counts["total_s"] == pytest.approx(len(rows) * table.work[0, 0, 0] + curves_s + attention_s, rel=1e-9)
