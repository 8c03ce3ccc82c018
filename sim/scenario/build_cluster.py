"""From the cluster of a scenario to its topology."""

from __future__ import annotations

from dataclasses import replace

from models.hardware import ACCELERATORS, Accelerator
from sim.fabric.topology import HostKind, Link, LinkOverride, Topology, fat_tree, leaf_spine
from sim.scenario.cluster import Cluster, Host
from sim.scenario.fabrics import FatTree
from sim.scenario.fabrics import Link as LinkSchema


def build_topology(cluster: Cluster) -> Topology:
    f = cluster.tree
    hosts = [_host_kind(kind, count) for kind, count in cluster.host_groups]
    overrides = {o.link: LinkOverride(o.rate_bytes_per_s, o.latency_s) for o in f.links}
    if isinstance(f, FatTree):
        return fat_tree(
            pods=f.pods, edges_per_pod=f.edges_per_pod, aggregations_per_pod=f.aggregations_per_pod, cores=f.cores,
            hosts_per_edge=f.hosts_per_edge, host_link=_link(f.host_link), edge_link=_link(f.edge_link),
            core_link=_link(f.core_link), edge_lanes=f.edge_lanes, core_lanes=f.core_lanes, hosts=hosts,
            overrides=overrides,
        )  # fmt: skip
    return leaf_spine(
        leaves=f.leaves, spines=f.spines, hosts_per_leaf=f.hosts_per_leaf, host_link=_link(f.host_link),
        spine_link=_link(f.spine_link), hosts=hosts, lanes=f.lanes, planes=f.planes, attach=f.attach,
        overrides=overrides,
    )  # fmt: skip


def _link(link: LinkSchema) -> Link:
    return Link(link.rate_bytes_per_s, link.latency_s)


def accelerator_of(host: Host) -> Accelerator:
    """The preset, with the host's own figures of NVLink and PCIe where the scenario gives them."""
    preset = ACCELERATORS[host.accelerator]
    rate, latency = host.nvlink.rate_bytes_per_s, host.nvlink.latency_s
    pcie = host.pcie
    return replace(
        preset,
        nvlink_bytes_per_s=preset.nvlink_bytes_per_s if rate is None else rate,
        nvlink_latency_s=preset.nvlink_latency_s if latency is None else latency,
        pcie_bytes_per_s=preset.pcie_bytes_per_s if pcie.rate_bytes_per_s is None else pcie.rate_bytes_per_s,
        pcie_copy_s=preset.pcie_copy_s if pcie.copy_time_s is None else pcie.copy_time_s,
    )


def _host_kind(host: Host, count: int) -> HostKind:
    accelerator = accelerator_of(host)
    return HostKind(
        count,
        host.accelerators,
        host.nics,
        Link(accelerator.nvlink_bytes_per_s, accelerator.nvlink_latency_s),
        host.nic.injection_rate_bytes_per_s,
        host.nic.message_overhead_s,
        host.nic.segment_bytes,
        getattr(host, "name", "host"),
        host.accelerator,
    )
