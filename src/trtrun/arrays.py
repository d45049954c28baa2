"""Arrays in: what callers pass, as something a request can be filled from."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import DtypeError, InputError

Host = np.ndarray[Any, np.dtype[Any]]


def as_host_array(value: Any, name: str) -> Host:
    """Any NumPy-compatible value as an ndarray, without a copy where NumPy needs none.

    Raises InputError for what NumPy cannot read and DtypeError for arrays of Python objects.
    """
    try:
        array: Host = np.asarray(value)
    except Exception as error:  # a foreign __array__ may raise anything
        raise InputError(
            f"input {name!r} is a {type(value).__name__} that NumPy cannot read: {error}. "
            "Pass a NumPy array, or anything with __array__, DLPack or __cuda_array_interface__."
        ) from error
    if array.dtype.hasobject:
        raise DtypeError(
            f"input {name!r} is an array of Python objects ({type(value).__name__}). "
            "Pass numbers of one dtype, for example np.stack(list_of_arrays)."
        )
    return array


class CopyPool:
    """Copies large arrays with several threads.

    One core copies about 10 GB/s, less than a fifth of what PCIe 5 carries, so a large input would spend more time on
    its way into page-locked memory than on its way to the GPU. NumPy releases the interpreter lock while it copies;
    the calling thread takes part. After each finished chunk ``done(start, stop)`` is called (byte offsets), so that
    its copy to the device can start while the next chunk is filled.
    """

    CHUNK = 512 << 10
    THRESHOLD = 1 << 20  # below it waking other threads costs more than they save

    def __init__(self, threads: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, min(4, cores // 2)) if threads is None else threads
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []

    def copy(self, target: Host, source: Host, done: Callable[[int, int], None] | None = None) -> None:
        """Copy ``source`` into the C-contiguous ``target`` of equal shape and dtype; ``done`` may run in any thread."""
        nbytes = target.nbytes
        if nbytes < self.THRESHOLD or self.threads == 1 or not source.flags.c_contiguous:
            np.copyto(target, source)
            if done is not None:
                done(0, nbytes)
            return
        flat_target = target.reshape(-1).view(np.uint8)
        flat_source = source.reshape(-1).view(np.uint8)
        starts = iter(range(0, nbytes, self.CHUNK))

        def work() -> None:
            # next() on a range iterator is one bytecode-atomic step, so chunks need no lock.
            for start in starts:
                stop = min(start + self.CHUNK, nbytes)
                np.copyto(flat_target[start:stop], flat_source[start:stop])
                if done is not None:
                    done(start, stop)

        if not self._lock.acquire(blocking=False):
            work()  # another request's copy has the workers; waiting for them would be slower than not
            return
        try:
            while len(self._workers) < self.threads - 1:
                self._workers.append(_Worker())
            for worker in self._workers:
                worker.start(work)
            errors: list[BaseException] = []
            try:
                work()
            except BaseException as error:  # the workers must have stopped before this leaves
                errors.append(error)
            errors += [failure for worker in self._workers if (failure := worker.wait()) is not None]
            if errors:
                raise errors[0]
        finally:
            self._lock.release()


class _Worker:
    """A thread that sleeps on a bare lock: the cheapest wake-up Python has."""

    _names = itertools.count()

    def __init__(self) -> None:
        self._go = threading.Lock()
        self._go.acquire()
        self._finished = threading.Lock()
        self._finished.acquire()
        self._work: Callable[[], None] = lambda: None
        self._error: BaseException | None = None
        threading.Thread(target=self._loop, name=f"trtrun-copy-{next(self._names)}", daemon=True).start()

    def _loop(self) -> None:
        while True:
            self._go.acquire()
            try:
                self._work()
            except BaseException as error:
                self._error = error
            self._finished.release()

    def start(self, work: Callable[[], None]) -> None:
        self._error = None
        self._work = work
        self._go.release()

    def wait(self) -> BaseException | None:
        self._finished.acquire()
        self._work = lambda: None  # drop the references to the caller's arrays
        return self._error


COPY_POOL = CopyPool()


def copy_out(view: Host) -> Host:
    """A copy that belongs to the caller, made with several threads when it is large."""
    if view.nbytes < CopyPool.THRESHOLD:
        copy: Host = view.copy()
        return copy
    result: Host = np.empty(view.shape, view.dtype)
    COPY_POOL.copy(result, view)
    return result


def nbytes_of(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))
