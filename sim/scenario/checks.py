"""Whether a workload fits its cluster: its ranks are there, its pattern or algorithm exists among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from sim.scenario.cluster import Cluster, Where
from sim.scenario.fabrics import LeafSpine
from sim.scenario.message_counts import count_problems
from sim.scenario.serving import Serving
from sim.scenario.traffic import Collective, Incast, Permutation, Shift, Training, Workload

Problems = Iterator[tuple[Where, str]]


def workload_problems(
    cluster: Cluster, workload: Workload, ranks: Sequence[int], host_of: Sequence[int], leaf_of: Sequence[int]
) -> Problems:
    """What does not fit, as (path below the workload, sentence).

    host_of: of every accelerator; leaf_of: of its host, as `cluster.hosts_and_leaves` gives them.
    """
    last = cluster.num_accelerators - 1
    has_pools = isinstance(workload, Serving) and workload.disaggregation is not None and workload.ranks is None
    if isinstance(workload, Serving) and workload.ranks is None and workload.num_accelerators > last + 1:
        at = ("disaggregation",) if has_pools else ("replicas",) if workload.autoscale is None else ("autoscale", "max")
        yield at, f"{_needs(workload)}, but the cluster has {last + 1}; have fewer replicas, or more hosts"
        return
    beyond = [rank for rank in ranks if rank > last]
    if beyond:
        at_ranks = "disaggregation" if has_pools else "ranks"
        yield (at_ranks,), f"rank {beyond[0]} is not in the cluster, whose accelerators are 0 … {last}"
        return
    if isinstance(workload, Serving):
        yield from _serving_problems(workload, ranks, host_of)
    elif len(ranks) < 2:
        yield ("ranks",), "one rank has nobody to talk to; give at least 2"
    elif too_large := list(count_problems(workload, ranks, host_of)):
        yield from too_large
    elif isinstance(workload, Incast):
        yield from _incast_problems(workload, len(ranks))
    elif isinstance(workload, Collective | Training):
        yield from _collective_problems(workload, ranks, host_of)
    elif isinstance(workload, Shift | Permutation):
        yield from _crossing_problems(cluster, workload, Counter(leaf_of[rank] for rank in ranks))


def _incast_problems(workload: Incast, num_ranks: int) -> Problems:
    if workload.receiver >= num_ranks:
        yield ("receiver",), f"receiver {workload.receiver} is not among the ranks, 0 … {num_ranks - 1}"
    if workload.fan_in is not None and workload.fan_in > num_ranks - 1:
        yield ("fan_in",), f"fan_in is {workload.fan_in}, but only {num_ranks - 1} other ranks can send"


def _crossing_problems(cluster: Cluster, workload: Shift | Permutation, ranks_on: Counter[int]) -> Problems:
    """Patterns that go from leaf to leaf; ranks_on: how many ranks each leaf has, by the leaf of their host."""
    if isinstance(workload, Permutation) and not workload.cross_leaf:
        return
    fabric = cluster.tree
    if len(ranks_on) == 1 and isinstance(fabric, LeafSpine) and fabric.attach == "rail":
        rails = cluster.host_groups[0][0].nics
        yield (
            ("pattern",),
            f"attach: rail puts each host on {rails} leaves, and all ranks are in hosts on the same {rails}: there "
            f"is no other group of hosts to send to; give the fabric {2 * rails} leaves or more, or ranks in more "
            "groups" + (", or cross_leaf: false" if isinstance(workload, Permutation) else ""),
        )
    elif isinstance(workload, Shift):
        yield from _shift_problems(workload, ranks_on)
    else:
        leaf, most = ranks_on.most_common(1)[0]
        if 2 * most > ranks_on.total():
            yield (
                ("cross_leaf",),
                f"leaf {leaf} has {most} of {ranks_on.total()} ranks, so not every pair can cross leaves; choose "
                "ranks on more leaves, or cross_leaf: false",
            )


def _shift_problems(workload: Shift, ranks_on: Counter[int]) -> Problems:
    if len(set(ranks_on.values())) > 1:
        (many, most), (few, fewest) = ranks_on.most_common()[0], ranks_on.most_common()[-1]
        yield (
            ("ranks",),
            f"a shift needs equally many ranks on every leaf, but leaf {few} has {fewest} and leaf {many} "
            f"has {most}; choose other ranks",
        )
    elif workload.leaves_by % len(ranks_on) == 0:
        yield (
            ("leaves_by",),
            f"a shift by {workload.leaves_by} among {len(ranks_on)} leaves leads back to the own leaf; "
            "choose another leaves_by, or ranks on more leaves",
        )


def _collective_problems(
    workload: Collective | Training, ranks: Sequence[int], host_of: Sequence[int]
) -> Problems:
    n = len(ranks)
    ranks_on = Counter(host_of[rank] for rank in ranks)
    across = len(ranks_on) if workload.hierarchical else n
    if workload.algorithm == "halving_doubling" and across & (across - 1):
        what = "hosts" if workload.hierarchical else "ranks"
        below = 1 << (across.bit_length() - 1)
        yield (
            ("algorithm",),
            f"halving_doubling needs a power of two of {what}, got {across}; use {below}, or algorithm: ring",
        )
    if workload.hierarchical and len(set(ranks_on.values())) > 1:
        (many, most), (few, fewest) = ranks_on.most_common()[0], ranks_on.most_common()[-1]
        yield (
            ("hierarchical",),
            f"needs equally many ranks on every host, but host {few} has {fewest} and host {many} has "
            f"{most}; choose other ranks, or hierarchical: false",
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _needs(workload: Serving) -> str:
    replicas = " and ".join(
        f"{_count(pool.most_replicas, 'replica')} of {_count(pool.parallelism.num_accelerators, 'accelerator')} "
        f"(tensor {pool.parallelism.tensor}, expert {pool.parallelism.expert}"
        f"{f', pipeline {pool.parallelism.pipeline}' if pool.parallelism.pipeline > 1 else ''})"
        for _, pool in workload.pools
    )  # fmt: skip
    return f"{replicas} need {workload.num_accelerators}"


def _serving_problems(
    workload: Serving, ranks: Sequence[int], host_of: Sequence[int], is_pool: bool = False
) -> Problems:
    if workload.disaggregation is not None:
        if len(ranks) != workload.num_accelerators and workload.ranks is not None:
            yield ("ranks",), f"{_needs(workload)}, but ranks are {len(ranks)}; give as many as are needed"
            return
        for where, pool in workload.pools:
            for path, sentence in _serving_problems(pool, pool.own_ranks, host_of, is_pool=True):
                yield (*where, *path), sentence
        return
    if len(ranks) != workload.num_accelerators:
        yield ("ranks",), f"{_needs(workload)}, but ranks are {len(ranks)}; give as many as are needed"
        return
    tensor = workload.parallelism.tensor
    shapes = set()
    for first in range(0, len(ranks), tensor):
        group = ranks[first : first + tensor]
        runs = [len(list(run)) for _, run in groupby(host_of[rank] for rank in group)]
        shapes.add(tuple(runs))
        if len(set(runs)) > 1 or len(shapes) > 1 or len({host_of[rank] for rank in group}) < len(runs):
            yield (
                ("parallelism", "tensor"),
                f"tensor degree {tensor}: ranks {group[0]} … {group[-1]} lie on several hosts, "
                f"{' and '.join(map(str, runs))} in turn; a tensor-parallel group lies inside one host, or on equally "
                "many ranks of each of several, and all groups alike",
            )
            return
    if len(shapes.pop()) > 1:
        for at, thing in _inside_one_host(workload, is_pool):
            yield at, f"{thing} with tensor-parallel ranks on several hosts; keep tensor inside one, or leave it out"


def _inside_one_host(workload: Serving, is_pool: bool) -> Problems:
    """What is only there where tensor-parallel ranks lie on one host."""
    degrees = workload.parallelism
    cases: list[tuple[Where, str, bool]] = [
        (("parallelism", "tensor"), "prefill and decode are not apart", is_pool),
        (("parallelism", "expert"), "experts do not lie on ranks of their own", degrees.expert > 1),
        (("parallelism", "pipeline"), "layers are not cut into stages", degrees.pipeline > 1),
        (("adapters",), "adapters are not there", workload.adapters is not None),
        (("batching", "preemption"), "blocks are not swapped", workload.batching.preemption == "swap"),
        (("batching", "speculative"), "tokens are not drafted", workload.batching.speculative is not None),
    ]
    yield from ((where, thing) for where, thing, is_there in cases if is_there)


def crosses_fabric(cluster: Cluster, workload: Serving, ranks: Sequence[int]) -> bool:
    """Whether a step of its replicas may send messages between hosts."""
    degrees = workload.parallelism
    host_of, _ = cluster.hosts_and_leaves()
    return degrees.expert > 1 or degrees.pipeline > 1 or len({host_of[rank] for rank in ranks[: degrees.tensor]}) > 1


def serving_overlaps(cluster: Cluster, workloads: Sequence[Workload], ranks: Sequence[Sequence[int]]) -> Problems:
    """Serving workloads on one accelerator: each plans for its whole memory, and none waits for the other."""
    serves: dict[int, str] = {}
    for i, workload in enumerate(workloads):
        if not isinstance(workload, Serving):
            continue
        shared = [rank for rank in ranks[i] if rank in serves]
        serves = {**dict.fromkeys(ranks[i], workload.name), **serves}
        if shared:
            free = _free_ranks(cluster, workload, set().union(*ranks[:i]) if i else set())
            yield (
                ("workloads", i, "ranks"),
                f"accelerator {shared[0]} serves '{serves[shared[0]]}' too, and each would take all of its memory and "
                f"time; {free}",
            )


def _free_ranks(cluster: Cluster, workload: Serving, taken: set[int]) -> str:
    """Where there is room: a run of free accelerators that begins where a tensor-parallel group may."""
    n, step = workload.num_accelerators, max(pool.parallelism.num_accelerators for _, pool in workload.pools)
    for first in range(0, cluster.num_accelerators - n + 1, step):
        if taken.isdisjoint(range(first, first + n)):
            shown = f"[{first}]" if n == 1 else f"'{first}-{first + n - 1}'"
            return f"give it its own, for example ranks: {shown}"
    return f"give each its own ranks, and the cluster room for {n} more accelerators"
