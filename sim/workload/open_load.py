"""Poisson traffic at a stated load, and how long its flows would take on an empty fabric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from sim.fabric.messages import Float64, Int64, MessageGraph, message_graph
from sim.workload.patterns import PatternError
from sim.workload.sizes import SizeLaw, mean_wire_bytes, wire_bytes

MAX_EXPECTED_FLOWS = 50_000_000
"""Above this, the flows alone would take gigabytes: refused."""


def poisson(
    ranks: Int64,
    law: SizeLaw,
    *,
    load: float,
    duration_s: float,
    total_host_link_bytes_per_s: float,
    host_of_accelerator: Int64,
    rng: np.random.Generator,
    mtu_bytes: int = 4096,
    header_bytes: int = 64,
    queue_pairs: int = 1,
    owner: str = "",
) -> MessageGraph:
    """Flows that arrive at random, between random ranks on different hosts, for `duration_s`.

    load = offered wire bytes/s ÷ Σ host-link rates, so flows arrive at rate
        load · total_host_link_bytes_per_s / E[wire bytes of a flow]
    whose expectation includes the headers exactly. Sources and destinations are drawn evenly from all
    ordered pairs of ranks on two hosts. Messages are in order of arrival.

    total_host_link_bytes_per_s   sum over the links that connect the ranks' hosts, one direction
    Raises PatternError when there are no two hosts, a number makes no sense, or there would be too many
    flows.
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    host = np.asarray(host_of_accelerator)[ranks]
    if len(np.unique(host)) < 2:
        raise PatternError("poisson traffic needs ranks on at least two hosts")
    if not (math.isfinite(load) and load > 0):
        raise PatternError(f"load is {load}; give a number above 0 (1 fills all host links)")
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise PatternError(f"duration is {duration_s} s; give a time above 0")
    flows_per_s = load * total_host_link_bytes_per_s / mean_wire_bytes(law, mtu_bytes, header_bytes)
    expected = flows_per_s * duration_s
    if expected > MAX_EXPECTED_FLOWS:
        raise PatternError(
            f"about {expected:.3g} flows in {duration_s:g} s: shorten the duration or enlarge sizes"
        )
    count = int(rng.poisson(expected))
    arrival_s = np.sort(rng.random(count)) * duration_s
    source = rng.integers(len(ranks), size=count)
    destination = rng.integers(len(ranks), size=count)
    clash = np.flatnonzero(host[source] == host[destination])
    while len(clash):
        source[clash] = rng.integers(len(ranks), size=len(clash))
        destination[clash] = rng.integers(len(ranks), size=len(clash))
        clash = clash[host[source[clash]] == host[destination[clash]]]
    return message_graph(
        ranks[source],
        ranks[destination],
        law.draw(rng, count),
        earliest_s=arrival_s,
        queue_pairs=queue_pairs,
        owner=owner,
    )


def ideal_fct_s(
    graph: MessageGraph,
    *,
    host_bytes_per_s: Float64,
    latency_s: ArrayLike,
    mtu_bytes: int = 4096,
    header_bytes: int = 64,
) -> Float64:
    """Flow completion times on an empty fabric: latency + wire bytes / rate of the slower of its two host
    links.

    host_bytes_per_s   [accelerators] rate of each accelerator's host link
    latency_s          of the path, one for all messages or one each
    Leaves out store-and-forward of the first packet at each switch.
    """
    slower = np.minimum(host_bytes_per_s[graph.source], host_bytes_per_s[graph.destination])
    return np.asarray(latency_s) + wire_bytes(graph.size_bytes, mtu_bytes, header_bytes) / slower
