"""Arrays on the GPU: the caller's, borrowed through DLPack or ``__cuda_array_interface__``, and trtrun's results."""

from __future__ import annotations

import functools
import math
from contextlib import suppress
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.core import LEGACY_DEFAULT_STREAM, Buffer, DeviceMemoryResource, Stream
from cuda.core.utils import StridedMemoryView

from ..errors import ClosedError, InputError
from . import dlpack
from .check import check, translated
from .device import Device
from .memory import address_of
from .stream import borrowed_stream

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def gpu_ordinal(array: Any) -> int | None:
    """The GPU an array lies on, or None for an array on the host or anything that is no array."""
    if getattr(array, "is_cuda", False):  # torch, which takes ten times as long to answer in Python below
        return int(array.get_device())
    if hasattr(array, "__dlpack_device__"):
        kind, ordinal = array.__dlpack_device__()
        return int(ordinal) if int(kind) in _DLPACK_CUDA else None
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return None
    code, ordinal = driver.cuPointerGetAttribute(
        driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, interface["data"][0]
    )
    return int(ordinal) if not code else None


def borrow(array: Any, what: str, stream: int) -> StridedMemoryView | dlpack.BorrowedTensor:
    """A view of a caller's GPU array, its data ready for work on this stream handle. It keeps the array alive.

    ``what`` names it in errors: "input 'x'". The caller keeps the view until that work is done.

    Raises InputError for arrays that are not C-contiguous: a strided gather on the GPU would hide a slow copy.
    """
    if not hasattr(array, "__dlpack__"):
        array = _Announced(array)
    if isinstance(array, DeviceArray):  # whose memory, kept so long, need not be returned in the order of this stream
        array.order(stream)
        stream = -1  # it has waited
    view: Any
    try:
        view = StridedMemoryView.from_any_interface(array, stream)
    except (BufferError, TypeError, ValueError, NotImplementedError) as error:
        try:  # a dtype that it does not know
            view = dlpack.BorrowedTensor(array.__dlpack__(stream=stream))
        except Exception:  # a foreign producer may raise anything
            raise InputError(f"{what}: the GPU array cannot be read through DLPack: {error}") from error
    shape, strides = view.shape, view.strides
    if strides is not None and not _is_contiguous(tuple(shape), tuple(strides)):
        raise InputError(
            f"{what} is a GPU array with strides {strides} (in elements) for shape {shape}; an engine reads "
            "contiguous memory. Make it contiguous first: tensor.contiguous() or cupy.ascontiguousarray(array)."
        )
    return view


def follow_producer(array: Any) -> None:
    """Let the legacy default stream wait for what fills a GPU array; see :meth:`trtrun.runner.Runner.follow_producers`.

    A :class:`DeviceArray` is ordered after its own stream, whatever the thread.
    """
    if hasattr(array, "__dlpack__") and not isinstance(array, DeviceArray) and gpu_ordinal(array) is not None:
        with suppress(Exception):  # a foreign producer may raise anything, and will again for who borrows the array
            array.__dlpack__(stream=1)


class _Announced:
    """A producer's ``__cuda_array_interface__`` with the stream that version 2 (torch's) leaves unsaid.

    Without one, the data is ready in the order of the legacy default stream, where such producers work.
    """

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = {"stream": 1, **array.__cuda_array_interface__, "version": 3}
        self._array = array  # keeps the memory alive


@functools.lru_cache(maxsize=256)  # the GPU waits for this
def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class DeviceArray:
    """A result on the GPU: C-contiguous, owned, exchanged without a copy through DLPack.

    ``torch.from_dlpack(array)``, ``cupy.from_dlpack(array)`` and ``jax.dlpack.from_dlpack(array)`` share its memory;
    ``array.numpy()`` copies it to the host. Each consumer is ordered after the request that computed it. The memory
    goes back to CUDA's pool when the array and all its consumers are gone, after the work on the stream of the
    consumer that took it last: consumers on several streams wait for each other before the last of them lets go, and
    the last one's stream lives as long as the array. (trtrun's own sessions may be closed before.)
    """

    def __init__(
        self,
        device: Device,
        resource: DeviceMemoryResource,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        stream: Stream,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._device = device
        self._stream: Stream | None = stream  # None once the data is there
        with translated(f"allocate {self.nbytes:,} bytes of device memory for a result"):
            self._buffer: Buffer = resource.allocate(max(self.nbytes, 1), stream=stream)
        self._address = int(self._buffer.handle)
        self._view: StridedMemoryView | None = None

    @property
    def address(self) -> int:
        """The device address of the first element."""
        if self._buffer.is_closed:
            raise ClosedError("this DeviceArray is closed.")
        return self._address

    def follow(self, stream: Stream) -> None:
        """The array is used, and its memory returned, in the order of this stream, which waits for the computation."""
        with self._device:
            self._buffer.set_deallocation_stream(stream)
        self._stream = stream

    def settle(self) -> None:
        """The computation has finished: nothing needs to wait for a stream, which may be closed now."""
        with self._device:
            self._buffer.set_deallocation_stream(LEGACY_DEFAULT_STREAM)
        self._stream = None

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A copy on the host, after all work that computes this array."""
        host = np.empty(self.shape, self.dtype)
        with self._device:
            if self._stream is not None:
                with translated("wait for a result"):
                    self._stream.sync()
            if self.nbytes:
                check(driver.cuMemcpyDtoH(address_of(host), self.address, self.nbytes), "copy a result to the host")
        return host

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("a DeviceArray is on the GPU: a NumPy array of it is always a copy")
        host = self.numpy()
        return host if dtype is None else host.astype(dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._device.ordinal)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        with self._device:
            if stream != -1:  # None means the legacy default stream, 1
                self._buffer.set_deallocation_stream(self.order(1 if stream is None else int(stream)))
            if self._view is None:
                carried = dlpack.carrier(self.dtype)
                self._view = StridedMemoryView.from_buffer(self._buffer, self.shape, dtype=carried)
            capsule = self._view.__dlpack__(stream=-1, **options)
            dlpack.relabel(capsule, self.dtype)
            return capsule

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # A consumer of this interface does not name its stream. The work that computed the array is announced under
        # "stream"; the memory is returned in the order of the legacy default stream, where such consumers work, and not
        # while the array is still being written.
        with self._device, translated("order a result after its computation"):
            if self._stream is not None:
                LEGACY_DEFAULT_STREAM.wait(self._stream)
            self._buffer.set_deallocation_stream(LEGACY_DEFAULT_STREAM)
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None if self._stream is None else int(self._stream.handle),
        }

    def order(self, handle: int) -> Stream:
        """Let the stream of this handle wait for the computation; returned as an object that does not own it."""
        if self._stream is not None and handle == int(self._stream.handle):
            return self._stream
        consumer = borrowed_stream(self._device, handle)
        if self._stream is not None:
            with self._device, translated("order a result after its computation"):
                consumer.wait(self._stream)
        return consumer

    def close(self) -> None:
        """Return the memory now, in stream order. Consumers that share it must be done with it."""
        with self._device:
            self._buffer.close()

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype.name}{list(self.shape)} on GPU {self._device.ordinal}>"


def result_pool(device: Device) -> DeviceMemoryResource:
    """The GPU's default stream-ordered memory pool, where results for the caller come from."""
    with device, translated("open the GPU's memory pool"):
        resource: DeviceMemoryResource = device.core.memory_resource
        return resource
