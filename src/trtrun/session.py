"""Session: an execution context, its buffers and its stream; runs one request at a time at the speed of the GPU.

A request goes: the caller's array → page-locked buffer → device → engine → device → page-locked buffer → result.
Everything between the two page-locked buffers is captured once per shape key as a CUDA graph, so a request costs one
launch and one wait. Where capture is impossible the same steps are enqueued one by one, and ``graph_reason`` says why.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from .arrays import Host, as_host_array, copy_out, nbytes_of
from .batches import Parts, batch_parts, fastest_parts, random_rows
from .buffers import Buffers
from .cuda.check import CUDAError, translated
from .cuda.device_array import DeviceArray, borrow, follow_producer, gpu_ordinal, result_pool
from .cuda.memory import address_of, copy_async, host_view
from .cuda.stream import DEFAULT_STREAMS, borrowed_stream, create_stream, stream_handle
from .cuda.transfer import Copy
from .errors import DeviceError, DtypeError, ExecutionError, InputError, ShapeError
from .filling import LARGE, Choice, Way, whole
from .replay import Replay
from .route import Route, ShapeKey, Steps, part_keys
from .runner import OpenStages, OutputMode, Runner, Stages, StatefulRunner, check_output_mode
from .staging import Staging
from .tensor_spec import Shape, TensorSpecs

if TYPE_CHECKING:
    from cuda.core import Event, Stream

    from .bound import Bound
    from .engine import Engine

_MAX_ROUTES = 16  # shape keys with an execution context and graphs of their own; the least recently used goes first
_MAX_SEEN = 256  # shape keys whose requests are counted
_TRIALS = 5  # runs that are timed to choose between ways of running a batch


class Held:
    """An input that the session keeps on the GPU itself."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype


class Session(Runner):
    """Runs an engine, one request at a time. Calls from several threads take turns.

    Args:
        engine: the engine to run. Several sessions may share one; each has its own context, buffers and stream.
        cuda_graph: replay requests as CUDA graphs. Off, the same steps are enqueued one by one.
        profile: the optimization profile to use for every request; None chooses the tightest for its shapes.

    Attributes:
        engine: the engine.
        staging: the page-locked input buffers, see :class:`~trtrun.staging.Staging`.
    """

    _state: Mapping[str, str] = MappingProxyType({})  # input -> output that it gets from the run before
    _stages: Stages | None = None  # steps before and after the engine
    _opened: OpenStages | None = None

    def __init__(self, engine: Engine, *, cuda_graph: bool = True, profile: int | None = None) -> None:
        if profile is not None and not 0 <= profile < engine.num_profiles:
            raise ShapeError(f"there is no optimization profile {profile}: the engine has {engine.num_profiles}.")
        self.engine = engine
        self._profile = profile
        self.staging = Staging(self, self._staging_view)
        self._cuda_graph = cuda_graph
        self._device = engine.device
        self._lock = threading.Lock()
        self._in_flight: _InFlight | None = None
        self._copied: Event  # behind the copies of GPU arrays of the request that was enqueued last
        self._done: Event | None = None  # behind a request that nobody waited for, which may still use the buffers
        self._specs = tuple(engine.inputs.values())
        self._wanted = [(spec.name, spec.dtype) for spec in self._specs if spec.name not in self._state]
        self._names = dict(self._wanted).keys()  # a dict's own keys compare in C
        self._formatted = {spec.name for spec in self._specs if spec.format}
        self._formatted_output = next((spec for spec in engine.outputs.values() if spec.format), None)
        self._dynamic = any(spec.is_dynamic for spec in self._specs)
        self._host_located = any(spec.location == "host" for spec in self._specs)
        self._routes: OrderedDict[ShapeKey, Route] = OrderedDict()
        self._seen: OrderedDict[ShapeKey, int] = OrderedDict()
        self._promote_at = 2
        self._borrowed: deque[tuple[Any, list[Any]]] = deque()
        self._trial: tuple[Choice, Way] | None = None  # the way of the request at hand, if it is being tried
        self._all_copied: Steps = ((1 << len(self._specs)) - 1, True, ())
        self._last: Route | None = None  # of the request before
        self._replay: Replay | None = None  # that request once more
        self._staged: WeakSet[Session] = WeakSet()
        self._closed = True  # until it is complete
        # Refitting and closing the engine find it from here on, and wait for the lock.
        with self._lock, ExitStack() as left, ExitStack() as undo, self._device:
            engine.enter(self)
            left.callback(engine.leave, self)
            self._stream: Stream = create_stream(self._device)
            undo.callback(self._stream.close)
            self._handle = int(self._stream.handle)
            # Where the request at hand runs: on this session's stream, or on the one that the caller named.
            self._at, self._at_handle = self._stream, self._handle
            self._caller: tuple[int, Stream] | None = None
            self._buffers = Buffers(self._device)
            undo.callback(self._buffers.close)
            self._results = result_pool(self._device)
            if self._stages is not None:
                self._opened = self._stages.open(self._device.ordinal, self._buffers)
            # The route of shapes seen for the first time, or of the only shapes there are.
            self._common = self._new_route()
            undo.callback(self._common.close)
            self._undo = undo.pop_all()
            left.pop_all()
            self._closed = False

    # What it is

    @property
    def inputs(self) -> TensorSpecs:
        return self.engine.inputs

    @property
    def outputs(self) -> TensorSpecs:
        return self.engine.outputs

    @property
    def backend(self) -> str:
        return f"{self.engine.flavor.title} on {self._device.name}"

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.engine.metadata

    @property
    def graph_reason(self) -> str | None:
        """As :attr:`Runner.graph_reason <trtrun.runner.Runner.graph_reason>`.

        Where only some shapes could not be captured, why the first of them could not.
        """
        if not self._cuda_graph:
            return "CUDA graphs were turned off: Session(cuda_graph=False)"
        reasons = (route.graph_reason for route in (self._common, *self._routes.values()))
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes this session holds: ``{"device": …, "host": …}`` (page-locked), scratch included."""
        return {"device": self._buffers.device_bytes, "host": self._buffers.host_bytes}

    # Running

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        if outputs != "copy":
            check_output_mode(outputs)
        entered = self._device.enter()  # first: in a forked child the lock may be held by a thread that is not there
        try:
            with self._lock:
                if self._closed or self._in_flight is not None:
                    self._check_idle()
                try:
                    if self._replay is not None and outputs != "device" and stream is None:
                        results = self._replay.run(inputs, outputs == "copy")
                        if results is not None:
                            return results
                    return self._run(inputs, outputs, stream)
                except CUDAError as error:
                    self._abandon()
                    raise self._failed(error) from error
                except BaseException:
                    self._abandon()
                    raise
        finally:
            self._device.leave(entered)

    def _run(self, inputs: Mapping[str, Any], outputs: OutputMode, stream: Any | None) -> dict[str, Any]:
        if outputs == "device":
            self._check_device_outputs()
        caller = None if stream is None else self._join(stream)
        if caller is None:
            self._move(self._stream, self._handle)
        start = time.perf_counter()
        timed = caller is None and outputs != "device"  # the GPU is waited for and the time noted
        route, steps, borrowed = self._start(inputs, outputs != "device", timed)
        if outputs == "device":
            return self._device_outputs(route, steps, caller, borrowed)
        trial, settled = self._trial, self._finish(route, steps)
        if settled and trial is not None:
            trial[0].note(trial[1], time.perf_counter() - start)
        elif settled and timed:
            if route is self._last:
                self._replay = self._replay_of(route, steps)
            self._last = route
        return self._host_outputs(route, outputs == "copy")

    def _replay_of(self, route: Route, steps: Steps) -> Replay | None:
        """What the next request can be if it is like this one; None for what is not small arrays in, arrays out."""
        large = any(view.nbytes >= LARGE for view in route.inputs)
        if large or steps != self._all_copied or route.layouts or self.turns is not None:
            return None
        return Replay(self.inputs, route.inputs, route.outputs, route.graph(steps), self._stream, self._buffers)

    def _check_device_outputs(self) -> None:
        if self._formatted_output is not None:
            raise InputError(
                f"output {self._formatted_output.name!r} comes as {self._formatted_output.format}, which trtrun "
                'converts on the host. Ask for outputs="copy", or build the engine with row-major linear outputs.'
            )

    def _join(self, stream: Any) -> Stream:
        """Let this request take its place in the caller's stream, which is returned."""
        handle = stream_handle(stream)
        named_by_number = type(stream) is int  # then nothing keeps it alive, and the number may mean another by now
        if self._caller is None or self._caller[0] != handle or named_by_number:
            self._caller = handle, borrowed_stream(self._device, handle, None if named_by_number else stream)
        caller = self._caller[1]
        if handle in DEFAULT_STREAMS:
            # Work on a default stream makes TensorRT synchronize, so the request runs beside it and they wait in turn.
            self._move(self._stream, self._handle)
            with translated("wait for the caller's stream"):
                self._stream.wait(caller)
        else:
            self._move(caller, handle)
        return caller

    def _move(self, stream: Stream, handle: int) -> None:
        """Run the next request on this stream, after what may still be using the buffers."""
        if stream is not self._at:
            if self._done is not None:
                with translated("wait for the last request"):
                    stream.wait(self._done)
            self._at, self._at_handle = stream, handle

    def enqueue(self, inputs: Mapping[str, Any]) -> _InFlight:
        entered = self._device.enter()
        try:
            with self._lock:
                self._check_idle()
                self._move(self._stream, self._handle)
                try:
                    route, steps, borrowed = self._start(inputs, True, timed=False, kept=False)
                    if borrowed:  # they were copied before the computation, which may have to wait for its turn
                        with translated("wait for the copy of a GPU array"):
                            self._copied.sync()
                    request = self._in_flight = _InFlight(self, route, steps)
                except BaseException:
                    self._abandon()
                    raise
                return request
        finally:
            self._device.leave(entered)

    def follow_producers(self, inputs: Mapping[str, Any]) -> None:
        arrays = [array for array in inputs.values() if type(array) is not np.ndarray]
        if arrays:
            with self._device:  # torch exports a tensor only where its GPU is the current one
                for array in arrays:
                    follow_producer(array)

    def _collect(self, request: _InFlight) -> dict[str, Any]:
        entered = self._device.enter()
        try:
            with self._lock:
                self.check_open()
                if self._in_flight is not request:
                    raise ExecutionError("this request was collected already.")
                try:
                    self._finish(request.route, request.steps)
                    return self._host_outputs(request.route, True)
                except BaseException:
                    self._abandon()
                    raise
                finally:
                    self._in_flight = None
        finally:
            self._device.leave(entered)

    def _abandon(self) -> None:
        """A request failed half way: what it has enqueued must not run on while its memory is used again."""
        with suppress(Exception):  # the caller is about to get the first error
            self._at.sync()

    def _check_idle(self) -> None:
        if self._closed:
            self.check_open()
        if self._in_flight is not None:
            raise ExecutionError(
                "this session has a request in flight: collect it with result() first, or use a Pipeline, "
                "which keeps several sessions busy."
            )

    def _start(
        self, inputs: Mapping[str, Any], to_host: bool, timed: bool, kept: bool = True
    ) -> tuple[Route, Steps, list[Any]]:
        """Fill the inputs and enqueue the request. Nothing has been enqueued when this raises InputError.

        ``timed``: the caller measures the time of the whole request for the choice that may be under way. ``kept``:
        GPU arrays stay as they are until the request has run; else they are copied first, and ``_copied`` is behind.
        """
        self._replay = None
        try:
            names = inputs.keys()
        except AttributeError:
            self.inputs.check_names(inputs)  # says that an array alone is no mapping
            raise
        if names != self._names:
            self.inputs.check_names(inputs)
        arrays: list[Host | Any] = []
        borrowed: list[Any] = []
        shapes = []
        for name, dtype in self._wanted:
            array = inputs[name]
            if type(array) is not np.ndarray:
                array = self._adopt(array, name)
                if not isinstance(array, np.ndarray):
                    borrowed.append(array)
            given = array.dtype  # once: a GPU array works it out
            if given is not dtype and given != dtype:
                self._check_dtype(array, self.inputs[name])
            arrays.append(array)
            shapes.append(array.shape)
        if self._state:
            self._add_state(arrays, shapes)
        key = tuple(shapes)
        route = self._route(key, arrays)
        steps = self._fill(route, arrays, to_host, timed)
        if borrowed and not kept:
            for copy in steps[2]:
                copy_async(*copy, self._at_handle)
            steps = (steps[0], steps[1], ())
            with translated("copy a GPU array"):
                self._copied = self._at.record()
        self._launch(route, steps)
        if self._state:
            self._advance(route)
        return route, steps, borrowed

    def _launch(self, route: Route, steps: Steps) -> None:
        try:
            if self.turns is None or not route.is_captured(steps):  # compiling would hold the others up
                route.launch(steps, self._at)
            else:
                self.turns.launch(self._at, lambda: route.launch(steps, self._at))
        except ExecutionError as error:
            raise self._blamed(error, route) from error

    def _add_state(self, arrays: list[Any], shapes: list[Shape]) -> None:
        """Put what the session itself keeps between the caller's arrays, in engine order."""
        raise NotImplementedError

    def _advance(self, route: Route) -> None:
        """The request was enqueued: its outputs are the state of the next."""
        raise NotImplementedError

    def _adopt(self, value: Any, name: str) -> Host | Any:
        ordinal = gpu_ordinal(value)
        if ordinal is None:
            return as_host_array(value, name)
        if name in self._formatted:
            raise InputError(
                f"input {name!r} is on the GPU, and the engine wants it as {self.inputs[name].format}, which trtrun "
                "converts on the host. Pass a NumPy array, or build the engine with row-major linear inputs."
            )
        if ordinal != self._device.ordinal:
            raise InputError(
                f"input {name!r} is on GPU {ordinal}, the engine on GPU {self._device.ordinal}. "
                f"Move it there first, or load the engine with device={ordinal}."
            )
        return borrow(value, f"input {name!r}", self._at_handle)

    def _check_dtype(self, array: Host | Any, spec: Any) -> None:
        if isinstance(array, np.ndarray):
            spec.check_dtype(array.dtype)
        else:
            raise DtypeError(
                f"input {spec.name!r} is {spec.dtype.name}, got a GPU array of {array.dtype}: "
                f"convert it on the GPU, for example tensor.to(torch.{spec.dtype.name})."
            )

    def _route(self, key: ShapeKey, arrays: list[Any]) -> Route:
        """The route for these shapes, bound. A shape seen for the second time gets a context and graphs of its own."""
        route = self._routes.get(key)
        if route is None:
            if self._common.graph_reason is not None and not self._host_located and self._common.fits(key):
                return self._common
            for spec, shape in zip(self._specs, key, strict=True):
                spec.check_shape(shape)
            route = self._promote(key, arrays)
        if route is not None:
            self._routes.move_to_end(key)
            self._bind(route, key)
            return route
        if self._fill_host_located(key, arrays):
            self._common.key = None  # the output shapes depend on the values just written
        self._bind(self._common, key)
        if not self._dynamic and self._common.graph_reason is None:
            self._routes[key] = self._common  # the only key there is
        return self._common

    def _bind(self, route: Route, key: ShapeKey) -> None:
        if not route.fits(key):
            if self._done is not None:
                self._wait()
            route.bind(key, self._at_handle, shares_gpu=self.shares_gpu)

    def _promote(self, key: ShapeKey, arrays: list[Any]) -> Route | None:
        """A route of its own for a shape that keeps coming back; None while it has not yet.

        The first request of a shape runs on the common context, which can be given other shapes; a context and a
        captured graph of its own pay from the second on. When more shapes take turns than routes are kept, every
        eviction doubles how often a shape must come back, so that contexts are not made only to be thrown away.
        """
        if not (self._dynamic and self._cuda_graph and self._common.graph_reason is None) or self._host_located:
            return None
        count = self._seen.pop(key, 0) + 1
        if count < self._promote_at:
            self._seen[key] = count
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            return None
        if len(self._routes) == _MAX_ROUTES:
            if self._done is not None:
                self._wait()
            self._routes.popitem(last=False)[1].close()
            self._promote_at = min(2 * self._promote_at, 1 << 20)
        ways = self.engine.ways
        parts = None
        if self._profile is None and not self._state and self._stages is None:
            try:
                parts = ways[key]
            except KeyError:
                parts = self._fastest_way(key, arrays)
                self.engine.note(ways, key, parts)
        route = self._routes[key] = self._new_route(key, parts)
        return route

    def _new_route(self, serves: ShapeKey | None = None, parts: Parts | None = None) -> Route:
        each = part_keys(serves, parts) if serves else [None]
        contexts = [self.engine.create_context(shapes) for shapes in each]
        return Route(
            self.engine,
            self._buffers,
            self._stream,
            contexts,
            profile=self._profile,
            state=self._state,
            parts=parts,
            stages=self._stages,
            opened=self._opened,
            serves=serves,
        )

    def _fastest_way(self, key: ShapeKey, arrays: list[Any]) -> Parts | None:
        """The batch sizes to run this batch in: None for its own, else specialized ones that measured faster.

        Only for engines with specialized batch sizes, and only where rows turn out not to influence each other: the
        parts must give what the whole batch gives, on random rows. Measured once per engine and shape, through the
        page-locked memory; request ``arrays`` that lie there are replaced by copies.
        """
        candidates = batch_parts(self.engine, key)
        if not candidates:
            return None
        if self._done is not None:
            self._wait()
        for index, array in enumerate(arrays):
            if isinstance(array, np.ndarray) and self._buffers.holds(array):
                arrays[index] = array.copy()
        rng = np.random.default_rng(0)
        rows = [
            random_rows(rng, spec.dtype, array, shape)
            for spec, array, shape in zip(self._specs, arrays, key, strict=True)
        ]

        def run(parts: Parts | None) -> tuple[float, dict[str, Host]]:
            route = self._new_route(key, parts)
            try:
                return self._try(route, key, rows)
            finally:
                self._abandon()  # waits for nothing unless it failed
                route.close()

        return fastest_parts(candidates, run)

    def _try(self, route: Route, key: ShapeKey, rows: list[Host]) -> tuple[float, dict[str, Host]]:
        """Seconds of one request on this route, the least of several, and its outputs."""
        steps = ((1 << len(key)) - 1, True, ())
        route.bind(key, self._at_handle, shares_gpu=self.shares_gpu)
        route.pad(0x7B)  # large numbers: a row that looks at others would show it
        times = []
        for turn in range(2 + _TRIALS):  # the first compiles the kernels, the second follows the capture
            for view, values in zip(route.inputs, rows, strict=True):
                view[...] = values
            start = time.perf_counter()
            route.launch(steps, self._at)
            self._at.sync()
            if turn == 0:
                route.capture(steps)
            times.append(time.perf_counter() - start)
        return min(times[2:]), {name: view.copy() for name, view in route.outputs.items() if view is not None}

    def _fill_host_located(self, key: ShapeKey, arrays: list[Any]) -> bool:
        """Write shape tensors before binding: the output shapes depend on their values."""
        found = False
        for spec, shape, array in zip(self._specs, key, arrays, strict=True):
            if spec.location == "host":
                found = True
                if not isinstance(array, np.ndarray):
                    raise InputError(
                        f"input {spec.name!r} is a shape tensor that TensorRT reads on the host, got a GPU array. "
                        "Pass it as a NumPy array."
                    )
                memory = self._buffers.host(spec.name, nbytes_of(shape, spec.dtype))
                host_view(memory, spec.dtype, shape)[...] = array
        return found

    def _fill(self, route: Route, arrays: list[Any], to_host: bool, timed: bool) -> Steps:
        """Bring the inputs into place, or leave it to the steps that are returned."""
        which = 0
        way: Way | None = None
        self._trial = None
        borrowed: tuple[Copy, ...] = ()
        for index, (spec, view, array) in enumerate(zip(self._specs, route.inputs, arrays, strict=True)):
            if type(array) is not np.ndarray and not isinstance(array, np.ndarray):  # the first test is the cheap one
                if view.nbytes and not isinstance(array, Held):
                    borrowed = (*borrowed, (route.input_addresses[index], array.ptr, view.nbytes))
            elif spec.format:
                route.fill(index, spec.name, array)
                which |= 1 << index
            elif array.base is not None and self._buffers.in_place(spec.name, array, view):
                which |= 1 << index
            elif (
                view.nbytes >= LARGE
                and spec.location == "device"
                and _is_plain(array, view)
                and not self._buffers.owns(spec.name, array)  # overlapping memory must not be copied in pieces
            ):
                if way is None:
                    way = self._way(route, view.nbytes, timed)
                if not way(route.input_addresses[index], view, array, self._at_handle):
                    which |= 1 << index
            else:
                np.copyto(view, array)
                which |= 1 << index
        return which, to_host, borrowed

    def _way(self, route: Route, nbytes: int, timed: bool) -> Way:
        """How this request's large inputs get to the GPU. Found out once per engine and shape."""
        if not self.copy_helpers:
            return whole
        choices = self.engine.choices
        choice = choices.get(route.key)
        if choice is None:
            choice = Choice(nbytes)
            if route is self._common and self._dynamic:
                return choice.best  # a shape that may never come back
            self.engine.note(choices, route.key, choice)
        if choice.settled or not timed:
            return choice.best
        way = choice.next()
        self._trial = choice, way
        return way

    def _finish(self, route: Route, steps: Steps) -> bool:
        """Wait for the request; False when it took longer than the next of its kind will."""
        self._wait()
        if route.settled(steps):
            return True
        self._after_uncaptured(route, steps)
        return False

    def _after_uncaptured(self, route: Route, steps: Steps) -> None:
        """Capture what just ran for the first time, so that the next request of this kind is one launch."""
        # The common context of a dynamic engine is about to get other shapes, which a graph would not survive.
        if self._cuda_graph and not (route is self._common and self._dynamic):
            route.capture(steps)
        self.engine.keep_kernels(route.key)

    def _wait(self) -> None:
        try:
            self._at.sync()
        except CUDAError as error:
            raise self._failed(error) from error
        if self._done is not None:
            self._done = None
            self._borrowed.clear()

    def _settle(self) -> None:
        """Wait for the last request, by its event: the stream that it ran on may be gone if it was the caller's."""
        self._move(self._stream, self._handle)
        self._wait()

    def _host_outputs(self, route: Route, copied: bool) -> dict[str, Any]:
        if route.layouts or self._state:
            return {
                name: route.read(name) if copied or name in route.layouts else route.outputs[name]
                for name in self.outputs
            }
        if copied:
            return {name: copy_out(view) for name, view in route.outputs.items()}  # type: ignore[arg-type]
        return dict(route.outputs)

    def _device_outputs(self, route: Route, steps: Steps, caller: Stream | None, borrowed: list[Any]) -> dict[str, Any]:
        """Results in memory of their own, copied within the GPU, so that the next request cannot overwrite them."""
        results: dict[str, Any] = {}
        for name, spec in self.outputs.items():
            allocator = route.allocators.get(name)
            shape = allocator.shape if allocator else route.output_shapes[name]
            result = DeviceArray(self._device, self._results, shape, spec.dtype, self._at)
            if allocator:
                parts = [(allocator.address, result.nbytes)]
            elif spec.location == "host":
                parts = [(address_of(route.outputs[name]), result.nbytes)]  # type: ignore[arg-type]
            else:
                parts = route.output_parts[name]
            target = result.address
            for source, nbytes in parts:
                if nbytes:
                    copy_async(target, source, nbytes, self._at_handle)
                    target += nbytes
            results[name] = result
        settled = route.graph_reason is None and (route.settled(steps) or not self._cuda_graph)
        # With inputs on the host the call waits: it returns when their page-locked memory may be filled again.
        if caller is not None and settled and len(borrowed) == len(self._wanted):
            with translated("continue the caller's stream"):
                self._done = self._at.record()
                if self._at is not caller:
                    caller.wait(self._done)
                    for result in results.values():
                        result.follow(caller)
            # Kept alive until the GPU has read them: their memory may not be of the caller's stream.
            self._borrowed.append((self._done, borrowed))
            while self._borrowed and self._borrowed[0][0].is_done:
                self._borrowed.popleft()
        else:
            self._finish(route, steps)
            for result in results.values():
                result.settle()
        return results

    def _staging_view(self, name: str, shape: Shape) -> Host:
        with self._lock:
            self.check_open()
            self._check_idle()
            spec = self.inputs[name]
            if spec.format:
                raise InputError(
                    f"input {name!r} lies in memory as {spec.format}, so it cannot be filled as an array. Pass one."
                )
            spec.check_shape(shape)
            nbytes = nbytes_of(shape, spec.dtype)
            self._replay = None  # the buffer may move
            return host_view(self._buffers.host(name, nbytes), spec.dtype, shape)

    # Errors

    def _blamed(self, error: ExecutionError, route: Route) -> Exception:
        for allocator in route.allocators.values():
            if allocator.error is not None:
                cause, allocator.error = allocator.error, None
                return cause
        return error

    def _failed(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"the request on {self._device.name} failed: {error}. If memory was accessed wrongly (a plugin, a damaged "
            "plan), CUDA refuses all further work in this process: restart it."
        )

    # Lifetime

    def clone(self) -> Runner:
        self.check_open()
        return Session(self.engine, cuda_graph=self._cuda_graph, profile=self._profile)

    def state(self, pairs: Mapping[str, str], *, initial: Mapping[str, Any] | None = None) -> StatefulRunner:
        from .state import StatefulSession

        self.check_open()
        return StatefulSession(self.engine, pairs, initial=initial, cuda_graph=self._cuda_graph, profile=self._profile)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, stream: Any | None = None) -> Bound:
        """A request over GPU arrays that stay the same, for loops that must cost nothing but the launch.

        ``call = session.bind({"images": x}, {"logits": y}, stream=stream)``, then per request write ``x`` on the
        stream, ``call()``, and read ``y`` on the stream. The engine reads and writes the arrays in place, with an
        execution context of its own; several may be bound, for example two that take turns.

        Without a stream a call waits for the legacy default stream, where torch and CuPy work unless told otherwise,
        and returns when the outputs are there. Work of yours on any other stream is not waited for: name that stream.

        Args:
            inputs: a GPU array for each input, and
            outputs: for each output, of the engine's dtypes and of shapes that belong together, C-contiguous, at
                addresses that are multiples of 256 bytes, as allocators give them.
            stream: the CUDA stream on which it runs, as for :meth:`run`; a call does not wait then.

        Raises InputError, InputNameError, DtypeError or ShapeError for arrays that do not fit, and for engines with
        tensors on the host, vectorized formats, or outputs whose shape is known only after running.
        """
        from .bound import Bound

        self.check_open()
        with self._device:
            return Bound(self.engine, inputs, outputs, stream=stream, profile=self._profile)

    def staged(self, stages: Stages) -> Runner | None:
        from .staged import StagedSession, why_not

        self.check_open()
        if why_not(self.engine, stages):
            return None
        staged = StagedSession(self.engine, stages, cuda_graph=self._cuda_graph, profile=self._profile)
        self._staged.add(staged)
        return staged

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No request of this session runs inside the block; graphs are captured anew after it."""
        with self._lock:
            if self._closed:
                yield
                return
            with self._device:
                self._settle()
            try:
                yield
            finally:
                self._replay = None
                for route in (self._common, *self._routes.values()):
                    route.key = None

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        for staged in list(self._staged):
            staged.close()
        try:
            with self._device, self._lock:
                if self._closed:
                    return
                self._closed = True
                try:
                    self._settle()
                finally:
                    for route in self._routes.values():
                        if route is not self._common:
                            route.close()
                    self._routes.clear()
                    self._done = self._caller = self._replay = self._last = None
                    self._borrowed.clear()
                    self._undo.close()
        finally:
            # Without the lock: refit() holds sessions back and may be waiting for it.
            self.engine.leave(self)


class _InFlight:
    """A request that was enqueued on a session."""

    def __init__(self, session: Session, route: Route, steps: Steps) -> None:
        self.session = session
        self.route = route
        self.steps = steps

    def result(self) -> dict[str, Any]:
        return self.session._collect(self)


def _is_plain(array: Host, view: Host) -> bool:
    """True when the bytes of ``array`` in memory are those that ``view`` shall hold."""
    return array.flags.c_contiguous and array.dtype == view.dtype
