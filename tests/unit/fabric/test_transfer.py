"""What a workload sees of its messages: events, cancelling, gates, results before the end."""

import numpy as np
import pytest

from sim.engine.clock import Clock
from sim.fabric.fluid import FluidFabric, FluidSettings
from sim.fabric.message_fabric import ConservationError
from sim.fabric.messages import CANCELLED, DELIVERED, PENDING, MessageGraphError, message_graph
from sim.fabric.topology import HostKind, Link, LinkOverride, leaf_spine

R, L = 1e9, 1e-6
FULL, WIRE = 4032 * 10, 4096 * 10
"""Ten full packets: payload, and bytes on the wire."""


def network(policy="spray", *, leaves=2, hosts=None, tolerance=0.0, **options):
    topology = leaf_spine(
        leaves=leaves, spines=2, hosts_per_leaf=4, host_link=Link(R, L), spine_link=Link(R, L),
        hosts=hosts or [HostKind(4 * leaves)], overrides=options.pop("overrides", None),
    )  # fmt: skip
    return FluidFabric(Clock(), topology, policy, settings=FluidSettings(tolerance=tolerance), **options)


def test_done_is_when_the_last_byte_arrives_not_when_it_leaves():
    fabric = network()
    transfer = fabric.start(message_graph([0], [4], FULL))
    fabric.clock.run(until=transfer.done)
    assert fabric.clock.now == transfer.results.received_s[0] == pytest.approx(WIRE / R + 4 * L, rel=1e-12)


@pytest.mark.parametrize("other_bytes", [FULL, 100 * FULL], ids=["transfer closed", "transfer open"])
def test_watching_a_message_in_flight_waits_for_its_arrival(other_bytes):
    """All is sent at W / R and arrives 4 L later; whoever asks in between learns of it then, not at once."""
    fabric = network()
    transfer = fabric.start(message_graph([0, 1], [4, 5], [FULL, other_bytes]))

    def ask_in_flight():
        yield fabric.clock.timeout(WIRE / R + L)
        yield transfer.watch(0)
        return fabric.clock.now

    seen_s = fabric.clock.run(until=fabric.clock.process(ask_in_flight()))
    assert seen_s == transfer.results.received_s[0] == pytest.approx(WIRE / R + 4 * L, rel=1e-12)


def test_watching_what_arrived_long_ago_triggers_at_once():
    fabric = network()
    transfer = fabric.start(message_graph([0], [4], FULL))
    fabric.clock.run(until=1.0)
    fabric.clock.run(until=transfer.watch([0]))
    assert fabric.clock.now == 1.0


def test_one_watch_over_messages_that_end_at_different_times():
    fabric = network()
    transfer = fabric.start(message_graph([0, 1, 2], [4, 5, 3], [FULL, 3 * FULL, 9 * FULL]))
    fabric.clock.run(until=transfer.watch([1, 0, 1]))
    assert fabric.clock.now == pytest.approx(3 * WIRE / R + 4 * L, rel=1e-12)
    assert not transfer.done.triggered


def test_a_message_under_way_has_no_arrival_yet_though_some_of_its_pieces_have():
    """Two pieces under ethereal: one over a link of R / 10 goes on long after the other is there."""
    slow = {"leaf0-spine0": LinkOverride(R / 10)}
    fabric = network("ethereal", overrides=slow, window_s=0.0, jitter_s=0.0)
    transfer = fabric.start(message_graph([0], [4], 2 * FULL))
    fabric.clock.run(until=WIRE / (0.9 * R) + 1e-6)
    results = transfer.results
    assert results.outcome[0] == PENDING
    assert results.delivered_bytes[0] == FULL
    assert np.isnan(results.received_s[0]) and np.isnan(results.acknowledged_s[0])
    transfer.cancel()
    fabric.clock.run(until=transfer.done)
    assert transfer.results.outcome[0] == CANCELLED
    assert np.isnan(transfer.results.received_s[0])
    assert FULL < transfer.results.delivered_bytes[0] < 2 * FULL
    fabric.check_conservation()


def test_each_piece_is_acknowledged_over_its_own_path():
    """Ethereal, two equal pieces: path A at R / 10 with latency 4 L, path B with 50 L more and the other 9 R / 10.

    With W wire bytes a piece, B is sent after 10 W / 9 R and acknowledged 108 L later; A is sent after 10 W / R
    and acknowledged 8 L later. With W / R = 40.96 L: 153.5 L against 417.6 L, so A's own latency counts, not B's.
    """
    overrides = {"leaf0-spine0": LinkOverride(R / 10), "leaf0-spine1": LinkOverride(latency_s=51 * L)}
    fabric = network("ethereal", overrides=overrides, window_s=0.0, jitter_s=0.0)
    transfer = fabric.start(message_graph([0], [4], 2 * FULL))
    fabric.clock.run(until=transfer.done)
    assert transfer.results.received_s[0] == pytest.approx(10 * WIRE / R + 4 * L, rel=1e-12)
    assert transfer.results.acknowledged_s[0] == pytest.approx(10 * WIRE / R + 8 * L, rel=1e-12)


def test_cancelling_gives_the_bandwidth_to_who_stays():
    """Two share R into one host. Cancelled at t, A has sent R t / 2, and so has B, which goes on at R.

    B ends at t + (W - R t / 2) / R = W / R + t / 2, and 2 L of flight.
    """
    fabric = network(leaves=1)
    a = fabric.start(message_graph([0], [3], FULL))
    b = fabric.start(message_graph([1], [3], FULL))
    cancel_s = 20e-6
    fabric.clock.run(until=cancel_s)
    a.cancel([0])
    fabric.clock.run(until=b.done)
    assert a.results.delivered_bytes[0] == pytest.approx(R * cancel_s / 2 * 4032 / 4096, rel=1e-12)
    assert b.results.received_s[0] == pytest.approx(WIRE / R + cancel_s / 2 + 2 * L, rel=1e-12)
    assert b.results.outcome[0] == DELIVERED
    payload, _ = fabric.link_bytes()
    assert payload.sum() == pytest.approx(2 * (a.results.delivered_bytes[0] + FULL), rel=1e-12)
    fabric.check_conservation()


def test_cancelling_before_the_start_sends_nothing():
    fabric = network()
    transfer = fabric.start(message_graph([0, 1], [4, 5], FULL, earliest_s=[0.0, 1.0]))
    transfer.cancel([1])
    fabric.clock.run(until=transfer.done)
    assert transfer.results.outcome.tolist() == [DELIVERED, CANCELLED]
    assert transfer.results.delivered_bytes.tolist() == [FULL, 0]
    assert np.isnan(transfer.results.started_s[1])
    fabric.check_conservation()


def test_cancelling_twice_or_after_the_end_changes_nothing():
    fabric = network()
    transfer = fabric.start(message_graph([0], [4], FULL))
    fabric.clock.run(until=10e-6)
    transfer.cancel()
    transfer.cancel()
    fabric.clock.run(until=transfer.done)
    delivered = transfer.results.delivered_bytes[0]
    transfer.cancel()
    assert fabric.clock.now == 10e-6
    assert transfer.results.delivered_bytes[0] == delivered == pytest.approx(R * 10e-6 * 4032 / 4096, rel=1e-12)


@pytest.mark.parametrize("what", ["earliest", "delay", "window", "NIC overhead"])
def test_a_cancelled_message_leaves_nothing_behind_for_who_takes_its_place(what):
    """The next graph gets the same rows; what the first one had still to come must not start it."""
    options = {}
    if what == "window":
        fabric = network("ethereal", window_s=1e-3, jitter_s=0.0)
    elif what == "NIC overhead":
        fabric = network(hosts=[HostKind(8, message_overhead_s=1e-3)])
    else:
        fabric = network()
        options = {"earliest_s": 1e-3} if what == "earliest" else {"delay_s": 1e-3}

    def replaced():
        first = fabric.start(message_graph([0], [4], FULL, **options))
        yield fabric.clock.timeout(0.5e-3)
        first.cancel()
        yield first.done
        second = fabric.start(message_graph([1], [5], FULL, earliest_s=2e-3))
        yield second.done
        return second.results

    results = fabric.clock.run(until=fabric.clock.process(replaced()))
    assert results.ready_s[0] == 2e-3
    waited_s = 1e-3 if what in ("window", "NIC overhead") else 0.0
    assert results.started_s[0] == pytest.approx(2e-3 + waited_s, rel=1e-12)


def test_a_window_outlives_one_of_its_messages():
    """Two wait in a window; one is cancelled and its place taken; the other is sent when the window closes."""
    fabric = network("ethereal", window_s=1e-3, jitter_s=0.0)

    def story():
        first = fabric.start(message_graph([0], [4], FULL))
        yield fabric.clock.timeout(0.2e-3)
        second = fabric.start(message_graph([1], [5], FULL))
        first.cancel()
        yield first.done
        third = fabric.start(message_graph([2], [6], FULL))
        yield second.done & third.done
        return second.results.started_s[0], third.results.started_s[0]

    started = fabric.clock.run(until=fabric.clock.process(story()))
    assert started == pytest.approx((1e-3, 1e-3), rel=1e-12)


def test_a_gate_does_not_let_go_who_took_the_place_of_a_cancelled_message():
    fabric = network()
    first_gate, second_gate = fabric.new_gate(), fabric.new_gate()

    def replaced():
        first = fabric.start(message_graph([0], [4], FULL, gate=first_gate))
        first.cancel()
        yield first.done
        second = fabric.start(message_graph([1], [5], FULL, gate=second_gate))
        fabric.open_gate(first_gate)
        yield fabric.clock.timeout(1e-3)
        fabric.open_gate(second_gate)
        yield second.done
        return second.results.ready_s[0]

    assert fabric.clock.run(until=fabric.clock.process(replaced())) == 1e-3


def test_a_gate_opened_before_the_start_does_not_hold():
    fabric = network()
    gate, shut = fabric.new_gate(), fabric.new_gate()
    fabric.open_gate(gate)
    transfer = fabric.start(message_graph([0, 1], [4, 5], FULL, gate=[gate, shut]))
    fabric.clock.run(until=transfer.watch(0))
    assert fabric.clock.now == pytest.approx(WIRE / R + 4 * L, rel=1e-12)
    fabric.open_gate(shut)
    fabric.open_gate(shut)
    opened_s = fabric.clock.now
    fabric.clock.run(until=transfer.done)
    assert transfer.results.ready_s[1] == opened_s


@pytest.mark.parametrize("opens_s", [1e-6, 40e-6, 46e-6, 1e-3])
def test_a_message_waits_for_its_gate_and_for_the_delay_after_its_inputs(opens_s):
    """Ready = max(earliest, last input + delay, gate opened): the delay runs on while the gate is shut."""
    fabric = network()
    gate = fabric.new_gate()
    edges = (np.array([0]), np.array([1]))
    graph = message_graph([0, 4], [4, 5], FULL, edges=edges, gate=[-1, gate], delay_s=[0.0, 3e-6])
    transfer = fabric.start(graph)

    def open_late():
        yield fabric.clock.timeout(opens_s)
        fabric.open_gate(gate)

    fabric.clock.process(open_late())
    fabric.clock.run(until=transfer.done)
    input_s = WIRE / R + 4 * L
    assert transfer.results.ready_s == pytest.approx([0.0, max(input_s + 3e-6, opens_s)], rel=1e-12)


def test_joins_take_no_time_and_pass_on():
    """A message to oneself is a join: it ends when the last of its inputs is there."""
    fabric = network()
    edges = (np.array([0, 1, 2, 3]), np.array([2, 2, 3, 4]))
    graph = message_graph([0, 1, 2, 2, 2], [4, 5, 2, 2, 6], [FULL, 2 * FULL, 10**9, 0, FULL], edges=edges)
    transfer = fabric.start(graph)
    fabric.clock.run(until=transfer.done)
    results = transfer.results
    assert results.received_s[2] == results.received_s[3] == results.received_s[:2].max() == results.ready_s[4]
    assert fabric.injected_bytes == 4 * FULL  # copies inside an accelerator cross nothing


def test_graphs_that_would_never_end_are_refused():
    fabric = network()
    with pytest.raises(MessageGraphError, match="message 1 would wait for ever"):
        fabric.start(message_graph([0, 0, 1], [4, 4, 5], FULL, edges=([0, 1, 2], [1, 2, 1])))
    with pytest.raises(MessageGraphError, match="chain: message 0"):
        fabric.start(message_graph([0], [4], FULL, edges=([0], [0]), owner="chain"))


def test_an_empty_graph_is_done_at_once():
    fabric = network()
    transfer = fabric.start(message_graph([], [], []))
    fabric.clock.run(until=transfer.done)
    assert fabric.clock.now == 0.0
    assert len(transfer.results.received_s) == 0


def test_many_transfers_come_and_go_in_the_same_places():
    """A hundred times the table's first size, with watches; rows, edges and events are given back."""
    fabric = network()
    seen = []

    def worker(k):
        for round_ in range(60):
            tail = np.arange(4)
            source = (np.arange(5) + k) % 8
            graph = message_graph(source, (source + 3) % 8, 4032 * (1 + round_ % 3), edges=(tail, tail + 1))
            transfer = fabric.start(graph)
            yield transfer.watch([1, 3])
            seen.append(fabric.clock.now >= transfer.results.received_s[3])
            yield transfer.done
            assert (np.diff(transfer.results.received_s) > 0).all()

    for k in range(30):
        fabric.clock.process(worker(k))
    fabric.clock.run()
    assert len(seen) == 1800 and all(seen)
    assert not fabric.waiting()
    fabric.check_conservation()


def test_a_byte_that_goes_missing_is_noticed():
    """The ledgers are kept apart, so that tampering with either shows."""
    for name, law in (("payload_bytes", "payload bytes on links"), ("wire_bytes", "wire bytes on links")):
        fabric = network()
        fabric.clock.run(until=fabric.start(message_graph([0], [4], FULL)).done)
        fabric.check_conservation()
        fabric._state.segments[name][fabric.topology.nic_up[0] + 1] -= 1
        with pytest.raises(ConservationError, match=law):
            fabric.check_conservation()
    fabric = network()
    fabric.clock.run(until=fabric.start(message_graph([0], [4], FULL)).done)
    fabric.injected_bytes += 1
    with pytest.raises(ConservationError, match="injected"):
        fabric.check_conservation()
