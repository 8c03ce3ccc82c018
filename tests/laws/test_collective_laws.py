"""Laws of collectives, for any number of ranks and any size: each plan is executed on data.

A rank's buffer counts, byte by byte, how often each rank's contribution is in it. An all-reduce has worked
when every count is one everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
from collective_oracle import (
    alpha_beta_s,
    bytes_received,
    bytes_sent,
    execute,
    longest_chain,
    own_blocks,
    own_contributions,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.collectives import halving_doubling, ring, tree
from sim.collectives.algorithms import ALGORITHMS
from sim.collectives.plan import COPY, JOIN, Plan, block_offsets

RANKS = st.integers(1, 17)
POWERS = st.sampled_from([1, 2, 4, 8, 16])
SIZES = st.integers(0, 70)
SEEDS = st.integers(0, 2**32 - 1)
ANY = ("ring", "direct")


def plan_of(operation: str, algorithm: str, num_ranks: int, size_bytes: int, **options) -> Plan:
    return ALGORITHMS[operation, algorithm].plan(np.arange(num_ranks), size_bytes, **options)


def check_all_reduced(plan: Plan, num_ranks: int, size_bytes: int, seed: int) -> None:
    buffers = execute(plan, own_contributions(num_ranks, size_bytes), np.random.default_rng(seed))
    np.testing.assert_array_equal(buffers, 1)


def check_reduce_scattered(plan: Plan, num_ranks: int, offsets: np.ndarray, seed: int) -> None:
    buffers = execute(plan, own_contributions(num_ranks, int(offsets[-1])), np.random.default_rng(seed))
    for r in range(num_ranks):
        np.testing.assert_array_equal(buffers[r, offsets[r] : offsets[r + 1]], 1)


def check_all_gathered(plan: Plan, num_ranks: int, offsets: np.ndarray, seed: int) -> None:
    blocks = own_blocks(num_ranks, offsets)
    buffers = execute(plan, blocks, np.random.default_rng(seed))
    np.testing.assert_array_equal(buffers, np.broadcast_to(blocks.sum(axis=0), buffers.shape))


@given(n=RANKS, size=SIZES, seed=SEEDS, algorithm=st.sampled_from(ANY))
def test_all_reduce_adds_every_contribution_once(n, size, seed, algorithm):
    check_all_reduced(plan_of("all_reduce", algorithm, n, size), n, size, seed)


@given(n=POWERS, size=SIZES, seed=SEEDS)
def test_halving_doubling_all_reduce_adds_every_contribution_once(n, size, seed):
    check_all_reduced(plan_of("all_reduce", "halving_doubling", n, size), n, size, seed)


@given(n=RANKS, size=SIZES, chunk=st.integers(1, 40), seed=SEEDS)
def test_double_binary_tree_adds_every_contribution_once(n, size, chunk, seed):
    plan = plan_of("all_reduce", "double_binary_tree", n, size, chunk_bytes=chunk)
    check_all_reduced(plan, n, size, seed)
    assert plan.size_bytes.sum() == 2 * (n - 1) * size


@given(n=RANKS, size=SIZES, seed=SEEDS, algorithm=st.sampled_from(ANY))
def test_reduce_scatter_leaves_the_reduced_block(n, size, seed, algorithm):
    plan = plan_of("reduce_scatter", algorithm, n, size)
    check_reduce_scattered(plan, n, block_offsets(size, n), seed)


@given(n=POWERS, size=SIZES, seed=SEEDS)
def test_recursive_halving_leaves_the_reduced_block(n, size, seed):
    check_reduce_scattered(halving_doubling.reduce_scatter(n, size), n, block_offsets(size, n), seed)


@given(n=RANKS, size=SIZES, seed=SEEDS, algorithm=st.sampled_from(ANY))
def test_all_gather_spreads_every_block(n, size, seed, algorithm):
    check_all_gathered(plan_of("all_gather", algorithm, n, size), n, block_offsets(size, n), seed)


@given(n=POWERS, size=SIZES, seed=SEEDS)
def test_recursive_doubling_spreads_every_block(n, size, seed):
    check_all_gathered(halving_doubling.all_gather(n, size), n, block_offsets(size, n), seed)


@given(n=RANKS, size=SIZES, seed=SEEDS)
def test_all_to_all_hands_over_every_block(n, size, seed):
    """The vector is all send buffers in a row; rank r ends with block r of each."""
    blocks = own_blocks(n, np.arange(n + 1) * size)
    buffers = execute(plan_of("all_to_all", "direct", n, size), blocks, np.random.default_rng(seed))
    offsets = block_offsets(size, n)
    for source in range(n):
        for rank in range(n):
            block = slice(source * size + offsets[rank], source * size + offsets[rank + 1])
            np.testing.assert_array_equal(buffers[rank, block], blocks[source, block])


@given(
    n=RANKS,
    size=SIZES,
    chunk=st.integers(1, 40),
    root=st.integers(0, 16),
    build=st.sampled_from([tree.broadcast, tree.chain_broadcast]),
    seed=SEEDS,
)
def test_broadcast_gives_everyone_the_roots_bytes(n, size, chunk, root, build, seed):
    root %= n
    before = np.zeros((n, size, n), np.int64)
    before[root, :, root] = 1
    plan = build(n, size, chunk, root=root)
    after = execute(plan, before, np.random.default_rng(seed))
    np.testing.assert_array_equal(after, np.broadcast_to(before[root], after.shape))
    assert bytes_received(plan, n).tolist() == [0 if r == root else size for r in range(n)]


@given(
    hosts=st.integers(1, 5),
    locals_=st.integers(1, 4),
    size=SIZES,
    algorithm=st.sampled_from(["ring", "direct", "double_binary_tree"]),
    seed=SEEDS,
)
def test_hierarchical_all_reduce_adds_every_contribution_once(hosts, locals_, size, algorithm, seed):
    n = hosts * locals_
    plan = plan_of(
        "all_reduce", algorithm, n, size, hierarchical=True, host_of_accelerator=np.arange(n) // locals_
    )
    check_all_reduced(plan, n, size, seed)


@given(
    hosts=st.integers(1, 5), locals_=st.integers(1, 4), size=SIZES, algorithm=st.sampled_from(ANY), seed=SEEDS
)
def test_hierarchical_reduce_scatter_and_all_gather(hosts, locals_, size, algorithm, seed):
    """Rank (h, l) owns part h of part l. Ranks are dealt to hosts in turn, so hosts are not contiguous."""
    n = hosts * locals_
    host = np.arange(n) % hosts
    offsets = nested_offsets(hosts, locals_, size)
    owner = np.arange(n).reshape(locals_, hosts).ravel()
    to_position = np.argsort(owner)
    scatter = plan_of("reduce_scatter", algorithm, n, size, hierarchical=True, host_of_accelerator=host)
    gather = plan_of("all_gather", algorithm, n, size, hierarchical=True, host_of_accelerator=host)
    rng = np.random.default_rng(seed)
    reduced = execute(scatter, own_contributions(n, size), rng)
    blocks = np.zeros((n, size, n), np.int64)
    for rank in range(n):
        p = to_position[rank]
        own = slice(offsets[p], offsets[p + 1])
        np.testing.assert_array_equal(reduced[rank, own], 1)
        blocks[rank, own, rank] = 1
    gathered = execute(gather, blocks, rng)
    np.testing.assert_array_equal(gathered, np.broadcast_to(blocks.sum(axis=0), gathered.shape))


def nested_offsets(hosts: int, locals_: int, size: int) -> np.ndarray:
    """The vector split over local indices, then each part over hosts: position l · hosts + h."""
    parts = block_offsets(size, locals_)
    inner = [parts[i] + block_offsets(int(parts[i + 1] - parts[i]), hosts)[:-1] for i in range(locals_)]
    return np.concatenate([*inner, [size]])


@given(hosts=st.integers(1, 5), locals_=st.integers(1, 4), size=SIZES, seed=SEEDS)
def test_hierarchical_all_to_all_hands_over_every_block(hosts, locals_, size, seed):
    """Told by what each message must carry: inside a host, all the sender's own blocks for the receiver's
    local index; between hosts, everything the sender holds for the receiver. Sizes must agree with that.
    """
    n = hosts * locals_
    plan = plan_of(
        "all_to_all", "direct", n, size, hierarchical=True, host_of_accelerator=np.arange(n) // locals_
    )
    block_bytes = np.diff(block_offsets(size, n))
    holds = [{(rank, to) for to in range(n)} for rank in range(n)]
    rng = np.random.default_rng(seed)
    waiting_for = np.bincount(plan.edge_to, minlength=plan.num_messages)
    ready = list(np.flatnonzero(waiting_for == 0))
    num_arrived = 0
    while ready:
        m = ready.pop(rng.integers(len(ready)))
        x, y = plan.source[m], plan.destination[m]
        if plan.action[m] == COPY:
            if x // locals_ == y // locals_:
                carried = {(x, to) for to in range(n) if to % locals_ == y % locals_}
            else:
                carried = {(origin, to) for origin, to in holds[x] if to == y}
                assert len(carried) == locals_
            assert plan.size_bytes[m] == sum(block_bytes[to] for _, to in carried)
            holds[y] |= carried
        num_arrived += 1
        for s in plan.edge_to[plan.edge_from == m]:
            waiting_for[s] -= 1
            if waiting_for[s] == 0:
                ready.append(s)
    assert num_arrived == plan.num_messages
    for rank in range(n):
        assert {(origin, rank) for origin in range(n)} <= holds[rank]


@given(n=st.integers(1, 17), blocks=st.integers(0, 9))
def test_bytes_sent_and_received_by_every_rank(n, blocks):
    """With S a multiple of n: 2(n − 1)/n S for an all-reduce, (n − 1)/n S for its halves and all-to-all."""
    size = blocks * n
    once = (n - 1) * blocks
    for algorithm in ANY if n & (n - 1) else (*ANY, "halving_doubling"):
        for operation, expected in (("all_reduce", 2 * once), ("all_gather", once), ("reduce_scatter", once)):
            plan = plan_of(operation, algorithm, n, size)
            assert bytes_sent(plan, n).tolist() == bytes_received(plan, n).tolist() == [expected] * n
    plan = plan_of("all_to_all", "direct", n, size)
    assert bytes_sent(plan, n).tolist() == bytes_received(plan, n).tolist() == [once] * n


@given(n=st.integers(2, 17), size=SIZES)
def test_number_of_steps(n, size):
    """The longest chain of messages has the closed form's number of steps."""
    assert longest_chain(plan_of("all_reduce", "ring", n, size)) == 2 * (n - 1)
    assert longest_chain(plan_of("all_gather", "ring", n, size)) == n - 1
    assert longest_chain(plan_of("reduce_scatter", "ring", n, size)) == n - 1
    assert longest_chain(plan_of("all_reduce", "direct", n, size)) == 2
    assert longest_chain(plan_of("all_to_all", "direct", n, size)) == 1
    if n & (n - 1) == 0:
        log = n.bit_length() - 1
        assert longest_chain(plan_of("all_reduce", "halving_doubling", n, size)) == 2 * log
        assert longest_chain(plan_of("all_gather", "halving_doubling", n, size)) == log


@given(n=st.integers(2, 17), size=st.integers(1, 70), chunk=st.integers(1, 40))
def test_number_of_steps_of_pipelined_trees(n, size, chunk):
    """Up the tree and down again, and a step for each further chunk; a chain is a tree of height n − 1."""
    steps = []
    for parent, half in zip(tree.double_binary_trees(n), (size - size // 2, size // 2), strict=True):
        if half:
            steps.append(2 * max(depth(parent, r) for r in range(n)) + -(-half // chunk) - 1)
    assert longest_chain(plan_of("all_reduce", "double_binary_tree", n, size, chunk_bytes=chunk)) == max(
        steps
    )
    chain = plan_of("broadcast", "ring", n, size, chunk_bytes=chunk)
    assert longest_chain(chain) == n - 1 + -(-size // chunk) - 1


def depth(parent: np.ndarray, rank: int) -> int:
    return 0 if parent[rank] < 0 else 1 + depth(parent, parent[rank])


@given(n=st.integers(1, 17), blocks=st.integers(0, 9), alpha=st.floats(0, 1e-3), rate=st.floats(1.0, 1e12))
def test_ring_time_on_ideal_links(n, blocks, alpha, rate):
    """2 (n − 1) (alpha + S / (n B)) when every step waits for the one before."""
    expected = 2 * (n - 1) * (alpha + blocks / rate)
    assert alpha_beta_s(ring.all_reduce(n, blocks * n), alpha, rate) == pytest.approx(expected, rel=1e-12)


@given(n=POWERS, blocks=st.integers(0, 9), alpha=st.floats(0, 1e-3), rate=st.floats(1.0, 1e12))
def test_halving_doubling_time_on_ideal_links(n, blocks, alpha, rate):
    """2 log2 n alpha + 2 (n − 1) / n S / B."""
    expected = 2 * (n.bit_length() - 1) * alpha + 2 * (n - 1) * blocks / rate
    plan = halving_doubling.all_reduce(n, blocks * n)
    assert alpha_beta_s(plan, alpha, rate) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@settings(max_examples=30)
@given(n=RANKS, size=SIZES, key=st.sampled_from(list(ALGORITHMS)))
def test_no_message_is_empty_unless_there_are_fewer_bytes_than_blocks(n, size, key):
    if key[1] == "halving_doubling" and n & (n - 1):
        return
    plan = plan_of(*key, n, size)
    is_flow = plan.action != JOIN
    assert np.all(plan.source[is_flow] != plan.destination[is_flow])
    if size >= n:
        assert np.all(plan.size_bytes[is_flow] > 0)
    if n == 1:
        assert plan.num_messages == 0
