"""A request's keys and values on their way from the replica that prefilled it to the one that will decode it.

The receiver's blocks are reserved before the first byte is sent. Until the last one has arrived the sender keeps its
own, so that a decode pool without room holds up the prefill pool, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from models.kv_transfer import KVShards
from sim.engine.clock import Clock
from sim.fabric.messages import DELIVERED, MessageGraph, message_graph
from sim.fabric.transfer import Fabric, Transfer


@dataclass(slots=True)
class Handover:
    """One request between two replicas. Times are None until they come.

    prefill, decode     indices of its replicas in their pools; _copy: of the attention in it
    num_blocks          of the whole prompt
    num_shared          leading ones that the receiver's cache has; known once its room is reserved
    num_sent            leading ones that it has, or that are on their way or done
    num_under_way       transfers that have not ended
    is_computed         the first token is there, and so is every block
    asked_s, reserved_s, started_s, received_s    for room; room reserved; first byte let go; last byte arrived
    size_bytes          handed to the fabric
    """

    request: int
    prefill: int
    decode: int
    num_blocks: int
    asked_s: float
    prefill_copy: int = 0
    decode_copy: int = 0
    num_shared: int = 0
    num_sent: int = 0
    num_under_way: int = 0
    is_computed: bool = False
    has_failed: bool = False
    reserved_s: float | None = None
    started_s: float | None = None
    received_s: float | None = None
    size_bytes: int = 0


def kv_messages(
    shards: KVShards,
    source: NDArray[np.int64],
    destination: NDArray[np.int64],
    num_tokens: int,
    ready_s: Sequence[float] | NDArray[np.float64],
    queue_pairs: int,
    owner: str,
) -> MessageGraph:
    """The keys and values of so many tokens: one message per pair of ranks and entry of ready_s.

    source, destination   accelerators of the two tensor-parallel groups, by tensor rank
    ready_s               when each layer is computed; a single entry sends all layers in one message
    """
    layers = shards.num_layers // len(ready_s)
    size_bytes = np.array(shards.layer_bytes, np.int64) * (num_tokens * layers)
    return message_graph(
        np.tile(source[list(shards.source)], len(ready_s)),
        np.tile(destination[list(shards.destination)], len(ready_s)),
        np.tile(size_bytes, len(ready_s)),
        earliest_s=np.repeat(np.asarray(ready_s, dtype=np.float64), len(size_bytes)),
        queue_pairs=queue_pairs,
        owner=owner,
    )


class KVSender:
    """Sends blocks of handovers over the fabric, and says when a handover has arrived.

    prefill_ranks, decode_ranks   accelerators of each replica: [copies of the attention, tensor ranks]
    is_layered                    a layer is sent as soon as it is computed
    on_end                        called with a handover once all its blocks have arrived, or it has failed
    fabric None: transfers take no time
    """

    def __init__(
        self,
        clock: Clock,
        fabric: Fabric | None,
        shards: KVShards,
        block_size: int,
        prefill_ranks: Sequence[NDArray[np.int64]],
        decode_ranks: Sequence[NDArray[np.int64]],
        on_end: Callable[[Handover], None],
        *,
        is_layered: bool = False,
        queue_pairs: int = 1,
        owner: str = "",
    ) -> None:
        self.clock, self.fabric, self.shards, self.block_size = clock, fabric, shards, block_size
        self.prefill_ranks, self.decode_ranks = prefill_ranks, decode_ranks
        self.is_layered, self.queue_pairs, self.owner = is_layered, queue_pairs, owner
        self.on_end = on_end

    @property
    def block_bytes(self) -> int:
        """Of one block, all layers and ranks of the receiver."""
        return self.shards.token_bytes * self.block_size

    def send_layers(self, handover: Handover, num_before: int, num_blocks: int, start_s: float, step_s: float) -> None:
        """Send what a step adds, a layer at a time: layer i of L is computed at start_s + (i + 1) / L · step_s.

        num_before: blocks that are full when it starts; what the receiver lacks of them is sent then
        Leaves out: what the step spends before the first and behind the last layer.
        """
        self._send(handover, num_before, [start_s])
        layers = np.arange(1, self.shards.num_layers + 1) / self.shards.num_layers
        self._send(handover, num_blocks, start_s + layers * step_s)

    def send_rest(self, handover: Handover) -> None:
        """The prompt is computed, and the receiver has room: send what has not been sent."""
        self._send(handover, handover.num_blocks, [self.clock.now])
        self._end(handover)

    def _send(self, handover: Handover, num_blocks: int, ready_s: Sequence[float] | NDArray[np.float64]) -> None:
        """Blocks are sent whole, the last one too."""
        num_more = num_blocks - handover.num_sent
        if num_more <= 0:
            return
        handover.num_sent = num_blocks
        handover.size_bytes += num_more * self.block_bytes
        if handover.started_s is None:
            handover.started_s = float(ready_s[0])
        if self.fabric is None:
            return
        sources, destinations = self.prefill_ranks[handover.prefill], self.decode_ranks[handover.decode]
        graph = kv_messages(
            self.shards, sources[handover.prefill_copy], destinations[handover.decode_copy],
            num_more * self.block_size, ready_s, self.queue_pairs, self.owner,
        )  # fmt: skip
        handover.num_under_way += 1
        self.clock.process(self._await(handover, self.fabric.start(graph)))

    def _await(self, handover: Handover, transfer: Transfer) -> Generator[Event, None, None]:
        yield transfer.done
        handover.num_under_way -= 1
        handover.has_failed |= bool((transfer.results.outcome != DELIVERED).any())
        self._end(handover)

    def _end(self, handover: Handover) -> None:
        if handover.is_computed and handover.num_under_way == 0 and handover.num_sent == handover.num_blocks:
            handover.received_s = self.clock.now
            self.on_end(handover)
