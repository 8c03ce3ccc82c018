"""Adapters that come and go, by hand. A step takes 1 s; a load 10 s and an eviction 3 s, unless said otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from serving_parts import served, tokens_of

from sim.serving.accounts import LOADS
from sim.serving.residency import Residency


def residency(capacity, num=3, size=None, is_overlapped=False, load_s=10.0, evict_s=3.0):
    return Residency(
        capacity, tuple(size or [1] * num), (load_s,) * num, (evict_s,) * num, is_overlapped
    )


def run(arrivals, outputs, adapters, holds, **options):
    options = {"max_num_seqs": 8} | options
    num = len(arrivals)
    made = served(arrivals, [4] * num, outputs, adapter=np.array(adapters), residency=holds, **options)
    split = made.time_split()
    total_s = sum(split[name] for name in split if name.endswith("_s") and name != "e2e_s")
    assert total_s == pytest.approx(split["e2e_s"], rel=1e-9)
    return made


@pytest.mark.parametrize("is_overlapped", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_cold_adapter_comes_first(is_overlapped, is_async):
    """Of two adapters one has room, the first. TTFT of one request for the second = eviction + load + prefill."""
    made = run([5.0], [2], [2], residency(1, 2, is_overlapped=is_overlapped), is_async=is_async)
    assert tokens_of(made, 0) == [5 + 3 + 10 + 1, 20]
    metrics = made.metrics()
    assert (metrics["adapter_loads"], metrics["adapter_evictions"], metrics["adapter_hit_rate"]) == (1, 1, 0.0)
    assert (metrics["adapter_load_s"], metrics["adapter_evict_s"]) == (10.0, 3.0)
    assert (metrics["mean_adapter_load_ms"], metrics["mean_queue_ms"]) == (pytest.approx(13_000), 0.0)
    loads_s = {what: seconds for (what, _), seconds in made.time_by_source().items()}.get(LOADS)
    assert loads_s == (None if is_overlapped else 13.0)


def test_the_adapters_of_the_beginning_cost_nothing():
    made = run([0.0, 50.0], [2, 2], [2, 1], residency(2))
    assert tokens_of(made, 0) == [1, 2]
    assert tokens_of(made, 1) == [51, 52]
    assert made.metrics()["adapter_hit_rate"] == 1.0


def test_blocking_stops_everybody_and_overlapped_nobody():
    """Adapter 1 is there and in use; a request for adapter 3 comes at 1.5 s, when there is room for it without any
    eviction. Blocking: it joins at 2 s, and the step that it joins ends at 2 + 10 + 1. Overlapped: the load begins when
    the batch of 2 s is formed, and is over at 12 s; the other goes on step by step, and the two go on together."""
    holds = {"capacity": 7, "size": [1, 7, 2]}
    blocking = run([0.0, 1.5], [20, 2], [1, 3], residency(**holds))
    assert tokens_of(blocking, 0) == [1, 2, 13, *range(14, 31)]
    assert tokens_of(blocking, 1) == [13, 14]
    overlapped = run([0.0, 1.5], [20, 2], [1, 3], residency(**holds, is_overlapped=True))
    assert tokens_of(overlapped, 0) == list(range(1, 21))
    assert tokens_of(overlapped, 1) == [13, 14]
    # Half a second in the queue, and its load; the other's 10 s in the step of the load are loading too.
    for made, of_the_other_s in ((blocking, 10.0), (overlapped, 0.0)):
        split = made.time_split()
        assert split["queue_s"].tolist() == [0.0, 0.5]
        assert split["adapter_load_s"].tolist() == [of_the_other_s, 10.0]


def test_who_waits_for_an_adapter_is_passed():
    """One place, in use until 5 s by request 0. Request 1 wants another adapter: it cannot have it. Requests 2, for the
    one that is there, and 3, for the base, pass. When all of the first adapter's are done, at 6 s, the base's goes on
    beside the load."""
    arrivals, outputs, adapters = [0.0, 0.5, 1.5, 1.5], [5, 1, 4, 30], [1, 2, 1, 0]
    made = run(arrivals, outputs, adapters, residency(1, is_overlapped=True))
    assert made.requests["scheduled_s"].tolist() == [0.0, 6 + 3 + 10, 2.0, 2.0]
    assert tokens_of(made, 3) == list(range(3, 33))
    blocking = run(arrivals, outputs, adapters, residency(1))
    assert blocking.requests["scheduled_s"].tolist() == [0.0, 6.0, 2.0, 2.0]
    assert tokens_of(blocking, 1) == [6 + 3 + 10 + 1]


def test_the_one_left_longest_ago_goes():
    """Two places. Where 1 is used after 2, 3 takes the place of 2, and 1 is still there; where 2 is used after 1, 3
    takes the place of 1, which has to be loaded again."""
    made = run([0.0, 100.0, 200.0, 300.0, 400.0], [1] * 5, [1, 2, 1, 3, 1], residency(2))
    assert made.metrics()["adapter_loads"] == 1
    assert tokens_of(made, 4) == [401]
    made = run([0.0, 100.0, 200.0, 300.0], [1] * 4, [1, 2, 3, 1], residency(2))
    assert made.metrics()["adapter_loads"] == 2


def test_as_many_go_as_the_new_one_needs():
    """Three of 2 pages each are there in a pool of 7; one of 5 takes the place of two of them, after 3 + 3 s."""
    made = run([0.0], [1], [4], residency(7, 4, size=[2, 2, 2, 5]))
    assert tokens_of(made, 0) == [6 + 10 + 1]
    assert made.metrics()["adapter_evictions"] == 2


def test_loads_beside_the_steps_take_turns():
    """Three requests for three adapters that are not there, and room for all: ready after 10, 20 and 30 s."""
    made = run([0.0] * 3, [1] * 3, [2, 3, 4], residency(9, 4, size=[7, 3, 3, 3], is_overlapped=True, evict_s=0.0))
    assert made.requests["first_token_s"].tolist() == [11.0, 21.0, 31.0]
    assert made.time_split()["adapter_load_s"].tolist() == [10.0, 10.0, 10.0]
    assert made.time_split()["queue_s"].tolist() == [0.0, 10.0, 20.0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="from 1 to the capacity, 2"):
        Residency(2, (1, 3), (1.0, 1.0), (0.0, 0.0))
    with pytest.raises(ValueError, match="loads take time"):
        Residency(2, (1, 1), (1.0, 0.0), (0.0, 0.0))
