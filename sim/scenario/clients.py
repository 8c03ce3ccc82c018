"""Clients of a serving workload: how long they think, and what they do about answers that do not come."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.scenario.quantities import Count, CountOrZero, Part, PositiveNumber, PositiveSeconds, Seconds, refused


class FixedTime(Part):
    """Always the same."""

    law: Literal["fixed"] = Field(description="always the same: fixed")
    time_s: Seconds = Field(description="how long")


class ExponentialTime(Part):
    """Exponential of the given mean."""

    law: Literal["exponential"] = Field(description="exponential")
    mean_s: PositiveSeconds = Field(description="mean time")


class LognormalTime(Part):
    """Lognormal of the given mean; sigma is the spread of the logarithm."""

    law: Literal["lognormal"] = Field(description="the logarithm is normal: lognormal")
    mean_s: PositiveSeconds = Field(description="mean time")
    sigma: Annotated[PositiveNumber, Field(le=5)] = Field(description="standard deviation of the logarithm")


def _read_time(value: Any) -> Any:
    """A quantity is short for the fixed law."""
    return {"law": "fixed", "time": value} if isinstance(value, str | int | float) else value


TimeLaw = Annotated[
    FixedTime | ExponentialTime | LognormalTime, Field(discriminator="law"), BeforeValidator(_read_time)
]
"""A time, or a law to draw it from."""


class ClosedLoopArrivals(Part):
    """A fixed number of clients, each of which sends its next request some time after the end of its last one."""

    kind: Literal["closed_loop"] = Field(description="clients that wait for their answers: closed_loop")
    concurrency: Count = Field(description="clients; each has one request on its way, or thinks", examples=[64])
    ramp_s: Seconds = Field(
        default=0.0, description="clients begin evenly over this time, as in JMeter's ramp-up period; by default all "
        "at once, as `vllm bench serve --max-concurrency`, and the first requests then wait for one another",
        examples=["30 s"],
    )  # fmt: skip
    think_time: TimeLaw | None = Field(
        default=None, description="from the end of a request to the next one of that client: a time, or {law: fixed, "
        "exponential or lognormal, mean: …}; by default none, as `vllm bench serve --max-concurrency`",
        examples=["2 s"],
    )  # fmt: skip


class Client(Part):
    """What becomes of a request that takes too long, or is lost with its replica."""

    timeout_s: PositiveSeconds | None = Field(
        default=None, description="an attempt that takes longer is cancelled; by default none is", examples=["30 s"]
    )
    timeout_ends_with: Literal["request", "first_token"] = Field(
        default="request", description="what has to come within the timeout: the last token, or the first"
    )
    retries: CountOrZero = Field(default=0, description="attempts after the first one")
    backoff_s: Seconds = Field(
        default=0.0, description="from giving up to the next attempt; twice as long after each further one"
    )
    on_failure: Literal["retry", "fail"] = Field(
        default="retry", description="when its replica dies: sent to another one at once by the router, or failed"
    )

    @model_validator(mode="after")
    def _gives_up(self) -> Client:
        if self.timeout_s is None:
            for key in ("timeout_ends_with", "retries", "backoff_s"):
                if key in self.model_fields_set:
                    name = key.removesuffix("_s")
                    raise refused(f"{name} has no effect without a timeout; give client.timeout too", name)
        if self.retries == 0 and self.backoff_s > 0:
            raise refused("backoff has no effect without retries; give client.retries too", "backoff")
        return self


class Autoscale(Part):
    """Replicas come and go with the load: ceil(requests queued and running / target_outstanding) are wanted.

    Those that go take no new requests and leave when they have none; those that come have an empty cache.
    """

    min: Count = Field(default=1, description="replicas that stay, however low the load is")
    max: Count = Field(description="replicas at most, for which accelerators are set aside", examples=[8])
    target_outstanding: PositiveNumber = Field(description="requests queued and running per replica", examples=[32])
    interval_s: PositiveSeconds = Field(default=15.0, description="between two looks at the load")
    provisioning_delay_s: Seconds = Field(
        default=0.0, description="from the decision until a new replica serves; it is paid from the decision on"
    )
    cooldown_s: Seconds = Field(
        default=0.0, description="after any change until replicas are let go; more are started at any time"
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Autoscale:
        if self.min > self.max:
            raise refused(f"min is {self.min}, above max, {self.max}; swap them", "min")
        return self
