import pytest

from sim.serving.graphs import largest_graph


@pytest.mark.parametrize(
    ("max_num_seqs", "max_num_batched_tokens", "largest"),
    [(256, 2048, 512), (128, 2048, 256), (10, 2048, 16), (150, 2048, 288), (256, 260, 256), (1, 2048, 2), (3, 8, 4),
     (2, 3, 2), (1, 1, 1)],
)  # fmt: skip
def test_the_largest_graph_is_a_recorded_size(max_num_seqs, max_num_batched_tokens, largest):
    """Twice the sequences, 512, and the tokens of a step bound it; recorded are 1, 2, 4, 8 … 256, 272 …"""
    assert largest_graph(max_num_seqs, max_num_batched_tokens) == largest
