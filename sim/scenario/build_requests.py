"""From a serving workload of a scenario to its requests: when they come, how long they are, whose they are, what they
share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.architecture import ARCHITECTURES, Architecture
from models.hugging_face import from_hugging_face
from sim.devices.kv_cache import Contents
from sim.engine.random import RandomStreams
from sim.fabric.topology import Topology
from sim.scenario.build_laws import drawn_lengths, fewest_tokens, length_law, rate_shape
from sim.scenario.clients import ClosedLoopArrivals
from sim.scenario.requests import Lengths
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving
from sim.serving.prefix_groups import plan_batch
from sim.serving.tenants import Tenants
from sim.workload.arrivals import arrival_times_s
from sim.workload.burstgpt_trace import read_burstgpt_trace
from sim.workload.prefix_traces import read_mooncake_trace, read_vllm_trace
from sim.workload.sessions import session_contents, session_prompts
from sim.workload.traces import Trace, read_azure_trace

TRACES: dict[str, Callable[..., Trace]] = {
    "azure": read_azure_trace, "burstgpt": read_burstgpt_trace, "mooncake": read_mooncake_trace,
    "vllm": read_vllm_trace,
}  # fmt: skip

MOST_OUTPUT_TOKENS = 1 << 27
"""Of one serving workload: a run keeps the time of each, 8 bytes."""


@dataclass(frozen=True)
class ServedRequests:
    """A serving workload, as far as its requests go."""

    scenario: Scenario
    w: Serving
    topology: Topology

    @property
    def architecture(self) -> Architecture:
        name = self.w.model
        return ARCHITECTURES[name] if name in ARCHITECTURES else from_hugging_face(name)

    def length_laws(self) -> list[tuple[tuple[str | int, ...], Lengths]]:
        """Those that requests have beside a trace's, with where they stand below the workload."""
        found = [(("tenants", i, "lengths"), t.lengths) for i, t in enumerate(self.w.tenants) if t.lengths is not None]
        if self.w.lengths is None or (self.w.tenants and len(found) == len(self.w.tenants)):
            return list(found)
        return [(("lengths",), self.w.lengths), *found]

    def check_lengths(self, lengths: Lengths) -> None:
        """Raises ValueError where even the shortest request is longer than the model's context."""
        most = self.architecture.max_positions
        if most is None:
            return
        (prompt, _), (output, _) = fewest_tokens(lengths.input), fewest_tokens(lengths.output)
        if prompt + output > most:
            raise ValueError(
                f"prompts of {prompt} tokens or more and outputs of {output} or more are longer than the context of "
                f"{self.architecture.name}, {most} tokens, so that every request would be refused; make them shorter"
            )

    def requests(self, streams: RandomStreams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(arrival times, prompt tokens, output tokens) of all requests.

        Raises ValueError where there are none, or more output tokens than memory has room for.
        """
        arrival_s, prompt, output = self._requests(streams)
        if len(arrival_s) == 0:
            raise ValueError("no request arrives; raise the duration or the rate")
        if output.sum() > MOST_OUTPUT_TOKENS:
            raise ValueError(
                f"{output.sum()} output tokens are more than the {MOST_OUTPUT_TOKENS} whose times a run can hold; "
                "serve fewer requests, or shorter outputs"
            )
        return arrival_s, prompt, output

    def arrivals(self, streams: RandomStreams) -> np.ndarray:
        return self.requests(streams)[0]

    @cached_property
    def trace(self) -> Trace | None:
        """Its window of the recorded trace."""
        w = self.w
        if w.trace is None:
            return None
        scale = w.arrivals.scale if w.arrivals.kind == "trace" else 1.0
        rows = {"model": w.trace.model, "log_type": w.trace.log_type} if w.trace.format == "burstgpt" else {}
        return TRACES[w.trace.format](
            w.trace.file, from_s=w.trace.from_s, until_s=w.trace.until_s, scale=scale, **rows
        )

    def remarks(self) -> list[str]:
        """What of its trace is not replayed, and which of its keys have no effect."""
        said = self._idle_keys()
        if self.w.trace is None or self.w.trace.format != "burstgpt" or self.trace is None:
            return said
        num = self.trace.num_zero_outputs
        return [*said, f"{num} rows of the trace had no response tokens, failures, and are left out"] if num else said

    def _idle_keys(self) -> list[str]:
        """Keys that are valid and change nothing: a variant may have them for the sake of the others."""
        w, said = self.w, []
        policies = list(dict.fromkeys(pool.batching.policy for _, pool in w.pools))
        if len({tenant.priority for tenant in w.tenants}) > 1 and "priority" not in policies:
            names = " and ".join(policies)
            said.append(f"tenants' priorities have no effect under batching.policy: {names}; under priority they have")
        routers = {pool.router.policy for _, pool in w.pools}
        if "prefix_affinity" in routers and not self.has_shared_prefixes:
            why = "no prompts share a beginning; sessions do, and traces with hash_ids"
            why = why if w.kv.prefix_caching else "kv.prefix_caching is false"
            said.append(f"router.policy: prefix_affinity is least_outstanding here: {why}")
        if "adapter_affinity" in routers and w.adapters is not None and w.adapters.is_merged:
            said.append(
                "router.policy: adapter_affinity tells nobody apart here: merged models have replicas of their own"
            )
        return said

    @property
    def has_shared_prefixes(self) -> bool:
        """Whether a cache may have something of a prompt before it comes."""
        if not self.w.kv.prefix_caching:
            return False
        return self.w.sessions is not None or self._has_known_contents

    @property
    def _has_known_contents(self) -> bool:
        """Whether a trace says what its prompts hold."""
        return self.trace is not None and self.trace.blocks is not None and not self.length_laws()

    def num_turns(self, streams: RandomStreams) -> np.ndarray | None:
        """Of each session; None where each request is on its own."""
        if self.w.sessions is None:
            return None
        num_sessions = len(self._arrival_s(streams))
        return length_law(self.w.sessions.turns).draw(streams.stream(f"workload.{self.w.name}.turns"), num_sessions)

    def contents(
        self,
        prompt: np.ndarray,
        adapter: np.ndarray,
        output: np.ndarray | None = None,
        num_turns: np.ndarray | None = None,
    ) -> Contents | None:
        """What its first requests' blocks hold, where a trace with the prompts' own lengths, or a session, says so.

        adapter: of each; keys and values of different ones are different.

        Raises ValueError where the engine's blocks are no parts of the trace's.
        """
        if num_turns is not None and output is not None:
            if not self.w.kv.prefix_caching:
                return None
            return session_contents(num_turns, prompt, output, self.w.kv.block_size)
        trace = self.trace
        if trace is None or trace.blocks is None or not self._has_known_contents or not self.w.kv.prefix_caching:
            return None
        is_served = np.arange(trace.num_requests) < len(prompt)
        return trace.blocks.select(is_served).contents(prompt, self.w.kv.block_size, adapter)

    def check_contents(self) -> None:
        """Raises ValueError as `contents` does."""
        if self.trace is not None:
            prompt = self.trace.num_prompt_tokens
            self.contents(prompt, np.zeros(len(prompt), np.int64))

    def _arrival_s(self, streams: RandomStreams) -> np.ndarray:
        """Of requests, or of sessions; zeros where only the run finds them out."""
        w, trace = self.w, self.trace
        if isinstance(w.arrivals, ClosedLoopArrivals):
            known = [w.num_requests, None if trace is None else trace.num_requests]
            return np.zeros(min(n for n in known if n is not None))
        if trace is not None and w.arrivals.kind == "trace":
            arrival_s = trace.arrival_s
            if w.duration_s is not None:
                arrival_s = arrival_s[arrival_s < w.duration_s]
            return arrival_s[: w.num_requests]
        assert w.arrivals.kind != "trace", "the schema asks for a trace"
        most = w.num_requests if trace is None else min(w.num_requests or trace.num_requests, trace.num_requests)
        return arrival_times_s(
            w.arrivals.kind,
            w.arrivals.rate_per_s,
            streams.stream(f"workload.{w.name}.arrivals"),
            num_requests=most,
            duration_s=w.duration_s,
            burstiness=getattr(w.arrivals, "burstiness", 1.0),
            shape=rate_shape(w.arrivals.shape),
        )

    def _requests(self, streams: RandomStreams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w, trace = self.w, self.trace
        arrival_s = self._arrival_s(streams)
        num_turns = self.num_turns(streams)
        if num_turns is not None:
            arrival_s = np.repeat(arrival_s, num_turns)
        n = len(arrival_s)
        if w.lengths is not None:
            prompt, output = drawn_lengths(w.lengths, streams.stream(f"workload.{w.name}.lengths"), n)
        elif trace is not None:
            prompt, output = trace.num_prompt_tokens[:n], trace.num_output_tokens[:n]
        else:
            prompt, output = np.ones(n, np.int64), np.ones(n, np.int64)  # every tenant has its own
        tenant = self.tenants(streams, n)
        for i, each in enumerate(w.tenants):
            if each.lengths is not None:
                own = drawn_lengths(each.lengths, streams.stream(f"workload.{w.name}.lengths.{each.name}"), n)
                prompt, output = (np.where(tenant.of == i, a, b) for a, b in zip(own, (prompt, output), strict=True))
        return arrival_s, prompt if num_turns is None else session_prompts(num_turns, prompt, output), output

    def tenants(self, streams: RandomStreams, num_requests: int) -> Tenants:
        """Whose each request is, drawn by the tenants' shares; all turns of a session are one tenant's."""
        w = self.w
        if not w.tenants:
            return Tenants((), np.zeros(num_requests, np.int16), (w.targets,))
        upto = np.cumsum([tenant.share for tenant in w.tenants])
        num_turns = self.num_turns(streams)
        num_drawn = num_requests if num_turns is None else len(num_turns)
        drawn = streams.stream(f"workload.{w.name}.tenants").random(num_drawn)
        of = np.searchsorted(upto[:-1] / upto[-1], drawn, side="right").astype(np.int16)
        of = of if num_turns is None else np.repeat(of, num_turns)
        return Tenants(tuple(t.name for t in w.tenants), of, tuple(w.targets | t.targets for t in w.tenants))

    def check_batch(self, streams: RandomStreams) -> None:
        """Raises ValueError where a policy plans for all requests, and they are not all there."""
        is_batch = not self.w.has_reacting_clients and np.ptp(self.arrivals(streams)) == 0
        if self.w.batching.policy == "batchllm" and not is_batch:
            raise ValueError(
                "batchllm plans a batch whose requests are all there, but these arrive one after the other; write "
                "arrivals: {kind: trace}, with a trace in which all have one time, or use chunked_prefill"
            )

    def precedence(
        self, prompt: np.ndarray, output: np.ndarray, contents: Contents | None, tenants: Tenants
    ) -> np.ndarray | None:
        """Who goes first: by the plan of the batch, else by the tenants' priorities."""
        if self.w.batching.policy == "batchllm":
            return plan_batch(prompt, output, contents, self.w.kv.block_size)
        return np.array([tenant.priority for tenant in self.w.tenants])[tenants.of] if self.w.tenants else None

    def model_of(self, adapter: np.ndarray) -> np.ndarray | None:
        """Of each request, given its adapter: which of several merged models serves it; None where there is one."""
        adapters = self.w.adapters
        return None if adapters is None or not adapters.is_merged else adapter - (adapters.base_share == 0)

    def adapter_of(self, num_requests: int, streams: RandomStreams) -> np.ndarray:
        """Of each request: 0 the base, i the i-th adapter."""
        if self.w.adapters is None:
            return np.zeros(num_requests, np.int64)
        reach = np.cumsum(self.w.adapters.shares)
        draws = streams.stream(f"workload.{self.w.name}.adapter").random(num_requests)
        return np.minimum(np.searchsorted(reach, draws, side="right"), len(reach) - 1)
