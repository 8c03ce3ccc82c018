import numpy as np
import pytest

from sim.collectives.plan import (
    COPY,
    JOIN,
    block_offsets,
    chunk_offsets,
    concatenate,
    empty_plan,
    in_sequence,
    place,
    plan,
    tile,
)


@pytest.mark.parametrize(("size", "parts"), [(0, 3), (3, 8), (17, 5), (1000, 7), (2**40 + 1, 3)])
def test_blocks_split_like_array_split(size, parts):
    sizes = np.diff(block_offsets(size, parts))
    assert sizes.sum() == size
    if size < 10_000:
        assert sizes.tolist() == [len(part) for part in np.array_split(np.arange(size), parts)]


def test_chunks_are_no_longer_than_asked_and_about_equal():
    assert np.diff(chunk_offsets(10, 4)).tolist() == [4, 3, 3]
    assert np.diff(chunk_offsets(8, 4)).tolist() == [4, 4]
    assert np.diff(chunk_offsets(0, 4)).tolist() == [0]


def two_hops():
    """0 -> 1 and then 1 -> 2, 5 bytes."""
    return plan([0, 1], [1, 2], [5, 5], [0, 0], COPY, ([0], [1]))


def test_place_renames_ranks_and_moves_bytes():
    placed = place(two_hops(), np.array([7, 3, 5]), 100)
    assert placed.source.tolist() == [7, 3]
    assert placed.destination.tolist() == [3, 5]
    assert placed.first_byte.tolist() == [100, 100]


def test_tile_and_concatenate_keep_copies_apart():
    tiled = tile(two_hops(), np.array([[0, 1, 2], [3, 4, 5]]))
    assert tiled.source.tolist() == [0, 1, 3, 4]
    assert (tiled.edge_from.tolist(), tiled.edge_to.tolist()) == ([0, 2], [1, 3])
    both = concatenate([tiled, two_hops()])
    assert (both.edge_from.tolist(), both.edge_to.tolist()) == ([0, 2, 4], [1, 3, 5])


def test_in_sequence_joins_rank_by_rank():
    """Rank 2 enters the second phase when 1 -> 2 arrived; rank 0 received nothing and enters at once."""
    second = plan([0, 2], [1, 0], [5, 5], [0, 0], COPY)
    whole = in_sequence([two_hops(), empty_plan(), second], 3)
    assert whole.action.tolist() == [COPY, COPY, JOIN, JOIN, JOIN, COPY, COPY]
    assert set(zip(whole.edge_from.tolist(), whole.edge_to.tolist(), strict=True)) == {
        (0, 1),  # the first phase's own edge
        (0, 3), (1, 4),  # inputs of ranks 1 and 2
        (2, 5), (4, 6),  # ranks 0 and 2 go on
    }  # fmt: skip


def test_in_sequence_of_nothing_is_nothing():
    assert in_sequence([empty_plan()], 1).num_messages == 0
