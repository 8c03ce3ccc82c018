import numpy as np
import pandas as pd
import pytest

from sim.engine.recorder import ROWS_PER_CHUNK, Recorder, RecorderError


def test_arrays_and_scalars_make_rows_in_the_order_of_appending():
    recorder = Recorder()
    recorder.append("flows", workload="shift", message=np.arange(3), received_s=np.array([0.5, 0.25, 1.0]))
    recorder.append("flows", received_s=[2.0], workload="neighbour", message=[7])
    flows = recorder.frames()["flows"]
    assert list(flows.columns) == ["workload", "message", "received_s"]
    assert flows["message"].tolist() == [0, 1, 2, 7]
    assert flows["message"].dtype == np.int64
    assert flows["received_s"].tolist() == [0.5, 0.25, 1.0, 2.0]
    assert flows["workload"].tolist() == ["shift"] * 3 + ["neighbour"]
    assert list(flows["workload"].cat.categories) == ["shift", "neighbour"]


def test_scalars_only_are_one_row_and_many_of_them_keep_their_types():
    recorder = Recorder()
    for i in range(ROWS_PER_CHUNK + 5):
        recorder.append("batches", step=i, compute_s=i / 8)
    batches = recorder.frames()["batches"]
    assert len(batches) == ROWS_PER_CHUNK + 5
    assert batches["step"].dtype == np.int64 and batches["compute_s"].dtype == np.float64
    assert batches["step"].tolist() == list(range(ROWS_PER_CHUNK + 5))


def test_missing_values_leave_integers_integers():
    recorder = Recorder()
    recorder.append("links", link=["h0-l0", "l0-s0"], leaf=[None, 0], spine=[None, 3], load=[np.nan, 1.0])
    recorder.append("links", link="l0-s1", leaf=0, spine=1, load=None)
    links = recorder.frames()["links"]
    assert links["leaf"].dtype == pd.Int64Dtype()
    assert links["leaf"].isna().tolist() == [True, False, False]
    assert links["spine"].tolist()[1:] == [3, 1]
    assert links["load"].isna().tolist() == [True, False, True]


def test_text_with_gaps_and_booleans():
    recorder = Recorder()
    recorder.append("requests", outcome=["finished", None], is_cached=[True, False])
    requests = recorder.frames()["requests"]
    assert requests["outcome"].isna().tolist() == [False, True]
    assert requests["is_cached"].dtype == np.bool_


def test_arrays_are_copied():
    buffer = np.array([1.0, 2.0])
    recorder = Recorder()
    recorder.append("token_times", time_s=buffer)
    buffer[:] = 0
    assert recorder.frames()["token_times"]["time_s"].tolist() == [1.0, 2.0]


def test_empty_arrays_keep_the_table_and_its_columns():
    recorder = Recorder()
    recorder.append("flows", workload="a", message=np.zeros(0, np.int64))
    assert list(recorder.frames()["flows"].columns) == ["workload", "message"]
    assert len(recorder.frames()["flows"]) == 0


def test_unequal_lengths_and_changed_columns_are_refused():
    recorder = Recorder()
    with pytest.raises(RecorderError, match="unequal length"):
        recorder.append("flows", message=[1, 2], size_bytes=[1, 2, 3])
    recorder.append("collectives", repetition=0, size_bytes=8)
    with pytest.raises(RecorderError, match="differing: size_bytes"):
        recorder.append("collectives", repetition=1)
    recorder.append("mixed", value=1)
    recorder.append("mixed", value="text")
    with pytest.raises(RecorderError, match=r"mixed\.value mixes integer and text"):
        recorder.frames()


def test_streamed_rows_are_made_when_they_are_asked_for():
    """Two streams of one table, in chunks; whole they are what appending them would have given."""
    recorder, appended, calls = Recorder(), Recorder(), []

    def rows(workload, chunks):
        calls.append(workload)
        for chunk in chunks:
            yield {"workload": workload, "time_s": np.array(chunk)}

    for workload, chunks in (("a", [[1.0, 2.0], [3.0]]), ("b", [[]])):
        recorder.stream("token_times", lambda workload=workload, chunks=chunks: rows(workload, chunks))
        for chunk in chunks:
            appended.append("token_times", workload=workload, time_s=np.array(chunk))
    tables = recorder.tables()
    assert calls == [] and list(tables) == ["token_times"] and "token_times" in tables
    assert [len(frame) for frame in tables.chunks("token_times")] == [2, 1, 0]
    pd.testing.assert_frame_equal(tables["token_times"], appended.frames()["token_times"])
    assert calls == ["a", "b", "a", "b"]


def test_rows_of_some_columns():
    recorder = Recorder()
    recorder.append_some("t", a=np.array([1, 2]), b="x")
    recorder.append_some("t", a=3, c=0.5)
    recorder.append_some("t", a=np.array([4]), b="y", d=np.array([7]))
    frame = recorder.frames()["t"]
    assert frame["a"].tolist() == [1, 2, 3, 4]
    assert frame["b"].isna().tolist() == [False, False, True, False]
    assert frame["c"].isna().tolist() == [True, True, False, True] and frame["c"][2] == 0.5
    assert frame["d"].isna().tolist() == [True, True, True, False] and frame["d"][3] == 7
