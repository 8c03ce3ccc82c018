"""The exact packet network against answers worked out by hand.

Most cases use links of 8 Tbit/s, where one byte takes one picosecond, and packets of 100 bytes: 90 of payload and 10 of
header. An acknowledgement then takes 10 ps.
"""

from collections.abc import Callable, Sequence

import pytest
from exact_packets import Choice, Outcome, Piece, Wire, simulate

BYTE_PER_PS = 8 * 10**12
FULL = 90  # bytes of payload in a full packet


def wire(latency: int = 0, ps_per_byte: int = 1) -> Wire:
    return Wire(BYTE_PER_PS // ps_per_byte, latency)


def fixed(*routes: Sequence[int | Choice]) -> Callable[[int, int], Sequence[int | Choice]]:
    """Every packet of piece i takes routes[i]."""
    return lambda piece, seq: routes[piece]


def small(wires, reverse, pieces, route, **options) -> Outcome:
    return simulate(wires, reverse, pieces, route, mtu=100, header=10, **options)


def test_a_large_piece_takes_its_serialisation_and_four_hops():
    """16 MB are 3969 packets of 4032 payload bytes, the last with 1024; 4096 bytes take 81,920 ps at 400 Gbit/s.

    The round trip is 4 * (81.92 + 500 + 1.28 + 500) ns = 52.9 packets, and at most 3 wait for an acknowledgement: 80
    never close. The last packet follows the one before it closely on each link, which ends its serialisation on the
    last link after 3968 + 3 packet times; its own 1088 bytes add 21,760 ps, so it waits for the rest on every link
    but the first. Its acknowledgement finds free links: the previous one is older by more than its own 1,280 ps.
    """
    wires = [Wire(400 * 10**9, 500_000)] * 8
    outcome = simulate(wires, [4, 5, 6, 7, *[None] * 4], [Piece(0, 16_000_000, 80)], fixed((0, 1, 2, 3)))
    received_ps = (3968 + 3) * 81_920 + 21_760 + 4 * 500_000
    assert received_ps == 327_326_080
    assert outcome.first_sent_ps == [0]
    assert outcome.received_ps == [received_ps]
    assert outcome.acknowledged_ps == [received_ps + 4 * (1_280 + 500_000)] == [329_331_200]
    assert outcome.data_packets == [3969] * 4 + [0] * 4
    assert outcome.ack_packets == [0] * 4 + [993] * 4
    assert outcome.payload_bytes == [16_000_000] * 4 + [0] * 4
    assert outcome.wire_bytes == [16_000_000 + 3969 * 64] * 4 + [993 * 64] * 4
    assert outcome.max_wait_ps == [0, *[81_920 - 21_760] * 3, *[0] * 4]
    assert (outcome.max_displacement, outcome.max_held_bytes) == ([0], [0])
    assert outcome.deliveries == 4 * (3969 + 993)


def test_an_empty_piece_is_one_header():
    outcome = small([wire(5), wire(7)], [1, None], [Piece(3, 0, 1)], fixed((0,)))
    assert outcome.first_sent_ps == [3]
    assert outcome.received_ps == [3 + 10 + 5]
    assert outcome.acknowledged_ps == [18 + 10 + 7]
    assert (outcome.wire_bytes, outcome.payload_bytes) == ([10, 10], [0, 0])


def test_a_full_last_packet_is_not_split():
    outcome = small([wire(), wire()], [1, None], [Piece(0, 2 * FULL, 2)], fixed((0,)))
    assert (outcome.data_packets, outcome.wire_bytes) == ([2, 0], [200, 10])


def test_two_pieces_take_turns_at_their_source_port():
    """A 0-100, B 100-200, A 200-300, B 300-400, B 400-500; A had 2 packets and B 3."""
    pieces = [Piece(0, 2 * FULL, 9), Piece(0, 3 * FULL, 9)]
    outcome = small([wire(), wire()], [1, None], pieces, fixed((0,), (0,)))
    assert outcome.first_sent_ps == [0, 100]
    assert outcome.received_ps == [300, 500]


def test_a_late_piece_joins_the_ring_behind_one_that_was_put_back():
    """At 0 A sends and is put back; B starts at 50 and joins behind A: A 0-100, A 100-200, B 200-300, A 300-400."""
    pieces = [Piece(0, 3 * FULL, 9), Piece(50, FULL, 9)]
    outcome = small([wire(), wire()], [1, None], pieces, fixed((0,), (0,)))
    assert outcome.first_sent_ps == [0, 200]
    assert outcome.received_ps == [400, 300]


def test_a_piece_that_starts_as_the_port_becomes_free_is_seen():
    """A's last packet ends at 100, where B starts: starts come before picks, and B goes at 100, not later."""
    outcome = small([wire(), wire()], [1, None], [Piece(0, FULL, 9), Piece(100, FULL, 9)], fixed((0,), (0,)))
    assert outcome.first_sent_ps == [0, 100]


def test_pieces_that_start_together_join_in_order_of_index():
    pieces = [Piece(5, FULL, 9), Piece(5, FULL, 9), Piece(5, FULL, 9)]
    outcome = small([wire(), wire()], [1, None], pieces, fixed((0,), (0,), (0,)))
    assert outcome.first_sent_ps == [5, 105, 205]


def test_an_acknowledged_piece_joins_before_one_that_starts_at_that_instant():
    """A sends 0-100 and closes; its acknowledgement takes 100-110, where B starts: A 110-210, B 210-310."""
    pieces = [Piece(0, 2 * FULL, 1, ack_every=1), Piece(110, FULL, 1)]
    outcome = small([wire(), wire()], [1, None], pieces, fixed((0,), (0,)))
    assert outcome.first_sent_ps == [0, 210]
    assert outcome.received_ps == [210, 310]


def test_an_acknowledgement_overtakes_queued_data():
    """Link 1 takes 10 ps a byte. Piece 0's 5 packets enter it at 100, 200, ... 500 and are served at 100, 1100, ...

    Piece 1's packet is received at 600 and its acknowledgement enters link 1 behind 4 data packets. It goes when the
    one in service ends, 1100-1200, and those behind it go 100 ps later: at 1200, 2200, 3200, 4200. The last, from 500,
    waited 3700.
    """
    wires = [wire(), wire(ps_per_byte=10), wire(), wire()]
    pieces = [Piece(0, 5 * FULL, 9), Piece(500, FULL, 1)]
    outcome = small(wires, [None, 3, 1, None], pieces, fixed((0, 1), (2,)))
    assert outcome.acknowledged_ps[1] == 1200
    assert outcome.received_ps == [5200, 600]
    assert outcome.max_wait_ps == [0, 3700, 0, 0]
    assert outcome.ack_packets == [0, 1, 0, 2]


def test_an_acknowledgement_that_comes_as_a_packet_ends_goes_next():
    """As above, but received at 1100, the very end of a packet on link 1, which is then still busy: 1100-1200."""
    wires = [wire(), wire(ps_per_byte=10), wire(), wire()]
    pieces = [Piece(0, 5 * FULL, 9), Piece(1000, FULL, 1)]
    outcome = small(wires, [None, 3, 1, None], pieces, fixed((0, 1), (2,)))
    assert outcome.acknowledged_ps[1] == 1200
    assert outcome.received_ps == [5200, 1100]


@pytest.mark.parametrize(("ack_link", "acknowledged_ps", "received_ps"), [(0, 110, 210), (2, 210, 200)])
def test_deliveries_at_one_instant_enter_an_idle_port_in_order_of_link(ack_link, acknowledged_ps, received_ps):
    """A data packet by link 1, and one by link 0 or 2 whose acknowledgement also wants link 3, both at 100.

    Link 0 comes first: the acknowledgement starts, 100-110, and the data waits until 110. Link 2 comes last: the data
    has started, 100-200, and the acknowledgement is late, its class notwithstanding: 200-210.
    """
    reverse: list[int | None] = [None] * 5
    reverse[ack_link] = 3
    reverse[3] = 4
    pieces = [Piece(0, FULL, 1), Piece(0, FULL, 1)]
    outcome = small([wire()] * 5, reverse, pieces, fixed((1, 3), (ack_link,)))
    assert outcome.acknowledged_ps[1] == acknowledged_ps
    assert outcome.received_ps == [received_ps, 100]
    assert outcome.max_wait_ps[3] == received_ps - 200


@pytest.mark.parametrize(("start_ps", "first_sent_ps", "acknowledged_ps"), [(99, 99, 209), (100, 110, 110)])
def test_a_source_port_picks_after_the_instants_arrivals(start_ps, first_sent_ps, acknowledged_ps):
    """Piece 1's acknowledgement enters the idle source port 0 at 100.

    A packet that started at 99 keeps the port until 199; one that would start at 100 lets the acknowledgement go first.
    """
    pieces = [Piece(start_ps, FULL, 1), Piece(0, FULL, 1)]
    outcome = small([wire(), wire(), wire()], [2, 0, None], pieces, fixed((0,), (1,)))
    assert outcome.first_sent_ps == [first_sent_ps, 0]
    assert outcome.acknowledged_ps[1] == acknowledged_ps


def test_an_acknowledgement_goes_before_a_piece_that_became_ready_at_that_instant():
    """At 110, link 2 delivers the acknowledgement that opens piece 0 again, and then link 3 a packet (10-110).

    Its acknowledgement also wants source port 0, which is idle: it goes first, 110-120, and piece 0 then, 120-220.
    """
    pieces = [Piece(0, 2 * FULL, 1, ack_every=1), Piece(10, FULL, 1)]
    outcome = small([wire()] * 4, [2, None, None, 0], pieces, fixed((0,), (3,)))
    assert outcome.acknowledged_ps == [230, 120]
    assert outcome.received_ps == [220, 110]


def test_an_acknowledgement_takes_the_reverse_links_last_link_first():
    """Piece 0 is received at 200; its acknowledgement takes link 3, 200-210, and then link 2.

    Piece 1's enters link 3 at 205 and so waits until 210.
    """
    pieces = [Piece(0, FULL, 1), Piece(105, FULL, 1)]
    outcome = small([wire()] * 5, [2, 3, None, None, 3], pieces, fixed((0, 1), (4,)))
    assert outcome.acknowledged_ps == [220, 220]


@pytest.mark.parametrize("rate", [300 * 10**9, 7 * 10**9 + 3, 7])
def test_no_picosecond_is_lost_over_a_thousand_packets(rate):
    """Back to back, n packets end at floor(n bits / rate), and not at n times the floor of one."""
    bits_ps = 4096 * 8 * 10**12
    outcome = simulate([Wire(rate, 11), Wire(10**12, 0)], [1, None], [Piece(0, 1000 * 4032, 1000)], fixed((0,)))
    assert outcome.received_ps == [1000 * bits_ps // rate + 11]
    assert 1000 * bits_ps // rate > 1000 * (bits_ps // rate)


@pytest.mark.parametrize(
    ("start_ps", "received_ps"),
    [(26, 53), (27, 53), (28, 54), (53, 79)],
    ids=["back to back", "after 1 ps", "after 2 ps", "after a packet time"],
)
def test_the_remainder_is_carried_only_back_to_back(start_ps, received_ps):
    """10 bytes at 3 Tbit/s take 80/3 ps = 26, remainder 2/3. Carried, the next takes 82/3 = 27; afresh, 26 again."""
    wires = [Wire(3 * 10**12, 0), wire()]
    outcome = small(wires, [1, None], [Piece(0, 0, 1), Piece(start_ps, 0, 1)], fixed((0,), (0,)))
    assert outcome.received_ps == [26, received_ps]


def test_an_ordinary_port_carries_its_remainder_too():
    """Three header packets enter link 1, of 3 Tbit/s, at 10, 20 and 30: 80/3 ps each from 10 on, 80 in all."""
    wires = [wire(), Wire(3 * 10**12, 0), wire(), wire()]
    pieces = [Piece(0, 0, 1)] * 3
    outcome = small(wires, [None, 2, None, None], pieces, fixed(*[(0, 1)] * 3))
    assert outcome.received_ps == [10 + 26, 10 + 53, 10 + 80]
    assert outcome.max_wait_ps[1] == 63 - 30


def test_a_window_of_one_sends_one_packet_a_round_trip():
    """100 ps, 1000 ps there, 10 ps, 1000 ps back."""
    outcome = small([wire(1000)] * 2, [1, None], [Piece(0, 7 * FULL, 1, ack_every=1)], fixed((0,)))
    assert outcome.received_ps == [6 * 2110 + 1100]
    assert outcome.acknowledged_ps == [7 * 2110]


def test_an_acknowledgement_opens_the_window_by_what_it_covers():
    """Window 4, acknowledged in twos. 0-400 four packets; the second is received at 1200, the fourth at 1400.

    Acknowledgements return at 1200 + 1010 and 1400 + 1010. 2210-2410 two packets, 2410-2610 two more, with no gap.
    """
    outcome = small([wire(1000)] * 2, [1, None], [Piece(0, 8 * FULL, 4, ack_every=2)], fixed((0,)))
    assert outcome.received_ps == [2610 + 1000]
    assert outcome.acknowledged_ps == [3610 + 1010]


def test_an_acknowledgement_waits_for_no_more_packets_than_the_window_has():
    """Two packets by 200, their acknowledgement at 210; the third by 310, and the one for it at 320."""
    outcome = small([wire()] * 2, [1, None], [Piece(0, 3 * FULL, 2, ack_every=4)], fixed((0,)))
    assert (outcome.received_ps, outcome.acknowledged_ps) == ([310], [320])


def test_a_sender_runs_at_most_1024_packets_ahead_of_the_in_order_point():
    """Packet 0 takes a slow wire; the others may go until 1023 is sent, at 102,400, and 1024 waits for packet 0.

    Packet 0 is received at 100 + 1,000,000, which makes 1024 received, a multiple of 4: the acknowledgement, 10 ps,
    opens the window at 1,000,110; packet 1024 takes 100 ps to the switch and 100 ps more to be received.
    """
    wires = [wire(), wire(1_000_000 - 100), wire(), wire()]
    pieces = [Piece(0, 1025 * FULL, 5000)]
    outcome = small(wires, [3, None, None, None], pieces, lambda piece, seq: (0, 1 if seq == 0 else 2))
    assert outcome.received_ps == [1_000_100 + 10 + 200]
    assert outcome.max_displacement == [1023]
    assert outcome.max_held_bytes == [1023 * FULL]


@pytest.mark.parametrize(("first", "num_packets"), [(0, [2, 2, 1]), (1, [1, 2, 2]), (5, [2, 1, 2])])
def test_a_switch_sprays_in_turn(first, num_packets):
    """5 packets over 3 links, from the first turn on; acknowledgements return beside the packet's link."""
    wires = [wire()] * 10
    reverse = [None, 6, 7, 8, 9, None, None, None, None, None]
    route = fixed((0, Choice(5, ((1,), (2,), (3,))), 4))

    def turn(group: int, n: int, choices: int) -> int:
        assert group == 5
        return (first + n) % choices

    outcome = small(wires, reverse, [Piece(0, 5 * FULL, 9, ack_every=1)], route, turn=turn)
    assert outcome.data_packets[1:4] == num_packets
    assert outcome.ack_packets[6:9] == num_packets
    assert outcome.data_packets[4] == outcome.ack_packets[9] == 5


def test_pieces_that_share_a_switch_share_its_turn_in_order_of_arrival():
    """Both arrive at 100: link 0's packet is first and takes the fast alternative, though its piece comes second."""
    choice = Choice(0, ((2, 3), (4,)))
    wires = [wire(), wire(), wire(), wire(), wire(1000), wire()]
    pieces = [Piece(0, FULL, 1), Piece(0, FULL, 1)]
    outcome = small(wires, [5, 5, None, None, None, None], pieces, fixed((1, choice), (0, choice)))
    assert outcome.received_ps == [100 + 100 + 1000, 100 + 200]


def test_an_alternatives_links_are_taken_in_order():
    """Piece 0 takes link 1 at 100-200 and link 2 at 200-300; piece 1 enters link 1 at 150, and waits until 200."""
    pieces = [Piece(0, FULL, 1), Piece(50, FULL, 1)]
    outcome = small([wire()] * 5, [4, None, None, 4, None], pieces, fixed((0, Choice(0, ((1, 2),))), (3, 1)))
    assert outcome.received_ps == [300, 300]
    assert outcome.max_wait_ps == [0, 50, 0, 0, 0]


def test_an_in_order_point_that_jumps_is_told_at_once():
    """Packet 1 comes last of the 1025 that its sender may send (1 is known in order): 1024 are acknowledged by fours.

    The 1025th would owe no acknowledgement, and no packet follows it that could. It comes at 200 + 1,000,000 + 100, and
    is answered 10 ps later; the other 975 packets leave back to back, and the last one takes 100 ps on its second link.
    """
    wires = [wire(), wire(1_000_000), wire(), wire()]
    outcome = small(
        wires, [3, None, None, None], [Piece(0, 2000 * FULL, 80)], lambda piece, seq: (0, 1 if seq == 1 else 2)
    )
    assert outcome.received_ps == [1_000_300 + 10 + 975 * 100 + 100]


def test_reordering_is_measured():
    """4 packets, the last with 30 payload bytes, reach the switch at 100, 200, 300, 340; even ones fly 1000 ps longer.

    They arrive as 1 (300), 3 (380), 0 (1200), 2 (1400), and hold 90, 120, 30 and 0 bytes out of order. Behind 3, packet
    0 is displaced by 3 and packet 2 by 1. The acknowledgement at 1200 is the second of two: sent by twos.
    """
    wires = [wire(), wire(1000), wire(), wire()]
    route = fixed((0, Choice(0, ((1,), (2,)))))
    outcome = small(wires, [3, None, None, None], [Piece(0, 3 * FULL + 30, 9, ack_every=2)], route)
    assert outcome.received_ps == [1400]
    assert outcome.acknowledged_ps == [1410]
    assert outcome.ack_packets == [0, 0, 0, 2]
    assert outcome.max_displacement == [3]
    assert outcome.max_held_bytes == [120]


@pytest.mark.parametrize(
    ("routes", "reverse", "message"),
    [
        (((0, 1), (1,)), [2, 2, None], "first link of a piece"),
        (((0,), (1,)), [None, 2, None], "no link"),
        (((Choice(0, ((0,),)),), (1,)), [2, 2, None], "start with a link"),
        (((0, 7), (1,)), [2, 2, None], "not there"),
        (((0, Choice(0, ())), (1,)), [2, 2, None], "without alternatives"),
    ],
)
def test_what_cannot_be_simulated_is_refused(routes, reverse, message):
    with pytest.raises(ValueError, match=message):
        small([wire()] * 3, reverse, [Piece(0, FULL, 1), Piece(0, FULL, 1)], fixed(*routes))


def test_a_packet_without_duration_is_refused():
    with pytest.raises(ValueError, match="less than 1 ps"):
        small([Wire(10**15, 0), wire()], [1, None], [Piece(0, FULL, 1)], fixed((0,)))


def test_a_piece_changes_rings_with_its_next_packets_first_link():
    """Packets alternate between two source ports: the second leaves link 1 while the first is still on link 0.

    0 and 1 both leave at 0 and take 100; 2 leaves link 0 and 3 link 1 at 100. Received at 100, 100, 200, 200.
    """
    outcome = small([wire()] * 4, [2, 3, None, None], [Piece(0, 4 * FULL, 9)], lambda piece, seq: (seq % 2,))
    assert outcome.received_ps == [200]
    assert outcome.data_packets == [2, 2, 0, 0]
