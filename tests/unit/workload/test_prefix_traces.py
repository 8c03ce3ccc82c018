"""Traces that say what prompts share: by hand, and Mooncake's own with the hit rates that are known of them."""

import numpy as np
import pytest

from sim.workload.prefix_traces import read_mooncake_trace, read_vllm_trace
from sim.workload.shared_blocks import SharedBlocks
from sim.workload.traces import TraceError

LINE = '{{"timestamp": {t}, "input_length": {n}, "output_length": 3, "hash_ids": {ids}}}\n'


def mooncake(tmp_path, *requests):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(LINE.format(t=t, n=n, ids=list(ids)) for t, n, ids in requests))
    return path


def test_times_lengths_and_blocks(tmp_path):
    trace = read_mooncake_trace(mooncake(tmp_path, (1000, 1024, (0, 1)), (1500, 700, (0, 2)), (4000, 10, ())))
    assert trace.arrival_s.tolist() == [0.0, 0.5, 3.0]
    assert trace.num_prompt_tokens.tolist() == [1024, 700, 10]
    assert trace.blocks.hit_rate() == 1 / 4
    later = read_mooncake_trace(mooncake(tmp_path, (0, 1024, (0, 1)), (500, 700, (0, 2))), from_s=0.2, scale=2.0)
    assert later.arrival_s.tolist() == [0.15]
    assert later.blocks.number.tolist() == [0, 2]


def test_an_engine_s_blocks_are_parts_of_the_trace_s():
    """Two prompts of 40 and 24 tokens that share a block of 16: with blocks of 8, two are shared."""
    blocks = SharedBlocks(np.array([0, 3, 5]), np.array([7, 8, 9, 7, 4]), 16)
    contents = blocks.contents(np.array([40, 24]), 8)
    first, second = (contents.number[a:b].tolist() for a, b in zip(contents.start, contents.start[1:], strict=False))
    assert (len(first), len(second)) == (5, 3)
    assert first[:2] == second[:2] and not set(first[2:]) & set(second[2:])
    assert sorted(set(first + second)) == list(range(6))  # numbers without gaps
    apart = blocks.contents(np.array([40, 24]), 8, np.array([0, 1]))  # on a copy of the attention each
    assert len(set(apart.number.tolist())) == 8
    with pytest.raises(ValueError, match="of 16 tokens prompts share"):
        blocks.contents(np.array([40, 24]), 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{]", "line 1: not JSON"),
        ("[1]", "line 1: '\\[1\\]' is not a JSON object"),
        (LINE.format(t=0, n=0, ids=[]), "line 1: input_length 0 is not a whole number of at least 1"),
        (LINE.format(t='"x"', n=9, ids=[]), "line 1: timestamp 'x' is not a number"),
        (LINE.format(t=5, n=9, ids=[]) + LINE.format(t=4, n=9, ids=[]), "line 2: timestamp 4 is before that"),
        (LINE.format(t=5, n=9, ids=[0, 1]), "line 1: 2 hash_ids, but 9 tokens have 1 blocks of 512"),
        (LINE.format(t=5, n=9, ids=[-1]), "line 1: hash_ids must be a list of whole numbers"),
        ("\n", "no rows"),
    ],
)
def test_lines_that_cannot_be_replayed(tmp_path, text, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_mooncake_trace(path)


@pytest.mark.parametrize(("name", "hit_rate"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_mooncake_traces_hit_as_often_as_is_known_of_them(shared_data, name, hit_rate):
    trace = read_mooncake_trace(shared_data / "mooncake" / f"{name}_trace.jsonl")
    assert trace.blocks.hit_rate() == pytest.approx(hit_rate, abs=0.005)


def test_the_workload_that_was_sent_to_vllm_shares_eight_per_cent(shared_data):
    trace = read_vllm_trace(shared_data / "vllm_ground_truth" / "workload_llama-3.1-8b.jsonl")
    assert trace.num_requests == 300
    assert trace.blocks.hit_rate() == pytest.approx(0.08, abs=0.005)
