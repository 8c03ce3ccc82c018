"""Fine-tuned adapters over one base model, in a serving workload."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.rerouting import Way
from sim.scenario.quantities import Count, InputFile, Part, PositiveNumber, RoutingFile, refused


class FineTuned(Part):
    """One adapter: its experts from a file, or the most and the mean of a layer, spread as evenly as can be."""

    name: str = Field(min_length=1)
    file: InputFile | None = Field(
        default=None, description='ESFT\'s JSON, {"experts": {"1": [3, 14], …}}: of each layer, the experts tuned'
    )
    max: Count | None = Field(default=None, description="experts tuned in the layer with most")
    mean: PositiveNumber | None = Field(default=None, description="experts tuned per layer")
    routing: RoutingFile | None = Field(
        default=None, description="how its tokens choose experts, as `experts.file`; by default as the base's tokens do"
    )
    share: PositiveNumber = Field(
        default=1.0, description="of the tokens, against the others' and base_share"
    )

    @model_validator(mode="after")
    def _says_what_is_tuned(self) -> FineTuned:
        counts = (self.max is not None) + (self.mean is not None)
        if counts == 1 or (self.file is not None) == (counts == 2):
            raise refused("give either file, or max and mean", "file")
        return self


class Adapters(Part):
    """Adapters in one pool of expert slots (ExpertWeave, arXiv 2508.17624).

    Their memory is taken from the cache's, and the experts that a step touches are those after rerouting. Each
    layer with experts reroutes its tokens' pairs. Left out: loading and evicting while requests run.
    """

    deployment: Literal["virtual", "padded"] = Field(
        default="virtual",
        description="virtual: memory behind the slots that hold an expert; padded: for all slots",
    )
    most_tuned: Count | None = Field(
        default=None, description="slots kept for each adapter in each layer; by default the most that any tunes"
    )
    fine_tuned: Annotated[tuple[FineTuned, ...], Field(min_length=1)]
    rerouting: Way = Field(
        default="fused",
        description="eager: PyTorch's operators; fused: one kernel; aligned: on the way of the experts' alignment",
    )
    base_share: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="of the tokens, those without an adapter, against the adapters' shares"
    )
