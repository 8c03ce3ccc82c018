"""Links of a run: their tables, and the metrics of the whole fabric."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.engine.recorder import Recorder
from sim.fabric.topology import Topology

MOST_SERIES_ROWS = 400_000
"""Rows of `link_series`; with many links the stretches of time get longer instead."""


class LinkLedger(Protocol):
    def link_bytes(self) -> tuple[np.ndarray, np.ndarray]: ...

    def link_series(self) -> tuple[np.ndarray, np.ndarray]: ...

    def queue_metrics(self, now_s: float) -> dict[str, float | None]: ...

    def queue_columns(self, now_s: float) -> dict[str, np.ndarray]: ...

    def wait_series(self) -> np.ndarray | None: ...

    def packet_log(self) -> tuple[dict[str, np.ndarray], int]: ...


def load_over_fair(topology: Topology, payload_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A link's payload per rate over that of its switch group and direction; NaN outside of groups.

        load_over_fair = (payload / rate) / (sum of payload / sum of rate)

    A group holds the links that path policies choose between: all uplinks of a leaf (over planes and lanes),
    all links down to it, and in a fat tree those between a pod and the cores. NaN where a group is idle.
    """
    direction = np.array([d == "up" for d in topology.link_direction])
    key = np.where(topology.link_group >= 0, 2 * topology.link_group + direction, -1)
    out = np.full(topology.num_links, np.nan)
    grouped = key >= 0
    if not grouped.any():
        return out
    total = np.bincount(key[grouped], weights=payload_bytes[grouped])
    rate = np.bincount(key[grouped], weights=topology.link_rate[grouped])
    fair = total[key[grouped]] / rate[key[grouped]]
    with np.errstate(invalid="ignore", divide="ignore"):
        out[grouped] = np.where(fair > 0, payload_bytes[grouped] / topology.link_rate[grouped] / fair, np.nan)
    return out


def link_metrics(topology: Topology, fabric: LinkLedger, now_s: float) -> dict[str, float | None]:
    """`links.<metric>` of a run.

    max_load_over_fair   largest `load_over_fair`; None without traffic between switches
    payload_bytes        payload that left hosts; wire_bytes likewise, headers included
    max_utilisation      busiest link between switches or to a host: wire bytes / (rate x whole time)
    and, of packets, what their fabric says of queues
    """
    payload, wire = fabric.link_bytes()
    share = load_over_fair(topology, payload)
    tier = np.array(topology.link_tier)
    leaving = (tier == "host") & (np.array(topology.link_direction) == "up")
    outside = ~np.isin(tier, ["nvlink", "injection"])
    busiest = (wire / topology.link_rate)[outside].max() / now_s if now_s > 0 else None
    return {
        "links.max_load_over_fair": None if np.isnan(share).all() else float(np.nanmax(share)),
        "links.payload_bytes": float(payload[leaving].sum()),
        "links.wire_bytes": float(wire[leaving].sum()),
        "links.max_utilisation": None if busiest is None else float(busiest),
        **{f"links.{name}": value for name, value in fabric.queue_metrics(now_s).items()},
    }


def record_links(recorder: Recorder, topology: Topology, fabric: LinkLedger, now_s: float) -> None:
    """Rows of `links` and `link_series`."""
    payload, wire = fabric.link_bytes()
    names = np.array(topology.link_name)
    between = topology.link_spine >= 0
    recorder.append(
        "links",
        link=names,
        group=[_group_name(topology, i) for i in range(topology.num_links)],
        direction=np.array(topology.link_direction),
        tier=np.array(topology.link_tier),
        rate_bytes_per_s=topology.link_rate,
        payload_bytes=payload,
        wire_bytes=wire,
        load_over_fair=load_over_fair(topology, payload),
        leaf=np.where(topology.link_leaf >= 0, topology.link_leaf, np.nan),
        spine=np.where(between, topology.link_spine, np.nan),
        **fabric.queue_columns(now_s),
    )
    edges, utilisation = fabric.link_series()
    active = np.flatnonzero((utilisation > 0).any(axis=1))
    width = np.diff(edges)
    together = max(1, -(-len(active) * len(width) // MOST_SERIES_ROWS))
    starts = np.arange(0, len(width), together)
    if not len(active):
        return
    span = np.add.reduceat(width, starts)
    mean = np.add.reduceat(utilisation[active] * width, starts, axis=1) / span
    waits = fabric.wait_series()
    queues = {}
    if waits is not None:
        queues["longest_wait_s"] = np.maximum.reduceat(waits[active], starts, axis=1).ravel()
    recorder.append(
        "link_series",
        time_s=np.tile(edges[starts], len(active)),
        span_s=np.tile(span, len(active)),
        link=np.repeat(names[active], len(starts)),
        utilisation=mean.ravel(),
        **queues,
    )


def record_packets(recorder: Recorder, fabric: LinkLedger) -> list[str]:
    """Rows of `packets`, if the run keeps a packet log. Returns what the log leaves out, in words."""
    columns, num_unlogged = fabric.packet_log()
    if columns and len(columns["time_s"]):
        recorder.append("packets", **columns)
    if not num_unlogged:
        return []
    num_rows = len(columns["time_s"])
    return [f"the packet log holds the first {num_rows:,} of {num_rows + num_unlogged:,} events; give packet.log more"]


def _group_name(topology: Topology, link: int) -> str | None:
    group = int(topology.link_group[link])
    if group < 0:
        return None
    if topology.link_tier[link] == "aggregation-core":
        return f"pod{group - topology.num_leaves}"
    return f"leaf{group}"
