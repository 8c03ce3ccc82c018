"""Tiers behind the KV cache: what a fetch takes, what it holds up, and what is found. Blocks have 4 tokens; a step
takes 1 s and 0.1 s a token unless said otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of
from test_expert_parallel import InstantFabric, iteration

from models.architecture import ARCHITECTURES
from models.bounds import break_even_bytes_per_s
from models.cost.build import step_table
from models.cost.step import step_seconds
from models.hardware import ACCELERATORS
from models.memory import kv_bytes_per_token
from sim.devices.kv_cache import Contents
from sim.devices.kv_tiers import TierLimits
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.serving.clients import OpenLoop, Patience
from sim.serving.front import Front
from sim.serving.request import TIMED_OUT
from sim.workload.prefix_traces import read_mooncake_trace

STEP = linear_table(1.0, tokens=0.1)
THREE = ([0.0, 10.0, 20.0], [16, 20, 16], [1, 1, 1])
"""The second pushes the first out of 5 blocks, the third has the prompt of the first: of its 4 blocks 3 may be found,
for the last token is always computed."""
PROMPTS = Contents(np.array([0, 4, 9, 13]), np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3]))


def host(num_blocks=100, block_s=0.0, latency_s=0.0) -> TierLimits:
    return TierLimits("host", num_blocks, block_s, latency_s, 1000)


def disk(num_blocks=100, block_s=0.0, latency_s=0.0) -> TierLimits:
    return TierLimits("disk", num_blocks, block_s, latency_s, 1000)


def three(*tiers, num_blocks=5, **options):
    options = {"table": STEP, "contents": PROMPTS, "is_caching": True} | options
    return served(*THREE, num_blocks=num_blocks, tiers=tiers, **options)


def ttft_s(made, request=2) -> float:
    return float(made.requests["first_token_s"][request] - made.requests["arrival_s"][request])


def test_what_is_fetched_in_no_time_is_as_good_as_on_the_device():
    on_device, fetched, computed = three(num_blocks=100), three(host()), three()

    assert ttft_s(on_device) == ttft_s(fetched) == pytest.approx(1.0 + 4 * 0.1)
    assert ttft_s(computed) == pytest.approx(1.0 + 16 * 0.1)
    assert fetched.requests.tobytes() == on_device.requests.tobytes()


@pytest.mark.parametrize("latency_s", [0.0, 0.3])
@pytest.mark.parametrize("block_s", [0.0, 0.2, 0.29, 0.31, 0.39, 0.41, 1.0])
def test_fetching_pays_where_three_blocks_take_less_than_twelve_tokens(block_s, latency_s):
    """3 block_s + latency_s against 12 · 0.1 s."""
    ahead_s = ttft_s(three()) - ttft_s(three(host(block_s=block_s, latency_s=latency_s)))
    assert ahead_s == pytest.approx(12 * 0.1 - 3 * block_s - latency_s)


def test_a_disk_is_read_first_and_then_the_hosts_link_carries_all():
    """A host of 2 blocks has the last two of the second prompt when the third request comes: all 3 lie on the disk."""
    made = three(host(2, block_s=0.5), disk(block_s=0.2, latency_s=0.05))

    assert ttft_s(made) == pytest.approx(0.05 + 3 * 0.2 + 3 * 0.5 + 1.0 + 4 * 0.1)
    metrics = made.metrics()
    assert metrics["kv_disk_hit_rate"] == metrics["prefix_cache_hit_rate"] == 12 / 52
    assert metrics["kv_host_hit_rate"] == metrics["kv_device_hit_rate"] == 0.0
    # All blocks of all prompts: of those read the host had pushed out the first again when the third was done, and
    # each that it stored then pushed out the next.
    assert metrics["kv_host_stored_bytes"] == 13_000 and metrics["kv_host_store_s"] == pytest.approx(6.5)
    assert metrics["kv_host_fetched_bytes"] == metrics["kv_disk_fetched_bytes"] == 3000
    assert metrics["kv_disk_fetch_s"] == pytest.approx(0.65)
    # What falls out of the host is written once: all of both prompts, the last two of them when three came back.
    assert metrics["kv_disk_stored_bytes"] == 9000


def test_part_of_a_prefix_may_lie_on_the_host_and_part_on_disk():
    """A host of 7 blocks has lost the first two of nine: they are read, and come back to the host for two others."""
    made = three(host(7, block_s=0.5), disk(block_s=0.2))

    asked = made.replicas[0].engine.state.tiers.asked[2]
    assert (asked["from_host"], asked["from_disk"]) == (4, 8)
    assert ttft_s(made) == pytest.approx(2 * 0.2 + 3 * 0.5 + 1.0 + 4 * 0.1)


def test_the_time_of_a_fetch_is_a_part_of_the_latency():
    made = three(host(block_s=0.5))
    split = made.time_split()

    assert split["kv_transfer_s"].tolist() == pytest.approx([0.0, 0.0, 1.5])
    assert split["queue_s"].tolist() == [0.0, 0.0, 0.0]
    assert made.metrics()["mean_kv_transfer_ms"] == pytest.approx(500.0)
    recorder = Recorder()
    made.record(recorder)
    tables = recorder.frames()
    assert tables["requests"]["host_tokens"].tolist() == tables["requests"]["cached_tokens"].tolist() == [0, 0, 12]
    row = tables["kv_tiers"].iloc[0]
    assert (row["tier"], row["num_held"], row["num_evicted"], row["fetched_bytes"]) == ("host", 9, 0, 3000)


def test_others_go_on_while_blocks_come_and_fetches_follow_one_another():
    """12 blocks, all of them taken by the second prompt. From 20 s on the third generates a token a second; the fourth
    and the fifth ask for 3 blocks each at 20 s, which have come at 22.1 and 24.2 s: they join the steps formed next."""
    numbers = [*range(4), *range(10, 22), *range(4), *range(4)]
    made = served(
        [0.0, 10.0, 20.0, 20.0, 20.0], [16, 48, 1, 16, 16], [1, 1, 8, 1, 1], num_blocks=12, tiers=(host(block_s=0.7),),
        contents=Contents(np.array([0, 4, 16, 16, 20, 24]), np.array(numbers)), is_caching=True, table=linear_table(),
    )  # fmt: skip

    assert tokens_of(made, 2) == [21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0]
    assert made.requests["first_token_s"][3:].tolist() == [24.0, 26.0]
    assert made.time_split()["kv_transfer_s"][3:].tolist() == [3.0, 5.0]
    assert made.metrics()["kv_host_hit_rate"] == 24 / 97


def test_whoever_gave_way_finds_its_own_blocks_again():
    """Two requests in 4 blocks: in step 6 the second, with 8 tokens in two blocks, gives way, and what it had is taken
    by the first. Without a tier it computes 9 tokens again, with one the last of them."""
    two = ([0.0, 0.0], [4, 4], [6, 6])
    again = served(*two, num_blocks=4, table=STEP, is_caching=True)
    found = served(*two, num_blocks=4, table=STEP, is_caching=True, tiers=(host(block_s=0.05),))

    assert again.requests["num_preemptions"].tolist() == found.requests["num_preemptions"].tolist() == [0, 1]
    tokens = [made.replicas[0].engine.steps["num_prefill_tokens"][-1] for made in (again, found)]
    assert tokens[0] > tokens[1]
    assert found.requests["num_cached"].tolist() == [0, 0]
    assert tokens_of(found, 1)[-1] < tokens_of(again, 1)[-1]


def test_break_even_of_a_real_model():
    """Llama-3.1-8B on an H200: 4,096 tokens of a prompt of 4,112, on a device that has lost them. A step of all of it
    takes longer than one of the last 16 by what the others take; a rate 1 % above or below the break-even tells."""
    architecture, device = ARCHITECTURES["llama-3.1-8b"], ACCELERATORS["h200"]
    table, prompt, known = step_table(architecture, device), 4112, 4096
    pairs = prompt * (prompt + 1) // 2
    whole_s = step_seconds(table, prompt, 0, 1, pairs, prompt, 0)
    rest_s = step_seconds(table, prompt - known, 0, 1, pairs - known * (known + 1) // 2, prompt, 0)
    token_bytes = kv_bytes_per_token(architecture)
    rate = break_even_bytes_per_s(token_bytes, known / (whole_s - rest_s))

    numbers = [*range(257), *range(300, 557), *range(257)]
    contents = Contents(np.array([0, 257, 514, 771]), np.array(numbers))
    options = {"block_size": 16, "num_blocks": 257, "max_num_batched_tokens": 8192, "table": table}
    load = ([0.0, 10.0, 20.0], [prompt] * 3, [1] * 3)
    found = {}
    for share in (None, 0.99, 1.01):
        tiers = () if share is None else (TierLimits("host", 600, 16 * token_bytes / (share * rate)),)
        made = served(*load, contents=contents, is_caching=True, tiers=tiers, **options)
        found[share] = ttft_s(made)
    assert found[1.01] < found[None] < found[0.99]
    assert found[None] == pytest.approx(whole_s)
    assert found[1.01] == pytest.approx(rest_s + (whole_s - rest_s) / 1.01)


def test_an_unbounded_host_finds_what_an_unbounded_device_would(shared_data):
    """The conversations of Mooncake, prompt after prompt: 36.6 % of all blocks, of 512 tokens, can be found."""
    trace = read_mooncake_trace(shared_data / "mooncake" / "conversation_trace.jsonl")
    prompt = trace.num_prompt_tokens
    contents = trace.blocks.contents(prompt, 512)
    longest = int(prompt.max())
    rates = {}
    for name, num_blocks, tiers in (
        ("device", len(contents.number), ()), ("host", -(-longest // 512) + 1, (host(10**6),)),
    ):  # fmt: skip
        made = served(
            1e4 * np.arange(len(prompt)), prompt, np.ones(len(prompt), np.int64), block_size=512, num_blocks=num_blocks,
            max_num_batched_tokens=longest, contents=contents, is_caching=True, tiers=tiers,
        )  # fmt: skip
        metrics = made.metrics()
        rates[name] = metrics["prefix_cache_hit_rate"]
    assert rates["host"] == rates["device"] == pytest.approx(0.366, abs=0.01)
    assert metrics["kv_device_hit_rate"] + metrics["kv_host_hit_rate"] == pytest.approx(rates["host"])
    assert metrics["kv_host_hit_rate"] > 0.8 * rates["host"]


def test_whoever_gives_up_while_blocks_come_leaves_nothing_behind():
    """The third asks for its blocks at 20 s, 2 s each, and is gone at 23."""
    patience = Patience(3.0, False, 0, 0.0)
    made = three(host(block_s=2.0), front=Front(OpenLoop(np.array(THREE[0])), patience))

    assert made.requests["outcome"][2] == TIMED_OUT and made.replicas[0].engine.num_held_blocks == 0
    assert made.metrics()["prefix_cache_hit_rate"] == 0.0


def test_a_copy_of_the_attention_waits_for_blocks_of_its_own_tier():
    """Two copies that step together; each request finds both idle and goes to the first."""
    clock = Clock()
    contents = Contents(np.array([0, 4, 9, 13]), PROMPTS.number)
    made = served(
        *THREE, num_blocks=5, tiers=(host(block_s=1.0),), contents=contents, is_caching=True, table=None, clock=clock,
        iterations=[iteration(2)], fabric=InstantFabric(clock),
    )  # fmt: skip

    assert made.requests["copy"].tolist() == [0, 0, 0]
    assert [engine.state.tiers.tiers["num_placed"][0] for engine in made.engines] == [9, 0]
    assert made.requests["num_cached"].tolist() == [0, 0, 12]
    assert 3.0 < ttft_s(made) < 3.1
    assert made.time_split()["kv_transfer_s"][2] == pytest.approx(3.0)


@pytest.mark.parametrize("tiers", [[disk()], [host(), host()], [host(), disk(), disk()], [host(block_s=-1.0)]])
def test_tiers_that_are_none(tiers):
    with pytest.raises(ValueError, match=r"tiers|tier's"):
        three(*tiers)
