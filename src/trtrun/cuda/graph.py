"""CUDA graphs: a request's steps captured once, replayed with one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from cuda.core import Stream
from cuda.core.graph import Graph

from .check import translated


class _Capturing(threading.local):
    """What this thread must do when its capture is over; None while it captures nothing."""

    later: list[Callable[[], None]] | None = None


_capturing = _Capturing()


def defer_while_capturing(action: Callable[[], None]) -> None:
    """Do this now, or when the capture that this thread is in has ended.

    Freeing memory would invalidate the capture, and the garbage collector may free anything at any time.
    """
    if _capturing.later is None:
        action()
    else:
        _capturing.later.append(action)


def capture(stream: Stream, enqueue: Callable[[int], None]) -> Graph:
    """Capture what ``enqueue(stream_handle)`` enqueues, instantiate it and upload it to the GPU.

    Thread-local capture mode: other threads may allocate and synchronize meanwhile. The caller holds the device's
    context current. Whatever ``enqueue`` raises is raised after the capture was ended.
    """
    builder = stream.create_graph_builder()
    later = _capturing.later = []
    try:
        with translated("capture a CUDA graph"):
            builder.begin_building("thread_local")
            try:
                enqueue(int(builder.stream.handle))
            except BaseException:
                with suppress(
                    Exception
                ):  # a capture that failed inside also fails to end; the first error is the cause
                    builder.end_building()
                raise
            builder.end_building()
            graph: Graph = builder.complete()
    finally:
        _capturing.later = None
        with suppress(Exception):  # nor can the builder of a failed capture be closed without an error
            builder.close()
        for action in later:
            action()
    with translated("upload a CUDA graph"):
        graph.upload(stream)
    return graph
