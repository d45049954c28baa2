"""Pipeline: several sessions in flight over one engine, so that copies overlap with compute.

Each slot is a session with its own stream, buffers and graphs. A request takes a slot, fills and launches in the
thread that submits it, and gives the slot back when its result was read. When all slots are taken, submitting waits:
work never piles up in a queue.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from .errors import ClosedError, ExecutionError, InputError, OutOfMemoryError
from .runner import Pending, Runner
from .turns import Turns

_LOG = logging.getLogger("trtrun")

Request = Any  # a mapping from input name to array, or one array for an engine with one input
Result = dict[str, Any]

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)  # requests that compute at once on a GPU
_TRIAL = 0.1  # seconds that each is measured
_SLOW = 0.03  # seconds: behind a request that takes longer, the copies of one other hide
_FASTER = 0.9  # of the time of a slow request: helpers that save less leave the time to what computes
_LARGE = 1 << 20  # bytes of a request from which memory decides as well as the GPU
_CACHES = 128 << 20  # more than the caches hold
_FILLERS = 1  # threads for each of several GPUs that fill requests
_SPARE = 1  # large requests for each of several GPUs that are filled or collected while others compute
_WARM = 3  # requests of a shape on a slot until its graph is there: on the common context, on its own, captured
_MAX_LAUNCHED = 4096


class Pipeline:
    """Keeps several requests in flight. Safe to use from any number of threads and from asyncio.

    Args:
        runner: what to run; the pipeline works on clones of it and leaves it alone.
        depth: how many requests are in flight at once. Without it the depth is measured with the first request:
            the smallest whose throughput measured within 0.5 % of the best of 1, 2, 3, 4, 6, 8, 12 and 16 for each GPU,
            which takes up to a few seconds. Of requests that take more than 30 ms each, it is 2 for each. When
            requests have 1 MB and more, one more is in flight than take :class:`~trtrun.turns.Turns` to compute, and
            how they are filled is measured too. Of a depth that is given, all but one take turns then.

    A request is a mapping from input name to array, or a single array for an engine with one input. :meth:`submit` and
    :meth:`run_async` take arrays by position or by name as well, like the runner's own call.
    """

    def __init__(self, runner: Runner, *, depth: int | None = None) -> None:
        if not isinstance(runner, Runner):
            raise InputError(
                f"a pipeline runs what load() returns, got {type(runner).__name__}: Pipeline(trtrun.load('m.engine'))"
            )
        if depth is not None and depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        runner.check_open()
        self._runner = runner
        self._slots = _Slots()
        self._clones: list[Runner] = []
        self._given = depth
        self._tuned = False
        self._launched: dict[object, int] = {}  # by run_async, per slot and shapes
        self._tune_lock = threading.Lock()
        self._closed = False
        # Futures are resolved in launch order on each GPU, by a thread for each, so that no GPU waits for another.
        self._completers = [_Completer(self._slots) for _ in range(runner.parallel)]
        # One thread copies about as much as one GPU takes in, so several have a thread each that fills their requests.
        several = runner.parallel > 1
        self._fillers = ThreadPoolExecutor(_FILLERS * runner.parallel, "trtrun-filler") if several else None
        if depth is not None:
            try:
                self._grow(depth)
            except BaseException:  # no memory for the last of them: nobody else would close the others
                for clone in reversed(self._clones):
                    clone.close()
                raise

    @property
    def depth(self) -> int:
        """How many requests can be in flight; 0 until the first request when it is measured."""
        return len(self._clones) if self._tuned or self._given else 0

    def submit(self, *request: Request, **named: Any) -> Future[Result]:
        """Start a request; returns when it was launched, after waiting for a free slot if there is none.

        The future gives the outputs by name, or raises what this request raised: a bad input fails alone.
        Raises ClosedError when the pipeline is closed.
        """
        self._check_open()
        self._check_thread("submit()")
        try:
            inputs = self._bind(*request, **named)
            self._prepare(inputs)
        except Exception as error:
            failed: Future[Result] = Future()
            failed.set_exception(error)
            return failed
        return self._launch(inputs, self._slots.wait())

    def map(self, requests: Iterable[Request], *, return_exceptions: bool = False) -> Generator[Any, None, None]:
        """Run requests as they come from ``requests`` and yield their results in order.

        GPUs of unequal speed wait for each other here, because of the order; with :meth:`submit` they do not. For
        several GPUs other threads read the arrays: leave each as it is until its result is there. At most ``depth``
        requests are ahead of the caller. The first failing request ends the iteration with its error; with
        ``return_exceptions`` its error is yielded in its place and the rest goes on.
        """
        self._check_thread("map()")
        waiting: deque[tuple[Pending, Runner] | Exception] = deque()

        def collect() -> Any:
            entry = waiting.popleft()
            if isinstance(entry, Exception):
                if return_exceptions:
                    return entry
                raise entry
            pending, runner = entry
            try:
                return pending.result()
            except Exception as error:
                if return_exceptions:
                    return error
                raise
            finally:
                self._slots.give(runner)

        try:
            for request in requests:
                try:
                    inputs = self._bind(request)
                    self._prepare(inputs)
                except Exception as error:
                    waiting.append(error)
                else:
                    while (runner := self._slots.take_now()) is None:
                        if waiting:
                            yield collect()
                        else:  # other threads have all the slots
                            runner = self._slots.wait()
                            break
                    try:
                        waiting.append((self._enqueue(runner, inputs), runner))
                    except BaseException as error:
                        self._slots.give(runner)
                        if not isinstance(error, Exception):
                            raise
                        waiting.append(error)
                if isinstance(waiting[-1], Exception):
                    if not return_exceptions:
                        break  # raised in its turn, after the results of those before it
                    while len(waiting) > max(self.depth, 1):
                        yield collect()
            while waiting:
                yield collect()
        finally:
            # The caller stopped early or a request failed: what is in flight must finish before its slot is reused.
            return_exceptions = True
            while waiting:
                collect()

    async def run_async(self, *request: Request, **named: Any) -> Result:
        """Run a request without blocking the event loop while it waits for a slot or for the GPU."""
        return await asyncio.wrap_future(await self._launch_async(self._bind(*request, **named)))

    async def _launch_async(self, inputs: Mapping[str, Any]) -> Future[Result]:
        """As :meth:`submit`, for the event loop. What the request raises is in the future."""
        # Here: streams are current in a thread, and the launch may be in another.
        self._runner.follow_producers(inputs)
        if not self._tuned:
            await asyncio.get_running_loop().run_in_executor(None, self._prepare, inputs)
        self._check_open()
        taken = self._slots.take()
        try:
            runner = await asyncio.wrap_future(taken)
        except BaseException:  # GeneratorExit, too: a loop that ends leaves the coroutine where it is
            self._slots.give_up(taken)
            raise
        self._check_open()  # the slot may have come before it was closed, and the loop have had no time since
        if self._fillers is None and self._is_known(inputs, runner):
            return self._launch(inputs, runner)
        # The first requests of a shape compile and capture, and GPU arrays are waited for: not in the event loop.
        launching = asyncio.get_running_loop().run_in_executor(self._fillers, self._launch, inputs, runner)
        # Launched even if this is cancelled before a thread takes it up: else nobody would give the slot back.
        return await asyncio.shield(launching)

    async def map_async(self, requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Result]:
        """Like :meth:`map` for ``async for``: ordered results, at most ``depth`` requests ahead of the caller.

        A request is launched before the next is asked for, so an array on the host may be filled again for it; for
        several GPUs other threads read the arrays, as for :meth:`map`.
        """
        waiting: deque[asyncio.Future[Result]] = deque()
        failed: Exception | None = None
        try:
            async for request in _as_async(requests):
                if self._fillers is not None:  # which fill several at once
                    waiting.append(asyncio.ensure_future(self.run_async(request)))
                    await asyncio.sleep(0)  # lets it begin
                else:
                    try:
                        launched = await self._launch_async(self._bind(request))
                    except Exception as error:
                        failed = error
                        break  # raised in its turn, after the results of those before it
                    waiting.append(asyncio.wrap_future(launched))
                while len(waiting) > max(self.depth, 1):
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
            if failed is not None:
                raise failed
        finally:
            if self._fillers is None:  # else other threads read the requests until they were launched
                for future in waiting:
                    future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _bind(self, *request: Request, **named: Any) -> Mapping[str, Any]:
        if len(request) == 1 and not named and isinstance(request[0], Mapping):
            return request[0]
        return self._runner.inputs.bind(request, named)

    def _prepare(self, inputs: Mapping[str, Any]) -> None:
        self._check_open()
        if not self._tuned:
            with self._tune_lock:
                self._check_open()  # closing waits for the lock, and nobody would close what is made after it
                if not self._tuned:
                    self._tune(inputs)

    def _launch(self, inputs: Mapping[str, Any], runner: Runner) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # launched work cannot be taken back
        try:
            self._check_open()
            pending = runner.enqueue(inputs)
        except BaseException as error:
            self._slots.give(runner)
            if not isinstance(error, Exception):
                raise
            future.set_exception(error)
            return future
        self._completers[runner.place % len(self._completers)].put(future, pending, runner)
        return future

    def _enqueue(self, runner: Runner, inputs: Mapping[str, Any]) -> Pending:
        """Start a request, in another thread where there are several GPUs to fill."""
        if self._fillers is None:
            return runner.enqueue(inputs)
        return _Filling(self._fillers.submit(runner.enqueue, inputs))

    def _is_known(self, inputs: Mapping[str, Any], runner: Runner) -> bool:
        """True when this slot has run host arrays of these shapes so often that they are one graph launch by now."""
        if not all(isinstance(array, np.ndarray) for array in inputs.values()):
            return False
        key = (id(runner), *(array.shape for array in inputs.values()))
        count = self._launched.get(key, 0)
        if count < _WARM:
            if len(self._launched) >= _MAX_LAUNCHED:
                self._launched.clear()
            self._launched[key] = count + 1
        return count >= _WARM

    def _grow(self, depth: int) -> None:
        while len(self._clones) < depth:
            runner = self._runner.clone()
            # The other slots' requests overlap with this one's copies, and several threads that copy may slow them down
            # by as much as they fill faster; hosts differ.
            runner.copy_helpers = False
            runner.shares_gpu = self._given is None or self._given > len(self._completers)
            self._clones.append(runner)
            self._slots.give(runner)

    def _take_turns(self, width: int | None) -> None:
        turns: dict[int, Turns] = {}
        for runner in self._clones:
            runner.turns = None if width is None else turns.setdefault(runner.place, Turns(width))

    def _tune(self, inputs: Mapping[str, Any]) -> None:
        """Measure the depth with the first request. A request that fails leaves the depth to the next one."""
        large = _nbytes(inputs) >= _LARGE
        if self._given is not None:
            width = self._given // len(self._completers) - 1
            if large and width > 1:
                self._take_turns(width)
            self._tuned = True
            return
        variants = _variants(inputs) if large else [inputs]

        def grow(step: int) -> int:
            depth = (step + (_SPARE if self._fillers else 1) * large) * len(self._completers)
            self._grow(depth)
            self._take_turns(step if large else None)
            return depth

        grow(1)
        alone = self._seconds(self._clones[0], variants, helpers=False)
        if alone > _SLOW:
            helpers = large and self._seconds(self._clones[0], variants, helpers=True) < _FASTER * alone
            step = self._two(grow, inputs)
        else:
            step, helpers = self._measured(grow, variants, large)
        chosen = grow(step)
        for runner in self._clones[:chosen]:
            runner.copy_helpers = helpers
        for runner in self._clones[chosen:]:
            self._slots.withdraw(runner)
            runner.close()
        del self._clones[chosen:]
        self._tuned = True

    def _two(self, grow: Callable[[int], int], inputs: Mapping[str, Any]) -> int:
        """2, or 1 where there is no memory for more. Raises OutOfMemoryError where there is none for 1."""

        def take_memory(runners: list[Runner]) -> None:
            for runner in runners:
                runner.enqueue(inputs).result()

        one = grow(1)
        take_memory(self._clones[1:one])
        try:
            take_memory(self._clones[one : grow(2)])
        except OutOfMemoryError:
            return 1
        return 2

    def _measured(self, grow: Callable[[int], int], variants: list[Mapping[str, Any]], large: bool) -> tuple[int, bool]:
        """The step of the best throughput, and whether helpers fill the requests."""
        rates: dict[int, tuple[float, float]] = {}  # without and with helpers
        best, idle = 0.0, 0
        for step in _STEPS:
            try:
                depth = grow(step)
                alone = self._throughput(self._clones[:depth], variants, helpers=False)
                helped = self._throughput(self._clones[:depth], variants, helpers=True) if large else 0.0
            except OutOfMemoryError:
                if not rates:
                    raise
                break  # no room for more: what fits is what there is
            rates[step] = alone, helped
            # Twice in a row, because one measurement varies by as much as a step may gain.
            idle = 0 if max(alone, helped) > 1.01 * best else idle + 1
            best = max(best, alone, helped)
            if idle == 2:
                break
        step = min(step for step, pair in rates.items() if max(pair) >= 0.995 * best)
        alone, helped = rates[step]
        return step, helped > 1.03 * alone  # more than measurements vary

    @staticmethod
    def _seconds(runner: Runner, variants: list[Mapping[str, Any]], *, helpers: bool) -> float:
        """How long one request takes by itself, when its shape has its graph.

        The least of three, because one may be held up; but one that takes that long needs no second opinion.
        """
        runner.copy_helpers = helpers
        turn = itertools.cycle(variants)
        for _ in range(2):  # the first compiles, the second may make a context and try ways: seconds, but only once
            runner.enqueue(next(turn)).result()
        least, begin = math.inf, time.perf_counter()
        for _ in range(3):
            start = time.perf_counter()
            runner.enqueue(next(turn)).result()
            now = time.perf_counter()
            least = min(least, now - start)
            if least <= _SLOW or now - begin > 10 * _SLOW:
                break
        return least

    def _throughput(self, runners: list[Runner], variants: list[Mapping[str, Any]], *, helpers: bool) -> float:
        """Requests per second with these runners in flight."""
        turn = itertools.cycle(variants)
        for runner in runners:  # the first of a shape warms up, the second captures its graph
            runner.copy_helpers = helpers
            for _ in range(3):
                runner.enqueue(next(turn)).result()
        waiting: deque[tuple[Pending, Runner]] = deque()
        try:
            for runner in runners:
                waiting.append((self._enqueue(runner, next(turn)), runner))
            done, start = 0, time.perf_counter()
            while done < 3 * len(runners) or (time.perf_counter() - start < _TRIAL and done < 2000):
                pending, runner = waiting.popleft()
                pending.result()
                done += 1
                waiting.append((self._enqueue(runner, next(turn)), runner))
            return done / (time.perf_counter() - start)
        finally:
            for pending, _ in waiting:  # a runner left with a request in flight would take no other
                with suppress(Exception):
                    pending.result()

    def _check_thread(self, what: str) -> None:
        if any(completer.is_this_thread() for completer in self._completers):
            raise ExecutionError(
                f"{what} was called from the callback of a future, in the thread that completes requests, which would "
                "then wait for itself. Call it from another thread."
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this pipeline is closed.")

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Refuse new requests, finish the submitted ones, then close the sessions. Calling it again does nothing.

        A ``map`` that is still being iterated gets ClosedError for what it has not collected.
        """
        self._check_thread("close()")
        with self._tune_lock:
            if self._closed:
                return
            self._closed = True
        self._slots.close()
        for completer in self._completers:
            completer.close()
        if self._fillers is not None:
            self._fillers.shutdown()
        for runner in reversed(self._clones):
            runner.close()

    def __enter__(self) -> Pipeline:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Filling:
    """A request that a thread is filling and launching."""

    def __init__(self, launched: Future[Pending]) -> None:
        self._launched = launched

    def result(self) -> Result:
        try:
            pending = self._launched.result()
        except BaseException:
            # An interrupt while the thread is at it: what it launches must be collected, or the runner takes no other.
            if not self._launched.cancel():
                with suppress(Exception):
                    self._launched.result().result()
            raise
        return pending.result()


class _Completer:
    """A thread that waits for requests in launch order and resolves their futures; started with the first."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._requests: SimpleQueue[tuple[Future[Result], Pending, Runner] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def is_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def put(self, future: Future[Result], pending: Pending, runner: Runner) -> None:
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._complete_all, name="trtrun-pipeline", daemon=True)
                    self._thread.start()
                self._requests.put((future, pending, runner))
                return
        self._complete(future, pending, runner)  # launched while the pipeline was closing

    def _complete_all(self) -> None:
        while (entry := self._requests.get()) is not None:
            try:
                self._complete(*entry)
            except BaseException:  # futures log an Exception of a callback themselves, and let others through
                _LOG.exception("the callback of a future raised what ends a thread")
            del entry  # the arrays of a request live no longer than it

    def _complete(self, future: Future[Result], pending: Pending, runner: Runner) -> None:
        try:
            result = pending.result()
        except BaseException as error:
            self._slots.give(runner)
            future.set_exception(error)
        else:
            self._slots.give(runner)
            future.set_result(result)

    def close(self) -> None:
        """Wait for the requests that were put."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._requests.put(None)
            thread.join()


def _variants(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Requests like this one, enough that their arrays are not found in a cache, as a caller's next will not be.

    Pictures, which come as lists, stay where they are: a copy would not lie in page-locked memory.
    """
    count = max(1, min(8, _CACHES // _nbytes(inputs)))
    copies = [
        {name: array.copy() if isinstance(array, np.ndarray) else array for name, array in inputs.items()}
        for _ in range(count)
    ]
    return [inputs, *copies]


def _nbytes(inputs: Mapping[str, Any]) -> int:
    """Bytes of the arrays on the host, and of the pictures in lists: arrays too, or NV12."""
    arrays = sum(value.nbytes for value in inputs.values() if isinstance(value, np.ndarray))
    lists = [value for value in inputs.values() if isinstance(value, (list, tuple))]
    return arrays + sum(getattr(picture, "nbytes", 0) for pictures in lists for picture in pictures)


class _Slots:
    """Free runners, handed out first come first served to threads and coroutines alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: deque[Runner] = deque()
        self._waiters: deque[Future[Runner]] = deque()
        self._closed = False

    def take(self) -> Future[Runner]:
        """A future for a free runner; cancelling it leaves the queue."""
        future: Future[Runner] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(ClosedError("this pipeline is closed."))
            elif self._free and not self._waiters:
                future.set_result(self._free.popleft())
            else:
                self._waiters.append(future)
        return future

    def wait(self) -> Runner:
        """A free runner, after waiting for one. Raises ClosedError when the pipeline closes meanwhile."""
        taken = self.take()
        try:
            return taken.result()
        except BaseException:  # an interrupt
            self.give_up(taken)
            raise

    def give_up(self, taken: Future[Runner]) -> None:
        """Leave the queue: the runner must not go to somebody who no longer waits."""
        if not taken.cancel() and taken.exception() is None:
            self.give(taken.result())

    def take_now(self) -> Runner | None:
        with self._lock:
            return self._free.popleft() if self._free and not self._waiters else None

    def give(self, runner: Runner) -> None:
        while True:
            with self._lock:
                if not self._waiters:
                    self._free.append(runner)
                    return
                waiter = self._waiters.popleft()
            try:
                waiter.set_result(runner)
                return
            except InvalidStateError:  # cancelled meanwhile
                continue

    def close(self) -> None:
        """Turn away everybody who waits, and who comes later."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            with suppress(InvalidStateError):  # cancelled meanwhile
                waiter.set_exception(ClosedError("this pipeline is closed."))

    def withdraw(self, runner: Runner) -> None:
        with self._lock:
            self._free.remove(runner)


async def _as_async(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
