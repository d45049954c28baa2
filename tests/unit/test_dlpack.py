"""Capsules read and relabelled, on memory of the host: the structures do not look at it."""

from __future__ import annotations

import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtrun.cuda import dlpack


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}], ids=["unversioned", "versioned"])
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e8m0fnu"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_there_and_back(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    carried = np.zeros(shape, dlpack.carrier(dtype))
    assert carried.itemsize == dtype.itemsize
    if np.lib.NumpyVersion(np.__version__) < "2.1.0" and options:
        pytest.skip("this NumPy makes no versioned capsules")
    capsule = carried.__dlpack__(**options)
    dlpack.relabel(capsule, dtype)
    tensor = dlpack.BorrowedTensor(capsule)
    assert (tensor.ptr, tensor.shape, tensor.dtype) == (carried.ctypes.data, shape, dtype)


def test_known_dtypes_stay_as_they_are() -> None:
    array = np.zeros(3, np.float32)
    assert dlpack.carrier(array.dtype) == array.dtype
    capsule = array.__dlpack__()
    dlpack.relabel(capsule, array.dtype)
    assert dlpack.BorrowedTensor(capsule).dtype == array.dtype


def test_the_borrower_keeps_the_memory_alive() -> None:
    class Array(np.ndarray):  # plain arrays take no weak references in older NumPy
        pass

    array = np.zeros(4, np.uint16).view(Array)
    alive = weakref.ref(array)
    tensor = dlpack.BorrowedTensor(array.__dlpack__())
    del array
    assert alive() is not None
    del tensor
    assert alive() is None
