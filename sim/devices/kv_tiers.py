"""Tiers of KV blocks behind a replica's cache: host memory, and a disk behind it, as arrays and compiled functions.

A tier keeps copies of full blocks by what they hold, and forgets the least recently used one where it is full; what
falls out of the host goes to the disk. A block lies in a tier once. The host's link carries stores and fetches at once,
a disk's one after the other; on each, transfers follow one another in the order in which they were asked for. So the
time at which one ends is known when it is asked for, and a place in a tier says from when on its block is there.

Contents are those of `sim.devices.kv_cache`: equal numbers are equal content.

Leaves out: that a block being read, or waiting in a buffer to be written, keeps its place.
Sources: vLLM, v1/kv_offload/lru_manager.py (what is not ready is not found; recency by request, its first block the
most recent); overflow to the tier behind as in SGLang's HiCache with write-back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import inner_borrowing
from sim.devices.kv_cache import NONE, KVCacheError

HOST, DISK = 0, 1
"""Places of the tiers in `Tiers.tiers`."""

PLACE = np.dtype(
    [("content", "i8"), ("ready_s", "f8"), ("before", "i4"), ("after", "i4"), ("next", "i4"), ("bucket", "i4")],
    align=True,
)  # fmt: skip
"""A place for a block: what it holds, from when on, its neighbours by recency, the next one with the same hash; and,
having nothing to do with that, the first one whose hash is this place's number."""

TIER = np.dtype(
    [("block_s", "f8"), ("latency_s", "f8"), ("fetches_until_s", "f8"), ("stores_until_s", "f8"), ("fetch_s", "f8"),
     ("store_s", "f8"), ("num_blocks", "i8"), ("first_place", "i8"), ("num_used", "i8"), ("oldest", "i8"),
     ("newest", "i8"), ("num_fetched", "i8"), ("num_stored", "i8"), ("num_placed", "i8"), ("num_evicted", "i8"),
     ("is_duplex", "i8")],
    align=True,
)  # fmt: skip
"""One tier.

block_s, latency_s      its link's time for a block, and of a fetch until its first byte
fetches_until_s, stores_until_s    when the transfers asked for so far are done
fetch_s, store_s        time of all transfers, num_fetched, num_stored    blocks in them: over the host's link also what
                        came from the disk
num_blocks, first_place, num_used    its room, and of its places those that were ever taken
num_placed, num_evicted    blocks that came and went: placed - evicted are there
"""

ASKED = np.dtype(
    [("until_s", "f8"), ("num_offered", "i4"), ("from_host", "i4"), ("from_disk", "i4"), ("num_tokens", "i4"),
     ("num_blocks", "i4"), ("next", "i4"), ("is_reading", "i4")],
    align=True,
)  # fmt: skip
"""What a request has to do with the tiers.

num_offered            of its leading blocks, those that were stored if they were not there, since it was admitted
from_host, from_disk   tokens that were fetched for it when it was first scheduled
num_blocks             of a fetch under way (0: none), and until_s    when its present part is over: is_reading: from
                       the disk to the host, else from the host to the device
num_tokens             in the cache when it has come
next                   the request + 1 that was admitted before it and is still being fetched for, 0: none
"""


@dataclass(frozen=True, slots=True)
class TierLimits:
    """One tier of a replica: kind host or disk, its room, its link's time for a block and of a fetch until its first
    byte, and the bytes that a block moves over the links of all its accelerators."""

    kind: str
    num_blocks: int
    block_s: float
    latency_s: float = 0.0
    block_bytes: int = 0


class Tiers(NamedTuple):
    """The tiers of one replica.

    places   [a power of two] PLACE: the host's, then the disk's
    tiers    [0, 1 or 2] TIER
    asked    [num_requests] ASKED
    """

    places: NDArray[Any]
    tiers: NDArray[Any]
    asked: NDArray[Any]


def new_asked(num_requests: int) -> NDArray[Any]:
    """Of requests that have not been admitted."""
    return np.zeros(num_requests, ASKED)


def new_tiers(limits: Sequence[TierLimits], most_blocks: int, asked: NDArray[Any]) -> Tiers:
    """Empty tiers, in order host, disk; no room where there are none.

    most_blocks   contents that there may be: no tier takes more memory here than for those
    asked         of all requests: replicas may share it, because a request is served by one of them
    Raises ValueError for other tiers, or times below 0.
    """
    if tuple(tier.kind for tier in limits) not in ((), ("host",), ("host", "disk")):
        raise ValueError(f"tiers are the host, or the host and a disk, got {[tier.kind for tier in limits]}")
    tiers = np.zeros(len(limits), TIER)
    first = 0
    for row, tier in zip(tiers, limits, strict=True):
        if tier.num_blocks < 0 or not 0 <= tier.block_s < np.inf or not 0 <= tier.latency_s < np.inf:
            raise ValueError(f"a tier's room and times must be at least 0 and finite, got {tier}")
        row["block_s"], row["latency_s"], row["is_duplex"] = tier.block_s, tier.latency_s, tier.kind == "host"
        row["num_blocks"], row["first_place"] = min(tier.num_blocks, most_blocks), first
        first += int(row["num_blocks"])
    found = Tiers(np.zeros(1 << max(first - 1, 0).bit_length() if limits else 0, PLACE), tiers, asked)
    clear_tiers(found)
    return found


def clear_tiers(tiers: Tiers) -> None:
    """Forget every block and every transfer; what was counted stays."""
    tiers.places["bucket"] = NONE
    tiers.tiers["oldest"] = tiers.tiers["newest"] = NONE
    tiers.tiers["num_evicted"] += tiers.tiers["num_used"]
    tiers.tiers["num_used"] = 0
    tiers.tiers["fetches_until_s"] = tiers.tiers["stores_until_s"] = 0.0


# --- where blocks are -------------------------------------------------------------------------------------------------


@inner_borrowing
def _hash(places: NDArray[Any], tier: int, content: int) -> int:
    """A bucket: shared contents are small numbers one after the other, others a request · 2^24 + a position."""
    return (content + (content >> 24) * 0x9E3779B1 + tier * 0x5BD1E995) & (places.size - 1)


@inner_borrowing
def find(places: NDArray[Any], tiers: NDArray[Any], tier: int, content: int) -> int:
    """The place of this content in the tier, or NONE."""
    place = places[_hash(places, tier, content)].bucket
    num_host = tiers[HOST].num_blocks
    while place != NONE and (places[place].content != content or (place >= num_host) != (tier == DISK)):
        place = places[place].next
    return place


@inner_borrowing
def _take_out(places: NDArray[Any], tiers: NDArray[Any], tier: int, place: int) -> None:
    """Out of the order by recency."""
    before, after = places[place].before, places[place].after
    if before == NONE:
        tiers[tier].oldest = after
    else:
        places[before].after = after
    if after == NONE:
        tiers[tier].newest = before
    else:
        places[after].before = before


@inner_borrowing
def _append(places: NDArray[Any], tiers: NDArray[Any], tier: int, place: int) -> None:
    """To the end of the order by recency."""
    last = tiers[tier].newest
    places[place].before = last
    places[place].after = NONE
    if last == NONE:
        tiers[tier].oldest = place
    else:
        places[last].after = place
    tiers[tier].newest = place


@inner_borrowing
def touch(places: NDArray[Any], tiers: NDArray[Any], content: int) -> None:
    """Wherever this content is, it is now the most recently used."""
    for tier in range(tiers.size):
        place = find(places, tiers, tier, content)
        if place != NONE and tiers[tier].newest != place:
            _take_out(places, tiers, tier, place)
            _append(places, tiers, tier, place)


@inner_borrowing
def _forget(places: NDArray[Any], tier: int, place: int) -> None:
    """Let its content be found no more."""
    bucket = _hash(places, tier, places[place].content)
    if places[bucket].bucket == place:
        places[bucket].bucket = places[place].next
        return
    before = places[bucket].bucket
    while places[before].next != place:
        before = places[before].next
    places[before].next = places[place].next


@inner_borrowing
def put(places: NDArray[Any], tiers: NDArray[Any], tier: int, content: int, ready_s: float, now_s: float) -> None:
    """Give the content, which is not there, a place, where it is from ready_s on. What falls out for it is written to
    the tier behind from now_s on, if it is there by then and not in that tier."""
    while tiers[tier].num_blocks > 0:
        t = tiers[tier]
        t.num_placed += 1
        is_full = t.num_used == t.num_blocks
        last_content, last_ready_s = content, ready_s
        if is_full:
            place = t.oldest
            last_content, last_ready_s = places[place].content, places[place].ready_s
            _forget(places, tier, place)
            _take_out(places, tiers, tier, place)
            t.num_evicted += 1
        else:
            place = t.first_place + t.num_used
            t.num_used += 1
        bucket = _hash(places, tier, content)
        places[place].content = content
        places[place].ready_s = ready_s
        places[place].next = places[bucket].bucket
        places[bucket].bucket = place
        _append(places, tiers, tier, place)
        tier += 1
        if not is_full or tier == tiers.size or find(places, tiers, tier, last_content) != NONE:
            return
        if tiers[tier].num_blocks == 0:
            return
        content = last_content
        ready_s = stored_s(tiers, tier, max(now_s, last_ready_s))


# --- transfers --------------------------------------------------------------------------------------------------------


@inner_borrowing
def fetched_s(tiers: NDArray[Any], tier: int, from_s: float, num_blocks: int) -> float:
    """When a fetch of so many blocks is done that is asked for at from_s."""
    t = tiers[tier]
    seconds = t.latency_s + num_blocks * t.block_s
    t.fetches_until_s = max(t.fetches_until_s, from_s) + seconds
    if t.is_duplex == 0:
        t.stores_until_s = t.fetches_until_s
    t.fetch_s += seconds
    t.num_fetched += num_blocks
    return t.fetches_until_s


@inner_borrowing
def stored_s(tiers: NDArray[Any], tier: int, from_s: float) -> float:
    """When a block is stored that is there to be sent from from_s on."""
    t = tiers[tier]
    t.stores_until_s = max(t.stores_until_s, from_s) + t.block_s
    if t.is_duplex == 0:
        t.fetches_until_s = t.stores_until_s
    t.store_s += t.block_s
    t.num_stored += 1
    return t.stores_until_s


def check_tiers(found: Tiers) -> None:
    """Raise KVCacheError unless each tier's blocks are in order once, found by their content, each content once, no
    more than there is room for, and as many as came and did not go."""
    for tier, t in enumerate(found.tiers):
        first, num_used = int(t["first_place"]), int(t["num_used"])
        if num_used > t["num_blocks"] or t["num_placed"] - t["num_evicted"] != num_used:
            raise KVCacheError(
                f"tier {tier} has {num_used} of {t['num_blocks']} blocks, of {t['num_placed']} that came and "
                f"{t['num_evicted']} that went"
            )
        place, before = int(t["oldest"]), NONE
        order: list[int] = []
        while place != NONE and len(order) <= num_used:
            if found.places["before"][place] != before:
                raise KVCacheError(f"tier {tier}: place {place} comes after {before}, and says otherwise")
            order.append(place)
            before, place = place, int(found.places["after"][place])
        if sorted(order) != list(range(first, first + num_used)) or before != t["newest"]:
            raise KVCacheError(f"tier {tier}: {len(order)} places are in order, {num_used} are taken")
        contents = found.places["content"][order].tolist()
        if len(set(contents)) != len(contents):
            raise KVCacheError(f"tier {tier} has a content twice")
    chained: list[int] = []
    for start in found.places["bucket"].tolist():
        place = start
        while place != NONE and len(chained) <= len(found.places):
            chained.append(place)
            place = int(found.places["next"][place])
    taken = [int(t["first_place"]) + i for t in found.tiers for i in range(int(t["num_used"]))]
    if sorted(chained) != taken:
        raise KVCacheError(f"{len(chained)} places are found by their content, {len(taken)} are taken")
