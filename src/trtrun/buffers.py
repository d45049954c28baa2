"""The buffers of one session: page-locked and device memory for every input and output, and scratch memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda.device import Device
from .cuda.memory import DeviceMemory, PinnedMemory, address_of

_SCRATCH = "\0scratch"  # no tensor name holds a NUL


class Buffers:
    """Grows to the largest request seen and stays there, so that a steady state allocates nothing.

    ``generation`` changes when an address did: what was captured or bound before must be made again. The caller
    makes sure that no work on the GPU uses a buffer that is about to grow.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._on_gpu: dict[str, DeviceMemory] = {}
        self.generation = 0

    def host(self, name: str, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Page-locked memory of at least ``nbytes`` for this tensor, as a flat uint8 array."""
        array = self._host.get(name)
        if array is None or array.nbytes < nbytes:
            array = self._host[name] = PinnedMemory(self._device, nbytes).array
            self.generation += 1
        return array

    def owns(self, name: str, array: np.ndarray[Any, Any]) -> bool:
        """True when ``array`` is a view of this tensor's page-locked memory."""
        memory = self._host.get(name)
        return memory is not None and (array.base is memory or array is memory)

    def in_place(self, name: str, array: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> bool:
        """True when ``array`` is in this tensor's page-locked memory, and exactly the bytes that ``view`` shows."""
        return bool(
            self.owns(name, array)
            and address_of(array) == address_of(view)
            and array.flags.c_contiguous
            and array.dtype == view.dtype
        )

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """True when ``array`` may lie in the page-locked memory of any tensor."""
        return any(np.may_share_memory(array, memory) for memory in self._host.values())

    def on_gpu(self, name: str, nbytes: int) -> int:
        """The address of device memory of at least ``nbytes`` for this tensor."""
        memory = self._on_gpu.get(name)
        if memory is None or memory.nbytes < nbytes:
            if memory is not None:
                memory.close()  # first, so that the peak is the larger of the two and not their sum
                del self._on_gpu[name]
                self.generation += 1  # now: the allocation may fail, and nothing may use the old address any more
            memory = self._on_gpu[name] = DeviceMemory(self._device, nbytes)
            self.generation += 1
        return memory.address

    def scratch(self, nbytes: int) -> tuple[int, int]:
        """Address and size of the scratch memory that the session's execution contexts share."""
        address = self.on_gpu(_SCRATCH, nbytes)
        return address, self._on_gpu[_SCRATCH].nbytes

    @property
    def places(self) -> list[tuple[int, int]]:
        """Address and bytes of each piece of device memory."""
        return [(memory.address, memory.nbytes) for memory in self._on_gpu.values()]

    @property
    def device_bytes(self) -> int:
        return sum(memory.nbytes for memory in self._on_gpu.values())

    @property
    def host_bytes(self) -> int:
        return sum(array.nbytes for array in self._host.values())

    def close(self) -> None:
        for memory in reversed(self._on_gpu.values()):
            memory.close()
        self._on_gpu.clear()
        self._host.clear()
