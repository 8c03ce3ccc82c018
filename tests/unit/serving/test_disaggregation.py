"""Prefill and decode on separate pools, against times worked out by hand.

One token of keys and values is 8 bytes here: 2 layers of 4 bytes; a block has 4 tokens, 32 bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serving_parts import linear_table, tokens_of

from models.kv_transfer import KVShards
from sim.devices.kv_cache import Contents
from sim.engine.clock import Clock
from sim.engine.recorder import Recorder
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.serving.clients import ClosedLoop
from sim.serving.disaggregated_workload import TRANSFER_FAILED, DisaggregatedWorkload, Pool
from sim.serving.pools_front import PoolsFront
from sim.serving.replica import EngineLimits
from sim.serving.request import FAILED

SHARDS = KVShards((0,), (0,), (4,), 2)
RATE, LATENCY_S = 64.0, 0.25
"""Bytes a second of every link; seconds across one. Two hosts on one leaf are two links apart."""


def pool(ranks, table=None, policy="chunked_prefill", **limits):
    limits = {"num_blocks": 100, "block_size": 4} | limits
    table = linear_table() if table is None else table
    return Pool(EngineLimits(policy, **limits), [np.array([[rank]]) for rank in ranks], table=table)


def made(arrivals, prompts, outputs, *, prefill=None, decode=None, clock=None, num_hosts=4, has_fabric=True, **options):
    clock = clock or Clock()
    fabric = None
    if has_fabric:
        link = Link(RATE, LATENCY_S)
        topology = leaf_spine(leaves=1, spines=1, hosts_per_leaf=num_hosts, host_link=link, spine_link=link,
                              hosts=[HostKind(num_hosts)])  # fmt: skip
        fabric = FluidFabric(clock, topology, settings=FluidSettings(header_bytes=0, tolerance=0.0))
    return DisaggregatedWorkload(
        "chat", clock, arrival_s=np.asarray(arrivals, float), num_prompt_tokens=np.asarray(prompts),
        num_output_tokens=np.asarray(outputs), prefill=prefill or pool([0]), decode=decode or pool([1]), shards=SHARDS,
        fabric=fabric, **options,
    )  # fmt: skip


def served(*arguments, **options):
    workload = made(*arguments, **options)
    workload.clock.run(until=workload.start())
    workload.metrics()
    return workload


def test_the_second_token_waits_for_the_transfer():
    """A step takes 1 s. 8 tokens are 64 B: 1 s at 64 B/s, and 0.5 s across two links; then a step of decoding."""
    alone = served([0.0], [8], [3])

    assert tokens_of(alone, 0) == [1.0, 3.5, 4.5]
    metrics = alone.metrics()
    assert metrics["mean_ttft_ms"] == 1000
    assert metrics["mean_kv_transit_ms"] == metrics["mean_kv_exposed_ms"] == 1500
    assert metrics["mean_kv_wait_ms"] == 0
    assert metrics["kv_transfer_bytes"] == alone.sender.fabric.injected_bytes == 64
    assert metrics["prefill_utilization"] == 1 / 4.5
    assert metrics["decode_utilization"] == 2 / 4.5


def test_the_last_block_is_sent_whole():
    assert served([0.0], [5], [2]).metrics()["kv_transfer_bytes"] == 64


def test_layer_by_layer_only_the_last_layer_is_exposed():
    """Layers are there at 0.5 and 1 s; each is 32 B, 0.5 s. The second arrives at 1 + 0.5 + 0.5."""
    layered = served([0.0], [8], [3], is_layered=True)

    assert tokens_of(layered, 0) == [1.0, 3.0, 4.0]
    assert layered.metrics()["mean_kv_exposed_ms"] == 1000
    assert layered.metrics()["kv_transfer_bytes"] == 64


def test_layers_wait_for_one_another_on_a_slow_network():
    """Of a step of 0.25 s the first layer is there at 0.125; the link is busy from then to 1.125."""
    layered = served([0.0], [8], [2], prefill=pool([0], linear_table(0.25)), is_layered=True)

    assert tokens_of(layered, 0) == [0.25, 1.125 + 0.5 + 1.0]


def test_chunks_are_sent_as_they_are_computed():
    """Two steps of 4 tokens; the last layer of the second chunk, 16 B, leaves at 2 and takes 0.25 s."""
    layered = served([0.0], [8], [2], prefill=pool([0], max_num_batched_tokens=4, max_num_seqs=4), is_layered=True)

    assert tokens_of(layered, 0) == [2.0, 2.25 + 0.5 + 1.0]
    assert layered.metrics()["kv_transfer_bytes"] == 64


def test_without_a_fabric_transfers_take_no_time():
    assert tokens_of(served([0.0], [8], [3], has_fabric=False), 0) == [1.0, 2.0, 3.0]
    assert tokens_of(served([0.0], [8], [3], has_fabric=False, is_layered=True), 0) == [1.0, 2.0, 3.0]


def test_one_token_needs_no_second_pool():
    single = served([0.0], [8], [1])

    assert tokens_of(single, 0) == [1.0]
    assert single.metrics()["completed"] == 1
    assert single.metrics()["kv_transfer_bytes"] == 0


def test_a_full_decode_pool_holds_up_the_prefill_pool():
    """The decode pool has room for one of them, the prefill pool for two prompts, one a step.

    The first moves from 1 to 2.5 and ends at 6.5; the second, done at 2, moves from then to 8. The third finds no
    block until the first has moved, the fourth until the second has.
    """
    four = served([0.0] * 4, [8] * 4, [5, 3, 2, 2],
                  prefill=pool([0], num_blocks=4, max_num_batched_tokens=8, max_num_seqs=8),
                  decode=pool([1], num_blocks=3))  # fmt: skip

    assert tokens_of(four, 0) == [1.0, 3.5, 4.5, 5.5, 6.5]
    assert tokens_of(four, 1) == [2.0, 9.0, 10.0]
    assert four.requests["scheduled_s"].tolist() == [0.0, 1.0, 2.5, 8.0]
    assert [four.handovers[r].reserved_s for r in range(4)] == [1.0, 6.5, 10.0, 12.5]
    assert four.metrics()["num_preemptions"] == 0


def test_the_engine_that_decodes_sees_no_prompt():
    recorder = Recorder()
    served([0.0], [8], [3]).record(recorder)

    frames = recorder.frames()
    batches = frames["batches"]
    assert batches["replica"].tolist() == [0, 1, 1]
    assert batches["num_prefill_tokens"].tolist() == [8, 0, 0]
    assert batches["num_decodes"].tolist() == [0, 1, 1]
    transfers = frames["kv_transfers"].iloc[0]
    assert transfers["received_s"] == 2.5
    assert (transfers["prefill_replica"], transfers["decode_replica"]) == (0, 1)


def test_what_the_receiver_has_is_not_sent():
    """The second asks for the same two blocks. Its prompt computes the last of them again, its receiver has both."""
    contents = Contents(np.array([0, 2, 4]), np.array([0, 1, 0, 1]))
    pools = [replace(pool([rank], is_caching=True), contents=contents) for rank in (0, 1)]
    twice = served([0.0, 10.0], [8, 8], [2, 2], prefill=pools[0], decode=pools[1])

    assert tokens_of(twice, 1) == [11.0, 12.0]
    assert twice.requests["num_cached"].tolist() == [0, 4]
    assert twice.metrics()["kv_transfer_bytes"] == 64


def test_who_is_preempted_lets_those_pass_who_hold_what_it_waits_for():
    """5 blocks: 2 are reserved for the second, which is there at 6. At 6.5 the first has filled its 3, gives them up,
    and wants 4: none runs, so the second goes ahead, to 7.5. Then the first computes its 13 tokens again."""
    two = served([0.0, 4.0], [8, 4], [13, 2], decode=pool([1], num_blocks=5))

    assert two.requests["num_preemptions"].tolist() == [1, 0]
    assert two.metrics()["completed"] == 2
    assert tokens_of(two, 1) == [5.0, 7.5]
    assert tokens_of(two, 0)[:7] == [1.0, 3.5, 4.5, 5.5, 6.5, 8.5, 9.5]


def test_a_request_whose_keys_and_values_do_not_arrive_has_failed():
    broken = made([0.0, 0.5], [8, 8], [3, 3])
    start = broken.sender.fabric.start

    def cut(graph):
        transfer = start(graph)
        if broken.clock.now == 1.0:
            transfer.cancel()
        return transfer

    broken.sender.fabric.start = cut
    broken.clock.run(until=broken.start())

    metrics = broken.metrics()
    assert (metrics["completed"], metrics["failed"]) == (1, 1)
    assert broken.requests["outcome"][0] == FAILED
    assert broken.failures == {TRANSFER_FAILED: 1}
    assert tokens_of(broken, 0) == [1.0]


def test_requests_that_one_pool_cannot_hold_are_refused():
    refused = served([0.0, 0.0, 0.0], [8, 40, 8], [40, 1, 2], prefill=pool([0], num_blocks=4),
                     decode=pool([1], num_blocks=4))  # fmt: skip

    assert refused.requests["outcome"].tolist() == [FAILED, FAILED, 2]
    assert refused.failures == {"larger than the KV cache": 2}


def test_pools_with_blocks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="blocks of 4 and of 8 tokens"):
        made([0.0], [8], [2], decode=pool([1], block_size=8))


def test_room_is_given_by_service_class():
    """One slot decodes, and request 0 has it first. Three more wait for it, of classes 2, 1 and 2 in order of arrival:
    the second of them goes first."""
    four = served([0.0, 1.0, 2.0, 3.0], [4] * 4, [10, 3, 3, 3], decode=pool([1], policy="priority", max_num_seqs=1),
                  precedence=np.array([2, 2, 1, 2]))  # fmt: skip
    assert np.argsort(four.requests["finished_s"]).tolist() == [0, 2, 1, 3]
    in_turn = served([0.0, 1.0, 2.0, 3.0], [4] * 4, [10, 3, 3, 3], decode=pool([1], max_num_seqs=1),
                     precedence=np.array([2, 2, 1, 2]))  # fmt: skip
    assert np.argsort(in_turn.requests["finished_s"]).tolist() == [0, 1, 2, 3]


def test_a_client_hears_of_a_transfer_that_failed_and_of_an_only_token():
    """One client, no thoughts: 0 has one token, at 1 s; 1 loses its keys and values at 2 s; 2 is served."""
    broken = made(np.zeros(3), [8, 8, 8], [1, 3, 3], front=PoolsFront(ClosedLoop(1, 3)))
    start = broken.sender.fabric.start

    def cut(graph):
        transfer = start(graph)
        if broken.clock.now == 2.0:
            transfer.cancel()
        return transfer

    broken.sender.fabric.start = cut
    broken.clock.run(until=broken.start())
    assert broken.metrics()["completed"] == 2 and broken.failures == {TRANSFER_FAILED: 1}
    assert broken.requests["arrival_s"].tolist() == [0.0, 1.0, 2.0]
    assert tokens_of(broken, 2) == [3.0, 5.5, 6.5]
