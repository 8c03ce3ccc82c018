"""Laws of the packet fabric while links fail, lose packets and come back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fault_laws import begin, topology_of

from sim.engine.clock import Clock
from sim.fabric.messages import DELIVERED
from sim.fabric.packet import PacketFabric, PacketSettings

POLICIES = (
    "ideal", "ecmp", "spray", "ethereal", "wrap_around", "least_loaded", "multipath", "spray_round_robin",
    "spray_random", "adaptive", "flowlet", "reps",
)  # fmt: skip
SHARED = {"switch_buffer_bytes": 2_000_000, "buffer_alpha": 1.0}
MARKED = {"mark_from_bytes": 40_000, "mark_all_bytes": 40_000}
TRANSPORTS = (
    {"transport": "window"},
    {"transport": "window", "goes_back": True},
    {"transport": "dctcp", **MARKED, **SHARED},
    {"transport": "dcqcn", "pause_above_bytes": 100_000, "resume_below_bytes": 90_000, **MARKED},
    {"transport": "swift", **SHARED},
    {"transport": "nscc", "port_buffer_bytes": 100_000, "trim": True, **MARKED},
    {"transport": "ndp", "port_buffer_bytes": 8 * 4096, "trim": True},
)


@st.composite
def cases(draw):
    faults = st.tuples(
        st.integers(0, 10**6),  # which link, switch or host
        st.floats(0, 1e-4),
        st.floats(1e-6, 5e-4),
        st.sampled_from([(None, None), (None, None), (1e9, None), (None, 0.02), (None, 1.0)]),
    ).map(lambda fault: (*fault[:3], *fault[3]))  # rate, loss
    return {
        "is_tree": draw(st.booleans()), "leaves": draw(st.integers(1, 3)), "hosts": draw(st.integers(2, 3)),
        "spines": draw(st.integers(1, 3)), "lanes": draw(st.integers(1, 2)), "planes": draw(st.integers(1, 2)),
        "policy": draw(st.sampled_from(POLICIES)), "seed": draw(st.integers(0, 1000)), "num": draw(st.integers(1, 12)),
        "faults": draw(st.lists(faults, min_size=1, max_size=4)), "transport": draw(st.sampled_from(TRANSPORTS)),
        "convergence_s": draw(st.sampled_from([0.0, 50e-6, 1e-3])),
    }  # fmt: skip


def run(case):
    options = PacketSettings(has_faults=True, **case["transport"])
    fabric = PacketFabric(Clock(), topology_of(case), case["policy"], settings=options, seed=case["seed"])
    faults, transfer = begin(case, fabric, 400_000, 1e-4)
    fabric.clock.run(until=transfer.done)
    repaired_s = max(fault.until_s for fault in faults)
    if repaired_s >= fabric.clock.now:  # the last acknowledgement may wait for that
        fabric.clock.run(until=repaired_s + 1e-9)
    fabric.settle()
    return fabric, transfer


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_byte_arrives_once_all_is_repaired_and_every_packet_is_accounted_for(case):
    fabric, transfer = run(case)
    fabric.check_conservation()
    results = transfer.results
    assert (results.outcome == DELIVERED).all()
    assert np.array_equal(results.delivered_bytes, transfer.graph.size_bytes)
    assert (results.started_s <= results.received_s).all()
    assert (results.received_s <= results.acknowledged_s).all()
    assert int(fabric._state.c["num_free_packets"][0]) == len(fabric._state.packets)
    _, utilisation = fabric.link_series()
    assert utilisation.max() <= 1 + 1e-4 or any(rate for *_, rate, _ in case["faults"])


@settings(max_examples=15, deadline=None)
@given(cases())
def test_the_same_seed_gives_the_same_bits(case):
    found = []
    for _ in range(2):
        fabric, transfer = run(case)
        found.append((transfer.results.received_s.tobytes(), fabric._state.ports["losses"].tobytes()))
    assert found[0] == found[1]
