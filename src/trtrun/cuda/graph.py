"""CUDA graphs: a request's steps captured once, replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cuda.core import Stream
from cuda.core.graph import Graph

from .check import translated


def capture(stream: Stream, enqueue: Callable[[int], None]) -> Graph:
    """Capture what ``enqueue(stream_handle)`` enqueues, instantiate it and upload it to the GPU.

    Thread-local capture mode: other threads may allocate and synchronize meanwhile. The caller holds the device's
    context current. Whatever ``enqueue`` raises is raised after the capture was ended.
    """
    builder = stream.create_graph_builder()
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
            graph.upload(stream)
            return graph
    finally:
        builder.close()
