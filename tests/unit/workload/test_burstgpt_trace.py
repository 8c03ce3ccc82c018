from __future__ import annotations

import pytest

from sim.workload.burstgpt_trace import read_burstgpt_trace
from sim.workload.traces import TraceError

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
ROWS = """5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
45,GPT-4,12,0,12,Conversation log
118.5,GPT-4,417,276,693,API log
"""


@pytest.fixture
def trace(tmp_path):
    def write(content):
        path = tmp_path / "burst.csv"
        path.write_text(content)
        return path

    return write


def test_failures_are_left_out_and_counted(trace):
    read = read_burstgpt_trace(trace(HEADER + ROWS))
    assert read.arrival_s.tolist() == [0.0, 40.0, 113.5]
    assert read.num_prompt_tokens.tolist() == [472, 1087, 417]
    assert read.num_output_tokens.tolist() == [18, 230, 276]
    assert read.num_zero_outputs == 1


def test_time_counts_from_the_first_row_whatever_rows_are_taken(trace):
    """So that windows of two models are the same hours."""
    path = trace(HEADER + ROWS)
    assert read_burstgpt_trace(path, model="GPT-4", scale=2.0).arrival_s.tolist() == [56.75]
    assert read_burstgpt_trace(path, log_type="Conversation log").num_requests == 2
    assert read_burstgpt_trace(path, model="ChatGPT", from_s=10.0, until_s=41.0).arrival_s.tolist() == [30.0]
    assert read_burstgpt_trace(path, model="GPT-4", until_s=114.0, from_s=41.0).num_zero_outputs == 0


def test_columns_of_later_releases_do_no_harm(trace):
    text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    read = read_burstgpt_trace(trace(text + "0,7,3.5,GPT-4,1,2,3,API log\n"))
    assert (read.num_prompt_tokens.tolist(), read.num_output_tokens.tolist()) == ([1], [2])


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "line 1: no column Timestamp, Model"),
        (HEADER.replace("Log Type", "Type"), {}, "line 1: no column Log Type"),
        (HEADER, {}, "a header and no rows"),
        (HEADER + "5,GPT-4,4\n", {}, "line 2: 3 fields, the header has 6"),
        (HEADER + "x,GPT-4,4,4,8,API log\n", {}, "line 2: Timestamp 'x' is no time in seconds"),
        (HEADER + "5,GPT-4,4,4,8,API log\n4,GPT-4,4,4,8,API log\n", {}, "line 3: Timestamp 4 is before"),
        (HEADER + "5,GPT-4,0,4,8,API log\n", {}, "Request tokens '0' is not a whole number of at least 1"),
        (HEADER + "5,GPT-4,4,4.5,8,API log\n", {}, "Response tokens '4.5'"),
        (HEADER + ROWS, {"model": "gpt-4"}, "no row with Model 'gpt-4'; it has Model: ChatGPT, GPT-4"),
        (HEADER + ROWS, {"from_s": 200.0}, "no request from 200 s on"),
        (HEADER + "5,GPT-4,4,0,4,API log\n", {}, "no request"),
    ],
)
def test_what_cannot_be_replayed(trace, text, options, words):
    with pytest.raises(TraceError, match=words):
        read_burstgpt_trace(trace(text), **options)
