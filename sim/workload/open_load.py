"""Poisson traffic at a stated load, and how long its flows would take on an empty fabric."""

from __future__ import annotations

import math

import numpy as np

from sim.fabric.messages import Float64, Int64, MessageGraph, message_graph
from sim.fabric.topology import FAR, SAME_LEAF, SAME_POD, Topology
from sim.workload.patterns import PatternError
from sim.workload.sizes import SizeLaw, mean_wire_bytes, wire_bytes

MAX_EXPECTED_FLOWS = 1 << 24
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
    if count == 0:
        raise PatternError(
            f"no flow arrives: {expected:.3g} are expected in {duration_s:g} s; raise the duration or the load, or "
            "make sizes smaller"
        )
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
    graph: MessageGraph, topology: Topology, *, mtu_bytes: int = 4096, header_bytes: int = 64
) -> Float64:
    """Flow completion times on an idle fabric, each flow whole on the single path that is best for it:

        NIC's overhead + min over paths of (latency + wire bytes / rate of the slowest link on the path)

    A path runs out of the NIC (its injection and segmentation ceiling included) by one port, over one plane,
    and into the NIC; inside a host, over NVLink. So with several planes the ideal uses one of them, whatever
    the policy: a lone flow under ecmp has slowdown 1 where paths are equal, and one that is sprayed, or
    striped over several queue pairs, has less than 1 where a path is narrower than what the NIC can send.

    Leaves out: store-and-forward of the first packet at each switch; paths that come down on another lane than
    they went up.
    """
    ideal_s = np.zeros(graph.num_messages)
    wire = wire_bytes(graph.size_bytes, mtu_bytes, header_bytes)
    a, b = graph.source, graph.destination
    nic_a, nic_b = topology.nic_of_accelerator[a], topology.nic_of_accelerator[b]
    leaf_a, leaf_b = topology.leaf_of_nic[nic_a], topology.leaf_of_nic[nic_b]
    is_inside = topology.host_of_accelerator[a] == topology.host_of_accelerator[b]
    same_pod = topology.pod_of_leaf[leaf_a] == topology.pod_of_leaf[leaf_b]
    scope = np.where(leaf_a == leaf_b, SAME_LEAF, np.where(same_pod, SAME_POD, FAR))
    segments = _Segments(topology)
    i = np.flatnonzero(is_inside & (a != b))
    ideal_s[i] = segments.time_s(wire[i], topology.nvlink_up[a[i]], topology.nvlink_down[b[i]])
    for kind in (SAME_LEAF, SAME_POD, FAR):
        i = np.flatnonzero(~is_inside & (scope == kind))
        if len(i) == 0:
            continue
        best_s = np.full(len(i), np.inf)
        for path in segments.different_paths(kind):
            plane = topology.scopes[kind].plane[path]
            route = [topology.nic_up[nic_a[i]] + plane, topology.nic_down[nic_b[i]] + plane]
            if kind != SAME_LEAF:
                route += [topology.leaf_up[leaf_a[i], kind] + path, topology.leaf_down[leaf_b[i], kind] + path]
            best_s = np.minimum(best_s, segments.time_s(wire[i], *route))
        ideal_s[i] = topology.nic_overhead_s[nic_a[i]] + best_s
    return ideal_s


class _Segments:
    """What a lone flow gets from the segments of a topology, each taken whole."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        rate = topology.link_rate[topology.segment_link] / topology.segment_share
        self._bytes_per_s = np.minimum.reduceat(rate, topology.segment_start[:-1])

    def time_s(self, wire: Int64, *route: Int64) -> Float64:
        """Latency of the route + wire bytes / rate of its slowest segment."""
        latency_s = np.sum([self._topology.segment_latency_s[segment] for segment in route], axis=0)
        return latency_s + wire / np.min([self._bytes_per_s[segment] for segment in route], axis=0)

    def different_paths(self, scope: int) -> Int64:
        """One path number of each sort: paths with the same rates and latencies everywhere are one sort."""
        t = self._topology
        number = np.arange(t.scopes[scope].num_paths)
        ports = self._sorts(np.concatenate([t.nic_up, t.nic_down]), np.arange(t.num_planes))
        sort = ports[t.scopes[scope].plane[number]]
        if scope != SAME_LEAF:
            firsts = np.concatenate([table[table[:, scope] >= 0, scope] for table in (t.leaf_up, t.leaf_down)])
            sort = sort * len(number) + self._sorts(firsts, number)
        return np.unique(sort, return_index=True)[1]

    def _sorts(self, first: Int64, offset: Int64) -> Int64:
        """[offsets] Equal numbers where the segments first + offset are equal, for every first."""
        segment = first[:, None] + offset
        traits = np.concatenate([self._bytes_per_s[segment], self._topology.segment_latency_s[segment]])
        return np.unique(traits, axis=1, return_inverse=True)[1].ravel()
