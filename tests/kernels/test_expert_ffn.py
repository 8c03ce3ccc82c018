"""The expert feed-forward against its reference, and what it must not read."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.align import align
from kernels.expert_ffn import FEW, MANY, Tiles, expert_ffn, expert_ffn_grouped, tiles_for
from kernels.interpreter import WIDEN
from models.pages import expert_map

SMALL = Tiles(16, 32, 16, 2, 4, 2)
TOLERANCE = 5e-3 if WIDEN else 1e-2


def layer(num_tokens, top_k, num_slots, hidden, inner, dtype=torch.bfloat16, seed=0, used=None):
    """(x, up, down, slots, weights); `used` names the slots that pairs may go to."""
    torch.manual_seed(seed)
    x = torch.randn(num_tokens, hidden).to(dtype)
    up = (torch.randn(num_slots, 2 * inner, hidden) / hidden**0.5).to(dtype)
    down = (torch.randn(num_slots, hidden, inner) / inner**0.5).to(dtype)
    names = torch.arange(num_slots) if used is None else torch.tensor(used)
    slots = torch.stack([names[torch.randperm(len(names))[:top_k]] for _ in range(num_tokens)] or [names[:0]])
    slots = slots.reshape(num_tokens, top_k).to(torch.int32)
    return x, up, down, slots, torch.rand(num_tokens, top_k).to(dtype)


def run(x, up, down, slots, weights, tiles=SMALL):
    return expert_ffn(x, up, down, weights, align(slots, down.shape[0], tiles.rows), tiles)


def largest_error(found, expected):
    """Of the largest value: products of random numbers near zero have no relative error to speak of."""
    return ((found.float() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize(
    ("num_tokens", "top_k", "num_slots", "hidden", "inner"),
    [(1, 1, 1, 16, 16), (5, 2, 6, 48, 24), (33, 3, 11, 40, 88), (70, 8, 9, 64, 32), (1, 6, 80, 32, 40)],
)
def test_computes_what_the_reference_does(num_tokens, top_k, num_slots, hidden, inner, device):
    """Odd sizes: columns and inner elements are no multiples of their tiles, slots have one row or many."""
    arguments = [tensor.to(device) for tensor in layer(num_tokens, top_k, num_slots, hidden, inner)]
    expected = reference.expert_ffn(*arguments)
    assert largest_error(run(*arguments), expected) < TOLERANCE
    assert largest_error(expert_ffn_grouped(*arguments), expected) < 2e-2


def test_no_tokens(device):
    arguments = [tensor.to(device) for tensor in layer(0, 2, 4, 16, 16)]
    assert run(*arguments).shape == (0, 16)


def test_slots_without_tokens_are_never_read(device):
    """They hold NaN: in a pool there is no memory behind them."""
    x, up, down, slots, weights = (t.to(device) for t in layer(40, 3, 12, 32, 24, used=[1, 4, 5, 9]))
    expected = run(x, up, down, slots, weights)
    for slot in set(range(12)) - {1, 4, 5, 9}:
        up[slot] = down[slot] = float("nan")
    assert torch.equal(run(x, up, down, slots, weights), expected)


def test_nothing_is_read_or_written_out_of_bounds(fenced):
    """Inputs, results and what lies between are surrounded by NaN, and begin as NaN; tiles reach over every edge."""
    arguments = layer(21, 2, 5, 40, 24)
    expected = reference.expert_ffn(*arguments).to(fenced.device)
    assert largest_error(run(*(fenced(tensor) for tensor in arguments)), expected) < TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_a_token_does_not_notice_its_neighbours(seed, device):
    """Other tokens in the batch, with other slots: the same bits come out for those that stayed."""
    x, up, down, slots, weights = (t.to(device) for t in layer(37, 3, 10, 40, 24, seed=seed))
    x2, _, _, slots2, weights2 = (t.to(device) for t in layer(37, 3, 10, 40, 24, seed=seed + 100))
    stay = torch.arange(37, device=device) % 3 == 0
    for a, b in ((x, x2), (slots, slots2), (weights, weights2)):
        b[stay] = a[stay]
    found, found2 = run(x, up, down, slots, weights), run(x2, up, down, slots2, weights2)
    assert torch.equal(found[stay], found2[stay])
    assert not torch.equal(found[~stay], found2[~stay])


def test_neither_rerouting_nor_the_layer_notices_other_tenants(device):
    """From the router's choice to the output: the neighbours get other experts and other adapters, and the weights of
    the adapters that only they use become NaN. Tokens that stay, with adapter 0 or none, keep their slots and bits."""
    num_experts, most_tuned = 6, 3
    table = torch.from_numpy(expert_map([[0, 3, 5], [1, 3], [2, 4, 5]], num_experts, most_tuned)).to(device)
    x, up, down, _, weights = (t.to(device) for t in layer(41, 2, num_experts + 3 * most_tuned, 32, 24))
    stay = torch.arange(41, device=device) % 2 == 0
    found = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        topk = torch.stack([torch.randperm(num_experts, generator=generator)[:2] for _ in range(41)]).int().to(device)
        adapter = torch.randint(-1, 3, (41,), generator=generator, dtype=torch.int32).to(device)
        if seed == 1:
            topk_of_those, adapter_of_those = topk[stay], torch.arange(21, device=device).remainder(2).int() - 1
        else:
            up[num_experts + most_tuned :] = down[num_experts + most_tuned :] = float("nan")
        topk[stay], adapter[stay] = topk_of_those, adapter_of_those
        alignment = align(topk, len(down), SMALL.rows, adapter, table)
        found.append((alignment.slots, expert_ffn(x, up, down, weights, alignment, SMALL)))
    for of_one, of_other in zip(*found, strict=True):
        assert torch.equal(of_one[stay], of_other[stay])
    assert found[1][1][~stay].isnan().any()


def test_another_tenants_poison_does_not_reach_a_token(device):
    """Tokens of one adapter use slots 0 to 4, those of another 5 to 9, whose weights are NaN: only theirs are."""
    x, up, down, slots, weights = (t.to(device) for t in layer(30, 2, 10, 32, 24, used=[0, 1, 2, 3, 4]))
    slots[::2] += 5
    clean = run(x, up, down, slots, weights)
    up[5:] = down[5:] = float("nan")
    found = run(x, up, down, slots, weights)
    assert torch.equal(found[1::2], clean[1::2])
    assert found[::2].isnan().all()


def test_tiles_differ_by_rounding_only(device):
    arguments = [tensor.to(device) for tensor in layer(50, 4, 8, 64, 48)]
    found = run(*arguments, tiles=SMALL)
    for tiles in (Tiles(32, 16, 32, 1, 4, 2), Tiles(64, 64, 64, 4, 4, 2)):
        assert largest_error(run(*arguments, tiles=tiles), found.float()) < 1e-2


def test_tiles_grow_with_the_rows_of_a_slot():
    assert tiles_for(6, 64, "any") == FEW
    assert tiles_for(64 * 512, 64, "any") == MANY
    rows = [tiles_for(pairs, 64, "any").rows for pairs in (6, 64 * 16, 64 * 48, 64 * 256)]
    assert rows == sorted(set(rows))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x[:, :-8].contiguous(), r"x has shape \(6, 24\)"),
        ("up", lambda up: up[:-1], r"up has shape .* it is \(5, 48, 32\)"),
        ("down", lambda down: down.mT.contiguous().mT, "down is strided"),
    ],
)
def test_shapes_that_do_not_belong_together(name, change, message, device):
    tensors = [tensor.to(device) for tensor in layer(6, 2, 5, 32, 24)]
    arguments = dict(zip(("x", "up", "down", "slots", "weights"), tensors, strict=True))
    with pytest.raises(ValueError, match=message):
        run(**arguments | {name: change(arguments[name])})
