"""Device memory of another process on the same machine, through a handle that it exported (CUDA IPC)."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np
from cuda.bindings import driver

from ..errors import DtypeError, InputError
from .check import check
from .device import Device
from .memory import address_of, copy_async
from .stream import create_stream

HANDLE_BYTES = 64  # of a cudaIpcMemHandle_t, which is the driver's CUipcMemHandle


class ImportedMemory:
    """Another process's device memory, mapped into this one; unmapped when the last reference to it goes.

    Args:
        handle: the bytes of its ``cudaIpcMemHandle_t``.
        ordinal: the GPU on which it lies.
        nbytes: how much of it is used.

    Raises InputError for what is no handle or for less memory than that, DeviceError where CUDA does not open it: a
    process that has ended, another machine, or this very process, whose own handles CUDA does not open.
    """

    def __init__(self, handle: bytes, ordinal: int, nbytes: int) -> None:
        if len(handle) != HANDLE_BYTES:
            raise InputError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, got {len(handle)}.")
        self.nbytes = nbytes
        self._device = Device(ordinal)
        self._stream = create_stream(self._device)
        native = driver.CUipcMemHandle()
        ctypes.memmove(native.getPtr(), handle, HANDLE_BYTES)
        flag = driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        with self._device:
            self._address = int(check(driver.cuIpcOpenMemHandle(native, int(flag)), "open another process's memory"))
            # At exit the process returns it anyway, and CUDA may be gone by then.
            weakref.finalize(self, _close, self._device, self._address).atexit = False
            base, size = check(driver.cuMemGetAddressRange(self._address), "tell the size of another process's memory")
        inside = int(base) + int(size) - self._address
        if not 0 < nbytes <= inside:
            raise InputError(f"the memory behind this handle has {inside:,} bytes, not {nbytes:,}.")

    def part(self, offset: int, nbytes: int) -> ImportedBytes:
        """Bytes of it, which keep it mapped."""
        return ImportedBytes(self, self._address + offset, nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        with self._device:
            copy_async(target, source, nbytes, int(self._stream.handle))
            check(driver.cuStreamSynchronize(self._stream.handle), "copy an output into another process's memory")


class ImportedBytes:
    """A part of another process's memory, as arrays and for writing."""

    def __init__(self, memory: ImportedMemory, address: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = memory
        self._address = address

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> ImportedArray:
        """All of it as a C-contiguous array. DtypeError for dtypes that ``__cuda_array_interface__`` does not name."""
        if dtype.kind == "V":
            raise DtypeError(f"{dtype.name} cannot be passed through CUDA shared memory; use system shared memory.")
        return ImportedArray(self._memory, self._address, dtype, shape)

    def write(self, array: Any) -> None:
        """Copy a :class:`~trtrun.cuda.device_array.DeviceArray` or a NumPy array to its beginning, and wait."""
        if isinstance(array, np.ndarray):
            array = np.ascontiguousarray(array)
        source = address_of(array) if isinstance(array, np.ndarray) else array.address
        if array.nbytes:
            self._memory.copy(self._address, source, array.nbytes)


class ImportedArray:
    """An array in another process's memory, for :meth:`~trtrun.runner.Runner.run`. Its data is there already."""

    def __init__(self, memory: ImportedMemory, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.nbytes = dtype.itemsize * math.prod(shape)
        self._memory = memory  # stays mapped
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),
            "strides": None,
            "stream": None,  # whoever sends the request has written it
        }


def _close(device: Device, address: int) -> None:
    with device:
        check(driver.cuIpcCloseMemHandle(address), "close another process's memory")
