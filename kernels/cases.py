"""What `kernels.bench` measures: each kernel on shapes of one model's expert layer, in several ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.align import Alignment, align
from kernels.expert_ffn import Tiles, expert_ffn, expert_ffn_grouped, tiles_for
from kernels.expert_pool import ExpertPool, PaddedPool, write
from kernels.reroute import reroute, reroute_eagerly
from kernels.timing import Calls, pass_over
from models.pages import Slots, expert_map


@dataclass(frozen=True, slots=True)
class Model:
    """A mixture-of-experts layer and its adapters, each with as many tuned experts as it may have."""

    num_experts: int = 64
    top_k: int = 6
    hidden: int = 2048
    inner: int = 1408
    num_adapters: int = 8
    most_tuned: int = 13

    @property
    def num_slots(self) -> int:
        return self.num_experts + self.num_adapters * self.most_tuned

    @property
    def slot_bytes(self) -> int:
        """Of both matrices, bf16."""
        return 3 * self.hidden * self.inner * 2


LITE = Model()
"""DeepSeek-V2-Lite."""
TINY = Model(num_experts=8, top_k=3, hidden=64, inner=48, num_adapters=2, most_tuned=3)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing done in several ways; the first one is ours, or what the others are held against.

    num_bytes, num_flops  that one call must move and compute; 0: not what limits it
    """

    kernel: str
    shape: str
    ways: dict[str, Calls]
    num_bytes: float = 0.0
    num_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Input:
    """One input set: what a router hands over."""

    x: Tensor
    topk: Tensor
    adapter: Tensor
    table: Tensor
    weight: Tensor


def calls(work: Callable, sets: Sequence) -> Calls:
    """The work on each input set."""
    return [partial(work, one) for one in sets]


class Cases:
    """The cases, for one model on one device."""

    def __init__(self, model: Model, device: str, is_quick: bool, is_rehearsal: bool) -> None:
        self.model, self.device, self.is_quick, self.is_rehearsal = model, device, is_quick, is_rehearsal
        rng = np.random.default_rng(1)
        tuned = [
            sorted(rng.choice(model.num_experts, model.most_tuned, replace=False).tolist())
            for _ in range(model.num_adapters)
        ]
        self.table = torch.from_numpy(expert_map(tuned, model.num_experts, model.most_tuned)).to(device)

    def tokens(self, *counts: int) -> list[int]:
        """Batch sizes: three of them when quick, small ones in a rehearsal."""
        if self.is_rehearsal:
            return [5, 40]
        return [counts[0], counts[len(counts) // 2], counts[-1]] if self.is_quick else list(counts)

    def input(self, num_tokens: int, seed: int, has_x: bool = True) -> Input:
        m = self.model
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (num_tokens, m.num_experts)
        if num_tokens <= 1 << 17:
            topk = torch.rand(shape, generator=generator, device=self.device).topk(m.top_k).indices.to(torch.int32)
        else:  # with repetitions: the table of random numbers would not fit
            topk = torch.randint(
                m.num_experts, (num_tokens, m.top_k), generator=generator, device=self.device, dtype=torch.int32
            )
        adapter = torch.randint(
            -1, m.num_adapters, (num_tokens,), generator=generator, device=self.device, dtype=torch.int32
        )
        x = torch.empty(0, device=self.device)
        if has_x:
            x = torch.randn(num_tokens, m.hidden, generator=generator, device=self.device).bfloat16()
        weight = torch.rand(num_tokens, m.top_k, generator=generator, device=self.device).bfloat16()
        return Input(x, topk.contiguous(), adapter, self.table, weight)

    def inputs(self, num_tokens: int, has_x: bool = True) -> list[Input]:
        """As many sets as a graph has calls: many of small ones, a few of large ones."""
        count = 2 if self.is_rehearsal else int(np.clip((1 << 20) // max(num_tokens, 1), 3, 32))
        return [self.input(num_tokens, seed, has_x) for seed in range(count)]

    # --- cases --------------------------------------------------------------------------------------------------------

    def rerouting(self) -> Iterator[Case]:
        """The kernel, PyTorch's operators, and a plain pass over as many bytes."""
        for num_tokens in self.tokens(1, 64, 1024, 16384, 1 << 20, 1 << 24):
            sets = self.inputs(num_tokens, has_x=False)
            num_bytes = 4 * num_tokens * (2 * self.model.top_k + 1)
            halves = [torch.empty(2, num_bytes // 8, dtype=torch.int32, device=self.device) for _ in sets]
            yield Case(
                "reroute",
                f"{num_tokens} tokens",
                {
                    "kernel": calls(lambda s: reroute(s.topk, s.adapter, s.table), sets),
                    "PyTorch": calls(lambda s: reroute_eagerly(s.topk, s.adapter, s.table), sets),
                    "pass over as many bytes": calls(lambda both: pass_over(both[1], both[0]), halves),
                },
                num_bytes,
            )

    def aligning(self) -> Iterator[Case]:
        """Without rerouting; with it on the way; with its own kernel before. Bytes: of the first way."""
        slots = self.model.num_slots
        for num_tokens in self.tokens(1, 64, 1024, 16384, 1 << 20):
            sets = self.inputs(num_tokens, has_x=False)
            yield Case(
                "align",
                f"{num_tokens} tokens",
                {
                    "without rerouting": calls(lambda s: align(s.topk, slots, 64), sets),
                    "rerouting on the way": calls(lambda s: align(s.topk, slots, 64, s.adapter, s.table), sets),
                    "rerouting before": calls(lambda s: align(reroute(s.topk, s.adapter, s.table), slots, 64), sets),
                },
                4 * num_tokens * 2 * self.model.top_k,
            )

    def layers(self, pool: ExpertPool | PaddedPool) -> Iterator[Case]:
        """A whole expert layer with and without rerouting: what an engine pays for adapters in routing alone.

        All ways compute with the same rerouted slots, so that they touch the same weights."""
        up, down = pool.tensors
        num_slots = self.model.num_slots

        def layer(s: Input, slots: Tensor, *reroute_by: Tensor) -> Tensor:
            tiles = tiles_for(slots.numel(), num_slots)
            return expert_ffn(s.x, up, down, s.weight, align(slots, num_slots, tiles.rows, *reroute_by), tiles)

        for num_tokens in self.tokens(1, 64, 256, 1024, 8192):
            sets = self.inputs(num_tokens)
            known = [(s, reroute_eagerly(s.topk, s.adapter, s.table)) for s in sets]
            yield Case(
                "layer",
                f"{num_tokens} tokens",
                {
                    "without rerouting": calls(lambda both: layer(*both), known),
                    "rerouting on the way": calls(lambda s: layer(s, s.topk, s.adapter, s.table), sets),
                    "own kernel": calls(lambda s: layer(s, reroute(s.topk, s.adapter, s.table)), sets),
                    "PyTorch": calls(lambda s: layer(s, reroute_eagerly(s.topk, s.adapter, s.table)), sets),
                },
            )

    def feed_forward(self, pool: ExpertPool | PaddedPool, twin: PaddedPool) -> Iterator[Case]:
        """Over one pool and its twin, and by PyTorch's grouped product, which sorts for itself: it stands against ours
        with the alignment. Bytes: weights of the slots in use."""
        m = self.model
        up, down = pool.tensors

        def ours(x: Tensor, weight: Tensor, slots: Tensor, _: Alignment, tiles: Tiles) -> Tensor:
            return expert_ffn(x, up, down, weight, align(slots, m.num_slots, tiles.rows), tiles)

        padded_up, padded_down = twin.tensors
        for num_tokens in self.tokens(1, 8, 32, 64, 256, 1024, 4096, 16384):
            tiles = tiles_for(num_tokens * m.top_k, m.num_slots)
            sets = []
            for s in self.inputs(num_tokens):
                slots = reroute_eagerly(s.topk, s.adapter, s.table)
                sets.append((s.x, s.weight, slots, align(slots, m.num_slots, tiles.rows), tiles))
            in_use = float(np.mean([len(torch.unique(slots)) for _, _, slots, _, _ in sets]))
            yield Case(
                "feed-forward",
                f"{num_tokens} tokens, {in_use:.0f} slots",
                {
                    "pool": calls(lambda s: expert_ffn(s[0], up, down, s[1], s[3], s[4]), sets),
                    "padded": calls(lambda s: expert_ffn(s[0], padded_up, padded_down, s[1], s[3], s[4]), sets),
                    "aligned on the way": calls(lambda s: ours(*s), sets),
                    "PyTorch": calls(lambda s: expert_ffn_grouped(s[0], padded_up, padded_down, s[2], s[1]), sets),
                },
                in_use * m.slot_bytes,
                6.0 * num_tokens * m.top_k * m.hidden * m.inner,
            )

    # --- pools --------------------------------------------------------------------------------------------------------

    def pools(self) -> tuple[ExpertPool | PaddedPool, PaddedPool]:
        """The pool and its twin, with the same weights in all slots. Without CUDA both are padded."""
        m = self.model
        shapes = [(2 * m.inner, m.hidden), (m.hidden, m.inner)]
        twin = PaddedPool(torch.device(self.device), m.num_slots, shapes)
        pool: ExpertPool | PaddedPool = PaddedPool(torch.device(self.device), m.num_slots, shapes)
        if self.device == "cuda":
            from kernels.virtual_memory import CudaMemory

            pool = ExpertPool(CudaMemory(), m.num_slots, shapes)
        owners = {"base": Slots(0, m.num_experts)}
        owners |= {f"adapter {i}": Slots(m.num_experts + i * m.most_tuned, m.most_tuned) for i in range(m.num_adapters)}
        for name, slots in owners.items():
            for each in (pool, twin):
                each.load(name, [slots, slots])
            for i, shape in enumerate(shapes):
                weights = torch.randn(slots.count, *shape, device=self.device).bfloat16() / shape[1] ** 0.5
                for each in (pool, twin):
                    write(each, name, i, weights)
        return pool, twin
