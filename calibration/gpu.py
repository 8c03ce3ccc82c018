"""The timer of a real device: replays of CUDA graphs, and the clock on the wall for calls of the driver."""

from __future__ import annotations

import subprocess
import time

import numpy as np
import torch
import triton
from triton.runtime.errors import OutOfResources

from calibration.budget import ROUNDS
from calibration.calls import CallMaker, Unmeasurable
from calibration.points import Point
from kernels import timing
from kernels.virtual_memory import CudaMemory, Memory
from models.pages import PAGE_BYTES

__all__ = ["GpuTimer", "page_call_seconds", "rehearse"]


class GpuTimer:
    """Times of points on the first CUDA device."""

    def __init__(self) -> None:
        self._maker = CallMaker("cuda")

    def identity(self) -> dict[str, str]:
        """What was measured on what, in a table's columns."""
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            driver = done.stdout.strip() if done.returncode == 0 else ""
        except OSError:
            driver = ""
        return {"gpu": torch.cuda.get_device_name(0), "driver": driver or "unknown", "torch": torch.__version__,
                "triton": triton.__version__}  # fmt: skip

    def seconds(self, point: Point) -> np.ndarray:
        """[rounds] of one call, every one of them. Raises Unmeasurable; RuntimeError once the device is of no use."""
        for attempt in range(2):
            try:
                return self._seconds(point)
            except torch.OutOfMemoryError:
                self._maker.close()  # the pool may be what is in the way
                torch.cuda.empty_cache()
                if attempt:
                    raise Unmeasurable("the device's memory is too small") from None
            except Unmeasurable:
                raise
            except (RuntimeError, MemoryError, OutOfResources) as error:
                torch.cuda.synchronize()  # raises, and ends the measurement, where the device is what failed
                raise Unmeasurable(str(error).strip().split("\n")[0]) from error
        raise AssertionError("the second attempt returns or raises")

    def _seconds(self, point: Point) -> np.ndarray:
        if point.operator == "page_call":
            return page_call_seconds(CudaMemory(), point.name, point.columns["pages"], ROUNDS)
        return timing.measure({"way": self._maker.calls(point)}, ROUNDS, has_again=False)["way"].seconds

    def close(self) -> None:
        self._maker.close()


class _Laps:
    """Seconds of named stretches of code: `with laps("map"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._begin = "", 0.0

    def __call__(self, name: str) -> _Laps:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = time.perf_counter() - self._begin


def page_call_seconds(memory: Memory, name: str, pages: int, rounds: int) -> np.ndarray:
    """[rounds] wall time of what one of PAGE_CALLS takes for so many pages.

    A stretch is reserved, filled and given back in each round; the first is not counted. reserve, allow and unreserve
    are one call for all pages, the others one for each.
    """
    return np.array([_pass(memory, pages)[name] for _ in range(rounds + 1)][1:])


def _pass(memory: Memory, pages: int) -> dict[str, float]:
    laps, handles, size = _Laps(), [], pages * PAGE_BYTES
    with laps("reserve"):
        address = memory.reserve(size)
    where = range(address, address + size, PAGE_BYTES)
    try:
        with laps("create"):
            for _ in where:
                handles.append(memory.create())
        with laps("map"):
            for page, handle in zip(where, handles, strict=True):
                memory.map(page, handle)
        with laps("allow"):
            memory.allow(address, size)
        with laps("unmap"):
            for page in where:
                memory.unmap(page)
    finally:
        with laps("release"):
            for handle in handles:
                memory.release(handle)
        with laps("unreserve"):
            memory.unreserve(address, size)
    return laps.seconds


def rehearse(point: Point, device: str) -> None:
    """Run the calls of a point once each, and time nothing. Raises Unmeasurable."""
    if point.operator == "page_call":
        if device != "cuda":
            raise Unmeasurable("it takes a CUDA device's virtual memory")
        page_call_seconds(CudaMemory(), point.name, point.columns["pages"], 1)
        return
    maker = CallMaker(device)
    try:
        timing.rehearse({"way": maker.calls(point)})
    finally:
        maker.close()
