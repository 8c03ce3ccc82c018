"""From a point to be measured to the calls that do its work, on several input sets, one function a family.

linear       torch.nn.functional.linear; in fp8 torch._scaled_mm of activations that are fp8 already, scaled as a whole
memory_pass  one elementwise kernel, which reads a tensor and writes another
elementwise  norms by PyTorch: the one before attention and feed-forward adds its residual first, in a launch of its own
attention    torch.nn.functional.scaled_dot_product_attention, whichever kernel PyTorch takes: of one chunk after a
             prefix, causal from the lower right, or of decodes of equal context. Keys and values are contiguous, heads
             of a token side by side: no blocks of a paged cache, no writing of new keys, none of an engine's kernels
experts      pairs aligned and fed forward, over the pool or its padded twin; or PyTorch's grouped product, which sorts
             for itself. As many rows for each expert touched, one more or less
reroute, align, host_copy  as `kernels` has them

Left out: chunks and decodes in one call, quantised caches and experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from calibration.budget import num_sets
from calibration.points import Point
from kernels.align import align
from kernels.expert_ffn import expert_ffn, expert_ffn_grouped, tiles_for
from kernels.expert_pool import ExpertPool, PaddedPool, write
from kernels.reroute import reroute, reroute_eagerly
from kernels.timing import Calls, pass_over
from models.pages import Slots, expert_map

__all__ = ["CallMaker", "Unmeasurable"]

HEAD_DIM = 128
"""Of the models whose queries and keys are normalised; a row's numbers do not tell."""
EPSILON = 1e-6


class Unmeasurable(RuntimeError):
    """A point that this device or these kernels cannot measure; the message says why."""


class CallMaker:
    """Makes the calls of points on one device; keeps the last pool of experts, which the next point may share."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._pool: tuple[tuple, ExpertPool | PaddedPool] | None = None

    def calls(self, point: Point) -> Calls:
        """Calls of the point's work, each on inputs of its own. Raises Unmeasurable."""
        return self._calls_of(point)(point, num_sets(point) if self.device.type == "cuda" else 2)

    def _calls_of(self, point: Point) -> Callable[[Point, int], Calls]:
        made: dict[str, Callable[[Point, int], Calls]] = {
            "linear": self._linear, "memory_pass": self._memory_pass, "elementwise": self._norm,
            "attention": self._attention, "experts": self._experts, "reroute": self._reroute, "align": self._align,
            "host_copy": self._host_copy,
        }  # fmt: skip
        if point.operator not in made:
            raise Unmeasurable(f"no calls for {point.operator}")
        return made[point.operator]

    def close(self) -> None:
        """Give the pool back."""
        if self._pool is not None and isinstance(self._pool[1], ExpertPool):
            self._pool[1].close()
        self._pool = None

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    # --- families -----------------------------------------------------------------------------------------------------

    def _linear(self, point: Point, count: int) -> Calls:
        of = point.columns
        calls = []
        for _ in range(count):
            x, w = self._randn(of["rows"], of["inputs"]), self._randn(of["outputs"], of["inputs"])
            w *= of["inputs"] ** -0.5
            if point.precision == "bf16":
                calls.append(partial(functional.linear, x, w))
            else:
                one = torch.ones((), device=self.device)
                x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
                calls.append(partial(torch._scaled_mm, x8, w8.t(), one, one, out_dtype=torch.bfloat16))
        return calls

    def _memory_pass(self, point: Point, count: int) -> Calls:
        numbers = point.columns["size_bytes"] // 4  # half of the bytes are read, half written
        pairs = [(self._randn(numbers), self._randn(numbers)) for _ in range(count)]
        return [partial(pass_over, *pair) for pair in pairs]

    def _norm(self, point: Point, count: int) -> Calls:
        numbers, rows = point.columns["numbers"], point.columns["rows"]
        if point.name not in ("layernorm", "final_layernorm", "qk_norm", "latent_norm"):
            raise Unmeasurable(f"no kernel of its own for {point.name}; it is priced as a memory pass")
        adds = point.name.endswith("layernorm")  # reads x and residual, writes the sum and its norm
        width = numbers // 4 if adds else numbers // 2
        group = HEAD_DIM if point.name == "qk_norm" else width
        if width % group:
            raise Unmeasurable(f"queries and keys of {width} numbers are no whole heads of {HEAD_DIM}")
        weight = self._randn(group)

        def add_norm(x: Tensor, residual: Tensor) -> Tensor:
            return functional.rms_norm(residual.add_(x), (group,), weight, EPSILON)

        def norm(x: Tensor) -> Tensor:
            return functional.rms_norm(x.view(-1, group), (group,), weight, EPSILON)

        inputs = [(self._randn(rows, width), self._randn(rows, width)) for _ in range(count)]
        return [partial(add_norm, x, residual) if adds else partial(norm, x) for x, residual in inputs]

    def _attention(self, point: Point, count: int) -> Calls:
        of = point.columns
        if point.precision != "bf16":
            raise Unmeasurable(f"PyTorch's attention reads no {point.precision} cache")
        if bool(of["chunk"]) == bool(of["decodes"]):
            raise Unmeasurable("PyTorch's attention takes either a chunk or decodes in one call")
        chunk, batch = max(of["chunk"], 1), max(of["decodes"], 1)
        length = of["context"] if of["decodes"] else of["prefix"] + chunk
        bias = causal_lower_right(chunk, length) if chunk > 1 else None  # one query sees every key
        calls = []
        for _ in range(count):
            q = self._randn(batch, chunk, of["heads"], of["head_dim"]).transpose(1, 2)
            k, v = (self._randn(batch, length, of["kv_heads"], of["head_dim"]).transpose(1, 2) for _ in range(2))
            calls.append(partial(functional.scaled_dot_product_attention, q, k, v, bias, enable_gqa=True))
        return calls

    def _experts(self, point: Point, count: int) -> Calls:
        of = point.columns
        if point.precision != "bf16":
            raise Unmeasurable(f"the expert kernels compute in bf16, not in {point.precision}")
        num_slots, touched = of["num_experts"], of["experts"]
        # A rank of several may get a few of a token's experts only: then each row is a token of its own.
        top_k = of["top_k"] if of["rows"] % of["top_k"] == 0 and touched >= of["top_k"] else 1
        tokens = of["rows"] // top_k
        tiles = tiles_for(of["rows"], num_slots)
        up, down = self._weights(point.name == "pool", num_slots, of["hidden"], of["inner"]).tensors
        sets = [
            (self._randn(tokens, of["hidden"]), self._pairs(tokens, top_k, touched, num_slots, seed),
             torch.rand(tokens, top_k, device=self.device).bfloat16())
            for seed in range(count)
        ]  # fmt: skip

        def ours(x: Tensor, slots: Tensor, weight: Tensor) -> Tensor:
            return expert_ffn(x, up, down, weight, align(slots, num_slots, tiles.rows), tiles)

        def grouped(x: Tensor, slots: Tensor, weight: Tensor) -> Tensor:
            return expert_ffn_grouped(x, up, down, slots, weight)

        ways: dict[str, Callable[..., Tensor]] = {"pool": ours, "padded": ours, "grouped": grouped}
        return [partial(ways[point.name], *inputs) for inputs in sets]

    def _pairs(self, tokens: int, top_k: int, touched: int, num_slots: int, seed: int) -> Tensor:
        """[tokens, top_k] int32: different slots for each token, `touched` of all, each as often, one more or less."""
        if not top_k <= touched <= min(tokens * top_k, num_slots):
            raise Unmeasurable(f"{tokens * top_k} rows cannot touch {touched} of {num_slots} experts")
        generator = self._generator(seed)
        labels = torch.randperm(num_slots, generator=generator, device=self.device)[:touched]
        in_turn = torch.arange(tokens * top_k, device=self.device).view(tokens, top_k) % touched
        order = torch.randperm(tokens, generator=generator, device=self.device)
        return labels[in_turn[order]].to(torch.int32).contiguous()

    def _weights(self, is_pool: bool, num_slots: int, hidden: int, inner: int) -> ExpertPool | PaddedPool:
        key = (is_pool, num_slots, hidden, inner)
        if self._pool is None or self._pool[0] != key:
            self.close()
            shapes = [(2 * inner, hidden), (hidden, inner)]
            pool: ExpertPool | PaddedPool
            if is_pool and self.device.type == "cuda":
                from kernels.virtual_memory import CudaMemory

                pool = ExpertPool(CudaMemory(), num_slots, shapes)
            else:
                pool = PaddedPool(self.device, num_slots, shapes)
            self._pool = key, pool
            slots = Slots(0, num_slots)
            pool.load("all", [slots, slots])
            for i, shape in enumerate(shapes):
                one = self._randn(*shape) * shape[1] ** -0.5  # all alike: times do not depend on their values
                write(pool, "all", i, one.expand(num_slots, *shape))
        return self._pool[1]

    def _routed(self, point: Point, seed: int, most_tuned: int) -> tuple[Tensor, Tensor, Tensor]:
        """Experts of tokens, the adapter of each, and the map."""
        of = point.columns
        rng = np.random.default_rng(1)
        tuned = [sorted(rng.choice(of["num_experts"], most_tuned, replace=False).tolist())
                 for _ in range(of["adapters"])]  # fmt: skip
        table = torch.from_numpy(expert_map(tuned, of["num_experts"], most_tuned)).to(self.device)
        touched = min(of["num_experts"], of["rows"] * of["top_k"])
        topk = self._pairs(of["rows"], of["top_k"], touched, of["num_experts"], seed)
        adapter = torch.randint(-1, of["adapters"], (of["rows"],), generator=self._generator(seed), device=self.device)
        return topk, adapter.to(torch.int32), table

    def _reroute(self, point: Point, count: int) -> Calls:
        ways = {"kernel": reroute, "eager": reroute_eagerly}
        return [partial(ways[point.name], *self._routed(point, seed, 1)) for seed in range(count)]

    def _align(self, point: Point, count: int) -> Calls:
        of = point.columns
        most_tuned = (of["slots"] - of["num_experts"]) // of["adapters"]
        block = tiles_for(of["rows"] * of["top_k"], of["slots"]).rows
        calls: list[Callable[[], object]] = []
        for seed in range(count):
            topk, adapter, table = self._routed(point, seed, most_tuned)
            if point.name == "reroute":
                calls.append(partial(align, topk, of["slots"], block, adapter, table))
            else:
                calls.append(partial(align, reroute_eagerly(topk, adapter, table), of["slots"], block))
        return calls

    def _host_copy(self, point: Point, count: int) -> Calls:
        size = point.columns["size_bytes"]
        pinned = self.device.type == "cuda"
        sources = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)]
        return [partial(torch.empty_like(source, device=self.device).copy_, source, non_blocking=True)
                for source in sources]  # fmt: skip
