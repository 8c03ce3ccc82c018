"""What dead links do to a run, packet by packet: who is behind them, and when waiting is in vain."""

from __future__ import annotations

import numpy as np

from sim.fabric.link_sets import some_link_of_segments
from sim.fabric.packet_state import FIXED, PS_PER_S, PacketState
from sim.fabric.topology import Topology

TIMEOUTS = 100
"""So many retransmission timeouts without news are enough, when no repair is to come."""


class Patience:
    """Behind a dead link, timers fire for ever. Until anything is done to the fabric from outside, the core runs in
    stretches of many timeouts, and is over when links are dead and a stretch has brought nothing new."""

    def __init__(self) -> None:
        self.is_over = False
        self._until_s = -np.inf
        self._seen: tuple[int, int, int] | None = None

    def until_s(self, state: PacketState, next_s: float) -> float:
        """How long the core may run on, given that SimPy has no event left."""
        if not _is_dead(state).any():
            return np.inf
        if next_s > self._until_s:
            news = _news(state)
            self.is_over = news == self._seen and int(state.c["num_agenda"][0]) == 0
            self._seen, self._until_s = news, next_s + _stretch_s(state)
        return -np.inf if self.is_over else self._until_s


def _is_dead(state: PacketState) -> np.ndarray:
    """[ports] what enters the link never arrives."""
    if "is_down" not in (state.ports.dtype.names or ()):
        return np.zeros(0, np.bool_)
    return state.ports["is_down"] | (state.ports["loss"] >= 1.0)


def _news(state: PacketState) -> tuple[int, int, int]:
    """Changes whenever a receiver or a sender gets on, or a piece starts."""
    pieces = state.pieces
    return int(pieces["received"].sum()), int(pieces["acknowledged"].sum()), int(state.c["num_pieces"][0])


def _stretch_s(state: PacketState) -> float:
    """TIMEOUTS of them, three of the senders that watch their paths, and some packets over the slowest link."""
    c = state.c[0]
    slowest = state.paces["full_time"] + state.paces["latency"]
    return max(TIMEOUTS * int(c["rto"]), 3 * int(c["path_timeout"]), 4 * int(slowest.max())) / PS_PER_S


def _live(state: PacketState) -> np.ndarray:
    return np.flatnonzero((state.pieces["message"] >= 0) & ~state.pieces["is_settled"])


def num_messages_across(state: PacketState, topology: Topology, links: np.ndarray) -> int:
    """Messages with a piece that may cross one of these links."""
    t = topology
    crosses = some_link_of_segments(t.segment_start, t.segment_link, links) >= 0
    pieces = state.pieces[_live(state)]
    is_sprayed = pieces["spray"] != FIXED
    num_paths = np.array([scope.num_paths for scope in t.scopes])[pieces["scope"]]
    is_hit = np.zeros(len(pieces), np.bool_)
    for name, num_segments in (("out", t.num_planes), ("up", num_paths), ("down", num_paths), ("into", t.num_planes)):
        spread = np.where(is_sprayed, num_segments, 0)  # the segment over all follows those of single paths
        is_hit |= crosses[np.where(pieces[name] >= 0, pieces[name] + spread, -1)]
    return len(np.unique(pieces["message"][is_hit]))


def held_up(state: PacketState, topology: Topology) -> dict[int, str]:
    """Rows of messages with a piece whose every path crosses a dead link -> such a link."""
    t = topology
    dead = np.flatnonzero(_is_dead(state)[: t.num_links])
    dead_link = some_link_of_segments(t.segment_start, t.segment_link, dead)
    found: dict[int, str] = {}
    for piece in state.pieces[_live(state)]:
        links = [_first_dead(dead_link, route) for route in _routes(piece, topology)]
        if piece["is_started"] and all(link >= 0 for link in links):
            found[int(piece["message"])] = t.link_name[links[0]]
    return found


def _first_dead(dead_link: np.ndarray, route: list[int]) -> int:
    return next((int(dead_link[s]) for s in route if dead_link[s] >= 0), -1)


def _routes(piece: np.void, topology: Topology) -> list[list[int]]:
    """Segments of every path that the piece may take; -1: none."""
    out, up, down, into = (int(piece[name]) for name in ("out", "up", "down", "into"))
    if piece["spray"] == FIXED:
        return [[out, up, down, into]]
    scope = topology.scopes[int(piece["scope"])]
    found = []
    for path in range(scope.num_paths):
        plane = int(scope.plane[path])
        above = [up + path, down + path] if up >= 0 else []
        found.append([out + plane, *above, into + plane])
    return found
