"""CUDA graphs: a request's steps captured once, replayed with one launch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cuda.bindings import driver
from cuda.core import Stream
from cuda.core.graph import Graph

from ..errors import TrtrunError
from .check import check, translated


class _GarbageCollection:
    """Pauses the cyclic garbage collector while any thread captures.

    It runs in whichever thread allocates next, and freeing CUDA memory, streams or execution contexts in a thread that
    captures would invalidate the capture.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captures = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._captures == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._captures += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._captures -= 1
            if self._captures == 0 and self._was_enabled:
                gc.enable()


_garbage_collection_paused = _GarbageCollection()


def capture(
    stream: Stream, enqueue: Callable[[int], None], amend: Callable[[Any], object] | None = None, *, attempts: int = 1
) -> Graph:
    """Capture what ``enqueue(stream_handle)`` enqueues, instantiate it and upload it to the GPU.

    ``amend`` may change the ``CUgraph`` before it is instantiated. More than one of the ``attempts`` are made only
    after trtrun's own errors: another thread that synchronizes the whole device spoils a capture.

    Thread-local capture mode: other threads may allocate and synchronize meanwhile. The caller holds the device's
    context current. Whatever ``enqueue`` raises is raised after the capture was ended.
    """
    for left in reversed(range(attempts)):
        try:
            return _capture(stream, enqueue, amend)
        except TrtrunError:
            if not left:
                raise
    raise AssertionError


def _capture(stream: Stream, enqueue: Callable[[int], None], amend: Callable[[Any], object] | None) -> Graph:
    with translated("capture a CUDA graph"):
        builder = stream.create_graph_builder()
        try:
            with _garbage_collection_paused:
                builder.begin_building("thread_local")
                try:
                    enqueue(int(builder.stream.handle))
                except BaseException:
                    with suppress(Exception):  # a capture that failed inside fails to end too; the first is the cause
                        builder.end_building()
                    raise
                builder.end_building()
                if amend is not None:
                    amend(builder.graph_definition.handle)
                graph: Graph = builder.complete()
        finally:
            with suppress(Exception):  # the builder of a failed capture cannot be closed without an error
                builder.close()
        graph.upload(stream)
        return graph


def launch(graph: Graph, stream: int) -> None:
    """Launch on a stream that is known by its handle alone."""
    check(driver.cuGraphLaunch(graph.handle, stream), "launch a CUDA graph")
