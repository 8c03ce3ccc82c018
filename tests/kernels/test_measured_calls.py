"""What is timed as an operator is that operator: calibration's calls against plain PyTorch, on shapes for a CPU."""

from __future__ import annotations

import pytest
import torch

from calibration.budget import num_sets
from calibration.calls import CallMaker, Unmeasurable
from calibration.gpu import page_call_seconds
from calibration.grids import tiny
from calibration.points import PAGE_CALLS, point
from kernels import reference
from models.pages import PAGE_BYTES

HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 16}
EXPERTS = {"hidden": 64, "inner": 48, "top_k": 3, "num_experts": 8}


@pytest.mark.parametrize("of", [p for p in tiny() if p.operator != "page_call"], ids=str)
def test_every_family_has_calls_on_several_inputs(of, device):
    maker = CallMaker(device)
    try:
        calls = maker.calls(of)
        assert len(calls) == (num_sets(of) if device == "cuda" else 2)
        for call in calls:
            call()
    finally:
        maker.close()


@pytest.mark.parametrize(("chunk", "prefix", "decodes", "context"), [(5, 0, 0, 0), (5, 7, 0, 0), (1, 7, 0, 0),
                                                                     (0, 0, 3, 9)])  # fmt: skip
def test_attention_sees_what_comes_before_and_no_more(device, chunk, prefix, decodes, context):
    """Query i of a chunk sees prefix + i + 1 keys, a decode all of its context; two heads share each key."""
    of = point("attention", "sdpa", **HEADS, chunk=chunk, prefix=prefix, decodes=decodes, context=context)
    call = CallMaker(device).calls(of)[0]
    q, k, v, _ = call.args
    length = context or prefix + chunk
    assert q.shape == (decodes or 1, 4, chunk or 1, 16) and k.shape == v.shape == (decodes or 1, 2, length, 16)
    k, v = (each.float().repeat_interleave(2, dim=1) for each in (k, v))
    scores = q.float() @ k.transpose(2, 3) / 4
    query, key = torch.arange(q.shape[2], device=device), torch.arange(length, device=device)
    if chunk:
        scores = scores.masked_fill(key[None, :] > prefix + query[:, None], float("-inf"))
    expected = scores.softmax(-1) @ v
    torch.testing.assert_close(call().float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["pool", "padded", "grouped"])
@pytest.mark.parametrize(("rows", "touched"), [(15, 7), (15, 3), (4, 2), (24, 8)])
def test_experts_are_touched_as_often_as_the_point_says(device, name, rows, touched):
    maker = CallMaker(device)
    try:
        call = maker.calls(point("experts", name, **EXPERTS, rows=rows, experts=touched))[0]
        x, slots, weight = call.args
        assert slots.numel() == rows and len(slots.unique()) == touched
        counts = torch.bincount(slots.flatten().long())
        assert counts.max() - counts[counts > 0].min() <= 1
        assert all(len(set(row)) == len(row) for row in slots.tolist())
        up, down = maker._pool[1].tensors
        torch.testing.assert_close(
            call().float().cpu(), reference.expert_ffn(x, up, down, slots, weight).cpu(), rtol=0.05, atol=0.05
        )
    finally:
        maker.close()


def test_a_pool_is_kept_for_points_of_its_shape(device):
    maker = CallMaker(device)
    of = point("experts", "padded", **EXPERTS, rows=6, experts=3)
    maker.calls(of)
    first = maker._pool
    maker.calls(point("experts", "grouped", **EXPERTS, rows=9, experts=3))
    assert maker._pool is first
    maker.calls(point("experts", "grouped", **EXPERTS | {"num_experts": 9}, rows=9, experts=3))
    assert maker._pool is not first


def test_a_norm_adds_its_residual_first(device):
    call = CallMaker(device).calls(point("elementwise", "layernorm", numbers=4 * 32, rows=3))[0]
    x, residual = (each.clone().float() for each in call.args)
    total = x + residual
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    found = call().float()
    assert found.shape == (3, 32)
    ratio = (found / expected)[0]  # the norm's weight, the same in each row
    torch.testing.assert_close(found, expected * ratio, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (point("attention", "sdpa", "fp8", **HEADS, chunk=2, prefix=0, decodes=0, context=0), "reads no fp8 cache"),
        (point("attention", "sdpa", **HEADS, chunk=2, prefix=0, decodes=1, context=4), "either a chunk or decodes"),
        (point("experts", "pool", "fp8", **EXPERTS, rows=6, experts=3), "compute in bf16"),
        (point("experts", "pool", **EXPERTS, rows=6, experts=7), "6 rows cannot touch 7 of 8 experts"),
        (point("elementwise", "rotary_emb", numbers=64, rows=1), "it is priced as a memory pass"),
        (point("elementwise", "qk_norm", numbers=100, rows=1), "no whole heads of 128"),
        (point("all_reduce", "nccl", ranks=2, size_bytes=8), "no calls for all_reduce"),
    ],
)
def test_what_cannot_be_measured_says_why(of, why, device):
    with pytest.raises(Unmeasurable, match=why):
        CallMaker(device).calls(of)


class Counted:
    """A memory that counts its calls."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.calls: dict[str, int] = {}
        self.sizes: set[int] = set()

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in ("reserve", "allow", "unreserve"):
                self.sizes.add(arguments[-1])
            return 1 << 30 if name == "reserve" else object()

        return call


@pytest.mark.parametrize("name", PAGE_CALLS)
def test_page_calls_are_timed_on_a_stretch_that_is_given_back(name):
    memory = Counted()
    seconds = page_call_seconds(memory, name, 5, 3)
    assert seconds.shape == (3,) and (seconds > 0).all()
    of_all, of_each = dict.fromkeys(("reserve", "allow", "unreserve"), 4), dict.fromkeys(PAGE_CALLS, 20)
    assert memory.calls == of_each | of_all
    assert memory.sizes == {5 * PAGE_BYTES}


def test_a_page_that_is_not_there_leaves_nothing_behind():
    class Full(Counted):
        def create(self):
            if self.calls.get("created", 0) == 3:
                raise MemoryError("full")
            self.calls["created"] = self.calls.get("created", 0) + 1
            return object()

    memory = Full()
    with pytest.raises(MemoryError, match="full"):
        page_call_seconds(memory, "map", 5, 3)
    assert memory.calls == {"reserve": 1, "created": 3, "release": 3, "unreserve": 1}
