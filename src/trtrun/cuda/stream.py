"""CUDA streams: trtrun's own, and the caller's in whatever form they come."""

from __future__ import annotations

from typing import Any

from cuda.core import Stream, StreamOptions

from .check import translated
from .device import Device


def create_stream(device: Device) -> Stream:
    """A non-blocking stream: it does not wait for the legacy default stream, nor that one for it."""
    with device, translated("create a stream"):
        stream: Stream = device.core.create_stream(options=StreamOptions(nonblocking=True))
        return stream


def as_stream(device: Device, stream: Any) -> Stream:
    """A caller's stream as a borrowed ``cuda.core.Stream``.

    Takes a ``cuda.core.Stream``, anything with ``__cuda_stream__`` (torch, CuPy), ``cuda_stream`` or ``ptr``, or the
    handle as an int. trtrun never closes it.
    """
    if isinstance(stream, Stream):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        with device, translated("use the caller's stream"):
            wrapped: Stream = device.core.create_stream(stream)
            return wrapped
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            stream = getattr(stream, attribute)
            break
    if not isinstance(stream, int):
        raise TypeError(
            f"a stream must be a cuda.core Stream, a torch or CuPy stream, or an int handle; got {type(stream)}"
        )
    with device:
        return Stream.from_handle(stream)
