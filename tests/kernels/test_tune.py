"""What the tuner tries."""

from __future__ import annotations

import pytest
import torch

from kernels import tune
from kernels.expert_ffn import TILES, tiles_for


@pytest.mark.parametrize("rows", [1.0, 8.0, 40.0, 600.0])
def test_candidates_fit_and_contain_what_is_guessed(rows):
    found = list(tune.candidates(rows))
    assert len(set(found)) == len(found) > 10
    assert all(min(rows / 4, 64) <= tiles.rows <= max(4 * rows, 16) for tiles in found)
    assert all(tiles.num_stages * tiles.inner * (tiles.rows + 2 * tiles.columns) * 2 <= 227 * 1024 for tiles in found)
    guess = [tiles for least, tiles in TILES["any"] if rows >= least][-1]
    assert guess in found


def test_an_unknown_gpu_gets_the_guess():
    assert tiles_for(6, 64, "a GPU of tomorrow") == TILES["any"][0][1]


def test_without_a_gpu_it_refuses(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
