"""Path policies and fidelities of a scenario."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from sim.scenario.errors import quoted
from sim.scenario.quantities import Bytes, Count, Part, PositiveBytes, Seconds, Share, refused

Fairness = Literal["queue_pair", "message"]


class _Fair(Part):
    fairness: Fairness = Field(
        default="queue_pair",
        description="what gets an equal share of a link: each queue pair (a split message has several), or "
        "each message",
    )
    convergence_s: Seconds = Field(
        default=10e-3,
        description="how long after a link dies, or comes back, routing knows it: until then the dead path stays in "
        "use. A round figure: interface-down signals and withdrawals inside a data centre take milliseconds (for how "
        "they spread see RFC 7938, section 7)",
    )


class PlainPaths(_Fair):
    """Policies without parameters.

    ideal: an unlimited fabric behind real NICs · ecmp: one hashed path per queue pair · spray, spray_switch: every
    packet on the switch's next path in turn · least_loaded: the path with the fewest outstanding bytes for its rate.
    """

    policy: Literal["ideal", "ecmp", "spray", "spray_switch", "least_loaded"]


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
    """Senders that choose a path for each packet, which only `fidelity: packet` can express.

    spray_round_robin: the next path in turn, from a random first one on · spray_random: any path.
    """

    policy: Literal["spray_round_robin", "spray_random"]


class LaterPaths(_Fair):
    """Policies that look at queues, gaps or marks; they arrive later."""

    policy: Literal["adaptive", "flowlet", "reps"]

    @model_validator(mode="after")
    def _not_yet(self) -> LaterPaths:
        raise refused(
            f"'{self.policy}' has not arrived yet; the nearest policies are 'spray' and 'spray_random'", "policy"
        )


def _with_policy(value: Any) -> Any:
    """`paths: {fairness: message}` is about the default policy."""
    return {"policy": "ecmp", **value} if isinstance(value, dict) else value


Paths = Annotated[
    Annotated[PlainPaths | AssignedPaths | MultipathPaths | PacketPaths | LaterPaths, Field(discriminator="policy")],
    BeforeValidator(_with_policy),
]


WINDOW_UNITS = ("bdp", "packets")


def _read_window(value: Any) -> Any:
    """`1.5 bdp` or `80 packets` as (number, unit)."""
    number, _, unit = value.strip().partition(" ") if isinstance(value, str) else ("", "", "")
    unit = unit.strip().removesuffix("s") + "s" if unit.strip().startswith("packet") else unit.strip()
    try:
        size = float(number)
    except ValueError:
        size = math.nan
    if unit not in WINDOW_UNITS or not 0 < size < 1e6 or (unit == "packets" and size != int(size)):
        raise refused(f"{quoted(value)} is no window; write 1.5 bdp (bandwidth-delay products), or 80 packets")
    return size, unit


Window = Annotated[
    tuple[float, Literal["bdp", "packets"]],
    BeforeValidator(_read_window),
    WithJsonSchema({"type": "string", "examples": ["1.5 bdp", "80 packets"]}),
]


class WindowTransport(Part):
    """A fixed window per queue pair over lossless links: a sender waits when so much is not acknowledged."""

    kind: Literal["window"] = "window"
    window: Window = Field(default=(1.5, "bdp"), description="of the path's own rate and idle round trip")
    ack_every: Count = Field(default=4, description="data packets per acknowledgement")


class Packet(Part):
    """Packets on the wire. Both fidelities use mtu and header; transport belongs to `fidelity: packet`."""

    mtu_bytes: PositiveBytes = Field(default=4096, description="a full packet, header included")
    header_bytes: Bytes = Field(default=64, description="the part of every packet that is not payload")
    transport: WindowTransport = WindowTransport()

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
