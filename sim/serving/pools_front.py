"""Between clients and two pools: sends requests to the one that prefills, and sees them end in either.

A request ends with its first token where that is its only one, with the transfer of its keys and values where that
fails, and else in a decode replica. Those run ahead of the clock, so each is asked for a moment before which nobody
ends there, and asked again whenever something comes to it, or has room reserved in it: both change the steps to come.

Leaves out: giving up on a request that is on its way between the pools; replicas that die, report late, come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from sim.serving.disaggregation import DecodeReplica, FabricDecodeReplica
from sim.serving.front import Front
from sim.serving.replica import ReplicaError
from sim.serving.request import COMPLETED
from sim.serving.router import Routed


class PoolsFront(Front):
    """A front whose replicas are those that prefill; the workload tells it what becomes of requests behind them."""

    def attach_pools(
        self, prompts: NDArray[Any], answers: NDArray[Any], decodes: Sequence[DecodeReplica | FabricDecodeReplica]
    ) -> None:
        """prompts, answers [requests]: as the pools see them. After `attach`."""
        self._prompts, self._answers, self._decodes = prompts, answers, decodes
        prompts["arrival_s"] = prompts["submitted_s"] = np.nan
        self._decoding: list[dict[int, None]] = [{} for _ in decodes]
        self._decode_next_s = [np.inf for _ in decodes]
        self._num_decoded = [0 for _ in decodes]
        self._ended: deque[tuple[int, int]] = deque()
        """(request, outcome) of those that ended without a decode replica, and are to be told to their clients."""
        for decode in decodes:
            if isinstance(decode, FabricDecodeReplica):
                decode.on_end = self._wake

    # --- what the workload tells --------------------------------------------------------------------------------------

    def ended_before_decoding(self, request: int, outcome: int) -> None:
        """With its only token, or with a transfer that failed."""
        self._ended.append((request, outcome))
        self._wake()

    def is_decoding(self, request: int, decode: int) -> None:
        """Its keys and values have arrived in a decode replica."""
        self._decoding[decode][request] = None
        self.changed(decode)

    def changed(self, decode: int) -> None:
        """A decode replica has more or less to do than when it was looked at last: look again, at this moment."""
        self._decode_next_s[decode] = self.clock.now
        self._wake()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _next_moment(self) -> Event:
        next_s = min(self._decode_next_s)
        if self._events:
            next_s = min(next_s, self._events[0][0])
        self._nudge = self.clock.event()
        if next_s == np.inf:
            return self._nudge
        timer = self.clock.event()
        self.clock.succeed_at(timer, next_s)
        return timer | self._nudge

    def _settle(self) -> None:
        now_s = self.clock.now
        while True:
            for i, decode in enumerate(self._decodes):
                if self._decode_next_s[i] <= now_s or isinstance(decode, FabricDecodeReplica):
                    self._look_at_decode(i)
            while self._ended:
                self._end_in(*self._ended.popleft())
            if not self._run_event(now_s):
                return

    def _look_at_decode(self, i: int) -> None:
        """Bring it to this moment, and tell the clients what has ended there."""
        decode = self._decodes[i]
        decode.catch_up()
        num_completed = sum(engine.count("num_completed") for engine in decode.engines)
        if num_completed > self._num_decoded[i]:
            on = np.fromiter(self._decoding[i], np.int64, len(self._decoding[i]))
            ended = on[self._answers["outcome"][on] == COMPLETED]
            finished_s = self._answers["finished_s"][ended]
            if len(ended) != num_completed - self._num_decoded[i] or (finished_s != self.clock.now).any():
                raise ReplicaError(
                    f"decode replica {i} completed {num_completed - self._num_decoded[i]} requests by "
                    f"{self.clock.now!r} s, unseen until then: "
                    f"{dict(zip(ended.tolist(), finished_s.tolist(), strict=True))}"
                )
            self._num_decoded[i] = num_completed
            for request in ended.tolist():
                del self._decoding[i][request]
                self._end_in(request, COMPLETED)
        self._decode_next_s[i] = decode.next_s

    # --- requests -----------------------------------------------------------------------------------------------------

    def _route(self, request: int) -> None:
        first, second = self._rng.random(2)
        routed = Routed(request, self._num_routed[0], (first, second), int(self.requests["adapter"][request]))
        i = self.router.choose(self.replicas, routed)
        self._num_routed[0] += 1
        self.num_sent[request] += 1
        for rows in (self.requests, self._prompts):
            rows["submitted_s"][request] = self.clock.now
        self._prompts["arrival_s"][request] = self.clock.now
        self._on[i][request] = None
        reason = self.replicas[i].submit(request)
        if reason is not None:
            self.failures[reason] += 1
            self._end_in(request, int(self._prompts["outcome"][request]))

    def _end_in(self, request: int, outcome: int) -> None:
        self.requests["outcome"][request] = outcome
        del self._on[int(self._prompts["replica"][request])][request]
        self._end(request)
