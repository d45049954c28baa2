"""CUDA streams: trtrun's own, and the caller's in whatever form they come."""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver
from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Stream, StreamOptions

from .check import check, translated
from .device import Device

# Handles that stand for a default stream rather than for one that somebody created.
DEFAULT_STREAMS = {0: LEGACY_DEFAULT_STREAM, 1: LEGACY_DEFAULT_STREAM, 2: PER_THREAD_DEFAULT_STREAM}


def create_stream(device: Device) -> Stream:
    """A non-blocking stream: it does not wait for the legacy default stream, nor that one for it."""
    with device, translated("create a stream"):
        stream: Stream = device.core.create_stream(options=StreamOptions(nonblocking=True))
        return stream


def stream_handle(stream: Any) -> int:
    """The handle of a stream in whatever form a caller has it.

    Takes anything with ``cuda_stream`` (torch), ``ptr`` (CuPy) or ``__cuda_stream__`` (cuda.core), or the handle
    itself as an int. Raises TypeError for anything else.
    """
    for attribute in ("cuda_stream", "ptr"):  # first: torch answers __cuda_stream__ in Python
        handle = getattr(stream, attribute, None)
        if handle is not None:
            return int(handle)
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    raise TypeError(
        f"a stream must be a cuda.core Stream, a torch or CuPy stream, or an int handle; got {type(stream)}"
    )


def borrowed_stream(device: Device, handle: int, owner: Any = None) -> Stream:
    """Somebody else's stream by its handle; trtrun never closes it.

    ``owner`` lives as long as anything that needs the stream: memory that will be returned in its order, for one.
    """
    with device, translated("use the caller's stream"):
        stream: Stream | None = DEFAULT_STREAMS.get(handle)
        if stream is None:
            stream = Stream.from_handle(handle) if owner is None else device.core.create_stream(_Owned(handle, owner))
        return stream


def synchronize(stream: int) -> None:
    """Wait for a stream that is known by its handle alone."""
    check(driver.cuStreamSynchronize(stream), "wait for a stream")


class _Owned:
    """A handle and the object that it belongs to, as ``cuda.core`` takes them together."""

    def __init__(self, handle: int, owner: Any) -> None:
        self._handle = handle
        self._owner = owner

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle
