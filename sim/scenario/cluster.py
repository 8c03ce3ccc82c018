"""The cluster of a scenario: its fabric and its hosts."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, model_validator

from sim.scenario.errors import suggestion
from sim.scenario.fabrics import Fabric, Htsim, LeafSpine, Tree
from sim.scenario.link_names import wrong_link
from sim.scenario.quantities import (
    LARGEST_COUNT,
    BytesPerS,
    Count,
    Name,
    Part,
    PositiveBytes,
    Seconds,
    Text,
    all_refused,
    refused,
)

Where = tuple[str | int, ...]


class Nic(Part):
    """What limits a NIC besides its link."""

    injection_rate_bytes_per_s: BytesPerS | None = Field(
        default=None, description="what it can read from memory and send; absent: no limit of its own"
    )
    message_overhead_s: Seconds = Field(
        default=0.0, description="its time per message, or per segment of one"
    )
    segment_bytes: PositiveBytes | None = Field(
        default=None, description="longer messages are posted in segments of this size; absent: whole"
    )


class NvLink(Part):
    """The links inside a host; what is absent comes from the accelerator's preset."""

    rate_bytes_per_s: BytesPerS | None = Field(default=None, description="one direction of one accelerator")
    latency_s: Seconds | None = Field(default=None, description="of one message between two accelerators")


class Pcie(Part):
    """Copies between an accelerator and host memory; what is absent comes from the accelerator's preset."""

    rate_bytes_per_s: BytesPerS | None = Field(default=None, description="one direction of one accelerator")
    copy_time_s: Seconds | None = Field(default=None, description="of one copy beside its bytes")


class Host(Part):
    """One kind of host."""

    accelerators: Count = Field(default=1, description="accelerators of a host; by default one")
    accelerator: Text = Field(
        default="h200", description="a preset of `spindle list hardware`", examples=["h200"]
    )
    nics: Count = Field(default=1, description="network cards; accelerator i uses NIC i·nics/accelerators")
    nic: Nic = Field(default=Nic(), description="what limits each of its NICs")
    nvlink: NvLink = Field(default=NvLink(), description="links between its accelerators")
    pcie: Pcie = Field(default=Pcie(), description="copies between an accelerator and host memory")

    @model_validator(mode="after")
    def _accelerator_is_known(self) -> Host:
        from models.hardware import ACCELERATORS

        if self.accelerator not in ACCELERATORS:
            raise refused(
                f"unknown accelerator '{self.accelerator}'; {suggestion(self.accelerator, ACCELERATORS)}",
                "accelerator",
            )
        return self


class HostGroup(Host):
    """Hosts of one kind among others."""

    name: Name = Field(description="what this kind of host is called")
    count: Count = Field(description="hosts of this kind; the kinds come in this order")


class Cluster(Part):
    """Fabric and hosts. Accelerators are numbered host by host, from 0."""

    fabric: Fabric = Field(description="switches and links between the hosts")
    host: Host | None = Field(default=None, description="when all hosts are alike")
    hosts: tuple[HostGroup, ...] | None = Field(
        default=None, description="hosts of several kinds, in this order"
    )

    @property
    def tree(self) -> Tree:
        """The fabric, whichever way it was written."""
        return self.fabric.tree if isinstance(self.fabric, Htsim) else self.fabric

    @property
    def host_groups(self) -> tuple[tuple[Host, int], ...]:
        """(kind, how many), in order."""
        if self.hosts is not None:
            return tuple((group, group.count) for group in self.hosts)
        if self.host is None:
            return ()
        return ((self.host, self.tree.num_hosts(self.host.nics)),)

    @property
    def num_hosts(self) -> int:
        return sum(count for _, count in self.host_groups)

    @property
    def num_accelerators(self) -> int:
        return sum(kind.accelerators * count for kind, count in self.host_groups)

    @property
    def num_nics(self) -> int:
        return sum(kind.nics * count for kind, count in self.host_groups)

    def hosts_and_leaves(self) -> tuple[list[int], list[int]]:
        """The host of every accelerator, and that host's leaf; on rails, the first of its leaves."""
        hosts: list[int] = []
        leaves: list[int] = []
        host = 0
        for kind, count in self.host_groups:
            for _ in range(count):
                leaf = self.tree.leaf_of_nic(host, 0, kind.nics)
                for _ in range(kind.accelerators):
                    hosts.append(host)
                    leaves.append(leaf)
                host += 1
        return hosts, leaves

    @model_validator(mode="after")
    def _fits_together(self) -> Cluster:
        problems = list(self._host_problems()) or list(self._link_problems())
        if problems:
            raise all_refused(problems)
        return self

    def _host_problems(self) -> Iterator[tuple[Where, str]]:
        if self.host is not None and self.hosts is not None:
            yield (
                ("hosts",),
                "host and hosts are both given; host is for one kind, hosts for several: keep one",
            )
            return
        if not self.host_groups:
            yield (), "has no hosts; write for example host: {accelerators: 1, accelerator: h200}"
            return
        names = [group.name for group in self.hosts or ()]
        for i, name in enumerate(names):
            if name in names[:i]:
                yield ("hosts", i, "name"), f"two kinds of hosts are named '{name}'; give each its own name"
        nics = {kind.nics for kind, _ in self.host_groups}
        leaves = self.tree.num_leaves
        if isinstance(self.tree, LeafSpine) and self.tree.attach == "rail":
            if len(nics) > 1:
                yield (
                    ("hosts",),
                    f"attach: rail needs the same number of nics in every kind of host, got {sorted(nics)}",
                )
                return
            rails = min(nics)
            if leaves % rails:
                yield (
                    ("fabric", "leaves"),
                    f"{leaves} leaves are no multiple of the {rails} rails (nics of a host); "
                    f"write for example {leaves // rails * rails + rails}",
                )
                return
        room = self.tree.num_hosts(min(nics))
        if self.hosts is not None and self.num_hosts != room:
            counts = " + ".join(str(count) for _, count in self.host_groups)
            yield (
                ("hosts",),
                f"the counts add up to {counts} = {self.num_hosts} hosts, but the fabric has room for {room}",
            )
        if max(self.num_accelerators, self.num_nics) > LARGEST_COUNT:
            yield (
                (),
                f"{self.num_accelerators} accelerators on {self.num_nics} NICs are more than {LARGEST_COUNT}",
            )

    def _link_problems(self) -> Iterator[tuple[Where, str]]:
        seen: set[str] = set()
        for i, name in enumerate(override.link for override in self.tree.links):
            wrong = f"'{name}' is given twice; keep one" if name in seen else wrong_link(self, name)
            seen.add(name)
            if wrong is not None:
                yield ("fabric", "links", i, "link"), wrong
