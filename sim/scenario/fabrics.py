"""The fabrics of a scenario: leaf-spines, fat trees, and files of htsim that describe one of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from sim.scenario.quantities import BytesPerS, Count, InputFile, Part, Seconds, Text, refused
from sim.scenario.topo_file import TopoFile, read_topo
from sim.workload.flow_file import TrafficFileError

MOST_LINKS = 1 << 22


class Link(Part):
    """A kind of link: one direction of it."""

    rate_bytes_per_s: BytesPerS = Field(description="what one direction carries")
    latency_s: Seconds = Field(description="propagation and switching, from end to end of the link")


class LinkOverride(Part):
    """One link that differs from its kind, in both directions."""

    link: Text = Field(
        description="which: 'leaf0-spine0' (every lane and plane of the pair), 'leaf0-spine0.lane1', "
        "'plane1/leaf0-spine0', 'host3-leaf0'",
        examples=["leaf0-spine0"],
    )
    rate_bytes_per_s: BytesPerS | None = Field(
        default=None, description="of one direction; by default that of its kind"
    )
    latency_s: Seconds | None = Field(default=None, description="by default that of its kind")

    @model_validator(mode="after")
    def _changes_something(self) -> LinkOverride:
        if self.rate_bytes_per_s is None and self.latency_s is None:
            raise refused(f"{self.link} is left as it is; give a rate or a latency")
        return self


class LeafSpine(Part):
    """Every leaf has `lanes` links to every spine, in each of `planes` copies of the fabric."""

    kind: Literal["leaf_spine"] = Field(description="two tiers: leaf_spine")
    leaves: Count = Field(description="leaf switches, of each plane")
    spines: Count = Field(description="spine switches, of each plane")
    hosts_per_leaf: Count = Field(
        description="hosts on each leaf; with attach: rail, on each group of leaves, one leaf per NIC"
    )
    lanes: Count = Field(default=1, description="parallel links of each leaf-spine pair")
    planes: Count = Field(default=1, description="independent copies of the fabric, a NIC port on each")
    attach: Literal["host", "rail"] = Field(
        default="host",
        description="host: all NICs of a host on one leaf; rail: the i-th NIC of each host on leaf i",
    )
    host_link: Link = Field(description="NIC port to leaf")
    spine_link: Link = Field(description="leaf to spine, each lane")
    links: tuple[LinkOverride, ...] = Field(default=(), description="single links that differ")

    @property
    def num_leaves(self) -> int:
        return self.leaves

    def num_hosts(self, nics_per_host: int) -> int:
        rails = nics_per_host if self.attach == "rail" else 1
        return self.leaves // rails * self.hosts_per_leaf

    def leaf_of_nic(self, host: int, nic: int, nics_per_host: int) -> int:
        group = host // self.hosts_per_leaf
        return group * nics_per_host + nic if self.attach == "rail" else group

    @model_validator(mode="after")
    def _fits_memory(self) -> LeafSpine:
        num_links = self.leaves * self.spines * self.lanes * self.planes
        if num_links > MOST_LINKS:
            raise refused(
                f"{num_links} leaf-spine links are more than {MOST_LINKS}; make the fabric smaller", "leaves"
            )
        return self


class FatTree(Part):
    """Three tiers; aggregation j of each pod connects to cores j·cores/aggregations_per_pod onwards."""

    kind: Literal["fat_tree"] = Field(description="three tiers: fat_tree")
    pods: Count = Field(description="pods of edge and aggregation switches")
    edges_per_pod: Count = Field(description="edge switches of a pod")
    aggregations_per_pod: Count = Field(description="aggregation switches of a pod")
    cores: Count = Field(description="a multiple of aggregations_per_pod")
    hosts_per_edge: Count = Field(description="hosts on each edge switch")
    edge_lanes: Count = Field(default=1, description="parallel links of each edge and aggregation")
    core_lanes: Count = Field(default=1, description="parallel links of each aggregation and core")
    host_link: Link = Field(description="NIC to edge")
    edge_link: Link = Field(description="edge to aggregation")
    core_link: Link = Field(description="aggregation to core")
    links: tuple[LinkOverride, ...] = Field(default=(), description="single links that differ")

    @property
    def num_leaves(self) -> int:
        return self.pods * self.edges_per_pod

    def num_hosts(self, nics_per_host: int) -> int:
        return self.pods * self.edges_per_pod * self.hosts_per_edge

    def leaf_of_nic(self, host: int, nic: int, nics_per_host: int) -> int:
        return host // self.hosts_per_edge

    @model_validator(mode="after")
    def _tiers_fit(self) -> FatTree:
        if self.cores % self.aggregations_per_pod:
            below = self.cores // self.aggregations_per_pod * self.aggregations_per_pod
            raise refused(
                f"{self.cores} cores are no multiple of {self.aggregations_per_pod} aggregations per pod; "
                f"write for example {below + self.aggregations_per_pod}",
                "cores",
            )
        edge_links = self.edges_per_pod * self.aggregations_per_pod * self.edge_lanes
        if self.pods * (edge_links + self.cores * self.core_lanes) > MOST_LINKS:
            raise refused(f"the tree has more than {MOST_LINKS} links; make it smaller", "pods")
        return self


Tree = LeafSpine | FatTree


class Htsim(Part):
    """A topology file of the simulator htsim (`.topo`, csg-htsim and uet-htsim): a leaf-spine of its two tiers, or a
    fat tree of three.

    Bundles become lanes; the latency of a switch is shared out evenly to its links, so that every route keeps its own.
    Queue sizes, where all ports have the same, are the buffers of `fidelity: packet`. Core c of htsim's connects to
    aggregation c mod a of each pod, ours to c / (cores / a): the same graph, other numbers.
    """

    kind: Literal["htsim"] = Field(description="a topology file of htsim: htsim")
    file: InputFile = Field(
        description="Nodes, Tiers, Podsize, and per tier rates in Gbit/s, latencies in ns, radices, bundles, queues in "
        "bytes; as htsim's fat_tree_topology.cpp reads it",
        examples=["leaf_spine.topo"],
    )
    links: tuple[LinkOverride, ...] = Field(
        default=(), description="single links that differ, named as in leaf_spine or fat_tree"
    )
    _topo: TopoFile | None = PrivateAttr(default=None)
    _tree: Tree | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _reads(self) -> Htsim:
        try:
            self._topo = read_topo(self.file)
            self._tree = _tree_of(self._topo, self.links)
        except TrafficFileError as error:
            raise refused(str(error), "file") from error
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            where = "".join(f"{part}: " for part in found["loc"][-1:])
            raise refused(f"{self.file}: {where}{found['msg']}", "file") from error
        return self

    @property
    def topo(self) -> TopoFile:
        assert self._topo is not None
        return self._topo

    @property
    def tree(self) -> Tree:
        assert self._tree is not None
        return self._tree

    @property
    def queue_bytes(self) -> int | None:
        """Of every switch port, where the file gives all the same."""
        sizes = set(self.topo.queues())
        return sizes.pop() if len(sizes) == 1 else None

    def notes(self, is_packet: bool, has_own_buffer: bool) -> list[str]:
        """What of the file has no effect; has_own_buffer: packet.buffer, or lossless links, say what switches hold."""
        notes = list(self.topo.unused)
        sizes = self.topo.queues()
        if is_packet and has_own_buffer and any(sizes):
            name = self.file.name
            notes.append(f"{name}: Queue_Up and Queue_Down are not used: packet.buffer or lossless links decide")
        elif is_packet and self.queue_bytes is None and any(sizes):
            notes.append(
                f"{self.file.name}: Queue_Up and Queue_Down are not used: they differ, or some are missing, and the "
                "switches have one buffer size; give packet.buffer"
            )
        return notes


def _tree_of(topo: TopoFile, links: tuple[LinkOverride, ...]) -> Tree:
    """The file's tree in our words. Every route crosses its links and switches once each way:

    host link + half a leaf; leaf's uplink + half a leaf and half of what is above; and so on.
    """
    kinds = []
    below_ns = 0
    for tier in topo.tiers:
        latency_ns = tier.link_latency_ns + (below_ns + tier.switch_latency_ns) / 2
        kinds.append({"rate": f"{tier.gbit_per_s} Gbit/s", "latency": f"{latency_ns!r} ns"})
        below_ns = tier.switch_latency_ns
    leaf, above = topo.tiers[:2]
    if len(topo.tiers) == 2:
        tree: Tree = LeafSpine.model_validate(
            {
                "kind": "leaf_spine", "leaves": topo.leaves_per_pod, "spines": leaf.radix_up // above.bundle,
                "hosts_per_leaf": leaf.radix_down, "lanes": above.bundle, "host_link": kinds[0], "spine_link": kinds[1],
            }
        )  # fmt: skip
    else:
        per_pod, core = leaf.radix_up // above.bundle, topo.tiers[2]
        tree = FatTree.model_validate(
            {
                "kind": "fat_tree", "pods": topo.num_pods, "edges_per_pod": topo.leaves_per_pod,
                "aggregations_per_pod": per_pod, "cores": per_pod * above.radix_up // core.bundle,
                "hosts_per_edge": leaf.radix_down, "edge_lanes": above.bundle, "core_lanes": core.bundle,
                "host_link": kinds[0], "edge_link": kinds[1], "core_link": kinds[2],
            }
        )  # fmt: skip
    return tree.model_copy(update={"links": links})


Fabric = Annotated[LeafSpine | FatTree | Htsim, Field(discriminator="kind")]
