"""Which adapters are in the accelerator's memory where not all have room: what each takes, and what is kept of it.

`sim.serving.adapter_pool` loads and evicts; here is what it works with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ADAPTER = np.dtype(
    [
        ("load_s", "f8"),
        ("evict_s", "f8"),
        ("loading_from_s", "f8"),
        ("ready_s", "f8"),
        ("left_s", "f8"),
        ("size", "i8"),
        ("num_users", "i8"),
        ("is_there", "i1"),
    ],
    align=True,
)
"""One adapter; entry 0 is the base model, which is always there.

load_s, evict_s    as in `Residency`; size, in units of its capacity
is_there           its room is taken: loaded, or being loaded
loading_from_s, ready_s    its last load, where loads overlap with steps: begun, and over
left_s             when the last of its requests left the running list, and the step that it was in had ended
num_users          scratch: who keeps it from being evicted
"""


@dataclass(frozen=True, slots=True)
class Residency:
    """Adapters that come and go.

    capacity         what may be there at once, in units of `size`: adapters, or pages
    size             that each takes
    load_s, evict_s  seconds to load and to evict each
    is_overlapped    loads run beside steps, one after the other, and a request waits until its adapter is there;
                     otherwise the step that first needs an adapter waits for its load, and everybody in it

    At the beginning the first adapters are there, as many as have room one after the other.
    Raises ValueError where one has no room, or where a load takes no time.
    """

    capacity: int
    size: tuple[int, ...]
    load_s: tuple[float, ...]
    evict_s: tuple[float, ...]
    is_overlapped: bool = False

    def __post_init__(self) -> None:
        if not all(1 <= size <= self.capacity for size in self.size):
            raise ValueError(f"each adapter takes from 1 to the capacity, {self.capacity}; got {self.size}")
        if min(self.load_s, default=1.0) <= 0 or min(self.evict_s, default=0.0) < 0:
            raise ValueError(f"loads take time; got {self.load_s} s, evictions {self.evict_s} s")

    def new_adapters(self) -> NDArray[Any]:
        """[adapters + 1] ADAPTER at the beginning."""
        adapters = np.zeros(len(self.size) + 1, ADAPTER)
        adapters["size"][1:], adapters["load_s"][1:], adapters["evict_s"][1:] = self.size, self.load_s, self.evict_s
        begin(adapters, self.capacity)
        return adapters


def begin(adapters: NDArray[Any], capacity: int) -> None:
    """Only those are there that are at the beginning."""
    adapters["is_there"] = np.cumsum(adapters["size"]) <= capacity
    adapters["ready_s"] = adapters["loading_from_s"] = adapters["left_s"] = 0.0


def held(adapters: NDArray[Any]) -> tuple[int, int]:
    """(adapters that are there, or on their way, the room they take)."""
    is_there = adapters["is_there"][1:] > 0
    return int(is_there.sum()), int(adapters["size"][1:][is_there].sum())
