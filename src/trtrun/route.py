"""Route: how requests of one shape key get through an execution context.

A route holds an execution context whose shapes and addresses are set, the page-locked views that requests are filled
into and read from, and the CUDA graphs that replay the steps copy in → execute → copy out. NVIDIA's advice for
captured graphs is one execution context per graph, sharing scratch memory, because a context that is given other
shapes may change memory that a captured graph still reads.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .arrays import Host, copy_out, nbytes_of
from .buffers import Buffers
from .cuda.graph import Graph, capture
from .cuda.memory import DeviceMemory, address_of, copy_async, fill_async, host_view
from .cuda.stream import create_stream, synchronize
from .cuda.transfer import Copy, Transfers
from .errors import ExecutionError, OutOfMemoryError, ShapeError, TrtrunError
from .flavor import FOUR_BIT
from .layout import Layout, PackedLayout, StridedLayout
from .tensor_spec import Shape, ShapeRange, TensorSpec, to_shape

if TYPE_CHECKING:
    from cuda.core import Stream

    from .engine import Engine
    from .flavor import IExecutionContext
    from .output_allocator import OutputAllocator
    from .runner import OpenStages, Stages, Step

_LOG = logging.getLogger("trtrun")

CAPTURE_ATTEMPTS = 5
# Graphs that are kept of each kind: those that read the caller's memory, one for each set of addresses that keeps
# coming back, and those that do not, one for each set of inputs that they copy.
_MAX_GRAPHS = 16
ALIGNMENT = 256  # bytes, of tensor addresses
_MAX_SEEN = 64  # sets of addresses that are counted
_MAX_IN_ORDER = 1024  # shapes of an engine that are known to run in order as they are enqueued

ShapeKey = tuple[Shape, ...]

# Which inputs the route itself copies to the device (bit i for input i), whether it copies outputs to the host, and the
# copies that this request has beside: from the caller's own memory on the GPU, or of what its stages take.
Steps = tuple[int, bool, tuple[Copy, ...]]


def choose_profile(engine: Engine, key: ShapeKey, pinned: int | None = None) -> int:
    """The tightest optimization profile that holds all these input shapes, or the pinned one.

    Tightest is the one whose largest shapes have the fewest elements: TensorRT tunes a profile for its range.
    Raises ShapeError when no single profile holds them together, or the pinned one does not.
    """
    best, best_size = -1, None
    for profile in range(engine.num_profiles) if pinned is None else (pinned,):
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
        which = "no single optimization profile" if pinned is None else f"optimization profile {pinned}, pinned,"
        holds = "holds" if pinned is None else "does not hold"
        raise ShapeError(
            f"{which} {holds} these shapes together: {asked}. The engine takes {engine.inputs!r}. "
            "Pass shapes of one profile, or rebuild the engine with a profile that holds them."
        )
    return best


def part_keys(key: ShapeKey, parts: tuple[int, ...] | None) -> list[ShapeKey]:
    """The shape key of each part; that of the whole without parts."""
    return [key] if parts is None else [tuple((size, *shape[1:]) for shape in key) for size in parts]


def set_shapes(engine: Engine, context: IExecutionContext, key: ShapeKey, pinned: int | None, stream: int) -> None:
    """Give a context the profile and the input shapes of a key; a switch of profile is enqueued on the stream handle.

    Raises ShapeError where no profile holds them, see :func:`choose_profile`, or TensorRT refuses them.
    """
    profile = choose_profile(engine, key, pinned)
    if profile != context.active_optimization_profile and not context.set_optimization_profile_async(profile, stream):
        raise ExecutionError(f"TensorRT could not switch to optimization profile {profile}.")
    for spec, shape in zip(engine.inputs.values(), key, strict=True):
        if spec.is_dynamic and not context.set_input_shape(spec.name, shape):
            raise ShapeError(f"TensorRT refused shape {list(shape)} for input {spec.name!r} under profile {profile}.")


class Route:
    """One way of running one shape key, bound to memory.

    Args:
        contexts: the execution context; with ``parts`` one for each of them.
        profile: the optimization profile to stay with; None chooses the tightest for each key.
        state: inputs that get the value of an output of the run before, with that output. The memory of both is
            reserved for the input's largest shape, so that it never moves. An output that has outgrown it is not
            fed back: no request can follow.
        parts: batch sizes to run instead of the request's own, one after another, each over the next rows of the
            batch. The last may reach beyond it: those rows are computed and dropped. Without them the request runs
            in one part of exactly its shapes.
        stages: steps before and after the engine, with ``opened``, the same for this session. Not together with parts.
        serves: the only key that it is bound for, ever; None where there may be several.
        one_use: the contexts are in a state in which nobody else may get them.

    Attributes:
        key: the input shapes in engine order.
        inputs: per input the page-locked view to fill, in engine order.
        outputs: per output the page-locked view to read after running; None where the shape is data-dependent.
        output_parts: per output the pieces of device memory that make it up, as (address, bytes).
        layouts: per input and output that is no row-major array, how it lies in memory; its view is flat uint8.
        graph_reason: why the steps cannot be captured as a CUDA graph; None when they can.
    """

    def __init__(
        self,
        engine: Engine,
        buffers: Buffers,
        stream: Stream,
        contexts: Sequence[IExecutionContext],
        *,
        profile: int | None = None,
        state: Mapping[str, str] | None = None,
        parts: tuple[int, ...] | None = None,
        stages: Stages | None = None,
        opened: OpenStages | None = None,
        serves: ShapeKey | None = None,
        one_use: bool = False,
    ) -> None:
        self._engine = engine
        self._serves = serves
        self._one_use = one_use
        self._buffers = buffers
        self._stream = stream
        self._handle = int(stream.handle)
        self._contexts = list(contexts)
        self.parts = parts
        self._profile = profile
        self._state = state or {}
        self._opened = opened
        # Tensors that never cross to the host.
        self._stay_in = {*self._state, *(stages.inputs if stages else ())}
        self._stay_out = {*self._state.values(), *(stages.outputs if stages else ())}
        self._before: list[Step] = []
        self._after: list[Step] = []
        self._shares_gpu = False
        self._generation = -1
        self._graphs: dict[Steps, Graph] = {}
        self._ordered: Graph | Literal["as enqueued"] | None = None  # the engine alone, for steps that are enqueued
        self._borrowing: OrderedDict[Steps, int] = OrderedDict()  # those that read the caller's memory: times launched
        self._worth_a_graph = 2  # such launches
        self._failed_captures = 0
        self._indices_beyond: list[tuple[int, int]] = []  # address and bytes of padding
        self._warm = False
        self.key: ShapeKey | None = None
        self.inputs: list[Host] = []
        self.outputs: dict[str, Host | None] = {}
        self.output_shapes: dict[str, Shape] = {}
        self.input_addresses: list[int] = []
        self.output_parts: dict[str, list[tuple[int, int]]] = {}
        self.allocators: dict[str, OutputAllocator] = {}
        self._targets: dict[str, int] = {}  # per allocator the address of the view in ``outputs``
        self.layouts: dict[str, Layout] = {}
        self.graph_reason: str | None = None
        self._copies_in: list[Copy | None] = []
        self._transfers_in: dict[int, Transfers] = {}
        self._transfers_out = Transfers(engine.device, ())
        self._feedback = Transfers(engine.device, ())

    def spec(self, name: str) -> TensorSpec:
        """The spec of an input."""
        return self._engine.inputs[name]

    def fits(self, key: ShapeKey) -> bool:
        """True when the route is bound for this key and no buffer has moved since."""
        return self.key == key and self._generation == self._buffers.generation

    def bind(self, key: ShapeKey, stream: int | None = None, *, shares_gpu: bool = False) -> None:
        """Set shapes and addresses for a key. Nothing of this session may be running on the GPU.

        A switch of the optimization profile is enqueued on this stream handle, the session's own without one.
        ``shares_gpu``: as :attr:`Runner.shares_gpu <trtrun.runner.Runner.shares_gpu>`.

        Raises ShapeError when TensorRT does not accept the shapes, and OutOfMemoryError when buffers do not fit.
        """
        self.key = None
        self._shares_gpu = shares_gpu
        engine = self._engine
        # A context that is given shapes looks for kernels in what others of its engine may be compiling into.
        with engine.compile_lock, engine.flavor.logger.capture() as lines:
            self.drop_graphs()
            try:
                for context, shapes in zip(self._contexts, part_keys(key, self.parts), strict=True):
                    for spec, shape in zip(engine.inputs.values(), shapes, strict=True):
                        if spec.location == "host":
                            # Shape tensors are read where shapes are set and inferred, with this request's values; a
                            # context that served another session has the address of memory that is gone.
                            memory = self._buffers.host(spec.name, nbytes_of(shape, spec.dtype))
                            context.set_tensor_address(spec.name, address_of(memory))
                    set_shapes(engine, context, shapes, self._profile, self._handle if stream is None else stream)
                    missing = context.infer_shapes()
                    if missing:
                        raise ExecutionError(
                            f"TensorRT cannot infer the output shapes of {engine.name}; it misses {list(missing)}."
                        )
            except TrtrunError as error:
                error.log = (*error.log, *lines)
                raise
            try:
                self._reserve(key)
            except OutOfMemoryError as error:
                raise self._what_would_fit(key, error) from error
            self._set_addresses(key)
            if self._opened is not None:
                self._bind_stages(key)
        self.key = key
        self._generation = self._buffers.generation
        self._warm = False

    def _reserve(self, key: ShapeKey) -> None:
        """Reserve memory for this key. Addresses are read afterwards: reserving may move buffers."""
        engine, buffers = self._engine, self._buffers
        scratch = max(context.update_device_memory_size_for_shapes() for context in self._contexts)
        self.layouts.clear()
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            nbytes = self._lay_out(spec, shape)
            if spec.name in self._state:
                nbytes = most_bytes(spec)
            elif spec.name not in self._stay_in:
                buffers.host(spec.name, nbytes)
            if self.parts:
                nbytes = nbytes_of((sum(self.parts), *shape[1:]), spec.dtype)
            if spec.location == "device":
                buffers.on_gpu(spec.name, nbytes)
        self.output_shapes = {}
        fed = {output: engine.inputs[name] for name, output in self._state.items()}
        for name, spec in engine.outputs.items():
            shapes = [self._output_shape(context, name) for context in self._contexts]
            self.output_shapes[name] = (key[0][0], *shapes[0][1:]) if self.parts else shapes[0]
            if -1 in shapes[0]:
                if name in fed:
                    raise ShapeError(
                        f"state {fed[name].name!r} <- {name!r}: the output's shape is known only after running, so it "
                        "cannot stay on the GPU. Pass this input yourself."
                    )
                continue
            if self.parts and any(shape[0] != size for shape, size in zip(shapes, self.parts, strict=True)):
                raise ShapeError(
                    f"the first dimension of output {name!r} is no batch: {shapes[0]} for {self.parts[0]}."
                )
            nbytes = self._lay_out(spec, self.output_shapes[name])
            if name in fed:
                nbytes = max(nbytes, most_bytes(fed[name]))
            elif name not in self._stay_out:
                buffers.host(name, nbytes)
            if self.parts:
                for index, shape in enumerate(shapes):
                    buffers.on_gpu(_part(name, index), nbytes_of(shape, spec.dtype))
            elif spec.location == "device" and name not in engine.aliases:
                buffers.on_gpu(name, nbytes)
        dependent = [name for name, shape in self.output_shapes.items() if -1 in shape]
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
        memory = buffers.scratch(scratch)
        for context in self._contexts:  # they run one after another, so they share it
            context.set_device_memory(*memory)

    def _what_would_fit(self, key: ShapeKey, error: OutOfMemoryError) -> OutOfMemoryError:
        """The same error with this request's needs beside what there is, and the batch that would fit."""
        engine = self._engine
        scratch = max(context.update_device_memory_size_for_shapes() for context in self._contexts)
        tensors = sum(
            nbytes_of(shape, spec.dtype)
            for specs, shapes in ((engine.inputs, key), (engine.outputs, self.output_shapes.values()))
            for spec, shape in zip(specs.values(), shapes, strict=False)
            if -1 not in shape
        )
        free = engine.device.memory()[0] + self._buffers.device_bytes
        asked = ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in zip(engine.inputs, key, strict=True))
        batches = {shape[0] for spec, shape in zip(engine.inputs.values(), key, strict=True) if spec.shape[:1] == (-1,)}
        fits = min(batches) * free // max(scratch + tensors, 1) if batches else 0
        return OutOfMemoryError(
            f"{engine.name} needs {scratch + tensors:,} bytes of device memory for {asked}, {scratch:,} of them "
            f"scratch memory, and {free:,} are free. "
            + (f"A batch of about {fits} would fit. " if 0 < fits < min(batches, default=0) else "")
            + f"Each session of a pipeline takes so much: fewer may do. {error}"
        )

    def _set_addresses(self, key: ShapeKey) -> None:
        from .output_allocator import OutputAllocator

        engine, buffers = self._engine, self._buffers
        starts = [sum(self.parts[:index]) for index in range(len(self.parts))] if self.parts else [0]
        self.inputs, self._copies_in, self.input_addresses = [], [], []
        on_gpu: dict[str, int] = {}
        self._transfers_in.clear()
        for spec, shape in zip(engine.inputs.values(), key, strict=True):
            nbytes = self._nbytes(spec, shape)
            if spec.name in self._stay_in:
                view: Host = np.empty(0, spec.dtype)
            else:
                view = self._view(spec, shape, buffers.host(spec.name, nbytes))
            self.inputs.append(view)
            if spec.location == "host":
                address = address_of(view)
                self._copies_in.append(None)
            else:
                address = buffers.on_gpu(spec.name, nbytes)
                on_gpu[spec.name] = address
                self._copies_in.append((address, address_of(view), nbytes) if view.nbytes else None)
            self.input_addresses.append(address)
            for context, start in zip(self._contexts, starts, strict=True):
                offset = start * nbytes_of(shape[1:], spec.dtype) if start else 0
                context.set_tensor_address(spec.name, address + offset)
        self.outputs, self.output_parts = {}, {}
        copies_out: list[Copy] = []
        for name, shape in self.output_shapes.items():
            spec = engine.outputs[name]
            if -1 in shape:
                self.outputs[name] = None
                allocator = self.allocators.get(name)
                if allocator is None:
                    allocator = self.allocators[name] = OutputAllocator.create(engine.flavor.module, engine.device)
                self._contexts[0].set_output_allocator(name, allocator.handle)
                continue
            nbytes = self._nbytes(spec, shape)
            if name in self._stay_out:
                view = np.empty(0, spec.dtype)
            else:
                view = self._view(spec, shape, buffers.host(name, nbytes))
            self.outputs[name] = view
            pieces = self.output_parts[name] = []
            for index, (context, start) in enumerate(zip(self._contexts, starts, strict=True)):
                if spec.location == "host":
                    address = address_of(view)
                else:
                    source = engine.aliases.get(name)
                    address = on_gpu[source] if source else buffers.on_gpu(_part(name, index), 0)
                    if self.parts:
                        row = nbytes_of(shape[1:], spec.dtype)
                        size = row * min(self.parts[index], shape[0] - start)
                    else:
                        row, size = 0, nbytes
                    pieces.append((address, size))
                    if size and name not in self._stay_out:
                        copies_out.append((address_of(view) + start * row, address, size))
                context.set_tensor_address(name, address)
        self._transfers_out = Transfers(engine.device, copies_out, shares_gpu=self._shares_gpu)
        feedback = [(on_gpu[name], *self.output_parts[output][0]) for name, output in self._state.items()]
        self._feedback = Transfers(
            engine.device,
            [
                (target, source, nbytes)
                for (target, source, nbytes), name in zip(feedback, self._state, strict=True)
                if target != source and 0 < nbytes <= most_bytes(engine.inputs[name])
            ],
        )
        self.pad(0)

    def _bind_stages(self, key: ShapeKey) -> None:
        assert self._opened is not None
        names = self._engine.inputs
        self._before, self._after = self._opened.bind(
            {name: place for name, *place in zip(names, self.input_addresses, key, strict=True)},  # type: ignore[misc]
            {name: (parts[0][0], self.output_shapes[name]) for name, parts in self.output_parts.items()},
        )

    def _output_shape(self, context: IExecutionContext, name: str) -> Shape:
        """The shape of an output for the bound inputs, -1 where only the run decides."""
        return to_shape(context.get_tensor_shape(name))

    def _lay_out(self, spec: TensorSpec, shape: Shape) -> int:
        """Note how this tensor lies in memory if it is no row-major array; the bytes that it takes."""
        if spec.format and -1 not in shape:
            context, engine = self._contexts[0], self._engine.handle
            if spec.dtype.name in FOUR_BIT:
                self.layouts[spec.name] = PackedLayout(shape, spec.dtype)
            else:
                profile = context.active_optimization_profile
                self.layouts[spec.name] = StridedLayout(
                    shape,
                    spec.dtype,
                    to_shape(context.get_tensor_strides(spec.name)),
                    engine.get_tensor_vectorized_dim(spec.name, profile),
                    engine.get_tensor_components_per_element(spec.name, profile),
                )
        return self._nbytes(spec, shape)

    def _nbytes(self, spec: TensorSpec, shape: Shape) -> int:
        layout = self.layouts.get(spec.name)
        return nbytes_of(shape, spec.dtype) if layout is None else layout.nbytes

    def _view(self, spec: TensorSpec, shape: Shape, memory: Host) -> Host:
        layout = self.layouts.get(spec.name)
        return host_view(memory, spec.dtype, shape) if layout is None else memory[: layout.nbytes]

    def fill(self, index: int, name: str, array: Host) -> None:
        """Put an array into the page-locked memory of an input."""
        layout = self.layouts.get(name)
        if layout is None:
            np.copyto(self.inputs[index], array, casting="unsafe")
        else:
            layout.write(self.inputs[index], array)

    def read(self, name: str) -> Host:
        """A copy of an output from its page-locked memory."""
        layout, view = self.layouts.get(name), self.outputs[name]
        assert view is not None
        return copy_out(view) if layout is None else layout.read(view)

    def pad(self, value: int) -> None:
        """Set every byte of the rows that the last part has beyond the batch.

        Integers, often indices, are set to 0 with each request: other shapes may have written there what is too large.
        """
        self._indices_beyond = []
        if not self.parts:
            return
        for spec, view, address in zip(self._engine.inputs.values(), self.inputs, self.input_addresses, strict=True):
            row = nbytes_of(view.shape[1:], spec.dtype)
            nbytes = row * (sum(self.parts) - view.shape[0])
            if nbytes and spec.dtype.kind in "fV":  # ml_dtypes' floating types are of kind V
                fill_async(address + row * view.shape[0], value, nbytes, self._handle)
            elif nbytes:
                self._indices_beyond.append((address + row * view.shape[0], nbytes))
        self._stream.sync()

    # The three steps, on any stream handle. The session runs them through launch(); the benchmark times each.

    def copy_in(self, stream: int, which: int = -1) -> None:
        """Enqueue the copies of the inputs in the bit set ``which`` from page-locked to device memory."""
        transfers = self._transfers_in.get(which)
        if transfers is None:
            copies = [copy for index, copy in enumerate(self._copies_in) if copy is not None and which >> index & 1]
            if len(self._transfers_in) >= 2 * _MAX_GRAPHS:
                self._transfers_in.clear()
            transfers = Transfers(self._engine.device, copies, shares_gpu=self._shares_gpu)
            self._transfers_in[which] = transfers
        transfers.enqueue(stream)

    def execute(self, stream: int) -> None:
        """Enqueue the engine itself. Raises ExecutionError with TensorRT's log when it refuses.

        Outside a capture its kernels may read too early, see :meth:`_execute_in_order`.
        """
        with self._engine.compile_lock, self._engine.flavor.logger.capture() as lines:
            for context in self._contexts:
                if not context.execute_async_v3(stream):
                    raise ExecutionError(f"TensorRT could not enqueue {self._engine.name}.", log=lines)

    def _execute_in_order(self, stream: int) -> None:
        """Enqueue the engine, as a graph of its own where its kernels must be kept from starting too early.

        Whether they must is known once they were captured, which they can be after they ran: so the first time they
        run twice where they must. Not where memory is asked for while they run.
        """
        if self._ordered is None:
            self._ordered = self._first_execution(stream)
            if self._ordered == "as enqueued":
                return
        if self._ordered == "as enqueued":
            self.execute(stream)
        else:
            self._ordered.launch(stream)

    def _first_execution(self, stream: int) -> Graph | Literal["as enqueued"]:
        """Enqueue the engine, and capture it if that run may be wrong: then the inputs are as they were before it."""
        engine = self._engine
        if not engine.starts_early or self.allocators or (kernels := self._what_chooses_kernels()) in engine.in_order:
            self.execute(stream)
            return "as enqueued"
        with ExitStack() as undo:
            try:
                aside = self._set_aside(stream, undo)
            except OutOfMemoryError as error:
                _LOG.warning("the kernels of %s may start too early, before their data: %s", engine.name, error)
                self.execute(stream)
                return "as enqueued"
            self.execute(stream)
            synchronize(stream)  # nothing uses the context while it is captured
            graph = self._capture_in_order(kernels)
            if graph != "as enqueued":
                for copy in aside:
                    copy_async(*copy, stream)
                synchronize(stream)
            return graph

    def _what_chooses_kernels(self) -> object:
        """Equal for runs that have the same kernels in the same order."""
        specs = self._engine.inputs.values()
        return (
            self.key,
            self.parts,
            *(context.active_optimization_profile for context in self._contexts),
            *(view.tobytes() for spec, view in zip(specs, self.inputs, strict=True) if spec.location == "host"),
            *self.output_shapes.values(),
        )

    def _set_aside(self, stream: int, undo: ExitStack) -> list[Copy]:
        """Copy the inputs that outputs are written over; returns the copies that bring them back."""
        assert self.key is not None
        back: list[Copy] = []
        for spec, shape, address in zip(self._engine.inputs.values(), self.key, self.input_addresses, strict=True):
            nbytes = self._nbytes(spec, shape)
            if nbytes and spec.name in self._engine.aliases.values():
                kept = DeviceMemory(self._engine.device, nbytes)
                undo.callback(kept.close)
                copy_async(kept.address, address, nbytes, stream)
                back.append((address, kept.address, nbytes))
        return back

    def _capture_in_order(self, kernels: object) -> Graph | Literal["as enqueued"]:
        engine, held_back = self._engine, 0

        def amend(graph: Any) -> None:
            nonlocal held_back
            held_back = engine.hold_back(graph, self._buffers.places)

        if not self._is_capturable():
            return "as enqueued"
        with engine.compile_lock:
            try:
                graph = capture(self._handle, self.execute, amend, attempts=CAPTURE_ATTEMPTS)
            except TrtrunError as error:
                _LOG.warning("the kernels of %s may start too early, before their data: %s", engine.name, error)
                return "as enqueued"
            if held_back:
                return graph
            graph.close()
            if len(engine.in_order) >= _MAX_IN_ORDER:
                engine.in_order.clear()
            engine.in_order.add(kernels)
            return "as enqueued"

    def copy_out(self, stream: int) -> None:
        """Enqueue the copies of the outputs from device to page-locked memory."""
        self._transfers_out.enqueue(stream)

    def launch(self, steps: Steps, stream: Stream) -> None:
        """Enqueue these steps on a stream: one graph launch where they were captured."""
        graph = self._graphs.get(steps)
        if graph is None and steps[2]:
            self._count(steps)
            for copy in steps[2]:
                copy_async(*copy, int(stream.handle))
            steps = _without_borrowing(steps)
            graph = self._graphs.get(steps)
        if graph is not None:
            graph.launch(stream.handle)
        else:
            self._enqueue(int(stream.handle), steps, self._execute_in_order)
            self._warm = True

    def _enqueue(self, stream: int, steps: Steps, execute: Callable[[int], None]) -> None:
        which, to_host, borrowed = steps
        if which:
            self.copy_in(stream, which)
        if borrowed:
            Transfers(self._engine.device, borrowed).enqueue(stream)
        for address, nbytes in self._indices_beyond:
            fill_async(address, 0, nbytes, stream)
        for step in self._before:
            step.enqueue(stream)
        execute(stream)
        self._feedback.enqueue(stream)
        for step in self._after:
            step.enqueue(stream)
        if to_host:
            self.copy_out(stream)
            if self.allocators:
                self._copy_dependent_out(stream)

    def _copy_dependent_out(self, stream: int) -> None:
        """Enqueue the copies of outputs whose shape only the run decides: TensorRT has told it once it was enqueued."""
        for name, allocator in self.allocators.items():
            view = self.outputs[name]
            if view is None or view.shape != allocator.shape:
                dtype = self._engine.outputs[name].dtype
                memory = self._buffers.host(name, nbytes_of(allocator.shape, dtype))
                view = self.outputs[name] = host_view(memory, dtype, allocator.shape)
                self._targets[name] = address_of(view)
            if view.nbytes:
                copy_async(self._targets[name], allocator.address, view.nbytes, stream)

    def _count(self, steps: Steps) -> None:
        self._borrowing[steps] = self._borrowing.pop(steps, 0) + 1
        if len(self._borrowing) > _MAX_SEEN:
            self._borrowing.popitem(last=False)

    def is_captured(self, steps: Steps) -> bool:
        """True when these steps, or all of them but the copies that are this request's own, are one graph launch."""
        return steps in self._graphs or _without_borrowing(steps) in self._graphs

    def graph(self, steps: Steps) -> Graph:
        """What these steps were captured as."""
        return self._graphs[steps]

    def settled(self, steps: Steps) -> bool:
        """True when :meth:`capture` has nothing to do for these steps, which were launched."""
        if steps in self._graphs:
            return True
        return _without_borrowing(steps) in self._graphs and self._borrowing.get(steps, 0) < self._worth_a_graph

    def capture(self, steps: Steps) -> None:
        """Capture these steps after they ran once. On failure ``graph_reason`` says why, and they stay enqueued.

        Steps that read the caller's memory are launched as copies and the graph of the rest until the same addresses
        have come back: then they are captured too. When more sets of addresses take turns than graphs are kept, they
        must come back twice as often.
        """
        if self.graph_reason is not None or not self._warm:
            return
        plain = _without_borrowing(steps)
        with self._engine.compile_lock:
            if plain not in self._graphs:
                self._make_room(plain)
                self._capture(plain)
            if steps[2] and plain in self._graphs and not self.settled(steps):
                if self._make_room(steps):
                    self._worth_a_graph = min(2 * self._worth_a_graph, 1 << 20)
                self._capture(steps)

    def _make_room(self, steps: Steps) -> bool:
        """Give up the oldest graph of the same kind when there are as many as are kept; True when one went."""
        same_kind = [kept for kept in self._graphs if bool(kept[2]) == bool(steps[2])]
        if len(same_kind) < _MAX_GRAPHS:
            return False
        self._graphs.pop(same_kind[0]).close()
        return True

    def _capture(self, steps: Steps) -> None:
        """Under the compile lock: the process died where a thread ended a capture, or instantiated its graph, while
        another executed a shape for the first time; in a stress test 1 of 150 rounds of a new engine did.
        """
        try:
            with self._bound(steps[2]) as copied:
                if not self._is_capturable():
                    raise ExecutionError("TensorRT says that this engine cannot be captured for these shapes")
                steps_left = (steps[0], steps[1], copied)
                self._graphs[steps] = capture(
                    self._handle,
                    lambda stream: self._enqueue(stream, steps_left, self.execute),
                    lambda graph: self._engine.hold_back(graph, self._buffers.places),
                )
                self._failed_captures = 0
        except TrtrunError as error:
            # Another thread that synchronizes the whole device spoils a capture, whatever its mode; the next may do.
            self._failed_captures += 1
            if self._failed_captures < CAPTURE_ATTEMPTS:
                _LOG.info("capturing %s failed and will be tried again: %s", self._engine.name, error)
                return
            self.graph_reason = f"capture failed: {error}"
            _LOG.warning("%s runs without a CUDA graph, which is slower: %s", self._engine.name, error)

    def _is_capturable(self) -> bool:
        contexts: list[Any] = self._contexts  # is_stream_capturable is TensorRT-RTX's, and the stubs know the full API
        return not self._engine.flavor.capabilities.has_stream_capturable or all(
            context.is_stream_capturable(self._handle) for context in contexts
        )

    @contextmanager
    def _bound(self, borrowed: tuple[Copy, ...]) -> Iterator[tuple[Copy, ...]]:
        """Let the engine read the caller's memory itself; the copies are returned that cannot be spared so.

        Not where an output shares the memory of its input, which would be the caller's then, nor where memory is not
        aligned as TensorRT wants it.
        """
        names = {
            address: name
            for address, name, view in zip(self.input_addresses, self._engine.inputs, self.inputs, strict=True)
            if view.nbytes
        }
        changed = set(self._engine.aliases.values())
        spared = [
            copy
            for copy in borrowed
            if names.get(copy[0]) not in {None, *changed} and copy[1] % ALIGNMENT == 0 and not self.parts
        ]
        context = self._contexts[0]
        try:
            for target, source, _ in spared:
                context.set_tensor_address(names[target], source)
            yield tuple(copy for copy in borrowed if copy not in spared)
        finally:
            for target, _, _ in spared:
                context.set_tensor_address(names[target], target)

    def drop_graphs(self) -> None:
        with self._engine.compile_lock:
            for graph in self._graphs.values():
                graph.close()
            self._graphs.clear()
            if self._ordered is not None and self._ordered != "as enqueued":
                self._ordered.close()
            self._ordered = None
        self._borrowing.clear()

    def close(self) -> None:
        """Let go of everything. The contexts go back to the engine; of a ``one_use`` route they are destroyed."""
        self.drop_graphs()
        # An allocator stays with its context, which has no way to forget it.
        served = part_keys(self._serves, self.parts) if self._serves else [None] * len(self._contexts)
        self._engine.give_back(self._contexts, served, reusable=not (self._one_use or self.allocators))
        for allocator in self.allocators.values():
            allocator.close()
        self.allocators.clear()
        self.inputs, self.outputs = [], {}  # the views keep page-locked memory alive


def most_bytes(spec: TensorSpec) -> int:
    """Bytes of the largest shape that an engine's input takes; every dynamic one has a profile."""
    assert spec.max_shape is not None
    return nbytes_of(spec.max_shape, spec.dtype)


def _without_borrowing(steps: Steps) -> Steps:
    return steps[0], steps[1], ()


def _part(name: str, index: int) -> str:
    """The name of the buffer of an output's part; no tensor name holds a NUL."""
    return f"{name}\0{index}" if index else name


@contextmanager
def borrowed_route(
    engine: Engine, arrays: Mapping[str, Host], prepare: Callable[[Any], None]
) -> Iterator[tuple[Route, Stream]]:
    """A route and its stream for one use outside a session, bound for these arrays, which are on the GPU already.

    ``prepare`` is called with the execution context, which is not used again afterwards. The engine stays open and
    keeps its weights meanwhile.
    """
    with ExitStack() as undo:
        undo.enter_context(engine.occupied())
        undo.enter_context(engine.device)
        stream = create_stream(engine.device)
        undo.callback(stream.close)
        buffers = Buffers(engine.device)
        undo.callback(buffers.close)
        context = engine.create_context()
        prepare(context)
        route = Route(engine, buffers, stream, [context], one_use=True)
        del context
        undo.callback(route.close)
        undo.callback(stream.sync)  # first of all: nothing is freed under running work
        bind_inputs(route, buffers, arrays)
        route.copy_in(int(stream.handle))
        yield route, stream


def bind_inputs(route: Route, buffers: Buffers, arrays: Mapping[str, Host], *, shares_gpu: bool = False) -> None:
    """Bind a route for these arrays, by input name in engine order, and fill its page-locked memory with them.

    ``shares_gpu``: see :meth:`Route.bind`.
    """
    for name, array in arrays.items():
        spec = route.spec(name)
        if spec.location == "host":  # the output shapes depend on its values
            host_view(buffers.host(name, array.nbytes), spec.dtype, array.shape)[...] = array
    route.bind(tuple(array.shape for array in arrays.values()), shares_gpu=shares_gpu)
    for index, (name, array) in enumerate(arrays.items()):
        route.fill(index, name, array)
