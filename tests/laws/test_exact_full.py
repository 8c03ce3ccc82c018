"""The exact network with full ports against answers worked out by hand.

Links are of 8 Tbit/s, where one byte takes one picosecond, unless said otherwise; packets have 100 bytes, 90 of payload
and 10 of header. Most cases are of `line`: a host's port 0, a switch's port 1 that takes 10 ps a byte, and back over
links 2 and 3. A packet sent at t is at the switch at t + 100, serialised there in 1000, and answered in 20.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest
from exact_full import GOLDEN, MASK, DctcpWindow, Full, FullOutcome, mix, simulate_full
from exact_packets import Choice, Piece, Stalled, Wire, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

BYTE_PER_PS = 8 * 10**12
FULL = 90  # bytes of payload in a full packet


def wire(latency: int = 0, ps_per_byte: int = 1) -> Wire:
    return Wire(BYTE_PER_PS // ps_per_byte, latency)


def fixed(*routes: Sequence[int | Choice]) -> Callable[[int, int], Sequence[int | Choice]]:
    """Every packet of piece i takes routes[i]."""
    return lambda piece, seq: routes[piece]


def small(wires, reverse, pieces, route, owner, end=None, **options) -> FullOutcome:
    full = Full(owner, end or [None] * len(wires), **options)
    return simulate_full(wires, reverse, pieces, route, mtu=100, header=10, full=full)


def line(pieces, first: Wire | None = None, **options) -> FullOutcome:
    wires = [first or wire(), wire(ps_per_byte=10), wire(), wire()]
    routes = fixed(*[(0, 1)] * len(pieces))
    return small(wires, [3, 2, None, None], pieces, routes, [None, 0, None, None], [0, None, None, None], **options)


def test_the_mix_is_splitmix64():
    """Its generator's first values from seed 0 are published."""
    assert [mix(GOLDEN), mix(2 * GOLDEN & MASK)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_drop_is_recovered_by_a_timeout():
    """Packets come at 100, 200, 300, 400; one is being sent and one waits: packets 2 and 3 are dropped.

    0 and 1 are received at 1100 and 2100; an acknowledgement would be of 4. The timer, armed at 0, is of packet 0,
    which goes again at 5000-5100 and is a duplicate at 6100: acknowledged up to 2 at 6120. The timer is then of 2 and
    3, and due at 11120 (the alarm at 10000 finds it early). They go at 11120-11320, and 2, sent again, is acknowledged
    alone: 11220-12220, and 12240 at the sender. 3 follows, 12220-13220.
    """
    outcome = line([Piece(0, 4 * FULL, 9)], port_limit=200, rto_ps=5000)
    assert outcome.received_ps == [13220]
    assert outcome.acknowledged_ps == [13240]
    assert (outcome.drops, outcome.dropped_bytes) == ([0, 2, 0, 0], [0, 200, 0, 0])
    assert (outcome.sent_packets, outcome.retransmitted, outcome.duplicates) == ([7], [3], [1])
    assert (outcome.timeouts, outcome.discarded) == ([2], [0])
    assert outcome.ack_packets == [0, 0, 3, 3]
    assert outcome.longest_queue == [0, 200, 0, 0]
    assert outcome.entered == [7, 7, 3, 3]
    assert (outcome.cwnd, outcome.alpha) == ([900.0], [1.0])


def test_a_resent_packet_gets_another_round_of_the_timer():
    """Port 1 takes 10,000 ps a packet, and the timer 4000. Alarms: 4000 (0 is lost, and sent again), 8000 (it was
    sent again, and gets another round), and at 10,100 it is received: acknowledged at 10,120. The duplicate comes at
    20,100.
    """
    wires = [wire(), wire(ps_per_byte=100), wire(), wire()]
    outcome = small(wires, [3, 2, None, None], [Piece(0, FULL, 9)], fixed((0, 1)), [None, 0, None, None], rto_ps=4000)
    assert outcome.acknowledged_ps == [10_120]
    assert (outcome.timeouts, outcome.sent_packets, outcome.duplicates) == ([2], [2], [1])
    assert outcome.ack_packets == [0, 0, 2, 2]


@pytest.mark.parametrize(("latency", "drops"), [(0, 1), (1, 0)], ids=["as it ends", "1 ps later"])
def test_a_packet_has_its_room_until_the_instant_after_its_end(latency, drops):
    """Piece 0's packet is sent 100-200 on port 2. Piece 1's comes at 200 + latency; there is room for one.

    A drop is made good at 1000 + 100.
    """
    wires = [wire(), wire(latency), wire(), wire()]
    pieces = [Piece(0, FULL, 1), Piece(100, FULL, 1)]
    outcome = small(
        wires, [3, 3, None, None], pieces, fixed((0, 2), (1, 2)), [None, None, 0, None], port_limit=100, rto_ps=1000
    )
    assert outcome.drops == [0, 0, drops, 0]
    assert outcome.received_ps == [200, 1300 if drops else 301]


def test_a_trimmed_packet_is_asked_for_again():
    """2 and 3 come when the port is full, and go as headers, 100 ps each, when 0 has gone: 1100-1200, 1200-1300.

    1 goes 1300-2300. The negative acknowledgements are there at 1220 and 1320: 2 goes again 1220-1320, 3 1320-1420.
    2 finds only 1, but 3 finds both, is trimmed again, passes 2 (2300-2400), and is asked for at 2420: 2420-2520.
    2 takes 2400-3400 and is acknowledged alone, having been sent again; 3 takes 3400-4400.
    """
    outcome = line([Piece(0, 4 * FULL, 9)], port_limit=200, trim=True)
    assert outcome.received_ps == [4400]
    assert outcome.acknowledged_ps == [4420]
    assert (outcome.trims, outcome.drops) == ([0, 3, 0, 0], [0] * 4)
    assert (outcome.sent_packets, outcome.retransmitted, outcome.timeouts) == ([7], [3], [0])
    assert (outcome.data_packets, outcome.ack_packets) == ([7, 4, 0, 0], [0, 3, 5, 5])
    assert (outcome.wire_bytes[1], outcome.payload_bytes[1]) == (430, 360)


def test_a_trimmed_packet_is_control_on_later_ports_too():
    """Two switches. At port 1, packet 0 is sent 100-200 and 1 comes at 200, where there is room for one: trimmed, it
    follows 200-210. Port 2 takes 10 ps a byte: 0 from 200 on; the header, at 210, has its room though it is full, and
    goes 1200-1300. It is asked for over links 5, 4, 3, at 1330: 1330-1430, 1430-1530, and 1530-2530.
    """
    wires = [wire(), wire(), wire(ps_per_byte=10), *[wire()] * 3]
    outcome = small(
        wires, [3, 4, 5, None, None, None], [Piece(0, 2 * FULL, 9, ack_every=1)], fixed((0, 1, 2)),
        [None, 0, 1, None, None, None], port_limit=100, trim=True,
    )  # fmt: skip
    assert outcome.trims == [0, 1, 0, 0, 0, 0]
    assert (outcome.data_packets[2], outcome.ack_packets[2]) == (2, 1)
    assert outcome.received_ps == [2530]


def test_marks_at_a_threshold():
    """The four packets find 0, 100, 200 and 300 bytes: 2 and 3 find more than 100."""
    assert line([Piece(0, 4 * FULL, 9)], ecn=(100, 100, 1.0)).marks == [0, 2, 0, 0]
    assert line([Piece(0, 4 * FULL, 9)], ecn=(99, 99, 1.0)).marks == [0, 3, 0, 0]
    assert line([Piece(0, 4 * FULL, 9)], ecn=(0, 0, 1.0)).marks == [0, 3, 0, 0]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_marks_between_thresholds_are_drawn(seed):
    """12 packets find 0, 100, ... 1100 bytes. 200 and less: none; 1000 and more: all; in between, a draw each."""
    outcome = line([Piece(0, 12 * FULL, 99)], ecn=(200, 1000, 0.5), seed=seed)
    first = mix((mix(seed) + 1) & MASK)
    draws = [(mix((first + i * GOLDEN) & MASK) >> 11) / 2**53 for i in range(1, 8)]
    marked = [draw < 0.5 * found / 800 for draw, found in zip(draws, range(100, 800, 100), strict=True)]
    assert outcome.marks == [0, 2 + sum(marked), 0, 0]
    assert outcome.drops == [0] * 4


def pausing(pieces, routes, first_latency=50, **options) -> FullOutcome:
    """`line` with a delay of 50 ps to the switch and back, a fast port 4 beside the slow one, and a host's link 5."""
    wires = [wire(first_latency), wire(ps_per_byte=10), wire(), wire(50), wire(), wire()]
    reverse = [3, 2, None, None, 2, 0]
    owner = [None, 0, None, 0, 0, None]
    end = [0, None, 0, None, None, None]
    return small(wires, reverse, pieces, fixed(*routes), owner, end, pfc=(250, 100), **options)


def test_a_pause_and_its_end():
    """Packets arrive at 150, 250, 350, ...: the third makes 300 bytes. A pause takes 50 + 64: at 464, port 0, amid
    packet 4 (400-500), goes no further. Port 1 serves 150-1150, ... 4150-5150: 100 bytes are left at 4150, and port 0
    resumes at 4264. Packet 5 goes 4264-4364, is there at 4414, and is served 5150-6150.
    """
    outcome = pausing([Piece(0, 6 * FULL, 9)], [(0, 1)])
    assert outcome.paused_ps == [4264 - 464, 0, 0, 0, 0, 0]
    assert outcome.longest_queue == [0, 500, 0, 0, 0, 0]
    assert outcome.received_ps == [6150]
    assert outcome.max_wait_ps[1] == 4150 - 550  # packet 4
    assert outcome.drops == [0] * 6


def test_a_pause_stops_data_of_all_destinations_and_no_control():
    """As above. Piece 1, from 450 on, waits at port 0, though its port 4 is idle: packet 5 goes 4264-4364, its own
    4364-4464; it is at port 4 at 4514 and received at 4614. At 4514 it makes 300 bytes with packets 4 and 5: a pause
    from 4628, until packet 4 leaves 100 at 5150, and 5264.

    Piece 2 is received at port 0's host at 1000 amid the pause; its acknowledgement goes at once: 1000-1010, and 50 ps.
    """
    pieces = [Piece(0, 6 * FULL, 9), Piece(450, FULL, 1), Piece(900, FULL, 1)]
    outcome = pausing(pieces, [(0, 1), (0, 4), (5,)])
    assert outcome.first_sent_ps[1] == 4364
    assert outcome.received_ps == [6150, 4614, 1000]
    assert outcome.acknowledged_ps[2] == 1060
    assert outcome.paused_ps == [3800 + 5264 - 4628, 0, 0, 0, 0, 0]


def test_an_ordinary_port_is_paused_too():
    """Two switches: link 0 takes 2 ps a byte, port 1 one and port 2 ten; xoff 150, xon 0, and 64 ps for a pause.

    At port 2 packets arrive at 300 and 500, where they make 200 bytes: port 1 is paused at 564, and holds packet 2,
    which comes at 600. Port 2 serves 300-2300, and is empty: port 1 resumes at 2364. 2364-2464, and 2464-3464.
    """
    wires = [wire(ps_per_byte=2), wire(), wire(ps_per_byte=10), wire(), wire(), wire()]
    outcome = small(
        wires, [5, 4, 3, None, None, None], [Piece(0, 3 * FULL, 9)], fixed((0, 1, 2)),
        [None, 0, 1, None, None, None], [0, 1, None, None, None, None], pfc=(150, 0),
    )  # fmt: skip
    assert outcome.paused_ps == [0, 2364 - 564, 0, 0, 0, 0]
    assert outcome.received_ps == [3464]
    assert outcome.max_wait_ps[1] == 2364 - 600


def test_a_link_that_nothing_answers_is_paused_by_its_own_delay():
    """Link 0 has no reverse: a pause takes its own 50 + 64 ps, and all is as in `test_a_pause_and_its_end`."""
    wires = [wire(50), wire(ps_per_byte=10), wire()]
    outcome = small(
        wires, [None, 2, None], [Piece(0, 6 * FULL, 9)], fixed((0, 1)), [None, 0, None], [0, None, None], pfc=(250, 100)
    )
    assert outcome.paused_ps == [3800, 0, 0]


def test_what_a_host_link_brings_is_not_counted_for_pauses():
    """Link 0 ends at a host (an injection port's, say): it never makes a pause."""
    wires = [wire(50), wire(ps_per_byte=10), wire()]
    outcome = small(wires, [None, 2, None], [Piece(0, 6 * FULL, 9)], fixed((0, 1)), [None, 0, None], pfc=(250, 100))
    assert (outcome.paused_ps, outcome.longest_queue) == ([0] * 3, [0, 600, 0])


def shared(total: int, alpha: float, owner: Sequence[int | None]) -> FullOutcome:
    """Piece 0 comes to port 2 at 100, 200, 300, piece 1 to port 3 at 250, 350; both take 10 ps a byte."""
    wires = [wire(), wire(), wire(ps_per_byte=10), wire(ps_per_byte=10), wire()]
    pieces = [Piece(0, 3 * FULL, 9), Piece(150, 2 * FULL, 9)]
    reverse = [None, None, 4, 4, None]
    return small(wires, reverse, pieces, fixed((0, 2), (1, 3)), owner, shared=(total, alpha), rto_ps=5000)


def test_a_shared_buffers_threshold_falls_as_it_fills():
    """400 bytes, alpha 1: a port may hold what is free. 100 of 400, 200 of 300; at 250 piece 1's 100 of 200; at 300
    piece 0's 300 of 100, no; at 350 200 of 100, no.

    With 401 bytes and alpha 2: 300 <= 2 * 101 fails too, but 200 <= 2 * 101.
    """
    one = [None, None, 0, 0, None]
    outcome = shared(400, 1.0, one)
    assert (outcome.drops, outcome.longest_queue) == ([0, 0, 1, 1, 0], [0, 0, 200, 100, 0])
    outcome = shared(401, 2.0, one)
    assert (outcome.drops, outcome.longest_queue) == ([0, 0, 1, 0, 0], [0, 0, 200, 200, 0])


def test_a_shared_buffer_is_its_nodes_and_has_an_end():
    """With much alpha the sum counts: 500 are accepted, of 499 the last is not. Two nodes have a buffer each."""
    one, two = [None, None, 0, 0, None], [None, None, 0, 7, None]
    assert shared(500, 1e9, one).drops == [0, 0, 0, 0, 0]
    assert shared(499, 1e9, one).drops == [0, 0, 0, 1, 0]
    assert shared(400, 1.0, two).drops == [0, 0, 1, 0, 0]  # 300 of 200; piece 1's 200 of 300


def test_go_back_n():
    """Window 4, room for two, each packet acknowledged. 0 and 1 are served until 1100 and 2100; 2 and 3 are dropped.

    4 goes at 1120, 5 at 2120. 4 is received at 3100 and discarded: back to 2, at 3120. 2, 3, 4, 5 go until 3520; the
    first 5 is in service (3100-4100; discarded, no second NAK), so 2 finds room, and 3, 4, 5 do not. 2 takes 4100-5100;
    at 5120, 3 is next to be acknowledged, and due at 15,120 (alarm at 10,000). Then 3 goes alone, and takes
    15,220-16,220; known at 16,240, it lets 4 and 5 go: 4 takes 16,340-17,340, and 5 until 18,340.
    """
    outcome = line([Piece(0, 6 * FULL, 4, ack_every=1)], port_limit=200, rto_ps=10_000, receiver="go_back_n")
    assert outcome.received_ps == [18_340]
    assert outcome.acknowledged_ps == [18_360]
    assert outcome.drops == [0, 5, 0, 0]
    assert (outcome.sent_packets, outcome.retransmitted) == ([13], [7])
    assert (outcome.discarded, outcome.duplicates, outcome.timeouts) == ([2], [0], [1])
    assert outcome.ack_packets == [0, 0, 7, 7]
    assert (outcome.max_displacement, outcome.max_held_bytes) == ([0], [0])


def test_go_back_n_answers_a_duplicate_at_once():
    """As in `test_a_drop_is_recovered_by_a_timeout`, 2 and 3 are dropped; at 5000, 0 is sent again, alone.

    It is a duplicate at 6100, which tells of 2 at 6120: 2 and 3 go. 2 takes 6220-7220, 3 until 8220.
    """
    outcome = line([Piece(0, 4 * FULL, 9)], port_limit=200, rto_ps=5000, receiver="go_back_n")
    assert (outcome.duplicates, outcome.discarded, outcome.drops) == ([1], [0], [0, 2, 0, 0])
    assert (outcome.sent_packets, outcome.retransmitted) == ([7], [3])
    assert outcome.received_ps == [8220]
    assert outcome.ack_packets == [0, 0, 3, 3]


def test_go_back_n_goes_back_for_a_trimmed_packet():
    """2 comes to a full port, and its header follows 0: 1100-1200; at 1220, 0 is known, and 1 and 2 go again, -1420.

    The first 1 is served 1200-2200; the second finds room at 1320, and 2 none at 1420: its header goes 2200-2300, and
    0 and 1 are known at 2320. 2 goes until 2420, behind the second 1 (2300-3300, a duplicate): 3300-4300.
    """
    outcome = line([Piece(0, 3 * FULL, 9)], port_limit=200, trim=True, receiver="go_back_n")
    assert outcome.received_ps == [4300]
    assert outcome.acknowledged_ps == [4320]
    assert (outcome.trims[1], outcome.sent_packets, outcome.retransmitted) == (2, [6], [3])
    assert (outcome.duplicates, outcome.discarded, outcome.timeouts) == ([1], [0], [0])


@pytest.mark.parametrize(("gap", "rto_ps", "received_ps"), [(3, 10**6, 1500), (4, 10**6, 1620), (None, 5000, 5620)])
def test_a_gap_in_what_is_acknowledged(gap, rto_ps, received_ps):
    """Packets leave every 200 ps (2 ps a byte) and take 100 on port 1, which has room for one; each is acknowledged.

    Piece 1's is there 350-450, so packet 1, at 400, is dropped. 2, 3, 4, 5 are known at 720, 920, 1120, 1320. With gap
    3, packet 1 is lost at 1120, goes 1200-1400 behind 5, and 1400-1500; with gap 4 at 1320: -1520, -1620. Without, the
    timer is restarted at 320, by packet 0, when 1 was sent: at 5320 it goes again, -5520, -5620.
    """
    wires = [wire(ps_per_byte=2), wire(), wire(), wire(), wire()]
    pieces = [Piece(0, 6 * FULL, 9, ack_every=1), Piece(250, FULL, 1)]
    outcome = small(
        wires, [3, 2, None, None, None], pieces, fixed((0, 1), (4, 1)), [None, 0, None, None, None],
        port_limit=100, gap=gap, rto_ps=rto_ps,
    )  # fmt: skip
    assert outcome.received_ps[0] == received_ps
    assert outcome.acknowledged_ps[0] == received_ps + 20
    assert (outcome.retransmitted, outcome.timeouts) == ([1, 0], [int(gap is None), 0])
    assert outcome.max_displacement == [4, 0]


def test_dctcp():
    """4 packets of window, each acknowledged, 2 to 5 marked (they find more than 100 bytes).

    0 (known at 1120): the window grows, the first round ends without a mark, the next one at 4. 4 goes, is there at
    1220 and finds 300. 1 (2120): it grows; 5 goes. 2 (3120): it shrinks. 3 (4120): it has shrunk; the round of 3, of
    which 2 are marked, ends at 4. 4 (5120): it shrinks. 5 (6120): the round of 2 ends, all marked.
    """
    outcome = line([Piece(0, 6 * FULL, 4, ack_every=1)], ecn=(100, 100, 1.0), transport="dctcp")
    assert outcome.marks == [0, 4, 0, 0]
    assert outcome.received_ps == [6100]
    cwnd, alpha = 400.0, 1.0
    cwnd += 100 * 100 / cwnd
    alpha = 15 / 16 * alpha
    assert (cwnd, alpha) == (425.0, 0.9375)
    cwnd += 100 * 100 / cwnd
    cwnd *= 1 - alpha / 2
    alpha = 15 / 16 * alpha + 1 / 16 * (2 / 3)
    assert cwnd == pytest.approx(238.281, abs=1e-3)
    cwnd *= 1 - alpha / 2
    alpha = 15 / 16 * alpha + 1 / 16
    assert outcome.cwnd == [pytest.approx(cwnd, rel=1e-15)]
    assert outcome.alpha == [pytest.approx(alpha, rel=1e-15)]


def test_a_dctcp_window_step_by_step():
    """A gap halves it, once a round; whatever else is without a mark makes it grow; it stays in [mtu, 1024 mtu]."""
    window = DctcpWindow(100, 1000.0)
    window.acknowledged(2, 0, True, 2, 20)  # halved; the first round ends: 15/16, and the next one at 20
    assert (window.cwnd, window.alpha, window.round_end, window.is_reduced) == (500.0, 0.9375, 20, False)
    window.acknowledged(5, 5, True, 7, 22)  # halved for the gap, not for the marks
    assert (window.cwnd, window.is_reduced) == (250.0, True)
    window.acknowledged(1, 0, True, 8, 23)  # has shrunk, and grows
    assert window.cwnd == 250.0 + 10_000 / 250.0 == 290.0
    window.acknowledged(4, 7, False, 20, 24)  # the round's 12 marks of 10 packets count as all
    assert (window.cwnd, window.alpha, window.round_end) == (290.0, 0.9375 * 0.9375 + 0.0625, 24)
    window.timed_out()
    assert (window.cwnd, window.packets()) == (100.0, 1)
    window.acknowledged(0, 1, False, 21, 25)
    assert window.cwnd == 100.0
    window.cwnd = 102_395.0
    window.acknowledged(100, 0, False, 22, 25)
    assert window.cwnd == 102_400.0


def test_a_window_smaller_than_its_acknowledgements_has_each_answered():
    """Window 2, acknowledged in twos. Packet 1 finds 100 bytes and is marked: at 2120, the window is one packet.

    2 goes alone, 2120-2220, and 2220-3220; answered at once, it lets 3 go at 3240: 3240-3340, and 3340-4340.
    """
    outcome = line([Piece(0, 4 * FULL, 2)], ecn=(0, 0, 1.0), transport="dctcp")
    assert (outcome.marks[1], outcome.timeouts) == (1, [0])
    assert outcome.received_ps == [4340]
    assert outcome.ack_packets == [0, 0, 3, 3]


def test_a_timeout_leaves_a_dctcp_window_of_one_packet():
    """The timer is 1000. At 1000, packet 0 is lost, and waits, as 3 are in flight; at 2000, the others are lost too,
    and 0 goes. At 3000 it gets another round; at 4000 it is lost and goes again. The last of the first four is received
    at 4100; then two duplicates. The acknowledgement of 4 at 4120 finds a window of one packet.
    """
    outcome = line([Piece(0, 4 * FULL, 4)], transport="dctcp", rto_ps=1000)
    assert outcome.received_ps == [4100]
    assert outcome.acknowledged_ps == [4120]
    assert (outcome.sent_packets, outcome.retransmitted, outcome.duplicates) == ([6], [2], [2])
    assert outcome.timeouts == [4]
    assert outcome.cwnd == [100.0 + 10_000 * 4 / 100.0]


@pytest.mark.parametrize(("start_ps", "sent_packets", "received_ps"), [(1015, 2, 1315), (1080, 1, 1280)])
def test_a_piece_that_has_nothing_left_to_send_gives_up_its_turn(start_ps, sent_packets, received_ps):
    """Packet 0 is received at 1100 and known at 1120, and lost at 1090: then, piece 0 joins the ring of port 0 behind
    piece 1, whose packet is being sent, and piece 2 joins at 1095.

    Sent 1015-1115, piece 1 leaves piece 0 its turn, and piece 2 goes 1215-1315. Sent 1080-1180, it does not: piece 0 is
    settled, and piece 2 goes 1180-1280.
    """
    wires = [wire(), wire(ps_per_byte=10), wire(), wire()]
    pieces = [Piece(0, FULL, 1), Piece(start_ps, FULL, 1), Piece(1095, FULL, 1)]
    routes = fixed((0, 1), (0,), (0,))
    outcome = small(wires, [3, 2, None, None], pieces, routes, [None, 0, None, None], rto_ps=1090)
    assert outcome.sent_packets == [sent_packets, 1, 1]
    assert outcome.received_ps == [1100, start_ps + 100, received_ps]
    assert outcome.acknowledged_ps[0] == 1120


def test_a_network_that_is_paused_for_ever_or_always_drops_has_stalled():
    with pytest.raises(Stalled, match="timed out"):
        line([Piece(0, FULL, 1)], port_limit=99, rto_ps=1000, patience=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"owner": [0] * 4}, "a switch's"),
        ({"owner": [None]}, "as many owners"),
        ({"receiver": "none"}, "no receiver"),
        ({"transport": "none"}, "no transport"),
        ({"rto_ps": 0}, "rto_ps"),
        ({"gap": 0}, "gap"),
        ({"ecn": (2, 1, 1.0)}, "k_min"),
        ({"pfc": (1, 2)}, "xon"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small([wire()] * 4, [3, 2, None, None], [Piece(0, FULL, 1)], fixed((0, 1)),
              **{"owner": [None, 0, None, None], **options})  # fmt: skip


def test_a_pause_without_duration_is_refused():
    with pytest.raises(ValueError, match="less than 1 ps"):
        small([Wire(10**15, 0)] * 2, [1, None], [Piece(0, FULL, 1)], fixed((0,)), [None] * 2, [0, None], pfc=(2, 1))


RATES = [BYTE_PER_PS, BYTE_PER_PS // 10, 3 * 10**12]
WIRES = st.builds(Wire, st.sampled_from(RATES), st.sampled_from([0, 1, 77, 1000]))


@st.composite
def networks(draw):
    """Sources 0-2, switch 0's ports 3 and 4, switch 1's 5 and 6; link i's reverse is i + 7. A fixed route a piece."""
    wires = [draw(WIRES) for _ in range(14)]
    reverse: list[int | None] = [*range(7, 14), *[None] * 7]
    owner = [None, None, None, 0, 0, 1, 1, None, None, None, *[0] * 2, *[1] * 2]
    end = [0, 0, 0, 1, 1, None, None, *[None] * 3, 0, 0, *[1] * 2]
    starts = st.sampled_from([0, 0, 1, 500, 2000])
    sizes = st.one_of(st.integers(0, 12 * FULL), st.sampled_from([0, FULL, 40 * FULL]))
    piece = st.builds(Piece, starts, sizes, st.integers(1, 12), st.integers(1, 5))
    pieces = draw(st.lists(piece, min_size=1, max_size=5))
    routes = [draw(st.tuples(st.integers(0, 2), st.integers(3, 4), st.integers(5, 6))) for _ in pieces]
    return wires, reverse, pieces, routes, owner, end


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from(["selective_repeat", "go_back_n"]), st.integers(0, 9))
def test_without_loss_it_is_the_lean_network(network, receiver, seed):
    """Marks change no fixed window, and limits that are never reached nothing."""
    wires, reverse, pieces, routes, owner, end = network
    lean = simulate(wires, reverse, pieces, fixed(*routes), mtu=100, header=10)
    full = small(
        wires, reverse, pieces, fixed(*routes), owner, end, receiver=receiver, rto_ps=10**12, gap=1, port_limit=10**6,
        shared=(10**6, 1.0), ecn=(0, 500, 0.5), seed=seed,
    )  # fmt: skip
    assert asdict(full).items() >= asdict(lean).items()
    assert full.sent_packets == [max(1, -(-piece.payload // FULL)) for piece in pieces]
    assert not any(full.timeouts + full.duplicates + full.discarded + full.retransmitted + full.drops)


OPTIONS = st.fixed_dictionaries(
    {
        "port_limit": st.sampled_from([None, 100, 250, 500]),
        "shared": st.sampled_from([None, None, (600, 1.0), (300, 8.0)]),
        "ecn": st.sampled_from([None, (100, 100, 1.0), (0, 400, 0.5)]),
        "seed": st.integers(0, 9),
        "pfc": st.sampled_from([None, None, (600, 200)]),
        "trim": st.booleans(),
        "rto_ps": st.sampled_from([20_000, 100_000]),
        "receiver": st.sampled_from(["selective_repeat", "go_back_n"]),
        "gap": st.sampled_from([None, 1, 3]),
        "transport": st.sampled_from(["fixed", "dctcp"]),
        "patience": st.just(200),
    }
)


@settings(max_examples=60, deadline=None)
@given(networks(), OPTIONS, st.booleans())
def test_every_packet_is_accounted_for(network, options, sprays):
    """Whatever is lost, all is received in the end; what entered a port was transmitted or dropped.

    The network itself checks that its buffers are empty, and what came against what was sent. Going back N for whatever
    another path has delayed need not end, nor need it when every trimmed packet asks for it, so only selective repeat
    sprays (from several source ports too) and trims.
    """
    is_selective = options["receiver"] == "selective_repeat"
    options = {**options, "trim": options["trim"] and is_selective}
    wires, reverse, pieces, routes, owner, end = network

    def route(piece: int, seq: int) -> Sequence[int | Choice]:
        first, middle, last = routes[piece]
        if sprays and is_selective:
            return ((first + seq) % 3, Choice(0, ((3,), (4,))), last)
        return (first, middle, last)

    outcome = small(wires, reverse, pieces, route, owner, end, **options)
    through = [sum(x) for x in zip(outcome.data_packets, outcome.ack_packets, outcome.drops, strict=True)]
    assert outcome.entered == through
    num_packets = [max(1, -(-piece.payload // FULL)) for piece in pieces]
    assert outcome.sent_packets == [n + r for n, r in zip(num_packets, outcome.retransmitted, strict=True)]
    if options["pfc"] is not None:
        assert not any(outcome.drops + outcome.trims)
    elif options["port_limit"] is not None:
        assert max(outcome.longest_queue) <= options["port_limit"]
    assert not any(outcome.drops if options["trim"] else outcome.trims)
