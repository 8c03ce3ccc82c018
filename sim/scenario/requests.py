"""What requests a serving workload has: arrivals and how their rate varies, lengths, conversations, traces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.scenario.clients import ClosedLoopArrivals, TimeLaw
from sim.scenario.quantities import (
    Count,
    InputFile,
    Part,
    PerS,
    PositiveNumber,
    PositiveSeconds,
    PositiveShare,
    Seconds,
    refused,
)


class DiurnalShape(Part):
    """A day's rise and fall: rate · (1 + amplitude · sin(2 π t / period))."""

    kind: Literal["diurnal"] = Field(description="a day's rise and fall: diurnal")
    period_s: PositiveSeconds = Field(examples=["24 h"], description="of one rise and fall")
    amplitude: PositiveShare = Field(examples=[0.6], description="1: the rate goes from none to twice the mean")


class BurstShape(Part):
    """The last `length` of each period at `factor` times the rate of the rest; `rate` is the mean of both."""

    kind: Literal["burst"] = Field(description="bursts at regular times: burst")
    period_s: PositiveSeconds = Field(examples=["60 s"], description="from burst to burst")
    length_s: PositiveSeconds = Field(examples=["10 s"], description="of a burst")
    factor: PositiveNumber = Field(examples=[4], description="rate within a burst over the rate outside of it")

    @model_validator(mode="after")
    def _is_within(self) -> BurstShape:
        if self.length_s >= self.period_s:
            raise refused("length is not below period, so that nothing lies outside of bursts; shorten it", "length")
        return self


Shape = Annotated[
    Annotated[DiurnalShape | BurstShape, Field(discriminator="kind")] | None,
    Field(description="how the rate varies around its mean; by default it does not"),
]


class PoissonArrivals(Part):
    """Independent arrivals at a mean rate."""

    kind: Literal["poisson"] = Field(description="independent arrivals: poisson")
    rate_per_s: PerS = Field(examples=["4 /s"], description="mean rate of requests, or of sessions")
    shape: Shape = None


class GammaArrivals(Part):
    """Gamma-distributed gaps: shape below 1 is burstier than Poisson, 1 is Poisson."""

    kind: Literal["gamma"] = Field(description="gamma-distributed gaps: gamma")
    rate_per_s: PerS = Field(examples=["4 /s"], description="mean rate of requests, or of sessions")
    burstiness: Annotated[PositiveNumber, Field(ge=0.001)] = Field(
        default=1.0, description="shape of the gamma law of the gaps"
    )
    shape: Shape = None


class ConstantArrivals(Part):
    """One request every 1/rate."""

    kind: Literal["constant"] = Field(description="equal gaps: constant")
    rate_per_s: PerS = Field(examples=["4 /s"], description="rate of requests, or of sessions")
    shape: Shape = None


class TraceArrivals(Part):
    """The trace's own times, at `scale` times its rate."""

    kind: Literal["trace"] = Field(description="the times of `trace`: trace")
    scale: PositiveNumber = Field(default=1.0, description="2 doubles the rate")


Arrivals = Annotated[
    PoissonArrivals | GammaArrivals | ConstantArrivals | TraceArrivals | ClosedLoopArrivals, Field(discriminator="kind")
]


class FixedLength(Part):
    """Always the same."""

    law: Literal["fixed"] = Field(description="always the same: fixed")
    tokens: Count = Field(description="how many")


class UniformLength(Part):
    """Every whole number from low to high equally likely."""

    law: Literal["uniform"] = Field(description="every whole number from low to high equally likely: uniform")
    low: Count = Field(description="fewest")
    high: Count = Field(description="most")

    @model_validator(mode="after")
    def _rises(self) -> UniformLength:
        if self.low > self.high:
            raise refused(f"low is {self.low}, above high, {self.high}; swap them", "low")
        return self


class LognormalLength(Part):
    """Lognormal of the given mean; sigma is the spread of the logarithm."""

    law: Literal["lognormal"] = Field(description="the logarithm is normal: lognormal")
    mean: Annotated[PositiveNumber, Field(le=2**20)] = Field(description="mean, before it is cut to max")
    sigma: Annotated[PositiveNumber, Field(le=5)] = Field(description="standard deviation of the logarithm")
    max: Count | None = Field(default=None, description="longer ones are cut to this")


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="law")]


class Lengths(Part):
    """Tokens in and out of each request, drawn independently."""

    input: Length = Field(description="tokens of a prompt; in sessions of what each turn adds")
    output: Length = Field(description="tokens of an answer")


class Sessions(Part):
    """Conversations: each turn's prompt is all prompts and answers before it, and `lengths.input` new tokens.

    `arrivals` and `num_requests` are then of sessions, `duration` ends their beginning. A session ends early with a
    turn that fails or is given up. What was said before is found where the prefix cache still has it.
    """

    turns: Length = Field(description="of a session: a law as in lengths", examples=["{law: fixed, tokens: 4}"])
    think_time: TimeLaw | None = Field(
        default=None, description="from an answer to the next turn: a time, or a law; by default none", examples=["5 s"]
    )


class Trace(Part):
    """Requests from a file: arrival times, and lengths unless `lengths` is given."""

    format: Literal["azure", "burstgpt", "mooncake", "vllm"] = Field(
        default="azure", description="azure: CSV with TIMESTAMP, ContextTokens, GeneratedTokens; burstgpt: CSV with "
        "Timestamp in s, Model, Request tokens, Response tokens (0: a failure, left out), Log Type; mooncake: JSON "
        "lines with timestamp in ms, input_length, output_length, hash_ids; vllm: JSON lines with arrival_time_ns, "
        "input_toks, output_toks, hash_ids. Equal hash_ids are equal blocks, of 512 and of 16 tokens",
    )  # fmt: skip
    file: InputFile = Field(description="a file of that format, beside the scenario or from the working directory")
    from_s: Seconds = Field(default=0.0, description="requests before this are left out; from the first row")
    until_s: PositiveSeconds | None = Field(
        default=None, description="requests from this on are left out; by default none"
    )
    model: str | None = Field(default=None, description="burstgpt: only rows of this Model, such as GPT-4")
    log_type: str | None = Field(
        default=None, description="burstgpt: only rows of this Log Type, such as Conversation log"
    )

    @model_validator(mode="after")
    def _has_such_columns(self) -> Trace:
        for key in ("model", "log_type"):
            if getattr(self, key) is not None and self.format != "burstgpt":
                raise refused(f"a trace of format {self.format} has no column for {key}; leave it out", key)
        return self

    @model_validator(mode="after")
    def _is_a_span(self) -> Trace:
        if self.until_s is not None and self.until_s <= self.from_s:
            raise refused("until is not after from; no request would be left", "until")
        return self
