"""Arrays in: what callers pass, as something a request can be filled from."""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from .errors import InputError

Host = np.ndarray[Any, np.dtype[Any]]


def as_host_array(value: Any, name: str) -> Host:
    """Any NumPy-compatible value as an ndarray, without a copy where NumPy needs none; InputError for others."""
    try:
        array: Host = np.asarray(value)
    except Exception as error:  # a foreign __array__ may raise anything
        raise InputError(
            f"input {name!r} is a {type(value).__name__} that NumPy cannot read: {error}. "
            "Pass a NumPy array, or anything with __array__, DLPack or __cuda_array_interface__."
        ) from error
    if array.dtype.kind in "OSU" and not array.ndim:  # NumPy wraps what it cannot read: None, a path, a dict
        hint = "Pass an array of numbers"
        if isinstance(value, Mapping):
            hint = "Pass a mapping to run(): model.run({…}), or name the arrays: model(name=array)"
        elif isinstance(value, (str, bytes, os.PathLike)):
            hint = "Read the file into an array first; for pictures see trtrun.vision, which takes files too"
        raise InputError(f"input {name!r} is a {type(value).__name__}, which is no array. {hint}.")
    return array


class CopyPool:
    """Copies large arrays with several threads.

    One core copies 8 to 13 GB/s, a quarter of what PCIe 5 carries, so a large input would spend more time on its way
    into page-locked memory than on its way to the GPU. The calling thread starts at once; each helper takes chunks
    from when it has woken up, which on an idle core takes longer than copying half a megabyte, so nothing waits for a
    helper that came too late. The calling thread reports what is there with ``done(start, stop)`` in bytes, so that its
    copy to the device runs while the next chunk is filled: it alone, because several threads that call the driver at
    once hold each other up for longer than the copies take. NumPy releases the interpreter lock while it copies.
    """

    CHUNK = 1 << 20
    THRESHOLD = 2 << 20  # below it one thread is done before another has woken up

    def __init__(self, threads: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, min(4, cores // 2)) if threads is None else threads
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._start_lock = threading.Lock()
        self._started = 0

    def copy(self, target: Host, source: Host, done: Callable[[int, int], None] | None = None) -> None:
        """Copy ``source`` into the C-contiguous ``target`` of equal shape and dtype."""
        if target.nbytes < self.THRESHOLD or not source.flags.c_contiguous:
            np.copyto(target, source)
            if done is not None:
                done(0, target.nbytes)
            return
        to, given = target.reshape(-1).view(np.uint8), source.reshape(-1).view(np.uint8)
        edges = [*range(0, to.nbytes, self.CHUNK), to.nbytes]
        parts = [functools.partial(np.copyto, to[a:b], given[a:b]) for a, b in itertools.pairwise(edges)]
        self.run(parts, None if done is None else lambda index: done(edges[index], edges[index + 1]))

    def run(self, parts: Sequence[Callable[[], object]], done: Callable[[int], None] | None = None) -> None:
        """Call the parts, which let go of the interpreter lock, and ``done`` with the number of each that is over."""
        job = _Job(parts)
        if self._started < self.threads - 1:
            self._start_helpers()
        for _ in range(min(self.threads, len(parts)) - 1):
            self._jobs.put(job)
        job.run(done)

    def _start_helpers(self) -> None:
        with self._start_lock:
            while self._started < self.threads - 1:
                name = f"trtrun-copy-{self._started}"
                threading.Thread(target=self._help, name=name, daemon=True).start()
                self._started += 1

    def _help(self) -> None:
        while True:
            self._jobs.get().help()


class _Job:
    """Parts that any thread may take."""

    def __init__(self, parts: Sequence[Callable[[], object]]) -> None:
        self._count = len(parts)
        self._parts: Sequence[Callable[[], object]] | None = parts
        # next() on these iterators is one step under the interpreter lock, so they need none of their own.
        self._indices = iter(range(len(parts)))
        self._finished = itertools.count(1)
        self._all_finished = threading.Lock()
        self._all_finished.acquire()
        self._ready: deque[int] = deque()  # parts that are done and have not been reported
        self._error: BaseException | None = None

    def run(self, done: Callable[[int], None] | None) -> None:
        """The calling thread's share, until everything is done and reported."""
        parts = self._parts
        assert parts is not None
        try:
            for index in self._indices:
                self._call(parts, index)
                if done is not None:
                    self._report(done)
        except BaseException:
            for _ in self._indices:  # nobody begins another part
                if next(self._finished) == self._count:
                    self._all_finished.release()
            raise
        finally:
            self._all_finished.acquire()
            # A helper that wakes up late must not keep the caller's arrays alive.
            self._parts = None
        if self._error is not None:
            raise self._error
        if done is not None:
            self._report(done)

    def help(self) -> None:
        parts = self._parts
        if parts is None:
            return  # woken up after the others had finished
        for index in self._indices:
            self._call(parts, index)

    def _call(self, parts: Sequence[Callable[[], object]], index: int) -> None:
        try:
            parts[index]()
        except BaseException as error:  # raised by the calling thread, once nobody touches the arrays any more
            self._error = error
        self._ready.append(index)
        if next(self._finished) == self._count:
            self._all_finished.release()

    def _report(self, done: Callable[[int], None]) -> None:
        while self._ready:
            done(self._ready.popleft())


COPY_POOL = CopyPool()


def copy_out(view: Host) -> Host:
    """A copy that belongs to the caller, made with several threads when it is large."""
    if view.nbytes < 2 * CopyPool.THRESHOLD:
        copy: Host = view.copy()
        return copy
    result: Host = np.empty(view.shape, view.dtype)
    COPY_POOL.copy(result, view)
    return result


def nbytes_of(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return dtype.itemsize * math.prod(shape)
