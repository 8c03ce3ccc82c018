"""Path policies and fidelities of a scenario."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.scenario.quantities import Bytes, Count, Part, PositiveBytes, Seconds, Share, refused

Fairness = Literal["queue_pair", "message"]


class _Fair(Part):
    fairness: Fairness = Field(
        default="queue_pair",
        description="what gets an equal share of a link: each queue pair (a split message has several), or "
        "each message",
    )


class PlainPaths(_Fair):
    """Policies without parameters.

    ideal: an unlimited fabric behind real NICs · ecmp: one hashed path per queue pair · spray: every packet
    on the next path in turn · least_loaded: the path with the fewest outstanding bytes for its rate.
    """

    policy: Literal["ideal", "ecmp", "spray", "least_loaded"]


class AssignedPaths(_Fair):
    """Policies that gather messages for a moment and assign paths evenly.

    ethereal: the remainder in equal pieces (arXiv 2407.00550) · wrap_around: cut at the path boundaries.
    """

    policy: Literal["ethereal", "wrap_around"]
    window_s: Seconds = Field(default=100e-9, description="how long messages are gathered")
    jitter_s: Seconds = Field(
        default=50e-9, description="each start is put off by up to this much, evenly drawn"
    )


class MultipathPaths(_Fair):
    """Each queue pair in equal static sub-flows, each hashed."""

    policy: Literal["multipath"]
    subflows: Count = 4


class PacketPaths(_Fair):
    """Policies that decide for each packet; the fluid core cannot express them."""

    policy: Literal["spray_round_robin", "spray_random", "adaptive", "flowlet", "reps"]

    @model_validator(mode="after")
    def _needs_packets(self) -> PacketPaths:
        raise refused(
            f"'{self.policy}' decides packet by packet, which the fluid core cannot express, and the packet "
            "core has not arrived yet; the nearest policy here is 'spray'",
            "policy",
        )


def _with_policy(value: Any) -> Any:
    """`paths: {fairness: message}` is about the default policy."""
    return {"policy": "ecmp", **value} if isinstance(value, dict) else value


Paths = Annotated[
    Annotated[PlainPaths | AssignedPaths | MultipathPaths | PacketPaths, Field(discriminator="policy")],
    BeforeValidator(_with_policy),
]


class Packet(Part):
    """Packets on the wire; the fluid core uses mtu and header, the rest waits for the packet core."""

    mtu_bytes: PositiveBytes = Field(default=4096, description="a full packet, header included")
    header_bytes: Bytes = Field(default=64, description="the part of every packet that is not payload")
    transport: dict[str, Any] | None = Field(
        default=None, description="read by the packet core, once it is there"
    )

    @model_validator(mode="after")
    def _has_room(self) -> Packet:
        if self.header_bytes >= self.mtu_bytes:
            raise refused(
                f"a header of {self.header_bytes} B leaves no payload in an mtu of {self.mtu_bytes} B",
                "header",
            )
        return self


class Fluid(Part):
    """The fluid core."""

    tolerance: Share = Field(
        default=0.001,
        description="a flow finishes together with an earlier one when that moves its time by no more than "
        "this share; 0 is exact",
    )


class Fault(Part):
    """A link or host that changes during the run; arrives with the packet core."""

    at_s: Seconds
    until_s: Seconds | None = None
    link: str | None = None
    host: int | None = None
    rate_bytes_per_s: Any = None
    state: Literal["up", "down"] | None = None
