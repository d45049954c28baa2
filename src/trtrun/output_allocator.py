"""Memory for outputs whose shape only the run itself decides (NonZero, NMS, TopK with a run-time k)."""

from __future__ import annotations

from typing import Any

from .cuda.device import Device
from .cuda.memory import DeviceMemory
from .tensor_spec import Shape, to_shape


class OutputAllocator:
    """TensorRT's ``IOutputAllocator`` over memory that is kept and grown, so a steady state allocates nothing.

    Attributes:
        handle: the object to give to ``set_output_allocator``.
        shape: the output's shape in the last run.
        address: where its data is.
    """

    handle: Any

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: DeviceMemory | None = None
        self.shape: Shape = ()
        self.error: Exception | None = None

    @classmethod
    def create(cls, module: Any, device: Device) -> OutputAllocator:
        owner = cls(device)

        class Bridge(module.IOutputAllocator):  # type: ignore[misc]  # the base is known only at run time
            def __init__(self) -> None:
                module.IOutputAllocator.__init__(self)

            def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
                return owner._reallocate(size)

            def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
                return owner._reallocate(size)

            def notify_shape(self, name: str, shape: Any) -> None:
                owner.shape = to_shape(shape)

        owner.handle = Bridge()
        return owner

    @property
    def address(self) -> int:
        return self._memory.address if self._memory is not None else 0

    def _reallocate(self, size: int) -> int:
        # Raising would cross C++ frames; a null address makes TensorRT fail the run, and the session raises `error`.
        if self._memory is None or self._memory.nbytes < size:
            self._free()
            try:
                # A quarter more than asked: sizes that creep up must not allocate on every run.
                self._memory = DeviceMemory(self._device, max(size + size // 4, 256))
            except Exception as error:
                self.error = error
                return 0
        return self._memory.address

    def _free(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def close(self) -> None:
        self._free()
        self.handle = None  # the bridge refers back to this object; without the cycle both go at once
