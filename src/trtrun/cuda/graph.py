"""CUDA graphs: a request's steps captured once, replayed with one launch."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from ..errors import TrtrunError
from .check import check

_THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Graph:
    """A captured graph, instantiated and uploaded; launched with one call.

    Not the graph of ``cuda.core``, which gives each a user object to keep Python objects alive. With one, a thread of
    the driver follows every launch, and on an H200 a wait for the stream returned up to 33 µs after the GPU was done:
    in two of eleven processes, from some moment to another, for all such graphs at once and for no other.
    """

    def __init__(self, graph: driver.CUgraph, stream: Any) -> None:
        self._handle = check(driver.cuGraphInstantiate(graph, 0), "instantiate a CUDA graph")
        # Fails only where the context is broken, which other calls tell; it needs none to be current.
        self._finalizer = weakref.finalize(self, driver.cuGraphExecDestroy, self._handle)
        self._finalizer.atexit = False
        check(driver.cuGraphUpload(self._handle, stream), "upload a CUDA graph")

    def launch(self, stream: Any) -> None:
        """Enqueue it on the stream of this handle."""
        (code,) = driver.cuGraphLaunch(self._handle, stream)
        if code:
            check((code,), "launch a CUDA graph")

    def close(self) -> None:
        self._finalizer()


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
    stream: Any, enqueue: Callable[[Any], None], amend: Callable[[Any], object] | None = None, *, attempts: int = 1
) -> Graph:
    """Capture what ``enqueue(stream)`` enqueues on the stream of this handle, instantiate it and upload it to the GPU.

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


def _capture(stream: Any, enqueue: Callable[[Any], None], amend: Callable[[Any], object] | None) -> Graph:
    with _garbage_collection_paused:
        check(driver.cuStreamBeginCapture(stream, _THREAD_LOCAL), "capture a CUDA graph")
        try:
            enqueue(stream)
        except BaseException:
            code, graph = driver.cuStreamEndCapture(stream)  # the first error is the cause if this fails too
            if not code:
                driver.cuGraphDestroy(graph)
            raise
        graph = check(driver.cuStreamEndCapture(stream), "capture a CUDA graph")
        try:
            if amend is not None:
                amend(graph)
            return Graph(graph, stream)
        finally:
            driver.cuGraphDestroy(graph)
