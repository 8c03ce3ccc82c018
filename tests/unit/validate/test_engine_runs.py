"""Recorded runs: our own recorded and found again without error, what cannot be read, and the real ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from calibration.importers import import_llmservingsim
from models.cost.table import table_of
from sim.validate.against import accelerator_of, draw_service, mechanism_rows
from sim.validate.engine_runs import Replay, Switches, errors
from sim.validate.recorded_runs import RunError, preset_of, read_run
from sim.validate.single_steps import priced_s, single_steps, step_rows

WORKLOAD = "vllm_ground_truth/workload_llama-3.1-8b.jsonl"


def small_table(gpu="RTX4090"):
    """Two sizes of one operator; the roofline prices the others."""
    row = {"operator": "elementwise", "name": "layernorm", "numbers": 4 * 4096, "unit": "s", "gpu": gpu,
           "source": "made up"}  # fmt: skip
    return table_of([row | {"rows": n, "seconds": 1e-6 * n} for n in (1, 2048)], "made up")


def write_run(folder, prompt, output, *times, **engine):
    names = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    lines = [
        {"input_toks": int(i), "output_toks": int(o)} | dict(zip(names, map(float, at), strict=True))
        for i, o, *at in zip(prompt, output, *times, strict=True)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "meta.json").write_text(json.dumps({
        "model": "meta-llama/Llama-3.1-8B", "kv_cache": {"num_gpu_blocks": 2000},
        "engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 256, "tensor_parallel_size": 1} | engine,
        "hardware": {"device_name": "NVIDIA GeForce RTX 4090"},
    }))  # fmt: skip
    return read_run(folder)


def test_our_own_run_recorded_is_found_again_without_error(tmp_path):
    rng = np.random.default_rng(3)
    prompt, output = rng.integers(1, 400, 20), rng.integers(2, 40, 20)
    queued = np.cumsum(rng.exponential(0.05, 20))
    run = write_run(tmp_path, prompt, output, queued, queued, queued + 1, queued + 2)
    assert (run.max_num_seqs, run.num_blocks, run.device) == (8, 2000, "NVIDIA GeForce RTX 4090")
    assert (preset_of(run.model), accelerator_of(run, small_table())) == ("llama-3.1-8b", "rtx4090")
    replay = Replay(run, small_table(), "llama-3.1-8b", "rtx4090")
    assert set(replay.blocks_used()) == {"matched", "blind"}
    ours = replay.serve(2000)
    assert max(abs(e.error) for e in errors(replay.recorded, ours)) > 0.1

    times = (ours.arrival_s, ours.scheduled_s, ours.first_token_s, ours.last_token_s)
    again = Replay(write_run(tmp_path, prompt, output, *times), small_table(), "llama-3.1-8b", "rtx4090")
    assert all(abs(e.error) < 1e-9 for e in errors(again.recorded, again.serve(2000)))
    assert len(list(mechanism_rows(again))) == 6
    assert draw_service(again, tmp_path / "none.png") is None  # no timeline was recorded


@pytest.mark.parametrize("is_async", [True, False])
def test_single_steps_of_our_own_run_take_what_they_are_priced_at(tmp_path, is_async):
    """Times of requests are all that a recording has; how far others had come is guessed from theirs."""
    rng = np.random.default_rng(4)
    prompt, output = rng.integers(20, 200, 200), rng.integers(40, 80, 200)
    queued = np.cumsum(rng.exponential(0.012, 200))
    run = replace(write_run(tmp_path, prompt, output, queued, queued, queued + 1, queued + 2), is_async=is_async)
    replay = Replay(run, small_table(), "llama-3.1-8b", "rtx4090")
    ours = replay.serve(20000)
    again = replace(run, scheduled_s=ours.scheduled_s, first_token_s=ours.first_token_s, last_token_s=ours.last_token_s)

    steps = list(single_steps(again, 20000))
    assert len(steps) > 10 and max(len(step.contexts) for step in steps) > 3
    np.testing.assert_allclose(priced_s(replay, steps), [step.seconds for step in steps], rtol=2e-3)
    replay.run = again
    assert all(abs(row["error of the sum"]) < 2e-3 for row in step_rows(replay))


def test_a_result_of_vllm_bench_serve(tmp_path):
    path = tmp_path / "result.json"
    result = {"model_id": "Qwen/Qwen3-32B", "input_lens": [5, 6], "output_lens": [3, 1], "start_times": [11.0, 10.0],
              "ttfts": [0.5, 0.25], "itls": [[0.1, 0.2], []]}  # fmt: skip
    path.write_text(json.dumps(result))
    run = read_run(tmp_path)
    assert run.arrival_s.tolist() == [0.0, 1.0]
    assert run.first_token_s.tolist() == [0.25, 1.5]
    assert run.last_token_s.tolist() == pytest.approx([0.25, 1.8])
    assert run.scheduled_s is None and preset_of(run.model) == "qwen3-32b"
    del result["itls"]
    path.write_text(json.dumps(result))
    with pytest.raises(RunError, match="no itls; record with --save-result --save-detailed"):
        read_run(path)


def sglang_run(folder, **settings):
    """Four requests as sglang.bench_serving saves them."""
    result = {"backend": "sglang", "request_rate": np.inf, "max_concurrency": 2,
              "total_output_tokens_retokenized": 9, "input_lens": [5, 6, 7, 8], "output_lens": [3, 1, 2, 2],
              "ttfts": [0.5, 0.25, 0.1, 0.2], "itls": [[0.1, 0.2], [], [0.3], [0.1]]}  # fmt: skip
    path = folder / "sglang.jsonl"
    path.write_text(json.dumps(result | settings) + "\n")
    return path


def test_a_result_of_sglang_s_client(tmp_path):
    """Two under way: the third is sent when the second has ended, at 0.25, the fourth at 0.65, when the third has."""
    run = read_run(sglang_run(tmp_path))
    assert run.arrival_s.tolist() == pytest.approx([0.0, 0.0, 0.25, 0.65])
    assert run.first_token_s.tolist() == pytest.approx([0.5, 0.25, 0.35, 0.85])
    assert run.last_token_s.tolist() == pytest.approx([0.8, 0.25, 0.65, 0.95])
    assert (run.policy, run.max_num_batched_tokens, run.scheduled_s) == ("prefill_first", 8192, None)
    assert read_run(sglang_run(tmp_path, max_concurrency=None)).arrival_s.tolist() == [0.0] * 4
    assert read_run(tmp_path).num_prompt_tokens.tolist() == [5, 6, 7, 8]

    replay = Replay(run, small_table("h100"), "llama-3.1-8b", "h100")
    assert (replay.serve(2000).last_token_s > 0).all()


def test_what_sglang_s_client_does_not_say(tmp_path):
    path = sglang_run(tmp_path, request_rate=4.0)
    with pytest.raises(RunError, match=r"request_rate is 4\.0; record with --request-rate inf"):
        read_run(path)
    path.write_text(2 * sglang_run(tmp_path).read_text())
    with pytest.raises(RunError, match="2 runs, one a line"):
        read_run(path)
    path.write_text('{"total_output_tokens_retokenized": 3}')
    with pytest.raises(RunError, match="no input_lens; record with --output-details"):
        read_run(path)


def test_recordings_that_cannot_be_read(tmp_path):
    with pytest.raises(RunError, match="neither requests"):
        read_run(tmp_path)
    (tmp_path / "requests.jsonl").write_text('{"input_toks": 3}\n')
    with pytest.raises(RunError, match="line 1: needs numbers input_toks, output_toks"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="no preset is called like 'gpt-9'"):
        preset_of("gpt-9")


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"pipeline_parallel_size": "2"}, "pipeline_parallel_size '2' is not a whole number"),
        ({"quantization": "fp8"}, "quantization 'fp8': only bf16 is replayed"),
        ({"max_num_seqs": "a"}, "max_num_seqs 'a' is not a whole number"),
    ],
)
def test_settings_that_the_replay_does_not_have(tmp_path, engine, message):
    times = np.zeros((4, 2))
    write_run(tmp_path, [4, 4], [2, 2], *times)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"engine_kwargs": engine}))
    with pytest.raises(RunError, match=message):
        read_run(tmp_path)


def test_pipeline_stages_are_found_again(tmp_path):
    """Requests that decode for long, on two stages: as many batches in flight, so that less time passes than on one
    device, and more than half of it."""
    prompt, output, zero = np.full(16, 200), np.full(16, 40), np.zeros(16)
    last_s = {}
    for stages in (1, 2):
        run = write_run(tmp_path, prompt, output, zero, zero, zero + 1, zero + 2, pipeline_parallel_size=stages)
        assert run.pipeline == stages
        replay = Replay(run, small_table(), "llama-3.1-8b", "rtx4090")
        ours = replay.serve(2000)
        last_s[stages] = ours.last_token_s.max()
        times = (ours.arrival_s, ours.scheduled_s, ours.first_token_s, ours.last_token_s)
        again = Replay(
            write_run(tmp_path, prompt, output, *times, pipeline_parallel_size=stages), small_table(), "llama-3.1-8b",
            "rtx4090",
        )  # fmt: skip
        assert all(abs(e.error) < 1e-9 for e in errors(again.recorded, again.serve(2000)))
    assert 0.5 < last_s[2] / last_s[1] < 1
    assert replay.parallelism.num_accelerators == 2 and len(replay.plan.stages) == 2
    with pytest.raises(RunError, match="pipeline_parallel_size 2 with experts over several devices of a stage"):
        Replay(
            write_run(tmp_path, prompt, output, zero, zero, zero + 1, zero + 2, pipeline_parallel_size=2,
                      enable_expert_parallel=True),
            small_table(), "qwen3-30b-a3b", "rtx4090",
        )  # fmt: skip


def test_engines_that_share_their_experts_are_found_again(tmp_path):
    """Two data-parallel engines of a mixture of experts, on the same requests as one: each has all limits for itself,
    so that all 16 run at once where one engine runs 8."""
    prompt, output, zero = np.full(16, 40), np.full(16, 6), np.zeros(16)
    table = small_table("RTXPRO6000")
    shared = {"data_parallel_size": 2, "enable_expert_parallel": True}
    served = {}
    for name, engine in (("one", {}), ("two", shared)):
        run = write_run(tmp_path, prompt, output, zero, zero, zero + 1, zero + 2, **engine)
        replay = Replay(run, table, "qwen3-30b-a3b", "rtx_pro_6000")
        ours = served[name] = replay.serve(2000)
        times = (ours.arrival_s, ours.scheduled_s, ours.first_token_s, ours.last_token_s)
        again = Replay(write_run(tmp_path, prompt, output, *times, **engine), table, "qwen3-30b-a3b", "rtx_pro_6000")
        assert all(abs(e.error) < 1e-9 for e in errors(again.recorded, again.serve(2000)))
    assert [len(np.unique(served[name].scheduled_s)) > 2 for name in ("one", "two")] == [True, False]
    assert (replay.parallelism.tensor, replay.parallelism.expert, replay.parallelism.data) == (1, 2, 2)
    dense = write_run(tmp_path, prompt, output, zero, zero, zero + 1, zero + 2, data_parallel_size=2)
    assert Replay(dense, table, "llama-3.1-8b", "rtx_pro_6000").serve(2000).last_token_s.max() > 0
    with pytest.raises(RunError, match="data_parallel_size 2 of a mixture of experts without enable_expert_parallel"):
        Replay(dense, table, "qwen3-30b-a3b", "rtx_pro_6000")


def test_another_gpu_s_table_or_an_unknown_model_is_refused(tmp_path):
    run = write_run(tmp_path, [4, 4], [2, 2], *np.zeros((4, 2)))
    with pytest.raises(RunError, match="has times of RTX4090, not of h100"):
        Replay(run, small_table(), "llama-3.1-8b", "h100")
    with pytest.raises(RunError, match="unknown model 'nope'"):
        Replay(run, small_table(), "nope", "rtx4090")


@pytest.fixture(scope="module")
def replays(shared_data):
    found = {}
    for device, accelerator in (("RTX4090", "rtx4090"), ("RTXPRO6000", "rtx_pro_6000")):
        run = read_run(shared_data / "vllm_ground_truth" / device / "Llama-3.1-8B", shared_data / WORKLOAD)
        table = import_llmservingsim(shared_data / "profiles" / device, "meta-llama/Llama-3.1-8B", 1)
        found[device] = Replay(run, table, "llama-3.1-8b", accelerator)
    return found


def test_vllm_on_a_4090_is_met_by_every_figure(replays):
    replay = replays["RTX4090"]
    missed = [e for e in errors(replay.recorded, replay.serve(2588)) if not e.is_within]
    assert missed == []
    assert replay.planned_blocks == pytest.approx(2588, rel=0.05)


def test_vllm_on_an_rtx_pro_6000_is_met_but_for_what_its_profile_lacks(replays):
    """Steps with a prompt took this run 4 ms longer than the profile's kernels say (docs/validation.md)."""
    replay = replays["RTXPRO6000"]
    found = {e.name: e.error for e in errors(replay.recorded, replay.serve(replay.planned_blocks))}
    assert abs(found["mean ttft"]) < 0.05
    assert abs(found["mean tpot"]) < 0.017
    assert abs(found["mean e2el"]) < 0.026


def test_mechanisms_matter(replays):
    """Synchronously the first token comes a step early; without its cache the engine is late."""
    replay = replays["RTX4090"]
    synchronous = replay.serve(2588, Switches(asynchronous_scheduling=False))
    found = {e.name: e.error for e in errors(replay.recorded, synchronous)}
    assert found["mean first token - scheduled"] < -0.2
    uncached = replay.serve(2588, Switches(prefix_caching=False))
    assert {e.name: e.error for e in errors(replay.recorded, uncached)}["mean ttft"] > 0.03
