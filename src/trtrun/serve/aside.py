"""Work beside the event loop, in threads that do not keep the process from ending, and the way back to it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_THREADS = 4
_work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
_started = threading.Lock()  # taken by who starts the threads, and never given back


class _Inbox:
    """What other threads have finished for an event loop. asyncio's own way wakes the loop for each of a batch's
    requests, and each time the thread that wakes it has to wait for the interpreter again."""

    def __init__(self) -> None:
        self._done: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._woken = False

    def put(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[Any], future: Future[Any]) -> None:
        """Called in any thread."""
        self._done.append((waiter, future))
        if not self._woken and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what comes from here on wakes the loop again
        while self._done:
            waiter, future = self._done.popleft()
            if waiter.done():
                continue
            if future.cancelled():
                waiter.cancel()
            elif (error := future.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(future.result())


_inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox] = WeakKeyDictionary()


async def result_of(future: Future[T]) -> T:
    """What a future of another thread gives; it is cancelled when this task is."""
    if future.done():
        return future.result()
    loop = asyncio.get_running_loop()
    inbox = _inboxes.get(loop)
    if inbox is None:
        inbox = _inboxes[loop] = _Inbox()
    waiter: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda done: inbox.put(loop, waiter, done))
    try:
        return await waiter
    except asyncio.CancelledError:
        future.cancel()
        raise


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _serve() -> None:
    while True:
        _run(*_work.get())


async def aside(work: Callable[[], T]) -> T:
    """What ``work`` gives, in one of a few threads: for milliseconds of computing that would hold up other requests."""
    if _started.acquire(blocking=False):
        for index in range(_THREADS):
            threading.Thread(target=_serve, name=f"trtrun-aside-{index}", daemon=True).start()
    future: Future[T] = Future()
    _work.put((future, work))
    return await result_of(future)


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread of its own: for what may take minutes, such as loading a model."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, work), name="trtrun-work", daemon=True).start()
    return await result_of(future)
