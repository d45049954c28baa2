"""Capsules made and read by hand, on memory of the host: the structures do not look at it."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

from trtrun.cuda import dlpack


class Owner:
    pass


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e8m0fnu"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.export(owner, 0x1000, shape, dtype, 1)
    del owner
    tensor = dlpack.BorrowedTensor(capsule)
    assert (tensor.ptr, tensor.shape, tensor.dtype, tensor.device_id) == (0x1000, shape, dtype, 1)
    assert tensor.strides == {2: (shape[-1] if shape else 1, 1), 0: ()}[len(shape)]
    del capsule
    gc.collect()
    assert alive() is not None  # the borrower holds the capsule, and that its owner
    del tensor
    gc.collect()
    assert alive() is None  # a capsule that nobody took frees what it held


def test_a_consumer_frees_through_the_deleter() -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.export(owner, 0x1000, (4,), np.dtype(ml_dtypes.bfloat16), 0)
    del owner
    where = dlpack._get(capsule, b"dltensor")
    rename = dlpack.ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [dlpack.ctypes.py_object, dlpack.ctypes.c_char_p]
    rename(capsule, b"used_dltensor")
    del capsule
    gc.collect()
    assert alive() is not None
    managed = dlpack._ManagedTensor.from_address(where)
    managed.deleter(dlpack.ctypes.pointer(managed))
    gc.collect()
    assert alive() is None
