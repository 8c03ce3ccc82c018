"""Hierarchical forms: the bytes travel inside the host first or last, and cross hosts on rails.

A rail connects the ranks with the same index inside their hosts. `grid[h, l]` is the rank with local index
l in host h. Inside a host, ranks exchange directly (an NVLink switch connects all pairs at full rate);
across hosts, the chosen algorithm runs on every rail at once, each on its part of the vector.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.collectives import direct
from sim.collectives.plan import (
    COPY,
    CollectiveError,
    Plan,
    block_offsets,
    concatenate,
    in_sequence,
    place,
    plan,
    tile,
)
from sim.fabric.messages import Int64

PlanBuilder = Callable[[int, int], Plan]
"""(number of ranks, size in bytes) → plan."""


def host_grid(ranks: Int64, host_of_accelerator: Int64) -> Int64:
    """Ranks (indices into `ranks`) by host and index in the host: [hosts, ranks per host].

    Hosts come in order of their first rank. Raises CollectiveError when hosts hold unequal numbers of ranks.
    """
    hosts, first, host_of_rank, counts = np.unique(
        np.asarray(host_of_accelerator)[ranks], return_index=True, return_inverse=True, return_counts=True
    )
    if counts.min() != counts.max():
        few, many = int(np.argmin(counts)), int(np.argmax(counts))
        raise CollectiveError(
            f"a hierarchical collective needs equally many ranks on every host, but host {hosts[few]} has "
            f"{counts[few]} and host {hosts[many]} has {counts[many]}: choose other ranks or leave it off"
        )
    grid = np.argsort(host_of_rank, kind="stable").reshape(len(hosts), -1)
    return grid[np.argsort(first)]


def all_reduce(grid: Int64, size_bytes: int, across: PlanBuilder) -> Plan:
    """Reduce-scatter inside the host, all-reduce of each part on its rail, all-gather inside the host."""
    locals_ = grid.shape[1]
    inside = tile(direct.reduce_scatter(locals_, size_bytes), grid)
    back = tile(direct.all_gather(locals_, size_bytes), grid)
    return in_sequence([inside, _on_rails(grid, size_bytes, across), back], grid.size)


def reduce_scatter(grid: Int64, size_bytes: int, across: PlanBuilder) -> Plan:
    """Reduce-scatter inside the host, then on the rails: rank (h, l) ends with part h of part l."""
    inside = tile(direct.reduce_scatter(grid.shape[1], size_bytes), grid)
    return in_sequence([inside, _on_rails(grid, size_bytes, across)], grid.size)


def all_gather(grid: Int64, size_bytes: int, across: PlanBuilder) -> Plan:
    """All-gather on the rails, then inside the host: rank (h, l) starts with part h of part l."""
    inside = tile(direct.all_gather(grid.shape[1], size_bytes), grid)
    return in_sequence([_on_rails(grid, size_bytes, across), inside], grid.size)


def all_to_all(grid: Int64, size_bytes: int, across: PlanBuilder) -> Plan:
    """Inside the host to the rank on the destination's rail, then one message per host along that rail.

    Rank (h, a) hands (h, b) its blocks for local index b of every host; (h, b) sends host g what all ranks
    of h have for (g, b). Messages carry many blocks, so first_byte says nothing here and is 0. `across` is
    not used: the exchange on a rail is direct.
    """
    hosts, locals_ = grid.shape
    block = np.diff(block_offsets(size_bytes, grid.size))
    sources, destinations = direct.rotated_pairs(locals_)
    per_local = block[grid].sum(axis=0)
    inside = plan(
        grid[:, sources],
        grid[:, destinations],
        np.broadcast_to(per_local[destinations], (hosts, len(sources))),
        np.zeros((hosts, len(sources))),
        COPY,
    )
    source_hosts, destination_hosts = direct.rotated_pairs(hosts)
    rails = plan(
        grid[source_hosts],
        grid[destination_hosts],
        locals_ * block[grid[destination_hosts]],
        np.zeros((len(source_hosts), locals_)),
        COPY,
    )
    return in_sequence([inside, rails], grid.size)


def _on_rails(grid: Int64, size_bytes: int, across: PlanBuilder) -> Plan:
    """The algorithm among the hosts on every rail, rail l on the l-th part of the vector."""
    hosts, locals_ = grid.shape
    parts = block_offsets(size_bytes, locals_)
    return concatenate(
        [
            place(across(hosts, int(parts[rail + 1] - parts[rail])), grid[:, rail], int(parts[rail]))
            for rail in range(locals_)
        ]
    )


HIERARCHICAL: dict[str, Callable[[Int64, int, PlanBuilder], Plan]] = {
    "all_reduce": all_reduce,
    "reduce_scatter": reduce_scatter,
    "all_gather": all_gather,
    "all_to_all": all_to_all,
}
