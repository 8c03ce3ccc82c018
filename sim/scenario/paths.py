"""Path policies and fidelities of a scenario."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sim.scenario.quantities import Count, Part, PositiveSeconds, Seconds, Share

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
    packet on the switch's next path in turn, with a turn for each destination leaf · least_loaded: the path with the
    fewest outstanding bytes for its rate.
    """

    policy: Literal["ideal", "ecmp", "spray", "spray_switch", "least_loaded"] = Field(
        description="how a path is chosen, as said above; ecmp by default"
    )


class AssignedPaths(_Fair):
    """Policies that gather messages for a moment and assign paths evenly.

    ethereal: the remainder in equal pieces (arXiv 2407.00550) · wrap_around: cut at the path boundaries.
    """

    policy: Literal["ethereal", "wrap_around"] = Field(
        description="how gathered messages are assigned to paths, as said above"
    )
    window_s: Seconds = Field(default=100e-9, description="how long messages are gathered")
    jitter_s: Seconds = Field(
        default=50e-9, description="each start is put off by up to this much, evenly drawn"
    )


class MultipathPaths(_Fair):
    """Each queue pair in equal static sub-flows, each hashed."""

    policy: Literal["multipath"] = Field(description="equal sub-flows of each queue pair: multipath")
    subflows: Count = Field(default=4, description="of each queue pair; by default 4")


class PacketPaths(_Fair):
    """Senders that choose a path for each packet, which only `fidelity: packet` can express.

    spray_round_robin: the next path in turn, from a random first one on · spray_random: any path · adaptive: the leaf's
    shortest queue · reps: paths whose acknowledgements came back unmarked, again (arXiv 2407.21625).
    """

    policy: Literal["spray_round_robin", "spray_random", "adaptive", "reps"] = Field(
        description="how a path is chosen for each packet, as said above"
    )


class FlowletPaths(_Fair):
    """A flow takes another random path after a pause, which only `fidelity: packet` can express."""

    policy: Literal["flowlet"] = Field(description="another path after a pause: flowlet")
    gap_s: PositiveSeconds = Field(
        default=10e-6, description="the pause; more than a round trip, so that packets stay in order"
    )


def _with_policy(value: Any) -> Any:
    """`paths: {fairness: message}` is about the default policy."""
    return {"policy": "ecmp", **value} if isinstance(value, dict) else value


Paths = Annotated[
    Annotated[PlainPaths | AssignedPaths | MultipathPaths | PacketPaths | FlowletPaths, Field(discriminator="policy")],
    BeforeValidator(_with_policy),
]


class Fluid(Part):
    """The fluid core."""

    tolerance: Share = Field(
        default=0.001,
        description="a flow finishes together with an earlier one when that moves its time by no more than "
        "this share; 0 is exact",
    )
