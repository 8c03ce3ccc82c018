"""Fine-tuned adapters over one base model, in a serving workload."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.rerouting import Way
from sim.scenario.quantities import Count, InputFile, Part, PositiveBytes, PositiveNumber, RoutingFile, refused


class FineTuned(Part):
    """One adapter: its experts from a file, or the most and the mean of a layer, spread as evenly as can be."""

    name: str = Field(min_length=1, description="what the adapter is called")
    file: InputFile | None = Field(
        default=None, description='ESFT\'s JSON, {"experts": {"1": [3, 14], …}}: of each layer, the experts tuned'
    )
    max: Count | None = Field(default=None, description="experts tuned in the layer with most")
    mean: PositiveNumber | None = Field(default=None, description="experts tuned per layer")
    routing: RoutingFile | None = Field(
        default=None, description="how its tokens choose experts, as `experts.file`; by default as the base's tokens do"
    )
    share: PositiveNumber = Field(
        default=1.0, description="of the requests, against the others' and base_share"
    )

    @model_validator(mode="after")
    def _says_what_is_tuned(self) -> FineTuned:
        counts = (self.max is not None) + (self.mean is not None)
        if counts == 1 or (self.file is not None) == (counts == 2):
            raise refused("give either file, or max and mean", "file")
        return self


class Adapters(Part):
    """Adapters in one pool of expert slots (ExpertWeave, arXiv 2508.17624).

    Each request is one adapter's, or the base's. In one pool their memory is taken from the cache's, the experts that
    a step touches are those of its requests after rerouting, and each layer with experts reroutes its tokens' pairs.
    With `resident` or `pool` not all are in the accelerator's memory at a time: the others lie in pinned host memory,
    are loaded when a request needs them, and the least recently used that nobody runs with make room.
    """

    deployment: Literal["virtual", "padded", "merged"] = Field(
        default="virtual",
        description="virtual: memory behind the slots that hold an expert; padded: for all slots; merged: a model of "
        "its own for each adapter (and for the base, if it has a share), on an equal part of the replicas",
    )  # fmt: skip
    most_tuned: Count | None = Field(
        default=None, description="slots kept for each adapter in each layer; by default the most that any tunes"
    )
    fine_tuned: Annotated[tuple[FineTuned, ...], Field(min_length=1)] = Field(description="the adapters, by name")
    rerouting: Way = Field(
        default="fused",
        description="eager: PyTorch's operators; fused: one kernel; aligned: on the way of the experts' alignment",
    )
    base_share: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="of the requests, those without an adapter, against the adapters' shares"
    )
    resident: Count | None = Field(
        default=None, description="adapters in the accelerator's memory at most; at the beginning the first ones. By "
        "default all; of a virtual pool memory is kept for those that take most",
    )  # fmt: skip
    pool_bytes: PositiveBytes | None = Field(
        default=None, description="instead of `resident`: memory kept for pages of adapters, so that as many are there "
        "as fit into it; with deployment: virtual",
    )  # fmt: skip
    loading: Literal["blocking", "overlapped"] = Field(
        default="blocking", description="of those that are not there. blocking: the step that first needs it waits for "
        "its load, and all its requests (vLLM); overlapped: loads run beside steps, a request waits for its own, and "
        "others pass it (S-LoRA, Punica)",
    )  # fmt: skip
    alpha: PositiveNumber | None = Field(
        default=None, description="shares by a power law as S-LoRA draws them, instead of `share`: of n adapters the "
        "i-th has (i/n)^alpha - ((i-1)/n)^alpha of the requests; 1: all alike, smaller: the first has ever more",
    )  # fmt: skip

    @property
    def shares(self) -> NDArray[np.float64]:
        """[adapters + 1] of the requests, the base's first; they sum to 1."""
        n = len(self.fine_tuned)
        if self.alpha is None:
            of_adapters = np.array([adapter.share for adapter in self.fine_tuned])
        else:
            of_adapters = np.diff((np.arange(n + 1) / n) ** self.alpha)
        shares = np.append(self.base_share, of_adapters)
        return shares / shares.sum()

    @property
    def is_merged(self) -> bool:
        return self.deployment == "merged"

    @property
    def num_models(self) -> int:
        """Models that lie side by side: one, unless merged."""
        return len(self.fine_tuned) + (self.base_share > 0) if self.is_merged else 1

    @property
    def is_on_demand(self) -> bool:
        """Whether adapters come and go."""
        return self.pool_bytes is not None or (self.resident is not None and self.resident < len(self.fine_tuned))

    @model_validator(mode="after")
    def _says_once_what_is_resident(self) -> Adapters:
        given = [key for key, value in (("resident", self.resident), ("pool", self.pool_bytes)) if value is not None]
        if len(given) == 2:
            raise refused("resident and pool both say how many adapters are there at a time; keep one", "pool")
        if given and self.is_merged:
            raise refused(f"merged models are all there; leave {given[0]} out, or deployment: merged", given[0])
        if self.pool_bytes is not None and self.deployment == "padded":
            raise refused("a padded pool has places, not pages; write resident, the number of its places", "pool")
        if not given and "loading" in self.model_fields_set:
            sentence = "all adapters are there from the beginning; give resident or pool, or leave loading out"
            raise refused(sentence, "loading")
        return self

    @model_validator(mode="after")
    def _one_law_of_shares(self) -> Adapters:
        if self.alpha is not None and any("share" in adapter.model_fields_set for adapter in self.fine_tuned):
            raise refused("alpha says each adapter's share; leave out `share`, or alpha", "alpha")
        return self
