"""Memory at an address as a torch tensor, without copying.

By DLPack (https://dmlc.github.io/dlpack/latest): `__cuda_array_interface__` knows no bf16, and asks the driver about
the tensor's first byte, behind which a pool may have nothing.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from math import prod

import torch

CPU, CUDA = 1, 2
"""kDLCPU, kDLCUDA"""
TYPES = {
    torch.bfloat16: (4, 16), torch.float16: (2, 16), torch.float32: (2, 32), torch.int32: (0, 32), torch.uint8: (1, 8),
}  # fmt: skip
"""(code, bits): kDLInt 0, kDLUInt 1, kDLFloat 2, kDLBfloat 4"""


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", _Device), ("ndim", ctypes.c_int32), ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_new_capsule.restype = ctypes.py_object

_alive: dict[int, tuple] = {}
"""What tensors refer to, by the address of their description, until torch says that they are gone."""


def tensor_at(
    address: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, on_release: Callable | None = None
) -> torch.Tensor:
    """A contiguous tensor of this shape over the bytes from `address` on; it does not own them.

    on_release  called when the last tensor that shares the memory is gone; until then the memory must stay reserved
    Raises ValueError for a type that DLPack and this module have no code for.
    """
    if dtype not in TYPES:
        raise ValueError(f"{dtype} is none of {', '.join(str(kind) for kind in TYPES)}")
    num_axes = len(shape)
    sizes = (ctypes.c_int64 * num_axes)(*shape)
    strides = (ctypes.c_int64 * num_axes)(*(prod(shape[i + 1 :]) for i in range(num_axes)))
    where = _Device(CPU if device.type == "cpu" else CUDA, device.index or 0)
    description = _Tensor(address, where, num_axes, _DataType(*TYPES[dtype], 1), sizes, strides, 0)
    managed = _Managed(description, None, _forget)
    key = ctypes.addressof(managed)
    _alive[key] = (managed, sizes, strides, on_release)
    return torch.utils.dlpack.from_dlpack(_new_capsule(key, b"dltensor", None))


@atexit.register
def _let_go() -> None:
    """Tensors may outlive the interpreter: from now on torch calls nobody, and finds their descriptions in place."""
    for managed, *_ in _alive.values():
        managed.deleter = _Deleter()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_alive))


@_Deleter
def _forget(key: int) -> None:
    on_release = _alive.pop(key)[-1]
    if on_release is not None:
        on_release()
