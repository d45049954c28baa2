"""Work beside the event loop, in threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_THREADS = 4
_work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
_started = threading.Lock()  # taken by who starts the threads, and never given back


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
    return await asyncio.wrap_future(future)


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread of its own: for what may take minutes, such as loading a model."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(future, work), name="trtrun-work", daemon=True).start()
    return await asyncio.wrap_future(future)
