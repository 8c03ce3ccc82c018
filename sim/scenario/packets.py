"""The packet section of a scenario: sizes on the wire, transport, and what switches hold, mark, pause and trim."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, WithJsonSchema, model_validator

from sim.scenario.errors import quoted
from sim.scenario.quantities import (
    Bytes,
    Count,
    CountOrZero,
    Flag,
    Part,
    PositiveBytes,
    PositiveNumber,
    PositiveSeconds,
    Share,
    all_refused,
    refused,
)

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

TransportKind = Literal["window", "dctcp", "dcqcn", "swift", "nscc", "ndp"]


class Transport(Part):
    """What a queue pair may have under way, and how it recovers.

    window: a fixed window · dctcp: a window cut by the share of marks (RFC 8257) · dcqcn: a rate cut by notices of
    marks, RoCE's (Zhu et al., SIGCOMM 2015) · swift: a window held to a delay (Kumar et al., SIGCOMM 2020) · nscc: a
    window steered by delay and marks (Ultra Ethernet 1.0) · ndp: credit from the receiver (Handley et al., SIGCOMM
    2017; EQDS, NSDI 2022).
    """

    kind: TransportKind = Field(
        default="window", description="how a sender decides what may be under way, as said above; by default a fixed "
        "window",
    )  # fmt: skip
    window: Window = Field(
        default=(1.5, "bdp"),
        description="the fixed window, or the first one of the others, of the path's own rate and idle round trip",
    )
    ack_every: Count = Field(default=4, description="data packets per acknowledgement")
    receiver: Literal["selective_repeat", "go_back_n"] = Field(
        default="selective_repeat",
        description="go_back_n takes packets in order only and has the sender go back, as early RoCE NICs do",
    )
    retransmission_timeout_s: PositiveSeconds = Field(
        default=100e-6, description="a sender that hears nothing new for so long sends again"
    )
    gap: CountOrZero = Field(
        default=0,
        description="packets that overtake one before it counts as lost; 0: only the timer and trimming tell "
        "(TCP's three would take reordering for loss)",
    )

    @model_validator(mode="after")
    def _gap_is_selective(self) -> Transport:
        if self.gap and self.receiver == "go_back_n":
            raise refused("a receiver that goes back tells of a gap itself; leave gap out", "gap")
        if self.gap and self.kind == "ndp":
            raise refused("trimmed headers tell ndp what is lost, and it has no credit to guess; leave gap out", "gap")
        return self


class Buffer(Part):
    """What a switch may hold. A shared buffer admits alpha times what is free of it per port (Choudhury and Hahne
    1998)."""

    per_port_bytes: PositiveBytes | None = Field(default=None, description="of one output port")
    shared_bytes: PositiveBytes | None = Field(
        default=None,
        description="of the whole switch; dctcp, dcqcn and swift: 64 MB (as in arXiv 2407.00550)",
    )
    alpha: PositiveNumber = Field(default=1.0, description="dynamic threshold over what is free")


class Marking(Part):
    """Explicit congestion notification: which packets a queue marks, by the data that it holds on their arrival."""

    from_bytes: Bytes = Field(description="below, none is marked")
    all_bytes: Bytes | None = Field(default=None, description="from here on, all are; absent: the same as from")
    most: Share = Field(default=1.0, description="probability that the marking climbs to between the two")

    @model_validator(mode="after")
    def _climbs(self) -> Marking:
        if self.all_bytes is not None and self.all_bytes < self.from_bytes:
            raise refused(f"marks all from {self.all_bytes} B on, but the first from {self.from_bytes} B", "all")
        return self


class Pause(Part):
    """Priority flow control: a link whose packets hold more of the switch than this is paused."""

    above_bytes: PositiveBytes = Field(description="pause the link above this")
    below_bytes: PositiveBytes | None = Field(
        default=None, description="let it go on at or below this; absent: two full packets less"
    )

    @model_validator(mode="after")
    def _falls(self) -> Pause:
        if self.below_bytes is not None and self.below_bytes > self.above_bytes:
            raise refused(f"goes on below {self.below_bytes} B, which is more than it pauses at", "below")
        return self


PauseOrFlag = Annotated[
    Annotated[Pause, Tag("thresholds")] | Annotated[Flag, Tag("flag")],
    Discriminator(lambda value: "flag" if isinstance(value, bool) else "thresholds"),
]


class Packet(Part):
    """Packets on the wire. Both fidelities use mtu and header; the rest belongs to `fidelity: packet`.

    Without buffer, ecn, pfc and trim, a transport has its own: window an unlimited buffer; dctcp marks above a seventh
    of a bandwidth-delay product (RFC 8257); dcqcn lossless links, marks from 50 KB to 2 MB with up to 1 % at 400 Gbit/s
    (its paper's, by rate); nscc marks from 0.2 to 0.8 products and trims at one product (its public simulator's);
    ndp trims at eight packets (its paper's).
    """

    mtu_bytes: PositiveBytes = Field(default=4096, description="a full packet, header included")
    header_bytes: Bytes = Field(default=64, description="the part of every packet that is not payload")
    transport: Transport = Field(
        default=Transport(), description="what a queue pair may have under way, and how it recovers"
    )
    buffer: Buffer | None = Field(default=None, description="absent: the transport's own")
    ecn: Marking | None = Field(default=None, description="absent: the transport's own")
    pfc: PauseOrFlag | None = Field(
        default=None, description="thresholds, or true for a share of the buffer; absent: the transport's own"
    )
    trim: Flag | None = Field(default=None, description="cut packets that find no room; absent: nscc and ndp do")
    ports: Literal["auto", "lean", "full"] = Field(
        default="auto", description="lean ports are faster and lossless; auto takes them where nothing needs more"
    )
    log: Annotated[int, Strict(), Field(ge=0, le=50_000_000)] = Field(
        default=0,
        description="rows of table `packets` at most: each packet at each link, for small runs; about 70 bytes a row",
    )

    @property
    def is_lossless(self) -> bool:
        """Whether switches pause their links: asked for, or because dcqcn needs it."""
        return bool(self.pfc) or (self.pfc is None and self.transport.kind == "dcqcn" and not self.trim)

    @model_validator(mode="after")
    def _fits(self) -> Packet:
        problems = [*self._problems()]
        if problems:
            raise all_refused(problems)
        return self

    def _problems(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.header_bytes >= self.mtu_bytes:
            yield ("header",), f"a header of {self.header_bytes} B leaves no payload in an mtu of {self.mtu_bytes} B"
        if self.pfc and self.trim:
            yield ("trim",), "a lossless switch has nothing to trim; leave out trim, or pfc"
        if self.trim and self.transport.receiver == "go_back_n":
            yield ("trim",), "a receiver that goes back cannot use trimmed packets; leave out trim, or receiver"
        if self.transport.kind in ("ndp", "nscc") and self.transport.receiver == "go_back_n":
            yield ("transport", "receiver"), f"{self.transport.kind} repeats selectively; leave receiver out"
        if self.transport.kind == "ndp" and (self.pfc or self.trim is False):
            yield ("transport", "kind"), "ndp needs trimming and lossy switches; leave out pfc and trim"
        uses_more = self.buffer or self.ecn or self.pfc or self.trim or self.transport.kind != "window"
        if self.ports == "lean" and (uses_more or self.transport.receiver == "go_back_n"):
            yield ("ports",), "lean ports have a fixed window and no limits; write ports: auto"
        for name in ("per_port_bytes", "shared_bytes"):
            size = getattr(self.buffer, name) if self.buffer else None
            if size is not None and size < self.mtu_bytes:
                yield (
                    ("buffer", name.removesuffix("_bytes")),
                    (f"{size} B hold no packet of {self.mtu_bytes} B; nothing would ever pass"),
                )
