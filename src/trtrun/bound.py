"""Bound: a request over GPU arrays that stay the same, read and written in place by one graph launch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .arrays import nbytes_of
from .buffers import Buffers
from .cuda.check import translated
from .cuda.device_array import borrow, gpu_ordinal
from .cuda.graph import capture
from .cuda.memory import fill_async
from .cuda.stream import DEFAULT_STREAMS, borrowed_stream, create_stream, stream_handle
from .errors import ClosedError, DtypeError, ExecutionError, InputError, ShapeError
from .route import ALIGNMENT, CAPTURE_ATTEMPTS, set_shapes
from .tensor_spec import TensorSpecs, to_shape

if TYPE_CHECKING:
    from cuda.core import Stream

    from .engine import Engine


class Bound:
    """Made by :meth:`Session.bind`. A call runs the engine on the arrays as they are then, and copies nothing.

    Attributes:
        inputs: the arrays that it reads, by name.
        outputs: the arrays that it writes, by name.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        *,
        stream: Any | None = None,
        profile: int | None = None,
    ) -> None:
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._engine = engine
        self._profile = profile
        self._lock = threading.Lock()
        self._device = engine.device
        self._closed = True  # until it is complete
        # Refitting and closing the engine find it from here on, and wait for the lock.
        with self._lock, ExitStack() as left, ExitStack() as undo, engine.device:
            engine.enter(self)
            left.callback(engine.leave, self)
            self._own: Stream = create_stream(engine.device)
            undo.callback(self._own.close)
            self._buffers = Buffers(engine.device)  # scratch memory
            undo.callback(self._buffers.close)
            handle = int(self._own.handle) if stream is None else stream_handle(stream)
            # Borrowed for as long as this lives: whatever was enqueued on the producers' streams is waited for once.
            self._addresses = self._check(engine.inputs, self.inputs, handle, "inputs")
            self._addresses |= self._check(engine.outputs, self.outputs, handle, "outputs")
            self._check_overlaps()
            self._stream = self._own if stream is None else borrowed_stream(engine.device, handle, stream)
            self._handle = self._stream.handle
            self._waits = stream is None
            self._named_by_number = type(stream) is int  # then nothing keeps it alive
            self._context = engine.create_context()
            undo.callback(self._let_go)
            self._capture()
            self._undo = undo.pop_all()
            left.pop_all()
            self._closed = False

    def _check(self, specs: TensorSpecs, arrays: Mapping[str, Any], stream: int, kind: str) -> dict[str, Any]:
        specs.check_names(arrays, kind)
        views = {}
        for name, spec in specs.items():
            if spec.location == "host" or spec.format:
                reason = "is read or written on the host" if spec.location == "host" else f"comes as {spec.format}"
                raise InputError(f"{name!r} {reason}, so it cannot be bound. Use run(), which brings it into place.")
            if gpu_ordinal(arrays[name]) != self._device.ordinal:
                raise InputError(
                    f"{name!r} is no array on GPU {self._device.ordinal}, where the engine is. What is bound stays "
                    "where it is: allocate it there, or use run()."
                )
            view = borrow(arrays[name], f"{kind[:-1]} {name!r}", stream)
            if view.dtype != spec.dtype:
                raise DtypeError(f"{name!r} is {spec.dtype.name}, got a GPU array of {view.dtype}.")
            if view.ptr % ALIGNMENT:
                raise InputError(
                    f"{name!r} begins at address {view.ptr:#x}, and TensorRT wants multiples of {ALIGNMENT} bytes. "
                    "Pass an array that is no slice of another: tensor.clone()."
                )
            if kind == "outputs" and view.readonly:
                raise InputError(f"output {name!r} is a read-only array: its owner forbids that it is written.")
            views[name] = view
        return views

    def _check_overlaps(self) -> None:
        """Each output has memory of its own, or that of the input which TensorRT writes it over."""
        aliases = self._engine.aliases
        for name, source in aliases.items():
            if self._addresses[name].ptr != self._addresses[source].ptr:
                raise InputError(f"output {name!r} is written over input {source!r}. Pass the same array for both.")
        places = {
            name: (view.ptr, view.ptr + nbytes_of(view.shape, view.dtype)) for name, view in self._addresses.items()
        }
        for output in self._engine.outputs:
            start, stop = places[output]
            for other, (begin, end) in places.items():
                if other not in (output, aliases.get(output)) and max(start, begin) < min(stop, end):
                    raise InputError(f"output {output!r} overlaps {other!r} in memory. Give each an array of its own.")

    def _capture(self) -> None:
        """Set shapes and addresses, and capture, after a run on other memory that warms up."""
        engine, context = self._engine, self._context
        key = tuple(tuple(self._addresses[name].shape) for name in engine.inputs)
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            spec.check_shape(shape)
        handle = int(self._own.handle)
        # Nobody compiles kernels meanwhile, see Route.bind.
        with engine.compile_lock, engine.flavor.logger.capture() as lines:
            set_shapes(engine, context, key, self._profile, handle)
            if context.infer_shapes():
                raise ExecutionError(f"TensorRT cannot infer the output shapes of {engine.name}.", log=lines)
            for name in engine.outputs:
                shape = to_shape(context.get_tensor_shape(name))
                if -1 in shape:
                    raise InputError(f"the shape of {name!r} is known only after running: use run(), without binding.")
                if shape != tuple(self._addresses[name].shape):
                    raise ShapeError(
                        f"output {name!r} has shape {list(shape)} for these inputs, got an array of "
                        f"{list(self._addresses[name].shape)}."
                    )
            context.set_device_memory(*self._buffers.scratch(context.update_device_memory_size_for_shapes()))
            other = Buffers(self._device)
            try:
                for name, view in self._addresses.items():
                    nbytes = nbytes_of(view.shape, view.dtype)
                    address = other.on_gpu(engine.aliases.get(name, name), nbytes)
                    context.set_tensor_address(name, address)
                    if name in engine.inputs and nbytes:
                        fill_async(address, 0, nbytes, handle)
                self._execute(handle)
                self._own.sync()
            finally:
                other.close()
            for name, view in self._addresses.items():
                context.set_tensor_address(name, view.ptr)
            tensors = [(view.ptr, nbytes_of(view.shape, view.dtype)) for view in self._addresses.values()]
            memory = self._buffers.places + tensors
            engine.keep_kernels(key)  # before: the graph's sizes are told by what this may write
            self._graph = capture(
                handle, self._execute, lambda graph: engine.hold_back(graph, memory), attempts=CAPTURE_ATTEMPTS
            )

    def _execute(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise ExecutionError(f"TensorRT could not enqueue {self._engine.name}.")

    def __call__(self) -> dict[str, Any]:
        """Run once and return the outputs: on the stream that was named, without waiting, else when they are there.

        Raises ClosedError when it or its engine is closed, and DeviceError when CUDA fails.
        """
        entered = self._device.enter()
        try:
            with self._lock, translated("run a bound request"):
                if self._closed:
                    raise ClosedError("this bound request is closed. Bind the arrays again.")
                if self._waits:
                    self._own.wait(DEFAULT_STREAMS[0])  # where torch and CuPy work unless told otherwise
                self._graph.launch(self._handle)
                if self._waits:
                    self._stream.sync()
        finally:
            self._device.leave(entered)
        return self.outputs

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No call runs inside the block; the graph is captured anew after it."""
        with self._lock:
            if self._closed:
                yield
                return
            with self._device:
                self._settle()
            try:
                yield
            finally:
                self._graph.close()
                with self._device:
                    try:
                        self._capture()
                    except BaseException:
                        self._closed = True  # there is nothing to launch any more
                        self._undo.close()
                        raise

    def _settle(self) -> None:
        """Wait for what was launched."""
        if self._named_by_number:
            self._device.synchronize()  # the stream may be gone by now
        else:
            with translated("finish a bound request"):
                self._stream.sync()

    def _let_go(self) -> None:
        self._settle()
        contexts = [self._context]
        del self._context
        self._engine.give_back(contexts)

    def close(self) -> None:
        """Wait for what runs and let go of the arrays. Calling it again does nothing."""
        try:
            with self._device, self._lock:
                if self._closed:
                    return
                self._closed = True
                self._graph.close()
                self._undo.close()
                self._addresses.clear()
                self.inputs, self.outputs = {}, {}
        finally:
            self._engine.leave(self)

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
