"""Path policies: which of the equal-cost paths a message takes.

A flow policy is one compiled function `choose(batch, count, network, placed) -> number of pieces`. It sees the
messages that became ready together (sorted by id) and writes pieces: (entry of the batch, path up, path
down, payload bytes, weight). Path number `num_paths` means "spread evenly over all"; NO_FABRIC means a fabric
without limits. When `placed` is too small it returns minus the number it needs and is called again.

To add one: a function, a line in PATH_POLICIES, a schema entry, a test.

Functions enter the core as `cfunc`s of one type, so a new policy never recompiles the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import cfunc, int64, njit, typeof, types, uint64

from models.compiled import inner

NO_FABRIC = -1


ENTRY = np.dtype(
    [
        ("source", "i8"),  # accelerator ids
        ("destination", "i8"),
        ("source_leaf", "i8"),
        ("destination_leaf", "i8"),
        ("scope", "i8"),
        ("num_paths", "i8"),
        ("leaf_choices", "i8"),  # what the leaf's hash picks from
        ("next_choices", "i8"),  # what the next switch's hash picks from
        ("down_lanes", "i8"),  # parallel links down, picked by the last switch on the way up
        ("source_nic", "i8"),
        ("destination_nic", "i8"),
        ("size_bytes", "i8"),
        ("wire_bytes", "i8"),
        ("queue_pairs", "i8"),
        ("start_delay_s", "f8"),  # out: seconds between the decision and the first byte
    ],
    align=True,
)
"""One message of a batch, as the policy sees it."""

PLACED = np.dtype(
    [("entry", "i8"), ("path_up", "i8"), ("path_down", "i8"), ("payload_bytes", "i8"), ("weight", "f8")], align=True
)
"""Out: one piece of a message on one path."""


class PathNetwork(NamedTuple):
    """What a policy may know of the fabric, and the state it keeps.

    nic_up, nic_down  [nics] first segment; + plane
    outstanding  [links] wire bytes assigned and not yet sent; brought up to date before each call if the policy asks;
                 a policy adds what it places, so that the next message of the batch sees it
    random       [1] state of the policy's random numbers
    parameters   [5] subflows, jitter_s, window_s, seed, now_s
    withdrawn    [links] dead as routing knows it
    bad_until_s  [leaves, leaves, paths] until when senders avoid a path; without a row where they never do
    """

    leaf_up: np.ndarray  # [leaves, scopes] first segment of that scope
    leaf_down: np.ndarray
    nic_up: np.ndarray
    nic_down: np.ndarray
    pod_of_leaf: np.ndarray
    segment_start: np.ndarray
    segment_link: np.ndarray
    rate: np.ndarray
    outstanding: np.ndarray
    random: np.ndarray
    parameters: np.ndarray
    withdrawn: np.ndarray
    bad_until_s: np.ndarray


SUBFLOWS, JITTER, WINDOW, SEED, NOW = 0, 1, 2, 3, 4


def path_network(topology, parameters, seed: int) -> PathNetwork:
    return PathNetwork(
        topology.leaf_up, topology.leaf_down, topology.nic_up, topology.nic_down, topology.pod_of_leaf,
        topology.segment_start, topology.segment_link, topology.link_rate.copy(), np.zeros(topology.num_links),
        np.array([seed], np.uint64), np.array([*parameters, 0.0]), np.zeros(topology.num_links, np.bool_),
        np.zeros((0, 0, 0)),
    )  # fmt: skip


def _example_network() -> PathNetwork:
    i2, i1, f1 = np.zeros((1, 3), np.int64), np.zeros(1, np.int64), np.zeros(1)
    flags, cube = np.zeros(1, np.bool_), np.zeros((0, 0, 0))
    return PathNetwork(i2, i2, i1, i1, i1, i1, i1, f1, f1, np.zeros(1, np.uint64), f1, flags, cube)


SIGNATURE = int64(typeof(np.zeros(1, ENTRY)), int64, typeof(_example_network()), typeof(np.zeros(1, PLACED)))
FUNCTION_TYPE = types.FunctionType(SIGNATURE)


# --- random numbers and hashes in compiled code -------------------------------------------------------------------


@njit(cache=True)
def mix(x):
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a 64-bit hash of a 64-bit number."""
    x = uint64(x)
    x = uint64(x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = uint64(x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return uint64(x ^ (x >> uint64(31)))


@inner
def next_random(state):
    """The next 64 random bits of `state` [1] (SplitMix64)."""
    state[0] = uint64(state[0] + uint64(0x9E3779B97F4A7C15))
    return mix(state[0])


@njit(cache=True)
def random_below(state, n):
    """A whole number in 0 … n - 1. The bias of the modulo is below n / 2^64."""
    return int64(next_random(state) % uint64(n))


@njit(cache=True)
def shuffle(state, values, first, last):
    """Fisher-Yates over values[first:last]."""
    for i in range(last - 1, first, -1):
        j = first + random_below(state, i - first + 1)
        values[i], values[j] = values[j], values[i]


LEAF, NEXT, LAST = 0, 1, 2
"""Where on the way a switch hashes."""


@inner
def switch_hash(header, seed, place, switch):
    """What a switch makes of a header. The seed is mixed first: near seeds must not give one switch another's hash."""
    return mix(header ^ mix(mix(seed) + uint64(4 * switch + place)))


@inner
def header_of(source, destination, queue_pair):
    """What tells one queue pair's packets from another's, mixed."""
    header = mix(uint64(source) * uint64(0x9E3779B97F4A7C15) + uint64(destination))
    return mix(header + uint64(queue_pair))


@inner
def is_withdrawn(network, s):
    """Whether routing knows a link of segment s to be dead."""
    for e in range(network.segment_start[s], network.segment_start[s + 1]):
        if network.withdrawn[network.segment_link[e]]:
            return True
    return False


@inner
def is_good(network, source_leaf, destination_leaf, scope, path, heeds_marks):
    """Whether a path is in use: not withdrawn by routing, nor, if there are marks to heed, avoided by senders."""
    if heeds_marks and network.bad_until_s[source_leaf, destination_leaf, path] > network.parameters[NOW]:
        return False
    up, down = network.leaf_up[source_leaf, scope], network.leaf_down[destination_leaf, scope]
    return up < 0 or not (is_withdrawn(network, up + path) or is_withdrawn(network, down + path))


@njit(cache=True)
def _good_paths(network, entry):
    """The paths of a leaf pair that are in use, in order; all of them when none is."""
    paths = np.arange(entry.num_paths)
    has_marks = len(network.bad_until_s) > 0
    if not has_marks:
        return paths
    count = 0
    for path in range(entry.num_paths):
        if is_good(network, entry.source_leaf, entry.destination_leaf, entry.scope, path, has_marks):
            paths[count] = path
            count += 1
    return paths[:count] if count > 0 else np.arange(entry.num_paths)


@inner
def hashed_path(batch, network, i, queue_pair):
    """ECMP's path of a queue pair: every switch hashes the same header with a seed of its own.

    The leaf picks one of radix 0, the next switch one of radix 1, and the last switch on the way up one of the
    parallel links down. With one seed for all tiers the choices would polarise. Returns (path up, path down).
    """
    seed = uint64(network.parameters[SEED])
    header = header_of(batch[i].source, batch[i].destination, queue_pair)
    leaf = batch[i].source_leaf
    r0, r1, lanes = batch[i].leaf_choices, batch[i].next_choices, batch[i].down_lanes
    d0 = int64(switch_hash(header, seed, LEAF, leaf) % uint64(r0))
    path = d0
    if r1 > 1:
        aggregation = network.pod_of_leaf[leaf] * r0 + d0  # shared by its pod
        path = d0 * r1 + int64(switch_hash(header, seed, NEXT, aggregation) % uint64(r1))
    down = path
    if lanes > 1:
        spine = path // lanes
        down = spine * lanes + int64(switch_hash(header, seed, LAST, spine) % uint64(lanes))
    return path, down


@njit(cache=True)
def _put(placed, n, entry, up, down, payload_bytes, weight):
    placed[n].entry = entry
    placed[n].path_up = up
    placed[n].path_down = down
    placed[n].payload_bytes = payload_bytes
    placed[n].weight = weight
    return n + 1


@njit(cache=True)
def _hash_subflows(batch, count, network, placed, per_queue_pair):
    """Each queue pair becomes `per_queue_pair` sub-flows, hashed independently; bytes split as evenly as they go."""
    needed = 0
    for i in range(count):
        needed += batch[i].queue_pairs * per_queue_pair
    if needed > len(placed):
        return -needed
    n = 0
    for i in range(count):
        k = batch[i].queue_pairs * per_queue_pair
        size = batch[i].size_bytes
        for q in range(k):
            part = size // k + (1 if q < size % k else 0)
            if part == 0 and q > 0:
                break
            up, down = hashed_path(batch, network, i, q)
            n = _put(placed, n, i, up, down, part, 1.0)
    return n


# --- the policies ---------------------------------------------------------------------------------------------------


def choose_ideal(batch, count, network, placed):
    """No fabric between the NICs."""
    if count > len(placed):
        return -count
    for i in range(count):
        _put(placed, i, i, NO_FABRIC, NO_FABRIC, batch[i].size_bytes, float(batch[i].queue_pairs))
    return count


def choose_ecmp(batch, count, network, placed):
    """One hashed path per queue pair (RFC 2992 in spirit; a hash seed per switch)."""
    return _hash_subflows(batch, count, network, placed, 1)


def choose_multipath(batch, count, network, placed):
    """Each queue pair is cut into k static sub-flows, each hashed on its own (they may collide)."""
    return _hash_subflows(batch, count, network, placed, int64(network.parameters[SUBFLOWS]))


def choose_spray(batch, count, network, placed):
    """Every packet to the next path in turn: in fluid, 1/s of the rate on each of the s paths."""
    if count > len(placed):
        return -count
    for i in range(count):
        _put(placed, i, i, batch[i].num_paths, batch[i].num_paths, batch[i].size_bytes, float(batch[i].queue_pairs))
    return count


@njit(cache=True)
def _grouped(batch, count, state, by_size):
    """Entries ordered so that groups (leaf pair, and size if asked) are consecutive; flows shuffled inside.

    The order in which the groups come is shuffled as well. Returns (order, group starts with the end appended).
    """
    order = np.arange(count)
    key = np.empty(count, np.int64)
    if by_size:
        for i in range(count):
            key[i] = batch[i].size_bytes
        order = np.argsort(key, kind="mergesort")
    for i in range(count):
        key[i] = batch[order[i]].source_leaf << 32 | batch[order[i]].destination_leaf
    order = order[np.argsort(key, kind="mergesort")]
    starts = np.empty(count + 1, np.int64)
    num_groups = 0
    for k in range(count):
        i = order[k]
        if k == 0:
            new = True
        else:
            j = order[k - 1]
            new = (
                batch[i].source_leaf != batch[j].source_leaf
                or batch[i].destination_leaf != batch[j].destination_leaf
                or (by_size and batch[i].size_bytes != batch[j].size_bytes)
            )
        if new:
            starts[num_groups] = k
            num_groups += 1
    starts[num_groups] = count
    for g in range(num_groups):
        shuffle(state, order, starts[g], starts[g + 1])
    turn = np.arange(num_groups)
    shuffle(state, turn, 0, num_groups)
    shuffled = np.empty(count, np.int64)
    shuffled_starts = np.empty(num_groups + 1, np.int64)
    n = 0
    for k in range(num_groups):
        g = turn[k]
        shuffled_starts[k] = n
        for j in range(starts[g], starts[g + 1]):
            shuffled[n] = order[j]
            n += 1
    shuffled_starts[num_groups] = n
    return shuffled, shuffled_starts


@njit(cache=True)
def _gcd(a, b):
    while b:
        a, b = b, a % b
    return a


@njit(cache=True)
def _draw_jitter(batch, count, network):
    """Whole nanoseconds U{0 … jitter}, against synchronised incast."""
    steps = int64(np.round(network.parameters[JITTER] * 1e9)) + 1
    for i in range(count):
        batch[i].start_delay_s = random_below(network.random, steps) * 1e-9


def choose_ethereal(batch, count, network, placed):
    """Ethereal (arXiv 2407.00550): whole flows round robin, the last n mod s of a group in equal pieces.

    A group is the n flows of one size from this leaf to another; s paths, r = n mod s, g = gcd(r, s). The first
    n - r flows go whole; each of the last r is cut into s / g equal pieces (the last takes the byte remainder),
    all continuing one round robin over shuffled paths. The maximum load equals ideal spraying's. Paths known to be
    bad are left out of s.
    """
    order, starts = _grouped(batch, count, network.random, True)
    needed = 0
    for g in range(len(starts) - 1):
        n = starts[g + 1] - starts[g]
        s = len(_good_paths(network, batch[order[starts[g]]]))
        r = n % s
        needed += n - r + (r * (s // _gcd(r, s)) if r else 0)
    if needed > len(placed):
        return -needed
    _draw_jitter(batch, count, network)
    num_pieces = 0
    for g in range(len(starts) - 1):
        n = starts[g + 1] - starts[g]
        paths = _good_paths(network, batch[order[starts[g]]])
        s = len(paths)
        shuffle(network.random, paths, 0, s)
        r = n % s
        cuts = s // _gcd(r, s) if r else 1
        turn = 0
        for k in range(n):
            i = order[starts[g] + k]
            size, weight = batch[i].size_bytes, float(batch[i].queue_pairs)
            parts = cuts if k >= n - r else 1
            part = size // parts
            for piece in range(parts):
                payload = part if piece < parts - 1 else size - part * (parts - 1)
                path = paths[turn % s]
                turn += 1
                if payload == 0 and parts > 1 and size > 0:
                    continue
                num_pieces = _put(placed, num_pieces, i, path, path, payload, weight)
                if size == 0:
                    break
    return num_pieces


def choose_wrap_around(batch, count, network, placed):
    """The flows to one leaf laid end to end and cut at the s path boundaries: at most s - gcd(n, s) extra pieces.

    With N bytes in the group, path j gets bytes [j N / s, (j + 1) N / s), rounded down to whole bytes: equal load
    whatever the sizes are, with fewer pieces than equal ones need, at the price of unequal pieces.
    """
    order, starts = _grouped(batch, count, network.random, False)
    needed = 0
    for g in range(len(starts) - 1):
        needed += starts[g + 1] - starts[g] + batch[order[starts[g]]].num_paths
    if needed > len(placed):
        return -needed
    _draw_jitter(batch, count, network)
    num_pieces = 0
    for g in range(len(starts) - 1):
        paths = _good_paths(network, batch[order[starts[g]]])
        s = len(paths)
        shuffle(network.random, paths, 0, s)
        total = 0
        for k in range(starts[g], starts[g + 1]):
            total += batch[order[k]].size_bytes
        position, j = 0, 0
        for k in range(starts[g], starts[g + 1]):
            i = order[k]
            weight = float(batch[i].queue_pairs)
            left = batch[i].size_bytes
            if left == 0:
                num_pieces = _put(placed, num_pieces, i, paths[min(j, s - 1)], paths[min(j, s - 1)], 0, weight)
            while left > 0:
                boundary = (j + 1) * total // s
                if boundary <= position:
                    j += 1
                    continue
                part = min(left, boundary - position)
                num_pieces = _put(placed, num_pieces, i, paths[j], paths[j], part, weight)
                position += part
                left -= part
    return num_pieces


def choose_least_loaded(batch, count, network, placed):
    """The path with the smallest maximum over its links of outstanding bytes / rate; ties at random.

    Its links are those between the leaves; on one leaf, where planes are the only choice, the NICs' ports.
    Live state, seen at once and everywhere (no delay): the best a placement without cutting flows could know.
    """
    if count > len(placed):
        return -count
    for i in range(count):
        scope = batch[i].scope
        up = network.leaf_up[batch[i].source_leaf, scope]
        down = network.leaf_down[batch[i].destination_leaf, scope]
        if up < 0:
            up, down = network.nic_up[batch[i].source_nic], network.nic_down[batch[i].destination_nic]
        best, best_load, ties = 0, np.inf, 0
        for path in range(batch[i].num_paths):
            load = 0.0
            for base in (up, down):
                for e in range(network.segment_start[base + path], network.segment_start[base + path + 1]):
                    link = network.segment_link[e]
                    load = max(load, network.outstanding[link] / network.rate[link])
            if load < best_load:
                best, best_load, ties = path, load, 1
            elif load == best_load:
                ties += 1
                if random_below(network.random, ties) == 0:
                    best = path
        for base in (up, down):
            for e in range(network.segment_start[base + best], network.segment_start[base + best + 1]):
                network.outstanding[network.segment_link[e]] += batch[i].wire_bytes
        _put(placed, i, i, best, best, batch[i].size_bytes, float(batch[i].queue_pairs))
    return count


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """A policy and what the core must know about it.

    decides    what one decision covers: "flow", "packet" (no fluid meaning) or "switch"
    window_s   messages that become ready within it are decided together, per source leaf
    is_live    it reads the outstanding bytes of links
    timeout_s  a queue pair that hears nothing for so long marks its path bad for bad_for_s and moves to a random good
               one; None: only routing moves what is under way
    spray      how packets of a spread piece choose among the paths, see packet_state.SPRAYS; None: none are
    """

    name: str
    choose: Callable
    decides: str
    summary: str
    source: str
    window_s: float = 0.0
    jitter_s: float = 0.0
    is_live: bool = False
    spray: str | None = None
    timeout_s: float | None = None
    bad_for_s: float = 0.0


PATH_POLICIES: dict[str, PathPolicy] = {
    p.name: p
    for p in (
        PathPolicy("ideal", choose_ideal, "flow", "an unlimited fabric behind real NICs", "definition"),
        PathPolicy("ecmp", choose_ecmp, "flow", "one hashed path per queue pair, a hash seed per switch", "RFC 2992"),
        PathPolicy("spray", choose_spray, "switch", "every packet to the next path in turn, at the switch",
                   "Dixit et al., INFOCOM 2013", spray="switch"),
        PathPolicy("spray_switch", choose_spray, "switch", "spray by its full name: in turn, at the switch",
                   "Dixit et al., INFOCOM 2013", spray="switch"),
        PathPolicy("spray_round_robin", choose_spray, "packet", "every packet to the next path in turn, at the sender",
                   "definition; a random first path per flow", spray="round_robin"),
        PathPolicy("spray_random", choose_spray, "packet", "every packet to a random path, at the sender",
                   "arXiv 2407.00550, its baseline", spray="random"),
        PathPolicy("adaptive", choose_spray, "packet", "every packet to the shortest queue, at the switch",
                   "Ghorbani et al., SIGCOMM 2017 (DRILL)", spray="adaptive"),
        PathPolicy("flowlet", choose_spray, "packet", "another random path after a pause in the flow",
                   "Vanini et al., NSDI 2017 (LetFlow)", spray="flowlet"),
        PathPolicy("reps", choose_spray, "packet", "paths whose acknowledgements came back unmarked are used again",
                   "arXiv 2407.21625", spray="reps"),
        PathPolicy("ethereal", choose_ethereal, "flow", "assigned paths, the remainder in equal pieces",
                   "arXiv 2407.00550", window_s=100e-9, jitter_s=50e-9, timeout_s=1e-3, bad_for_s=100e-3),
        PathPolicy("wrap_around", choose_wrap_around, "flow", "assigned paths, cut at the path boundaries",
                   "own, after arXiv 2407.00550", window_s=100e-9, jitter_s=50e-9, timeout_s=1e-3, bad_for_s=100e-3),
        PathPolicy("least_loaded", choose_least_loaded, "flow", "the path with the fewest outstanding bytes per rate",
                   "definition", is_live=True),
        PathPolicy("multipath", choose_multipath, "flow", "k static sub-flows per queue pair, each hashed",
                   "Raiciu et al., SIGCOMM 2011"),
    )
}  # fmt: skip

_compiled: dict[str, object] = {}


def compiled(policy: PathPolicy):
    """The policy as a native function of FUNCTION_TYPE; compiled once, cached on disk."""
    if policy.name not in _compiled:
        _compiled[policy.name] = cfunc(SIGNATURE, cache=True)(policy.choose)
    return _compiled[policy.name]
