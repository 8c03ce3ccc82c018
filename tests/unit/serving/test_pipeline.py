"""Pipeline stages against closed forms: one request alone, a steady state, chunks, and stages over hosts."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import linear_table, served, tokens_of, workload

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.packet import PacketFabric
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.scenario.build import build, check
from sim.scenario.errors import ScenarioError
from sim.scenario.load import load_scenario
from sim.serving.pipeline_replica import Stages


def stages(*shares, send=0.0, ranks=None, crosses=None, row_bytes=0, operators=1):
    """Each stage has a share of every operator; a send takes so large a share of the step."""
    p = len(shares)
    of_stages = np.repeat(np.array(shares, dtype=float)[:, None], operators, axis=1)
    ranks = np.arange(p).reshape(1, p, 1) if ranks is None else np.array([ranks])
    crosses = np.zeros((1, p - 1), np.bool_) if crosses is None else np.array([crosses])
    return Stages(of_stages, np.full((p - 1, operators), send), ranks, crosses, row_bytes)


def test_one_request_alone_gains_nothing():
    """Stages of 1, 2 and 3 s for a step, sends of 0.5 s: each token takes 6 + 2 · 0.5 s, the first as well."""
    table = linear_table(6.0)
    made = served([0.0], [4], [5], table=table, stages=stages(1 / 6, 2 / 6, 3 / 6, send=0.5 / 6))

    assert tokens_of(made, 0) == pytest.approx([7 * i for i in range(1, 6)])
    metrics = made.metrics()
    assert metrics["stage_0_utilization"] == pytest.approx(1 / 7)
    assert metrics["stage_2_utilization"] == pytest.approx(3 / 7)
    assert metrics["bubble_fraction"] == pytest.approx(1 - 2 / 7)


def steady(shares, num, send=0.0, **options):
    """`num` requests for each stage, each a batch of prompts that fills the budget."""
    p = len(shares)
    made = served(
        np.zeros(num * p), np.full(num * p, 4), np.full(num * p, 200), table=linear_table(6.0), num_blocks=10**5,
        max_num_seqs=num * p, max_num_batched_tokens=4 * num, stages=stages(*shares, send=send), **options,
    )  # fmt: skip
    return made, made.engines[0].steps["finished_s"]


@pytest.mark.parametrize("num", [1, 7])
def test_a_full_pipeline_ends_a_batch_each_time_its_slowest_stage_does(num):
    """A batch of its own for each of 3 stages, of 1, 2 and 3 s: one is back every 3 s, where an engine without stages
    takes 6 s for all of them together. Batches carry a third of the requests each."""
    made, finished_s = steady((1 / 6, 2 / 6, 3 / 6), num)

    np.testing.assert_allclose(np.diff(finished_s)[5:-5], 3.0, rtol=1e-9)
    metrics = made.metrics()
    assert metrics["stage_2_utilization"] == pytest.approx(1.0, abs=0.01)
    assert metrics["bubble_fraction"] == pytest.approx(1 - 6 / 9, abs=0.01)


def test_even_stages_do_as_many_steps_as_there_are_stages():
    """4 stages of 1.5 s, steps as long as ever: four times the steps in a time, four times the tokens."""
    made, finished_s = steady((1 / 4,) * 4, 1)
    alone = served(np.zeros(4), np.full(4, 4), np.full(4, 200), table=linear_table(6.0), num_blocks=10**5,
                   max_num_seqs=1, max_num_batched_tokens=4)  # fmt: skip

    np.testing.assert_allclose(np.diff(finished_s)[5:-5], 1.5, rtol=1e-9)
    assert alone.clock.now / made.clock.now == pytest.approx(4, rel=0.02)
    assert made.metrics()["bubble_fraction"] < 0.02


def test_long_ways_between_stages_leave_bubbles():
    """2 stages of 3 s, 2 s between: a batch's way is 8 s, and two in flight are back once every 8 s each, not 6."""
    made, finished_s = steady((0.5, 0.5), 1, send=2 / 6)

    np.testing.assert_allclose(finished_s[12:-2] - finished_s[10:-4], 8.0, rtol=1e-9)
    assert made.metrics()["bubble_fraction"] == pytest.approx(1 - 6 / 8, abs=0.01)


def test_requests_that_fit_into_one_batch_leave_the_other_stages_idle():
    """As in vLLM: the first batch takes everybody, and there is nobody left for a second."""
    made = served(np.zeros(4), np.full(4, 4), np.full(4, 50), table=linear_table(6.0), max_num_batched_tokens=64,
                  num_blocks=1000, stages=stages(0.5, 0.5))  # fmt: skip

    np.testing.assert_allclose(np.diff(made.engines[0].steps["finished_s"]), 6.0)
    assert made.metrics()["bubble_fraction"] == pytest.approx(0.5)


def test_chunks_of_one_prompt_follow_one_another():
    """5 chunks over 3 stages of 2 s: 3 + 5 - 1 times 2 s; without stages 5 times 6 s."""
    options = {"table": linear_table(6.0), "max_num_batched_tokens": 8, "max_num_seqs": 8}
    made = served([0.0], [40], [1], stages=stages(1 / 3, 1 / 3, 1 / 3), **options)

    assert tokens_of(made, 0) == pytest.approx([14.0])
    assert tokens_of(served([0.0], [40], [1], **options), 0) == pytest.approx([30.0])


def test_who_comes_while_the_engine_waits_is_seen_when_the_oldest_batch_is_back():
    """A batch of one request is in flight, and there was nothing for a second: the engine waits. The next request comes
    after 1 s, and is scheduled at 6 s, together with the first one's decode."""
    made = served([0.0, 1.0], [4, 4], [3, 3], table=linear_table(6.0), stages=stages(0.5, 0.5))

    assert made.requests["scheduled_s"].tolist() == [0.0, 6.0]
    assert tokens_of(made, 1)[0] == pytest.approx(12.0)


def test_each_stage_has_a_host():
    """Stages of 0.5 s on the accelerators, whose host processes take 2 s for a batch each."""
    made = served([0.0], [4], [2], table=linear_table(1.0), host_s=2.0, stages=stages(0.5, 0.5))

    assert tokens_of(made, 0) == pytest.approx([4.0, 8.0])


def test_max_num_seqs_bounds_all_batches_in_flight_together():
    """Four requests, two of which may run: one batch each, while the other two wait."""
    made = served(np.zeros(4), np.full(4, 4), np.full(4, 10), table=linear_table(6.0), max_num_seqs=2,
                  max_num_batched_tokens=4, stages=stages(0.5, 0.5))  # fmt: skip

    assert made.requests["scheduled_s"][:2].tolist() == [0.0, 0.0]
    assert (made.requests["scheduled_s"][2:] >= made.requests["finished_s"][:2].min()).all()


# --- over hosts -------------------------------------------------------------------------------------------------------

TOKENS, ROW_BYTES = 1000, 8192


def over_hosts(tensor=2, num=1, packets=False, row_bytes=ROW_BYTES, **options):
    """Two stages on two hosts with a NIC for each rank, 10 GB/s and 1 us a link; fluid over an ideal fabric, or packet
    by packet over a spine with links of 20 GB/s."""
    topology = leaf_spine(
        leaves=2, spines=1, hosts_per_leaf=1, host_link=Link(1e10, 1e-6), spine_link=Link(2e10, 1e-6),
        hosts=[HostKind(2, tensor, tensor, nvlink=Link(4e11, 1e-6))],
    )  # fmt: skip
    clock = Clock()
    fabric = (
        PacketFabric(clock, topology, "ecmp") if packets
        else FluidFabric(clock, topology, "ideal", settings=FluidSettings(tolerance=0.0))
    )  # fmt: skip
    ranks = np.arange(2 * tensor).reshape(2, tensor)
    made = workload(
        np.zeros(num), np.full(num, TOKENS), np.full(num, 3), clock=clock, table=linear_table(2.0), num_blocks=10**5,
        stages=stages(0.5, 0.5, ranks=ranks, crosses=[True], row_bytes=row_bytes), fabric=fabric,
        max_num_batched_tokens=TOKENS, max_num_seqs=64, **options,
    )  # fmt: skip
    clock.run(until=made.start())
    return made


def way_s(num_tokens, tensor, hops):
    """Two messages from each rank share its NIC: 2 · wire bytes / rate, and a latency a link."""
    part = int(np.ceil(num_tokens * ROW_BYTES / tensor))
    wire = part + 64 * int(np.ceil(part / 4032))
    return 2 * wire / 1e10 + hops * 1e-6


@pytest.mark.parametrize("tensor", [1, 2])
def test_activations_go_through_the_fabric(tensor):
    """Prompt and decodes: two stages of 1 s and the messages between them, over 2 host and 2 spine links."""
    times = tokens_of(over_hosts(tensor=tensor), 0)

    first, *gaps = np.diff([0.0, *times])
    assert first == pytest.approx(2.0 + way_s(TOKENS, tensor, 4), rel=1e-9)
    assert gaps == pytest.approx([2.0 + way_s(1, tensor, 4)] * 2, rel=1e-9)


def test_the_way_through_the_fabric_is_the_fabrics_part_of_a_latency():
    split = over_hosts().time_split()
    assert split["fabric_s"][0] == pytest.approx(way_s(TOKENS, 2, 4) + 2 * way_s(1, 2, 4), rel=1e-9)
    assert split["e2e_s"][0] == pytest.approx(6.0 + split["fabric_s"][0], rel=1e-9)


@pytest.mark.parametrize("tensor", [1, 2])
def test_activations_go_packet_by_packet(tensor):
    """A row is 8064 bytes, so that each rank's part of a tensor fills whole packets, F = 0.4096 us at 10 GB/s.

    Store and forward: a NIC sends the packets of both tensors, one after the other; the last one then takes F / 2 on
    each of the two spine links and F on the host's. Ranks send in step, and of packets that reach the leaf together
    the last waits for the others, F / 2 each. Queues never grow: two NICs bring what a spine link takes.
    """
    full_s = 4096 / 1e10

    def packets_s(num_tokens):
        num_packets = 2 * num_tokens * 8064 // tensor // 4032
        return num_packets * full_s + (tensor - 1) * full_s / 2 + 2 * full_s / 2 + full_s + 4e-6

    times = tokens_of(over_hosts(tensor=tensor, packets=True, row_bytes=8064), 0)

    first, *gaps = np.diff([0.0, *times])
    assert first == pytest.approx(2.0 + packets_s(TOKENS), abs=2e-12)
    assert gaps == pytest.approx([2.0 + packets_s(1)] * 2, abs=2e-12)


def test_a_stage_that_has_sent_goes_on():
    """Two requests, a batch each: the second one's first stage runs while the first one's activations are on their way
    and its second stage runs."""
    made = over_hosts(num=2)

    assert tokens_of(made, 1)[0] == pytest.approx(3.0 + way_s(TOKENS, 2, 4), rel=1e-9)


SCENARIO = """
name: stages
cluster:
  fabric:
    kind: leaf_spine
    leaves: 2
    spines: 2
    hosts_per_leaf: 1
    host_link: {rate: 100 Gbit/s, latency: 1 us}
    spine_link: {rate: 100 Gbit/s, latency: 1 us}
  host: {accelerators: 4, nics: 4, accelerator: h100}
workloads:
  - kind: serving
    name: chat
    model: llama-3.1-8b
    parallelism: {tensor: 2, pipeline: 2}
    arrivals: {kind: poisson, rate: 40 /s}
    num_requests: 60
    lengths: {input: {law: uniform, low: 10, high: 3000}, output: {law: fixed, tokens: 12}}
"""


def loaded(tmp_path, *settings, text=SCENARIO):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_scenario(path, settings)


def ran(tmp_path, *settings, seed=1):
    found = loaded(tmp_path, *settings)
    check(found)
    simulation = build(found.variants[0][1], seed)
    (made,) = simulation.workloads
    simulation.faults.start()
    simulation.clock.run(until=made.start())
    return made


def test_a_scenario_in_one_host_and_over_two(tmp_path):
    """The same steps, but for what lies between stages; a slow leaf and a slow spine link hold stages over hosts up."""
    inside = ran(tmp_path).metrics()
    over = ran(tmp_path, "workloads.chat.ranks=2-5").metrics()
    slow = ran(tmp_path, "workloads.chat.ranks=2-5", "cluster.fabric.spine_link.rate=5 Gbit/s").metrics()

    assert inside["completed"] == over["completed"] == slow["completed"] == 60
    assert inside["mean_fabric_ms"] == 0 < over["mean_fabric_ms"] < slow["mean_fabric_ms"]
    assert inside["mean_e2el_ms"] < over["mean_e2el_ms"] < slow["mean_e2el_ms"]
    assert inside["kv_tokens"] == min(inside["stage_0_kv_tokens"], inside["stage_1_kv_tokens"])


def test_a_mixture_of_experts_is_cut_as_others_are(tmp_path):
    """Experts over the tensor ranks of each stage; two replicas of two stages."""
    made = ran(tmp_path, "workloads.chat.model=qwen3-30b-a3b", "workloads.chat.replicas=2").metrics()

    assert made["completed"] == 60
    assert 0 < made["bubble_fraction"] < 1


def test_a_scenario_over_two_hosts_packet_by_packet(tmp_path):
    """Nothing else is on the links, so that packets take what fluid does and, on each of three links more, a packet
    each: latencies differ by no more than that for each of a request's steps, give or take who joins which batch."""
    fluid = ran(tmp_path, "workloads.chat.ranks=2-5")
    packets = ran(tmp_path, "workloads.chat.ranks=2-5", "fidelity=packet")

    assert packets.metrics()["completed"] == 60
    assert fluid.metrics()["mean_fabric_ms"] < packets.metrics()["mean_fabric_ms"]
    assert packets.metrics()["mean_e2el_ms"] == pytest.approx(fluid.metrics()["mean_e2el_ms"], rel=0.02)
    assert (packets.time_split()["fabric_s"] > 0).all()


def test_replicas_die_and_come_back(tmp_path):
    """Their requests are sent again; nothing of the batches that were in flight is left."""
    for ranks in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 4, 5, 2, 3, 6, 7]):
        made = ran(
            tmp_path, "workloads.chat.replicas=2", f"workloads.chat.ranks={ranks}",
            "workloads.chat.client={timeout: 100 s, retries: 3}",
            "faults=[{at: 0.3 s, replica: chat/0, state: down, until: 0.5 s}]",
        )  # fmt: skip
        metrics = made.metrics()
        assert metrics["completed"] == 60
        assert made.requests["replica"].max() == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("workloads.chat.parallelism.expert=4", "expert degree 4 and pipeline degree 2"),
        ("cluster.host.accelerators=40", "32 layers are too few for pipeline degree 40"),
        ("workloads.chat.parallelism.pipeline=0", "pipeline"),
        ("workloads.chat.batching.async_scheduling=true", "a request is scheduled again when its token is back"),
        ("workloads.chat.batching.preemption=swap", "each of 2 pipeline stages has its own"),
        ("workloads.chat.batching.speculative={num_tokens: 2, acceptance: 0.5}", "drafts are not there with 2"),
        ("workloads.chat.contention=true", "not for pipeline stages"),
        ("workloads.chat.parallelism.pipeline=8", "(tensor 2, expert 1, pipeline 8) need 16"),
    ],
)
def test_what_does_not_go_with_stages_is_refused(tmp_path, setting, words):
    with pytest.raises(ScenarioError) as caught:
        more = ["workloads.chat.parallelism={tensor: 1, pipeline: 40}"] if "40" in setting else []
        check(loaded(tmp_path, setting, *more))
    assert words in str(caught.value)
