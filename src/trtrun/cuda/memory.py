"""Page-locked host memory and device memory, each owned by the object that allocated it."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
from cuda.bindings import driver

from .check import check
from .device import Device
from .numa import running_on


class PinnedMemory:
    """Page-locked host memory, the only kind that the GPU's copy engines can read and write asynchronously.

    ``array`` is a flat uint8 view. Views keep the memory alive, so it is freed when the last of them is gone and
    never under a reader; there is no close().
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self.nbytes = nbytes
        with device, running_on(device.near_cpus):
            self.address = int(
                check(driver.cuMemAllocHost(max(nbytes, 1)), f"allocate {nbytes:,} bytes of page-locked host memory")
            )
        # At exit the process returns the memory anyway, and CUDA may be gone by then.
        weakref.finalize(self, _free_host, device, self.address).atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "data": (self.address, False), "shape": (self.nbytes,), "typestr": "|u1"}

    @property
    def array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.asarray(self)


def _free_host(device: Device, address: int) -> None:
    with device:
        check(driver.cuMemFreeHost(address), "free page-locked memory")


class PinnedPool:
    """Page-locked arrays whose memory is used again once nobody holds them: allocating it takes a millisecond."""

    def __init__(self, device: Device, most: int = 512 << 20) -> None:
        self._device, self._most = device, most
        self._free: dict[int, list[PinnedMemory]] = {}
        self._kept = 0  # bytes that wait
        self._lock = threading.RLock()  # collecting garbage inside it may give memory back

    def empty(self, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Uninitialised memory as a flat array; it, and what is viewed through it, keep the memory from others."""
        size = rounded_up(nbytes)
        with self._lock:
            waiting = self._free.get(size)
            memory = waiting.pop() if waiting else None
            self._kept -= size if memory else 0
        lent = _Lent(memory or PinnedMemory(self._device, size))
        weakref.finalize(lent, self._take_back, lent.memory).atexit = False
        return np.asarray(lent)[:nbytes]

    def _take_back(self, memory: PinnedMemory) -> None:
        with self._lock:
            if self._kept + memory.nbytes <= self._most:
                self._free.setdefault(memory.nbytes, []).append(memory)
                self._kept += memory.nbytes

    @staticmethod
    def lent(array: np.ndarray[Any, Any]) -> bool:
        """True for what :meth:`empty` of any pool gave, and views of it."""
        base = array.base
        return isinstance(base.base if type(base) is np.ndarray else base, _Lent)


def rounded_up(nbytes: int) -> int:
    """Whole pages, and at most an eighth more: photographs of many sizes find each other's memory."""
    step = max(1 << max(nbytes.bit_length() - 4, 0), 4096)
    return -(-nbytes // step) * step


class _Lent:
    """Memory of a pool while arrays are over it."""

    def __init__(self, memory: PinnedMemory) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__


class DeviceMemory:
    """Device memory at a fixed address, 256-byte aligned, freed by close()."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.nbytes = nbytes
        with device:
            self.address = int(check(driver.cuMemAlloc(max(nbytes, 1)), f"allocate {nbytes:,} bytes of device memory"))
        self._finalizer = weakref.finalize(self, _free_device, device, self.address)
        self._finalizer.atexit = False

    def close(self) -> None:
        self._finalizer()


def _free_device(device: Device, address: int) -> None:
    with device:
        check(driver.cuMemFree(address), "free device memory")


def copy_async(target: int, source: int, nbytes: int, stream: int) -> None:
    """Enqueue a copy between any two of page-locked host memory and device memory on a stream handle."""
    (code,) = driver.cuMemcpyAsync(target, source, nbytes, stream)
    if code:
        check((code,), f"copy {nbytes:,} bytes")


class RowsCopy:
    """A copy of every so many bytes of page-locked memory to device memory, where they lie side by side.

    Args:
        width: bytes of a piece.
        height: how many pieces.
        pitch: bytes from the start of one to the start of the next.
    """

    def __init__(self, width: int, height: int, pitch: int) -> None:
        self._copy = copy = driver.CUDA_MEMCPY2D()
        copy.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_HOST
        copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcPitch, copy.dstPitch, copy.WidthInBytes, copy.Height = pitch, width, width, height

    def enqueue(self, target: int, source: int, stream: int) -> None:
        self._copy.dstDevice, self._copy.srcHost = target, source
        (code,) = driver.cuMemcpy2DAsync(self._copy, stream)
        if code:
            check((code,), f"copy {self._copy.Height:,} rows")


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Where an array's memory begins.

    Not ``array.ctypes.data``: while other threads run, CPython 3.11 and 3.12 now and then leave some
    50 bytes of its temporary objects behind.
    """
    address: int = array.__array_interface__["data"][0]
    return address


def copy_now(target: int, array: np.ndarray[Any, Any]) -> None:
    """Copy a C-contiguous array to device memory and wait for it."""
    check(driver.cuMemcpyHtoD(target, address_of(array), array.nbytes), f"copy {array.nbytes:,} bytes")


def fill_async(target: int, byte: int, nbytes: int, stream: int) -> None:
    """Enqueue setting every byte of a piece of device memory on a stream handle."""
    check(driver.cuMemsetD8Async(target, byte, nbytes, stream), f"set {nbytes:,} bytes")


def is_pageable(address: int) -> bool:
    """True for host memory that CUDA does not know, false for page-locked memory of anybody's."""
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    return bool(driver.cuPointerGetAttribute(attribute, address)[0])  # an error code, for memory it does not know


def host_view(memory: np.ndarray[Any, Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The first bytes of a flat uint8 array as an array of this dtype and shape, sharing memory."""
    nbytes = dtype.itemsize * math.prod(shape)
    return memory[:nbytes].view(dtype).reshape(shape)
