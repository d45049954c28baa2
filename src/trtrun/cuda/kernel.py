"""trtrun's own kernels: loaded once per GPU, and launches of them whose arguments stay the same."""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files
from typing import Any

from cuda.bindings import driver

from .check import check
from .device import Device

Grid = tuple[int, int, int]


class Launch:
    """One launch of a kernel, its arguments packed once; ``enqueue`` puts it on a stream.

    Args:
        device: the GPU.
        module, name: the file in ``kernels/`` without its suffix, and the function in it.
        grid, block: blocks, and threads per block, along x, y and z.
        arguments: ctypes values, structures among them, of the types and in the order of the kernel's parameters.
    """

    def __init__(self, device: Device, module: str, name: str, grid: Grid, block: Grid, *arguments: Any) -> None:
        self._function = _function(device.ordinal, module, name)
        self._name = name
        self._shape = (*grid, *block)
        self._values = arguments
        self._arguments = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._address = ctypes.addressof(self._arguments)

    def enqueue(self, stream: int) -> None:
        (code,) = driver.cuLaunchKernel(self._function, *self._shape, 0, stream, self._address, 0)
        if code:
            check((code,), f"launch the kernel {self._name}")


@functools.cache
def _module(ordinal: int, name: str) -> driver.CUmodule:
    """Kept for the life of the process, like the context it belongs to."""
    ptx = (files(__package__) / "kernels" / f"{name}.ptx").read_bytes() + b"\0"
    with Device(ordinal):
        return check(driver.cuModuleLoadData(ptx), f"load trtrun's kernels of {name}.ptx")


@functools.cache
def _function(ordinal: int, module: str, name: str) -> driver.CUfunction:
    with Device(ordinal):
        return check(
            driver.cuModuleGetFunction(_module(ordinal, module), name.encode()), f"find trtrun's kernel {name}"
        )
