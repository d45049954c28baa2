"""Route: how requests of one shape key get through an execution context.

A route holds an execution context whose shapes and addresses are set, the page-locked views that requests are filled
into and read from, and the CUDA graphs that replay the steps copy in → execute → copy out. NVIDIA's advice for
captured graphs is one execution context per graph, sharing scratch memory, because a context that is given other
shapes may change memory that a captured graph still reads.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import nbytes_of
from .cuda.graph import capture
from .cuda.memory import copy_async, host_view
from .errors import ExecutionError, ShapeError, TrtrunError
from .tensor_spec import Shape, ShapeRange, to_shape

if TYPE_CHECKING:
    from cuda.core import Stream
    from cuda.core.graph import Graph

    from .buffers import Buffers
    from .engine import Engine
    from .flavor import IExecutionContext
    from .output_allocator import OutputAllocator

_LOG = logging.getLogger("trtrun")

_CAPTURE_ATTEMPTS = 5

ShapeKey = tuple[Shape, ...]
Host = np.ndarray[Any, np.dtype[Any]]
# Which inputs the route itself copies to the device (bit i for input i), and whether it copies outputs to the host.
Steps = tuple[int, bool]


def choose_profile(engine: Engine, key: ShapeKey) -> int:
    """The tightest optimization profile that holds all these input shapes.

    Tightest is the one whose largest shapes have the fewest elements: TensorRT tunes a profile for its range.
    Raises ShapeError when no single profile holds them together.
    """
    best, best_size = -1, None
    for profile in range(engine.num_profiles):
        size = 0
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            if not spec.profiles:
                continue
            shapes: ShapeRange = spec.profiles[profile]
            if shape not in shapes:
                break
            size += int(np.prod(shapes.max, dtype=np.int64))
        else:
            if best_size is None or size < best_size:
                best, best_size = profile, size
    if best < 0:
        asked = ", ".join(
            f"{spec.name}={'x'.join(map(str, s))}" for spec, s in zip(engine.inputs.values(), key, strict=True)
        )
        raise ShapeError(
            f"no single optimization profile holds these shapes together: {asked}. The engine takes {engine.inputs!r}. "
            "Pass shapes of one profile, or rebuild the engine with a profile that holds them."
        )
    return best


class Route:
    """One execution context, bound for the shapes of one key.

    Attributes:
        key: the input shapes in engine order.
        inputs: per input the page-locked view to fill, in engine order.
        outputs: per output the page-locked view to read after running; None where the shape is data-dependent.
        graph_reason: why the steps cannot be captured as a CUDA graph; None when they can.
    """

    def __init__(self, engine: Engine, buffers: Buffers, stream: Stream, context: IExecutionContext) -> None:
        self._engine = engine
        self._buffers = buffers
        self._stream = stream
        self._handle = int(stream.handle)
        self._context: IExecutionContext = context
        self._profile = 0
        self._generation = -1
        self._graphs: dict[Steps, Graph] = {}
        self._failed_captures = 0
        self._warm = False
        self.key: ShapeKey | None = None
        self.inputs: list[Host] = []
        self.outputs: dict[str, Host | None] = {}
        self.output_shapes: dict[str, Shape] = {}
        self.input_addresses: list[int] = []
        self.output_addresses: dict[str, int] = {}
        self.allocators: dict[str, OutputAllocator] = {}
        self.graph_reason: str | None = None
        self._copies_in: list[tuple[int, int, int] | None] = []
        self._copies_out: list[tuple[int, int, int]] = []
        self._all_inputs = 0

    def fits(self, key: ShapeKey) -> bool:
        """True when the route is bound for this key and no buffer has moved since."""
        return self.key == key and self._generation == self._buffers.generation

    def bind(self, key: ShapeKey) -> None:
        """Set shapes and addresses for a key. Nothing of this session may be running on the GPU.

        Raises ShapeError when TensorRT does not accept the shapes, and OutOfMemoryError when buffers do not fit.
        """
        self.drop_graphs()
        self.key = None
        context, engine = self._context, self._engine
        with engine.flavor.logger.capture() as lines:
            try:
                self._set_shapes(key)
                missing = context.infer_shapes()
            except TrtrunError as error:
                error.log = (*error.log, *lines)
                raise
            if missing:
                raise ExecutionError(
                    f"TensorRT cannot infer the output shapes of {engine.name}; it misses {list(missing)}.", log=lines
                )
            self._bind_buffers(key)
            self._set_addresses()
        self.key = key
        self._generation = self._buffers.generation
        self._warm = False

    def _set_shapes(self, key: ShapeKey) -> None:
        context, engine = self._context, self._engine
        profile = choose_profile(engine, key)
        if profile != context.active_optimization_profile and not context.set_optimization_profile_async(
            profile, self._handle
        ):
            raise ExecutionError(f"TensorRT could not switch to optimization profile {profile}.")
        self._profile = profile
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            if spec.is_dynamic and not context.set_input_shape(spec.name, shape):
                raise ShapeError(
                    f"TensorRT refused shape {list(shape)} for input {spec.name!r} under profile {profile}."
                )
            if spec.location == "host":
                # infer_shapes reads shape tensors, so they must be bound, with this request's values, before it.
                context.set_tensor_address(
                    spec.name, self._buffers.host(spec.name, nbytes_of(shape, spec.dtype)).ctypes.data
                )

    def _bind_buffers(self, key: ShapeKey) -> None:
        """Reserve memory for this key and make the views. Addresses are read last: reserving may move buffers."""
        engine, buffers, context = self._engine, self._buffers, self._context
        scratch = context.update_device_memory_size_for_shapes()
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            nbytes = nbytes_of(shape, spec.dtype)
            buffers.host(spec.name, nbytes)
            if spec.location == "device":
                buffers.on_gpu(spec.name, nbytes)
        self.output_shapes = {name: to_shape(context.get_tensor_shape(name)) for name in engine.outputs}
        dependent = [name for name, shape in self.output_shapes.items() if -1 in shape]
        for name, shape in self.output_shapes.items():
            if name not in dependent:
                nbytes = nbytes_of(shape, engine.outputs[name].dtype)
                buffers.host(name, nbytes)
                if engine.outputs[name].location == "device":
                    buffers.on_gpu(name, nbytes)
        on_host = [
            spec.name for specs in (engine.inputs, engine.outputs) for spec in specs.values() if spec.location == "host"
        ]
        self.graph_reason = (
            f"the shape of output {dependent[0]!r} is known only after running"
            if dependent
            else f"tensor {on_host[0]!r} is read or written on the host"
            if on_host
            else None
        )
        context.set_device_memory(*buffers.scratch(scratch))

    def _set_addresses(self) -> None:
        from .output_allocator import OutputAllocator

        engine, buffers, context = self._engine, self._buffers, self._context
        key = [to_shape(context.get_tensor_shape(name)) for name in engine.inputs]
        self.inputs, self._copies_in, self.input_addresses = [], [], []
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            nbytes = nbytes_of(shape, spec.dtype)
            view = host_view(buffers.host(spec.name, nbytes), spec.dtype, shape)
            self.inputs.append(view)
            if spec.location == "host":
                address = view.ctypes.data
                self._copies_in.append(None)
            else:
                address = buffers.on_gpu(spec.name, nbytes)
                self._copies_in.append((address, view.ctypes.data, nbytes) if nbytes else None)
            self.input_addresses.append(address)
            context.set_tensor_address(spec.name, address)
        self.outputs, self._copies_out, self.output_addresses = {}, [], {}
        for name, shape in self.output_shapes.items():
            spec = engine.outputs[name]
            if -1 in shape:
                self.outputs[name] = None
                allocator = self.allocators.get(name)
                if allocator is None:
                    allocator = self.allocators[name] = OutputAllocator.create(engine.flavor.module, engine.device)
                context.set_output_allocator(name, allocator.handle)
                continue
            nbytes = nbytes_of(shape, spec.dtype)
            view = host_view(buffers.host(name, nbytes), spec.dtype, shape)
            self.outputs[name] = view
            if spec.location == "host":
                address = view.ctypes.data
            else:
                address = buffers.on_gpu(name, nbytes)
                if nbytes:
                    self._copies_out.append((view.ctypes.data, address, nbytes))
            self.output_addresses[name] = address
            context.set_tensor_address(name, address)
        self._all_inputs = (1 << len(self.inputs)) - 1

    # The three steps, on any stream handle. The session runs them through launch(); the benchmark times each.

    def copy_in(self, stream: int, which: int = -1) -> None:
        """Enqueue the copies of the inputs in the bit set ``which`` from page-locked to device memory."""
        for index, copy in enumerate(self._copies_in):
            if copy is not None and which >> index & 1:
                copy_async(*copy, stream)

    def execute(self, stream: int) -> None:
        """Enqueue the engine itself. Raises ExecutionError with TensorRT's log when it refuses."""
        with self._engine.compile_lock, self._engine.flavor.logger.capture() as lines:
            if not self._context.execute_async_v3(stream):
                raise ExecutionError(f"TensorRT could not enqueue {self._engine.name}.", log=lines)

    def copy_out(self, stream: int) -> None:
        """Enqueue the copies of the outputs from device to page-locked memory."""
        for copy in self._copies_out:
            copy_async(*copy, stream)

    def launch(self, steps: Steps) -> None:
        """Enqueue these steps on the session's stream: one graph launch where they were captured."""
        graph = self._graphs.get(steps)
        if graph is not None:
            graph.launch(self._stream)
        else:
            self._enqueue(self._handle, steps)
            self._warm = True

    def _enqueue(self, stream: int, steps: Steps) -> None:
        which, to_host = steps
        if which:
            self.copy_in(stream, which)
        self.execute(stream)
        if to_host:
            self.copy_out(stream)

    def captured(self, steps: Steps) -> bool:
        return steps in self._graphs

    def capture(self, steps: Steps) -> None:
        """Capture these steps after they ran once. On failure ``graph_reason`` says why, and they stay enqueued."""
        if self.graph_reason is not None or not self._warm:
            return
        capabilities = self._engine.flavor.capabilities
        try:
            context: Any = self._context  # is_stream_capturable is TensorRT-RTX's, and the stubs know the full API
            if capabilities.has_stream_capturable and not context.is_stream_capturable(self._handle):
                raise ExecutionError("TensorRT says that this engine cannot be captured for these shapes")
            self._graphs[steps] = capture(self._stream, lambda stream: self._enqueue(stream, steps))
        except TrtrunError as error:
            # Another thread that synchronizes the whole device spoils a capture, whatever its mode; the next may do.
            self._failed_captures += 1
            if self._failed_captures < _CAPTURE_ATTEMPTS:
                _LOG.info("capturing %s failed and will be tried again: %s", self._engine.name, error)
                return
            self.graph_reason = f"capture failed: {error}"
            _LOG.warning("%s runs without a CUDA graph, which is slower: %s", self._engine.name, error)

    def drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()

    def close(self) -> None:
        self.drop_graphs()
        for allocator in self.allocators.values():
            allocator.close()
        self.allocators.clear()
        # The views keep page-locked memory alive; the context holds memory on the GPU.
        self.inputs, self.outputs = [], {}
        del self._context
