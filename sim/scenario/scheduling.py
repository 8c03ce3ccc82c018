"""How a serving engine schedules: batches, preemption, drafts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Protocol

from pydantic import Field

from sim.scenario.quantities import Count, Part, PositiveNumber, Seconds, Share
from sim.serving.graphs import largest_graph


class NgramDraft(Part):
    """Drafts what followed the same words before (prompt lookup), on the host: no time of the accelerator."""

    kind: Literal["ngram"] = Field(description="prompt lookup: ngram")
    time_s: Seconds = Field(default=0.0, description="of drafting for all sequences of a step, after the step")


class ModelDraft(Part):
    """A small model, or a head on the large one, that says one token a pass; its memory is left out."""

    kind: Literal["model"] = Field(description="a small model, or a head: model")
    cost: PositiveNumber = Field(
        examples=[0.05],
        description="time of one of its passes, as a share of the served model's step on as many tokens",
    )


class Speculative(Part):
    """Drafted tokens that one step of the model verifies (Leviathan et al., 2023)."""

    num_tokens: Annotated[Count, Field(le=64)] = Field(description="drafted for each sequence a step", examples=[3])
    acceptance: Share = Field(description="probability that a draft is accepted, if all before it were", examples=[0.7])
    draft: Annotated[NgramDraft | ModelDraft, Field(discriminator="kind")] = Field(
        default=NgramDraft(kind="ngram"), description="who drafts: {kind: ngram}, or {kind: model, cost: 0.05}"
    )


class Batching(Part):
    """What a step computes, and who joins it when."""

    policy: Literal[
        "chunked_prefill", "prefill_first", "shortest_first", "priority", "batchllm", "orca", "static"
    ] = Field(
        default="chunked_prefill", description="who joins a step: chunks of prompts beside the decodes, in order of "
        "arrival (chunked_prefill), by length (shortest_first), by tenants' priorities (priority), by a plan of a "
        "batch that is all there (batchllm); whole prompts before decodes (prefill_first), beside them with memory "
        "reserved (orca), or batch after batch (static)",
    )  # fmt: skip
    max_num_seqs: Count = Field(default=256, description="running requests at most")
    max_num_batched_tokens: Count = Field(default=2048, description="tokens of one step at most")
    async_scheduling: bool | None = Field(
        default=None, description="schedule a step while the one before runs; by default with chunked_prefill, "
        "shortest_first, priority and batchllm, as vLLM does since 0.14, but not with pipeline stages",
    )  # fmt: skip
    cuda_graphs: bool = Field(
        default=True, description="batches of up to min(2 max_num_seqs, 512, max_num_batched_tokens) tokens run as "
        "recorded graphs, padded to their sizes",
    )  # fmt: skip

    preemption: Literal["recompute", "swap"] = Field(
        default="recompute", description="of whom blocks are taken: its tokens are computed again, or its blocks "
        "copied to host memory and back (kv.swap_space, host.pcie), as vLLM 0.6 did; where that is full, the former",
    )  # fmt: skip

    speculative: Speculative | None = Field(default=None, description="speculative decoding; by default none")

    @property
    def is_async(self) -> bool:
        if self.speculative is not None:
            return False
        return self.is_chunked if self.async_scheduling is None else self.async_scheduling

    @property
    def is_chunked(self) -> bool:
        """Whether decodes and chunks of prompts share one budget."""
        return self.policy in ("chunked_prefill", "shortest_first", "priority", "batchllm")

    @property
    def max_graph_tokens(self) -> int:
        """The largest recorded graph; 0: none is."""
        queries = 1 + (self.speculative.num_tokens if self.speculative is not None else 0)
        return largest_graph(queries * self.max_num_seqs, self.max_num_batched_tokens) if self.cuda_graphs else 0


PASSED_IN_LINE = ("chunked_prefill", "priority")
"""Policies under which somebody may be passed who waits for more than blocks."""


class Degrees(Protocol):
    """What of a replica's parallelism matters here."""

    @property
    def expert(self) -> int: ...

    @property
    def pipeline(self) -> int: ...


def scheduling_problems(
    batching: Batching, has_tenants: bool, swap_space_bytes: int | None, is_caching: bool, parallelism: Degrees
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What does not go together in one workload, as (path, sentence)."""
    if batching.policy == "priority" and not has_tenants:
        yield (
            ("batching", "policy"),
            "priority orders requests by their tenants, and there are none; write for example "
            "tenants: [{name: interactive, priority: 0}, {name: batch, priority: 1}]",
        )
    if batching.policy == "batchllm" and not is_caching:
        yield ("kv", "prefix_caching"), "batchllm shares prefixes, which needs prefix_caching: true"
    if swap_space_bytes is not None and batching.preemption != "swap":
        yield ("kv", "swap_space"), "swap_space goes with batching.preemption: swap, and only with it"
    if batching.preemption == "swap" and parallelism.expert > 1:
        yield (
            ("batching", "preemption"),
            f"swap copies blocks of one accelerator's cache, and with expert degree {parallelism.expert} each has its "
            "own; use preemption: recompute",
        )
    if parallelism.pipeline > 1:
        yield from _pipeline_problems(batching, parallelism.pipeline)
    if batching.speculative is not None:
        yield from _speculative_problems(batching, parallelism)


def _pipeline_problems(batching: Batching, stages: int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if batching.async_scheduling:
        yield (
            ("batching", "async_scheduling"),
            f"with {stages} pipeline stages a request is scheduled again when its token is back, while others are on "
            "their way; leave async_scheduling out",
        )
    if batching.preemption == "swap":
        yield (
            ("batching", "preemption"),
            f"swap copies blocks of one accelerator's cache, and each of {stages} pipeline stages has its own; use "
            "preemption: recompute",
        )
    if batching.speculative is not None:
        yield ("batching", "speculative"), f"drafts are not there with {stages} pipeline stages; leave speculative out"


DRAFTING = ("chunked_prefill", "shortest_first", "priority")
"""Policies whose steps may hold drafts."""


def _speculative_problems(batching: Batching, parallelism: Degrees) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if batching.policy not in DRAFTING:
        yield (
            ("batching", "policy"),
            f"{batching.policy} computes one token of each running request; with speculative use {', '.join(DRAFTING)}",
        )
    if batching.async_scheduling:
        yield (
            ("batching", "async_scheduling"),
            "with speculative a batch is formed when it is known which drafts hold; use async_scheduling: false",
        )
    if parallelism.expert > 1:
        yield (
            ("batching", "speculative"),
            f"drafts are verified on one rank's attention and experts, not with expert degree {parallelism.expert}; "
            "leave speculative out",
        )
