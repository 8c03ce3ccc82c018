"""Sets of sequence numbers within the reorder window: bit (number mod 1,024) of sixteen words."""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric.packet_state import REORDER_WINDOW

WORDS = REORDER_WINDOW // 64


@inner(forceinline=True)
def has(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    return bits[bit >> 6] >> np.uint64(bit & 63) & np.uint64(1) != 0


@inner(forceinline=True)
def add(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    bits[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)


@inner(forceinline=True)
def discard(bits, seq):
    bit = seq & (REORDER_WINDOW - 1)
    bits[bit >> 6] &= ~(np.uint64(1) << np.uint64(bit & 63))


@inner(forceinline=True)
def stretch(bits, seq):
    """The 64 of them from `seq` on, as one word."""
    shift = np.uint64(seq & 63)
    word = (seq & (REORDER_WINDOW - 1)) >> 6
    found = bits[word] >> shift
    if shift > 0:
        found |= bits[(word + 1) & (WORDS - 1)] << (np.uint64(64) - shift)
    return found


@inner(inline="always")
def lowest(bits):
    """Number of the lowest bit that is set: a power of two is a float whose exponent tells."""
    lowest = bits & (~bits + np.uint64(1))
    return (np.float64(lowest).view(np.int64) >> 52) - 1023
