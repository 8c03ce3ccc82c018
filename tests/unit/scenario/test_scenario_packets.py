"""The packet section of a scenario: what is refused, and what each transport gets where nothing is written."""

import pytest
from scenario_texts import CLUSTER, loaded, refusal

from sim.scenario import build
from sim.scenario.build_cluster import build_topology
from sim.scenario.build_packets import packet_settings
from sim.scenario.errors import ScenarioError

PRODUCT = 50e9 * 4e-6 + 4 * 4096
"""Bytes: 400 Gbit/s, four links of 500 ns there and back, and four packets' time."""
TRAFFIC = "workloads:\n  - {kind: traffic, name: a, pattern: all_to_all, size_per_flow: 1 MB}\n"


def text(packet, extra="fidelity: packet\n"):
    """The packet section is line 8."""
    return CLUSTER + TRAFFIC + f"packet: {{{packet}}}\n" + extra


def settings(folder, packet="", extra="fidelity: packet\n"):
    """As the fabric gets them; first checked like everything that is run."""
    found = loaded(folder, text(packet, extra))
    build.check(found)
    scenario = found.variants[0][1]
    return packet_settings(scenario, build_topology(scenario.cluster))


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        ("transport: {kind: tcp}", "packet.transport.kind: unknown kind 'tcp'"),
        ("transport: {window: 80 bytes}", "packet.transport.window: '80 bytes' is no window; write 1.5 bdp"),
        ("transport: {window: 1.5 packets}", "packet.transport.window: '1.5 packets' is no window"),
        ("transport: {window: -1 bdp}", "packet.transport.window: '-1 bdp' is no window"),
        ("transport: {ack_every: 0}", "packet.transport.ack_every: '0' must be at least 1"),
        ("transport: {receiver: go_back}", "packet.transport.receiver: unknown receiver 'go_back'; did you mean"),
        ("transport: {retransmission_timeout: 0 s}", "packet.transport.retransmission_timeout: '0 s' must be above 0"),
        ("transport: {gap: -1}", "packet.transport.gap: '-1' must be at least 0"),
        ("transport: {kind: ndp, gap: 3}", "packet.transport.gap: trimmed headers tell ndp what is lost"),
        ("transport: {receiver: go_back_n, gap: 3}", "packet.transport.gap: a receiver that goes back tells of a gap"),
        ("transport: {kind: ndp, receiver: go_back_n}", "packet.transport.receiver: ndp repeats selectively; leave"),
        ("transport: {kind: nscc, receiver: go_back_n}", "packet.transport.receiver: nscc repeats selectively; leave"),
        ("transport: {kind: ndp}, trim: false", "packet.transport.kind: ndp needs trimming and lossy switches; leave"),
        ("transport: {kind: ndp}, pfc: true", "packet.transport.kind: ndp needs trimming and lossy switches; leave"),
        ("buffer: {per_port: 4095 B}", "packet.buffer.per_port: 4095 B hold no packet of 4096 B; nothing would ever"),
        ("buffer: {shared: 64 B}", "packet.buffer.shared: 64 B hold no packet of 4096 B; nothing would ever pass"),
        ("buffer: {alpha: 0}", "packet.buffer.alpha: '0' must be above 0"),
        ("ecn: {from: 9 kB, all: 8 kB}", "packet.ecn.all: marks all from 8000 B on, but the first from 9000 B"),
        ("ecn: {from: 9 kB, most: 1.5}", "packet.ecn.most: '1.5' must be at most 1"),
        ("pfc: {above: 8 kB, below: 9 kB}", "packet.pfc.below: goes on below 9000 B, which is more than it pauses at"),
        ("pfc: true, trim: true", "packet.trim: a lossless switch has nothing to trim; leave out trim, or pfc"),
        ("trim: true, transport: {receiver: go_back_n}", "packet.trim: a receiver that goes back cannot use trimmed"),
        ("ports: lean, trim: true", "packet.ports: lean ports have a fixed window and no limits; write ports: auto"),
        ("ports: lean, transport: {kind: swift}", "packet.ports: lean ports have a fixed window and no limits"),
        ("ports: lean, transport: {receiver: go_back_n}", "packet.ports: lean ports have a fixed window and no limits"),
        ("ports: leen", "packet.ports: unknown ports 'leen'; did you mean 'lean'"),
        ("mtu: 64 B", "packet.header: a header of 64 B leaves no payload in an mtu of 64 B"),
    ],
)  # fmt: skip
def test_what_is_refused_names_file_line_and_remedy(tmp_path, packet, words):
    assert f"scenario.yaml:8: {words}" in refusal(tmp_path, text(packet))


@pytest.mark.parametrize(
    "packet",
    [
        "transport: {kind: dcqcn}, buffer: {shared: 300 kB}",
        "pfc: true, buffer: {shared: 300 kB}",
        "pfc: {above: 1 MB}, buffer: {shared: 2 MB}",
        "pfc: {above: 1 MB, below: 1 MB}, buffer: {shared: 2 MB}",
    ],
)
def test_lossless_links_that_a_switch_has_no_room_for_are_refused(tmp_path, packet):
    words = r"scenario.yaml:8: packet.buffer.shared: lossless links need room in \w+: \d links that are paused above"
    with pytest.raises(
        ScenarioError, match=words + r".* B, but it has \d+ B; give packet.buffer.shared more, or pause"
    ):
        settings(tmp_path, packet)


def test_a_fixed_window_has_no_limits(tmp_path):
    found = settings(tmp_path)
    assert (found.transport, found.window_bdp, found.window_packets, found.ack_every) == ("window", 1.5, None, 4)
    assert found.port_buffer_bytes is found.switch_buffer_bytes is found.mark_from_bytes is None
    assert found.pause_above_bytes is None and not found.trim and not found.goes_back and found.gap == 0
    assert found.retransmission_timeout_s == 100e-6
    assert settings(tmp_path, "transport: {window: 80 packets}").window_packets == 80


def test_each_transport_has_its_documented_defaults(tmp_path):
    def of(kind):
        return settings(tmp_path, f"transport: {{kind: {kind}}}")

    dctcp, dcqcn, swift, nscc, ndp = (of(kind) for kind in ("dctcp", "dcqcn", "swift", "nscc", "ndp"))
    for found in (dctcp, dcqcn, swift):
        assert found.switch_buffer_bytes == 64_000_000 and found.buffer_alpha == 1.0 and not found.trim
    assert dctcp.mark_from_bytes == dctcp.mark_all_bytes == round(PRODUCT / 7)
    assert (dcqcn.mark_from_bytes, dcqcn.mark_all_bytes, dcqcn.mark_most) == (50_000, 2_000_000, 0.01)
    assert dcqcn.pause_above_bytes - dcqcn.resume_below_bytes == 2 * 4096
    assert swift.mark_from_bytes is swift.pause_above_bytes is dctcp.pause_above_bytes is None
    assert nscc.trim and nscc.port_buffer_bytes == int(PRODUCT)
    assert (nscc.mark_from_bytes, nscc.mark_all_bytes) == (round(0.2 * PRODUCT), round(0.8 * PRODUCT))
    assert ndp.trim and ndp.port_buffer_bytes == 8 * 4096 and ndp.mark_from_bytes is None


def test_what_is_written_takes_the_place_of_defaults(tmp_path):
    found = settings(tmp_path, "transport: {kind: nscc}, trim: false, buffer: {per_port: 1 MB}, ecn: {from: 9 kB}")
    assert not found.trim and found.port_buffer_bytes == 1_000_000
    assert found.mark_from_bytes == 9000 and found.mark_all_bytes is None
    assert settings(tmp_path, "transport: {kind: dcqcn}, pfc: false").pause_above_bytes is None
    assert settings(tmp_path, "transport: {kind: nscc}, pfc: true").trim is False
    paused = settings(tmp_path, "pfc: {above: 100 kB, below: 70 kB}")
    assert (paused.pause_above_bytes, paused.resume_below_bytes) == (100_000, 70_000)


def test_a_pause_lasts_until_two_packets_less_where_nothing_is_written(tmp_path):
    assert settings(tmp_path, "pfc: {above: 100 kB}").resume_below_bytes == 100_000 - 2 * 4096


@pytest.mark.parametrize("policy", ["adaptive", "flowlet", "reps", "spray_random", "spray_round_robin"])
def test_policies_that_choose_per_packet_need_packets(tmp_path, policy):
    paths = f"paths: {{policy: {policy}}}\n"
    words = f"scenario.yaml:9: paths.policy: '{policy}' decides packet by packet, which fluid cannot express; write "
    assert words + "fidelity: packet, or policy: spray" in refusal(tmp_path, text("", paths))
    found = settings(tmp_path, extra=paths + "fidelity: packet\n")
    assert found.flowlet_gap_s == (10e-6 if policy == "flowlet" else 0.0)


def test_the_gap_of_flowlets(tmp_path):
    paths = "paths: {policy: flowlet, gap: 25 us}\nfidelity: packet\n"
    assert settings(tmp_path, extra=paths).flowlet_gap_s == 25e-6
    assert "'0 s' must be above 0" in refusal(tmp_path, text("", paths.replace("25 us", "0 s")))
    assert "unknown key 'gap'" in refusal(tmp_path, text("", paths.replace("flowlet", "adaptive")))
