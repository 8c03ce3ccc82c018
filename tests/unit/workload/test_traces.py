from __future__ import annotations

import numpy as np
import pytest

from sim.workload.traces import TraceError, read_azure_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path):
    def write(content):
        path = tmp_path / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


ROWS = (
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:15:51.2224670,879,55\r\n"
)


def test_arrivals_count_from_the_first_row_to_seven_digits(trace):
    read = read_azure_trace(trace(HEADER.replace("\n", "\r\n") + ROWS))

    assert read.arrival_s == pytest.approx([0.0, 4.314579, 4.541877], abs=1e-12)
    assert read.num_prompt_tokens.tolist() == [374, 396, 879]
    assert read.num_output_tokens.tolist() == [44, 109, 55]


def test_a_window_and_a_scaled_rate(trace):
    path = trace(HEADER + ROWS)

    window = read_azure_trace(path, from_s=4.0, until_s=4.5)
    assert window.arrival_s == pytest.approx([0.314579])
    assert window.num_prompt_tokens.tolist() == [396]
    # Twice the rate: the same requests in half the time.
    assert read_azure_trace(path, scale=2.0).arrival_s == pytest.approx([0.0, 2.1572895, 2.2709385])


def test_columns_are_found_by_name_and_midnight_is_no_trouble(trace):
    rows = "GeneratedTokens,id,TIMESTAMP,ContextTokens\n5,a,2024-02-29 23:59:59.5,10\n6,b,2024-03-01 00:00:00.25,11\n"
    read = read_azure_trace(trace(rows))

    assert read.arrival_s.tolist() == [0.0, 0.75]
    assert read.num_output_tokens.tolist() == [5, 6]


def test_zones_and_a_byte_order_mark(trace):
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 02:00:01.009930+02:00,2399,6\n"
    read = read_azure_trace(trace(b"\xef\xbb\xbf" + (HEADER + rows).encode()))

    assert read.arrival_s.tolist() == [0.0, 1.0]


def test_rows_without_output_are_replayed_with_one_token_dropped_or_refused(trace):
    path = trace(HEADER + "2023-11-16 18:00:00,10,0\n2023-11-16 18:00:01,20,7\n")

    replayed = read_azure_trace(path)
    assert (replayed.num_output_tokens.tolist(), replayed.num_zero_outputs) == ([1, 7], 1)
    dropped = read_azure_trace(path, zero_output="drop")
    assert (dropped.num_output_tokens.tolist(), dropped.num_zero_outputs) == ([7], 1)
    with pytest.raises(TraceError, match="line 2: GeneratedTokens '0'"):
        read_azure_trace(path, zero_output="refuse")


GOOD = "2023-11-16 18:00:00,10,5\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:00:00,1\n", "line 1: no column GeneratedTokens"),
        (HEADER, "a header and no rows"),
        (HEADER + GOOD + "2023-11-16 18:00:01,10\n", "line 3: 2 fields, the header has 3"),
        (HEADER + GOOD + "2023-11-16 18:00:01,10,5,6\n", "line 3: 4 fields"),
        (HEADER + GOOD + "2023-11-16 18:00:01,nan,5\n", "line 3: ContextTokens 'nan'"),
        (HEADER + GOOD + "2023-11-16 18:00:01,,5\n", "line 3: ContextTokens ''"),
        (HEADER + GOOD + "2023-11-16 18:00:01,-3,5\n", "line 3: ContextTokens '-3'"),
        (HEADER + GOOD + "2023-11-16 18:00:01,0,5\n", "line 3: ContextTokens '0'"),
        (HEADER + GOOD + "2023-11-16 18:00:01,1.5,5\n", "line 3: ContextTokens '1.5'"),
        (HEADER + GOOD + "2023-11-16 18:00:01,5,99999999999\n", "line 3: GeneratedTokens"),
        (HEADER + GOOD + "2023-13-16 18:00:01,5,5\n", "line 3: TIMESTAMP '2023-13-16 18:00:01'"),
        (HEADER + GOOD + "NaN,5,5\n", "line 3: TIMESTAMP 'NaN'"),
        (HEADER + GOOD + "2023-11-16 17:59:59,5,5\n", "line 3: TIMESTAMP .* is before that of the row above"),
        ((HEADER + GOOD).encode() + b"\xff\xfe\x00", "line 3: not a text file"),
        ((HEADER + GOOD).encode() + b"\x00\x00", "line 3: not a text file"),
        (b"PAR1\x15\x04\x15\x90", "not a text file"),
    ],
)
def test_a_broken_trace_is_refused_with_file_and_line(trace, content, message):
    path = trace(content)

    with pytest.raises(TraceError, match=message) as refusal:
        read_azure_trace(path)
    assert str(path) in str(refusal.value)


def test_files_that_cannot_be_read_and_windows_without_requests(trace, tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        read_azure_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="cannot be read"):
        read_azure_trace(tmp_path)
    path = trace(HEADER + ROWS)
    with pytest.raises(TraceError, match=r"no request from 60 s on; the trace lasts 4\.542 s"):
        read_azure_trace(path, from_s=60.0)
    with pytest.raises(TraceError, match=r"no request between 60 s and 70 s; the trace lasts 4\.542 s"):
        read_azure_trace(path, from_s=60.0, until_s=70.0)
    with pytest.raises(ValueError, match="window"):
        read_azure_trace(path, from_s=5.0, until_s=5.0)
    with pytest.raises(ValueError, match="scale"):
        read_azure_trace(path, scale=0.0)


@pytest.mark.parametrize(("kind", "num_requests"), [("conv", 19_366), ("code", 8_819)])
def test_the_published_traces_have_their_published_sizes(shared_data, kind, num_requests):
    read = read_azure_trace(shared_data / "azure_llm" / f"AzureLLMInferenceTrace_{kind}.csv")

    assert read.num_requests == num_requests
    assert (np.diff(read.arrival_s) >= 0).all()
    assert read.num_zero_outputs == 0
