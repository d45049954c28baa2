"""DLPack capsules for the dtypes that cuda.core's ``StridedMemoryView`` does not exchange: bfloat16 and float8.

The structures are those of dlpack.h (v0.8, ``DLManagedTensor``), which every consumer of the protocol accepts.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

CUDA = 2  # kDLCUDA
_NAME = b"dltensor"
# DLDataTypeCode of the floating-point types that NumPy lacks
_CODES = {"bfloat16": 4, "float8_e4m3fn": 10, "float8_e5m2": 12, "float8_e8m0fnu": 14}
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(("PyCapsule_New", _api))
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
# By address: in a destructor the capsule must not be referred to as an object any more.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_get_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))

_exported: dict[int, tuple[Any, ...]] = {}  # what capsules that are in use keep alive, by the structure's address


class BorrowedTensor:
    """A producer's tensor read from its capsule; it stays valid as long as this object lives."""

    def __init__(self, capsule: Any) -> None:
        tensor = _ManagedTensor.from_address(_get(capsule, _NAME)).tensor
        self._capsule = capsule
        self.device_id = int(tensor.device_id)
        self.ptr = int(tensor.data or 0) + int(tensor.byte_offset)
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        self.strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
        self.dtype = _to_dtype(tensor.dtype)


def _to_dtype(dtype: _DataType) -> np.dtype[Any]:
    if dtype.lanes == 1:
        for name, code in _CODES.items():
            if code == dtype.code and np.dtype(getattr(ml_dtypes, name)).itemsize * 8 == dtype.bits:
                extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
                return extended
        if dtype.code in _KINDS and dtype.bits % 8 == 0:
            return np.dtype(f"{_KINDS[dtype.code]}{dtype.bits // 8}")
    raise BufferError(f"no dtype for DLPack's code {dtype.code} with {dtype.bits} bits and {dtype.lanes} lanes")


def exports(dtype: np.dtype[Any]) -> bool:
    """True for the dtypes that :func:`export` is for."""
    return dtype.name in _CODES


def export(owner: Any, address: int, shape: Sequence[int], dtype: np.dtype[Any], ordinal: int) -> Any:
    """A capsule for C-contiguous memory on a GPU, which keeps ``owner`` alive until its consumer is done."""
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    strides = (ctypes.c_int64 * max(len(shape), 1))(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    managed = _ManagedTensor()
    managed.tensor = _Tensor(
        data=address,
        device_type=CUDA,
        device_id=ordinal,
        ndim=len(shape),
        dtype=_DataType(_CODES[dtype.name], 8 * dtype.itemsize, 1),
        shape=sizes,
        strides=strides,
        byte_offset=0,
    )
    managed.deleter = _delete
    where = ctypes.addressof(managed)
    _exported[where] = (managed, sizes, strides, owner)
    return _new(where, _NAME, _destroy)


def _on_delete(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _on_destroy(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took the tensor: a consumer renames the capsule
        _exported.pop(_get_raw(capsule, _NAME), None)


_delete, _destroy = _Deleter(_on_delete), _Destructor(_on_destroy)
