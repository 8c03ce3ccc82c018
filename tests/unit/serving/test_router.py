from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from serving_parts import served

from sim.devices.kv_cache import Contents
from sim.serving.router import (
    ROUTERS,
    Routed,
    adapter_affinity,
    least_kv,
    least_outstanding,
    power_of_two,
    prefix_affinity,
    round_robin,
)


@dataclass
class Stand:
    num_outstanding: int
    num_held_blocks: int = 0
    cached: int = 0
    of_adapter: tuple[int, ...] = ()

    def num_of_adapter(self, adapter: int) -> int:
        return self.of_adapter[adapter]

    def cached_tokens(self, request: int) -> int:
        return self.cached


def test_round_robin_takes_turns():
    assert [round_robin([Stand(9), Stand(0), Stand(0)], Routed(7, n)) for n in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_takes_the_shortest_and_of_equals_the_first():
    assert least_outstanding([Stand(2), Stand(1), Stand(1)], Routed(7, 0)) == 1


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


def test_power_of_two_takes_the_shorter_of_two_that_differ():
    stands = [Stand(3), Stand(1), Stand(2)]
    drawn = {(first, second): power_of_two(stands, Routed(0, 0, (first, second)))
             for first in (0.0, 0.4, 0.9) for second in (0.0, 0.9)}  # fmt: skip
    # First 0, then 1 or 2; first 1, then 2 or 0; first 2, then 0 or 1.
    assert list(drawn.values()) == [1, 2, 1, 1, 2, 1]
    assert power_of_two([Stand(4)], Routed(0, 0, (0.9, 0.9))) == 0


def test_power_of_two_balances_better_than_turns_do():
    """Every second request is long. In turn, all long ones go to replica 1; two choices see its queue."""
    load = np.arange(200) * 4.0, [1] * 200, [1, 20] * 100
    in_turn = served(*load, num_replicas=2, router="round_robin", max_num_seqs=1)
    chosen = served(*load, num_replicas=2, router="power_of_two", max_num_seqs=1)
    assert chosen.metrics()["mean_ttft_ms"] < in_turn.metrics()["mean_ttft_ms"] / 2


def test_least_kv_goes_by_blocks_held():
    assert least_kv([Stand(1, 9), Stand(5, 2), Stand(4, 2)], Routed(0, 0)) == 2


def test_prefix_affinity_goes_where_the_prompt_is_known():
    assert prefix_affinity([Stand(0), Stand(9, cached=32), Stand(8, cached=32)], Routed(0, 0)) == 2
    # Two families of prompts in two caches: each request of a family finds what the first of it has computed.
    families = [0, 1, 1, 0, 1, 0]
    contents = Contents(np.arange(7) * 2, np.array([n for f in families for n in (2 * f, 2 * f + 1)]))
    times = np.arange(6) * 10.0
    made = served(times, [9] * 6, [2] * 6, num_replicas=2, router="prefix_affinity", is_caching=True, contents=contents)
    assert made.requests["replica"].tolist() == [0, 0, 0, 0, 0, 0]  # nobody waits, so the first serves both families
    busy = served(times * 0.01, [9] * 6, [2] * 6, num_replicas=2, router="prefix_affinity", is_caching=True,
                  contents=contents)  # fmt: skip
    assert busy.requests["replica"].tolist() == families
    assert busy.requests["num_cached"].tolist() == [0, 0, 8, 8, 8, 8]


def test_adapter_affinity_brings_an_adapter_s_requests_together_within_a_bound():
    """Loads 3, 1 and 1: with this request 6 in all, 2 each, so that 2.5, rounded up 3, is the most."""
    stands = [Stand(3, of_adapter=(0, 3)), Stand(1, of_adapter=(0, 1)), Stand(1, of_adapter=(1, 0))]
    assert adapter_affinity(stands, Routed(0, 0, adapter=1)) == 1
    assert adapter_affinity(stands, Routed(0, 0, adapter=0)) == 2
    stands[0].num_outstanding = 2
    # 5 in all: 2.08, rounded up 3.
    assert adapter_affinity(stands, Routed(0, 0, adapter=1)) == 0
    assert adapter_affinity([Stand(7, of_adapter=(0,))], Routed(0, 0)) == 0


def test_adapter_affinity_mixes_fewer_adapters():
    """Four adapters on four replicas, served for long: in turn each replica has all of them, together each has few."""
    rng = np.random.default_rng(1)
    num = 400
    adapter = rng.integers(1, 5, num)
    load = np.cumsum(rng.exponential(2.0, num)), [1] * num, [60] * num
    kinds = {}
    for router in ("round_robin", "adapter_affinity"):
        made = served(*load, num_replicas=4, router=router, adapter=adapter, num_blocks=1000)
        rows = made.requests
        mixed = []
        for at_s in np.arange(100.0, 700.0, 10.0):
            is_on = (rows["scheduled_s"] <= at_s) & (rows["finished_s"] > at_s)
            mixed += [len(np.unique(rows["adapter"][is_on & (rows["replica"] == i)])) for i in range(4)]
        kinds[router] = np.mean(mixed)
    assert kinds["adapter_affinity"] < 0.75 * kinds["round_robin"]
