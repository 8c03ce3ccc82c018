"""Full ports against the exact reference of `exact_full`: every time, to the picosecond, and every counter."""

import numpy as np
import pytest
from exact_full import Full, simulate_full
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packet_oracle import Story, topologies

from sim.fabric.packet import PacketSettings


class FullStory(Story):
    """Messages over full ports, and the same as pieces of the reference."""

    def __init__(self, topology, policy, messages, options: PacketSettings, seed: int) -> None:
        self.seed = seed
        super().__init__(topology, policy, messages, options, seed)

    def compare(self) -> None:
        ports, options = self.fabric._state.ports, self.options
        marks = None
        if options.mark_from_bytes is not None:
            last = options.mark_from_bytes if options.mark_all_bytes is None else options.mark_all_bytes
            marks = (options.mark_from_bytes, last, options.mark_most)
        expected = self.expected(simulate_full, full=Full(
            owner=[None if node < 0 else int(node) for node in ports["node"]],
            end=[None if node < 0 else int(node) for node in ports["far_node"]],
            port_limit=options.port_buffer_bytes,
            shared=None if options.switch_buffer_bytes is None else (options.switch_buffer_bytes, options.buffer_alpha),
            ecn=marks,
            seed=self.seed,
            pfc=None if options.pause_above_bytes is None else (options.pause_above_bytes, options.resume_below_bytes),
            trim=options.trim,
            rto_ps=round(options.retransmission_timeout_s * 1e12),
            receiver="go_back_n" if options.goes_back else "selective_repeat",
            gap=options.gap or None,
            transport="dctcp" if options.transport == "dctcp" else "fixed",
        ))  # fmt: skip
        for name in ("drops", "dropped_bytes", "trims", "marks", "longest_queue"):
            assert ports[name].tolist() == getattr(expected, name), name
        resumed = ~ports["is_paused"]
        assert ports["paused"][resumed].tolist() == np.array(expected.paused_ps)[resumed].tolist()
        self.compare_with(expected)
        flows = self.fabric._state.flows[self.first_row :]
        for name, found in (
            ("retransmitted", expected.retransmitted),
            ("timeouts", expected.timeouts),
            ("spurious", np.add(expected.duplicates, expected.discarded)),
        ):
            of_messages: dict[int, int] = {}
            for i, (m, _, _) in enumerate(self.rows):
                of_messages[m] = of_messages.get(m, 0) + int(found[i])
            assert {m: int(flows[name][m]) for m in of_messages} == of_messages, name


MTU = 4096


@st.composite
def limits(draw) -> dict:
    """A transport, and what the switches do: lossy, trimming or lossless."""
    found: dict = {
        "ports": "full",
        "window_packets": draw(st.sampled_from([None, 1, 3, 20])),
        "ack_every": draw(st.sampled_from([1, 3, 4])),
        "transport": draw(st.sampled_from(["window", "dctcp"])),
        "retransmission_timeout_s": draw(st.sampled_from([20e-6, 100e-6])),
    }
    if draw(st.booleans()):
        found["mark_from_bytes"] = draw(st.sampled_from([0, 3 * MTU]))
        found["mark_all_bytes"] = draw(st.sampled_from([None, 12 * MTU]))
        found["mark_most"] = draw(st.sampled_from([0.3, 1.0]))
    kind = draw(st.sampled_from(["unlimited", "lossy", "lossy", "trim", "pfc"]))
    if kind == "pfc":
        found["resume_below_bytes"] = draw(st.sampled_from([1, MTU, 3 * MTU]))
        found["pause_above_bytes"] = found["resume_below_bytes"] + draw(st.sampled_from([0, 1, 2 * MTU]))
    elif kind != "unlimited":
        found["port_buffer_bytes"] = draw(st.sampled_from([None, MTU, 3 * MTU, 10 * MTU]))
        if draw(st.booleans()):
            found["switch_buffer_bytes"] = draw(st.sampled_from([8, 20])) * MTU
            found["buffer_alpha"] = draw(st.sampled_from([0.5, 2.0]))
        found["trim"] = kind == "trim"
    if kind != "trim" and draw(st.booleans()):
        found["goes_back"] = True
    else:
        found["gap"] = draw(st.sampled_from([0, 0, 1, 3]))
    return found


@st.composite
def full_stories(draw) -> FullStory:
    topology = draw(topologies())
    policy = draw(st.sampled_from(["ideal", "ecmp", "ecmp", "multipath", "ethereal", "spray"]))
    if policy == "spray" and (topology.kind == "fat_tree" or topology.num_planes > 1):
        policy = "ecmp"  # a packet sent again draws another plane; the reference keeps it
    ids = st.integers(0, topology.num_accelerators - 1)
    sizes = st.one_of(st.integers(0, 20_000), st.sampled_from([0, 1, 4032, 4033, 100_000, 300_000]))
    starts = st.sampled_from([0, 0, 0, 1, 1_000_000, 1_234_567])
    messages = draw(st.lists(st.tuples(ids, ids, sizes, starts), min_size=1, max_size=12))
    if draw(st.booleans()):  # an incast, so that there are queues
        target = draw(ids)
        messages = [(a, target, size, start) for a, _, size, start in messages]
    return FullStory(topology, policy, messages, PacketSettings(**draw(limits())), draw(st.integers(0, 1000)))


@settings(max_examples=150, deadline=None)
@given(full_stories())
def test_full_ports_do_what_the_reference_does(story):
    story.compare()


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(full_stories())
def test_full_ports_do_what_the_reference_does_many_times(story):
    story.compare()
