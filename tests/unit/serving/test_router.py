from __future__ import annotations

from dataclasses import dataclass

from serving_parts import served

from sim.serving.router import ROUTERS, least_outstanding, round_robin


@dataclass
class Stand:
    num_outstanding: int


def test_round_robin_takes_turns():
    assert [round_robin([Stand(9), Stand(0), Stand(0)], n) for n in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_takes_the_shortest_and_of_equals_the_first():
    assert least_outstanding([Stand(2), Stand(1), Stand(1)], 7) == 1


def test_least_outstanding_counts_running_requests_too():
    """Requests that run for 100 s and never queue: counting the queue only, all would go to replica 0."""
    made = served(
        [0.0, 10.0, 20.0, 100.5], [1, 1, 1, 1], [100, 100, 1, 1], num_replicas=2, router="least_outstanding"
    )

    # At 20 s both run one request; at 100.5 s replica 0 has just finished both of its own.
    assert made.requests["replica"].tolist() == [0, 1, 0, 0]


def test_a_replica_s_requests_are_seen_as_they_are_at_the_moment_of_arrival():
    """One second a step: the first request is done at 3 s, so it counts at 2.9 s and not at 3 s."""
    for second_s, replica in ((2.9, 1), (3.0, 0)):
        made = served([0.0, second_s], [1, 1], [3, 1], num_replicas=2, router="least_outstanding")
        assert made.requests["replica"].tolist() == [0, replica]


def test_every_router_is_complete():
    assert all(callable(router.choose) for router in ROUTERS.values())
