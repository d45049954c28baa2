"""CUDA events that measure time."""

from __future__ import annotations

import weakref

from cuda.bindings import driver

from .check import check
from .device import Device


class Event:
    """A point in a stream's work, with the time at which the GPU reached it.

    Args:
        device: the GPU; its context must be current wherever the methods are called.
        spin: the waiting thread polls, which reacts sooner and occupies its core. Off, it sleeps.
    """

    def __init__(self, device: Device, *, spin: bool) -> None:
        kinds = driver.CUevent_flags
        flags = kinds.CU_EVENT_DEFAULT if spin else kinds.CU_EVENT_BLOCKING_SYNC
        with device:
            self._handle = check(driver.cuEventCreate(flags), "create an event")
        self._finalizer = weakref.finalize(self, _destroy, device, self._handle)
        self._finalizer.atexit = False

    def record(self, stream: int) -> None:
        """Mark the point that the work enqueued on a stream handle has reached."""
        check(driver.cuEventRecord(self._handle, stream), "record an event")

    def holds(self, stream: int) -> None:
        """Work enqueued on this stream handle from now on starts only after the recorded point."""
        check(driver.cuStreamWaitEvent(stream, self._handle, 0), "make a stream wait")

    def synchronize(self) -> None:
        """Block until the GPU has reached the recorded point."""
        check(driver.cuEventSynchronize(self._handle), "finish the work on the GPU")

    def since(self, earlier: Event) -> float:
        """Milliseconds from ``earlier`` to this event, both reached. Resolution: about half a microsecond."""
        elapsed: float = check(driver.cuEventElapsedTime(earlier._handle, self._handle), "measure time")
        return elapsed

    def close(self) -> None:
        self._finalizer()


def _destroy(device: Device, handle: driver.CUevent) -> None:
    with device:
        check(driver.cuEventDestroy(handle), "destroy an event")
