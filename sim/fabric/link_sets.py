"""Which links a name means (a link in both directions, all links of a switch or a host), and who crosses them."""

from __future__ import annotations

import re

import numpy as np

from sim.fabric.topology import Topology

_DIRECTED = re.compile(r"(?:(plane\d+)/)?(.+)->(.+?)(?:\.(lane\d+))?")
_NAMED = re.compile(r"(?:(plane\d+)/)?(.+)-(.+?)(?:\.(lane\d+))?")
_SWITCH = re.compile(r"(?:(plane\d+)/)?(.+)")
_HOST = re.compile(r"host(\d+)(?:\.nic\d+)?")

PATH_TIERS = ("host", "leaf-spine", "edge-aggregation", "aggregation-core")
"""Tiers with cables; NVLink and what a NIC reads from memory have no names."""


def _taken_apart(name: str) -> tuple[str | None, str, str, str | None]:
    """(plane, one end, the other end, lane) of a directed link."""
    match = _DIRECTED.fullmatch(name)
    assert match is not None, name
    return match[1], match[2], match[3], match[4]


def links_named(topology: Topology, name: str) -> tuple[int, ...]:
    """Both directions of 'leaf0-spine0': of every lane and plane, unless the name has '.lane1' or 'plane0/'."""
    wanted = _NAMED.fullmatch(name)
    if wanted is None:
        return ()
    found = []
    for i, link in enumerate(topology.link_name):
        plane, a, b, lane = _taken_apart(link)
        if {a, b} == {wanted[2], wanted[3]} and wanted[1] in (None, plane) and wanted[4] in (None, lane):
            found.append(i)
    return tuple(found)


def links_of_switch(topology: Topology, name: str) -> tuple[int, ...]:
    """Every link with an end at the switch: in all planes, unless the name begins with one ('plane1/spine3')."""
    wanted = _SWITCH.fullmatch(name)
    if wanted is None:
        return ()
    ends = {wanted[2]}
    if topology.kind == "fat_tree" and wanted[2].startswith("edge"):
        ends.add("leaf" + wanted[2].removeprefix("edge"))  # as the links of its hosts call it
    found = []
    for i, link in enumerate(topology.link_name):
        plane, a, b, _ = _taken_apart(link)
        if topology.link_tier[i] in PATH_TIERS and wanted[1] in (None, plane) and not ends.isdisjoint((a, b)):
            found.append(i)
    return tuple(found)


def links_of_host(topology: Topology, host: int) -> tuple[int, ...]:
    """The links between a host's NICs and their leaves, both directions."""
    found = []
    for i, link in enumerate(topology.link_name):
        end = _HOST.fullmatch(_taken_apart(link)[1]) or _HOST.fullmatch(_taken_apart(link)[2])
        if topology.link_tier[i] == "host" and end is not None and int(end[1]) == host:
            found.append(i)
    return tuple(found)


def some_link_of_segments(segment_start: np.ndarray, segment_link: np.ndarray, links: np.ndarray) -> np.ndarray:
    """[segments + 1] one of these links that a segment crosses, or -1; the last row stands for no segment."""
    owner = np.repeat(np.arange(len(segment_start) - 1), np.diff(segment_start))
    found = np.full(len(segment_start), -1)
    is_one = np.isin(segment_link, links)
    found[owner[is_one]] = segment_link[is_one]
    return found
