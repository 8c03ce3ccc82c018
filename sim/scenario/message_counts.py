"""How many messages a workload makes, before any is made: what memory or the counters cannot hold is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.units import format_bytes
from sim.scenario.cluster import Where
from sim.scenario.traffic import AllToAll, Collective, Incast, Permutation, Shift, Training, Workload

MOST_MESSAGES = 1 << 24
"""Of one repetition, each queue pair of a traffic flow counted: as many as an all-to-all among 4,096 ranks has."""

MOST_BYTES = 1 << 60
"""Of all repetitions: byte counters have 63 bits, and several workloads add up in them."""


def count_problems(workload: Workload, ranks: Sequence[int], host_of: Sequence[int]) -> Iterator[tuple[Where, str]]:
    """A workload that makes too many messages or bytes, as (path below the workload, sentence).

    Files and Poisson traffic are not counted here: how many flows they have shows when they are read or drawn.
    """
    n = len(ranks)
    if isinstance(workload, Collective | Training):
        num_hosts = len({host_of[rank] for rank in ranks})
        messages = collective_messages(workload, n, num_hosts)
        # No algorithm moves more than an all-reduce does, 2 (n - 1) times its size.
        num_bytes = 2 * n * workload.size_bytes * (workload.repeat if isinstance(workload, Collective) else 1)
        if messages > MOST_MESSAGES:
            fewer = collective_messages(workload.model_copy(update={"chunk_bytes": 1 << 62}), n, num_hosts)
            yield _too_many_messages(workload, messages, fewer)
    elif isinstance(workload, Permutation | Shift | Incast | AllToAll):
        flows = {AllToAll: n * (n - 1), Incast: getattr(workload, "fan_in", None) or n - 1}.get(type(workload), n)
        messages = flows * workload.queue_pairs
        num_bytes = flows * workload.size_per_flow_bytes * workload.repeat
        if messages > MOST_MESSAGES:
            yield (
                ("queue_pairs" if workload.queue_pairs > 1 else "ranks",),
                f"{flows} flows on {workload.queue_pairs} queue pairs each are more than {MOST_MESSAGES}; give fewer "
                f"{'queue pairs' if flows <= MOST_MESSAGES else 'ranks'}",
            )
    else:
        return
    if num_bytes > MOST_BYTES:
        key = "size" if isinstance(workload, Collective | Training) else "size_per_flow"
        yield (
            (key,),
            f"it moves up to {format_bytes(num_bytes)} in all, more than the {format_bytes(MOST_BYTES)} that the "
            "counters hold; make it smaller, or repeat it less",
        )


def _too_many_messages(workload: Collective | Training, messages: int, in_one_chunk: int) -> tuple[Where, str]:
    size = workload.size_bytes
    makes = f"{workload.operation} with {workload.algorithm} makes {messages} messages, more than {MOST_MESSAGES}"
    if in_one_chunk >= messages or in_one_chunk > MOST_MESSAGES:
        return ("ranks",), f"{makes}; choose fewer ranks, or another algorithm"
    least = -(-size // (MOST_MESSAGES // in_one_chunk))
    return ("chunk",), f"{makes}; make the chunk at least {least} B"


def collective_messages(workload: Collective | Training, num_ranks: int, num_hosts: int) -> int:
    """Messages of one repetition, joins included."""
    n, size = num_ranks, workload.size_bytes
    if not workload.hierarchical or n == 1:
        return _flat(workload, n, size)
    local = n // num_hosts
    inside = num_hosts * local * (local - 1)
    if workload.operation == "all_to_all":
        across = num_hosts * (num_hosts - 1) * local
    else:
        parts = [size // local + (i < size % local) for i in range(local)]
        across = sum(_flat(workload, num_hosts, part) for part in parts)
    phases = [inside, across, inside] if workload.operation == "all_reduce" else [inside, across]
    # Between two phases that send anything, every rank joins what it received.
    num_joins = n * max(0, sum(phase > 0 for phase in phases) - 1)
    return sum(phases) + num_joins


def _flat(workload: Collective | Training, n: int, size: int) -> int:
    """Without hierarchy; the formulas are those of the docstrings in sim.collectives."""
    from sim.collectives.plan import DEFAULT_CHUNK_BYTES

    if n == 1:
        return 0
    reduces_too = 2 if workload.operation == "all_reduce" else 1
    chunk = workload.chunk_bytes or DEFAULT_CHUNK_BYTES
    if workload.algorithm == "halving_doubling":
        return reduces_too * n * (n.bit_length() - 1)
    if workload.algorithm == "double_binary_tree":
        halves = [size - size // 2, size // 2]
        return sum(reduces_too * (n - 1) * -(-half // chunk) for half in halves) or reduces_too * (n - 1)
    if workload.operation == "broadcast":
        return (n - 1) * max(1, -(-size // chunk))
    if workload.operation == "send_recv":
        return n
    joins = n if (workload.operation, workload.algorithm) == ("all_reduce", "direct") else 0
    return reduces_too * n * (n - 1) + joins
