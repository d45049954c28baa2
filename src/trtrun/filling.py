"""Filling: the ways of a large input from the caller's memory to the GPU, and which of them is fastest here.

A small input is copied into page-locked memory and from there inside the graph. For a large one that leaves the GPU
idle for too long, and what is better depends on the machine: on one H200 host a 2.4 MB input was through in 980 µs by
the driver's own staging and in 1020 µs inside the graph, on another in 1020 µs and 960 µs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np

from .arrays import COPY_POOL, Host
from .cuda.memory import address_of, copy_async, is_pageable

LARGE = 1 << 20  # bytes from which there is something to choose: below, copying inside the graph is always faster
_MANY_THREADS = 4 << 20  # bytes from which several threads are the better guess
_CHUNK = 1 << 19  # bytes; smaller ones cost more calls than they hide
_TURNS = 15  # requests that each way is timed in

# Copies an array of the view's dtype and layout to the device address, through the page-locked view or past it, on a
# stream handle. False: the array is in the view, and the rest is left to the graph.
Way = Callable[[int, Host, Host, int], bool]


def inside(address: int, view: Host, array: Host, stream: int) -> bool:
    """By one thread, and inside the graph from there."""
    np.copyto(view, array)
    return False


def whole(address: int, view: Host, array: Host, stream: int) -> bool:
    """By one thread, then in one copy beside the graph: what disturbs other requests in flight least."""
    np.copyto(view, array)
    copy_async(address, address_of(view), view.nbytes, stream)
    return True


def chunks(address: int, view: Host, array: Host, stream: int) -> bool:
    """By one thread in chunks, each sent while the next is copied."""
    target, given = view.reshape(-1).view(np.uint8), array.reshape(-1).view(np.uint8)
    source, nbytes = address_of(view), view.nbytes
    for start in range(0, nbytes, _CHUNK):
        stop = min(start + _CHUNK, nbytes)
        np.copyto(target[start:stop], given[start:stop])
        copy_async(address + start, source + start, stop - start, stream)
    return True


def driver(address: int, view: Host, array: Host, stream: int) -> bool:
    """Straight from the caller's memory: the driver stages it in pieces, and returns when all has been read."""
    if not is_pageable(address_of(array)):  # the copy would still be reading when the call returns
        return inside(address, view, array, stream)
    copy_async(address, address_of(array), view.nbytes, stream)
    return True


def threads(address: int, view: Host, array: Host, stream: int) -> bool:
    """By several threads in chunks, each sent as soon as it is there."""
    source = address_of(view)
    COPY_POOL.copy(view, array, lambda start, stop: copy_async(address + start, source + start, stop - start, stream))
    return True


class Choice:
    """Finds the fastest way for the requests of one shape by timing them in turns.

    Attributes:
        best: the fastest; a guess until all have been timed.
        settled: all have been timed.
    """

    def __init__(self, nbytes: int) -> None:
        self.best: Way = threads if nbytes >= _MANY_THREADS else driver
        self.settled = False
        self._times: dict[Way, list[float]] = {way: [] for way in (driver, chunks, threads, inside)}

    def next(self) -> Way:
        """The way for a request that will be timed."""
        return self.best if self.settled else min(self._times, key=lambda way: len(self._times[way]))

    def note(self, way: Way, seconds: float) -> None:
        self._times[way].append(seconds)
        if not self.settled and all(len(times) >= _TURNS for times in self._times.values()):
            self.best = min(self._times, key=lambda way: statistics.median(self._times[way]))
            self.settled = True
