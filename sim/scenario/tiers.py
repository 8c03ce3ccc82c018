"""Tiers of KV blocks behind the cache of a serving engine: host memory, and a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sim.scenario.quantities import BytesPerS, Part, PositiveBytes, Seconds

if TYPE_CHECKING:
    from sim.scenario.serving import Serving


class HostTier(Part):
    """Host memory of each accelerator. Every full block is stored there once it is computed, and the least recently
    used one gives way; stores and fetches do not hold each other up."""

    kind: Literal["host"] = Field(description="host memory")
    capacity_bytes: PositiveBytes = Field(examples=["64 GiB"], description="for each accelerator")
    bandwidth_bytes_per_s: BytesPerS | None = Field(
        default=None, description="each way, of each accelerator; by default that of its link, host.pcie.rate. Each "
        "block is one copy, which takes host.pcie.copy_time beside its bytes",
    )  # fmt: skip
    latency_s: Seconds = Field(default=0.0, description="of a request's fetch, until its first byte")


class DiskTier(Part):
    """A disk behind the host, which takes what falls out of that. What is fetched from it comes back to the host first,
    and stays on the disk. It reads or writes, one transfer after the other."""

    kind: Literal["disk"] = Field(description="a disk behind the host")
    capacity_bytes: PositiveBytes = Field(examples=["2 TB"], description="for each accelerator")
    bandwidth_bytes_per_s: BytesPerS = Field(examples=["5 GB/s"], description="for each accelerator")
    latency_s: Seconds = Field(
        default=0.0, examples=["100 us"], description="of a request's fetch, until its first byte"
    )


Tiers = Annotated[
    tuple[Annotated[HostTier | DiskTier, Field(discriminator="kind")], ...],
    Field(
        description="where full blocks are kept beside the device, to be fetched instead of computed again: a host, or "
        "a host and a disk, of each replica; by default none",
        examples=[[{"kind": "host", "capacity": "64 GiB"}]],
    ),
]

WITH_TIERS = ("chunked_prefill", "shortest_first", "priority", "batchllm")
"""Policies under which a request may wait for its blocks among those that run."""


def tier_problems(w: Serving) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What does not go with tiers, as (path, sentence)."""
    at, kinds = ("kv", "tiers"), tuple(tier.kind for tier in w.kv.tiers)
    if not kinds:
        return
    if kinds not in (("host",), ("host", "disk")):
        yield at, (
            f"tiers are {', '.join(kinds)}; give one of kind host, through which everything goes, and at most one of "
            "kind disk behind it"
        )
    if not w.kv.prefix_caching:
        yield ("kv", "prefix_caching"), "tiers keep blocks by what they hold, which needs prefix_caching: true"
    if w.disaggregation is not None:
        yield at, "tiers are not there with prefill and decode apart; leave them out"
    if w.parallelism.pipeline > 1:
        yield at, "tiers are not there with pipeline stages, each of which has a cache of its own; leave them out"
    if w.batching.policy not in WITH_TIERS:
        yield at, (
            f"{w.batching.policy} computes whole prompts when it admits them and waits for no blocks; with tiers use "
            f"{', '.join(WITH_TIERS)}"
        )
    if w.batching.preemption == "swap":
        yield at, "with tiers whoever gives way finds its blocks there; use preemption: recompute"
