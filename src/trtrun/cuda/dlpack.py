"""DLPack capsules of dtypes that cuda.core's ``StridedMemoryView`` does not exchange: bfloat16 and float8.

The structures are those of dlpack.h (v1.0): ``DLManagedTensor``, and ``DLManagedTensorVersioned`` where the consumer
asks for it. A capsule out is cuda.core's own, of integers of the same size, in which the dtype is set right: so its
memory is freed by cuda.core and no Python code runs in a destructor, where an exception may be on its way.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

_NAME, _VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
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


class _VersionedTensor(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_api = ctypes.pythonapi
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))


def _tensor(capsule: Any) -> _Tensor:
    """The structure inside a capsule; it lives as long as the capsule, if nobody takes it out."""
    if _is_valid(capsule, _VERSIONED_NAME):
        versioned = _VersionedTensor.from_address(_get(capsule, _VERSIONED_NAME))
        tensor: _Tensor = versioned.tensor
        return tensor
    return _Tensor.from_address(_get(capsule, _NAME))  # DLManagedTensor begins with it


class BorrowedTensor:
    """A producer's tensor read from its capsule; it stays valid as long as this object lives."""

    def __init__(self, capsule: Any) -> None:
        tensor = _tensor(capsule)
        self._capsule = capsule
        self.readonly = False  # an unversioned capsule cannot say so
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


def carrier(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that cuda.core exports in place of this one: itself where it knows it."""
    return np.dtype(f"u{dtype.itemsize}") if dtype.name in _CODES else dtype


def relabel(capsule: Any, dtype: np.dtype[Any]) -> None:
    """Set the dtype in a capsule of :func:`carrier`'s, which nobody has taken yet."""
    if dtype.name in _CODES:
        _tensor(capsule).dtype.code = _CODES[dtype.name]
