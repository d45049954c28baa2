"""Dynamic batching: requests that wait together run together.

A queue that takes whatever comes makes everybody wait when more comes than can be done. So it takes bursts, and once
it has not been empty for a while, only what will not wait long, as Facebook's servers do (Maurer, "Fail at Scale", ACM
Queue 13(8), 2015, after the controlled delay of Nichols and Jacobson). How long that is follows from what waits before
a request and what is done in a time, which is Little's law.
"""

from __future__ import annotations

import bisect
import itertools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import (
    ClosedError,
    DeviceError,
    InputError,
    NoGpuError,
    OutOfMemoryError,
    RequestTimeoutError,
    ServerBusyError,
)
from ..runner import OutputMode, Runner
from .shared_memory import SharedTensor

Array = np.ndarray[Any, np.dtype[Any]]
Results = dict[str, Any]
_BURST = 0.1  # seconds that a queue may stand and still be called a burst
_SHORT = 0.005  # seconds that are not worth turning anybody away for
_QUICK = 0.001  # seconds: of what takes less, waking another thread for it is a good part
_KNOWN = 64  # kinds of requests whose time is known


@dataclass(frozen=True)
class BatchOptions:
    """How requests to one model are batched.

    Attributes:
        max_batch_size: rows that run together at most. None: what the engine's optimization profiles take; a model
            that sets no limit of its own, like an ONNX file, is not batched then.
        max_queue_delay: seconds that the oldest request waits for others to fill its batch. At 0 a batch is what has
            come while the instances were busy.
        queue_size: requests that may wait. More are turned away with ServerBusyError.
        max_queue_time: seconds that a request may be expected to wait in a queue that stands; see above. More are
            turned away with ServerBusyError. None: the time of a batch, or 5 ms.
        instances: requests or batches in progress at once on each GPU, so that copies overlap with compute.
    """

    max_batch_size: int | None = None
    max_queue_delay: float = 0.0
    queue_size: int = 1024
    instances: int = 2
    max_queue_time: float | None = None

    def __post_init__(self) -> None:
        rows = 1 if self.max_batch_size is None else self.max_batch_size
        times = (self.max_queue_delay, self.max_queue_time or 0.0)
        if rows < 1 or min(times) < 0 or self.queue_size < 1 or self.instances < 1:
            raise InputError(f"these are no sizes and times to batch with: {self}.")


@dataclass
class Outcome:
    """What became of one request, for the statistics. Times in seconds.

    Attributes:
        rows: of the request.
        batch: rows that ran together, the request's among them; 0 for one that was not begun.
        first: it is the first of its batch, of which there is one.
    """

    queued: float
    computed: float
    rows: int
    batch: int
    first: bool = True
    error: BaseException | None = None


@dataclass(order=True)
class _Request:
    rank: tuple[int, int]  # by priority, then the older first
    key: tuple[Any, ...] = field(compare=False)  # requests of one key can be one batch; those without run alone
    rows: int = field(compare=False)
    inputs: Mapping[str, Any] = field(compare=False)
    outputs: OutputMode = field(compare=False)
    future: Future[Results] = field(compare=False)
    arrived: float = field(compare=False)
    deadline: float | None = field(compare=False)


class Batcher:
    """Runs requests from any number of threads on clones of a runner, those that fit together as one batch.

    Attributes:
        failure: what the GPU failed with, for good. Requests are refused then.
        sizes: of the batches that are put together on a GPU; smaller ones are filled up, and the rest of the rows is
            not looked at. A kernel is compiled and a graph captured for each size, which must not happen under load.
            Those that the engine was specialized for, else powers of two; empty where any number of rows is as good.

    Args:
        runner: what runs them; left alone, and open until :meth:`close`.
        options: see :class:`BatchOptions`.
        report: called with the outcome of every request, in the thread that ran it.
    """

    def __init__(
        self, runner: Runner, options: BatchOptions | None = None, report: Callable[[Outcome], None] | None = None
    ) -> None:
        self.options = options or BatchOptions()
        self.max_batch_size = _most_rows(runner, self.options.max_batch_size)
        self._runner = runner
        self._report = report or (lambda outcome: None)
        self._queue: list[_Request] = []
        self._numbers = itertools.count()
        self._condition = threading.Condition()
        self._idle = 0  # workers that wait for the first request of a batch
        self._emptied = time.perf_counter()  # when nothing waited last
        self._refused = 0.0  # when one was turned away last because it would have waited too long
        self._batch_time = 0.0  # seconds that a batch takes: a moving average
        self._closing = False
        self._rows: dict[tuple[Any, ...], int] = {}  # that wait, by key
        self.sizes: tuple[int, ...] = ()
        self._probe: Mapping[str, Array] | None = None  # a request that ran
        self.failure: DeviceError | None = None
        self._first = threading.Lock()  # held by who runs on the first instance, a worker or a caller
        self._alone: dict[tuple[Any, ...], float] = {}  # seconds that such a request took there last
        self._clones: list[Runner] = []
        try:
            for _ in range(self.options.instances * runner.parallel):
                self._clones.append(runner.clone())
        except BaseException:  # of memory there may be too little for all
            for clone in self._clones:
                clone.close()
            raise
        if self.max_batch_size > 1 and any(spec.profiles for spec in runner.inputs.values()):
            self.sizes = _sizes(runner, self.max_batch_size)
        self._workers = [
            threading.Thread(target=self._work, args=(clone,), name=f"trtrun-batch-{index}", daemon=True)
            for index, clone in enumerate(self._clones)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that the instances hold, ``{"device": …, "host": …}``; empty where they do not say."""
        held: dict[str, int] = {}
        for clone in self._clones:
            for location, nbytes in getattr(clone, "memory", {}).items():
                held[location] = held.get(location, 0) + nbytes
        return held

    def submit(
        self,
        inputs: Mapping[str, Any],
        *,
        priority: int = 0,
        timeout: float | None = None,
        outputs: OutputMode = "copy",
        here: bool = False,
    ) -> Future[Results]:
        """Put a request into the queue.

        Args:
            inputs: an array per input, or a tensor in shared memory; they must not change until the future is done.
                A request with arrays on a GPU runs alone.
            priority: 1 is served first, 2 after it, and so on; 0 is last.
            timeout: seconds in which it must be begun, else the future raises RequestTimeoutError.
            outputs: as :meth:`~trtrun.runner.Runner.run` has it; a request with others than copies runs alone.
            here: it may run in the calling thread, and its future is done then: where nothing waits, the first instance
                is idle, and such a request took less than a millisecond there. For a caller that has no other.

        Raises InputError for inputs that do not fit, ServerBusyError when the queue is full, DeviceError when the GPU
        has failed, ClosedError after close().
        """
        specs = self._runner.inputs
        specs.check_names(inputs)
        for name, array in inputs.items():
            specs[name].check_shape(array.shape)
            specs[name].check_dtype(array.dtype)
        rows, key = 1, tuple((name, inputs[name].shape, inputs[name].dtype) for name in specs)
        if self.max_batch_size > 1:
            batches = {array.shape[0] for array in inputs.values()}
            if len(batches) == 1:
                (rows,) = batches
                key = tuple((name, shape[1:], dtype) for name, shape, dtype in key)
        if outputs != "copy" or not all(isinstance(array, (np.ndarray, SharedTensor)) for array in inputs.values()):
            key = ()
        now = time.perf_counter()
        request = _Request(
            (priority or sys.maxsize, next(self._numbers)),
            key,
            rows,
            inputs,
            outputs,
            Future(),
            now,
            None if timeout is None else now + timeout,
        )
        if here and self._runs_here(request):
            return request.future
        with self._condition:
            self.check_room(priority)
            if not self._queue:
                self._emptied = now
            bisect.insort(self._queue, request)
            self._rows[key] = self._rows.get(key, 0) + rows
            if self._idle or not key or self._rows[key] >= self.max_batch_size:
                self._condition.notify_all()  # one alone may be somebody who waits for another batch to fill
        return request.future

    def _runs_here(self, request: _Request) -> bool:
        """Run it in this thread if that is the quicker way: waking a worker, and being woken, takes two changes of
        threads. False where it is not."""
        waits = self.options.max_queue_delay > 0 and self.max_batch_size > 1
        if self._queue or waits or self._alone.get((request.key, request.rows), _QUICK) >= _QUICK:
            return False
        if not self._first.acquire(blocking=False):
            return False
        try:
            with self._condition:
                self.check_room()
            self._run(self._clones[0], [request])
        finally:
            self._first.release()
        return True

    def check_room(self, priority: int = 0) -> None:
        """Raise what :meth:`submit` would for any request of this priority now, whatever its inputs."""
        try:
            self._check_room(priority)
        except ServerBusyError as error:
            self._report(Outcome(0.0, 0.0, 0, 0, error=error))
            raise

    def _check_room(self, priority: int) -> None:
        if self._closing:
            raise ClosedError("the model is being unloaded.")
        if self.failure is not None:
            raise self.failure
        if len(self._queue) >= self.options.queue_size:
            raise ServerBusyError(
                f"{len(self._queue)} requests wait already, which is all the queue holds. Come back later."
            )

        now = time.perf_counter()
        standing = now - self._emptied
        # A short queue may be empty for a moment whatever comes: that alone is no room for another burst.
        if not self._queue or (standing < _BURST and now - self._refused > _BURST):
            return
        rank = (priority or sys.maxsize, sys.maxsize)
        batches = sum(other.rows for other in self._queue if other.rank < rank) / self.max_batch_size
        wait = batches / len(self._clones) * self._batch_time
        bound = self.options.max_queue_time
        if wait > (max(self._batch_time, _SHORT) if bound is None else bound):
            self._refused = now
            raise ServerBusyError(
                f"more comes than can be done: this request would wait for {1e3 * wait:.0f} ms. Come back later."
            )

    def warm_up(self, inputs: Mapping[str, Array]) -> None:
        """Run a request on every instance, past the queue and the statistics. Raises what it raises.

        The request is run again when a GPU has failed, to see whether it still works.
        """
        for clone in self._clones:
            for _ in range(3):  # the first compiles kernels, the second captures graphs
                clone.run(inputs)
        self._probe = inputs

    def _work(self, runner: Runner) -> None:
        shared = self._first if runner is self._clones[0] else nullcontext()
        while batch := self._next():
            with shared:
                self._run(runner, batch)
            del batch  # what it holds, shared memory too, is not kept until the next one comes

    def _next(self) -> list[_Request]:
        """The requests that run next; empty when there will be none."""
        with self._condition:
            while True:
                while not self._queue and not self._closing:
                    self._refused = 0.0
                    self._idle += 1
                    self._condition.wait()
                    self._idle -= 1
                self._expire()
                if not self._queue:
                    if self._closing:
                        return []
                    continue
                batch, left = self._fitting()
                if left <= 0 or self._closing:
                    self._take(batch)
                    if not self._queue:
                        self._emptied = time.perf_counter()
                    if self._queue and self._idle:
                        self._condition.notify_all()
                    return batch
                # Or until one of them may no longer be begun.
                deadlines = [request.deadline for request in self._queue if request.deadline is not None]
                self._condition.wait(min([left, *(deadline - time.perf_counter() for deadline in deadlines)]))

    def _take(self, requests: list[_Request]) -> None:
        """Out of the queue."""
        taken = {request.rank for request in requests}
        self._queue = [request for request in self._queue if request.rank not in taken]
        for request in requests:
            left = self._rows.pop(request.key, 0) - request.rows  # nothing is noted where only empty requests wait
            if left:
                self._rows[request.key] = left

    def _expire(self) -> None:
        now = time.perf_counter()
        late = [r for r in self._queue if r.deadline is not None and r.deadline < now]
        if late:
            self._take(late)
        for request in late:
            error = RequestTimeoutError(f"the request was not begun within {request.deadline - request.arrived:.3g} s.")  # type: ignore[operator]
            self._fail(request, error, now - request.arrived, 0.0, 0)

    def _fitting(self) -> tuple[list[_Request], float]:
        """The requests that run next, and for how many seconds they may wait for others.

        That is the first that need not wait, whatever waits before it: a request must not keep a full batch of other
        shapes from running. Where all wait, it is what has to go first.
        """
        batches: dict[tuple[Any, ...], list[_Request]] = {}
        rows: dict[tuple[Any, ...], int] = {}
        for request in self._queue:
            # One that runs alone is a batch of its own, and so is each where there are none.
            key = request.key if request.key and self.max_batch_size > 1 else (request.rank,)
            if key not in batches:
                if batches and not self.options.max_queue_delay:
                    continue  # the first does not wait
                batches[key], rows[key] = [request], request.rows
            elif rows[key] + request.rows <= self.max_batch_size:
                batches[key].append(request)
                rows[key] += request.rows
            if len(batches) == 1 and (not request.key or rows[key] >= self.max_batch_size):
                break  # nothing can join the first, and what comes behind it does not matter
        now = time.perf_counter()
        found: list[tuple[list[_Request], float]] = []
        for key, batch in batches.items():
            full = not batch[0].key or rows[key] >= self.max_batch_size
            oldest = min(request.arrived for request in batch)
            left = 0.0 if full else oldest + self.options.max_queue_delay - now
            if left <= 0:
                return batch, left
            found.append((batch, left))
        return min(found, key=lambda pair: pair[1])

    def _run(self, runner: Runner, batch: list[_Request]) -> None:
        batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
        if batch and not self._answer(runner, batch):
            for request in batch:  # the one at fault fails alone
                self._answer(runner, [request])

    def _answer(self, runner: Runner, batch: list[_Request]) -> bool:
        """Run these requests together; False when they must be asked again one by one."""
        start = time.perf_counter()
        rows = sum(request.rows for request in batch)
        try:
            filled = rows if len(batch) == 1 else self._filled(batch[0], rows)
            results = runner.run(self._joined(runner, batch, filled), outputs=batch[0].outputs)
            if len(batch) > 1 and any(array.shape[:1] != (filled,) for array in results.values()):
                raise InputError("an output has no row for each of the batch's")
        except BaseException as error:
            if len(batch) > 1 and not isinstance(error, DeviceError):
                return False
            if isinstance(error, DeviceError):
                self._look_at_gpu(runner, error)
            for request in batch:
                self._fail(request, error, start - request.arrived, time.perf_counter() - start, rows)
            return True
        computed = time.perf_counter() - start
        if len(batch) == 1 and batch[0].key and runner is self._clones[0]:
            if len(self._alone) == _KNOWN:
                self._alone.clear()
            self._alone[batch[0].key, rows] = computed
        self._batch_time += 0.2 * (computed - self._batch_time)
        first = 0
        for request in batch:
            part = results
            if len(batch) > 1:
                part = {name: array[first : first + request.rows] for name, array in results.items()}
            self._report(Outcome(start - request.arrived, computed, request.rows, rows, first == 0))
            first += request.rows
            request.future.set_result(part)
        return True

    def _filled(self, request: _Request, rows: int) -> int:
        """How many rows a batch of such requests has when it is filled up to one of the sizes."""
        shapes = {name: array.shape[1:] for name, array in request.inputs.items()}
        return next((size for size in self.sizes if size >= rows and fits(self._runner, shapes, size)), rows)

    def _look_at_gpu(self, runner: Runner, error: DeviceError) -> None:
        """After an error of CUDA's: a GPU that does not run what it ran before either has failed for good."""
        if isinstance(error, (NoGpuError, OutOfMemoryError)):
            return
        try:
            if self._probe is not None:
                runner.run(self._probe)
                return
        except OutOfMemoryError:
            return
        except DeviceError:
            pass
        self.failure = error

    def _fail(self, request: _Request, error: BaseException, queued: float, computed: float, rows: int) -> None:
        self._report(Outcome(queued, computed, request.rows, rows, error=error))
        if not request.future.running() and not request.future.set_running_or_notify_cancel():
            return  # the client has gone
        request.future.set_exception(error)

    @staticmethod
    def _joined(runner: Runner, batch: list[_Request], rows: int) -> Mapping[str, Any]:
        """The batch's inputs, one below the other: in the page-locked memory of a session, which saves a copy.

        Rows beyond theirs, up to ``rows``, are the last one again: what lies there otherwise might be no valid index.
        """
        joined: dict[str, Any] = {}
        staging = getattr(runner, "staging", None)
        for name, spec in runner.inputs.items():
            parts = [request.inputs[name] for request in batch]
            if len(parts) == 1 and not isinstance(parts[0], SharedTensor):
                joined[name] = parts[0]
                continue
            shape = parts[0].shape if len(parts) == 1 else (rows, *parts[0].shape[1:])
            if staging is None or spec.location == "host" or spec.format:
                target = np.empty(shape, spec.dtype)
            else:
                target = staging.view(name, shape)
            joined[name], target = target, target.view(spec.dtype)
            first = 0
            for part in parts:
                rest = target if len(parts) == 1 else target[first : first + part.shape[0]]
                first += part.shape[0] if part.shape else 0
                if not isinstance(part, SharedTensor):
                    np.copyto(rest, part, casting="unsafe")
                elif part.dtype == spec.dtype:
                    part.read_into(rest)
                else:
                    read = np.empty(part.shape, part.dtype)
                    part.read_into(read)
                    np.copyto(rest, read, casting="unsafe")
            if len(parts) > 1:
                target[first:] = target[first - 1]
        return joined

    def close(self) -> None:
        """Refuse new requests, run those that wait, and end. Calling it again does nothing."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for worker in self._workers:
            worker.join()
        with self._first:
            for clone in self._clones:
                clone.close()


def _sizes(runner: Runner, most: int) -> tuple[int, ...]:
    """The sizes of batches, the largest of which is ``most``."""
    profiles = [profile for spec in runner.inputs.values() for profile in spec.profiles]
    special = {profile.min[0] for profile in profiles if profile.min[0] == profile.max[0]}
    powers = {1 << power for power in range(most.bit_length())}
    return tuple(sorted({size for size in (special if len(special) > 1 else powers) if size <= most} | {most}))


def fits(runner: Runner, shapes: Mapping[str, tuple[int, ...]], rows: int) -> bool:
    """Whether a batch of so many rows of these shapes is one that the engine takes."""
    try:
        for name, shape in shapes.items():
            runner.inputs[name].check_shape((rows, *shape))
    except InputError:
        return False
    return True


def _most_rows(runner: Runner, wanted: int | None) -> int:
    """How many rows can run together; 1 where the model has no batch."""
    inputs, outputs = runner.inputs.values(), runner.outputs.values()
    if any(spec.shape[:1] != (-1,) or spec.location == "host" or spec.format for spec in inputs) or any(
        spec.shape[:1] != (-1,) or spec.data_dependent for spec in outputs
    ):
        return 1
    limits = [max(profile.max[0] for profile in spec.profiles) for spec in inputs if spec.profiles]
    if limits:
        return min([*limits, *([wanted] if wanted else [])])
    return wanted or 1
