"""What the tuner tries."""

from __future__ import annotations

import pytest
import torch

from kernels import tune
from kernels.expert_ffn import TILES, Tiles, tiles_for


@pytest.mark.parametrize("rows", [1.0, 9.0, 40.0, 150.0, 600.0])
def test_every_way_from_what_is_guessed_fits(rows):
    begin = [tiles for least, tiles in TILES["any"] if rows >= least][-1]
    assert tune.fits(begin, rows)
    found = tune.search(begin, rows, lambda tiles: 1 / (tiles.columns * tiles.num_stages), lambda: False)
    assert len(found) > 5
    assert all(tune.fits(tiles, rows) for tiles in found)
    for tiles in found:
        near = list(tune.neighbours(tiles))
        assert len(near) == len(set(near)) >= 6
        assert all(tiles in tune.neighbours(other) for other in near)


def test_it_ends_at_the_lowest_place_and_tries_none_twice():
    """A time that grows by the steps from one place: every way downhill leads there."""
    goal, begin, asked = Tiles(32, 128, 64, 1, 4, 3), Tiles(16, 32, 256, 1, 8, 4), []

    def over(tiles):
        asked.append(tiles)
        return 1.0 + sum(
            abs(choices.index(getattr(tiles, name)) - choices.index(getattr(goal, name)))
            for name, choices in tune.CHOICES.items()
        ) - 7  # fmt: skip

    found = tune.search(begin, 20.0, over, lambda: False)
    assert min(found, key=found.get) == goal
    assert len(asked) == len(set(asked))


def test_what_does_not_run_is_no_candidate_and_time_ends_it():
    begin = Tiles(16, 64, 128, 1, 4, 4)
    assert tune.search(begin, 1.0, lambda tiles: None, lambda: False) == {begin: 1.0}
    assert tune.search(begin, 1.0, lambda tiles: 0.5, lambda: True) == {begin: 1.0}


def test_an_unknown_gpu_gets_the_guess():
    assert tiles_for(6, 64, "a GPU of tomorrow") == TILES["any"][0][1]


def test_without_a_gpu_it_refuses(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
