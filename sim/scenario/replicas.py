"""Replicas of a served model: how one is cut, its cache, who is sent where, and pools that only prefill or only
decode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from models.parallelism import Exchange
from sim.scenario.quantities import Count, Part, PositiveBytes, PositiveShare, Ranks, Seconds, refused
from sim.scenario.scheduling import Batching
from sim.scenario.tiers import Tiers


class Degrees(Part):
    """How one replica is cut. With expert > 1 it must be a multiple of tensor; expert / tensor copies of the attention
    then step together, each an engine with the limits of `batching` and a cache of its own. With pipeline > 1 the
    layers are cut into stages of `tensor` accelerators each, and as many batches are under way as there are stages."""

    tensor: Count = Field(
        default=1, description="accelerators that share each layer; where they lie on several hosts, equally many of "
        "each, what they sum crosses the fabric",
    )  # fmt: skip
    expert: Count = Field(default=1, description="accelerators over which the routed experts lie")
    pipeline: Count = Field(
        default=1, description="stages into which the layers are cut, each on `tensor` accelerators of its own, which "
        "may lie on another host: activations then cross the fabric",
    )  # fmt: skip
    exchange: Exchange = Field(
        default="dispatch", description="of tokens between ranks of experts. dispatch: to those that hold a token's "
        "experts; all_gather: of every copy to all others, and a reduce-scatter back, as vLLM by default",
    )  # fmt: skip

    @property
    def num_accelerators(self) -> int:
        """Of one replica."""
        return max(self.tensor, self.expert) * self.pipeline

    @model_validator(mode="after")
    def _nests(self) -> Degrees:
        if self.expert > 1 and self.expert % self.tensor:
            raise refused(
                f"expert degree {self.expert} must be 1 or a multiple of tensor degree {self.tensor}: the "
                "same accelerators hold attention and experts",
                "expert",
            )
        if self.expert > 1 and self.pipeline > 1:
            raise refused(
                f"expert degree {self.expert} and pipeline degree {self.pipeline}: ranks of experts step together, "
                "stages one after the other; set one of the two to 1",
                "pipeline",
            )
        return self


class KvCache(Part):
    """Paged keys and values."""

    block_size: Count = Field(default=16, description="tokens per block")
    memory_fraction: PositiveShare = Field(
        default=0.9, description="of the device's memory, for weights and cache together"
    )
    prefix_caching: bool = Field(
        default=True, description="full blocks are found again by requests with the same content before them"
    )
    num_blocks: Count | None = Field(
        default=None, description="given outright instead of computed from the memory"
    )
    swap_space_bytes: PositiveBytes | None = Field(
        default=None, description="host memory of each accelerator for blocks of preempted requests, with "
        "batching.preemption: swap; by default 4 GiB, as vLLM has it",
    )  # fmt: skip
    tiers: Tiers = ()


class Router(Part):
    """Which replica a request goes to; least_outstanding, also of two drawn (power_of_two), counts queued and running
    requests; least_kv the KV blocks that are held; prefix_affinity what a replica's cache has of the prompt;
    adapter_affinity requests of the same adapter, as long as a replica has not 1.25 times the mean of requests."""

    policy: Literal[
        "round_robin", "least_outstanding", "power_of_two", "least_kv", "prefix_affinity", "adapter_affinity"
    ] = Field(default="round_robin", description="in turn (round_robin), or what it looks at, as said above")
    report_interval_s: Seconds = Field(
        default=0.0, description="the router sees what each replica reported last, every so often; 0: what it is now"
    )

    @model_validator(mode="after")
    def _looks(self) -> Router:
        if self.report_interval_s > 0 and self.policy == "round_robin":
            sentence = "round_robin looks at no replica, so that reports have no effect; leave it out"
            raise refused(sentence, "report_interval")
        return self


class Pool(Part):
    """Replicas that only prefill, or only decode."""

    replicas: Count = Field(default=1, description="of this pool")
    parallelism: Degrees = Field(default=Degrees(), description="how one replica of this pool is cut")
    batching: Batching | None = Field(default=None, description="by default the workload's")
    router: Router | None = Field(
        default=None, description="which replica of the pool a request goes to; by default the workload's"
    )
    ranks: Ranks = Field(
        default=None, description="accelerators of the pool; by default the prefill pool has the workload's first "
        "ones, the decode pool the next",
    )  # fmt: skip

    @property
    def num_accelerators(self) -> int:
        return self.replicas * self.parallelism.num_accelerators


class KvTransfer(Part):
    """How keys and values get from the prefill pool to the decode pool."""

    layers: Literal["at_end", "layer_by_layer"] = Field(
        default="at_end", description="at_end: when the prompt is done; layer_by_layer: each layer of a step's tokens "
        "when it is computed, while the others still are",
    )  # fmt: skip
    queue_pairs: Count = Field(default=1, description="over which each message between two ranks is striped")


class Disaggregation(Part):
    """Prompts on one pool of replicas, generation on another. Keys and values move over the fabric, into blocks
    reserved beforehand; where there is no room they wait in the prefill pool. The first token is the prompt's."""

    prefill: Pool = Field(default=Pool(), description="replicas that compute prompts and first tokens")
    decode: Pool = Field(default=Pool(), description="replicas that generate all tokens after the first")
    transfer: KvTransfer = Field(default=KvTransfer(), description="when keys and values are sent, and over what")

    @model_validator(mode="after")
    def _fits_together(self) -> Disaggregation:
        if (self.prefill.ranks is None) != (self.decode.ranks is None):
            given, other = ("decode", "prefill") if self.prefill.ranks is None else ("prefill", "decode")
            raise refused(f"{given} has ranks and {other} has none; give both pools theirs, or neither", given, "ranks")
        for name, pool in (("prefill", self.prefill), ("decode", self.decode)):
            if pool.parallelism.pipeline > 1:
                raise refused(
                    "pools have no pipeline stages, because keys and values go from rank to rank; leave pipeline out, "
                    "or disaggregation", name, "parallelism", "pipeline",
                )  # fmt: skip
        shared = set(self.prefill.ranks or ()) & set(self.decode.ranks or ())
        if shared:
            raise refused(f"accelerator {min(shared)} is in both pools; give each its own", "decode", "ranks")
        if self.transfer.layers == "layer_by_layer" and self.prefill.parallelism.expert > 1:
            raise refused(
                "layer_by_layer needs steps whose time is known beforehand, which those of experts on several "
                "accelerators are not; write layers: at_end, or prefill: {parallelism: {expert: 1}}",
                "transfer", "layers",
            )  # fmt: skip
        return self
