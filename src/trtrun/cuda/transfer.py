"""Transfers: the copies of a request between page-locked host memory and device memory, enqueued together."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .device import Device
from .kernel import Launch
from .memory import copy_async

# Up to this many bytes a kernel copies faster than the copy engine: the GPU needs about 3 µs to pass from a kernel to
# the copy engine and back, which a kernel between kernels does not cost. Measured on an H200, NumPy to NumPy, copy
# engine -> kernel: 12 KB in 35 -> 29 µs, 0.3 MB in 404 -> 400 µs (ResNet-50) and 280 -> 273 µs (MobileNetV3).
KERNEL_LIMIT = 1 << 20
# But a kernel that waits for PCIe keeps cores from requests that compute meanwhile. Sixteen graphs of one picture
# (0.3 MB) each in flight on an H200, images/s copied by kernels -> by the copy engine: ResNet-50 9,060 -> 9,300,
# MobileNetV3 18,800 -> 25,500. Tiny copies stay with the kernel: a network of five nodes, which only the host limits,
# answered 11 % fewer requests of 12 KB by the copy engine, 16 % of 49 KB, 9 % of 0.2 MB, and as many of 0.6 MB.
SHARED_KERNEL_LIMIT = 1 << 16

_TENSORS = 8  # as in kernels/copy.cu, with the two below
_THREADS = 256
_BYTES_PER_BLOCK = 1024 * 16

Copy = tuple[int, int, int]  # target address, source address, bytes


class _Copies(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint64 * _TENSORS),
        ("source", ctypes.c_uint64 * _TENSORS),
        ("nbytes", ctypes.c_uint32 * _TENSORS),
    )


class Transfers:
    """Copies whose addresses stay the same; ``enqueue`` puts all of them on a stream.

    Args:
        shares_gpu: others compute on this GPU meanwhile.
    """

    def __init__(self, device: Device, copies: Sequence[Copy], *, shares_gpu: bool = False) -> None:
        limit = SHARED_KERNEL_LIMIT if shares_gpu else KERNEL_LIMIT
        small = [copy for copy in copies if _fits_kernel(*copy, limit)]
        self._others = [copy for copy in copies if not _fits_kernel(*copy, limit)]
        self._launches = [_launch(device, small[i : i + _TENSORS]) for i in range(0, len(small), _TENSORS)]

    def enqueue(self, stream: int) -> None:
        for copy in self._others:
            copy_async(*copy, stream)
        for launch in self._launches:
            launch.enqueue(stream)


def _fits_kernel(target: int, source: int, nbytes: int, limit: int) -> bool:
    # What CUDA allocates is aligned; rows within a batch need not be.
    return nbytes <= limit and (target | source) % 16 == 0


def _launch(device: Device, copies: Sequence[Copy]) -> Launch:
    packed = _Copies()
    for index, (target, source, nbytes) in enumerate(copies):
        packed.target[index], packed.source[index], packed.nbytes[index] = target, source, nbytes
    grid = (-(-max(nbytes for _, _, nbytes in copies) // _BYTES_PER_BLOCK), len(copies), 1)
    return Launch(device, "copy", "copy_small", grid, (_THREADS, 1, 1), packed)
