"""Tiers behind the KV cache, as a scenario asks for them."""

from __future__ import annotations

import pytest
from scenario_texts import CLUSTER, SERVING, loaded, refusal

from sim.scenario import build
from sim.scenario.errors import ScenarioError
from sim.serving.tier_metrics import tier_rows

AT = "workloads.chat."
HOST = AT + "kv.tiers=[{kind: host, capacity: 1 GiB}]"
BOTH = AT + "kv.tiers=[{kind: host, capacity: 1 GiB}, {kind: disk, capacity: 1 TB, bandwidth: 5 GB/s, latency: 1 ms}]"
LARGE = [tier.replace("1 GiB", "3 GiB") for tier in (HOST, BOTH)]


def tiers(tmp_path, *settings):
    found = loaded(tmp_path, CLUSTER + SERVING, *settings)
    build.check(found)
    scenario = found.variants[0][1]
    server = build.Server(scenario, scenario.workloads[0], build.build_topology(scenario.cluster))
    return server.limits.tiers


def test_a_block_is_one_copy_cut_over_the_tensor_ranks(tmp_path):
    """Of Llama-3.1-8B 16 tokens are 2 MiB: half of it on each of two accelerators, each with a link of its own."""
    assert tiers(tmp_path) == ()
    pcie = "cluster.host.pcie={rate: 64 GB/s, copy_time: 1 us}"
    (host,) = tiers(tmp_path, HOST, pcie)
    assert (host.kind, host.num_blocks, host.latency_s, host.block_bytes) == ("host", 512, 0.0, 2**21)
    assert host.block_s == pytest.approx(1e-6 + 2**21 / 64e9)
    host, disk = tiers(tmp_path, BOTH, pcie, AT + "parallelism.tensor=2")
    assert host.num_blocks == 1024 and host.block_s == pytest.approx(1e-6 + 2**20 / 64e9)
    assert (disk.kind, disk.num_blocks, disk.latency_s, disk.block_bytes) == ("disk", 10**12 // 2**20, 1e-3, 2**21)
    assert disk.block_s == pytest.approx(2**20 / 5e9)
    (host,) = tiers(tmp_path, AT + "kv.tiers=[{kind: host, capacity: 1 GiB, bandwidth: 10 GB/s}]", pcie)
    assert host.block_s == pytest.approx(1e-6 + 2**21 / 10e9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([AT + "kv.tiers=[{kind: disk, capacity: 1 TB, bandwidth: 5 GB/s}]"], "tiers are disk; give one of kind host"),
        ([AT + "kv.tiers=[{kind: host, capacity: 1 TB}, {kind: host, capacity: 1 TB}]"], "tiers are host, host; give"),
        ([AT + "kv.tiers=[{kind: host}]"], "capacity"),
        ([AT + "kv.tiers=[{kind: host, capacity: 1 GiB}, {kind: disk, capacity: 1 TB}]"], "bandwidth"),
        ([AT + "kv.tiers=[{kind: tape, capacity: 1 GiB}]"], "unknown kind 'tape'"),
        ([HOST, AT + "kv.prefix_caching=false"], "tiers keep blocks by what they hold, which needs prefix_caching"),
        ([HOST, AT + "batching.policy=prefill_first"], "with tiers use chunked_prefill"),
        ([HOST, AT + "batching.preemption=swap"], "use preemption: recompute"),
        ([HOST, AT + "disaggregation={}"], "tiers are not there with prefill and decode apart"),
    ],
)
def test_tiers_that_are_refused(tmp_path, settings, words):
    assert words in refusal(tmp_path, CLUSTER + SERVING, *settings)


def test_a_tier_has_room_for_a_block(tmp_path):
    with pytest.raises(ScenarioError, match=r"chat.kv.tiers.*capacity: 1048576 B hold no block, which takes 2097152 B"):
        tiers(tmp_path, AT + "kv.tiers=[{kind: host, capacity: 1 MiB}]")


def run(tmp_path, *settings):
    found = loaded(tmp_path, CLUSTER + SERVING, *settings)
    build.check(found)
    simulation = build.build(found.variants[0][1], 1)
    (chat,) = simulation.workloads
    simulation.clock.run(until=chat.start())
    return chat


def test_conversations_find_on_host_and_disk_what_the_device_has_lost(tmp_path):
    """Replicas that do not share their tiers, clients that lose patience, deaths: the books are checked at the end."""
    settings = (
        AT + "sessions={turns: {law: fixed, tokens: 4}, think_time: 5 s}", AT + "kv.num_blocks=300", AT + "replicas=2",
        AT + "num_requests=40", "faults=[{at: 12 s, replica: chat/1, state: down, until: 15 s}]",
        AT + "client={timeout: 20 s, retries: 1}",
    )  # fmt: skip
    without, host, both = (run(tmp_path, *settings, *more).metrics() for more in ((), LARGE[:1], LARGE[1:]))

    assert without["prefix_cache_hit_rate"] < host["prefix_cache_hit_rate"] < both["prefix_cache_hit_rate"]
    parts = [both[f"kv_{tier}_hit_rate"] for tier in ("device", "host", "disk")]
    assert sum(parts) == pytest.approx(both["prefix_cache_hit_rate"]) and all(part > 0 for part in parts)
    assert "kv_host_hit_rate" not in without and "kv_disk_hit_rate" not in host
    assert both["completed"] + both["timed_out"] + both["failed"] == both["arrived"]
    again = run(tmp_path, *settings, LARGE[1])
    assert again.metrics() == both
    rows = [row for engine in again.engines for row in tier_rows(engine)]
    assert [(row["replica"], row["tier"]) for row in rows] == [(0, "host"), (0, "disk"), (1, "host"), (1, "disk")]
    assert all(0 < row["num_held"] <= row["num_blocks"] for row in rows)
